"""The PatchGAN discriminator (Isola et al. 2017), as VQGAN and RQ-VAE use it."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from rdpm.models.initial import draw


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Size of the discriminator. The defaults are those of RQ-VAE, which the paper repeats."""

    channels: int = 64
    """Channels of the first layer."""
    num_layers: int = 2
    """Number of stride-2 layers."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.num_layers < 1:
            raise ValueError(f"discriminator channels {self.channels} and num_layers {self.num_layers} need 1 or more")

    @property
    def smallest(self) -> int:
        """Pixels per side of the smallest image that it takes. The last two layers each need a map one patch larger."""
        return 3 * 2**self.num_layers


class Discriminator(nn.Module):
    """One logit per patch of an image, for the hinge loss."""

    def __init__(self, config: DiscriminatorConfig, in_channels: int) -> None:
        super().__init__()
        widths = [config.channels * min(2**level, 8) for level in range(config.num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for level in range(1, config.num_layers + 1):
            stride = 2 if level < config.num_layers else 1
            layers += [
                nn.Conv2d(widths[level - 1], widths[level], 4, stride, 1, bias=False),
                nn.BatchNorm2d(widths[level]),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.apply(_init)

    def forward(self, images: Float[Tensor, "b c H W"]) -> Float[Tensor, "b 1 h w"]:
        return self.layers(images)


class DiscriminatorPair(nn.Module):
    """Logits of real and of reconstructed images in one call, so an engine runs one forward and one backward pass."""

    def __init__(self, config: DiscriminatorConfig, in_channels: int) -> None:
        super().__init__()
        self.discriminator = Discriminator(config, in_channels)

    def forward(
        self, real: Float[Tensor, "b c H W"], fake: Float[Tensor, "b c H W"]
    ) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 h w"]]:
        return self.discriminator(real), self.discriminator(fake)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        draw(nn.init.normal_, module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        draw(nn.init.normal_, module.weight, 1.0, 0.02)
