"""Derivatives against differences: right ones agree, wrong ones are contradicted, kinks leave the question open."""

import pytest
import torch

from spectra.curvature.checks.differences import STEPS, judge

X = torch.linspace(-2, 2, 41, dtype=torch.float64)[:40]  # 0 is among them
V = 1 + X**2

SMOOTH = {  # f, f'
    "square": (lambda x: x**2, lambda x: 2 * x),
    "sine": (torch.sin, torch.cos),
    "exponential": (lambda x: (3 * x).exp(), lambda x: 3 * (3 * x).exp()),
    "constant": (lambda x: torch.ones_like(x), torch.zeros_like),
    "large constant": (lambda x: 1e6 + x.sin(), torch.cos),
    "small": (lambda x: 1e-30 * x.sin(), lambda x: 1e-30 * x.cos()),
    "rounded to single precision inside": (lambda x: x.float().sin().double(), torch.cos),
    "kinks near by": (lambda x: (x - 0.5 - 1e-7).relu(), lambda x: (x > 0.5).double()),
}


def verdict(f, derivative, dtype=torch.float64, parts=1):
    x, v = X.to(dtype), V.to(dtype)
    return judge((derivative * v).chunk(parts), lambda h: f(x + h * v).chunk(parts))


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("name", SMOOTH)
def test_what_is_right_agrees(name, parts):
    f, slope = SMOOTH[name]
    found = verdict(f, slope(X), parts=parts)
    assert found.agrees
    assert found.error < 1e-2


@pytest.mark.parametrize("dtype", STEPS)
@pytest.mark.parametrize("wrong", [0.0, 0.8, -1.0, float("nan"), float("inf")])
def test_what_is_wrong_is_contradicted(wrong, dtype):
    found = verdict(torch.sin, (wrong * X.cos()).to(dtype), dtype)
    assert found.wrong
    assert found.difference == pytest.approx((V * X.cos()).norm().item(), rel=1e-2)


def test_one_wrong_part_of_many_is_contradicted():
    """A part of a thousandth of the whole, off by a fifth."""
    weights = torch.where(torch.arange(40) < 10, 1e-3, 1.0).double()
    slope = weights * X.cos()
    assert verdict(lambda x: weights * x.sin(), slope, parts=4).agrees
    slope[:10] *= 0.8
    assert verdict(lambda x: weights * x.sin(), slope, parts=4).wrong
    assert verdict(lambda x: weights * x.sin(), slope, parts=1).agrees  # seen in parts alone


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x.sgn() * x.abs().sqrt(),
        lambda x: (x > 0).double(),
        lambda x: x + 1e-3 * (1e9 * x).sin(),
        torch.relu,
        lambda x: x + x.abs(),
    ],
    ids=["square root at zero", "step at zero", "finer than any step", "kink at zero", "two slopes at zero"],
)
def test_where_steps_disagree_nothing_is_said(f):
    found = judge([torch.zeros(1, dtype=torch.float64)], lambda h: f(torch.tensor([h], dtype=torch.float64)))
    assert not found.wrong
    assert found.unclear == 1


def test_a_jump_at_the_point_ends_the_search_early():
    steps = []
    judge([V], lambda h: (steps.append(h), [(h * V).sign() + h * V + 1])[1])
    assert [abs(step) for step in steps if step] == [1e-6, 1e-6, 1e-8, 1e-8]


def test_the_first_step_is_enough_where_it_agrees():
    steps = []
    judge([V * X.cos()], lambda h: (steps.append(h), [(X + h * V).sin()])[1])
    assert steps == [STEPS[torch.float64][0], -STEPS[torch.float64][0]]
