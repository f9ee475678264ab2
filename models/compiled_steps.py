"""Algorithm 2 with a compiled step and, on a GPU, with all its steps in one CUDA graph."""

import copy
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


class CompiledSteps:
    """`all_steps` for many batches. All steps with the same kind of settings share one compiled graph.

    Compiling T steps as one graph would take T times as long. On a GPU, a CUDA graph of all steps is recorded at the
    first call of each kind, and replayed at the next ones. Calls are of one kind when their tensors have the same
    shapes and the same settings are None. A call with after_step runs the same code step by step.
    """

    def __init__(self) -> None:
        self._step = torch.compile(advance, fullgraph=True, dynamic=False)
        self._recorded: dict[tuple[Any, ...], _Recorded] = {}

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
        """As `all_steps`."""

        def run(modulations: Tensor, seeds: Tensor, settings: Sequence[StepSettings], known: Known | None) -> _Drawn:
            with torch._dynamo.config.patch(recompile_limit=_KINDS):
                return all_steps(
                    generator, codebook, modulations, seeds, settings, noise_stream, known, after_step, self._step
                )

        given = modulations, seeds, settings, known
        if seeds.device.type != "cuda" or after_step is not None:
            return run(*given)
        shapes = (None if value is None else value.shape for value in _values(given))
        kind = (generator, codebook, noise_stream, *shapes)
        if kind not in self._recorded:
            self._recorded[kind] = _Recorded(run, given)
        return self._recorded[kind](given)


def _values(given: tuple[Any, ...]) -> list[Tensor | None]:
    """The tensors in the arguments of a run, and what is None instead of one."""
    modulations, seeds, settings, known = given
    parts = [*settings, *([known] if known is not None else [])]
    return [modulations, seeds, *(value for part in parts for value in vars(part).values())]


class _Recorded:
    """A CUDA graph of one call, which can be repeated with other values."""

    def __init__(self, run: Callable[..., _Drawn], given: tuple[Any, ...]) -> None:
        own = copy.deepcopy(given)
        self.inputs = _values(own)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what is made at the first call only must not become part of the graph
            run(*own)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other threads may use the GPU
            self.drawn = run(*own)

    def __call__(self, given: tuple[Any, ...]) -> _Drawn:
        for own, value in zip(self.inputs, _values(given), strict=True):
            if own is not None and value is not None:
                own.copy_(value)
        self.graph.replay()
        codes, path = self.drawn
        return codes.clone(), path.clone()
