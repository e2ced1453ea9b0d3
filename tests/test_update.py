"""The next update and the momentum of an optimizer, against the step that it then takes."""

import copy

import pytest
import torch
from helpers import seeded
from torch import nn

import spectra
from spectra.directions.point import Point
from spectra.directions.training import checkpoint_direction, directions, update_direction
from spectra.errors import SpectraError
from spectra.optimizer.update import momentum, next_update

CASES = {
    "SGD": ("SGD", {"lr": 0.1}),
    "heavy ball": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True}),
    "Nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "Adam": ("Adam", {"weight_decay": 0.1, "amsgrad": True}),
    "Adam, its rate a tensor": ("Adam", {"lr": torch.tensor(0.01, dtype=torch.float64), "maximize": True}),
    "AdamW": ("AdamW", {"lr": 0.01, "weight_decay": 0.3}),
    "NAdam": ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "RAdam": ("RAdam", {"betas": (0.8, 0.9)}),
    "Adagrad": ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.2}),
    "RMSprop": ("RMSprop", {"momentum": 0.5, "centered": True}),
    "Adadelta": ("Adadelta", {"weight_decay": 0.1}),
    "Adafactor": ("Adafactor", {"lr": 0.3, "weight_decay": 0.1, "maximize": True}),
}
KEPT = {"SGD": "momentum_buffer", "RMSprop": "momentum_buffer"}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


DATA = torch.randn(12, 3, generator=seeded(1)).double(), torch.randn(12, 2, generator=seeded(2)).double()


def problem_of(model: nn.Module, size: int = 12, **options) -> spectra.Problem:
    return spectra.Problem(
        model, spectra.MeanSquaredError(), spectra.cut_batches(*DATA, torch.arange(12), size), **options
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(DATA[0]), DATA[1]).backward()
        optimizer.step()


def theta(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.sampled(12)
@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("case", CASES)
def test_the_update_is_the_step_that_training_takes(case, steps):
    kind, options = CASES[case]
    model = network()
    optimizer = getattr(torch.optim, kind)(model.parameters(), **options)
    train(model, optimizer, steps)
    problem, before, saved = problem_of(model), theta(model), copy.deepcopy(optimizer.state_dict())
    gradient = Point.of(problem).gradient
    (found,) = directions(problem, ["update"], gradient, optimizer=saved)
    (live,) = directions(problem, ["update"], gradient, optimizer=optimizer)
    assert torch.equal(found.vector, live.vector)
    assert torch.equal(theta(model), before)
    assert str(optimizer.state_dict()) == str(saved)
    train(model, optimizer)
    step = theta(model) - before
    assert found.norm == pytest.approx(step.norm().item())
    # NAdam keeps a product in float32.
    torch.testing.assert_close(found.vector, step, rtol=1e-9, atol=1e-9 * step.abs().max().item())


def test_adafactor_has_the_eps_of_the_type_it_trains_in():
    """Its default; gradients are far below that of float32, and far above that of float64."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.1)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.full_like(p, 1e-9)
        found = next_update(
            optimizer, model, dict(model.named_parameters()), torch.full((8,), 1e-9, dtype=torch.float64)
        )
        before = theta(model)
        optimizer.step()
        torch.testing.assert_close(found, (theta(model) - before).double(), rtol=1e-3, atol=1e-9)


class WithUnused(nn.Module):
    """A network with a layer that no output depends on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.unused, self.used = nn.Linear(2, 2).double(), network()

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize("case", ["SGD", "Nesterov", "AdamW", "Adagrad"])
def test_parameters_without_a_gradient_stay(case):
    """As torch's optimizers leave them, weight decay too."""
    kind, options = CASES[case]
    model = WithUnused()
    optimizer = getattr(torch.optim, kind)(model.parameters(), **options | {"weight_decay": 0.3})
    train(model, optimizer, 2)
    problem = problem_of(model)
    gradient, before, saved = Point.of(problem).gradient, theta(model), copy.deepcopy(optimizer.state_dict())
    found = update_direction(problem, gradient, saved).vector
    if case in ("Nesterov", "AdamW"):
        kept = torch.cat([optimizer.state[p][KEPT.get(kind, "exp_avg")].flatten() for p in model.used.parameters()])
        (direction,) = directions(problem, ["momentum"], gradient, optimizer=saved)
        assert torch.equal(direction.vector, torch.cat([torch.zeros(6).double(), -kept]))
    train(model, optimizer)
    torch.testing.assert_close(found, theta(model) - before, rtol=1e-9, atol=1e-14)
    assert not found[:6].any()


@pytest.mark.parametrize("case", ["heavy ball", "Nesterov", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop"])
def test_momentum_is_what_the_state_holds_against_its_sign(case):
    kind, options = CASES[case]
    model = network()
    optimizer = getattr(torch.optim, kind)(model.parameters(), **options)
    with pytest.raises(SpectraError, match="has not taken a step yet"):
        momentum(optimizer, model, dict(model.named_parameters()))
    train(model, optimizer, 3)
    kept = [optimizer.state[p][KEPT.get(kind, "exp_avg")].flatten() for p in model.parameters()]
    assert torch.equal(momentum(optimizer, model, dict(model.named_parameters())), -torch.cat(kept))


def test_momentum_that_there_is_not():
    model = network()
    optimizer = torch.optim.Adagrad(model.parameters())
    train(model, optimizer)
    with pytest.raises(SpectraError, match="Adagrad keeps no momentum"):
        momentum(optimizer.state_dict(), model, dict(model.named_parameters()))


def test_groups_and_chosen_parameters():
    """Each parameter has its own group's rate; rows are those of the chosen ones, in the order of the model."""
    model = network()
    groups = [{"params": model[2].parameters(), "lr": 0.5}, {"params": model[0].parameters(), "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    chosen = {name: p for name, p in model.named_parameters() if name.endswith("weight")}
    problem = problem_of(model, parameters=chosen)
    gradient = Point.of(problem).gradient
    found = next_update(optimizer, model, chosen, gradient)
    torch.testing.assert_close(found, torch.cat([-0.1 * gradient[:12], -0.5 * gradient[12:]]), rtol=1e-12, atol=1e-15)


def test_weight_decay_stands_once():
    model = network()
    problem = problem_of(model, weight_decay=0.1)
    gradient, plain = Point.of(problem).gradient, torch.optim.SGD(model.parameters(), lr=0.5)
    torch.testing.assert_close(update_direction(problem, gradient, plain).vector, -0.5 * gradient)
    twice = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1)
    (group,) = twice.state_dict()["param_groups"]
    names = [name for name, _ in model.named_parameters()]
    flat = {f"param_groups.{name}.{key}": group[key] for name in names for key in group.keys() - {"params"}}
    for optimizer in (twice, twice.state_dict(), flat):  # flat as torch.distributed.checkpoint saves it
        with pytest.raises(SpectraError, match=r"`weight_decay` 0\.1: the optimizer has its own weight decay"):
            update_direction(problem, gradient, optimizer)


def test_the_way_to_a_checkpoint(tmp_path):
    here, there = network(), network()
    with torch.no_grad():
        for i, p in enumerate(there.parameters()):
            p.add_(0.1 * (i + 1))
    torch.save({"model": {f"module.{name}": p for name, p in there.state_dict().items()}}, tmp_path / "later.pt")
    torch.save(here.state_dict(), tmp_path / "same.pt")
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "less.pt")
    problem = problem_of(here)
    for other in (tmp_path / "later.pt", there, there.state_dict()):
        found = checkpoint_direction(problem, other)
        torch.testing.assert_close(found.vector, theta(there) - theta(here))
        assert (found.name, found.unit) == ("checkpoint", "way to the other checkpoint")
    with pytest.raises(SpectraError, match=r"`to` .*same\.pt: has the same parameters as this checkpoint"):
        checkpoint_direction(problem, tmp_path / "same.pt")
    with pytest.raises(SpectraError, match=r"less\.pt"):
        checkpoint_direction(problem, tmp_path / "less.pt")


def test_what_is_missing_is_named():
    problem = problem_of(network())
    gradient = Point.of(problem).gradient
    with pytest.raises(SpectraError, match="`optimizer`: the direction update needs the optimizer's state"):
        directions(problem, ["update"], gradient)
    with pytest.raises(SpectraError, match="`to`"):
        directions(problem, ["checkpoint"], gradient)
    with pytest.raises(SpectraError, match="gradient: it is zero"):
        directions(problem, ["gradient"], 0 * gradient)
    with pytest.raises(SpectraError, match="next step is zero"):
        directions(problem, ["update"], gradient, optimizer=torch.optim.SGD(problem.leaves, lr=0.0))
    saved = torch.optim.Adam(problem.leaves)
    train(problem.model, saved)
    broken = saved.state_dict()
    del broken["state"][0]["exp_avg_sq"]
    with pytest.raises(SpectraError, match=r"cannot continue from the state of 0\.weight.*exp_avg_sq"):
        directions(problem, ["update"], gradient, optimizer=broken)


def test_what_stays_on_the_way_is_told(tmp_path):
    def built(shift: float) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(shift)
            model[1].running_mean.add_(shift)
        return model

    here, there = built(0.0), built(0.1)
    torch.save(there.state_dict(), tmp_path / "later.pt")
    chosen = {name: p for name, p in here.named_parameters() if name != "2.bias"}
    found = checkpoint_direction(problem_of(here, parameters=chosen), tmp_path / "later.pt")
    assert "2 tensors (2.bias, 1.running_mean) of" in found.note
    assert found.norm == pytest.approx(0.1 * sum(p.numel() for p in chosen.values()) ** 0.5)
    assert here[1].running_mean.eq(0).all()
    assert not checkpoint_direction(problem_of(network()), {n: p + 1 for n, p in network().named_parameters()}).note
