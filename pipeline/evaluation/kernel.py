"""Kernel distance (Bińkowski et al. 2018): the squared maximum mean discrepancy of two sets of features.

The kernel is (x . y / f + 1)^3 for features of size f. The estimate is unbiased: two sets of one distribution give 0 in
the mean, whatever their sizes. With Inception's features it is KID. torch-fidelity computes it, here in float64.
"""

from dataclasses import dataclass

import numpy as np
import torch

SUBSETS = 100
MOST_IMAGES = 1000  # per subset, as is usual


@dataclass(frozen=True)
class KernelDistance:
    """The distance of two sets over random subsets."""

    mean: float
    """Mean over the subsets."""
    deviation: float
    """Standard deviation over the subsets, that is, of one subset and not of the mean."""


def subset_size(*sets: np.ndarray) -> int:
    """Images per subset: 1,000, or half of the smallest set, so that subsets differ. Below 2 there is no distance."""
    return min(MOST_IMAGES, *(len(features) // 2 for features in sets))


def kernel_distance(real: np.ndarray, fake: np.ndarray, size: int, seed: int) -> KernelDistance:
    """Distance of features (n, f) and (m, f), over 100 pairs of subsets of `size` images, without replacement."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    sets = [torch.from_numpy(features).double() for features in (real, fake)]
    result = kid_features_to_metric(
        *sets, kid_subsets=SUBSETS, kid_subset_size=size, kid_kernel="poly", rng_seed=seed, verbose=False
    )
    return KernelDistance(result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD])
