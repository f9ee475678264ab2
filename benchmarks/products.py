"""Plain matrix products of the shapes that some work runs: the limit that benchmarks measure against.

    with recorded() as products:                    # one eager call of the work, backward pass included
        step()
    result = gemm_share(step, products, device)     # gemm_share, tflops, product_tflops, seconds

`recorded` counts the products that run inside it, each with the sizes, the type and the memory layout of its operands.
A convolution counts as the product that it amounts to, attention as its two batches of products (five backward). A
compiled call hides its products, so record an uncompiled one and give `gemm_share` the compiled one.

`gemm_share` is the floating-point operations per second of the work over those of the bare products, each shape timed
by itself and weighted by its count, in turn with the work and on the same threads. On CUDA it is over the device's peak
instead: the speed of one large square product of the type that most of the work has. 1 would mean that everything
beside the products is free.
"""

import contextlib
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_MOST_ROWS = 16_384  # of an operand that is made; the speed of a product no longer depends on its rows there
_LEAST_SECONDS = 0.01  # of one timing
_PEAK_SIZE = 8192


@dataclass(frozen=True)
class Product:
    """`batch` products of (m, k) with (k, n)."""

    batch: int
    m: int
    k: int
    n: int
    dtype: torch.dtype
    transposed: tuple[bool, bool] = (False, False)
    """Whether memory holds the transpose of each operand, as a linear layer's weight (n, k)."""

    @property
    def flops(self) -> int:
        """Floating-point operations: a multiplication and an addition per pair."""
        return 2 * self.batch * self.m * self.k * self.n


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self._product(*args[:2])
        elif name in ("addmm", "baddbmm"):
            self._product(*args[1:3])
        elif name == "convolution":
            self._convolution(result, args[1])
        elif name == "convolution_backward":
            self._convolution_backward(args[0], args[2], args[-1])
        elif name.startswith(("_scaled_dot_product", "_flash_attn")):
            backward = name.endswith("backward")
            tensors = [each for each in args if isinstance(each, Tensor)][backward:][:3]
            if name.startswith("_flash_attn"):  # its heads follow the positions
                tensors = [each.transpose(1, 2) for each in tensors]
            self._attention(*tensors, backward)
        return result

    def _product(self, first: Tensor, second: Tensor) -> None:
        (m, k), n = first.shape[-2:], second.shape[-1]
        transposed = (first.stride(-1) != 1 and k > 1, second.stride(-1) != 1 and n > 1)
        self.products[Product(math.prod(first.shape[:-2]), m, k, n, first.dtype, transposed)] += 1

    def _convolution(self, out: Tensor, weight: Tensor) -> None:
        n, k = len(weight), weight[0].numel()
        self.products[Product(1, out.numel() // n, k, n, out.dtype, (False, True))] += 1

    def _convolution_backward(self, out: Tensor, weight: Tensor, wanted: tuple[bool, ...]) -> None:
        n, k = len(weight), weight[0].numel()
        m = out.numel() // n
        if wanted[0]:
            self.products[Product(1, m, n, k, out.dtype)] += 1
        if wanted[1]:
            self.products[Product(1, n, m, k, out.dtype, (True, False))] += 1

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, backward: bool) -> None:
        batch, (s, c), (r, d) = math.prod(q.shape[:-2]), q.shape[-2:], v.shape[-2:]
        scores = Product(batch, s, c, r, q.dtype, (False, True))
        values = Product(batch, s, r, d, q.dtype)
        self.products.update([scores, replace(values, transposed=(False, True), k=d, n=r) if backward else values])
        if backward:
            self.products.update(
                [
                    Product(batch, r, s, d, q.dtype, (True, False)),  # of the values
                    Product(batch, s, r, c, q.dtype),  # of the queries
                    Product(batch, r, s, c, q.dtype, (True, False)),  # of the keys
                ]
            )


@contextlib.contextmanager
def recorded() -> Iterator[Counter[Product]]:
    """The products that run in this block, and how often."""
    with _Recorder() as recorder:
        yield recorder.products


def total_flops(products: Mapping[Product, int]) -> int:
    """Floating-point operations of all products."""
    return sum(count * product.flops for product, count in products.items())


def product_seconds(products: Mapping[Product, int], device: torch.device) -> float:
    """Seconds that the products take, each shape timed by itself and weighted by its count."""
    return sum(count * _seconds(product, device) for product, count in products.items())


def _seconds(product: Product, device: torch.device) -> float:
    """Seconds of one product. Longer sides than _MOST_ROWS are timed shorter, and the time is scaled."""
    m, k = min(product.m, _MOST_ROWS), min(product.k, _MOST_ROWS)
    operands = (
        _operand(product.batch, m, k, product.dtype, product.transposed[0], device),
        _operand(product.batch, k, product.n, product.dtype, product.transposed[1], device),
    )
    work = torch.mm if product.batch == 1 else torch.bmm
    given = [operand[0] for operand in operands] if product.batch == 1 else list(operands)
    calls, seconds = 1, _timed(lambda: work(*given), device, 2) / 2
    calls = max(1, math.ceil(_LEAST_SECONDS / max(seconds, 1e-7)))
    each = min(_timed(lambda: work(*given), device, calls) / calls for _ in range(2))
    return each * (product.m / m) * (product.k / k)


def _operand(batch: int, rows: int, columns: int, dtype: torch.dtype, transposed: bool, device: torch.device) -> Tensor:
    if transposed:
        return torch.randn(batch, columns, rows, device=device, dtype=dtype).transpose(1, 2)
    return torch.randn(batch, rows, columns, device=device, dtype=dtype)


def _timed(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds of so many calls together."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of one large square product."""
    product = Product(1, _PEAK_SIZE, _PEAK_SIZE, _PEAK_SIZE, dtype, (False, True))
    return product.flops / _seconds(product, device)


@torch.no_grad()
def _limit_seconds(products: Mapping[Product, int], device: torch.device) -> float:
    """Seconds of the products at the limit of the device."""
    if device.type != "cuda":
        return product_seconds(products, device)
    by_type: Counter[torch.dtype] = Counter()
    for product, count in products.items():
        by_type[product.dtype] += count * product.flops
    return total_flops(products) / peak(by_type.most_common(1)[0][0], device)


def gemm_share(
    work: Callable[[], object], products: Mapping[Product, int], device: torch.device, rounds: int = 7
) -> dict[str, float]:
    """The share of the speed of plain products that `work` reaches; medians over rounds after an uncounted call.

    work: a call that runs `products`. Returns gemm_share, the absolute figures of both sides (tflops, product_tflops,
    in 10^12 floating-point operations per second), and the seconds of a call.
    """
    work()
    pairs = [(_timed(work, device), _limit_seconds(products, device)) for _ in range(rounds)]
    seconds, limit = (statistics.median(times) for times in zip(*pairs, strict=True))
    flops = total_flops(products) / 1e12
    return {
        "gemm_share": statistics.median(least / spent for spent, least in pairs),
        "tflops": flops / seconds,
        "product_tflops": flops / limit,
        "seconds": seconds,
    }
