"""The diffusion schedule: how much image and how much noise each step mixes (Section 3.1, Figure 5)."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """alpha_t, beta_t and gamma_t for t = 1 ... T, at index t - 1 of each tensor."""

    RENAMED: ClassVar[dict[str, str]] = {"phi": "base"}

    kind: Literal["pow", "sin", "linear", "residual"] = "pow"
    """Form of alpha_t: pow is base^(T - t), sin is sin(pi/2 t/T), linear is t/T (Section 4.3). residual is 1, so that
    there is no noise: residual quantization (Lee et al. 2022), a rival of the paper's."""
    num_steps: int = 10
    """T, number of steps of the diffusion."""
    base: float = 0.75
    """Base of pow, between 0 and 1 (the paper's varphi)."""
    weighted: bool = True
    """Whether step t of the quantization loss has the weight gamma_t = alpha_t (Eq. 4) or 1."""

    def __post_init__(self) -> None:
        if self.kind not in ("pow", "sin", "linear", "residual"):
            raise ValueError(f"schedule kind {self.kind!r} is unknown; use pow, sin, linear or residual")
        if self.num_steps < 1:
            raise ValueError(f"schedule num_steps is {self.num_steps}; use 1 or more")
        if not 0 < self.base < 1:
            raise ValueError(f"schedule base is {self.base}; use a number between 0 and 1")
        if self.kind != "residual" and not (torch.diff(self.alpha, prepend=torch.zeros(1)) > 0).all():
            raise ValueError(
                f"schedule base {self.base} with {self.num_steps} steps gives alphas that do not increase in float32; "
                "use fewer steps or another base"
            )

    def _alphas(self) -> list[float]:
        T = self.num_steps
        forms = {
            "pow": lambda t: self.base ** (T - t),
            "sin": lambda t: math.sin(math.pi / 2 * t / T),
            "linear": lambda t: t / T,
            "residual": lambda t: 1.0,
        }
        return [forms[self.kind](t) for t in range(1, T + 1)]

    @property
    def alpha(self) -> Float[Tensor, " T"]:
        """Weight of the residual in the mix. It increases with t (but for residual), and alpha_T = 1."""
        return torch.tensor(self._alphas(), dtype=torch.float64).float()

    @property
    def beta(self) -> Float[Tensor, " T"]:
        """Weight of the noise in the mix: alpha_t^2 + beta_t^2 = 1."""
        return torch.tensor([math.sqrt(1 - a * a) for a in self._alphas()], dtype=torch.float64).float()

    @property
    def gamma(self) -> Float[Tensor, " T"]:
        """Weight of step t in the quantization loss (Eq. 4)."""
        return self.alpha if self.weighted else torch.ones(self.num_steps)
