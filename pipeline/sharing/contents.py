"""What a publication holds: exports that belong together, what they draw, and what was measured of them."""

import dataclasses
import io
import posixpath
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.exports.card import read_card, read_pair
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import from_saved
from rdpm.pipeline.foundation.measured import read_measured
from rdpm.pipeline.foundation.records import read_record
from rdpm.pipeline.inference.rdpm import RDPM
from rdpm.pipeline.sharing.published import CALIBRATED, GENERATOR, TOKENIZER
from rdpm.storage_schemas.cards import CARD, ModelCard
from rdpm.storage_schemas.samples import current_sampler

MOST_CLASSES, PER_CLASS = 10, 8
_GAP = 2  # pixels between the images of a picture


@dataclass(frozen=True)
class Contents:
    """Exports, and what is known of them."""

    folders: dict[str, str]
    """Where each export is, by its name in the publication: generator, tokenizer, calibrated."""
    cards: dict[str, ModelCard]
    """The cards of these exports."""
    sampler: SamplerConfig
    """How the picture is drawn."""
    measured: SamplerConfig | None
    """How the samples that were measured were drawn; None where that is not known."""
    metrics: dict[str, Any]
    """What metrics.json holds; empty for no metrics."""

    @property
    def shown(self) -> str:
        """The export whose samples were measured and are shown: the calibrated generator where there is one."""
        return CALIBRATED if CALIBRATED in self.folders else GENERATOR

    @property
    def digests(self) -> dict[str, str]:
        """Digests of the exports."""
        return {name: card.digest for name, card in self.cards.items()}


def collect(run: str, generator: str, tokenizer: str, metrics: str, sampler: SamplerConfig | None) -> Contents:
    """The exports of a run's folder, or the two given ones. Raises ValueError unless all belong together.

    metrics: the metrics.json; empty for that of the run, if it has one. sampler: None for that of the run's samples.
    """
    folders = {GENERATOR: generator or files.join(run, GENERATOR), TOKENIZER: tokenizer or files.join(run, TOKENIZER)}
    calibrated = files.join(run, CALIBRATED)
    if run and not generator and files.exists(files.join(calibrated, CARD)):
        folders[CALIBRATED] = calibrated
    for name in (GENERATOR, CALIBRATED):
        if name in folders:
            read_pair(folders[name], folders[TOKENIZER])
    cards = {n: read_card(f, TOKENIZER if n == TOKENIZER else GENERATOR) for n, f in folders.items()}
    path = metrics or (files.join(run, "metrics.json") if run else "")
    measured = read_measured(path, "evaluate") if metrics or (path and files.exists(path)) else {}
    _check_metrics(path, measured, cards)
    drawn = _sampler_of(files.join(run, "samples"), measured) if run else None
    return Contents(folders, cards, sampler or drawn or SamplerConfig(), drawn, measured)


def _check_metrics(path: str, metrics: dict[str, Any], cards: dict[str, ModelCard]) -> None:
    """Raise ValueError for metrics of other models."""
    if not metrics:
        return
    protocol = metrics.get("protocol", {})
    ours = {"generator": {c.digest for n, c in cards.items() if n != TOKENIZER}, "tokenizer": {cards[TOKENIZER].digest}}
    for part, digests in ours.items():
        digest = protocol.get(part, {}).get("digest")
        if digest is not None and digest not in digests:
            raise ValueError(
                f"{path} is about {part} {digest[:12]}, which is not published here; run rdpm evaluate again"
            )


def _sampler_of(samples: str, metrics: dict[str, Any]) -> SamplerConfig | None:
    """The settings of the samples that were measured, if they are the run's."""
    record = read_record(samples)
    measured = metrics.get("protocol", {}).get("samples", {}).get("digest")
    if record is None or not record.finished or (metrics and record.result.get("store_id") != measured):
        return None
    return from_saved(SamplerConfig, current_sampler(record.settings["sampler"]))


def labels_shown(card: ModelCard) -> list[int]:
    """The classes of the picture's images, row by row."""
    return [label for label in range(min(MOST_CLASSES, len(card.classes))) for _ in range(PER_CLASS)]


def settings_shown(sampler: SamplerConfig) -> dict[str, Any]:
    """The settings of a sampler that are not its defaults."""
    default = SamplerConfig()
    return {
        f.name: v for f in dataclasses.fields(sampler) if (v := getattr(sampler, f.name)) != getattr(default, f.name)
    }


def picture(contents: Contents, device: torch.device) -> bytes:
    """PNG of images that the shown export draws from seed 0, one row per class. Loads, and so checks, all exports."""
    tokenizer = contents.folders[TOKENIZER]
    models = {
        n: RDPM.from_pretrained(f, tokenizer, device=device) for n, f in contents.folders.items() if n != TOKENIZER
    }
    labels = labels_shown(contents.cards[GENERATOR])
    images = models[contents.shown].sample(labels, seed=0, **settings_shown(contents.sampler))
    cells = np.pad(images, ((0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    rows = [np.concatenate(list(row), axis=1) for row in cells.reshape(-1, PER_CLASS, *cells.shape[1:])]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)[:-_GAP, :-_GAP]).save(buffer, "PNG")
    return buffer.getvalue()


def public_card(card: ModelCard) -> ModelCard:
    """The card without folders of this machine: of a path among the training's settings, its last part."""
    return dataclasses.replace(card, training=_last_parts(card.training))


def _last_parts(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _last_parts(inside) for name, inside in value.items()}
    return posixpath.basename(value) if isinstance(value, str) and "/" in value else value
