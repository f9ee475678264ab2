"""float32 that is float32: no TF32 or bfloat16 in its place, wherever codes or bytes are promised."""

import contextlib
from collections.abc import Iterator
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


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """In this block products and convolutions of float32 are computed in float32. Autocast is not affected."""
    former = [backend.fp32_precision for backend in _BACKENDS]
    try:
        for backend in _BACKENDS:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(_BACKENDS, former, strict=True):
            backend.fp32_precision = precision


def without_autocast(like: Tensor) -> contextlib.AbstractContextManager:
    """In this block autocast does not round, on the device of this tensor. Meta tensors know no autocast."""
    device = like.device.type
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
