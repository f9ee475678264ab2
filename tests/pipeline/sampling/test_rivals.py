"""Sets of samples of rivals: stores like RDPM's, drawn by the same workers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rdpm import RDPM
from rdpm.models.methods import new_generator
from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.evaluation.splits import load_samples
from rdpm.pipeline.exports.card import read_card, read_pair
from rdpm.pipeline.exports.weights import save_export
from rdpm.pipeline.inference.rivals import RivalSampler, load_sampler
from rdpm.pipeline.sampling.plan import labels_and_seeds, sample_plan
from rdpm.storage_schemas.cards import GeneratorOrigin


@pytest.fixture(scope="module")
def flow(tmp_path_factory, exports) -> str:
    """A folder with a flow generator of two classes and its tokenizer."""
    folder = str(tmp_path_factory.mktemp("flow"))
    card = exports.tokenizer(f"{folder}/tokenizer")
    config = replace(exports.generator_config, method="flow")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {n: v + 0.1 * torch.randn_like(v) for n, v in new_generator(config).state_dict().items()}
    origin = GeneratorOrigin(card.digest, (), card.classes)
    save_export(f"{folder}/generator", "generator", config, weights, origin, {}, 1)
    return folder


PLAIN = SamplerConfig()


def test_samples_are_the_same_in_any_shard_size_and_order(flow, config_of, draw_here, tmp_path):
    first = draw_here(config_of(flow, str(tmp_path / "a"), sampler=PLAIN, evaluations=3))
    second = draw_here(config_of(flow, str(tmp_path / "b"), sampler=PLAIN, evaluations=3, shard_rows=12), -1)
    assert np.array_equal(first.read_all("images"), second.read_all("images"))
    assert set(first.specs) == {"images", "label", "seed"}  # there are no codes
    with pytest.raises(ValueError, match="hold no codes, because latents were drawn"):
        load_samples(first.url, read_card(f"{flow}/tokenizer", "tokenizer"), 1)
    assert len(np.unique(first.read_all("images"), axis=0)) > 20


def test_a_set_holds_what_the_sampler_draws_with_so_many_evaluations(flow, config_of, draw_here, tmp_path):
    config = config_of(flow, str(tmp_path / "out"), sampler=SamplerConfig(guidance=2.0), evaluations=3)
    store = draw_here(config)
    labels, seeds = labels_and_seeds(np.arange(30), 15, (0, 1), 3)
    paths, same = (f"{flow}/generator", f"{flow}/tokenizer"), {}
    for evaluations in (3, 4):
        model = load_sampler(*paths, batch=4, device="cpu", evaluations=evaluations)
        assert isinstance(model, RivalSampler)
        drawn = model.draw(labels.astype(np.int64), seeds.view(np.int64), [config.sampler] * 30)
        assert drawn.codes.shape == (30, 0, 4, 4)
        same[evaluations] = np.array_equal(drawn.images, store.read_all("images"))
    assert same == {3: True, 4: False}
    assert store.manifest.plan.samples.sampler["evaluations"] == 3


def test_plans_of_rdpms_samples_say_nothing_of_evaluations(run, config_of):
    config = config_of(run, "out")
    plan = sample_plan(config, *read_pair(config.generator, config.tokenizer), "cpu")
    assert "evaluations" not in plan.samples.sampler
    assert "codes" in [spec.name for spec in plan.arrays]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sampler": SamplerConfig(temperature=0.5)}, "draws latents, which have no temperature"),
        ({"sampler": SamplerConfig(top_k=3)}, "draws latents, which have no temperature"),
        (
            {"sampler": PLAIN, "precision": "bf16"},
            "precision is bf16 and compile is false; method flow is drawn in fp32",
        ),
        ({"sampler": PLAIN, "compile": True}, "compile is true; method flow is drawn in fp32"),
    ],
)
def test_settings_that_flow_does_not_have_are_refused(flow, config_of, settings, named):
    config = config_of(flow, "out", **settings)
    with pytest.raises(ValueError, match=named):
        sample_plan(config, *read_pair(config.generator, config.tokenizer), "cpu")


def test_rdpm_has_no_other_evaluations_than_its_steps(run, config_of):
    config = config_of(run, "out", evaluations=7)
    with pytest.raises(ValueError, match="evaluations is 7; method rdpm takes 3, one per step"):
        sample_plan(config, *read_pair(config.generator, config.tokenizer), "cpu")


def test_the_python_interface_is_rdpms_alone(flow):
    with pytest.raises(ValueError, match="is a generator of method flow, from which only rdpm sample draws"):
        RDPM.from_pretrained(flow)
