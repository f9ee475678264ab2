"""float32 that is float32: no TF32 or bfloat16 in its place, wherever codes or bytes are promised."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_backends: Any = torch.backends
_BACKENDS = (
    _backends.cuda.matmul,
    _backends.cudnn.conv,
    _backends.cudnn.rnn,
    _backends.mkldnn.matmul,
    _backends.mkldnn.conv,
    _backends.mkldnn.rnn,
)


@dataclass
class _Blocks:
    """The open blocks of all threads; the flags are the process's."""

    open: int = 0
    former: list[str] = field(default_factory=list)
    """What the flags were before the first of them."""
    lock: threading.Lock = field(default_factory=threading.Lock)


_blocks = _Blocks()


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """In this block products and convolutions of float32 are computed in float32. Autocast is not affected.

    Threads may have blocks at the same time: the flags get their former values when the last block ends.
    """
    with _blocks.lock:
        if not _blocks.open:
            _blocks.former = [backend.fp32_precision for backend in _BACKENDS]
        _blocks.open += 1
        _set(["ieee"] * len(_BACKENDS))
    try:
        yield
    finally:
        with _blocks.lock:
            _blocks.open -= 1
            if not _blocks.open:
                _set(_blocks.former)


def _set(precisions: list[str]) -> None:
    for backend, precision in zip(_BACKENDS, precisions, strict=True):
        backend.fp32_precision = precision


def without_autocast(like: Tensor) -> contextlib.AbstractContextManager:
    """In this block autocast does not round, on the device of this tensor. Meta tensors know no autocast."""
    device = like.device.type
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
