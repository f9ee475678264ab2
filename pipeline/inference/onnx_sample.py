"""Draw images from the graphs beside this file: python sample.py LABEL ... [seed=N] [guidance=X] [temperature=X]

It needs numpy and onnxruntime (and Pillow to write samples.png), and nothing of RDPM. From the same labels, seed and
settings it draws the codes that RDPM draws in fp32. Only where two codes are as likely to within the rounding of a
product may the other one win.
"""

import json
import math
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np
import onnxruntime

SAMPLER, GUMBEL, CHILD = 1, 2, 6  # streams of random numbers under one seed
MASK = 0xFFFFFFFF
_UPPER = [NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(32768, 65536)]
QUANTILES = np.array([-x for x in reversed(_UPPER)] + _UPPER, np.float32)  # of the standard normal distribution


def philox(counter: tuple[np.ndarray, ...], seeds: np.ndarray) -> tuple[np.ndarray, ...]:
    """Philox4x32-10 (Salmon et al. 2011): a counter of four 32-bit words to four random ones; all are uint64."""
    (c0, c1, c2, c3), k0, k1 = counter, seeds & MASK, seeds >> 32
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def child_seeds(seed: int, count: int) -> np.ndarray:
    """The seeds of images 0 ... count - 1 of a set, (count,) uint64."""
    index = np.arange(count, dtype=np.uint64)
    low, high, *_ = philox((index, 0 * index, 0 * index + CHILD, 0 * index), np.array([seed % 2**64], np.uint64))
    return low | (high << 32)


def random_words(seeds: np.ndarray, step: int, stream: int, count: int) -> np.ndarray:
    """`count` 32-bit words of each seed, (b, count) uint64."""
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    four = philox((blocks, 0 * blocks + step, 0 * blocks + stream, 0 * blocks), seeds.reshape(-1, 1))
    return np.stack(four, axis=-1).reshape(len(seeds), -1)[:, :count]


def normal(seeds: np.ndarray, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """eps_t, (b, *shape) float32."""
    words = random_words(seeds, step, SAMPLER, math.prod(shape))
    return ((QUANTILES[words & 0xFFFF] + QUANTILES[words >> 16]) * np.float32(math.sqrt(0.5))).reshape(-1, *shape)


def gumbel(seeds: np.ndarray, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Gumbel noise, (b, *shape) float32."""
    words = random_words(seeds, step, GUMBEL, math.prod(shape)).astype(np.float32)
    uniform = np.minimum((words + np.float32(0.5)) * np.float32(2.0**-32), np.float32(1 - 2.0**-24))
    return -np.log(-np.log1p(-uniform)).reshape(-1, *shape)


class Sampler:
    """The graphs of a folder that `rdpm export` wrote."""

    def __init__(self, folder: str | Path) -> None:
        self.facts = json.loads((Path(folder) / "model.json").read_text())
        self.graphs = {name: onnxruntime.InferenceSession(f"{folder}/{name}.onnx") for name in self.facts["graphs"]}

    def run(self, name: str, **inputs: np.ndarray) -> list[np.ndarray]:
        """The results of one graph."""
        return self.graphs[name].run(None, inputs)

    def draw(
        self, labels: list[int], seed: int = 0, guidance: float = 0.0, temperature: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Algorithm 2: images (b, H, W, channels) uint8 and codes (b, T, h, w) int64. Guidance grows step by step."""
        b, T, shape = len(labels), self.facts["num_steps"], self.facts["latent_shape"]
        seeds, classes, codes = child_seeds(seed, b), np.array(labels, np.int64), []
        (modulations,) = self.run("conditions", labels=classes)
        total = accumulated = np.zeros((b, *shape), np.float32)
        for t in range(1, T + 1):
            strength = np.full(b, guidance * (t - 1) / (T - 1) if T > 1 else guidance, np.float32)
            given = {"noise": normal(seeds, t, shape), "steps": np.full(b, t, np.int64), "guidance": strength}
            (logits,) = self.run("step", accumulated=accumulated, modulations=modulations[t - 1], **given)
            if temperature:
                logits = logits * np.float32(1 / temperature) + gumbel(seeds, t, logits.shape[1:])
            codes.append(logits.argmax(-1))
            total, accumulated = self.run("accumulate", total=total, codes=codes[-1])
        if "matching" in self.graphs:
            (accumulated,) = self.run("matching", accumulated=accumulated, labels=classes)
        return self.run("decoder", accumulated=accumulated)[0], np.stack(codes, 1)


def parse(words: list[str], classes: int) -> tuple[list[int], int, dict[str, float]]:
    """Labels, seed and settings of a command line. Raises ValueError for anything else."""
    labels, seed, settings = [], 0, {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and name.isdecimal() and int(name) < classes:
            labels.append(int(name))
        elif name == "seed" and value.isdecimal():
            seed = int(value)
        elif name in ("guidance", "temperature") and _number(value) is not None:
            settings[name] = float(value)
        else:
            raise ValueError(
                f"{word!r} is not LABEL (0 to {classes - 1}), seed=N (0 or more), "
                "guidance=X or temperature=X (0 or more)"
            )
    if not labels:
        raise ValueError(f"there is nothing to draw; give labels from 0 to {classes - 1}: python sample.py 0 seed=7")
    return labels, seed, settings


def _number(text: str) -> float | None:
    """A finite number of 0 or more; None for any other text."""
    try:
        return float(text) if 0 <= float(text) < math.inf else None
    except ValueError:
        return None


if __name__ == "__main__":
    from PIL import Image

    sampler = Sampler(Path(__file__).parent)
    try:
        labels, seed, settings = parse(sys.argv[1:], len(sampler.facts["classes"]))
    except ValueError as error:
        sys.exit(f"sample.py: {error}")
    images, _ = sampler.draw(labels, seed, **settings)
    Image.fromarray(np.concatenate(images, axis=1).squeeze()).save("samples.png")
