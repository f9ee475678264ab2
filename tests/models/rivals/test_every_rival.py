"""What all rivals have in common: they learn, draw functions of weights, seeds and labels, and cost what RDPM costs."""

from dataclasses import replace

import pytest
import torch

from rdpm.models.flops import generator_forward_flops, generator_parameters
from rdpm.models.generator import Generator, GeneratorConfig
from rdpm.models.methods import RIVALS, evaluations_of, learns_codes, new_generator
from rdpm.models.noise import child_seeds
from rdpm.models.sampler import SamplerConfig, step_settings

CPU = torch.device("cpu")
every_rival = pytest.mark.parametrize("method", RIVALS)


def settings_for(rival, count, *configs):
    """Settings of every forward pass for so many images."""
    configs = configs or (SamplerConfig(guidance=0.5),) * count
    return step_settings(configs, evaluations_of(rival.config, 0), CPU)


@every_rival
def test_the_loss_falls_on_a_small_set(method, make_rival, make_quantizer, make_rows):
    rival, quantizer = make_rival(method), make_quantizer(method)
    rival.start_from(quantizer)
    rows = make_rows(quantizer, 16, method)
    optimizer = torch.optim.Adam(rival.parameters(), lr=5e-3)
    losses = []
    for step in range(60):
        given = rival.given(quantizer, replace(rows, seeds=rows.seeds + step))
        assert given.steps.min() >= 1
        assert given.steps.max() <= rival.config.num_steps
        loss = rival.loss(*given.arguments)
        assert loss.shape == (16,)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(float(loss.detach().mean()))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@every_rival
def test_an_image_is_a_function_of_weights_seed_and_label(method, make_rival, make_quantizer, randomize):
    rival, codebook = randomize(make_rival(method)).eval(), randomize(make_quantizer(method)).codebook
    labels, seeds = torch.tensor([0, 1, 2, 0]), child_seeds(0, torch.arange(4))
    with torch.no_grad():
        drawn, again = (rival.draw(codebook, labels, seeds, settings_for(rival, 4)) for _ in range(2))
        assert torch.equal(drawn.latents, again.latents)
        order = torch.tensor([3, 1, 0, 2])
        moved = rival.draw(codebook, labels[order], seeds[order], settings_for(rival, 4))
        torch.testing.assert_close(moved.latents, drawn.latents[order])
        for change in ({"seeds": seeds.roll(1)}, {"labels": labels.roll(1)}):
            other = rival.draw(
                codebook, **({"labels": labels, "seeds": seeds} | change), settings=settings_for(rival, 4)
            )
            assert not torch.allclose(other.latents, drawn.latents)
    assert drawn.latents.shape == (4, 4, 4, 4)
    assert (drawn.codes is None) == (not learns_codes(rival.config))
    if drawn.codes is not None:
        assert drawn.codes.shape == (4, rival.config.num_steps, 4, 4)
        torch.testing.assert_close(codebook.accumulated(drawn.codes, drawn.codes.shape[1]), drawn.latents)


@every_rival
def test_guidance_of_one_image_leaves_its_neighbours_alone(method, make_rival, make_quantizer, randomize):
    rival, codebook = randomize(make_rival(method)).eval(), make_quantizer(method).codebook
    labels, seeds = torch.tensor([0, 1]), child_seeds(0, torch.arange(2))
    weak, strong = SamplerConfig(guidance=0.5), SamplerConfig(guidance=30.0)
    with torch.no_grad():
        first = rival.draw(codebook, labels, seeds, settings_for(rival, 2, weak, weak)).latents
        second = rival.draw(codebook, labels, seeds, settings_for(rival, 2, weak, strong)).latents
    torch.testing.assert_close(first[0], second[0])
    assert not torch.allclose(first[1], second[1])


@every_rival
def test_what_is_given_to_a_row_is_a_function_of_its_seed(method, make_rival, make_quantizer, make_rows):
    rival, quantizer = make_rival(method), make_quantizer(method)
    rows = make_rows(quantizer, 6, method)
    whole = rival.given(quantizer, rows)
    part = replace(rows, **{n: None if v is None else v[4:] for n, v in vars(rows).items()})
    for all_rows, last in zip(whole.arguments, rival.given(quantizer, part).arguments, strict=True):
        torch.testing.assert_close(all_rows[4:], last)


@every_rival
def test_an_example_is_like_what_the_loss_is_given(method, make_rival, make_quantizer, make_rows):
    rival, quantizer = make_rival(method), make_quantizer(method)
    given = rival.given(quantizer, make_rows(quantizer, 5, method)).arguments
    assert [(a.shape, a.dtype) for a in rival.example(5)] == [(a.shape, a.dtype) for a in given]


@every_rival
def test_parameters_are_within_two_percent_of_rdpms(method):
    """Where few codes come from a codebook four times as large, which makes up for the embedding of steps."""
    rdpm = GeneratorConfig(depth=3, grid=4, code_dim=6, num_classes=10, codebook_size=128)
    codes = {"num_steps": 4 if method == "scales" else 1, "codebook_size": 512} if method != "flow" else {}
    config = replace(rdpm, method=method, **codes)
    assert generator_parameters(config) == pytest.approx(generator_parameters(rdpm), rel=0.02)


def test_flops_are_those_of_the_positions():
    rdpm = GeneratorConfig(depth=2, grid=4, code_dim=6, codebook_size=64, num_classes=2)
    one = {name: replace(rdpm, method=name, num_steps=1) for name in ("maskgit", "raster")}
    flow, scales = replace(rdpm, method="flow"), replace(rdpm, method="scales", num_steps=4)
    flops = {name: generator_forward_flops(config) for name, config in one.items()}
    base = generator_forward_flops(rdpm)
    assert generator_forward_flops(flow) < base  # its head is small
    assert max(flops.values()) < base  # they have no embedding of t
    assert 1.5 * base < generator_forward_flops(scales) < 3 * base  # 1 + 4 + 16 + 16 positions instead of 16


def test_rdpm_is_one_of_the_methods():
    config = GeneratorConfig(depth=1, num_steps=3, codebook_size=16, code_dim=4, grid=4)
    assert isinstance(new_generator(config), Generator)
    assert learns_codes(config)
    assert evaluations_of(config, 0) == evaluations_of(config, 3) == 3
    with pytest.raises(ValueError, match="evaluations is 5; method rdpm takes 3, one per step"):
        evaluations_of(config, 5)


@pytest.mark.parametrize(
    ("method", "steps", "asked", "found"), [("flow", 10, 50, 50), ("flow", 10, 0, 10), ("maskgit", 1, 4, 4)]
)
def test_evaluations_may_be_chosen(method, steps, asked, found):
    config = GeneratorConfig(depth=1, num_steps=steps, codebook_size=16, code_dim=4, grid=4, method=method)
    assert evaluations_of(config, asked) == found


@pytest.mark.parametrize(("method", "steps", "asked"), [("maskgit", 1, 17), ("raster", 1, 10), ("scales", 3, 10)])
def test_evaluations_that_a_method_cannot_do_are_refused(method, steps, asked):
    config = GeneratorConfig(depth=1, num_steps=steps, codebook_size=16, code_dim=4, grid=4, method=method)
    with pytest.raises(ValueError, match=f"evaluations is {asked}; "):
        evaluations_of(config, asked)


def test_codes_of_several_steps_are_refused_by_rivals_of_one(unchecked):
    for method in ("maskgit", "raster"):
        with pytest.raises(ValueError, match="learns codes of 1 step"):
            new_generator(GeneratorConfig(depth=1, num_steps=3, grid=4, method=method))


def test_flash_attention_has_no_masks(monkeypatch):
    monkeypatch.setattr("rdpm.models.generator.check_backend", lambda backend: None)
    with pytest.raises(ValueError, match="flash_attn, which has no masks"):
        GeneratorConfig(method="raster", attention="flash_attn")
    assert GeneratorConfig(method="maskgit", attention="flash_attn").attention == "flash_attn"
