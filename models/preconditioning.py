"""Preconditioning: the logits start from what is known of v_t, and the network learns the rest.

The tokenizer chose for C_t the code nearest to v_t = alpha_t (v - z'_{t-1}) + beta_t eps_t (Eq. 2). The generator
sees eps_t and z'_{t-1}; of v_t it lacks only v. Let u_t = beta_t eps_t - alpha_t z'_{t-1}; then v_t = u_t + alpha_t v.
If v has mean m and variance s^2, the logits of the codes c are about

    (u_t . c - |c|^2 / 2 + alpha_t m . c) / (alpha_t^2 s^2 + q^2)

where q^2 is the mean squared error of a code. The first two terms are known. The third is linear in c, as the head is,
and left to the network. The factor before them is learned for each t. At the first steps, which are nearly all noise,
the network then has little left to do. Karras et al. (2022) do the same for diffusion on real numbers. This is ours,
not the paper's: docs/decisions.md.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rdpm.models.precision import without_autocast
from rdpm.models.quantizer import Quantizer

_DRAWS = 4096  # of normal vectors, to measure the error of a code


def closeness_features(vectors: Float[Tensor, "K d"]) -> Float[Tensor, "K d1"]:
    """(c_k, -|c_k|^2 / 2) of every code: its product with (v, 1) is largest for the code nearest to v."""
    return torch.cat([vectors, -vectors.square().sum(1, keepdim=True) / 2], dim=1)


class Preconditioning(nn.Module):
    """eps_t, z'_{t-1} and t to the logits that they give each code."""

    features: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, codebook_size: int, code_dim: int, num_steps: int) -> None:
        super().__init__()
        self.log_factor = nn.Parameter(torch.zeros(num_steps))
        self.register_buffer("features", torch.zeros(codebook_size, code_dim + 1))
        self.register_buffer("alpha", torch.zeros(num_steps))
        self.register_buffer("beta", torch.zeros(num_steps))

    @torch.no_grad()
    def know(self, quantizer: Quantizer) -> None:
        """Take over codes and schedule. Factors start as for latents of unit variance, as LayerNorm makes them."""
        self.alpha.copy_(quantizer.alpha)
        self.beta.copy_(quantizer.beta)
        vectors = quantizer.codebook.vectors.detach()
        self.features.copy_(closeness_features(vectors))
        points = torch.randn(_DRAWS, vectors.shape[1], 1, 1, generator=torch.Generator().manual_seed(0)).to(vectors)
        codes = quantizer.codebook.nearest(points).flatten()
        error = (points.flatten(1) - vectors[codes]).square().mean()
        factors = -torch.log(quantizer.alpha.square() + error)

        def start(module: nn.Module) -> None:
            module.get_parameter("log_factor").copy_(factors)

        self.apply(start)

    def forward(
        self,
        noise: Float[Tensor, "b d h w"],
        accumulated: Float[Tensor, "b d h w"],
        steps: Int[Tensor, " b"],
    ) -> Float[Tensor, "b h w K"]:
        """The logits in float32, also under autocast."""
        with without_autocast(noise):
            alpha, beta, factor = (
                values[steps - 1].view(-1, 1, 1, 1) for values in (self.alpha, self.beta, self.log_factor.exp())
            )
            known = beta * noise.float() - alpha * accumulated.float()
            points = factor * torch.cat([known, torch.ones_like(known[:, :1])], dim=1)
            return points.permute(0, 2, 3, 1) @ self.features.T
