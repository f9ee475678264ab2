"""DINOv2 features (Oquab et al. 2023) as torch-fidelity prepares images for them.

torch-fidelity gets the network from torch.hub, which downloads and runs code that nothing pins. So the network is
written here, small enough to read, and loads the published weights; resizing and normalizing are torch-fidelity's.
"""

import io
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdpm.pipeline.evaluation.features import Extractor, Outputs
from rdpm.pipeline.evaluation.weights_file import WeightsFile

DINOV2 = WeightsFile(
    "dinov2_weights",
    "DINOv2's weights",
    "dinov2_vitl14_pretrain.pth",
    "d5383ea8",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    "the DINOv2 repository",
)
_PATCH, _HEAD = 14, 64  # pixels per side of a patch; width of an attention head
_SIZE = 224  # pixels per side of what the network sees
_EPSILON = 1e-6  # of the layer norms
_OFFSET = 0.1  # that the original adds to the size when it resizes the position embedding


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(2, (3, -1, _HEAD)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(*heads.unbind(0)).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=_EPSILON) for _ in range(2))
        self.attn, self.mlp = _Attention(width), _Mlp(width)
        self.ls1, self.ls2 = _Scale(width), _Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, _PATCH, stride=_PATCH)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class DinoTransformer(nn.Module):
    """The vision transformer of DINOv2's small, base and large models, with the parameter names of their files."""

    def __init__(self, width: int, depth: int, positions: int) -> None:
        """positions: patches per side that the position embedding was trained for; it is resized to the images'."""
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + positions**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # used in its training only
        self.patch_embed = _Patches(width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=_EPSILON)

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> "DinoTransformer":
        """The network of a file's weights, whose shapes say how large it is."""
        width, positions = weights["cls_token"].shape[-1], math.isqrt(weights["pos_embed"].shape[1] - 1)
        depth = len([name for name in weights if name.endswith(".attn.qkv.weight")])
        network = cls(width, depth, positions)
        network.load_state_dict(weights)
        return network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (b, 3, H, W), H and W multiples of 14, to the normalized class token (b, width)."""
        patches = self.patch_embed(images)
        grid = images.shape[-2] // _PATCH, images.shape[-1] // _PATCH
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self._positions(grid)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding (1, 1 + h w, width) of a grid of patches."""
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        side = math.isqrt(rest.shape[1])
        if grid == (side, side):
            return self.pos_embed
        maps = rest.transpose(1, 2).unflatten(2, (side, side))
        scale = [(length + _OFFSET) / side for length in grid]
        resized = F.interpolate(maps, scale_factor=scale, mode="bicubic")
        assert resized.shape[2:] == grid, resized.shape
        return torch.cat([first, resized.flatten(2).transpose(1, 2)], dim=1)


class DinoExtractor(Extractor):
    """DINOv2 ViT-L/14, as torch-fidelity's "dinov2-vit-l-14": the class token, 1024 values; no logits and no maps.

    Images are resized to 224 pixels with TensorFlow 1's bilinear resize and normalized by ImageNet's mean and
    deviation. It runs in float32 without TF32.
    """

    name = "dinov2"

    def __init__(self, weights: str, batch: int) -> None:
        """weights: path of the network's file. Empty means the file in torch's cache, which torch downloads if needed.

        Raises ValueError when the file is missing, cannot be downloaded, or has another digest.
        """
        super().__init__(batch)
        data, self.digest = DINOV2.read(weights)
        parameters = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        self.network = prepared(DinoTransformer.of(parameters)).to(self.device)

    def outputs(self, images: Tensor) -> Outputs:
        """Features (b, 1024); grey is repeated to three channels."""
        (features,) = self.network(images.expand(-1, 3, -1, -1))
        return features, None, None


def prepared(network: DinoTransformer) -> nn.Module:
    """torch-fidelity's extractor around a network: it resizes and normalizes images (b, 3, H, W) uint8."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    class Prepared(FeatureExtractorDinoV2):
        """Takes the network that it is given instead of one from torch.hub."""

        def __init__(self) -> None:
            FeatureExtractorBase.__init__(self, "dinov2-vit-l-14", ["dinov2"])
            self.feature_extractor_internal_dtype = torch.float32
            self.model = network

    assert Prepared.INPUT_IMAGE_SIZE == _SIZE
    return Prepared()
