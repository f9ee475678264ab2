"""Algorithm 2: draw codes, step by step, from noise, class, step and the latent accumulated so far."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rdpm.models.choice import StepSettings, choose_codes
from rdpm.models.codebook import Codebook
from rdpm.models.generator import Generator
from rdpm.models.noise import Stream, normal

SAMPLER_VERSION = 2


@dataclass(frozen=True)
class SamplerConfig:
    """How the codes of one image are drawn.

    The temperature divides the logits, as is usual. The paper's tau (Eq. 8) multiplies them, so temperature = 1 / tau.
    """

    guidance: float = 0.0
    """lambda: the logits are cond + lambda_t (cond - uncond). 0 is the conditional model."""
    ramp: Literal["constant", "linear"] = "linear"
    """constant: lambda_t = lambda. linear: lambda_t increases evenly from 0 at t = 1 to lambda at t = T."""
    temperature: float = 1.0
    """Divides the logits: larger is more random. 0 takes the most likely code, without Gumbel noise."""
    top_k: int = 0
    """Draw only from the k most likely codes of a position; 0 for all codes."""
    top_p: float = 1.0
    """Draw only from the most likely codes that together reach this probability, after temperature and top_k."""
    version: int = SAMPLER_VERSION
    """Version of the meaning of these settings. In version 1 the temperature multiplied the logits."""

    def __post_init__(self) -> None:
        if self.version != SAMPLER_VERSION:
            raise ValueError(
                f"sampler version is {self.version}; use {SAMPLER_VERSION} or leave it out, and give the inverse of a "
                "temperature of version 1, which multiplied the logits"
            )
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance is {self.guidance}; use 0 or more")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; use more than 0, or 0 for the most likely code")
        if self.ramp not in ("constant", "linear"):
            raise ValueError(f"ramp is {self.ramp!r}; use constant or linear")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; use 1 or more, or 0 for every code")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; use more than 0 and at most 1")

    def guidance_at(self, step: int, num_steps: int) -> float:
        """lambda_t for t = `step`."""
        if self.ramp == "constant" or num_steps == 1:
            return self.guidance
        return self.guidance * (step - 1) / (num_steps - 1)

    def forwards(self, num_steps: int) -> int:
        """How many times the network is evaluated per image in so many steps: twice in a step with guidance."""
        return num_steps + sum(self.guidance_at(step, num_steps) > 0 for step in range(1, num_steps + 1))


PRESETS = {  # the rows of Table 3; the paper states neither lambda nor tau
    "raw": SamplerConfig(temperature=0.0),
    "cfg": SamplerConfig(guidance=2.0, ramp="constant", temperature=0.0),
    "cfg-linear": SamplerConfig(guidance=2.0, ramp="linear", temperature=0.0),
    "gumbel": SamplerConfig(guidance=2.0, ramp="linear", temperature=1.0),
}


def preset(name: str) -> SamplerConfig:
    """The settings of a row of Table 3, by its name. Raises ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"sampler {name!r} is unknown; use {', '.join(PRESETS)}, or give its settings")
    return PRESETS[name]


def step_settings(configs: Sequence[SamplerConfig], num_steps: int, device: torch.device) -> list[StepSettings]:
    """The settings of a batch, one config per image, for t = 1 ... T."""

    def column(values: list[float]) -> Float[Tensor, " b"]:
        return torch.tensor(values, dtype=torch.float32, device=device)

    temperatures = [config.temperature for config in configs]
    tau = column([1 / value if value else 1.0 for value in temperatures])
    gumbel_scale = column([float(value > 0) for value in temperatures]) if any(temperatures) else None
    top_k = top_p = None
    if any(config.top_k or config.top_p < 1 for config in configs):
        top_k = torch.tensor([config.top_k or torch.iinfo(torch.int64).max for config in configs], device=device)
        top_p = column([config.top_p if config.top_p < 1 else math.inf for config in configs])
    ramps = [[config.guidance_at(t, num_steps) for config in configs] for t in range(1, num_steps + 1)]
    guidance = [column(ramp) if any(ramp) else None for ramp in ramps]
    return [StepSettings(guidance_t, tau, gumbel_scale, top_k, top_p) for guidance_t in guidance]


@dataclass(frozen=True)
class Samples:
    """What Algorithm 2 returns."""

    codes: Int[Tensor, "b T h w"]
    """C_1 ... C_T."""
    accumulated: Float[Tensor, "b T d h w"]
    """z'_t after every step."""


def modulations_of(
    generator: Generator, labels: Int[Tensor, " b"] | Float[Tensor, "b width"]
) -> Float[Tensor, "T b1 n width"]:
    """What the labels of a batch, and in the last row no label, do to the generator at t = 1 ... T.

    They are computed once, in one product, and have the type of the generator's hidden state.
    """
    T, device = generator.config.num_steps, labels.device
    vectors = labels if labels.is_floating_point() else generator.label_embedding(labels)
    empty = generator.label_embedding(torch.full((1,), generator.null_label, device=device))
    rows = torch.cat([vectors, empty])
    steps = torch.arange(1, T + 1, device=device).view(-1, 1).expand(-1, rows.shape[0]).flatten()
    modulations = generator.modulations(rows.repeat(T, 1), steps)
    return modulations.to(generator.transformer.positions.dtype).unflatten(0, (T, -1))


def guided_logits(
    generator: Generator,
    noise: Float[Tensor, "b d h w"],
    accumulated: Float[Tensor, "b d h w"],
    modulations: Float[Tensor, "b1 n width"],
    steps: Int[Tensor, " b"],
    guidance: Float[Tensor, " b"] | None,
) -> Float[Tensor, "b h w K"]:
    """cond + lambda (cond - uncond), with both halves in one forward pass (Section 3.2).

    modulations: those of one step, of `modulations_of`. steps: t for each image.
    """
    given, empty = modulations[:-1], modulations[-1:]
    if guidance is None:
        logits = generator.from_modulations(noise, accumulated, given)
        return generator.preconditioned(logits, noise, accumulated, steps)
    both = generator.from_modulations(
        noise.repeat(2, 1, 1, 1), accumulated.repeat(2, 1, 1, 1), torch.cat([given, empty.expand_as(given)])
    )
    cond, uncond = both.unflatten(0, (2, -1)).unbind()
    guided = cond + guidance.view(-1, 1, 1, 1) * (cond - uncond)
    return generator.preconditioned(guided, noise, accumulated, steps)


@dataclass(frozen=True)
class Known:
    """Codes that are given instead of drawn (teacher forcing)."""

    codes: Int[Tensor, "b T h w"]
    """The given codes; any values where `mask` is false."""
    mask: Bool[Tensor, "b T h w"]
    """Where the given codes are used; elsewhere codes are drawn."""


def advance(
    generator: Generator,
    codebook: Codebook,
    total: Float[Tensor, "b d h w"],
    accumulated: Float[Tensor, "b d h w"],
    modulations: Float[Tensor, "b1 n width"],
    seeds: Int[Tensor, " b"],
    steps: Int[Tensor, " b"],
    settings: StepSettings,
    noise_stream: Stream,
    known: Known | None,
) -> tuple[Int[Tensor, "b h w"], Float[Tensor, "b d h w"], Float[Tensor, "b d h w"]]:
    """One step of Algorithm 2, lines 2-4.

    total: the sum of code vectors so far. accumulated: z'_{t-1}. modulations: those of this step. steps: t for each
    image. Returns C_t, the sum with the code vectors of C_t, and z'_t. Control flow depends only on shapes and on which
    arguments are None, not on values: one compiled graph serves all steps with the same kind of settings.
    """
    noise = normal(seeds, steps, tuple(total.shape[1:]), noise_stream)
    logits = guided_logits(generator, noise, accumulated, modulations, steps, settings.guidance)
    codes = choose_codes(logits, settings, seeds, steps)
    if known is not None:
        at_step = (steps - 1).view(-1, 1, 1, 1).expand(-1, 1, *codes.shape[1:])
        forced, mask = (values.gather(1, at_step).squeeze(1) for values in (known.codes, known.mask))
        codes = torch.where(mask, forced, codes)
    total = codebook.accumulate_step(total, codes)
    return codes, total, codebook.phi(total)


AfterStep = Callable[[int, Float[Tensor, "b d h w"]], None]
"""Called with t and z'_t."""


def all_steps(
    generator: Generator,
    codebook: Codebook,
    modulations: Float[Tensor, "T b1 n width"],
    seeds: Int[Tensor, " b"],
    settings: Sequence[StepSettings],
    noise_stream: Stream,
    known: Known | None,
    after_step: AfterStep | None = None,
    step: Callable[..., tuple[Tensor, Tensor, Tensor]] = advance,
) -> tuple[Int[Tensor, "b T h w"], Float[Tensor, "b T d h w"]]:
    """Algorithm 2 for a batch: C_1 ... C_T, and z'_t after every step. step: `advance`, compiled or not."""
    total = codebook.start(seeds.new_zeros(len(seeds), generator.config.grid, generator.config.grid))
    accumulated = codebook.phi(total)
    codes, path = [], []
    for t, settings_t in enumerate(settings, start=1):
        steps = torch.full_like(seeds, t)
        codes_t, total, accumulated = step(
            generator, codebook, total, accumulated, modulations[t - 1], seeds, steps, settings_t, noise_stream, known
        )
        codes.append(codes_t)
        path.append(accumulated)
        if after_step is not None:
            after_step(t, accumulated)
    return torch.stack(codes, 1), torch.stack(path, 1)


@torch.no_grad()
def sample(
    generator: Generator,
    codebook: Codebook,
    labels: Int[Tensor, " b"] | Float[Tensor, "b width"],
    seeds: Int[Tensor, " b"],
    configs: SamplerConfig | Sequence[SamplerConfig],
    known: Known | None = None,
    noise_stream: Stream = Stream.SAMPLER,
    after_step: AfterStep | None = None,
    run: Callable[..., tuple[Tensor, Tensor]] = all_steps,
) -> Samples:
    """Algorithm 2. Image i depends only on the weights, configs[i], labels[i], seeds[i] and the shape of the batch.

    labels: classes, or vectors in the space of their embedding. configs: one for all images, or one per image. known:
    codes to use instead of drawn ones. run: `all_steps`, or a `CompiledSteps`.
    """
    if isinstance(configs, SamplerConfig):
        configs = [configs] * len(seeds)
    settings = step_settings(configs, generator.config.num_steps, seeds.device)
    modulations = modulations_of(generator, labels)
    return Samples(*run(generator, codebook, modulations, seeds, settings, noise_stream, known, after_step))
