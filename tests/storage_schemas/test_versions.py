"""Records of every version: the first one is read, and a newer one is refused with a sentence."""

import copy
import json
from pathlib import Path

import pytest

from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.cards import SCHEMA_VERSION, GeneratorOrigin, ModelCard, TokenizerOrigin
from rdpm.storage_schemas.manifest import STORE_ID, manifest_from_json, plan_from_json, plan_to_json
from rdpm.storage_schemas.samples import SAMPLER_VERSION, SampleIdentity, current_sampler
from rdpm.storage_schemas.sweep import SweepRow
from rdpm.storage_schemas.tokens import TokenIdentity


@pytest.fixture(scope="module")
def v1(repository) -> Path:
    """What the first release left on disk."""
    return repository / "tests" / "fixtures" / "v1"


@pytest.fixture(scope="module")
def expected(v1) -> dict:
    """Ids and digests that the first release computed."""
    return json.loads((v1 / "expected.json").read_text())


@pytest.fixture(scope="module")
def cards(v1) -> dict[str, dict]:
    return {kind: json.loads((v1 / kind / "card.json").read_text()) for kind in ("tokenizer", "generator")}


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_a_card_of_version_1_keeps_its_digest(cards, expected, kind):
    card = ModelCard.from_json(cards[kind])
    assert (card.kind, card.schema_version, card.steps) == (kind, 1, 20)
    assert card.digest == expected["digests"][kind]
    assert card.classes == ("0", "1", "2")
    assert isinstance(card.made_from, TokenizerOrigin if kind == "tokenizer" else GeneratorOrigin)
    assert json.loads(canonical_json(card.to_json())) == cards[kind]


def test_a_generator_of_version_1_names_its_tokenizer_and_stores(cards, expected):
    origin = ModelCard.from_json(cards["generator"]).made_from
    assert origin.tokenizer_digest == expected["digests"]["tokenizer"]
    assert origin.stores == (expected["stores"]["store"]["store_id"],)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0, "1", None, True])
def test_a_card_of_an_unknown_version_is_refused_by_number(cards, version):
    with pytest.raises(ValueError, match=f"the card has schema version {version}, .* 1 to {SCHEMA_VERSION}; update"):
        ModelCard.from_json({**cards["tokenizer"], "schema_version": version})


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_what_is_no_card_is_refused_in_one_sentence(cards, kind):
    good = cards[kind]
    others = [{k: v for k, v in good.items() if k != name} for name in good]
    others += [{**good, name: 1.5} for name in good] + [{**good, "stranger": 1}]
    for name in good["made_from"]:
        other = copy.deepcopy(good)
        del other["made_from"][name]
        others += [other, {**good, "made_from": {**good["made_from"], name: 1.5}}]
    others += [[], {}, None, {**good, "kind": []}, {**good, "kind": "vocoder"}, {**good, "made_from": []}]
    for other in others:
        with pytest.raises(ValueError, match="the card") as refusal:
            ModelCard.from_json(other)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["store", "samples", "samples-argmax"])
def test_a_store_of_version_1_keeps_its_identity_and_the_bytes_of_its_plan(v1, expected, name):
    data = json.loads((v1 / name / "manifest.json").read_text())
    assert data.pop(STORE_ID) == expected["stores"][name]["store_id"]
    manifest = manifest_from_json(data)
    assert manifest.store_id == expected["stores"][name]["store_id"]
    assert manifest.plan.rows == expected["stores"][name]["rows"]
    assert list(manifest.rejected) == expected["stores"][name]["rejected"]
    assert manifest.plan.schema_version == 1
    assert canonical_json(plan_to_json(manifest.plan)) == (v1 / name / "plan.json").read_bytes()


def test_the_identity_of_a_token_store_of_version_1_is_read_by_attribute(v1, expected):
    identity = plan_from_json(json.loads((v1 / "store" / "plan.json").read_text())).tokens
    assert isinstance(identity, TokenIdentity)
    assert identity.tokenizer_digest == expected["digests"]["tokenizer"]
    assert (identity.classes, identity.views) == (("0", "1", "2"), ("center", "flip"))
    assert (identity.codebook_size, identity.code_dim) == (16, 4)
    assert identity.device is None


def test_the_sampler_of_a_sample_store_of_version_1_is_in_its_current_form(v1):
    """In version 1 the temperature multiplied the logits, and null meant the argmax."""
    identities = [
        plan_from_json(json.loads((v1 / name / "plan.json").read_text())).samples
        for name in ("samples", "samples-argmax")
    ]
    assert all(isinstance(identity, SampleIdentity) for identity in identities)
    assert [identity.sampler["temperature"] for identity in identities] == [0.5, 0.0]
    assert all(identity.sampler["version"] == SAMPLER_VERSION for identity in identities)
    assert [(identity.compile, identity.attention, identity.device) for identity in identities] == [
        (False, None, None)
    ] * 2


def test_current_sampler_settings_are_not_changed():
    settings = {"temperature": 2.0, "version": SAMPLER_VERSION}
    assert current_sampler(settings) == settings
    assert current_sampler({"guidance": 1.0})["temperature"] == 1.0


def test_rows_of_a_sweep_are_read_from_any_release():
    """The first release called metrics measures, and its temperature multiplied the logits."""
    row = SweepRow("a", "runs/g", {"temperature": 0.5, "version": SAMPLER_VERSION}, {"fid": 3.0}, ("x against y",))
    facts = {"name": "a", "generator": "runs/g", "pareto": ["x against y"]}
    assert SweepRow.from_json({**facts, "sampler": row.sampler, "metrics": row.metrics}) == row
    assert SweepRow.from_json({**facts, "sampler": {"temperature": 2.0}, "measures": {"fid": 3}}) == row
    for other in ({}, [], {**facts, "sampler": {}}, {**facts, "sampler": {}, "metrics": {"fid": "low"}}):
        with pytest.raises(ValueError, match="the row of the sweep"):
            SweepRow.from_json(other)
