"""The token stores that a generator is trained on: opened, checked against the model and each other, and streamed."""

from dataclasses import dataclass

from rdpm.models.generator import GeneratorConfig
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.pipeline.stream.token_stream import TokenStream
from rdpm.pipeline.training.first_weights import init_card
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.fine_tuning import require_init_fits
from rdpm.storage_schemas.cards import ModelCard
from rdpm.storage_schemas.tokens import KIND


@dataclass(frozen=True)
class TrainingStores:
    """Token stores of one tokenizer and of the same classes."""

    train: list[Store]
    """Stores to train on."""
    held_out: list[Store]
    """Stores to validate on."""
    tokenizer: ModelCard
    """Card of the tokenizer that made the stores."""
    init: ModelCard | None
    """Card of the generator whose weights the training starts from; None for new weights."""

    @property
    def ids(self) -> list[str]:
        """Identities of the stores to train on."""
        return [store.id for store in self.train]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the same in all stores."""
        return self.train[0].manifest.plan.tokens.classes


@dataclass(frozen=True)
class TrainingStreams:
    """The rows of the stores, in the order of the training."""

    train: TokenStream
    """Rows to train on."""
    held_out: TokenStream | None
    """Rows to validate on; None for no validation."""

    def fill(self, position: int) -> None:
        """Fill this node's cache with what a training needs that starts at a position of the stream."""
        self.train.fill(position)
        if self.held_out:
            self.held_out.fill()


def open_streams(config: TrainGeneratorConfig, stores: TrainingStores) -> TrainingStreams:
    """The streams of the stores. Raises ValueError for stores without usable rows, and weights that do not fit."""
    fresh = config.noise == "fresh"
    train = TokenStream(stores.train, seed=config.seed, latents=fresh, weights=config.weights, config=config.stream)
    held_out = None
    if stores.held_out:
        held_out = TokenStream(stores.held_out, seed=config.seed, latents=fresh, config=config.stream)
    return TrainingStreams(train, held_out)


def open_stores(config: TrainGeneratorConfig) -> TrainingStores:
    """Open the config's stores. Raises ValueError unless they fit the tokenizer, the model and each other.

    And unless the export to start from fits the model.
    """
    init = init_card(config.init, "generator")
    if init:
        require_init_fits(config, init)
    card = read_card(config.tokenizer, "tokenizer")
    stores = [open_store(url, KIND) for url in (*config.stores, *config.validation)]
    for store in stores:
        identity = store.manifest.plan.tokens
        if identity.tokenizer_digest != card.digest:
            raise ValueError(
                f"store {store.url} was made by tokenizer {identity.tokenizer_digest[:12]}, but {config.tokenizer} is "
                f"{card.digest[:12]}; tokenize again or name the store's own tokenizer"
            )
        if config.noise == "fresh" and "latents" not in store.specs:
            raise ValueError(f"store {store.url} holds no latents; tokenize with latents=true or use noise=stored")
        _check_space(config.model, store)
        if identity.classes != stores[0].manifest.plan.tokens.classes:
            raise ValueError(
                f"store {store.url} has other classes than {stores[0].url}; use stores with the same classes"
            )
    return TrainingStores(stores[: len(config.stores)], stores[len(config.stores) :], card, init)


def _check_space(model: GeneratorConfig, store: Store) -> None:
    """Raise ValueError unless the generator's token space is the store's."""
    identity = store.manifest.plan.tokens
    T, h, _ = store.specs["codes"].row_shape
    space = {
        "num_steps": T,
        "grid": h,
        "codebook_size": identity.codebook_size,
        "code_dim": identity.code_dim,
        "num_classes": len(identity.classes),
    }
    growing = identity.tokenizer_config["quantizer"].get("growing", False)
    if growing != (model.method == "scales"):
        raise ValueError(
            f"model.method is {model.method}, but the maps of store {store.url} {'' if growing else 'do not '}grow; "
            "method scales, and no other, needs a tokenizer with quantizer.growing"
        )
    for name, value in space.items():
        if getattr(model, name) != value:
            raise ValueError(
                f"model.{name} is {getattr(model, name)}, but store {store.url} has {value}; set it to {value}"
            )
