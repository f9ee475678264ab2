"""What the tests of publications share: a push, and the pixels that a publication draws."""

from pathlib import Path

import numpy as np

from rdpm import RDPM
from rdpm.pipeline.evaluation.protocol import protocol
from rdpm.pipeline.sharing.push import PushConfig, run

LABELS = [0, 1, 1]


def protocol_of(parts: dict, inputs: dict) -> dict:
    return {**parts, "protocol": protocol(parts, inputs, {"seed": 0})}


def pixels(path: str) -> np.ndarray:
    return RDPM.from_pretrained(path, device="cpu").sample(LABELS, seed=5, guidance=0.5)


def push(trained: Path, url: str, **settings) -> None:
    run(PushConfig(run=str(trained), out=url, device="cpu", **settings))
