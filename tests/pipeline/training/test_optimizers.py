"""AdamW with the moving average of the weights in its state."""

import copy

import pytest
import torch
from torch import nn

from rdpm.pipeline.training.optimizers import AdamWithEMA

DECAY = 0.9


def make_model():
    model = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.3)
    return model


def groups(model):
    """Two groups, as the trainer makes them."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def make_optimizer(model, decay=DECAY):
    return AdamWithEMA(groups(model), lr=1e-2, betas=(0.9, 0.95), ema_decay=decay)


def train(model, optimizer, steps):
    """Steps `steps` on data that depends on the step alone, at a changing rate."""
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


def assert_equal_to_the_bit(ones, others):
    for one, other in zip(ones, others, strict=True):
        assert torch.equal(one, other)


def test_weights_are_those_of_adamw_to_the_bit():
    model = make_model()
    twin = copy.deepcopy(model)
    plain = torch.optim.AdamW(groups(twin), lr=1e-2, betas=(0.9, 0.95))
    for _ in zip(train(model, make_optimizer(model), range(20)), train(twin, plain, range(20)), strict=True):
        assert_equal_to_the_bit(model.parameters(), twin.parameters())


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
        assert_equal_to_the_bit(averages(model, optimizer), start if decay else model.parameters())


def test_the_average_of_bf16_weights_is_float32():
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = AdamWithEMA([weight], lr=1e-2, weight_decay=0.0, ema_decay=0.999)
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    average = optimizer.state[weight]["ema"]
    assert average.dtype == torch.float32
    assert not torch.equal(average, average.bfloat16().float())


def test_a_restored_optimizer_goes_on_to_the_bit(tmp_path):
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
    assert_equal_to_the_bit(restored.parameters(), model.parameters())
    assert_equal_to_the_bit(averages(restored, other), averages(model, optimizer))


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
