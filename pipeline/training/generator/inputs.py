"""Open the token stores that a generator is trained on, and check that they fit the model and each other."""

from dataclasses import dataclass

from rdpm.models.generator import GeneratorConfig
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
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

    @property
    def ids(self) -> list[str]:
        """Identities of the stores to train on."""
        return [store.id for store in self.train]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the same in all stores."""
        return self.train[0].manifest.plan.tokens.classes


def open_stores(config: TrainGeneratorConfig) -> TrainingStores:
    """Open the config's stores. Raises ValueError unless they fit the tokenizer, the model and each other."""
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
    return TrainingStores(stores[: len(config.stores)], stores[len(config.stores) :], card)


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
    for name, value in space.items():
        if getattr(model, name) != value:
            raise ValueError(
                f"model.{name} is {getattr(model, name)}, but store {store.url} has {value}; set it to {value}"
            )
