from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from rdpm.models.generator import Generator
from rdpm.models.noise import NOISE_VERSION
from rdpm.pipeline.exports.card import read_card, read_pair, tokenizer_config
from rdpm.pipeline.exports.weights import load_generator, load_tokenizer, save_export
from rdpm.pipeline.foundation import files
from rdpm.storage_schemas.cards import CARD, SCHEMA_VERSION, WEIGHTS, GeneratorOrigin, TokenizerOrigin


@pytest.fixture
def tokenizer(tmp_path, exports):
    """A tokenizer's folder and card."""
    folder = str(tmp_path / "tokenizer")
    return folder, exports.tokenizer(folder)


@pytest.fixture
def generator(tmp_path, exports, tokenizer):
    """A generator's folder and card."""
    folder = str(tmp_path / "generator")
    return folder, exports.generator(folder, tokenizer[1])


def edit_card(folder: str, **fields) -> None:
    card = files.read_json(files.join(folder, CARD))
    files.write_json(files.join(folder, CARD), {**card, **fields})


def test_a_tokenizer_is_read_back_unchanged(tokenizer, exports):
    folder, card = tokenizer
    model, found = load_tokenizer(folder)
    assert found == card
    assert model.config == exports.tokenizer_config
    images, seeds = torch.rand(2, 1, 8, 8) * 2 - 1, torch.tensor([1, 2])
    again, _ = load_tokenizer(folder)
    assert torch.equal(model.encode(images, seeds).codes, again.encode(images, seeds).codes)


def test_a_generator_is_read_back_unchanged(generator, exports):
    folder, card = generator
    model, found = load_generator(folder)
    assert found == card
    assert model.config == exports.generator_config


@pytest.mark.parametrize(("kind", "load"), [("tokenizer", load_tokenizer), ("generator", load_generator)])
def test_every_weight_is_read_back_bit_for_bit_ready_for_inference(kind, load, request, tmp_path):
    folder, card = request.getfixturevalue(kind)
    model, _ = load(folder)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    copy = str(tmp_path / "copy")
    saved = save_export(copy, kind, model.config, model.state_dict(), card.made_from, card.training, card.steps)
    assert saved == card  # so the same weights have the same digest
    assert files.read_bytes(files.join(copy, WEIGHTS)) == files.read_bytes(files.join(folder, WEIGHTS))


def test_other_weights_have_another_digest(tmp_path, exports):
    digests = {exports.tokenizer(str(tmp_path / str(seed)), seed).weights_digest for seed in range(3)}
    assert len(digests) == 3


def test_weights_of_any_precision_are_kept_in_float32(tokenizer, tmp_path):
    model, _ = load_tokenizer(tokenizer[0])
    halves = {name: weight.bfloat16() for name, weight in model.state_dict().items()}
    made_from = TokenizerOrigin("s0", ("zero", "one"))
    save_export(str(tmp_path / "half"), "tokenizer", model.config, halves, made_from, {}, 1)
    for name, weight in load_tokenizer(str(tmp_path / "half"))[0].state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, halves[name].float())


def test_a_flipped_byte_anywhere_in_the_weights_is_refused(tokenizer):
    folder, _ = tokenizer
    path = files.join(folder, WEIGHTS)
    good = files.read_bytes(path)
    for place in (0, 9, len(good) // 3, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[place] ^= 1
        files.write_bytes(path, bytes(bad))
        with pytest.raises(ValueError, match=folder):
            load_tokenizer(folder)
    files.write_bytes(path, good[:-1])
    with pytest.raises(ValueError, match=folder):
        load_tokenizer(folder)
    files.write_bytes(path, good)
    load_tokenizer(folder)


def test_missing_weights_are_refused_by_name(tokenizer):
    folder, _ = tokenizer
    files.remove(files.join(folder, WEIGHTS))
    with pytest.raises(ValueError, match=folder):
        load_tokenizer(folder)


def test_weights_without_a_card_are_no_export(tokenizer):
    """The card is written last, so a killed job leaves weights alone."""
    folder, _ = tokenizer
    files.remove(files.join(folder, CARD))
    with pytest.raises(ValueError, match=f"{folder}.* no {CARD}"):
        load_tokenizer(folder)


def test_the_wrong_kind_is_refused_by_both_kinds(tokenizer, generator):
    with pytest.raises(ValueError, match="holds a generator, not a tokenizer"):
        load_tokenizer(generator[0])
    with pytest.raises(ValueError, match="holds a tokenizer, not a generator"):
        load_generator(tokenizer[0])


def test_another_noise_version_is_refused_by_number(tokenizer):
    folder, _ = tokenizer
    edit_card(folder, noise_version=NOISE_VERSION + 1)
    with pytest.raises(ValueError, match=f"version {NOISE_VERSION + 1}, not {NOISE_VERSION}"):
        load_tokenizer(folder)
    with pytest.raises(ValueError, match=f"version {NOISE_VERSION + 1}"):
        read_card(folder, "tokenizer")


def test_a_card_of_an_unknown_schema_version_is_refused_by_number(tokenizer):
    folder, _ = tokenizer
    edit_card(folder, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(ValueError, match=rf"card\.json: .* version {SCHEMA_VERSION + 1}, .*; update rdpm"):
        load_tokenizer(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"3", b'{"schema_version": 2}', b'{"kind": "tokenizer"}'])
def test_what_is_no_card_is_refused_in_one_sentence(tokenizer, content):
    folder, _ = tokenizer
    files.write_bytes(files.join(folder, CARD), content)
    with pytest.raises(ValueError, match=r"card\.json") as refusal:
        read_card(folder, "tokenizer")
    assert "\n" not in str(refusal.value)


def test_a_setting_that_only_a_newer_release_has_is_refused_by_name(generator):
    """Without the setting, the weights would run in a different model from the one that was trained."""
    folder, card = generator
    edit_card(folder, config={**card.config, "rotary": True})
    with pytest.raises(ValueError, match="the key rotary, which this release does not know; update rdpm"):
        load_generator(folder)


def test_a_card_holds_only_what_decides_the_result(exports, tmp_path):
    folder = str(tmp_path / "export")
    config = replace(exports.generator_config, attention="math", activation_checkpointing=True)
    origin = GeneratorOrigin("t0", ("s0",), ("zero", "one"))
    weights = Generator(config).state_dict()
    card = save_export(folder, "generator", config, weights, origin, {}, 1)
    assert not {"attention", "activation_checkpointing"} & set(card.config)
    assert card.digest == save_export(folder, "generator", exports.generator_config, weights, origin, {}, 1).digest
    assert load_generator(folder)[0].config == exports.generator_config
    assert load_generator(folder, attention="math")[0].config == replace(exports.generator_config, attention="math")


def test_a_missing_setting_of_a_card_is_its_default(tokenizer, exports):
    folder, card = tokenizer
    quantizer = {name: value for name, value in card.config["quantizer"].items() if name != "dead_below"}
    edit_card(folder, config={**card.config, "quantizer": quantizer})
    assert tokenizer_config(read_card(folder, "tokenizer")) == exports.tokenizer_config


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_exports_of_version_1_load_with_every_weight(repository, kind):
    folder = str(repository / "tests" / "fixtures" / "v1" / kind)
    model, card = (load_tokenizer if kind == "tokenizer" else load_generator)(folder)
    stored = load_file(f"{folder}/{WEIGHTS}")
    assert card.schema_version == 1
    found, expected = (
        torch.cat([weight.flatten() for weight in weights.values()]).sort().values
        for weights in (model.state_dict(), stored)
    )
    assert torch.equal(found, expected)


def test_a_pair_belongs_together_or_is_refused_by_both_digests(tmp_path, exports, tokenizer, generator):
    assert read_pair(generator[0], tokenizer[0]) == (generator[1], tokenizer[1])
    other = exports.tokenizer(str(tmp_path / "other"), seed=1)
    with pytest.raises(ValueError, match=rf"{tokenizer[1].digest[:12]}, but .* is {other.digest[:12]}"):
        read_pair(generator[0], str(tmp_path / "other"))


def test_a_generator_whose_card_names_other_classes_than_it_draws_is_refused(tokenizer, generator):
    folder, card = generator
    for classes in ([], ["zero"], ["zero", "one", "two"]):
        edit_card(folder, made_from={**asdict(card.made_from), "classes": classes})
        with pytest.raises(ValueError, match=rf"generator' draws 2 classes, but its card\.json names {len(classes)}"):
            read_pair(folder, tokenizer[0])
