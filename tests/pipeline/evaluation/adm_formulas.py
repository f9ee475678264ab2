"""The formulas of ADM's evaluator written independently, on whole arrays, to compare ours with."""

import numpy as np
import scipy.linalg


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 sqrtm(C1 C2)); with 1e-6 added to the diagonals where the root does not exist."""
    m1, m2 = a.mean(axis=0), b.mean(axis=0)  # in the float32 of the features, as in the evaluator
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2)
    if not np.isfinite(root).all():
        offset = 1e-6 * np.eye(len(c1))
        root = scipy.linalg.sqrtm((c1 + offset) @ (c2 + offset))
    difference = (m1 - m2).astype(np.float64)
    return float(difference @ difference + np.trace(c1) + np.trace(c2) - 2 * np.trace(root.real))


def inception_score(logits: np.ndarray, split: int) -> float:
    """Softmax in float32, contiguous splits, mean of exp(mean KL)."""
    exps = np.exp(logits.astype(np.float32) - logits.max(axis=1, keepdims=True))
    softmax = exps / exps.sum(axis=1, keepdims=True)
    scores = []
    for start in range(0, len(softmax), split):
        part = softmax[start : start + split]
        kl = part * (np.log(part) - np.log(part.mean(axis=0, keepdims=True)))
        scores.append(np.exp(kl.sum(axis=1).mean()))
    return float(np.mean(scores))


def precision_recall(reference: np.ndarray, samples: np.ndarray, dtype: type, k: int = 3) -> tuple[float, float]:
    """From squared distances |u|^2 - 2 u.v + |v|^2, with every value and result in `dtype` and sums in float32."""

    def squared(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        u, v = u.astype(dtype), v.astype(dtype)
        norm_u, norm_v = ((x * x).astype(np.float32).sum(axis=1).astype(dtype) for x in (u, v))
        product = (u.astype(np.float32) @ v.astype(np.float32).T).astype(dtype)
        distances = norm_u[:, None] - dtype(2) * product + norm_v[None]
        assert np.isfinite(distances).all()
        return np.maximum(distances, 0).astype(np.float32)

    radii = [np.partition(squared(points, points), k, axis=1)[:, k] for points in (reference, samples)]
    between = squared(samples, reference)
    precision = (between <= radii[0][None]).any(axis=1).mean()
    recall = (between <= radii[1][:, None]).any(axis=0).mean()
    return float(precision), float(recall)
