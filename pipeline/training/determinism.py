"""The deterministic mode of a training: the same bits in every run on the same GPUs."""

import contextlib
import os
from collections.abc import Iterator

import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def resumes_to_the_bit(device: torch.device, ranks: int, deterministic: bool) -> bool:
    """Whether a training that is stopped and continued, on as many such devices, has the bits of one that is not.

    Of several GPUs it is not known: NCCL adds their gradients.
    """
    return device.type == "cpu" or (deterministic and ranks == 1)


@contextlib.contextmanager
def deterministic_operations(on: bool) -> Iterator[None]:
    """In this block, if on, every operation gives the same bits each time, or raises RuntimeError if it never does.

    On a GPU, sums of gradients otherwise follow the order in which blocks of threads end: in the backward passes of
    attention and convolutions, and in index_add_ and index_put_. cuBLAS reads its setting when it is first used, so the
    block must begin before. PyTorch then takes no kernel of cuDNN for attention, and inductor times no kernels.
    Source: PyTorch's notes on reproducibility, and cuBLAS's on its workspaces.
    """
    if not on:
        yield
        return
    former = os.environ.get(_WORKSPACE), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ[_WORKSPACE] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        workspace, algorithms, torch.backends.cudnn.benchmark = former
        torch.use_deterministic_algorithms(algorithms)
        if workspace is None:
            del os.environ[_WORKSPACE]
        else:
            os.environ[_WORKSPACE] = workspace
