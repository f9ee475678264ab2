"""The transformer: AdaLN-Zero, rotary positions, recomputation."""

import pytest
import torch
import torch.nn.functional as F

from rdpm.models.transformer import Block, Transformer, modulate, position_embedding, rotary_angles, rotate

DEPTH, GRID = 2, 4


def make_transformer(activation_checkpointing=False, depth=DEPTH, grid=GRID):
    return Transformer(depth, 168 * depth, grid, "sdpa", activation_checkpointing)


def make_inputs(b=3, depth=DEPTH, grid=GRID):
    return torch.randn(b, grid * grid, 64 * depth), torch.randn(b, 64 * depth)


def run(model, x, condition):
    """The transformer on a condition instead of modulations."""
    return model(x, model.modulations(condition))


def test_every_block_starts_as_the_identity():
    model = make_transformer(depth=3)
    x, condition = make_inputs(depth=3)
    modulations = model.modulations(condition).detach()
    assert modulations.shape == (3, 20, 192)
    for number, block in enumerate(model.blocks):
        assert torch.equal(block(x, modulations[:, 6 * number : 6 * number + 6], model.cos, model.sin), x)
    assert not model(x, modulations).any()
    modulations[:, -1] = 0  # the last scale
    torch.testing.assert_close(model(x, modulations), F.rms_norm(x + model.positions, (192,), eps=1e-6))


def test_a_block_with_random_weights_is_not_the_identity(randomize):
    model = randomize(make_transformer())
    x, condition = make_inputs()
    modulations = model.modulations(condition)[:, :6]
    out = model.blocks[0](x, modulations, model.cos, model.sin)
    assert not torch.allclose(out, x, atol=1e-2)
    assert not torch.allclose(out, model.blocks[0](x, -modulations, model.cos, model.sin), atol=1e-2)


def test_every_block_and_the_last_norm_have_modulations_of_their_own(randomize):
    """One product gives what a linear layer per block gives, and each part of it moves its own block."""
    model = randomize(make_transformer(depth=3))
    x, condition = make_inputs(depth=3)
    found = model.modulations(condition)
    parts = [6 * model.width] * 3 + [2 * model.width]
    for number, (weight, bias) in enumerate(
        zip(model.adaln.weight.split(parts), model.adaln.bias.split(parts), strict=True)
    ):
        alone = F.linear(F.silu(condition), weight, bias).unflatten(1, (-1, model.width))
        torch.testing.assert_close(found[:, 6 * number : 6 * number + 6], alone)
    heard = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[1]))
    model(x, found)
    assert torch.equal(torch.cat(heard, 1), found[:, :18])


def test_a_block_is_that_of_llama_with_adaln(randomize):
    """Against its formulas, per image and head: RMSNorm, RoPE as complex numbers, softmax, SwiGLU, gates."""
    width, heads, s = 128, 2, GRID * GRID
    block = randomize(Block(width, heads, 344, "sdpa")).double()
    angles = rotary_angles(GRID, 64).double()
    x, modulations = torch.randn(2, s, width).double(), 0.2 * torch.randn(2, 6, width).double()
    turn = torch.polar(torch.ones_like(angles), angles)
    for i, out in enumerate(block(x, modulations, angles.cos(), angles.sin())):
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations[i]
        h = x[i]
        y = h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale1) + shift1
        q, k, v = (y @ weight.T for weight in block.qkv.weight.chunk(3))
        mixed = []
        for head in (slice(0, 64), slice(64, 128)):
            turned = [torch.complex(part[:, head][:, :32], part[:, head][:, 32:]) * turn for part in (q, k)]
            scores = (turned[0] @ turned[1].conj().T).real / 8
            mixed.append(torch.softmax(scores, -1) @ v[:, head])
        h = h + gate1 * (torch.cat(mixed, -1) @ block.out.weight.T)
        y = h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale2) + shift2
        gate, up = (y @ weight.T for weight in block.gate_up.weight.chunk(2))
        h = h + gate2 * ((gate * gate.sigmoid() * up) @ block.down.weight.T)
        torch.testing.assert_close(out, h, atol=1e-6, rtol=1e-6)


def test_modulation_of_zero_is_a_plain_norm():
    x, zero = torch.randn(2, 5, 8) * 7, torch.zeros(2, 8)
    normed = modulate(x, zero, zero)
    torch.testing.assert_close(normed.square().mean(-1), torch.ones(2, 5), atol=1e-4, rtol=0)
    torch.testing.assert_close(modulate(x, zero + 3, zero + 1), 2 * normed + 3)


def rotated(vector, grid):
    """The vector at every position of the grid, rotated: (grid, grid, dim)."""
    angles = rotary_angles(grid, len(vector))
    at_every_position = vector.expand(1, 1, grid * grid, -1)
    return rotate(at_every_position, angles.cos(), angles.sin()).view(grid, grid, -1)


@pytest.mark.parametrize("dim", [8, 64])
def test_rotation_preserves_norms_and_leaves_the_first_position(dim):
    vector = torch.randn(dim)
    turned = rotated(vector, 6)
    torch.testing.assert_close(turned.norm(dim=-1), vector.norm().expand(6, 6))
    assert torch.equal(turned[0, 0], vector)


@pytest.mark.parametrize("dim", [8, 64])
def test_scores_depend_only_on_relative_rows_and_columns(dim):
    grid = 5
    q, k = rotated(torch.randn(dim), grid).double(), rotated(torch.randn(dim), grid).double()
    scores = torch.einsum("abd,xyd->abxy", q, k)
    for a, b, x, y in ((3, 2, 1, 4), (4, 4, 0, 0), (2, 3, 2, 1), (1, 1, 3, 1)):
        by_offset = [
            scores[a + i, b + j, x + i, y + j]
            for i in range(-4, 5)
            for j in range(-4, 5)
            if all(0 <= index < grid for index in (a + i, b + j, x + i, y + j))
        ]
        torch.testing.assert_close(torch.stack(by_offset), scores[a, b, x, y].expand(len(by_offset)), atol=1e-4, rtol=0)
    from_corner = scores[0, 0]
    distinct = (from_corner.view(-1, 1) - from_corner.view(1, -1)).abs() + torch.eye(grid * grid)
    assert distinct.min() > 1e-4


def test_rows_rotate_one_half_of_the_pairs_and_columns_the_other():
    angles = rotary_angles(3, 8).view(3, 3, 4)
    assert not angles[:, :, :2].diff(dim=1).any()
    assert not angles[:, :, 2:].diff(dim=0).any()
    torch.testing.assert_close(angles[1, 2], torch.tensor([1.0, 0.01, 2.0, 0.02]))


def test_rotation_is_computed_in_float32():
    x = torch.randn(1, 1, 9, 64).bfloat16()
    angles = rotary_angles(3, 64)
    out = rotate(x, angles.cos(), angles.sin())
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, rotate(x.float(), angles.cos(), angles.sin()).bfloat16())


def test_a_constant_input_has_a_different_output_at_every_position(randomize):
    """Rotary positions alone would give one output everywhere."""
    model = randomize(make_transformer())
    out = run(model, torch.randn(1, 1, 128).expand(1, GRID * GRID, 128), torch.randn(1, 128))[0]
    assert (torch.cdist(out, out) + 10 * torch.eye(GRID * GRID)).min() > 0.1


@pytest.mark.parametrize(("grid", "width"), [(2, 64), (4, 128), (16, 768)])
def test_the_position_embedding_keeps_row_and_column_apart(grid, width):
    embedding = position_embedding(grid, width)
    assert embedding.shape == (grid * grid, width)
    torch.testing.assert_close(embedding.square().sum(1), torch.full((grid * grid,), width / 2))
    rows, columns = embedding.view(grid, grid, width).chunk(2, dim=-1)
    assert not rows.diff(dim=1).any()
    assert not columns.diff(dim=0).any()
    assert torch.equal(rows[:, 0], columns[0])
    assert (torch.cdist(embedding, embedding) + 10 * torch.eye(grid * grid)).min() > 0.1


def test_position_buffers_are_not_in_the_state_dict():
    assert not {"cos", "sin", "positions"} & set(make_transformer().state_dict())


def test_images_of_a_batch_do_not_mix(randomize):
    model = randomize(make_transformer())
    x, condition = make_inputs()
    for i in range(3):
        alone = run(model, x[i : i + 1], condition[i : i + 1])[0]
        torch.testing.assert_close(run(model, x, condition)[i], alone, atol=1e-4, rtol=1e-4)


def test_recomputing_changes_neither_outputs_nor_gradients(randomize):
    plain, recomputing = randomize(make_transformer()), make_transformer(activation_checkpointing=True)
    recomputing.load_state_dict(plain.state_dict())
    x, condition = make_inputs()
    results = []
    for model in (plain, recomputing):
        leaf, given = x.clone().requires_grad_(), condition.clone().requires_grad_()
        out = run(model.train(), leaf, given)
        out.square().sum().backward()
        results.append([out.detach(), leaf.grad, given.grad, *(weight.grad for weight in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("recompute", "training", "runs"), [(True, True, 2), (False, True, 1), (True, False, 1)])
def test_a_block_is_recomputed_in_backward_only_when_configured_and_training(recompute, training, runs):
    model = make_transformer(recompute).train(training)
    calls = []
    model.blocks[0].qkv.register_forward_hook(lambda *_: calls.append(1))
    x, condition = make_inputs()
    run(model, x.requires_grad_(), condition).sum().backward()
    assert len(calls) == runs


@pytest.mark.parametrize("depth", [1, 3])
def test_width_is_64_times_depth_and_heads_are_depth(depth):
    model = make_transformer(depth=depth)
    assert model.width == 64 * depth
    assert [block.heads for block in model.blocks] == [depth] * depth


def test_only_the_modulations_have_biases():
    biases = [name for name, weight in make_transformer().named_parameters() if weight.ndim == 1]
    assert biases == ["adaln.bias"]
