"""The ranks of a training: which one this is, and what they tell each other."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class SharedError(ValueError):
    """An error that every rank raises after the same step, so that none of them waits for another."""


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are."""

    rank: int
    """Number of this rank, from 0."""
    count: int
    """How many ranks there are."""
    device: torch.device
    """Device of this rank."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints and writes for all."""
        return self.rank == 0


def barrier() -> None:
    """Wait for the other ranks."""
    dist.barrier()


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over the ranks."""
    return sum_over_ranks(values) / dist.get_world_size()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over the ranks."""
    values = values.detach().clone()
    dist.all_reduce(values)
    return values


def gather(value: Any) -> list[Any]:
    """Every rank's value (anything that can be pickled), on every rank."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_cpu_group())
    return values


def given_by_first(value: Any) -> Any:
    """The first rank's value (anything that can be pickled), on every rank; what the others give is not used."""
    box = [value]
    dist.broadcast_object_list(box, 0, group=_cpu_group())
    return box[0]


def largest(values: Sequence[int]) -> list[int]:
    """The largest of each integer over the ranks. They exchange them over the CPU, to not wait for devices."""
    if dist.get_world_size() == 1:
        return list(values)
    flags = torch.tensor(values)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=_cpu_group())
    return flags.tolist()


@functools.cache
def _cpu_group() -> Any:
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def forget_groups() -> None:
    """Forget the groups that were made here; they end with the process group."""
    _cpu_group.cache_clear()


def from_first_rank(values: Tensor) -> Tensor:
    """The first rank's tensor, on every rank."""
    values = values.detach().clone()
    dist.broadcast(values, 0)
    return values
