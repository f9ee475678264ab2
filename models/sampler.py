"""Algorithm 2: codes predicted step after step from noise, class, step and the latent accumulated so far."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.codebook import Codebook
from models.generator import Generator
from models.noise import Stream, gumbel, normal


@dataclass(frozen=True)
class SamplerConfig:
    """How codes are drawn.

    guidance: lambda; logits are cond + lambda_t (cond - uncond), and 0 is the conditional model.
    ramp: "constant" keeps lambda_t = lambda; "linear" rises from 0 at t = 1 to lambda at t = T.
    temperature: tau of Eq. 8, which multiplies the logits: larger is less random. None is the argmax alone.
    """

    guidance: float = 0.0
    ramp: Literal["constant", "linear"] = "linear"
    temperature: float | None = 1.0

    def __post_init__(self) -> None:
        if not self.guidance >= 0:
            raise ValueError(f"guidance is {self.guidance}; use 0 or more")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; use more than 0, or null for the most likely code")

        if self.ramp not in ("constant", "linear"):
            raise ValueError(f"ramp is {self.ramp!r}; use constant or linear")

    def guidance_at(self, step: int, num_steps: int) -> float:
        """lambda_t for t = `step`."""
        if self.ramp == "constant" or num_steps == 1:
            return self.guidance
        return self.guidance * (step - 1) / (num_steps - 1)


@dataclass(frozen=True)
class Samples:
    """Codes C_1 ... C_T and z'_t after every step."""

    codes: Int[Tensor, "b T h w"]
    accumulated: Float[Tensor, "b T d h w"]


def choose_codes(
    logits: Float[Tensor, "b h w K"], temperature: float | None, seeds: Int[Tensor, " b"], step: int
) -> Int[Tensor, "b h w"]:
    """Eq. 8: argmax(tau logits + Gumbel noise), in float32."""
    if temperature is None:
        return logits.argmax(-1)
    return (logits * temperature + gumbel(seeds, step, tuple(logits.shape[1:]), Stream.GUMBEL)).argmax(-1)


@torch.no_grad()
def sample(
    generator: Generator,
    codebook: Codebook,
    labels: Int[Tensor, " b"],
    seeds: Int[Tensor, " b"],
    config: SamplerConfig,
    forced: Int[Tensor, "b T h w"] | None = None,
    noise_stream: Stream = Stream.SAMPLER,
) -> Samples:
    """Algorithm 2. Image i is a function of (weights, config, labels[i], seeds[i]) alone.

    forced: codes taken instead of the drawn ones at every step (teacher forcing).
    """
    space = generator.config
    shape = (space.code_dim, space.grid, space.grid)
    total = codebook.start(labels.new_zeros(len(labels), space.grid, space.grid))
    accumulated = codebook.phi(total)
    codes, path = [], []
    for t in range(1, space.num_steps + 1):
        noise = normal(seeds, t, shape, noise_stream)
        logits = guided_logits(generator, noise, labels, t, accumulated, config.guidance_at(t, space.num_steps))
        codes_t = choose_codes(logits, config.temperature, seeds, t) if forced is None else forced[:, t - 1]
        total = codebook.accumulate_step(total, codes_t)
        accumulated = codebook.phi(total)
        codes.append(codes_t)
        path.append(accumulated)
    return Samples(torch.stack(codes, 1), torch.stack(path, 1))


def guided_logits(
    generator: Generator,
    noise: Float[Tensor, "b d h w"],
    labels: Int[Tensor, " b"],
    step: int,
    accumulated: Float[Tensor, "b d h w"],
    guidance: float,
) -> Float[Tensor, "b h w K"]:
    """cond + lambda (cond - uncond), both halves in one forward (Section 3.2)."""
    steps = torch.full_like(labels, step)
    if guidance == 0:
        return generator(noise, labels, steps, accumulated)
    empty = torch.full_like(labels, generator.null_label)
    both = generator(
        noise.repeat(2, 1, 1, 1), torch.cat([labels, empty]), steps.repeat(2), accumulated.repeat(2, 1, 1, 1)
    )
    cond, uncond = both.chunk(2)
    return cond + guidance * (cond - uncond)
