"""Matched latents: means and covariance become the real ones, what needs no change is not changed."""

import pytest
import torch
from torch import Tensor

from rdpm.models.matching import Matching, boxes, matching_of

D, GRID, SIDE, CLASSES = 2, 8, 4, 3
N = D * SIDE**2


def rows(count: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Rows of correlated values whose means differ by class."""
    drawn = torch.Generator().manual_seed(seed)
    mixed = torch.eye(N) + torch.randn(N, N, generator=torch.Generator().manual_seed(7)) / N
    labels = torch.arange(count) % CLASSES
    means = scale * torch.arange(CLASSES).unsqueeze(1) * torch.ones(N)
    return means[labels] + scale * torch.randn(count, N, generator=drawn) @ mixed, labels


def moments(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    means = torch.stack([values[labels == each].mean(0) for each in range(CLASSES)])
    centred = values - means[labels]
    return means, centred.T @ centred / (len(values) - CLASSES)


def applied(matching: Matching, values: Tensor, labels: Tensor) -> Tensor:
    """Matched rows, by way of maps of one position per box."""
    maps = values.view(-1, D, SIDE, SIDE)
    return matching(maps, matching.table[labels]).flatten(1)


def test_matched_samples_have_the_means_and_the_covariance_of_real_ones() -> None:
    drawn, real = rows(3000, 1, 0.6), rows(2400, 2)
    found = moments(applied(matching_of(*drawn, *real, CLASSES), *drawn), drawn[1])
    for value, wanted in zip(found, moments(*real), strict=True):
        assert torch.allclose(value, wanted, atol=1e-3)


def test_the_matrix_is_symmetric_so_that_samples_move_as_little_as_they_can() -> None:
    matrix = matching_of(*rows(3000, 1, 0.6), *rows(2400, 2), CLASSES).matrix
    assert torch.allclose(matrix, matrix.T, atol=1e-5)
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_samples_like_the_real_ones_stay_where_they_are() -> None:
    drawn = rows(3000, 1)
    matching = matching_of(*drawn, *drawn, CLASSES)
    assert torch.allclose(applied(matching, *drawn), drawn[0], atol=1e-3)


def test_what_varies_inside_a_box_stays() -> None:
    matching = matching_of(*rows(3000, 1, 0.6), *rows(2400, 2), CLASSES)
    maps = torch.randn(5, D, GRID, GRID, generator=torch.Generator().manual_seed(3))
    change = matching(maps, matching.table[:1].expand(5, -1)) - maps
    inside = change.unflatten(3, (SIDE, -1)).unflatten(2, (SIDE, -1))
    assert torch.allclose(inside, inside.mean((3, 5), keepdim=True).expand_as(inside), atol=1e-5)
    assert torch.allclose(
        boxes(maps + change, SIDE), boxes(maps, SIDE) @ matching.matrix + matching.offsets[0], atol=1e-4
    )


def test_a_class_without_rows_moves_as_the_average_one() -> None:
    matching = matching_of(*rows(3000, 1, 0.6), *rows(2400, 2), CLASSES + 1)
    assert torch.allclose(matching.offsets[CLASSES], matching.offsets[:CLASSES].mean(0), atol=1e-5)


def spread_by_class(values: Tensor, labels: Tensor) -> list[Tensor]:
    return [torch.cov(values[labels == each].T) for each in range(CLASSES)]


def test_a_class_may_get_a_covariance_of_its_own() -> None:
    """Classes that vary by different amounts: one matrix gives them the pooled covariance only."""
    (drawn, labels), (real, real_labels) = rows(3000, 1, 0.6), rows(2400, 2)
    real = real * (1 + real_labels.unsqueeze(1))
    matched = [
        applied(matching_of(drawn, labels, real, real_labels, CLASSES, share), drawn, labels) for share in (0.0, 1.0)
    ]
    for values, close in zip(matched, (False, True), strict=True):
        found = spread_by_class(values, labels)
        for own, wanted in zip(found, spread_by_class(real, real_labels), strict=True):
            assert torch.allclose(own, wanted, atol=1e-2) == close
    shared = matching_of(drawn, labels, real, real_labels, CLASSES)
    pooled = matching_of(drawn, labels, real, real_labels, CLASSES, 1e-9)
    assert pooled.matrix.shape == (CLASSES, N, N)
    found = [applied(matching, drawn, labels) for matching in (shared, pooled)]
    assert torch.allclose(*found, atol=1e-3)


def test_a_mix_of_two_classes_is_moved_between_them() -> None:
    matching = matching_of(*rows(3000, 1, 0.6), *rows(2400, 2), CLASSES, 0.5)
    maps = torch.randn(1, D, GRID, GRID, generator=torch.Generator().manual_seed(3))
    first, second = (matching(maps, matching.table[each : each + 1]) for each in (0, 1))
    mixed = matching(maps, torch.lerp(matching.table[:1], matching.table[1:2], 0.25))
    assert torch.allclose(mixed, torch.lerp(first, second, 0.25), atol=1e-4)


def test_too_few_rows_are_refused_with_the_way_out() -> None:
    with pytest.raises(
        ValueError, match="there are 40 samples of 3 classes for 32 values each; raise per_class, or lower"
    ):
        matching_of(*rows(40, 1), *rows(2400, 2), CLASSES)
    enough = 2 * N + CLASSES  # the mean of each class takes one
    assert matching_of(*rows(2400, 1), *rows(enough, 2), CLASSES).matrix.isfinite().all()
    with pytest.raises(ValueError, match=f"there are {enough - 1} rows of the store of 3 classes"):
        matching_of(*rows(2400, 1), *rows(enough - 1, 2), CLASSES)


def test_one_row_per_class_tells_no_covariance() -> None:
    values, labels = rows(100, 1)[0], torch.arange(100)
    with pytest.raises(ValueError, match="there are 100 samples of 100 classes"):
        matching_of(values, labels, values, labels, 100)
