"""AdamW with the moving average of the weights in its state, and the learning rate."""

import copy

import pytest
import torch
from torch import nn

from rdpm.models.generator import Generator
from rdpm.pipeline.training import optimizers
from rdpm.pipeline.training.optimizers import AdamWithEMA, OptimizerConfig, adamw

DECAY = 0.9


def make_model():
    model = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.3)
    return model


def groups(model):
    """Two groups, as trainings make them."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def make_optimizer(model, decay=DECAY):
    return AdamWithEMA(groups(model), lr=1e-2, betas=(0.9, 0.95), ema_decay=decay)


def train(model, optimizer, steps):
    """The given steps, on data that depends only on the step, with a changing learning rate."""
    for step in steps:
        data = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + step % 3)
        optimizer.zero_grad()
        (model(data) - data[:, :3]).square().mean().backward()
        optimizer.step()
        yield


def averages(model, optimizer):
    return [optimizer.state[weight]["ema"] for weight in model.parameters()]


def assert_same_bits(ones, others):
    for one, other in zip(ones, others, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("piece", [1 << 20, 16])
def test_weights_are_those_of_adamw_in_pieces_of_any_size(monkeypatch, piece):
    monkeypatch.setattr(optimizers, "_PIECE", piece)
    model = make_model()
    twin = copy.deepcopy(model)
    plain = torch.optim.AdamW(groups(twin), lr=1e-2, betas=(0.9, 0.95))
    for _ in zip(train(model, make_optimizer(model), range(20)), train(twin, plain, range(20)), strict=True):
        for weight, expected in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(weight, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_average_is_the_running_mix_of_the_weights(decay):
    model = make_model()
    optimizer = make_optimizer(model, decay)
    expected = [weight.detach().double().clone() for weight in model.parameters()]
    for _ in train(model, optimizer, range(30)):
        expected = [
            decay * mean + (1 - decay) * weight.detach().double()
            for mean, weight in zip(expected, model.parameters(), strict=True)
        ]
    for average, reference in zip(averages(model, optimizer), expected, strict=True):
        assert average.dtype == torch.float32
        torch.testing.assert_close(average.double(), reference, atol=1e-7, rtol=0)
    assert not torch.allclose(expected[0].float(), model[0].weight, atol=1e-4)


def test_decay_0_keeps_the_weights_and_decay_1_the_start():
    for decay in (0.0, 1.0):
        model = make_model()
        start = [weight.detach().clone() for weight in model.parameters()]
        optimizer = make_optimizer(model, decay)
        list(train(model, optimizer, range(3)))
        assert_same_bits(averages(model, optimizer), start if decay else model.parameters())


def test_the_average_of_bf16_weights_is_float32():
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = AdamWithEMA([weight], lr=1e-2, weight_decay=0.0, ema_decay=0.999)
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    average = optimizer.state[weight]["ema"]
    assert average.dtype == torch.float32
    assert not torch.equal(average, average.bfloat16().float())


def test_a_restored_optimizer_continues_with_the_same_bits(tmp_path):
    model = make_model()
    optimizer = make_optimizer(model)
    list(train(model, optimizer, range(7)))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    list(train(model, optimizer, range(7, 15)))

    saved = torch.load(tmp_path / "state.pt")
    restored = make_model()
    other = make_optimizer(restored)
    restored.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    list(train(restored, other, range(7, 15)))
    assert_same_bits(restored.parameters(), model.parameters())
    assert_same_bits(averages(restored, other), averages(model, optimizer))


def test_a_weight_starts_its_average_with_its_first_gradient():
    weights = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    optimizer = AdamWithEMA(weights, lr=0.1, weight_decay=0.0, ema_decay=0.5)
    weights[0].grad = torch.ones(3)
    optimizer.step()
    assert "ema" not in optimizer.state[weights[1]]
    weights[1].grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[weights[1]]["ema"], torch.full((3,), -0.05))
    torch.testing.assert_close(optimizer.state[weights[0]]["ema"], torch.full((3,), -0.125))


def test_the_learning_rate_rises_in_the_warmup_and_then_stays_or_falls_along_a_cosine():
    constant = OptimizerConfig(lr=0.8, warmup_steps=4)
    assert [constant.lr_at(step, 12) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    cosine = OptimizerConfig(lr=0.8, warmup_steps=4, decay="cosine", final_share=0.25)
    assert [cosine.lr_at(step, 12) for step in (3, 4, 8, 12)] == pytest.approx([0.8, 0.8, 0.5, 0.2])
    assert OptimizerConfig(lr=0.8, warmup_steps=0).lr_at(0, 1) == 0.8


def test_norms_biases_and_embeddings_do_not_decay(exports):
    model = Generator(exports.generator_config)
    decayed, plain = adamw(model, OptimizerConfig(weight_decay=0.1), 0.9).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    without = {names[id(parameter)] for parameter in plain["params"]}
    assert "label_embedding.weight" in without
    assert without > {name for name in names.values() if name.endswith(".bias")}
    assert "project.weight" in {names[id(parameter)] for parameter in decayed["params"]}
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
