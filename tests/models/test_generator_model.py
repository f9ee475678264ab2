"""The generator f of Eq. 6, its size (Table 1) and its loss (Eq. 7)."""

import importlib.util
import math

import pytest
import torch

from rdpm.models.codebook import Codebook, QuantizerConfig
from rdpm.models.generator import Generator, GeneratorConfig, align, code_loss, current_parts, step_embedding


def make_inputs(b=4):
    """eps_t, y, t, z'_{t-1} for the small generator."""
    noise, accumulated = torch.randn(2, b, 8, 4, 4)
    return noise, torch.arange(b) % 5, 1 + torch.arange(b) % 4, accumulated


@pytest.mark.parametrize(("depth", "millions"), [(12, 133), (16, 310), (20, 602)])
def test_parameter_counts_are_those_of_table_1(depth, millions):
    with torch.device("meta"):
        model = Generator(GeneratorConfig(depth=depth))
    count = sum(weight.numel() for weight in model.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize(("depth", "hidden"), [(2, 344), (3, 512), (12, 2048), (16, 2736), (20, 3416)])
def test_the_hidden_width_is_the_next_multiple_of_8(depth, hidden):
    with torch.device("meta"):
        block = Generator(GeneratorConfig(depth=depth)).transformer.blocks[0]
    assert block.down.in_features == block.gate_up.out_features / 2 == hidden


def test_the_token_space_defaults_to_the_papers():
    config = GeneratorConfig()
    assert (config.num_classes, config.num_steps, config.codebook_size) == (1000, 10, 4096)
    assert (config.code_dim, config.grid) == (32, 16)


def test_logits_are_float32_at_every_position(generator):
    logits = generator(*make_inputs())
    assert logits.shape == (4, 4, 4, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = generator(*make_inputs())
    assert logits.dtype == low.dtype == torch.float32
    assert low.isfinite().all()


def test_bf16_logits_are_near_those_of_float32(generator):
    inputs = make_inputs()
    logits = generator(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = generator(*inputs)
    assert not torch.equal(low, logits)
    assert (low - logits).norm() < 0.05 * logits.norm()


def test_the_residual_stream_has_the_type_of_the_products(generator):
    kept = []
    for block in generator.transformer.blocks:
        block.register_forward_hook(lambda _, inputs, output: kept.append((*inputs[:2], output)))
    generator(*make_inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        generator(*make_inputs())
    assert [[tensor.dtype for tensor in of_block] for of_block in kept] == [[torch.float32] * 3] * 2 + [
        [torch.bfloat16] * 3
    ] * 2


def test_an_untrained_generator_gives_all_codes_equal_probability():
    model = Generator(GeneratorConfig(depth=2, num_classes=5, num_steps=4, codebook_size=64, code_dim=8, grid=4))
    loss = code_loss(model(*make_inputs()), torch.randint(64, (4, 4, 4)))
    torch.testing.assert_close(loss, torch.full((4,), math.log(64)))


@pytest.mark.parametrize("scale", [0.05, 0.5, 5.0])
def test_a_training_starts_with_all_codes_equally_likely(scale):
    """At the paper's K and d, for codes of any scale. The first gradient moves the last norm."""
    model = Generator(GeneratorConfig(depth=1, grid=4))
    align(model.head, scale * torch.randn(4096, 32))
    noise, accumulated = torch.randn(2, 4, 32, 4, 4)
    labels = torch.arange(4)
    loss = code_loss(model(noise, labels, labels + 1, accumulated), torch.randint(4096, (4, 4, 4)))
    torch.testing.assert_close(loss, torch.full((4,), math.log(4096)))
    loss.mean().backward()
    gradient = model.transformer.adaln.bias.grad.view(-1, model.transformer.width)
    assert gradient[-2:].all(dim=1).all()


@pytest.mark.parametrize("scale", [0.05, 0.5, 5.0])
def test_an_aligned_head_finds_the_nearest_code_of_a_latent(generator, scale):
    """In some orthonormal directions of its input, the head's logits are v . c_k - |c_k|^2 / 2, up to a constant and a
    factor, whose choice makes the logits of random inputs equally wide for codes of every scale."""
    codebook = Codebook(QuantizerConfig(64, 8))
    codebook.vectors.data.mul_(2 * scale)
    align(generator.head, codebook.vectors)
    vectors, head = codebook.vectors.detach(), generator.head.weight.detach()
    features = torch.cat([vectors, -vectors.square().sum(1, keepdim=True) / 2], dim=1)
    features -= features.mean(0)
    directions = torch.linalg.lstsq(features, head).solution
    torch.testing.assert_close(features @ directions, head, atol=1e-4, rtol=0)
    factor = directions.square().sum(1).mean()
    torch.testing.assert_close(directions @ directions.T, factor * torch.eye(9), atol=1e-3 * factor, rtol=0)
    latents = scale * torch.randn(1, 8, 10, 20)
    points = latents[0].flatten(1).T
    inputs = torch.cat([points, torch.ones(200, 1)], dim=1) @ directions
    assert (generator.head(inputs).argmax(1) == codebook.nearest(latents).flatten()).float().mean() > 0.99
    logits = generator.head(torch.randn(10_000, 128))
    torch.testing.assert_close(logits.var(dim=1, correction=0).mean().sqrt(), torch.tensor(3.0), atol=0.1, rtol=0)


@pytest.mark.parametrize("which", range(4), ids=["noise", "label", "step", "accumulated"])
def test_each_input_changes_its_own_image_and_no_other(generator, which):
    inputs = list(make_inputs())
    before = generator(*inputs)
    changed = inputs[which].clone()
    changed[1] = changed[1] + 1
    inputs[which] = changed
    moved = (generator(*inputs) - before).abs().amax((1, 2, 3))
    assert moved[1] > 1e-3
    assert torch.cat([moved[:1], moved[2:]]).max() < 1e-5


def test_noise_and_accumulated_latents_are_not_interchangeable(generator):
    noise, labels, steps, accumulated = make_inputs()
    swapped = generator(accumulated, labels, steps, noise)
    assert not torch.allclose(swapped, generator(noise, labels, steps, accumulated), atol=1e-2)


def test_the_null_label_is_one_past_the_classes(generator):
    assert generator.null_label == 5
    assert generator.label_embedding.num_embeddings == 6
    noise, labels, steps, accumulated = make_inputs()
    empty = generator(noise, torch.full_like(labels, generator.null_label), steps, accumulated)
    for label in range(5):
        one = generator(noise, torch.full_like(labels, label), steps, accumulated)
        assert not torch.allclose(one, empty, atol=1e-3)


def test_rows_and_columns_are_not_swapped(generator):
    """A change at one position changes the logits there most, because the transformer's skip path is local."""
    noise, labels, steps, accumulated = make_inputs(1)
    before = generator(noise, labels, steps, accumulated)
    noise[:, :, 1, 3] += 3
    moved = (generator(noise, labels, steps, accumulated) - before).abs().sum(-1)[0]
    assert moved.argmax() == 1 * 4 + 3


def test_parameters_of_every_release_have_current_names(generator):
    """Version 1 called the embedding of labels `labels`, and the MLP on the step `steps`."""
    current = set(generator.state_dict())
    old = {name.replace("label_embedding.", "labels.").replace("step_mlp.", "steps.") for name in current}
    assert len(old - current) == 5
    assert set(current_parts(old)) == current
    assert current_parts(current) == {name: [name] for name in current}


def test_separate_modulations_of_former_releases_are_put_together(generator):
    """Before version 3 every block had a layer of its own, and the last norm one of two vectors."""
    width, depth = generator.transformer.width, 12
    names = [f"transformer.blocks.{i}.modulation" for i in range(depth)] + ["transformer.modulation"]
    whole = torch.randn((6 * depth + 2) * width, 3)
    saved = dict(zip([f"{name}.weight" for name in names], whole.split(6 * width), strict=True))
    parts = current_parts(sorted(saved))  # files keep names in alphabetical order: 0, 1, 10, 11, 2, ...
    assert list(parts) == ["transformer.adaln.weight"]
    assert torch.equal(torch.cat([saved[part] for part in parts["transformer.adaln.weight"]]), whole)


def test_modulations_computed_once_give_the_same_logits(generator):
    noise, labels, steps, accumulated = make_inputs()
    modulations = generator.modulations(labels, steps)
    expected = generator(noise, labels, steps, accumulated)
    assert torch.equal(generator.from_modulations(noise, accumulated, modulations), expected)
    vectors = generator.label_embedding(labels)
    assert torch.equal(generator.modulations(vectors, steps), modulations)


@pytest.mark.parametrize("size", [8, 256])
def test_every_step_has_its_own_embedding(size):
    embedding = step_embedding(torch.arange(1, 101), size)
    assert embedding.shape == (100, size)
    torch.testing.assert_close(embedding.square().sum(1), torch.full((100,), size / 2))
    distance = torch.cdist(embedding, embedding) + 10 * torch.eye(100)
    assert distance.min() > 0.1
    torch.testing.assert_close(embedding[:, 0], torch.cos(torch.arange(1.0, 101.0)), atol=1e-5, rtol=0)


def test_the_loss_is_equation_7():
    logits, codes = torch.randn(2, 3, 2, 7).double() * 3, torch.randint(7, (2, 3, 2))
    expected = []
    for i in range(2):
        total = 0.0
        for row in range(3):
            for column in range(2):
                z = logits[i, row, column]
                total += math.log(z.exp()[codes[i, row, column]] / z.exp().sum())
        expected.append(-total / 6)
    torch.testing.assert_close(code_loss(logits, codes), torch.tensor(expected).double())


def test_recomputing_changes_neither_logits_nor_gradients(generator):
    recomputing = Generator(
        GeneratorConfig(
            depth=2,
            num_classes=5,
            num_steps=4,
            codebook_size=64,
            code_dim=8,
            grid=4,
            attention="sdpa",
            activation_checkpointing=True,
        )
    )
    recomputing.load_state_dict(generator.state_dict())
    inputs, codes = make_inputs(), torch.randint(64, (4, 4, 4))
    results = []
    for model in (generator, recomputing):
        loss = code_loss(model.train()(*inputs), codes)
        loss.mean().backward()
        results.append([loss.detach(), *(weight.grad for weight in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_every_weight_gets_a_gradient(generator):
    code_loss(generator(*make_inputs(5)), torch.randint(64, (5, 4, 4))).mean().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in generator.parameters())


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"codebook_size": 1}, "codebook_size is 1;"),
        ({"hidden": -8}, "hidden is -8"),
        ({"codebook_size": 65537}, "codebook_size is 65537;"),
        ({"attention": "xformers"}, "'xformers'"),
    ],
    ids=str,
)
def test_an_impossible_config_is_refused_with_its_value(unchecked, options, value):
    with pytest.raises(ValueError, match=value):
        GeneratorConfig(**options)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_a_missing_kernel_is_refused_when_the_config_is_created():
    with pytest.raises(ValueError, match="flash-attn is not installed"):
        GeneratorConfig(attention="flash_attn")
