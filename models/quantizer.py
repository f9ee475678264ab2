"""The quantizer: the T-step recurrence of Algorithm 1, in one place.

`residual`, `noisy`, `quantized` and `accumulated` are z_t, v_t, v'_t and z'_t of the paper, all (b, d, h, w).

The bias convolution is linear, so v'_t = phi(c_t) gives z'_t = phi(c_1 + ... + c_t) with phi(x) = x + conv(x).
The recurrence therefore carries the plain sum of code vectors and convolves once. The tokenizer, the trainer and the
sampler all reach z' through `Codebook.accumulate_step` and `Codebook.phi`, so equal batches agree to the bit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.schedule import Schedule

NoiseAt = Callable[[int], Float[Tensor, "b d h w"]]
_MAX_DISTANCES = 1 << 24  # entries of a distance tensor held at once (64 MiB in float32)
MAX_CODEBOOK_SIZE = 1 << 16  # stores keep codes as uint16


def check_codebook_size(size: int) -> None:
    """Raise ValueError unless stores can keep codes of this many as uint16."""
    if not 2 <= size <= MAX_CODEBOOK_SIZE:
        raise ValueError(f"codebook_size is {size}; use 2 to {MAX_CODEBOOK_SIZE}, since stores keep codes as uint16")


@dataclass(frozen=True)
class QuantizerConfig:
    """K x d codebook; `bias` adds the shared convolution on quantized vectors (Table 2, "bias")."""

    codebook_size: int = 4096
    code_dim: int = 32
    bias: bool = True

    def __post_init__(self) -> None:
        check_codebook_size(self.codebook_size)


@dataclass(frozen=True)
class Quantization:
    """What Algorithm 1 returns, and what its loss needs. All detached."""

    codes: Int[Tensor, "b T h w"]
    accumulated: Float[Tensor, "b d h w"]
    """z'_T."""
    before: Float[Tensor, "b T d h w"]
    """z'_{t-1} for each t."""
    noise: Float[Tensor, "b T d h w"]


class Codebook(nn.Module):
    """K code vectors and the shared bias convolution (Section 4.2)."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.vectors = nn.Parameter(torch.randn(config.codebook_size, config.code_dim) * 0.5)
        self.bias = nn.Conv2d(config.code_dim, config.code_dim, 3, padding=1, bias=False) if config.bias else None
        if self.bias is not None:
            nn.init.zeros_(self.bias.weight)

    def nearest(self, noisy: Float[Tensor, "b d h w"]) -> Int[Tensor, "b h w"]:
        """Index of the Euclidean-nearest code of each vector, in float32 whatever the autocast."""
        b, d, h, w = noisy.shape
        with torch.no_grad(), torch.autocast(noisy.device.type, enabled=False):
            points = noisy.float().permute(0, 2, 3, 1).reshape(-1, d)
            vectors = self.vectors.float()
            # |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2), and |x|^2 is the same for every code.
            half_norms = vectors.square().sum(1) / 2
            rows = max(1, _MAX_DISTANCES // len(vectors))
            codes = [(part @ vectors.T).sub_(half_norms).argmax(1) for part in points.split(rows)]
        return torch.cat(codes).view(b, h, w)

    def look_up(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """Code vectors c, before the bias convolution."""
        return F.embedding(codes, self.vectors).permute(0, 3, 1, 2)

    def phi(self, vectors: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """phi(x) = x + conv(x): quantized vectors with their bias. Linear."""
        if self.bias is None:
            return vectors
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float().contiguous()  # one memory format: one kernel, one rounding
            return vectors + F.conv2d(vectors, self.bias.weight.float(), padding=1)

    def accumulate_step(self, total: Float[Tensor, "b d h w"], codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """Alg. 1, line 6, before phi: the sum of code vectors one step further."""
        return total + self.look_up(codes)

    def accumulated(self, codes: Int[Tensor, "b T h w"], steps: Int[Tensor, " b"] | int) -> Float[Tensor, "b d h w"]:
        """z'_s rebuilt from codes, s = `steps` for each image (0 gives zeros)."""
        steps = torch.as_tensor(steps, device=codes.device).expand(len(codes))
        total = self.start(codes[:, 0])
        for t in range(1, codes.shape[1] + 1):
            total = torch.where((steps >= t).view(-1, 1, 1, 1), self.accumulate_step(total, codes[:, t - 1]), total)
        return self.phi(total)

    def start(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """The empty sum (z'_0 = 0) for a map of codes of this shape."""
        b, h, w = codes.shape
        return self.vectors.new_zeros(b, self.config.code_dim, h, w)


def mix(
    latents: Float[Tensor, "*b d h w"],
    accumulated: Float[Tensor, "*b d h w"],
    noise: Float[Tensor, "*b d h w"],
    alpha: Tensor | float,
    beta: Tensor | float,
) -> Float[Tensor, "*b d h w"]:
    """Alg. 1, lines 3-4 (Eq. 2): v_t = alpha_t z_t + beta_t eps_t with z_t = v - z'_{t-1}.

    Algorithm 1 subtracts v'_{t-1} from z_{t-1}; summed over the steps that is v - z'_{t-1}.
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
        """One training pass: accumulated, both losses of Eq. 4 (commitment, codebook), and codes.

        All that needs the codebook in training happens in this call, and a plain tuple comes out of it, since ZeRO-3
        brings sharded weights together for a module's forward and sees only plain containers.
        """
        result = self.quantize(latents, noise_at)
        return result.accumulated, *self.loss(latents, result), result.codes

    @torch.no_grad()
    def quantize(self, latents: Float[Tensor, "b d h w"], noise_at: NoiseAt) -> Quantization:
        """Algorithm 1 on latents v. noise_at(t): eps_t for t = 1 ... T, (b, d, h, w) float32."""
        latents = latents.float()
        codebook = self.codebook
        total = torch.zeros_like(latents)
        accumulated = torch.zeros_like(latents)
        codes, before, noises = [], [], []
        for t in range(1, self.schedule.num_steps + 1):
            noise = noise_at(t)
            noisy = mix(latents, accumulated, noise, self.alpha[t - 1], self.beta[t - 1])
            codes_t = codebook.nearest(noisy)
            before.append(accumulated)
            noises.append(noise)
            codes.append(codes_t)
            total = codebook.accumulate_step(total, codes_t)
            accumulated = codebook.phi(total)
        return Quantization(torch.stack(codes, 1), accumulated, torch.stack(before, 1), torch.stack(noises, 1))

    def loss(
        self, latents: Float[Tensor, "b d h w"], result: Quantization
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Eq. 4, the mean over elements of sum_t gamma_t (v_t - v'_t)^2, as (commitment, codebook).

        The commitment term moves the encoder (v'_t held), the codebook term the codes and the bias (v_t held).
        """
        latents = latents.float()
        b, T = result.codes.shape[:2]
        weights = self.gamma.view(1, T, 1, 1, 1)
        alpha, beta = self.alpha.view(1, T, 1, 1, 1), self.beta.view(1, T, 1, 1, 1)
        noisy = mix(latents.unsqueeze(1).expand_as(result.before), result.before, result.noise, alpha, beta)
        quantized = self.codebook.phi(self.codebook.look_up(result.codes.flatten(0, 1))).unflatten(0, (b, T))
        commitment = (weights * (noisy - quantized.detach()).square()).sum(1).mean()
        codebook = (weights * (noisy.detach() - quantized).square()).sum(1).mean()
        return commitment, codebook


def straight_through(
    latents: Float[Tensor, "b d h w"], accumulated: Float[Tensor, "b d h w"]
) -> Float[Tensor, "b d h w"]:
    """z'_T in value, v in gradient: one straight-through on the sum, every step detached."""
    return accumulated.detach() + (latents - latents.detach())
