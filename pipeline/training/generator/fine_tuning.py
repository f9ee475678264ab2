"""First weights of a generator from an export: its own weights, and label embeddings by the names of the classes."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from rdpm.models.generator import GeneratorConfig
from rdpm.models.initial import normal
from rdpm.pipeline.exports.card import generator_config, generator_origin
from rdpm.pipeline.exports.weights import load_model
from rdpm.pipeline.training.first_weights import require_fit
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.step import PREFIX
from rdpm.storage_schemas.cards import CARD, ModelCard

_LABELS = "label_embedding.weight"
_FREE = ("num_classes", "grid")  # embeddings go by names, and no weight depends on the side of the maps
_SHOWN = 5  # classes named in a sentence


def require_init_fits(config: TrainGeneratorConfig, card: ModelCard) -> None:
    """Raise ValueError unless a generator with the weights of config.init, which has this card, can be trained so."""
    exported = generator_config(card)
    if len(card.classes) != exported.num_classes:
        raise ValueError(
            f"{config.init!r} draws {exported.num_classes} classes, but its {CARD} names {len(card.classes)}; restore "
            f"the {CARD}"
        )
    require_fit(config.init, _with_hidden_width(exported), _with_hidden_width(config.model), _FREE)


def _with_hidden_width(config: GeneratorConfig) -> GeneratorConfig:
    return replace(config, hidden=config.hidden_width)


def first_state(config: TrainGeneratorConfig, model: nn.Module, classes: tuple[str, ...]) -> dict[str, Tensor]:
    """The state of an engine that starts with the averaged weights of config.init.

    model: the loss to train, whose buffers stay as they are: they are facts about the tokenizer. classes: of this
    training. A class that the export knows by name keeps its label embedding, and so does the empty label; the others
    get new ones, drawn from the seed of the training alone.
    """
    with torch.random.fork_rng(devices=[]):
        trained, card = load_model(config.init)
        torch.manual_seed(config.seed)
        width = trained.label_embedding.embedding_dim
        labels = nn.Embedding(len(classes) + 1, width).apply(normal).weight.detach()
    weights = {name: weight.detach() for name, weight in trained.named_parameters()}
    known = {name: row for row, name in enumerate(card.classes)}
    for row, name in enumerate(classes):
        if name in known:
            labels[row] = weights[_LABELS][known[name]]
    labels[-1] = weights[_LABELS][-1]
    weights[_LABELS] = labels
    own = dict(model.named_parameters())
    buffers = {f"buffer/{name}": value for name, value in model.state_dict().items() if name not in own}
    return buffers | {f"weight/{PREFIX}{name}": weight for name, weight in weights.items()}


def init_sentence(config: TrainGeneratorConfig, card: ModelCard, classes: tuple[str, ...], tokenizer: ModelCard) -> str:
    """What the training starts from, in words. card: of config.init. classes, tokenizer: of this training."""
    kept = [name for name in classes if name in card.classes]
    new = [name for name in classes if name not in card.classes]
    parts = (
        [f"{_count(kept)} {'keeps' if len(kept) == 1 else 'keep'} the label embedding of the same name"] if kept else []
    )
    parts += [f"{_count(new)} {'gets' if len(new) == 1 else 'get'} a new one"] if new else []
    parts.append("the empty label is kept")
    left = len(card.classes) - len(kept)
    parts += [f"{left} of its classes {'is' if left == 1 else 'are'} left out"] if left else []
    trained_on = generator_origin(card).tokenizer_digest
    if trained_on != tokenizer.digest:
        tuned = tokenizer.training.get("init") == trained_on
        parts.append(
            f"it knew codes of tokenizer {trained_on[:12]}, and learns those of {tokenizer.digest[:12]}, "
            + ("which was tuned from that" if tuned else "which is another one")
        )
    return f"starts from generator {card.digest[:12]} ({config.init}): {'; '.join(parts)}"


def _count(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'} ({shown}{', ...' if len(names) > _SHOWN else ''})"
