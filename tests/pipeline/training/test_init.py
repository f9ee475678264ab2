"""Fine-tuning: trainings that start from the weights of an export."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rdpm.models.generator import Generator, GeneratorConfig
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.exports.weights import load_tokenizer, save_export
from rdpm.pipeline.foundation import files
from rdpm.pipeline.training.generator.fine_tuning import first_state, init_sentence
from rdpm.pipeline.training.generator.stage import run as train_generator
from rdpm.pipeline.training.generator.step import PREFIX, GeneratorLoss
from rdpm.pipeline.training.tokenizer.stage import run as train_tokenizer
from rdpm.pipeline.training.tokenizer.step import first_state as first_tokenizer_state
from rdpm.storage_schemas.cards import GeneratorOrigin, ModelCard, TokenizerOrigin
from tests.pipeline.training.trainings import config, train

STAY = ["steps=1", "checkpoint_every=1", "optimizer.lr=0"]  # one step that changes no weight
STAGES = [*(pytest.param(stage, marks=pytest.mark.long) for stage in (0, 1, 2)), 3]
OTHER_CLASSES = ("one", "three", "zero")


@pytest.fixture(scope="module")
def given(tmp_path_factory, exports, stores, digit_folder) -> Path:
    """A folder with images/, a trained tokenizer/ and first/ (a generator of two classes), and a store/ of three."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "images").symlink_to(digit_folder)
    card = exports.tokenizer(str(folder / "tokenizer"))
    exports.generator(str(folder / "first"), card, seed=1)
    plan = stores.plan(rows=21, classes=OTHER_CLASSES, **exports.identity(card))
    stores.build(str(folder / "store"), plan)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def generator_config(folder: Path, out: Path, *options: str):
    return config("generator", folder, out, f"init={folder}/first", "model.num_classes=3", *options)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_generator_keeps_its_weights_and_the_embeddings_of_its_classes(two_ranks, given, tmp_path, stage) -> None:
    """The same first weights on two ranks under every ZeRO stage as in one process."""
    options = [f"init={given}/first", "model.num_classes=3", *STAY, f"engine.zero_stage={stage}"]
    two_ranks.run(train, "generator", given, tmp_path, *options)
    before, after = weights(given / "first"), weights(tmp_path)
    labels, old = after.pop("label_embedding.weight"), before.pop("label_embedding.weight")
    assert torch.equal(labels[[0, 2, 3]], old[[1, 0, 2]])  # one, zero and no class
    settings = generator_config(given, tmp_path)
    alone = first_state(settings, GeneratorLoss(settings.model), OTHER_CLASSES)
    assert torch.equal(labels, alone[f"weight/{PREFIX}label_embedding.weight"])
    assert not any(torch.equal(labels[1], row) for row in old)
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_tokenizer_keeps_its_weights(two_ranks, given, tmp_path, stage) -> None:
    options = [f"init={given}/tokenizer", "model.quantizer.update=gradient", *STAY, f"engine.zero_stage={stage}"]
    two_ranks.run(train, "tokenizer", given, tmp_path, *options)
    before, after = weights(given / "tokenizer"), weights(tmp_path)
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_moving_averages_of_a_codebook_go_with_it(exports, tmp_path) -> None:
    settings = replace(exports.tokenizer_config, quantizer=replace(exports.tokenizer_config.quantizer, update="ema"))
    export = str(tmp_path / "ema")
    save_export(export, "tokenizer", settings, Tokenizer(settings).state_dict(), TokenizerOrigin("s", ("a",)), {}, 1)
    state = first_tokenizer_state(export, Tokenizer(settings))
    trained = load_tokenizer(export)[0].quantizer.codebook
    for name in ("vectors", "ema_counts", "ema_sums"):
        assert torch.equal(state[f"buffer/quantizer.codebook.{name}"], getattr(trained, name))


def test_what_a_model_knows_of_its_tokenizer_is_of_the_new_one(exports, given, tmp_path) -> None:
    """Buffers are facts about the tokenizer; what was learned beside them is taken over."""
    settings = replace(exports.generator_config, preconditioned=True)
    new, old = Tokenizer(exports.tokenizer_config).quantizer, load_tokenizer(str(given / "tokenizer"))[0].quantizer
    trained = Generator(settings)
    trained.start_from(old)
    trained.preconditioning.log_factor.data.fill_(0.25)
    origin = GeneratorOrigin("t0", (), ("zero", "one"))
    save_export(str(tmp_path / "old"), "generator", settings, trained.state_dict(), origin, {}, 1)
    loss = GeneratorLoss(settings)
    loss.generator.start_from(new)
    options = [f"init={tmp_path}/old", "model.preconditioned=true"]
    state = first_state(config("generator", given, tmp_path / "out", *options), loss, ("zero", "one"))
    features = loss.generator.preconditioning.features
    assert torch.equal(state[f"buffer/{PREFIX}preconditioning.features"], features)
    assert not torch.equal(trained.preconditioning.features, features)
    assert (state[f"weight/{PREFIX}preconditioning.log_factor"] == 0.25).all()


@pytest.mark.slow
def test_a_start_from_another_export_is_refused_and_a_copy_of_the_same_one_is_not(
    exports, given, tmp_path, capsys
) -> None:
    out = tmp_path / "out"
    train_generator(generator_config(given, out, *STAY))
    said = " ".join(capsys.readouterr().out.split())
    digest = read_card(str(given / "first"), "generator").digest
    assert f"starts from generator {digest[:12]}" in said
    assert (
        "2 classes ('one', 'zero') keep the label embedding of the same name; 1 class ('three') gets a new one" in said
    )
    card = read_card(str(out), "generator")
    assert card.training["init"] == digest
    assert files.read_json(f"{out}.record.json")["inputs"]["init"] == digest
    exports.generator(str(tmp_path / "other"), read_card(str(given / "tokenizer"), "tokenizer"), seed=2)
    moved = shutil.copytree(given / "first", tmp_path / "moved")
    for init, refused in ((tmp_path / "other", True), ("", True), (moved, False)):
        settings = replace(generator_config(given, out, *STAY), init=str(init))
        if refused:
            with pytest.raises(ValueError, match=r"was made with other settings \(init "):
                train_generator(settings)
        else:
            train_generator(settings)
    assert read_card(str(out), "generator") == card


def test_a_checkpoint_of_another_start_is_refused(exports, given, tmp_path) -> None:
    options = ["model.num_classes=3", "checkpoint_every=1"]
    train(None, "generator", given, tmp_path / "out", f"init={given}/first", *options, "steps=1")
    exports.generator(str(tmp_path / "other"), read_card(str(given / "tokenizer"), "tokenizer"), seed=2)
    with pytest.raises(ValueError, match="belongs to another training"):
        train(None, "generator", given, tmp_path / "out", f"init={tmp_path}/other", *options, "steps=2")
    train(None, "generator", given, tmp_path / "out", f"init={given}/first", *options, "steps=2")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("model.depth=2", r"model.depth 1 -> 2\); give the model the export's settings, or leave init out"),
        ("model.hidden=8", r"model.hidden 176 -> 8\)"),
        ("model.preconditioned=true", r"model.preconditioned False -> True\)"),
        ("init=nowhere", "has no card.json, so it is no trained generator"),
    ],
)
def test_a_generator_that_does_not_fit_is_refused_before_anything_is_made(given, tmp_path, option, said) -> None:
    with pytest.raises(ValueError, match=said):
        train_generator(generator_config(given, tmp_path / "out", option))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["model.autoencoder.channels=16"], r"model.autoencoder.channels 8 -> 16\)"),
        ([], r"model.quantizer.update 'gradient' -> 'ema'\)"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused_before_anything_is_made(given, tmp_path, options, said) -> None:
    with pytest.raises(ValueError, match=said):
        train_tokenizer(config("tokenizer", given, tmp_path / "out", f"init={given}/tokenizer", *options))
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_and_an_init_at_once_are_refused(given) -> None:
    with pytest.raises(ValueError, match="encoder and init are both given"):
        config("tokenizer", given, Path("out"), f"init={given}/tokenizer", f"encoder={given}/tokenizer")


def test_the_sentence_says_whose_codes_are_learned(given, tmp_path) -> None:
    settings = replace(generator_config(given, tmp_path / "out"), init="first")
    own = read_card(str(given / "tokenizer"), "tokenizer")
    first = read_card(str(given / "first"), "generator")

    def said(tokenizer: ModelCard) -> str:
        return init_sentence(settings, first, ("four",), tokenizer)

    assert said(own).endswith("1 class ('four') gets a new one; the empty label is kept; 2 of its classes are left out")
    tuned = replace(own, training={"init": own.digest}, weights_digest="x")
    assert said(tuned).endswith("which was tuned from that")
    assert said(replace(tuned, training={})).endswith("which is another one")


def test_images_may_have_another_size(given, exports, tmp_path) -> None:
    """No weight of either model depends on it."""
    smaller = GeneratorConfig(**{**vars(exports.generator_config), "grid": 2})
    options = [f"init={given}/first", "model.grid=2", "model.num_classes=2"]
    state = first_state(config("generator", given, tmp_path / "out", *options), GeneratorLoss(smaller), ("zero", "one"))
    fitted = GeneratorLoss(smaller)
    fitted.load_state_dict({name.split("/", 1)[1]: value for name, value in state.items()})
    assert torch.equal(fitted.generator.head.weight, weights(given / "first")["head.weight"])
