"""The Python API: draws that stand alone, codes there and back, and edits that keep what they should."""

import re

import numpy as np
import pytest
import torch

from rdpm.models.generator import Generator
from rdpm.models.sampler import SamplerConfig
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.inference.rdpm import RDPM

LABELS = [0, 1, 1, 0, 1]


def awakened(module: torch.nn.Module) -> torch.nn.Module:
    """Noise on every weight, so that what starts at zero takes part."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return module.eval().requires_grad_(False)


def build(exports, **how) -> RDPM:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return RDPM(awakened(Generator(exports.generator_config)), awakened(Tokenizer(exports.tokenizer_config)), **how)


@pytest.fixture(scope="module")
def model(exports) -> RDPM:
    """3 steps of 4 x 4 codes out of 16, 8 x 8 grey images of 2 classes, 4 images at once."""
    return build(exports, batch=4)


@pytest.fixture(scope="module")
def images(digits) -> np.ndarray:
    """Five real digits, (5, 8, 8, 3)."""
    return np.repeat(digits[0][:5, :, :, None], 3, axis=3)


@pytest.fixture
def drawn(model, monkeypatch) -> list:
    """What every draw of the model returned, codes included."""
    results, draw = [], model.draw
    monkeypatch.setattr(model, "draw", lambda *args, **kwargs: results.append(draw(*args, **kwargs)) or results[-1])
    return results


def test_an_image_does_not_depend_on_how_many_are_asked_for(model):
    whole = model.sample(LABELS, seed=5, guidance=1.5)
    assert whole.shape == (5, 8, 8, 3)
    assert whole.dtype == np.uint8
    assert np.array_equal(model.sample(LABELS[:1], seed=5, guidance=1.5), whole[:1])
    assert np.array_equal(model.sample(LABELS[:3], seed=5, guidance=1.5), whole[:3])
    assert not np.array_equal(model.sample(LABELS, seed=6, guidance=1.5), whole)


def test_each_image_can_have_its_own_seed_and_settings(model):
    settings = {"guidance": [0.0, 2.0, 2.0, 1.0, 0.5], "temperature": [1.0, 0, 0.5, 1.0, 0], "ramp": "constant"}
    together = model.sample(LABELS, seed=[4, 4, 9, 9, 4], **settings)
    for i, seed in enumerate([4, 4, 9, 9, 4]):
        own = {name: values[i] if isinstance(values, list) else values for name, values in settings.items()}
        assert np.array_equal(model.sample([LABELS[i]], seed=seed, **own)[0], together[i])


def test_between_batch_shapes_99_of_100_images_are_equal(exports):
    labels = [i % 2 for i in range(200)]
    first, *others = (build(exports, batch=size).sample(labels, seed=1, guidance=1.0) for size in (16, 5, 64))
    for other in others:
        assert (first == other).all(axis=(1, 2, 3)).mean() >= 0.99


def test_codes_come_back_from_images_and_images_from_codes(model, images, drawn):
    codes = model.encode(images, seed=2)
    assert codes.shape == (5, 3, 4, 4)
    assert np.array_equal(model.encode(images[..., :1], seed=2), codes)
    assert np.array_equal(model.encode(images[:1], seed=2), codes[:1])
    assert np.array_equal(model.sample(LABELS, seed=2), model.decode(drawn[-1].codes))


def test_a_callback_sees_every_step_of_every_image_and_ends_at_the_result(model):
    seen = {}
    images = model.sample(
        LABELS, callback=lambda t, rows, shown: seen.update({(t, row): shown[row - rows.start] for row in rows})
    )
    assert set(seen) == {(t, row) for t in (1, 2, 3) for row in range(5)}
    assert all(np.array_equal(seen[3, row], images[row]) for row in range(5))
    assert any(not np.array_equal(seen[1, row], images[row]) for row in range(5))


def test_inpainting_holds_the_codes_outside_the_mask_and_draws_the_rest(model, images, drawn):
    mask = np.zeros((5, 8, 8), bool)
    mask[:, 3, 5] = True  # one pixel: the whole cell of 2 x 2 that it lies in
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
    ends = [model.sample([label] * 5, seed=2, guidance=2.0) for label in (0, 1)]
    blends = [model.blend([0] * 5, [1] * 5, weight, seed=2, guidance=2.0) for weight in (0.0, 1.0, [0.5] * 5)]
    assert np.array_equal(blends[0], ends[0])
    assert np.array_equal(blends[1], ends[1])
    assert not np.array_equal(ends[0], ends[1])
    assert not any(np.array_equal(blends[2], end) for end in ends)


def test_bf16_is_near_fp32(exports, images):
    fp32, bf16 = (build(exports, batch=4, precision=precision) for precision in ("fp32", "bf16"))
    codes = fp32.encode(images)
    assert np.array_equal(bf16.encode(images), codes)  # encoding keeps to the store's precision
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
        (lambda m, x: m.sample([0, 1], guidance=[1.0]), r"1 values of guidance do not go with 2 images"),
        (lambda m, x: m.sample([0, 1], seed=[1]), r"1 seeds do not go with 2 images"),
        (lambda m, x: m.encode(x[:, :4]), r"images are uint8 \(5, 4, 8, 3\); give uint8 \(N, 8, 8, 1 or 3\)"),
        (lambda m, x: m.encode(x / 255), r"images are float64"),
        (lambda m, x: m.decode(np.full((1, 3, 4, 4), 16)), r"give integers below 16 as \('N', 3, 4, 4\)"),
        (lambda m, x: m.decode(np.zeros((1, 2, 4, 4), int)), r"codes are int64 \(1, 2, 4, 4\)"),
        (
            lambda m, x: m.inpaint(x, np.zeros((5, 4, 4), bool), LABELS),
            r"mask is bool \(5, 4, 4\); give bool \(5, 8, 8\)",
        ),
        (lambda m, x: m.vary(x, LABELS, 4), r"step is 4; use 0 .* to 3"),
        (lambda m, x: m.vary(x, [0], 1), r"1 labels do not go with 5 images"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(model, images, ask, sentence):
    with pytest.raises(ValueError, match=sentence):
        ask(model, images)


@pytest.fixture
def run(tmp_path, exports) -> str:
    """A folder with a generator and its tokenizer."""
    exports.generator(f"{tmp_path}/generator", exports.tokenizer(f"{tmp_path}/tokenizer"))
    return str(tmp_path)


def test_exports_are_found_together_or_given_apart(run):
    together = RDPM.from_pretrained(run, batch=2).sample([0, 1])
    apart = RDPM.from_pretrained(f"{run}/generator", tokenizer=f"{run}/tokenizer", batch=2).sample([0, 1])
    assert np.array_equal(together, apart)


def test_a_foreign_or_missing_tokenizer_is_refused_by_name(run, exports):
    with pytest.raises(ValueError, match=r"generator' is a single export; give tokenizer="):
        RDPM.from_pretrained(f"{run}/generator")
    with pytest.raises(ValueError, match=r"nowhere/generator' has no card\.json"):
        RDPM.from_pretrained(f"{run}/nowhere")
    foreign = exports.tokenizer(f"{run}/foreign", seed=1)
    with pytest.raises(ValueError, match=rf"trained on codes of tokenizer .* is {foreign.digest[:12]}; give"):
        RDPM.from_pretrained(f"{run}/generator", tokenizer=f"{run}/foreign")


def test_the_readmes_example_runs(repository, tmp_path, exports, monkeypatch):
    exports.generator(f"{tmp_path}/runs/demo/generator", exports.tokenizer(f"{tmp_path}/runs/demo/tokenizer"))
    (block,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.S)
    assert "RDPM.from_pretrained" in block
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["images"].shape == (3, 8, 8, 3)
    assert np.array_equal(names["reconstructed"], names["model"].decode(names["codes"]))
