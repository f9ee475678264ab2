"""Cards of exported models, and the configs in them."""

from dataclasses import replace

from rdpm.models.generator import GeneratorConfig
from rdpm.models.noise import NOISE_VERSION
from rdpm.models.tokenizer import TokenizerConfig
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import from_saved
from rdpm.storage_schemas.cards import CARD, GeneratorOrigin, ModelCard


def read_card(folder: str, kind: str) -> ModelCard:
    """The card of an exported model. Raises ValueError when it is missing, damaged or newer, or does not fit.

    It must be the card of a model of this kind, trained with this release's version of the noise.
    """
    path = files.join(folder, CARD)
    if not files.exists(path):
        raise ValueError(f"{folder!r} has no {CARD}, so it is no trained {kind}; train one, or give its folder")
    data = files.read_json(path)
    try:
        card = ModelCard.from_json(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if card.kind != kind:
        raise ValueError(f"{folder!r} holds a {card.kind}, not a {kind}; give the other folder")
    if card.noise_version != NOISE_VERSION:
        raise ValueError(
            f"{folder!r} was trained with noise version {card.noise_version}, not {NOISE_VERSION}; train it again"
        )
    return card


def tokenizer_config(card: ModelCard) -> TokenizerConfig:
    """The config of a tokenizer, from its card of any version."""
    return from_saved(TokenizerConfig, card.config)


def generator_config(card: ModelCard) -> GeneratorConfig:
    """The config of a generator, from its card of any version. Fields that only say how it runs have their defaults."""
    config = from_saved(GeneratorConfig, card.config)
    return config if "hidden" in card.config else replace(config, hidden=config.unaligned_hidden)


def generator_origin(card: ModelCard) -> GeneratorOrigin:
    """What a generator was trained on."""
    assert isinstance(card.made_from, GeneratorOrigin)
    return card.made_from


def pair_at(path: str, tokenizer: str | None = None) -> tuple[str, str]:
    """Where a generator and its tokenizer lie: in a folder or URL of a run, or at `path` if `tokenizer` says its own.

    Of a run's generators `calibrated/` is taken if it is there: the same one with matched latents. Raises ValueError
    for a single export without its tokenizer.
    """
    if tokenizer is not None:
        return path, tokenizer
    if files.exists(files.join(path, CARD)):
        raise ValueError(f"{path!r} is a single export; give tokenizer=... too, or the folder that holds both")
    calibrated = files.join(path, "calibrated")
    generator = calibrated if files.exists(files.join(calibrated, CARD)) else files.join(path, "generator")
    return generator, files.join(path, "tokenizer")


def read_pair(generator: str, tokenizer: str) -> tuple[ModelCard, ModelCard]:
    """The cards of both exports. Raises ValueError unless the generator was trained on codes of the tokenizer.

    Every class that it draws has a name then. Names are what strangers wrote: see `foundation.names`.
    """
    cards = read_card(generator, "generator"), read_card(tokenizer, "tokenizer")
    trained_on = generator_origin(cards[0]).tokenizer_digest
    if trained_on != cards[1].digest:
        raise ValueError(
            f"generator {generator} was trained on codes of tokenizer {trained_on[:12]}, but {tokenizer} "
            f"is {cards[1].digest[:12]}; give the tokenizer that it was trained with"
        )
    named, labels = len(cards[0].classes), generator_config(cards[0]).num_classes
    if named != labels:
        raise ValueError(f"{generator!r} draws {labels} classes, but its {CARD} names {named}; restore the {CARD}")
    return cards
