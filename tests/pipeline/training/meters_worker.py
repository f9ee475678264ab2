"""On every rank: meters fed with what this rank saw."""

from typing import Any
from unittest.mock import patch

import torch

from rdpm.models.codebook import QuantizerConfig
from rdpm.models.schedule import Schedule
from rdpm.models.tokenizer import TokenizerConfig
from rdpm.pipeline.training.meters import StepLossMeter, TermMeter
from rdpm.pipeline.training.pace import Window
from rdpm.pipeline.training.ranks import Ranks

CPU = torch.device("cpu")


def term_metrics(ranks: Ranks) -> list[dict[str, Any]]:
    """Two looks at losses of 1, 2 on the first rank and 3, 4 on the second, and at codes of two steps."""
    config = TokenizerConfig(quantizer=QuantizerConfig(codebook_size=4), schedule=Schedule(num_steps=2))
    meter = TermMeter(config, CPU)
    found = []
    for _ in range(2):
        for call in (1, 2):
            first = torch.full((2, 1, 1, 2), ranks.rank)  # each rank has a code of its own at step 1
            second = torch.zeros_like(first)
            meter.add({"loss": torch.tensor(2.0 * ranks.rank + call), "codes": torch.cat([first, second], 1)})
        found.append(meter.take())
    return found


def step_losses(ranks: Ranks) -> list[dict[str, Any]]:
    """Two looks at losses by step; no image has step 3, and only the first rank's images have step 1."""
    meter = StepLossMeter(3, CPU)
    steps = torch.tensor([1, 2, 2]) if ranks.first else torch.tensor([2])
    found = []
    for scale in (1.0, 10.0):
        meter.add(steps, scale * (steps + ranks.rank).float())
        found.append(meter.take())
    return found


def windows(ranks: Ranks) -> tuple[list[dict[str, float]], list[str]]:
    """Windows of 5, 10 and 10 steps, in which the second rank is slow, and what is said of it."""
    said: list[str] = []
    lines = []
    with patch("rdpm.pipeline.training.pace.say", said.append):
        window = Window("a job", 8, 0, ranks)
        for done in (5, 15, 25):
            window.waited += 0.2
            lines.append(window.close(done, 0.3 if ranks.first else 1.8))
    return lines, said
