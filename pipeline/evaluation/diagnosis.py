"""Where a generator loses variety: what it predicts at each step, and what its samples keep of real images.

Real images are encoded with the noise that the sampler will draw, so their codes and the generator's predictions speak
of the same noise. Three things are measured, all without guidance unless the sampler's settings say otherwise:

1. Images whose codes are kept for t <= s and drawn afterwards, for s = 0 ... T: their spread beside the originals', and
   their correlation with them. s = 0 gives plain samples, s = T the reconstructions.
2. For each t, the predictions of C_t from the real codes before it: cross-entropy, and how far probabilities can be
   trusted.
3. For each t, the spread of z'_t of plain samples beside z'_t of the real images (teacher forcing).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rdpm.models.noise import Stream, normal
from rdpm.pipeline.evaluation.spread import halves_of, spread, within_classes
from rdpm.pipeline.inference.batches import in_batches
from rdpm.pipeline.inference.rdpm import RDPM

BINS = 15  # of the calibration error


@dataclass(frozen=True)
class Predictions:
    """What a generator says of the codes of real images, at every position (N, T, h, w), float32."""

    cross_entropy: np.ndarray
    """-log of the probability of the real code, in nats."""
    entropy: np.ndarray
    """Entropy of the predicted distribution, in nats. In the mean it is the cross-entropy if that is calibrated."""
    confidence: np.ndarray
    """Probability of the most likely code."""
    right: np.ndarray
    """1 where the most likely code is the real one, else 0."""


def predict(model: RDPM, codes: np.ndarray, labels: np.ndarray, seeds: np.ndarray) -> Predictions:
    """Predictions of C_t from eps_t, y, t and z'_{t-1} of real codes (N, T, h, w) uint16 (teacher forcing).

    labels and seeds: (N,) int64, as the codes were encoded with; the noise is the sampler's.
    """
    generator, codebook = model.generator, model.tokenizer.quantizer.codebook
    config = generator.config
    shape = config.code_dim, config.grid, config.grid

    def batch(_: range, codes: Tensor, labels: Tensor, seeds: Tensor) -> tuple[Tensor, ...]:
        columns = []
        for t in range(1, config.num_steps + 1):
            steps = torch.full_like(labels, t)
            noise = normal(seeds, t, shape, Stream.SAMPLER)
            logs = generator(noise, labels, steps, codebook.accumulated(codes, t - 1)).log_softmax(-1)
            real = codes[:, t - 1]
            best, chosen = logs.max(-1)
            entropy = -(logs.exp() * logs).sum(-1)
            cross = -logs.gather(-1, real.unsqueeze(-1)).squeeze(-1)
            columns.append((cross, entropy, best.exp(), (chosen == real).float()))
        return tuple(torch.stack(column, 1) for column in zip(*columns, strict=True))

    return Predictions(*in_batches(batch, (codes.astype(np.int64), labels, seeds), model.batch, model.device))


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017): mean over predictions of |confidence - accuracy| of their bin.

    There are 15 bins of equal width. confidence and right: of any equal shape.
    """
    bins = np.minimum((confidence.ravel() * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, confidence.ravel().astype(np.float64) - right.ravel(), BINS)
    return float(np.abs(gaps).sum() / confidence.size)


def prediction_rows(predictions: Predictions) -> list[dict[str, float]]:
    """The means of each t, over images and positions, and the calibration error."""
    rows = []
    for t in range(predictions.right.shape[1]):
        confidence, right = predictions.confidence[:, t], predictions.right[:, t]
        rows.append(
            {
                "cross_entropy": float(predictions.cross_entropy[:, t].mean(dtype=np.float64)),
                "entropy": float(predictions.entropy[:, t].mean(dtype=np.float64)),
                "accuracy": float(right.mean(dtype=np.float64)),
                "confidence": float(confidence.mean(dtype=np.float64)),
                "calibration_error": calibration_error(confidence, right),
            }
        )
    return rows


def groups_of(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The labels (n,) if classes have images enough for a spread within classes, else one group for all rows (n, f)."""
    return labels if within_classes(halves_of(rows, labels)[0], labels) else np.zeros_like(labels)


def spread_row(real: np.ndarray, drawn: np.ndarray, groups: np.ndarray, prefix: str = "") -> dict[str, float]:
    """Spread of drawn rows (n, f) over real rows (n, f): total, first 8 and 32 components and, if any, the rest.

    Row i of both has the same noise, and perhaps the same codes of the first steps. groups: (n,), of both, from
    `groups_of`. prefix: of the names.
    """
    halves, half = halves_of(real, groups)
    values = spread(halves, drawn, groups, half=half)
    named = {"spread": values.total, "spread_8": values.first, "spread_32": values.more, "spread_rest": values.rest}
    return {f"{prefix}{name}": float(value) for name, value in named.items() if np.isfinite(value)}


def correlation(real: np.ndarray, drawn: np.ndarray, groups: np.ndarray) -> float:
    """Correlation of rows (n, f) with rows (n, f), over all their values, each minus the mean of its group."""
    centred = []
    for rows in (real, drawn):
        values = rows.astype(np.float64)
        for group in np.unique(groups):
            values[groups == group] -= values[groups == group].mean(axis=0)
        centred.append(values)
    a, b = centred
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
