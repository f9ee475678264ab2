"""Flow matching on latents (Lipman et al. 2023; Liu et al. 2023): velocities carry noise to latents in straight lines.

At time t between 0 and 1 an image is x_t = (1 - t) noise + t latents, and the network learns its velocity, latents -
noise. Times are logit-normal, as in Esser et al. (2024). Euler's steps of equal length draw.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rdpm.models.choice import StepSettings
from rdpm.models.codebook import Codebook
from rdpm.models.generator import GeneratorConfig
from rdpm.models.noise import Stream, normal
from rdpm.models.quantizer import Quantizer
from rdpm.models.rivals.rival import Drawn, Given, Rival, Rows

_USUAL, _TICKS = 10, 1000  # Euler's steps; times that the network tells apart


class FlowMatching(Rival):
    """The velocity of latents."""

    LEARNS_CODES = False

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config, config.code_dim, config.code_dim, timed=True)

    @staticmethod
    def evaluations(config: GeneratorConfig, asked: int) -> int:
        """Any number of Euler's steps, 10 unless another is asked for."""
        return asked or _USUAL

    @staticmethod
    def given(quantizer: Quantizer, rows: Rows) -> Given:
        """Noise, times, labels and latents. The log splits times into `num_steps` equal parts."""
        assert rows.latents is not None
        noise = normal(rows.seeds, 1, tuple(rows.latents.shape[1:]), Stream.TOKENIZER)
        times = normal(rows.seeds, 1, (1,), Stream.STEP).flatten().sigmoid()
        parts = (times * quantizer.schedule.num_steps).long() + 1
        return Given((noise, times, rows.labels, rows.latents), parts)

    def velocity(
        self,
        noisy: Float[Tensor, "b d h w"],
        times: Float[Tensor, " b"],
        labels: Int[Tensor, " b"],
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b d h w"]:
        """The velocity at x_t."""
        ticks = (_TICKS * times).round().long()
        found = self.guided(noisy.flatten(2).transpose(1, 2), labels, guidance, ticks)
        return found.transpose(1, 2).unflatten(2, noisy.shape[2:])

    def loss(self, *arguments: Tensor) -> Float[Tensor, " b"]:
        """Mean squared error of the velocity."""
        noise, times, labels, latents = arguments
        share = times.view(-1, 1, 1, 1)
        found = self.velocity((1 - share) * noise + share * latents, times, labels)
        return (found - (latents - noise)).square().flatten(1).mean(1)

    def example(self, count: int) -> tuple[Tensor, ...]:
        """Noise, times, labels and latents."""
        config = self.config
        latents = torch.empty(count, config.code_dim, config.grid, config.grid)
        return latents, torch.zeros(count), torch.zeros(count, dtype=torch.int64), latents

    def draw(
        self,
        codebook: Codebook,
        labels: Int[Tensor, " b"],
        seeds: Int[Tensor, " b"],
        settings: Sequence[StepSettings],
    ) -> Drawn:
        """Euler's steps from noise; of the settings only guidance counts."""
        config = self.config

        def velocity(noisy: Tensor, step: int) -> Tensor:
            times = torch.full((len(seeds),), step / len(settings), device=noisy.device)
            return self.velocity(noisy, times, labels, settings[step].guidance)

        noise = normal(seeds, 1, (config.code_dim, config.grid, config.grid), Stream.SAMPLER)
        return Drawn(euler(velocity, noise, len(settings)))


def euler(velocity: Callable[[Tensor, int], Tensor], noise: Tensor, steps: int) -> Tensor:
    """From noise at t = 0 to t = 1 in equal steps. velocity: of x at t = step / steps, given x and the 0-based step."""
    x = noise
    for step in range(steps):
        x = x + velocity(x, step) / steps
    return x
