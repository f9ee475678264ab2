"""A generator with its tokenizer: labels to images, images to codes and back, and edits of images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdpm.models.attention import Backend
from rdpm.models.compiled_steps import CompiledSteps
from rdpm.models.generator import Generator
from rdpm.models.noise import Stream
from rdpm.models.sampler import Known, SamplerConfig, all_steps, sample
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.exports.card import pair_at, read_pair
from rdpm.pipeline.exports.weights import load_generator, load_tokenizer
from rdpm.pipeline.inference.batches import best_device, in_batches
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.inference.per_image import configs_of, seeds_of
from rdpm.pipeline.inference.precision import Precision, check_precision, generator_in

Callback = Callable[[int, range, np.ndarray], None]
"""Called after each step with t, the rows of a batch, and their images so far, (rows, H, W, 3) uint8."""


@dataclass(frozen=True)
class Drawn:
    """N drawn images."""

    images: np.ndarray
    """(N, H, W, 3) uint8; grey is repeated three times."""
    codes: np.ndarray
    """(N, T, h, w) uint16; T is 0 where latents were drawn."""


class RDPM:
    """A trained generator and its tokenizer on one device.

    Every call of a model gets `batch` images; the last batch is padded. So an image depends on its seed, its label and
    its settings, not on its neighbours or their number.

    Methods take one `seed` for all images, or one per image. With one for all, image i gets the seed of image i of a
    sample set with that seed. With one per image, each image equals one that is drawn alone. Encoding mixes in the
    noise that sampling with the same seed draws, because the generator always sees codes together with their noise.

    Methods take the fields of `SamplerConfig`, such as guidance and temperature, as keywords: one value for all images,
    or one per image.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        *,
        batch: int = 16,
        precision: Precision = "fp32",
        compile: bool = False,
        device: str | torch.device | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        """Use two models that are in memory.

        batch: images per call of a model. precision: fp32 moves the models to the device; bf16 leaves the generator as
        it is and uses a copy of it and of the decoder whose large weights are bf16. Images are always encoded in fp32.
        compile: whether to compile the decoder and a step of Algorithm 2; a GPU then replays all steps as one CUDA
        graph, unless a callback is given. The first batch waits for the compiler, and so does the first of each other
        kind of settings (guided or not, random or not, with top_k or top_p, with known codes). device: such as "cpu" or
        "cuda:1"; None is the GPU if there is one, else the CPU. Raises ValueError for a generator with flash_attn in
        fp32.
        """
        check_precision(precision, generator.config.attention)
        self.device = torch.device(device) if device else best_device()
        self.generator, self.tokenizer = generator_in(precision, generator).to(self.device), tokenizer
        self.codec = Codec(tokenizer, batch, self.device, precision, compile)
        self._encoder = Codec(tokenizer, batch, self.device)
        self.batch = batch
        self.classes = tuple(classes) or tuple(str(label) for label in range(generator.config.num_classes))
        self.run_steps = CompiledSteps() if compile else all_steps

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        tokenizer: str | None = None,
        *,
        batch: int = 16,
        precision: Precision = "fp32",
        compile: bool = False,
        attention: Backend = "sdpa",
        device: str | torch.device | None = None,
    ) -> "RDPM":
        """Load exported models.

        path: a folder or URL that holds `generator/` and `tokenizer/`, or the export of a generator if `tokenizer` is
        the export of its tokenizer. Of a folder that holds `calibrated/` too, that generator is taken: it is the same
        one with matched latents. attention: the generator's kernel, whichever it was trained with: sdpa, math or
        flash_attn. See `RDPM` for the other options. Raises ValueError when an export is missing, the two models do not
        belong together, or flash-attn is not installed.
        """
        path, tokenizer = pair_at(path, tokenizer)
        names = read_pair(path, tokenizer)[0].classes
        models = load_generator(path, attention)[0], load_tokenizer(tokenizer)[0]
        return cls(*models, batch=batch, precision=precision, compile=compile, device=device, classes=names)

    def sample(
        self, labels: Sequence[int], seed: int | Sequence[int] = 0, callback: Callback | None = None, **settings: Any
    ) -> np.ndarray:
        """An image of each class, (N, H, W, 3) uint8.

        Raises ValueError for a label that is no class, and for impossible settings.
        """
        seeds, configs = seeds_of(seed, len(labels)), configs_of(settings, len(labels))
        return self.draw(self._labels(labels, len(labels)), seeds, configs, callback=callback).images

    def blend(
        self,
        first: Sequence[int],
        second: Sequence[int],
        weight: float | Sequence[float],
        seed: int | Sequence[int] = 0,
        callback: Callback | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Images between two classes, (N, H, W, 3) uint8, from mixed label embeddings.

        weight: of the second class, one for all images or one per image; 0 gives the first class and 1 the second.
        """
        classes = self._labels(first, len(first)), self._labels(second, len(first))
        weights = np.array([weight] * len(first) if np.ndim(weight) == 0 else weight, np.float32)
        if len(weights) != len(first):
            raise ValueError(
                f"there are {len(weights)} weights and {len(first)} images; give one weight for all, or one per image"
            )

        def condition(table: Tensor, first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
            return torch.lerp(table[first], table[second], weights.unsqueeze(1))

        seeds, configs = seeds_of(seed, len(first)), configs_of(settings, len(first))
        return self._draw(condition, (*classes, weights), seeds, configs, None, callback).images

    def inpaint(
        self,
        images: np.ndarray,
        mask: np.ndarray,
        labels: Sequence[int],
        seed: int | Sequence[int] = 0,
        callback: Callback | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Draw the masked parts of images anew, (N, H, W, 3) uint8. mask: (N, H, W) bool.

        A cell of the grid is drawn anew if any of its pixels is masked. All other cells keep their codes at every step;
        their pixels may change a little near the mask, because the decoder sees neighbouring cells.
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
        """Keep the images' codes of steps 1 ... `step` and draw the others, (N, H, W, 3) uint8.

        Step 0 gives plain samples, step T the reconstructions.
        """
        T = self.generator.config.num_steps
        if not 0 <= step <= T:
            raise ValueError(f"step is {step}; use 0 (plain samples) to {T} (reconstructions)")
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
        """Images that keep their own codes where `kept`, which broadcasts to (N, T, h, w), is true."""
        codes = self.encode(images, seed)
        known = codes.astype(np.int64), np.broadcast_to(kept, codes.shape)
        classes, seeds = self._labels(labels, len(codes)), seeds_of(seed, len(codes))
        return self.draw(classes, seeds, configs_of(settings, len(codes)), known, callback).images

    def encode(self, images: np.ndarray, seed: int | Sequence[int] = 0) -> np.ndarray:
        """Images (N, H, W, 1 or 3) uint8 of the tokenizer's size to codes (N, T, h, w) uint16."""
        return self._encoder.encode(self._pixels(images), seeds_of(seed, len(images)), Stream.SAMPLER).codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes (N, T, h, w) to images (N, H, W, 3) uint8."""
        space = self.generator.config
        maps, K = (space.num_steps, space.grid, space.grid), space.codebook_size
        if codes.shape[1:] != maps or codes.dtype.kind not in "iu" or not 0 <= codes.min() <= codes.max() < K:
            raise ValueError(f"codes are {codes.dtype} {codes.shape}; give integers below {K} as {('N', *maps)}")
        return three_channels(self.codec.decode(codes))

    def draw(
        self,
        labels: np.ndarray,
        seeds: np.ndarray,
        configs: Sequence[SamplerConfig],
        known: tuple[np.ndarray, np.ndarray] | None = None,
        callback: Callback | None = None,
    ) -> Drawn:
        """Algorithm 2 for N images, with one config per image.

        labels: (N,) int64. seeds: (N,) int64. known: codes int64 and a mask bool, both (N, T, h, w); these codes are
        used where the mask is true.
        """
        return self._draw(lambda table, labels: table[labels], (labels,), seeds, configs, known, callback)

    def _draw(
        self,
        condition: Callable[..., Tensor],
        conditions: tuple[np.ndarray, ...],
        seeds: np.ndarray,
        configs: Sequence[SamplerConfig],
        known: tuple[np.ndarray, np.ndarray] | None,
        callback: Callback | None,
    ) -> Drawn:
        """Algorithm 2. condition: from a table with a row per class, and batches of `conditions`, to rows of it.

        Images with known codes are not matched: what is known of them is real already.
        """
        matching = None if known else self.generator.matching

        def draw(rows: range, *columns: Tensor) -> tuple[Tensor, Tensor]:
            inputs, (seeds, *kept) = columns[: len(conditions)], columns[len(conditions) :]
            settings = [configs[row] for row in rows]
            settings += settings[:1] * (self.batch - len(rows))

            def show(t: int, accumulated: Tensor) -> None:
                assert callback is not None
                latents = matched(accumulated) if t == self.generator.config.num_steps else accumulated
                pixels = self.codec.pixels(latents)[: len(rows)].cpu().numpy()
                callback(t, rows, three_channels(pixels))

            def matched(accumulated: Tensor) -> Tensor:
                return matching(accumulated, condition(matching.table, *inputs)) if matching else accumulated

            embedded = condition(self.generator.label_embedding.weight, *inputs)
            drawn = sample(
                self.generator, self.tokenizer.quantizer.codebook, embedded, seeds, settings,
                Known(*kept) if kept else None, after_step=show if callback else None, run=self.run_steps,
            )  # fmt: skip
            return self.codec.pixels(matched(drawn.accumulated[:, -1])), drawn.codes.to(torch.uint16)

        columns = (*conditions, seeds, *(known or ()))
        images, codes = in_batches(draw, columns, self.batch, self.device)
        return Drawn(three_channels(images), codes)

    def _labels(self, labels: Sequence[int], count: int) -> np.ndarray:
        """The classes of the images, (N,) int64. Raises ValueError for a label that is no class."""
        if len(labels) != count:
            raise ValueError(f"there are {len(labels)} labels and {count} images; give one label per image")
        classes = self.generator.config.num_classes
        for label in labels:
            if not 0 <= label < classes:
                raise ValueError(f"label {label} is no class of this generator; use 0 to {classes - 1}")
        return np.array(labels, np.int64)

    def _pixels(self, images: np.ndarray) -> np.ndarray:
        """Images with as many channels as the tokenizer takes. Raises ValueError for another type or size."""
        size, channels = self.tokenizer.config.image_size, self.tokenizer.config.autoencoder.in_channels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] not in ((size, size, 1), (size, size, 3)):
            raise ValueError(f"images are {images.dtype} {images.shape}; give uint8 (N, {size}, {size}, 1 or 3)")
        return np.broadcast_to(images, (*images.shape[:3], 3))[..., :channels]


def three_channels(pixels: np.ndarray) -> np.ndarray:
    """Pixels (N, H, W, 1 or 3) as (N, H, W, 3)."""
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:3], 3)))
