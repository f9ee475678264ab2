"""Schedules against their definitions (Section 3.1, 4.3)."""

import itertools
import math

import pytest
import torch

from rdpm.models.schedule import Schedule

STEPS = (1, 2, 3, 10, 14, 20, 100)
SCHEDULES = [
    *(Schedule(kind, num_steps) for kind, num_steps in itertools.product(("sin", "linear"), STEPS)),
    *(Schedule("pow", num_steps, base) for num_steps, base in itertools.product(STEPS, (0.5, 0.6, 0.75, 0.9, 0.99))),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind}-{s.num_steps}-{s.base}")


@every_schedule
def test_the_last_step_is_all_image(schedule):
    assert schedule.alpha[-1] == 1
    assert schedule.beta[-1] == 0


@every_schedule
def test_the_squares_of_alpha_and_beta_sum_to_one(schedule):
    alpha, beta = schedule.alpha.double(), schedule.beta.double()
    torch.testing.assert_close(alpha**2 + beta**2, torch.ones(schedule.num_steps).double(), atol=2e-7, rtol=0)


@every_schedule
def test_alpha_increases_from_above_zero(schedule):
    assert schedule.alpha[0] > 0
    assert (schedule.alpha.diff() > 0).all()
    assert (schedule.beta.diff() <= 0).all()


@every_schedule
def test_there_is_one_float32_number_per_step(schedule):
    for values in (schedule.alpha, schedule.beta, schedule.gamma):
        assert values.shape == (schedule.num_steps,)
        assert values.dtype == torch.float32


@pytest.mark.parametrize(
    ("schedule", "alpha"),
    [
        (Schedule("linear", 4), [0.25, 0.5, 0.75, 1]),
        (Schedule("sin", 3), [0.5, math.sqrt(3) / 2, 1]),
        (Schedule("sin", 2), [math.sqrt(0.5), 1]),
        (Schedule("pow", 4, 0.5), [0.125, 0.25, 0.5, 1]),
        (Schedule("pow", 3, 0.75), [0.5625, 0.75, 1]),
    ],
    ids=str,
)
def test_alpha_equals_its_closed_form(schedule, alpha):
    torch.testing.assert_close(schedule.alpha, torch.tensor(alpha), atol=0, rtol=1e-7)


def test_base_matters_to_pow_only():
    assert not torch.equal(Schedule("pow", base=0.6).alpha, Schedule("pow", base=0.9).alpha)
    for kind in ("sin", "linear"):
        assert torch.equal(Schedule(kind, base=0.6).alpha, Schedule(kind, base=0.9).alpha)


@every_schedule
def test_gamma_is_alpha_or_one(schedule):
    plain = Schedule(schedule.kind, schedule.num_steps, schedule.base, weighted=False)
    assert torch.equal(schedule.gamma, schedule.alpha)
    assert torch.equal(plain.gamma, torch.ones(schedule.num_steps))
    assert torch.equal(plain.alpha, schedule.alpha)


def test_the_default_is_the_papers():
    assert Schedule() == Schedule("pow", 10, 0.75, weighted=True)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"kind": "cosine"}, "'cosine'"),
        ({"num_steps": 0}, "0"),
        ({"num_steps": -3}, "-3"),
        ({"base": 0.0}, "0.0"),
        ({"base": 1.0}, "1.0"),
        ({"base": -0.5}, "-0.5"),
        ({"base": 1.5}, "1.5"),
        ({"base": math.nan}, "nan"),
    ],
    ids=str,
)
def test_an_impossible_schedule_is_refused_with_its_value(unchecked, options, value):
    (name,) = options
    with pytest.raises(ValueError, match=rf"{name} (is )?{value}\b|{name} {value} "):
        Schedule(**options)
