"""Algorithm 2 with a compiled step and, on a GPU, with all its steps in one CUDA graph."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rdpm.models.choice import StepSettings
from rdpm.models.codebook import Codebook
from rdpm.models.generator import Generator
from rdpm.models.noise import Stream
from rdpm.models.sampler import AfterStep, Known, advance, all_steps

_Drawn = tuple[Tensor, Tensor]
_KINDS = 256  # of settings and models that one process may compile; the compiler's own default is 8
_one_at_a_time = threading.RLock()  # graphs have buffers of their own, and the compiler's settings are the process's


class CompiledSteps:
    """`all_steps` for many batches, with compiled code for one step. All steps with the same kind of settings share it.

    Compiling T steps together would take several times as long (docs/benchmarks.md). On a GPU, the first call of each
    kind records all its steps as a CUDA graph, and the next ones replay it. Calls are of one kind when their tensors
    have the same shapes and types, the same settings are None, and the models hold their weights at the same place. A
    call with after_step runs the same code step by step. Threads wait for each other.
    """

    def __init__(self) -> None:
        self._step = torch.compile(advance, fullgraph=True, dynamic=False)
        self._recorded: dict[tuple[Any, ...], _Recorded] = {}
        self._memory: Any = None  # of all graphs, since no two are replayed at once

    @torch.no_grad()
    def __call__(
        self,
        generator: Generator,
        codebook: Codebook,
        modulations: Float[Tensor, "T b1 n width"],
        seeds: Int[Tensor, " b"],
        settings: Sequence[StepSettings],
        noise_stream: Stream,
        known: Known | None,
        after_step: AfterStep | None = None,
    ) -> tuple[Int[Tensor, "b T h w"], Float[Tensor, "b T d h w"]]:
        """As `all_steps`, without gradients."""

        def run(modulations: Tensor, seeds: Tensor, settings: Sequence[StepSettings], known: Known | None) -> _Drawn:
            return all_steps(
                generator, codebook, modulations, seeds, settings, noise_stream, known, after_step, self._step
            )

        given = modulations, seeds, settings, known
        with _one_at_a_time, torch._dynamo.config.patch(recompile_limit=_KINDS):
            if seeds.device.type != "cuda" or after_step is not None:
                return run(*given)
            with torch.cuda.device(seeds.device):
                kind = noise_stream, _modes(), _forms(given), *_places(generator), *_places(codebook)
                if kind not in self._recorded:
                    self._memory = self._memory or torch.cuda.graph_pool_handle()
                    self._recorded[kind] = _Recorded(run, given, self._memory)
                return self._recorded[kind](given)


def _places(model: torch.nn.Module) -> list[int]:
    """Where the weights of a model are: a graph reads them there."""
    return [weight.data_ptr() for weight in (*model.parameters(), *model.buffers())]


def _modes() -> tuple[bool, ...]:
    """What changes the operations of a call beside its arguments."""
    deterministic, autocast = torch.are_deterministic_algorithms_enabled(), torch.is_autocast_enabled("cuda")
    return deterministic, autocast, torch.is_inference_mode_enabled()


def _forms(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Shape and type of every tensor in the arguments of a run."""
    return tuple(None if value is None else (value.shape, value.dtype) for value in _values(given))


def _values(given: tuple[Any, ...]) -> list[Tensor | None]:
    """The tensors in the arguments of a run, and what is None instead of one."""
    modulations, seeds, settings, known = given
    parts = [*settings, *([known] if known is not None else [])]
    return [modulations, seeds, *(value for part in parts for value in vars(part).values())]


def _copy(part: Any) -> Any:
    """A tensor or None, or a list or dataclass of them, in memory of its own."""
    if isinstance(part, Tensor):
        return part.clone(memory_format=torch.contiguous_format)
    if isinstance(part, list):
        return [_copy(each) for each in part]
    return part and dataclasses.replace(part, **{name: _copy(value) for name, value in vars(part).items()})


class _Recorded:
    """A CUDA graph of one kind of call, and the buffers that it reads and writes."""

    def __init__(self, run: Callable[..., _Drawn], given: tuple[Any, ...], memory: Any) -> None:
        own = tuple(_copy(part) for part in given)
        self.inputs = _values(own)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what is made at the first call only must not become part of the graph
            run(*own)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=memory, stream=stream, capture_error_mode="thread_local"):
            self.drawn = run(*own)
        torch.cuda.current_stream().wait_stream(stream)

    def __call__(self, given: tuple[Any, ...]) -> _Drawn:
        for own, value in zip(self.inputs, _values(given), strict=True):
            if own is not None and value is not None:
                own.copy_(value)
        self.graph.replay()
        codes, path = self.drawn
        return codes.clone(), path.clone()
