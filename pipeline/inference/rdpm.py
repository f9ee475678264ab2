"""A generator with its tokenizer: labels to images, images to codes and back, and edits of images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rdpm.models.generator import Generator
from rdpm.models.noise import Stream, child_seeds, normal
from rdpm.models.sampler import Known, SamplerConfig, advance, sample
from rdpm.models.tokenizer import Tokenizer, from_pixels, to_pixels
from rdpm.pipeline.exports.exports import load_generator, load_tokenizer, read_card
from rdpm.pipeline.foundation import files
from rdpm.storage_schemas.cards import CARD, ModelCard

Precision = Literal["fp32", "bf16"]
Callback = Callable[[int, range, np.ndarray], None]
"""Called after each step with t, the rows it is about, and their images so far, (rows, H, W, 3) uint8."""


def open_cards(generator: str, tokenizer: str) -> tuple[ModelCard, ModelCard]:
    """Cards of both exports. Raises ValueError unless the generator was trained on codes of the tokenizer."""
    cards = read_card(generator, "generator"), read_card(tokenizer, "tokenizer")
    trained_on = cards[0].made_from["tokenizer_digest"]
    if trained_on != cards[1].digest:
        raise ValueError(
            f"generator {generator} was trained on codes of tokenizer {trained_on[:12]}, but {tokenizer} "
            f"is {cards[1].digest[:12]}; give the tokenizer it was trained with"
        )
    return cards


@dataclass(frozen=True)
class Drawn:
    """images (N, H, W, 3) uint8, grey three times, and codes (N, T, h, w) uint16."""

    images: np.ndarray
    codes: np.ndarray


class RDPM:
    """Both models on one device, CUDA where there is one.

    Every call of a model sees `batch` images, the last ones padding, so an image depends on its seed, its label and its
    settings, not on its neighbours or their number. `precision` "bf16" runs generator and decoder under autocast;
    `compiled` runs each step of Algorithm 2 as one compiled graph.

    seed: one for a call, whose image i has the seed that image i of a sample set has; or one an image, each as if it
    were called for alone. Encoding mixes in the very noise that sampling from the same seed starts from, for a code
    means nothing to the generator without its noise.

    settings: fields of SamplerConfig, such as guidance and temperature; each one value, or one an image.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        batch: int = 16,
        precision: Precision = "fp32",
        compiled: bool = False,
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.generator, self.tokenizer = generator.to(self.device), tokenizer.to(self.device)
        self.batch, self.precision, self.compiled = batch, precision, compiled
        self._step = torch.compile(advance, fullgraph=True, dynamic=False) if compiled else advance

    @classmethod
    def from_pretrained(cls, path: str, tokenizer: str | None = None, **how: Any) -> "RDPM":
        """Load exports. how: `batch`, `precision` and `compiled` of RDPM.

        path: a folder or URL that holds `generator/` and `tokenizer/`; or a generator's export, with the path of its
        tokenizer's beside it. Raises ValueError when an export is missing or the two do not belong together.
        """
        if tokenizer is None and files.exists(files.join(path, CARD)):
            raise ValueError(f"{path!r} is a single export; give tokenizer=... too, or the folder that holds both")
        if tokenizer is None:
            path, tokenizer = files.join(path, "generator"), files.join(path, "tokenizer")
        open_cards(path, tokenizer)
        return cls(load_generator(path)[0], load_tokenizer(tokenizer)[0], **how)

    def sample(
        self, labels: Sequence[int], seed: int | Sequence[int] = 0, callback: Callback | None = None, **settings: Any
    ) -> np.ndarray:
        """An image of each class, (N, H, W, 3) uint8.

        Raises ValueError for a label that is no class, and for settings that cannot be.
        """
        seeds, configs = _seeds(seed, len(labels)), _configs(settings, len(labels))
        return self.draw(self._labels(labels, len(labels)), seeds, configs, callback=callback).images

    @torch.no_grad()
    def blend(
        self,
        first: Sequence[int],
        second: Sequence[int],
        weight: float | Sequence[float],
        seed: int | Sequence[int] = 0,
        callback: Callback | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Images between two classes, (N, H, W, 3) uint8: their embeddings are mixed, `weight` of the second's."""
        start, end = (
            self.generator.labels(torch.from_numpy(self._labels(labels, len(first))).to(self.device))
            for labels in (first, second)
        )
        share = torch.tensor(weight, dtype=torch.float32, device=self.device).expand(len(first)).unsqueeze(1)
        points = torch.lerp(start, end, share).cpu().numpy()
        seeds, configs = _seeds(seed, len(first)), _configs(settings, len(first))
        return self.draw(points, seeds, configs, callback=callback).images

    def inpaint(
        self,
        images: np.ndarray,
        mask: np.ndarray,
        labels: Sequence[int],
        seed: int | Sequence[int] = 0,
        callback: Callback | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Draw anew what lies under a mask (N, H, W) bool, on whole cells of the grid; (N, H, W, 3) uint8.

        The codes of every other cell are held at every step; its pixels may still change a little near the mask, for
        the decoder looks around.
        """
        h, size = self.tokenizer.config.grid, self.tokenizer.config.image_size
        if mask.dtype != np.bool_ or mask.shape != (len(images), size, size):
            raise ValueError(f"mask is {mask.dtype} {mask.shape}; give bool {(len(images), size, size)}")
        kept = ~np.logical_or.reduce(mask.reshape(-1, 1, h, size // h, h, size // h), axis=(3, 5))
        return self._edit(images, kept, labels, seed, callback, settings)

    def vary(
        self,
        images: np.ndarray,
        labels: Sequence[int],
        step: int,
        seed: int | Sequence[int] = 0,
        callback: Callback | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Keep the images' codes of steps 1 ... `step` and draw the rest for `labels`; (N, H, W, 3) uint8.

        step 0 is plain sampling, step T the reconstruction.
        """
        T = self.generator.config.num_steps
        if not 0 <= step <= T:
            raise ValueError(f"step is {step}; use 0 (nothing of the images) to {T} (all of them)")
        return self._edit(images, (np.arange(T) < step).reshape(1, T, 1, 1), labels, seed, callback, settings)

    def _edit(
        self,
        images: np.ndarray,
        kept: np.ndarray,
        labels: Sequence[int],
        seed: int | Sequence[int],
        callback: Callback | None,
        settings: dict[str, Any],
    ) -> np.ndarray:
        """Images with their own codes where `kept`, which broadcasts to (N, T, h, w), is true."""
        codes = self.encode(images, seed)
        known = codes.astype(np.int64), np.broadcast_to(kept, codes.shape)
        classes, seeds = self._labels(labels, len(codes)), _seeds(seed, len(codes))
        return self.draw(classes, seeds, _configs(settings, len(codes)), known, callback).images

    def encode(self, images: np.ndarray, seed: int | Sequence[int] = 0) -> np.ndarray:
        """Images (N, H, W, 1 or 3) uint8 of the tokenizer's size to codes (N, T, h, w) uint16."""
        shape = self.tokenizer.config.latent_shape

        def encode(_: range, pixels: Tensor, seeds: Tensor) -> tuple[Tensor]:
            latents = self.tokenizer.encoder(from_pixels(pixels.permute(0, 3, 1, 2))).float()
            return (
                self.tokenizer.quantizer.quantize(latents, lambda t: normal(seeds, t, shape, Stream.SAMPLER)).codes,
            )

        return self._in_batches(encode, self._pixels(images), _seeds(seed, len(images)))[0].astype(np.uint16)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes (N, T, h, w) to images (N, H, W, 3) uint8."""
        space = self.generator.config
        maps, K = (space.num_steps, space.grid, space.grid), space.codebook_size
        if codes.shape[1:] != maps or codes.dtype.kind not in "iu" or not 0 <= codes.min() <= codes.max() < K:
            raise ValueError(f"codes are {codes.dtype} {codes.shape}; give integers below {K} as {('N', *maps)}")

        def decode(_: range, codes: Tensor) -> tuple[Tensor]:
            return (self._images(self.tokenizer.quantizer.codebook.accumulated(codes, space.num_steps)),)

        return self._in_batches(decode, codes.astype(np.int64))[0]

    def draw(
        self,
        labels: np.ndarray,
        seeds: np.ndarray,
        configs: Sequence[SamplerConfig],
        known: tuple[np.ndarray, np.ndarray] | None = None,
        callback: Callback | None = None,
    ) -> Drawn:
        """Algorithm 2 for N images, one config each.

        labels: (N,) int64, or (N, width) float32 points of the embedding. seeds: (N,) int64. known: codes int64 and
        mask bool, (N, T, h, w), held where the mask is true.
        """

        def draw(rows: range, labels: Tensor, seeds: Tensor, *known: Tensor) -> tuple[Tensor, Tensor]:
            mine = [configs[row] for row in rows]
            mine += mine[:1] * (self.batch - len(rows))

            def show(t: int, accumulated: Tensor) -> None:
                if callback is not None:
                    callback(t, rows, self._images(accumulated)[: len(rows)].cpu().numpy())

            with self._autocast():
                drawn = sample(
                    self.generator, self.tokenizer.quantizer.codebook, labels, seeds, mine,
                    Known(*known) if known else None, step=self._step, after_step=show,
                )  # fmt: skip
            return self._images(drawn.accumulated[:, -1]), drawn.codes

        images, codes = self._in_batches(draw, labels, seeds, *(known or ()))
        return Drawn(images, codes.astype(np.uint16))

    @torch.no_grad()
    def _in_batches(self, function: Callable[..., tuple[Tensor, ...]], *columns: np.ndarray) -> list[np.ndarray]:
        """The columns function(rows, *tensors) makes of columns of N rows, `batch` rows at a time, zeros as padding."""
        parts = []
        for start in range(0, len(columns[0]), self.batch):
            rows = range(start, min(start + self.batch, len(columns[0])))
            padded = []
            for column in columns:
                part = column[rows.start : rows.stop]
                margin = ((0, self.batch - len(part)), *((0, 0),) * (part.ndim - 1))
                padded.append(torch.from_numpy(np.pad(part, margin)).to(self.device))
            parts.append([result[: len(rows)].cpu().numpy() for result in function(rows, *padded)])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _images(self, accumulated: Tensor) -> Tensor:
        """z' to pixels (b, H, W, 3) uint8."""
        with self._autocast():
            pixels = to_pixels(self.tokenizer.decode(accumulated))
        return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _labels(self, labels: Sequence[int], count: int) -> np.ndarray:
        """The images' classes, (N,) int64."""
        if len(labels) != count:
            raise ValueError(f"{len(labels)} labels do not go with {count} images; give one an image")
        classes = self.generator.config.num_classes
        for label in labels:
            if not 0 <= label < classes:
                raise ValueError(f"label {label} is no class of this generator; use 0 to {classes - 1}")
        return np.array(labels, np.int64)

    def _pixels(self, images: np.ndarray) -> np.ndarray:
        """Images with the tokenizer's channels. Raises ValueError when they are not what it takes."""
        size, channels = self.tokenizer.config.image_size, self.tokenizer.config.autoencoder.in_channels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] not in ((size, size, 1), (size, size, 3)):
            raise ValueError(f"images are {images.dtype} {images.shape}; give uint8 (N, {size}, {size}, 1 or 3)")
        return np.broadcast_to(images, (*images.shape[:3], 3))[..., :channels]


def _seeds(seed: int | Sequence[int], count: int) -> np.ndarray:
    """The images' seeds, (N,) int64."""
    if isinstance(seed, int):
        return child_seeds(seed, torch.arange(count)).numpy()
    if len(seed) != count:
        raise ValueError(f"{len(seed)} seeds do not go with {count} images; give one, or one an image")
    return np.concatenate([child_seeds(one, torch.arange(1)).numpy() for one in seed])


def _configs(settings: dict[str, Any], count: int) -> list[SamplerConfig]:
    """One config an image."""
    columns: dict[str, list[Any]] = {}
    for name, value in settings.items():
        if name not in SamplerConfig.__dataclass_fields__:
            known = ", ".join(SamplerConfig.__dataclass_fields__)
            raise ValueError(f"sampler setting {name!r} is unknown; use {known}")
        columns[name] = [value] * count if value is None or isinstance(value, (int, float, str)) else list(value)
        if len(columns[name]) != count:
            raise ValueError(f"{len(columns[name])} values of {name} do not go with {count} images; give one an image")
    return [SamplerConfig(**{name: values[i] for name, values in columns.items()}) for i in range(count)]
