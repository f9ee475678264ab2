"""The tokenizer: encoder, quantizer, decoder (Figure 4, left)."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rdpm.models.autoencoder import AutoencoderConfig, Decoder, Encoder
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.noise import Stream, normal
from rdpm.models.quantizer import NoiseAt, Quantization, Quantizer, straight_through
from rdpm.models.scales import check_sides
from rdpm.models.schedule import Schedule


@dataclass(frozen=True)
class TokenizerConfig:
    """Everything that defines a tokenizer. The card beside its weights holds it."""

    image_size: int = 256
    """Pixels per side."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """Encoder and decoder."""
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    """Codebook and bias convolution."""
    schedule: Schedule = field(default_factory=Schedule)
    """How much noise each step of the diffusion mixes in."""
    continuous: bool = False
    """Whether the decoder is for latents instead of what codes add up to, as a rival that draws latents needs it."""

    def __post_init__(self) -> None:
        if self.quantizer.growing:
            check_sides(self.grid, self.schedule.num_steps)
        if self.image_size < 1 or self.image_size % self.autoencoder.factor:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of the factor {self.autoencoder.factor} by which the "
                "encoder downsamples; change image_size or the number of multipliers"
            )

    @property
    def grid(self) -> int:
        """h = w, codes per side."""
        return self.image_size // self.autoencoder.factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(d, h, w)."""
        return (self.quantizer.code_dim, self.grid, self.grid)


class Tokenizer(nn.Module):
    """Images to T maps of codes and back."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.autoencoder, config.quantizer.code_dim)
        self.quantizer = Quantizer(config.quantizer, config.schedule)
        self.decoder = Decoder(config.autoencoder, config.quantizer.code_dim)

    def noise(self, seeds: Int[Tensor, " b"]) -> NoiseAt:
        """A function from t to eps_t of each image, drawn from its seed."""
        return lambda t: normal(seeds, t, self.config.latent_shape, Stream.TOKENIZER)

    def quantize(self, latents: Float[Tensor, "b d h w"], seeds: Int[Tensor, " b"]) -> Quantization:
        """Algorithm 1 with eps_t drawn from each image's seed."""
        return self.quantizer.quantize(latents, self.noise(seeds))

    def encode(self, images: Float[Tensor, "b c H W"], seeds: Int[Tensor, " b"]) -> Quantization:
        """Images in [-1, 1] to codes and accumulated latents, with eps_t drawn from each image's seed."""
        return self.quantize(self.encoder(images).float(), seeds)

    def decode(self, accumulated: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        """Accumulated latents z' to images, in about [-1, 1]."""
        return self.decoder(accumulated)

    def forward(self, images: Float[Tensor, "b c H W"], seeds: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """One training pass.

        Returns reconstruction (b, c, H, W), features (b, k, H, W) before the decoder's last convolution, the two
        quantization losses (Eq. 4) as scalars, and codes (b, T, h, w). On a GPU activations are channels-last in
        memory, which convolutions of bfloat16 want. It changes roundings, so encoding keeps the plain format.
        """
        form = torch.channels_last if images.is_cuda else torch.preserve_format
        latents = self.encoder(images.to(memory_format=form)).float()
        accumulated, commitment, codebook, codes = self.quantizer(latents, self.noise(seeds))
        if not self.config.continuous:
            latents = straight_through(latents, accumulated)
        features = self.decoder.features(latents.to(memory_format=form))
        return {
            "reconstruction": self.decoder.last(features),
            "features": features,
            "commitment": commitment,
            "codebook": codebook,
            "codes": codes,
        }


def to_pixels(images: Float[Tensor, "*b c H W"]) -> Tensor:
    """Images in [-1, 1] to uint8, rounding half to even. Every picture, file and metric is rounded here."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_pixels(pixels: Tensor) -> Float[Tensor, "*b c H W"]:
    """Images in uint8 to [-1, 1]."""
    return pixels.float() / 127.5 - 1
