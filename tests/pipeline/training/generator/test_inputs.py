"""Token stores that do not fit the training, or each other, are refused by name."""

from dataclasses import replace

import pytest

from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.inputs import open_stores
from rdpm.storage_schemas.tokens import token_arrays


@pytest.fixture
def config(tmp_path, exports):
    """A config of a generator of two classes, on stores below tmp_path."""

    def config(*stores: str, validation: tuple[str, ...] = (), **settings) -> TrainGeneratorConfig:
        paths = {"stores": stores, "validation": validation}
        return TrainGeneratorConfig(
            **{name: tuple(f"{tmp_path}/{store}" for store in names) for name, names in paths.items()},
            **{"tokenizer": str(tmp_path / "tokenizer"), "model": exports.generator_config, **settings},
            out="o",
            batch=8,
            micro_batch=8,
            steps=1,
        )

    return config


@pytest.fixture
def card(tmp_path, exports):
    """The card of a tokenizer below tmp_path."""
    return exports.tokenizer(str(tmp_path / "tokenizer"))


def test_stores_are_opened_with_their_ids_classes_and_tokenizer(tmp_path, exports, stores, card, config) -> None:
    built = [
        stores.build(str(tmp_path / name), stores.plan(seed=seed, **exports.identity(card)))
        for seed, name in enumerate(("first", "second", "held-out"))
    ]
    opened = open_stores(config("first", "second", validation=("held-out",)))
    assert opened.ids == [store.id for store in built[:2]]
    assert [store.id for store in opened.held_out] == [built[2].id]
    assert opened.classes == exports.identity(card).get("classes", stores.CLASSES)
    assert opened.tokenizer == card


def test_stores_of_other_classes_are_refused(tmp_path, exports, stores, card, config) -> None:
    for classes in (("zero", "one"), ("seven", "nine")):
        stores.build(str(tmp_path / classes[0]), stores.plan(classes=classes, **exports.identity(card)))
    for settings in (config("zero", "seven"), config("zero", validation=("seven",))):
        with pytest.raises(ValueError, match=r"seven has other classes than .*zero"):
            open_stores(settings)


def test_fresh_noise_over_a_store_without_latents_is_refused(tmp_path, exports, stores, card, config) -> None:
    plan = stores.plan(**exports.identity(card))
    arrays = token_arrays(3, (4, 4, 4), with_accumulated=True, with_latents=False)
    stores.build(str(tmp_path / "store"), replace(plan, arrays=arrays))
    with pytest.raises(ValueError, match=r"store holds no latents; tokenize with latents=true or use noise=stored"):
        open_stores(config("store", noise="fresh"))


def test_a_store_of_another_tokenizer_is_refused_by_both_digests(tmp_path, exports, stores, card, config) -> None:
    other = exports.tokenizer(str(tmp_path / "other"), seed=1)
    stores.build(str(tmp_path / "store"), stores.plan(**exports.identity(other)))
    with pytest.raises(ValueError, match=f"by tokenizer {other.digest[:12]}, but .* is {card.digest[:12]}"):
        open_stores(config("store"))


@pytest.mark.parametrize(
    ("name", "value"), [("num_steps", 4), ("grid", 8), ("codebook_size", 32), ("code_dim", 8), ("num_classes", 3)]
)
def test_a_model_of_another_token_space_is_refused(tmp_path, exports, stores, card, config, name, value) -> None:
    stores.build(str(tmp_path / "store"), stores.plan(**exports.identity(card)))
    right = getattr(exports.generator_config, name)
    model = replace(exports.generator_config, **{name: value})
    with pytest.raises(ValueError, match=rf"model\.{name} is {value}, but .* has {right}; set it to {right}"):
        open_stores(config("store", model=model))
