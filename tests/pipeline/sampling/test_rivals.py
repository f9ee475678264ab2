"""Sets of samples of rivals: stores like RDPM's, drawn by the same workers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rdpm import RDPM
from rdpm.models.matching import boxes
from rdpm.models.methods import new_generator
from rdpm.models.noise import child_seeds
from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.evaluation.splits import load_samples
from rdpm.pipeline.exports.card import read_card, read_pair
from rdpm.pipeline.exports.weights import save_export
from rdpm.pipeline.inference.rivals import RivalSampler, load_sampler
from rdpm.pipeline.sampling.calibration import CalibrateConfig
from rdpm.pipeline.sampling.calibration import run as calibrate
from rdpm.pipeline.sampling.plan import labels_and_seeds, sample_plan
from rdpm.storage_schemas.cards import GeneratorOrigin, ModelCard
from rdpm.storage_schemas.tokens import token_arrays


@pytest.fixture(scope="module")
def flow(tmp_path_factory, exports) -> str:
    """A folder with a flow generator of two classes and its tokenizer."""
    folder = str(tmp_path_factory.mktemp("flow"))
    card = exports.tokenizer(f"{folder}/tokenizer")
    save_flow(exports, f"{folder}/generator", card)
    return folder


def save_flow(exports, folder: str, tokenizer: ModelCard) -> None:
    config = replace(exports.generator_config, method="flow")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {n: v + 0.1 * torch.randn_like(v) for n, v in new_generator(config).state_dict().items()}
    origin = GeneratorOrigin(tokenizer.digest, (), tokenizer.classes)
    save_export(folder, "generator", config, weights, origin, {}, 1)


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


def test_a_rival_is_matched_to_the_latents_of_a_store(tmp_path, exports, stores):
    """Flow matching on a continuous tokenizer, whose decoder gets the stored latents themselves."""
    paths = {name: str(tmp_path / name) for name in ("tokenizer", "generator", "store", "out")}
    card = exports.tokenizer(paths["tokenizer"], continuous=True)
    save_flow(exports, paths["generator"], card)
    plan = stores.plan(rows=200, shard_rows=100, chunk_rows=50, **exports.identity(card))

    class Finite(type(stores)):
        def columns(self, plan, shard):
            latents = np.random.default_rng(shard).normal(size=(100, 4, 4, 4)).astype(np.float16)
            return super().columns(plan, shard) | {"latents": latents}

    store = Finite().build(paths["store"], plan)
    settings = {"sampler": SamplerConfig(guidance=0.5), "evaluations": 3, "batch": 20}
    calibrate(CalibrateConfig(**paths, **settings, per_class=100, boxes=2, threads=1))

    plain, matched = (
        load_sampler(paths[name], paths["tokenizer"], batch=20, device="cpu", evaluations=3)
        for name in ("generator", "out")
    )
    matching, labels = matched.rival.matching, torch.arange(2).repeat_interleave(100)
    drawing = labels.numpy(), child_seeds(0, torch.arange(200)).numpy(), [settings["sampler"]] * 200
    latents = torch.from_numpy(plain.latents(*drawing))
    moved = matching(latents, matching.table[labels])
    real, kinds = torch.from_numpy(store.read_all("latents")).float(), store.read_all("label")
    for label in (0, 1):
        means = [boxes(values, 2).mean(0) for values in (moved[labels == label], real[kinds == label])]
        assert torch.allclose(*means, atol=2e-3)
    assert np.array_equal(matched.latents(*drawing), latents)
    images = matched.draw(*drawing).images
    assert np.array_equal(images[..., :1], matched.codec.decode_latents(moved.numpy()))
    assert not np.array_equal(images, plain.draw(*drawing).images)


def test_a_rival_is_not_matched_for_what_it_does_not_draw(flow, tmp_path, exports, stores):
    card = read_card(f"{flow}/tokenizer", "tokenizer")
    stores.build(f"{tmp_path}/store", stores.plan(**exports.identity(card)))
    config = CalibrateConfig(f"{flow}/generator", f"{flow}/tokenizer", f"{tmp_path}/store", f"{tmp_path}/out")
    with pytest.raises(ValueError, match="draws latents, which have no temperature"):
        calibrate(replace(config, sampler=SamplerConfig(temperature=0.5)))
    exports.generator(f"{tmp_path}/generator", card)
    with pytest.raises(ValueError, match="evaluations is 7; method rdpm takes 3"):
        calibrate(replace(config, generator=f"{tmp_path}/generator", evaluations=7))
    paths = {name: f"{tmp_path}/continuous/{name}" for name in ("generator", "tokenizer", "store", "out")}
    card = exports.tokenizer(paths["tokenizer"], continuous=True)
    save_flow(exports, paths["generator"], card)
    plan = stores.plan(**exports.identity(card))
    stores.build(paths["store"], replace(plan, arrays=token_arrays(3, (4, 4, 4), False, False)))
    with pytest.raises(ValueError, match="has no latents, which the decoder gets; make one with latents: true"):
        calibrate(CalibrateConfig(**paths))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "continuous" / "out").exists()


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
