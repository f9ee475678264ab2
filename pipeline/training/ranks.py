"""The ranks of a training: which one this is, and what they tell each other."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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
    values = values.detach().clone()
    dist.all_reduce(values)
    return values / dist.get_world_size()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over the ranks."""
    values = values.detach().clone()
    dist.all_reduce(values)
    return values


def gather(value: Any) -> list[Any]:
    """Every rank's value (anything that can be pickled), on every rank."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def any_rank(value: bool) -> bool:
    """Whether the value is true on any rank. Ranks exchange it over the CPU, to not wait for devices."""
    if dist.get_world_size() == 1:
        return value
    flag = torch.tensor(int(value))
    dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=_cpu_group())
    return bool(flag.item())


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


def accumulation_steps(batch: int, micro_batch: int, ranks: int) -> int:
    """Micro-batches per rank and update. Raises ValueError when the batch is not a multiple of micro_batch x ranks."""
    if min(batch, micro_batch, ranks) < 1:
        raise ValueError(f"batch is {batch}, micro_batch {micro_batch}, ranks {ranks}; use 1 or more for each")
    if batch % (micro_batch * ranks):
        raise ValueError(
            f"batch {batch} is not a multiple of micro_batch {micro_batch} x {ranks} ranks; change one of them"
        )
    return batch // (micro_batch * ranks)
