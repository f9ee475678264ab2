"""Gradients that are not finite under a finite loss, at any step and ZeRO stage: refused, and nothing of it is kept."""

import math
import random
from functools import partial
from pathlib import Path
from unittest.mock import patch

from torch import Tensor

from rdpm.pipeline.training.engine import Engine
from rdpm.pipeline.training.generator.stage import run
from tests.faults.campaign.tally import Tally, refusal
from tests.pipeline.training.trainings import config, log_lines

KIND = "gradient not finite"
_STEPS = 6


class Part:
    """This part of a campaign, in this process. inputs: a folder as in `trainings.arguments`."""

    def __init__(self, inputs: Path, tally: Tally, folder: Path) -> None:
        self.inputs, self.tally, self.folder = inputs, tally, folder
        self.draw = random.Random(f"{tally.seed} gradients")
        self.clean: dict[int, dict[str, object]] = {}

    def run(self) -> None:
        """Throw every fault of this part."""
        while self.tally.wants(KIND):
            stage, number = self.draw.randrange(4), self.tally.thrown[KIND]
            if stage not in self.clean:
                self.clean[stage] = self._train(self.folder / f"undisturbed-{stage}", stage)
            out = self.folder / f"training-{number}"
            at = self.draw.choice([_STEPS, self.draw.randint(1, _STEPS)])  # often the last step
            with patch.object(Engine, "backward", _poisoned(at)):
                said = refusal(partial(self._train, out, stage))
            assert "gradient" in said, said
            assert not (out / "model.safetensors").exists()
            self.tally.refusals[KIND] += 1
            self.tally.compare(f"{out}, ZeRO {stage}, step {at}", self._train(out, stage), self.clean[stage])
            self.tally.thrown[KIND] += 1

    def _train(self, out: Path, stage: int) -> dict[str, object]:
        options = [f"steps={_STEPS}", "checkpoint_every=1", f"engine.zero_stage={stage}", "micro_batch=8"]
        run(config("generator", self.inputs, out, *options))
        return {"weights": (out / "model.safetensors").read_bytes(), "log": log_lines(out)}


def _poisoned(step: int):
    """A backward pass whose gradient is NaN at the step-th call, 1-based; the loss stays as it is."""
    original, calls = Engine.backward, []

    def backward(self: Engine, loss: Tensor, *where: str) -> None:
        calls.append(where)
        if len(calls) == step:
            loss.register_hook(lambda gradient: gradient * math.nan)
        original(self, loss, *where)

    return backward
