"""Losses of the tokenizer (Eq. 3-5). Only this module imports lpips."""

import hashlib
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

VGG16_SHA256_PREFIX = "397923af"
SMALLEST_PERCEPTUAL = 16  # pixels per side: VGG16 halves an image four times


def reconstruction_loss(
    images: Float[Tensor, "b c H W"], reconstruction: Float[Tensor, "b c H W"]
) -> Float[Tensor, ""]:
    """Eq. 3 as a mean over elements."""
    return F.mse_loss(reconstruction.float(), images)


def discriminator_hinge(real: Float[Tensor, "b 1 h w"], fake: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """Hinge loss of the discriminator (Lim and Ye 2017)."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def generator_hinge(fake: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """L_gan of Eq. 5, which the tokenizer minimizes."""
    return -fake.mean()


def last_layer_gradient(features: Float[Tensor, "b k H W"], grad: Float[Tensor, "b c H W"]) -> Float[Tensor, "c k 3 3"]:
    """Gradient of a loss with respect to the decoder's last 3x3 weight. grad: its gradient at that layer's output."""
    channels = (grad.shape[1], features.shape[1], 3, 3)
    return conv2d_weight(features.detach().float(), channels, grad.float(), padding=1)


def adaptive_weight(
    features: Float[Tensor, "b k H W"], grad_nll: Float[Tensor, "b c H W"], grad_gan: Float[Tensor, "b c H W"]
) -> Float[Tensor, ""]:
    """VQGAN's lambda: the ratio of both losses' gradient norms at the decoder's last layer, clamped to [0, 10^4]."""
    both = last_layer_gradient(features, torch.cat([grad_nll, grad_gan], 1))  # in one pass over the features
    nll, gan = (gradient.norm() for gradient in both.chunk(2))
    return (nll / (gan + 1e-4)).clamp(0, 1e4)


def untrained_lpips() -> nn.Module:
    """LPIPS with its trained linear heads, on a VGG16 with random weights."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return lpips.LPIPS(net="vgg", verbose=False, pnet_rand=True)


class PerceptualLoss(nn.Module):
    """LPIPS with VGG16 (Zhang et al. 2018) through the lpips package, frozen.

    weights: "torchvision" uses torchvision's own copy of VGG16, which is downloaded if it is missing. None keeps random
    weights, for measurements of speed and memory. Any other value is the path of vgg16-397923af.pth. Raises ValueError
    when the file is missing or has another digest.

    Under autocast only VGG16 runs in bfloat16. Its features are compared in float32.
    """

    def __init__(self, weights: str | None) -> None:
        super().__init__()
        self.metric = untrained_lpips()
        if weights is not None:
            path = vgg16_file() if weights == "torchvision" else weights
            load_vgg16(self.metric.get_submodule("net"), path, VGG16_SHA256_PREFIX)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Stay in eval mode, because lpips has dropout."""
        return super().train(False)

    def forward(self, images: Float[Tensor, "b c H W"], reconstruction: Float[Tensor, "b c H W"]) -> Float[Tensor, ""]:
        """Mean distance of images in [-1, 1]; a single channel is repeated to three."""
        real, fake = (self._features(x.expand(-1, 3, -1, -1)) for x in (images, reconstruction))
        with torch.autocast(images.device.type, enabled=False):
            distances = [
                head(F.normalize(one.float(), dim=1).sub(F.normalize(other.float(), dim=1)).square()).mean()
                for one, other, head in zip(real, fake, self.metric.get_submodule("lins").children(), strict=True)
            ]
        return torch.stack(distances).sum()

    def _features(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, ...]:
        """Features of five layers of VGG16, each (b, c, h, w)."""
        scaled = self.metric.get_submodule("scaling_layer")(images)
        return tuple(self.metric.get_submodule("net")(scaled))


def vgg16_file() -> str:
    """Path of torchvision's VGG16 in torch's cache, downloaded if it is missing. Raises ValueError if that fails."""
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=VGG16_SHA256_PREFIX, progress=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"LPIPS needs VGG16, and {path.name} could not be downloaded ({error}); give its path as "
                "loss.perceptual, or set loss.perceptual=none to train without LPIPS"
            ) from None
    return str(path)


def load_vgg16(trunk: nn.Module, path: str, digest_prefix: str) -> None:
    """Load torchvision's vgg16 file, whose sha256 starts with `digest_prefix`, into the VGG16 slices of lpips.

    Raises ValueError when the file is missing, has another digest or lacks a weight.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"LPIPS weights {path!r} do not exist; give the path of vgg16-397923af.pth, or set perceptual: none"
        )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not digest.startswith(digest_prefix):
        raise ValueError(
            f"LPIPS weights {path!r} have sha256 {digest[:8]}, not {digest_prefix}; fetch torchvision's VGG16"
        )
    state = torch.load(file, map_location="cpu", weights_only=True)
    renamed = {}
    for name in trunk.state_dict():  # "slice2.7.weight" is torchvision's "features.7.weight"
        source = "features." + name.split(".", 1)[1]
        if source not in state:
            raise ValueError(f"LPIPS weights {path!r} lack {source}; fetch torchvision's VGG16")
        renamed[name] = state[source]
    trunk.load_state_dict(renamed)
