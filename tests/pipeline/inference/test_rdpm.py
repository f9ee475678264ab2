"""The Python API: sampling, codes and back, edits, refusals, and loading."""

import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from rdpm.models.generator import Generator
from rdpm.models.sampler import SamplerConfig
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.exports.card import generator_config, read_card
from rdpm.pipeline.inference.rdpm import RDPM

LABELS = [0, 1, 1, 0, 1]


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    """The module with noise added to every weight, so that weights which start at zero have an effect."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return module.eval().requires_grad_(False)


def build(exports, **settings) -> RDPM:
    """The same two random models every time, on the CPU."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        generator = randomized(Generator(exports.generator_config))
        return RDPM(generator, randomized(Tokenizer(exports.tokenizer_config)), **{"device": "cpu", **settings})


@pytest.fixture(scope="module")
def model(exports) -> RDPM:
    """3 steps of 4 x 4 codes out of 16, 8 x 8 grey images of 2 classes, 4 images per call."""
    return build(exports, batch=4)


@pytest.fixture(scope="module")
def images(digits) -> np.ndarray:
    """Five real digits, (5, 8, 8, 3)."""
    return np.repeat(digits[0][:5, :, :, None], 3, axis=3)


@pytest.fixture
def drawn(model, monkeypatch) -> list:
    """Everything that the model draws in this test, with its codes."""
    results, draw = [], model.draw
    monkeypatch.setattr(model, "draw", lambda *args, **kwargs: results.append(draw(*args, **kwargs)) or results[-1])
    return results


def test_an_image_does_not_depend_on_the_number_of_images(model):
    images = model.sample(LABELS, seed=5, guidance=1.5)
    assert images.shape == (5, 8, 8, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(model.sample(LABELS[:1], seed=5, guidance=1.5), images[:1])
    assert np.array_equal(model.sample(LABELS[:3], seed=5, guidance=1.5), images[:3])
    assert not np.array_equal(model.sample(LABELS, seed=6, guidance=1.5), images)


def test_each_image_can_have_its_own_seed_and_settings(model):
    settings = {"guidance": [0.0, 2.0, 2.0, 1.0, 0.5], "temperature": [1.0, 0.0, 0.5, 1.0, 0.0], "ramp": "constant"}
    together = model.sample(LABELS, seed=[4, 4, 9, 9, 4], **settings)
    for i, seed in enumerate([4, 4, 9, 9, 4]):
        alone = {name: values[i] if isinstance(values, list) else values for name, values in settings.items()}
        assert np.array_equal(model.sample([LABELS[i]], seed=seed, **alone)[0], together[i])


def test_seeds_and_settings_may_be_numpys(model):
    plain = model.sample(LABELS, seed=[4, 5, 6, 7, 8], temperature=0.5)
    assert np.array_equal(model.sample(LABELS, seed=np.arange(4, 9), temperature=np.float64(0.5)), plain)
    assert np.array_equal(model.sample(LABELS, seed=np.int64(4)), model.sample(LABELS, seed=4))


@pytest.mark.slow
def test_99_of_100_images_are_equal_for_different_batches(exports):
    labels = [i % 2 for i in range(200)]
    first, *others = (build(exports, batch=size).sample(labels, seed=1, guidance=1.0) for size in (16, 5, 64))
    for other in others:
        assert (first == other).all(axis=(1, 2, 3)).mean() >= 0.99


def test_images_are_encoded_and_codes_are_decoded(model, images, drawn):
    codes = model.encode(images, seed=2)
    assert codes.shape == (5, 3, 4, 4)
    assert np.array_equal(model.encode(images[..., :1], seed=2), codes)
    assert np.array_equal(model.encode(images[:1], seed=2), codes[:1])
    assert np.array_equal(model.sample(LABELS, seed=2), model.decode(drawn[-1].codes))


def test_a_callback_gets_every_step_of_every_image_and_the_last_is_the_result(model):
    seen = {}
    images = model.sample(
        LABELS, callback=lambda t, rows, shown: seen.update({(t, row): shown[row - rows.start] for row in rows})
    )
    assert set(seen) == {(t, row) for t in (1, 2, 3) for row in range(5)}
    assert all(np.array_equal(seen[3, row], images[row]) for row in range(5))
    assert any(not np.array_equal(seen[1, row], images[row]) for row in range(5))


def test_inpainting_keeps_the_codes_outside_the_mask_and_draws_the_others(model, images, drawn):
    mask = np.zeros((5, 8, 8), bool)
    mask[:, 3, 5] = True  # one pixel masks its whole cell of 2 x 2 pixels
    mask[4] = True
    model.inpaint(images, mask, LABELS, seed=2)
    before, after = model.encode(images, seed=2), drawn[-1].codes
    kept = np.ones((4, 4), bool)
    kept[1, 2] = False
    assert np.array_equal(after[:4][..., kept], before[:4][..., kept])
    assert not np.array_equal(after[:4][..., ~kept], before[:4][..., ~kept])
    plain = model.sample(LABELS, seed=2)
    assert np.array_equal(model.inpaint(images, mask, LABELS, seed=2)[4], plain[4])


def test_variation_goes_from_plain_sampling_to_the_reconstruction(model, images, drawn):
    codes = model.encode(images, seed=2)
    assert np.array_equal(
        model.vary(images, LABELS, 0, seed=2, guidance=1.0), model.sample(LABELS, seed=2, guidance=1.0)
    )
    model.vary(images, LABELS, 2, seed=2)
    assert np.array_equal(drawn[-1].codes[:, :2], codes[:, :2])
    assert not np.array_equal(drawn[-1].codes[:, 2], codes[:, 2])
    assert np.array_equal(model.vary(images, LABELS, 3, seed=2), model.decode(codes))


def test_blending_goes_from_one_class_to_the_other(model):
    first, second = (model.sample([label] * 5, seed=2, guidance=2.0) for label in (0, 1))
    assert not np.array_equal(first, second)

    def blend(weight: float | list[float]) -> np.ndarray:
        return model.blend([0] * 5, [1] * 5, weight, seed=2, guidance=2.0)

    assert np.array_equal(blend(0.0), first)
    assert np.array_equal(blend(1.0), second)
    assert not any(np.array_equal(blend(0.5), end) for end in (first, second))
    mixed = blend([0.0, 1.0, 0.5, 1.0, 0.0])
    assert np.array_equal(mixed[[0, 4]], first[[0, 4]])
    assert np.array_equal(mixed[[1, 3]], second[[1, 3]])
    assert np.array_equal(mixed[2], blend(0.5)[2])


def test_bf16_is_near_fp32(exports, images):
    fp32, bf16 = (build(exports, batch=4, precision=precision) for precision in ("fp32", "bf16"))
    codes = fp32.encode(images)
    assert np.array_equal(bf16.encode(images), codes)  # images are encoded in fp32
    assert np.abs(fp32.decode(codes).astype(int) - bf16.decode(codes)).mean() < 3
    configs, seeds = [SamplerConfig(guidance=1.0)] * 40, np.arange(40)
    first, other = (model.draw(seeds % 2, seeds, configs).codes for model in (fp32, bf16))
    assert (first[:, 0] == other[:, 0]).mean() > 0.9
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda m, x: m.sample([0, 2]), r"label 2 is no class of this generator; use 0 to 1"),
        (lambda m, x: m.sample([-1]), r"label -1 is no class"),
        (lambda m, x: m.sample([0], temperature=-1.0), r"temperature is -1.0; use more than 0"),
        (lambda m, x: m.sample([0], guidances=1.0), r"sampler setting 'guidances' is unknown; use guidance, ramp"),
        (
            lambda m, x: m.sample([0, 1], guidance=[1.0]),
            r"guidance has 1 values and there are 2 images; give one value for all, or one per",
        ),
        (
            lambda m, x: m.sample([0, 1], seed=[1]),
            r"there are 1 seeds and 2 images; give one seed for all, or one per image",
        ),
        (lambda m, x: m.encode(x[:, :4]), r"images are uint8 \(5, 4, 8, 3\); give uint8 \(N, 8, 8, 1 or 3\)"),
        (lambda m, x: m.encode(x / 255), r"images are float64"),
        (lambda m, x: m.decode(np.full((1, 3, 4, 4), 16)), r"give integers below 16 as \('N', 3, 4, 4\)"),
        (lambda m, x: m.decode(np.zeros((1, 2, 4, 4), int)), r"codes are int64 \(1, 2, 4, 4\)"),
        (
            lambda m, x: m.inpaint(x, np.zeros((5, 4, 4), bool), LABELS),
            r"mask is bool \(5, 4, 4\); give bool \(5, 8, 8\)",
        ),
        (lambda m, x: m.vary(x, LABELS, 4), r"step is 4; use 0 .* to 3"),
        (lambda m, x: m.blend([0], [1, 0], 0.5), r"there are 2 labels and 1 images"),
        (lambda m, x: m.blend([0], [1], [0.5, 1]), r"there are 2 weights and 1 images; give one weight for all, or"),
        (lambda m, x: m.vary(x, [0], 1), r"there are 1 labels and 5 images; give one label per image"),
    ],
)
def test_an_impossible_request_is_refused_in_one_sentence(model, images, ask, sentence):
    with pytest.raises(ValueError, match=sentence):
        ask(model, images)


@pytest.fixture
def run(tmp_path, exports) -> str:
    """A folder with a generator and its tokenizer."""
    exports.generator(f"{tmp_path}/generator", exports.tokenizer(f"{tmp_path}/tokenizer"))
    return str(tmp_path)


def test_exports_are_loaded_from_one_folder_or_from_two(run):
    assert RDPM.from_pretrained(run).classes == ("zero", "one")
    together = RDPM.from_pretrained(run, batch=2).sample([0, 1])
    apart = RDPM.from_pretrained(f"{run}/generator", tokenizer=f"{run}/tokenizer", batch=2).sample([0, 1])
    assert np.array_equal(together, apart)


def test_of_a_folder_with_a_calibrated_generator_that_one_is_loaded(run, exports):
    exports.generator(f"{run}/calibrated", read_card(f"{run}/tokenizer", "tokenizer"), seed=5)
    exports_of = {name: (f"{run}/{name}", f"{run}/tokenizer") for name in ("calibrated", "generator")}
    models = [RDPM.from_pretrained(*paths) for paths in ((run,), *exports_of.values())]
    loaded, calibrated, plain = (model.generator.label_embedding.weight for model in models)
    assert torch.equal(loaded, calibrated)
    assert not torch.equal(loaded, plain)


def test_a_wrong_or_missing_tokenizer_is_refused_with_its_name(run, exports):
    with pytest.raises(ValueError, match=r"generator' is a single export; give tokenizer="):
        RDPM.from_pretrained(f"{run}/generator")
    with pytest.raises(ValueError, match=r"nowhere/generator' has no card\.json"):
        RDPM.from_pretrained(f"{run}/nowhere")
    other = exports.tokenizer(f"{run}/other", seed=1)
    with pytest.raises(ValueError, match=rf"trained on codes of tokenizer .* is {other.digest[:12]}; give"):
        RDPM.from_pretrained(f"{run}/generator", tokenizer=f"{run}/other")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")], ids=["name", "device"])
def test_models_run_on_the_device_that_is_asked_for(run, exports, device, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # so that the default would be the GPU
    for model in (build(exports, device=device), RDPM.from_pretrained(run, device=device)):
        assert model.device == model.codec.device == torch.device("cpu")
        assert {weight.device.type for weight in model.generator.parameters()} == {"cpu"}
        assert model.sample([0, 1]).shape == (2, 8, 8, 3)


def test_the_attention_kernel_is_chosen_when_models_are_loaded(run):
    """The images of both kernels differ by rounding at most, which these images show none of."""
    models = [RDPM.from_pretrained(run, attention=kernel, device="cpu") for kernel in ("sdpa", "math")]
    assert [model.generator.config.attention for model in models] == ["sdpa", "math"]
    labels = [i % 2 for i in range(100)]
    images, other = (model.sample(labels, guidance=1.0) for model in models)
    assert (images == other).all(axis=(1, 2, 3)).mean() >= 0.99


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_a_generator_trained_with_flash_attn_loads_where_that_is_not_installed(repository, tmp_path):
    """A card of version 1 names the kernel of the training; how a model runs is chosen anew here."""
    shutil.copytree(repository / "tests" / "fixtures" / "v1", tmp_path / "v1")
    folder = str(tmp_path / "v1")
    plain = RDPM.from_pretrained(folder, device="cpu").sample([0, 1, 2])
    path = tmp_path / "v1" / "generator" / "card.json"
    card = json.loads(path.read_text())
    assert (card["schema_version"], card["config"]["attention"]) == (1, "math")
    card["config"]["attention"] = "flash_attn"
    path.write_text(json.dumps(card))
    assert generator_config(read_card(f"{folder}/generator", "generator")).attention == "sdpa"
    assert np.array_equal(RDPM.from_pretrained(folder, device="cpu").sample([0, 1, 2]), plain)
    with pytest.raises(ValueError, match="attention is flash_attn but flash-attn is not installed"):
        RDPM.from_pretrained(folder, device="cpu", attention="flash_attn")
