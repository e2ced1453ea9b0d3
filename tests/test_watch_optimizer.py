"""Recordings that start from each other, and those of the matrix that an optimizer meets, against dense references."""

import copy

import pytest
import torch
from helpers import seeded
from networks import DEVICES
from torch import nn

import spectra
from spectra.cli import run
from spectra.errors import SpectraError
from spectra.krylov.dense import dense_matrix
from spectra.records.files import read
from spectra.sweeps.evolution import evolution_of

X = torch.randn(30, 5, generator=seeded(1), dtype=torch.float64)
Y = torch.randint(3, (30,), generator=seeded(2))
LOSS = spectra.CrossEntropy()
DEVICE = DEVICES[-1]


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double().to(DEVICE)


def dense(model: nn.Module, name: str = "hessian") -> torch.Tensor:
    batches = spectra.cut_batches(X.to(DEVICE), Y.to(DEVICE), torch.arange(len(X)), 30)
    return dense_matrix(spectra.Curvature(spectra.Problem(copy.deepcopy(model), LOSS, batches), name)).cpu()


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 1) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X.to(DEVICE)), Y.to(DEVICE)).backward()
        optimizer.step()


def leading(matrix: torch.Tensor, k: int) -> torch.Tensor:
    values = torch.linalg.eigvalsh(matrix)
    return values[values.abs().argsort(descending=True)][:k]


def assert_within_residuals(pairs, matrix: torch.Tensor) -> None:
    assert pairs.converged
    exact = leading(matrix, len(pairs.values))
    assert ((pairs.values - exact).abs() <= pairs.residuals + 1e-12).all()


def test_a_slow_phase_takes_few_products(tmp_path):
    """At most ten for the top five, checks included; eigenvalues hold within their residuals.

    Whether others are larger is recorded as what it is: looked for at some steps, and not in between.
    """
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watch = spectra.watch(model, LOSS, (X, Y), tmp_path, every=1, k=5, trace=False)
    last = None
    for step in range(6):
        steps(model, optimizer)
        found = watch(step)
        pairs = found.eigenpairs["hessian"]
        assert_within_residuals(pairs, dense(model))
        assert pairs.complete in (None, True)
        last = step if pairs.complete else last
        assert found.searched == {"hessian": last}
        assert found.products <= 10 or step < 2 or pairs.complete
        _, record = read(found.directory / "eig.json", ["eig"])
        entry = record["results"][0]
        assert (entry["complete"], entry["last_search"]) == (pairs.complete, last)
        assert entry["products"] == found.products
        assert not found.traces
        assert not (found.directory / "trace.json").exists()
    assert last == 5
    assert {row.quantity for row in evolution_of(tmp_path).rows} >= {"eigenvalue", "loss"}
    assert run(["report", str(tmp_path / "step-000004"), "--out", str(tmp_path / "page.html")]) == 0
    assert "searched at step 0" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_recording_that_fails_does_not_end_the_chain(tmp_path, caplog):
    model = network()
    watch = spectra.watch(model, LOSS, (X, Y), tmp_path, every=1, k=3, trace=False)
    assert watch(0)
    good = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    assert watch(1) is None
    model.load_state_dict(good)
    assert_within_residuals(watch(2).eigenpairs["hessian"], dense(model))
    assert len(caplog.messages) == 1


def adam(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """P by hand, from the formula of Adam's step."""
    diagonals = []
    for group in optimizer.param_groups:
        (b1, b2), eps = group["betas"], group["eps"]
        for p in group["params"]:
            t, v = optimizer.state[p]["step"].item(), optimizer.state[p]["exp_avg_sq"]
            diagonals.append((1 - b1**t) * ((v / (1 - b2**t)).sqrt() + eps).flatten())
    return torch.cat(diagonals).cpu()


def test_what_adam_meets(tmp_path, caplog):
    """P^-1/2 H P^-1/2 at each step, beside 38 / eta as it is then; before the first step one line, and no file."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    logged = {}
    watch = spectra.watch(
        *(model, LOSS, (X, Y), tmp_path), every=1, k=3, optimizer=optimizer, log=lambda values, _: logged.update(values)
    )
    assert watch(0) is None
    assert caplog.messages == [
        "spectra.watch: step 0 is not recorded: `optimizer`: it has not taken a step yet, so it has no state"
    ]
    assert not list(tmp_path.rglob("*.json"))
    for step in (1, 2):
        steps(model, optimizer)
        optimizer.param_groups[0]["lr"] = rate = 0.01 / step
        found = watch(step)
        root = adam(optimizer).rsqrt()
        matrix = root[:, None] * dense(model) * root
        pairs, trace = found.eigenpairs["hessian"], found.traces["hessian"]
        assert_within_residuals(pairs, matrix)
        assert abs(trace.value - matrix.trace()) <= 5 * trace.standard_error + 1e-6 * abs(trace.value)
        assert found.threshold == pytest.approx(38 / rate)
        torch.testing.assert_close(found.edge["hessian"], pairs.values * rate / 38)
        for name in ("eig", "trace"):
            _, record = read(found.directory / f"{name}.json", [name])
            told = record["problem"]["precondition"]
            assert (told["spec"], told["optimizer"], told["rate"]) == ("Adam", "Adam", rate)
            assert told["threshold"] == found.threshold
        assert logged["spectra/hessian_preconditioned/threshold"] == found.threshold
    assert len(caplog.messages) == 1


def test_a_state_from_before_the_first_step(tmp_path, caplog):
    """That of Adagrad: nothing is recorded at first, and later the spectrum that it meets."""
    model = network()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    watch = spectra.watch(*(model, LOSS, (X, Y), tmp_path), every=1, k=2, trace=False, optimizer=optimizer)
    assert watch(0) is None
    assert caplog.messages[0].endswith("`optimizer`: it has not taken a step yet, so it has no state")
    steps(model, optimizer)
    found = watch(1)
    diagonal = torch.cat([optimizer.state[p]["sum"].sqrt().flatten() + 1e-10 for p in model.parameters()]).cpu()
    assert_within_residuals(found.eigenpairs["hessian"], diagonal.rsqrt()[:, None] * dense(model) * diagonal.rsqrt())
    assert found.threshold == pytest.approx(20)


def test_what_plain_gradient_descent_meets(tmp_path):
    """The Hessian itself, from before the first step on, beside 2 / eta; without an optimizer nothing of that."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = spectra.watch(model, LOSS, (X, Y), tmp_path / "one", every=1, k=3, optimizer=optimizer)(0)
    assert_within_residuals(found.eigenpairs["hessian"], dense(model))
    assert found.threshold == pytest.approx(20)
    other = spectra.watch(model, LOSS, (X, Y), tmp_path / "two", every=1, k=3)(0)
    assert (other.threshold, other.edge) == (None, {})
    _, record = read(other.directory / "eig.json", ["eig"])
    assert record["problem"]["precondition"] is None


def test_more_eigenvalues_are_listed_near_the_threshold(tmp_path):
    """So many that two lie below the near ones, up to 4 k and to what the budget holds, and k again once none is."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    matrix = dense(model, "ggn")
    values = leading(matrix, 10)
    options = {"k": 2, "curvature": "ggn", "optimizer": optimizer, "trace": False, "products": 60}
    watch = spectra.watch(model, LOSS, (X, Y), tmp_path, every=1, **options)

    def record(step: int, near: int) -> tuple[int, int]:
        """With a rate at which so many eigenvalues are near the threshold."""
        optimizer.param_groups[0]["lr"] = 1.6 / ((values[near - 1] + values[near]) / 2).item() if near else 1e-6
        found = watch(step)
        assert_within_residuals(found.eigenpairs["ggn"], matrix)
        assert (found.edge["ggn"] >= 0.8).sum() == min(near, len(found.edge["ggn"]))
        return len(found.edge["ggn"]), found.following["ggn"]

    assert record(0, 2) == (2, 4)
    assert record(1, 2) == (4, 4)
    assert record(2, 4) == (4, 6)
    assert record(3, 5) == (6, 7)
    assert record(4, 7) == (7, 8)  # 4 k, no more
    assert record(5, 0) == (8, 2)
    assert record(6, 0) == (2, 2)


def test_negative_eigenvalues_hide_no_large_positive_one(tmp_path):
    """All are negative, where the optimizer maximizes; those of a magnitude near the threshold count too."""
    model = network()
    values = leading(dense(model, "ggn"), 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.6 / ((values[2] + values[3]) / 2).item(), maximize=True)
    options = {"k": 2, "curvature": "ggn", "optimizer": optimizer, "trace": False}
    watch = spectra.watch(model, LOSS, (X, Y), tmp_path, every=1, **options)
    found = watch(0)
    torch.testing.assert_close(found.eigenpairs["ggn"].values, -values[:2], rtol=1e-5, atol=0)
    assert found.following == {"ggn": 4}
    assert watch(1).following == {"ggn": 5}


class Other(torch.optim.SGD):
    """A class that is not torch's."""


def test_optimizers_that_cannot_be_read_are_refused_before_training(tmp_path):
    model = network()
    call = {"every": 1, "k": 2}
    with pytest.raises(SpectraError, match=r"`optimizer`: .*Other is not supported"):
        spectra.watch(model, LOSS, (X, Y), tmp_path, optimizer=Other(model.parameters(), lr=1.0), **call)
    with pytest.raises(
        SpectraError, match=r"`optimizer`: expected a torch\.optim optimizer or its state_dict\(\), got int"
    ):
        spectra.watch(model, LOSS, (X, Y), tmp_path, optimizer=3, **call)
    with pytest.raises(SpectraError, match="`optimizer`: expected a torch optimizer, got a state dict"):
        spectra.watch(model, LOSS, (X, Y), tmp_path, optimizer=torch.optim.SGD(model.parameters()).state_dict(), **call)
    part = torch.optim.Adam(model[0].parameters())
    with pytest.raises(SpectraError, match=r"`optimizer`: 2.weight and 1 more are not among its parameters"):
        spectra.watch(model, LOSS, (X, Y), tmp_path, optimizer=part, **call)
    for whole in (torch.optim.SGD(model.parameters(), weight_decay=0.1), torch.optim.AdamW(model.parameters())):
        with pytest.raises(SpectraError, match=r"`weight_decay` 0.5: the optimizer has its own weight decay"):
            spectra.watch(model, LOSS, (X, Y), tmp_path, optimizer=whole, weight_decay=0.5, **call)


def test_weight_decay_of_the_loss_is_in_the_matrix(tmp_path):
    """Where the optimizer has none: then it is a term of the loss as any other."""
    model = network()
    call = {"every": 1, "k": 2, "tolerance": 1e-8, "products": 200, "trace": False}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    plain, shifted = (
        spectra.watch(model, LOSS, (X, Y), tmp_path / name, optimizer=optimizer, weight_decay=decay, **call)(0)
        for name, decay in (("plain", 0.0), ("shifted", 0.5))
    )
    largest, moved = (found.eigenpairs["hessian"].values.max() for found in (plain, shifted))
    assert moved.item() == pytest.approx(largest.item() + 0.5, rel=1e-7)


def test_training_is_unchanged_where_the_optimizer_is_watched(tmp_path):
    """Its state too, bit for bit."""
    states = []
    for watched in (False, True):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        watch = spectra.watch(model, LOSS, (X, Y), tmp_path, every=1, k=2, optimizer=optimizer) if watched else None
        for step in range(2):
            steps(model, optimizer)
            assert watch is None or watch(step)
        held = [value for state in optimizer.state.values() for value in state.values()]
        states.append([*model.state_dict().values(), *held, *(p.grad for p in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
