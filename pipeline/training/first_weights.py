"""First weights from an export, for fine-tuning: which export it is, and whether it fits."""

from typing import Any

from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.foundation.config import identity_of
from rdpm.pipeline.foundation.records import first_change
from rdpm.storage_schemas.cards import ModelCard


def init_card(url: str, kind: str) -> ModelCard | None:
    """The card of the export to start from; None where there is none. Raises ValueError for what is no such export."""
    return read_card(url, kind) if url else None


def init_digest(card: ModelCard | None) -> dict[str, str]:
    """What identifies the export to start from, where there is one, in records, checkpoints and cards."""
    return {"init": card.digest} if card else {}


def require_fit(url: str, exported: Any, model: Any, free: tuple[str, ...]) -> None:
    """Raise ValueError unless a model has the settings of the export to start from, but for those in `free`."""
    old, new = ({k: v for k, v in identity_of(config).items() if k not in free} for config in (exported, model))
    change = first_change(old, new, "model")
    if change:
        raise ValueError(
            f"the weights of init={url!r} do not fit this training's model ({change}); give the model the export's "
            "settings, or leave init out"
        )
