"""The quantizer: the T-step recurrence of Algorithm 1, in one place.

`residual`, `noisy`, `quantized` and `accumulated` are z_t, v_t, v'_t and z'_t of the paper, all (b, d, h, w).

The bias convolution is linear, so v'_t = phi(c_t) gives z'_t = phi(c_1 + ... + c_t) with phi(x) = x + conv(x).
The recurrence therefore keeps the plain sum of code vectors and convolves it once per step. The tokenizer, the trainer
and the sampler all compute z' with `Codebook.accumulate_step` and `Codebook.phi`, so they agree bit for bit on equal
batches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rdpm.models.codebook import Codebook, QuantizerConfig
from rdpm.models.precision import full_precision
from rdpm.models.scales import block_means, repeated, sides
from rdpm.models.schedule import Schedule

NoiseAt = Callable[[int], Float[Tensor, "b d h w"]]


@dataclass(frozen=True)
class Quantization:
    """What Algorithm 1 returns, and what its loss needs. All tensors are detached."""

    codes: Int[Tensor, "b T h w"]
    """C_1 ... C_T."""
    accumulated: Float[Tensor, "b d h w"]
    """z'_T."""
    before: Float[Tensor, "b T d h w"]
    """z'_{t-1} for each t."""
    noise: Float[Tensor, "b T d h w"]
    """eps_t for each t."""


def mix(
    latents: Float[Tensor, "*b d h w"],
    accumulated: Float[Tensor, "*b d h w"],
    noise: Float[Tensor, "*b d h w"],
    alpha: Tensor | float,
    beta: Tensor | float,
) -> Float[Tensor, "*b d h w"]:
    """Alg. 1, lines 3-4 (Eq. 2): v_t = alpha_t z_t + beta_t eps_t with z_t = v - z'_{t-1}.

    Algorithm 1 subtracts v'_{t-1} from z_{t-1} at every step; over all steps so far that gives v - z'_{t-1}.
    """
    return alpha * (latents - accumulated) + beta * noise


class Quantizer(nn.Module):
    """Algorithm 1, lines 1-8, on latents."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor

    def __init__(self, config: QuantizerConfig, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.codebook = Codebook(config)
        for name in ("alpha", "beta", "gamma"):
            self.register_buffer(name, getattr(schedule, name), persistent=False)

    def forward(
        self, latents: Float[Tensor, "b d h w"], noise_at: NoiseAt
    ) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, ""], Float[Tensor, ""], Int[Tensor, "b T h w"]]:
        """One training pass. Returns z'_T, both losses of Eq. 4 (commitment, codebook), and codes.

        Everything in training that needs the codebook happens in this call, because ZeRO-3 gathers sharded weights only
        for a module's forward. It returns a plain tuple, because ZeRO-3 looks only into plain containers.
        """
        result = self.quantize(latents, noise_at)
        if self.training and self.codebook.config.update == "ema":
            self._observe(latents, result)
        return result.accumulated, *self.loss(latents, result), result.codes

    @torch.no_grad()
    @full_precision()
    def quantize(self, latents: Float[Tensor, "b d h w"], noise_at: NoiseAt) -> Quantization:
        """Algorithm 1 on latents v, in float32 everywhere, also where the process allows TF32.

        noise_at: a function from t = 1 ... T to eps_t, (b, d, h, w) float32.
        """
        latents = latents.float()
        codebook = self.codebook
        total = torch.zeros_like(latents)
        accumulated = torch.zeros_like(latents)
        codes, before, noises = [], [], []
        for t in range(1, self.schedule.num_steps + 1):
            noise = noise_at(t)
            noisy = mix(latents, accumulated, noise, self.alpha[t - 1], self.beta[t - 1])
            codes_t = self._nearest(noisy, t)
            before.append(accumulated)
            noises.append(noise)
            codes.append(codes_t)
            total = codebook.accumulate_step(total, codes_t)
            accumulated = codebook.phi(total)
        return Quantization(torch.stack(codes, 1), accumulated, torch.stack(before, 1), torch.stack(noises, 1))

    def _nearest(self, noisy: Float[Tensor, "b d h w"], step: int) -> Int[Tensor, "b h w"]:
        """Eq. 4's choice of codes; where maps grow, one for all positions of a block."""
        if not self.codebook.config.growing:
            return self.codebook.nearest(noisy)
        side = sides(noisy.shape[-1], self.schedule.num_steps)[step - 1]
        return repeated(self.codebook.nearest(block_means(noisy, side)), noisy.shape[-1])

    def _noisy(self, latents: Float[Tensor, "b d h w"], result: Quantization) -> Float[Tensor, "b T d h w"]:
        """v_t of all steps; gradients flow to the latents."""
        shape = (1, -1, 1, 1, 1)
        latents = latents.float().unsqueeze(1).expand_as(result.before)
        return mix(latents, result.before, result.noise, self.alpha.view(shape), self.beta.view(shape))

    @torch.no_grad()
    def _observe(self, latents: Float[Tensor, "b d h w"], result: Quantization) -> None:
        """Give the codebook every v_t of this micro-batch, the code it chose, and gamma_t."""
        noisy = self._noisy(latents, result).movedim(2, -1).flatten(0, -2)
        weights = self.gamma.view(1, -1, 1, 1).expand(result.codes.shape).flatten()
        self.codebook.observe(noisy, result.codes.flatten(), weights)

    def loss(
        self, latents: Float[Tensor, "b d h w"], result: Quantization
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Eq. 4, the mean over elements of sum_t gamma_t (v_t - v'_t)^2, as (commitment, codebook).

        The commitment term moves only the encoder (v'_t is detached), the codebook term only the code vectors and the
        bias (v_t is detached).
        """
        b, T = result.codes.shape[:2]
        weights = self.gamma.view(1, T, 1, 1, 1)
        noisy = self._noisy(latents, result)
        quantized = self.codebook.phi(self.codebook.look_up(result.codes.flatten(0, 1))).unflatten(0, (b, T))
        commitment = (weights * (noisy - quantized.detach()).square()).sum(1).mean()
        codebook = (weights * (noisy.detach() - quantized).square()).sum(1).mean()
        return commitment, codebook


def straight_through(
    latents: Float[Tensor, "b d h w"], accumulated: Float[Tensor, "b d h w"]
) -> Float[Tensor, "b d h w"]:
    """The value of z'_T with the gradient of v: one straight-through estimator, on the sum of all steps."""
    return accumulated.detach() + (latents - latents.detach())
