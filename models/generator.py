"""The generator f (Eq. 6): noise, label, step and accumulated latents to logits over the codebook."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from rdpm.models.attention import Backend, check_backend
from rdpm.models.codebook import check_codebook_size
from rdpm.models.fields import EXECUTION
from rdpm.models.initial import normal, xavier, zero
from rdpm.models.matching import Matching
from rdpm.models.preconditioning import Preconditioning, closeness_features
from rdpm.models.quantizer import Quantizer
from rdpm.models.transformer import Transformer

MethodName = Literal["rdpm", "flow", "maskgit", "raster", "scales"]


@dataclass(frozen=True)
class GeneratorConfig:
    """Size of the generator (Table 1, by depth), and the token space, which must be that of the stores."""

    RENAMED: ClassVar[dict[str, str]] = {"checkpoint": "activation_checkpointing"}

    depth: int = 12
    """Number of blocks, and of heads per block; the width is 64 x depth (Table 1)."""
    num_classes: int = 1000
    """Number of classes of the images."""
    num_steps: int = 10
    """T, steps of the diffusion."""
    codebook_size: int = 4096
    """K, codes of the codebook."""
    code_dim: int = 32
    """d, size of a code vector."""
    grid: int = 16
    """Codes per side of a map: h = w."""
    hidden: int = 0
    """Hidden width of SwiGLU; 0 for 8/3 of the width, rounded up to a multiple of 8, as fast products need it. Models
    whose card does not say it keep the width that they have, rounded down."""
    method: MethodName = "rdpm"
    """What is learned with the blocks: rdpm (the paper), or a rival of it: flow (flow matching on latents), maskgit or
    raster (on codes of one step), scales (on codes of growing maps)."""
    preconditioned: bool = False
    """Whether the logits start from what noise and accumulated latents say of the next code (`models.preconditioning`),
    so that the network learns the rest. Not in the paper."""
    attention: Backend = field(default="sdpa", metadata=EXECUTION)
    """Attention kernel: sdpa (PyTorch's choice), math (PyTorch's plain one) or flash_attn."""
    activation_checkpointing: bool = field(default=False, metadata=EXECUTION)
    """Recompute blocks in the backward pass instead of keeping activations: less memory, but a third slower."""

    def __post_init__(self) -> None:
        for name in ("depth", "num_classes", "num_steps", "code_dim", "grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use 1 or more")
        if self.hidden < 0:
            raise ValueError(f"hidden is {self.hidden}; use 1 or more, or 0 for the width of Table 1")
        if self.code_dim >= 64 * self.depth:
            raise ValueError(f"code_dim {self.code_dim} must be below the width, {64 * self.depth}; raise depth")
        if self.method in ("raster", "scales") and self.attention == "flash_attn":
            raise ValueError(
                f"attention is flash_attn, which has no masks, and method {self.method} needs one; use sdpa"
            )
        if self.method != "rdpm" and self.preconditioned:
            raise ValueError(f"preconditioned is true, which method {self.method} does not know; use method rdpm")
        check_codebook_size(self.codebook_size)
        check_backend(self.attention)

    @property
    def hidden_width(self) -> int:
        """Hidden width of SwiGLU: 8 d^2 weights in three matrices (Table 1), in multiples of 8."""
        return self.hidden or 8 * math.ceil(self.unaligned_hidden / 8)

    @property
    def unaligned_hidden(self) -> int:
        """Hidden width of SwiGLU in models whose card does not say it."""
        return 8 * 64 * self.depth // 3


def step_embedding(steps: Int[Tensor, " b"], size: int) -> Float[Tensor, "b size"]:
    """Sinusoidal embedding of t (Vaswani et al. 2017)."""
    half = size // 2
    frequency = torch.exp(-math.log(10000) / half * torch.arange(half, device=steps.device))
    angles = steps.float().unsqueeze(1) * frequency
    return torch.cat([angles.cos(), angles.sin()], dim=1)


_ALIGNED_DEVIATION = 3.0
_RENAMED_PARAMETERS = {"labels": "label_embedding", "steps": "step_mlp"}
_SEPARATE_MODULATION = re.compile(r"transformer\.(?:blocks\.(\d+)\.)?modulation\.(weight|bias)")


def current_parts(parameters: Iterable[str]) -> dict[str, list[str]]:
    """A generator's parameters by their current names, each with those of a file of any release that make it up.

    Parts follow each other along the first axis. Checkpoints of version 1 call two modules otherwise. Before version 3
    every block, and after them the last norm, had a product of its own for its modulations.
    """
    parts: dict[str, list[tuple[float, str]]] = {}
    for parameter in parameters:
        first, dot, rest = parameter.partition(".")
        name, place = _RENAMED_PARAMETERS.get(first, first) + dot + rest, 0.0
        if separate := _SEPARATE_MODULATION.fullmatch(name):
            block, kind = separate.groups()
            name, place = f"transformer.adaln.{kind}", float(block) if block else math.inf
        parts.setdefault(name, []).append((place, parameter))
    return {name: [parameter for _, parameter in sorted(found)] for name, found in parts.items()}


class Generator(nn.Module):
    """f(eps_t, y, t, z'_{t-1}). The label `num_classes` stands for no class."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(
            config.depth, config.hidden_width, config.grid, config.attention, config.activation_checkpointing
        )
        width = self.transformer.width
        self.project = nn.Linear(2 * config.code_dim, width)
        self.label_embedding = nn.Embedding(config.num_classes + 1, width)
        self.step_mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.head = nn.Linear(width, config.codebook_size, bias=False)
        self.project.apply(xavier)
        self.label_embedding.apply(normal)
        self.step_mlp.apply(normal)
        self.head.apply(zero)
        self.preconditioning: Preconditioning | None = None
        if config.preconditioned:
            self.preconditioning = Preconditioning(config.codebook_size, config.code_dim, config.num_steps)
        self.matching: Matching | None = None
        """How samples are matched to real latents before they are decoded (`models.matching`); None in the paper."""

    @property
    def null_label(self) -> int:
        """The label that stands for no class (Section 3.2)."""
        return self.config.num_classes

    def start_from(self, quantizer: Quantizer) -> None:
        """Initialize the classification layer from the geometry of the codebook (`align`), and the preconditioning."""
        align(self.head, quantizer.codebook.vectors)
        if self.preconditioning is not None:
            self.preconditioning.know(quantizer)

    def forward(
        self,
        noise: Float[Tensor, "b d h w"],
        labels: Int[Tensor, " b"] | Float[Tensor, "b width"],
        steps: Int[Tensor, " b"],
        accumulated: Float[Tensor, "b d h w"],
    ) -> Float[Tensor, "b h w K"]:
        """eps_t, y, t (1-based) and z'_{t-1} to float32 logits of C_t at each position.

        labels: classes, or vectors in the space of their embedding, such as a mix of two classes.
        """
        logits = self.from_modulations(noise, accumulated, self.modulations(labels, steps))
        return self.preconditioned(logits, noise, accumulated, steps)

    def modulations(
        self, labels: Int[Tensor, " b"] | Float[Tensor, "b width"], steps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b n width"]:
        """All that y and t do: what `from_modulations` needs of them."""
        classes = labels if labels.is_floating_point() else self.label_embedding(labels)
        return self.transformer.modulations(self.step_mlp(step_embedding(steps, 256)) + classes)

    def from_modulations(
        self,
        noise: Float[Tensor, "b d h w"],
        accumulated: Float[Tensor, "b d h w"],
        modulations: Float[Tensor, "b n width"],
    ) -> Float[Tensor, "b h w K"]:
        """What the network adds to the logits, with modulations that are computed already.

        Those of all T steps need one product. Without preconditioning these are the logits.
        """
        h, w = noise.shape[-2:]
        x = self.project(torch.cat([noise, accumulated], dim=1).flatten(2).transpose(1, 2))
        return self.head(self.transformer(x, modulations)).float().unflatten(1, (h, w))

    def preconditioned(
        self,
        logits: Float[Tensor, "b h w K"],
        noise: Float[Tensor, "b d h w"],
        accumulated: Float[Tensor, "b d h w"],
        steps: Int[Tensor, " b"],
    ) -> Float[Tensor, "b h w K"]:
        """Logits of the network, which labels and guidance decide, with what is known whatever the label."""
        return logits if self.preconditioning is None else logits + self.preconditioning(noise, accumulated, steps)

    def loss(
        self,
        noise: Float[Tensor, "b d h w"],
        labels: Int[Tensor, " b"],
        steps: Int[Tensor, " b"],
        accumulated: Float[Tensor, "b d h w"],
        codes: Int[Tensor, "b h w"],
    ) -> Float[Tensor, " b"]:
        """Eq. 7 of C_t, one value per image."""
        return code_loss(self(noise, labels, steps, accumulated), codes)

    def example(self, count: int) -> tuple[Tensor, ...]:
        """Arguments of `loss` for `count` images, without meaning: to count what it costs."""
        config = self.config
        latents = torch.empty(count, config.code_dim, config.grid, config.grid)
        labels = torch.zeros(count, dtype=torch.int64)
        return latents, labels, labels + 1, latents, torch.zeros(count, config.grid, config.grid, dtype=torch.int64)


@torch.no_grad()
def align(head: nn.Linear, vectors: Float[Tensor, "K d"]) -> None:
    """Initialize a classification layer from the geometry of the codebook.

    The code nearest to v is argmax_k (v . c_k - |c_k|^2 / 2), which is linear in (v, 1). The rows of the head start as
    (c_k, -|c_k|^2 / 2) in d + 1 random orthonormal directions, so the layers before it only have to predict v. Until
    they do, the last norm gives zeros: all codes start equally likely. The rows are scaled so that an input of unit
    variance would give logits with a standard deviation of 3, whatever the scale of the codes.
    """
    features = closeness_features(vectors)
    features -= features.mean(0)  # the same for all codes, so softmax does not see it
    features *= _ALIGNED_DEVIATION / features.square().sum(1).mean().sqrt()
    directions = torch.linalg.qr(torch.randn(head.in_features, features.shape[1])).Q
    weight = features @ directions.T.to(features)

    def aligned(layer: nn.Module) -> None:
        layer.get_parameter("weight").copy_(weight)

    head.apply(aligned)


def code_loss(logits: Float[Tensor, "b h w K"], codes: Int[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Eq. 7: cross-entropy in nats, averaged over positions, one value per image."""
    return F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none").view(len(codes), -1).mean(1)
