"""--precondition: the spectrum of P^-1/2 A P^-1/2 against dense matrices, with P by the formulas of torch's source."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from dense import Dense
from helpers import seeded
from safetensors.torch import save_file
from torch import nn

import spectra
from spectra.cli import run
from spectra.errors import SpectraError
from spectra.page.problem import facts
from spectra.plots.density import density_figure
from spectra.plots.eigenvalues import eigenvalue_figure
from spectra.plots.threshold import LOOK
from spectra.records.record import Record
from spectra.run.session import Session
from spectra.tables.comparison import compare_text

FILE = """
import torch
from torch import nn
from scipy.sparse.linalg import LinearOperator

def build():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()

def frozen():
    model = build()
    model[0].bias.requires_grad_(False)
    return model

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(x).tanh())

def vector(scale=1.0):
    return scale * torch.linspace(0.5, 2.0, 31, dtype=torch.float64)

P = vector()

def matrix():
    drawn = torch.randn(31, 31, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return drawn @ drawn.T / 31 + torch.eye(31, dtype=torch.float64)

def operator():
    root = matrix().numpy()
    return LinearOperator((31, 31), lambda v: root @ v, dtype="float64")

skew = torch.ones(31, 31, dtype=torch.float64).triu()
"""
LINE = "--model nets.py:build --data points.npz --loss mse --dtype float64 --device cpu"


def data(x_seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(20, 3, generator=seeded(x_seed), dtype=torch.float64)
    return x, torch.randn(20, 3, generator=seeded(x_seed + 1), dtype=torch.float64)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(FILE)
    x, y = data()
    np.savez("points.npz", x=x.numpy(), y=y.numpy())
    return tmp_path


@pytest.fixture
def call(capfd):
    def call(line: str):
        capfd.readouterr()
        status = run(shlex.split(line))
        return status, *capfd.readouterr()

    return call


@pytest.fixture
def found(call):
    def found(line: str, status: int = 0) -> dict:
        code, out, err = call(f"{line} --json")
        assert code == status, err
        return json.loads(out)

    return found


def network(frozen: bool = False) -> nn.Module:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    model[0].bias.requires_grad_(not frozen)
    return model


def trained(model: nn.Module, kind, given=None, steps: int = 9, **options) -> torch.optim.Optimizer:
    x, y = data()
    optimizer = kind(given or [p for p in model.parameters() if p.requires_grad], **options)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return optimizer


def flat(optimizer: torch.optim.Optimizer, key: str) -> torch.Tensor:
    return torch.cat([optimizer.state[p][key].flatten() for group in optimizer.param_groups for p in group["params"]])


# (class, options, P of a trained optimizer, weight decay as the diagonal that is added to R A R, threshold)
T = 9
OPTIMIZERS = {
    "Adam": (
        {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.3},
        lambda o: (1 - 0.8**T) * ((flat(o, "exp_avg_sq") / (1 - 0.99**T)).sqrt() + 1e-8),
        lambda p: 0.3 / p,
        (2 + 1.6) / (0.2 * 0.01),
    ),
    "AdamW": (
        {"lr": 0.01, "weight_decay": 0.3},
        lambda o: (1 - 0.9**T) * ((flat(o, "exp_avg_sq") / (1 - 0.999**T)).sqrt() + 1e-8),
        lambda p: torch.full_like(p, 0.3),
        38 / 0.01 - 18 * 0.3,
    ),
    "RMSprop": (
        {"lr": 0.01, "momentum": 0.5},
        lambda o: flat(o, "square_avg").sqrt() + 1e-8,
        torch.zeros_like,
        3 / 0.01,
    ),
    "Adagrad": (
        {"lr": 0.1, "lr_decay": 0.1},
        lambda o: (1 + (T - 1) * 0.1) * (flat(o, "sum").sqrt() + 1e-10),
        torch.zeros_like,
        2 / 0.1,
    ),
    "SGD": (
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.2},
        lambda o: torch.ones(31, dtype=torch.float64),
        lambda p: torch.full_like(p, 0.2),
        3.8 / (2.8 * 0.05),
    ),
}


def dense(model: nn.Module, matrix: str = "hessian") -> torch.Tensor:
    x, y = data()
    reference = Dense(model, lambda f: f(x), lambda out: nn.functional.mse_loss(out, y))
    return getattr(reference, matrix)()


def around(matrix: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return p.rsqrt()[:, None] * matrix * p.rsqrt()


def by_falling(matrix: torch.Tensor) -> list[float]:
    return torch.linalg.eigvalsh(matrix).flip(0).tolist()


def in_checkpoint(model, optimizer):
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "last.pt")
    return "last.pt", "optimizer", "order"


def lightning(model, optimizer):
    torch.save({"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}, "last.ckpt")
    return "last.ckpt", "optimizer", "order"


def trainer(model, optimizer):
    Path("checkpoint-9").mkdir()
    save_file(model.state_dict(), "checkpoint-9/model.safetensors")
    torch.save(optimizer.state_dict(), "checkpoint-9/optimizer.pt")
    return "checkpoint-9", "optimizer", "order"


def beside(model, optimizer):
    torch.save(model.state_dict(), "weights.pt")
    torch.save(optimizer.state_dict(), "optimizer.pt")
    return "weights.pt", f"optimizer.pt?name={type(optimizer).__name__}", "order"


def with_names(model, optimizer):
    saved = optimizer.state_dict()
    saved["param_groups"][0]["param_names"] = [name for name, _ in model.named_parameters()]
    torch.save({"model": model.state_dict(), "several": {"optimizer": saved}}, "named.pt")
    return "named.pt", "named.pt?key=several.optimizer", "names"


FORMS = (in_checkpoint, lightning, trainer, beside, with_names)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.sampled(6)
def test_the_spectrum_that_an_optimizer_meets(found, name, form):
    options, diagonal, decay, threshold = OPTIMIZERS[name]
    model = network()
    optimizer = trained(model, getattr(torch.optim, name), **options)
    checkpoint, spec, matched = form(model, optimizer)
    p = diagonal(optimizer)
    record = found(f"eig {LINE} --checkpoint {checkpoint} --precondition {spec} --which LA -k 31 --method dense")
    expected = by_falling(around(dense(model), p) + torch.diag(decay(p)))
    assert record["results"][0]["eigenvalues"] == pytest.approx(expected, rel=1e-9, abs=1e-9 * expected[0])
    told = record["problem"]["precondition"]
    assert (told["spec"], told["optimizer"], told["matched"]) == (spec, name, matched)
    assert told["rate"] == options["lr"]
    assert told["threshold"] == told["threshold_upper"] == pytest.approx(threshold, rel=1e-12)
    assert told["decay"] == ("weight_decay" in options)
    assert record["problem"]["options"]["precondition"] == spec


def diagonal_of(scale: float = 1.0) -> torch.Tensor:
    return scale * torch.linspace(0.5, 2.0, 31, dtype=torch.float64)


def by_names(p: torch.Tensor) -> dict[str, torch.Tensor]:
    named = dict(network().named_parameters())
    parts = p.split([q.numel() for q in named.values()])
    return {name: part.view(q.shape).clone() for (name, q), part in zip(named.items(), parts, strict=True)}


def as_npz(p):
    np.savez("P.npz", **{name: part.numpy() for name, part in by_names(p).items()})
    return "P.npz"


def as_safetensors(p):
    save_file({f"module.{name}": part for name, part in by_names(p).items()}, "P.safetensors")
    return "P.safetensors"


GIVEN = (as_npz, as_safetensors, lambda p: "nets.py:P", lambda p: "nets.py:vector?scale=1.0")


@pytest.mark.parametrize("form", GIVEN, ids=("npz", "safetensors", "tensor", "function"))
def test_a_diagonal_that_is_given(found, form):
    model, p = network(), diagonal_of()
    torch.save(model.state_dict(), "w.pt")
    record = found(f"eig {LINE} --checkpoint w.pt --precondition {form(p)} -k 31 --which LA --method dense")
    assert record["results"][0]["eigenvalues"] == pytest.approx(
        by_falling(around(dense(model), p)), rel=1e-9, abs=1e-12
    )
    told = record["problem"]["precondition"]
    assert (told["optimizer"], told["threshold"], told["threshold_reason"]) == (
        *(None, None),
        "P was given without its optimizer",
    )


@pytest.mark.parametrize("spec", ["nets.py:operator", "nets.py:matrix"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_operator_of_the_inverse_root(found, spec, dtype):
    """P need not be diagonal; vectors come in its own dtype."""
    model = network()
    torch.save(model.state_dict(), "w.pt")
    line = f"eig {LINE} --checkpoint w.pt --precondition {spec} -k 3 --which LA --tol 1e-5 --dtype {dtype}"
    drawn = torch.randn(31, 31, generator=seeded(3), dtype=torch.float64)
    root = drawn @ drawn.T / 31 + torch.eye(31, dtype=torch.float64)
    expected = by_falling(root @ dense(model) @ root)[:3]
    assert found(line)["results"][0]["eigenvalues"] == pytest.approx(expected, rel=1e-8 if dtype == "float64" else 1e-4)


def saved(name: str = "Adam", **more) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A checkpoint last.pt, its model, P, and the preconditioned Hessian."""
    model, (options, diagonal, decay, _) = network(), OPTIMIZERS[name]
    optimizer = trained(model, getattr(torch.optim, name), **options | more)
    in_checkpoint(model, optimizer)
    p = diagonal(optimizer)
    return model, p, around(dense(model), p) + torch.diag(decay(p))


MEETS = f"{LINE} --checkpoint last.pt --precondition optimizer"


def test_traces_and_densities(found):
    """The exact trace, an estimate within its error, and the nodes of a density: moments of the matrix."""
    model, p, matrix = saved("AdamW")
    trace = matrix.trace().item()
    assert found(f"trace {MEETS} --method dense")["results"][0]["trace"] == pytest.approx(trace, rel=1e-10)
    estimate = found(f"trace {MEETS} --rtol 0.05")["results"][0]
    assert estimate["method"] == "xtrace"
    assert abs(estimate["trace"] - trace) < 5 * estimate["standard_error"] + 1e-9 * abs(trace)
    ggn = found(f"trace {MEETS} --curvature ggn --rtol 0.05")["results"][0]  # itself exact by its factor
    expected = around(dense(model, "ggn"), p).trace().item() + 31 * 0.3
    assert abs(ggn["trace"] - expected) < 5 * ggn["standard_error"] + 1e-9 * expected
    density = found(f"density {MEETS} --steps 8 --probes 20 --out d")["results"][0]
    nodes, weights = np.array(density["nodes"]), np.array(density["weights"])
    means = (nodes * weights).sum(axis=1)
    assert abs(means.mean() * 31 - trace) < 5 * 31 * means.std(ddof=1) / 20**0.5
    assert nodes.max() == pytest.approx(by_falling(matrix)[0], rel=1e-3)


def test_layers_are_blocks_of_the_preconditioned_matrix(found):
    model, _, matrix = saved("Adam")
    entry = found(f"layers {MEETS} --rtol 1e-9 --tol 1e-7 -k 1 --sort sensitivity")["results"][0]
    theta = torch.cat([q.detach().flatten() for q in model.parameters()])
    whole = dense(model) + 0.3 * torch.eye(31, dtype=torch.float64)
    for block, place in zip(entry["blocks"], (slice(16), slice(16, 31)), strict=True):
        own = matrix[place, place]
        assert block["trace"] == pytest.approx(own.trace().item(), rel=1e-8)
        values = torch.linalg.eigvalsh(own)
        assert block["eigenvalues"] == pytest.approx([values[values.abs().argmax()].item()], rel=1e-5)
        # What the loss loses with a weight does not depend on the coordinates.
        saliency = (whole.diagonal() * theta.square() / 2)[place].sum().item()
        assert block["sensitivity"] == pytest.approx(saliency, rel=1e-8)
    problem = spectra.Problem(model, spectra.MeanSquaredError(), spectra.cut_batches(*data(), torch.arange(20), 7))
    held = spectra.layers(problem, precondition=spectra.read_optimizer("last.pt"), rtol=1e-9)
    assert [trace.value for trace in held.traces] == pytest.approx([b["trace"] for b in entry["blocks"]], rel=1e-8)


def test_comparisons_have_one_preconditioner(found):
    """P around every matrix; weight decay is of the loss, and not of products of gradients."""
    model, p, matrix = saved("AdamW")
    names = ("hessian", "ggn", "gradient-covariance")
    line = f"compare {MEETS} -k 4 --probes 8 --steps 6 " + " ".join(f"--curvature {name}" for name in names)
    record = found(line)
    x, y = data()
    rows = []
    for one, target in zip(x, y, strict=True):
        rows.append(torch.autograd.grad(nn.functional.mse_loss(model(one), target), [*model.parameters()]))
    gradients = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    centred = gradients - gradients.mean(dim=0)
    dense_matrices = (
        matrix,
        around(dense(model, "ggn"), p) + 0.3 * torch.eye(31, dtype=torch.float64),
        around(centred.T @ centred / 20, p),
    )
    for entry, expected in zip(record["results"], dense_matrices, strict=True):
        assert entry["eigenvalues"][0] == pytest.approx(by_falling(expected)[0], rel=1e-6)
        norm, error = expected.norm().item(), entry["norm"]["standard_error"]
        assert abs(entry["norm"]["value"] - norm) < 5 * error + 1e-9 * norm
    assert record["causes"] == []
    text = " ".join(compare_text(Record.of(record)).split())
    assert "gradient-covariance: weight decay is not added to products of gradients" in text
    curvatures = {
        name: spectra.Curvature(
            spectra.Problem(model, spectra.MeanSquaredError(), spectra.cut_batches(x, y, torch.arange(20), 20)), name
        )
        for name in ("hessian", "gradient-covariance")
    }
    own = spectra.preconditioner(spectra.read_optimizer("last.pt"), model)
    compared = spectra.compare(curvatures, k=2, probes=2, steps=0, precondition=own)
    for summary, expected in zip(compared.summaries.values(), (dense_matrices[0], dense_matrices[2]), strict=True):
        assert summary.eigenpairs.values[0].item() == pytest.approx(by_falling(expected)[0], rel=1e-6)


def test_least_squares(found):
    """The Hessian of a linear model is 2 X'X / (N K) for each output, whatever the weights: all in closed form."""
    x, y = data()
    model = nn.Linear(3, 1, bias=False).double()
    p = torch.tensor([0.25, 1.0, 9.0], dtype=torch.float64)
    batches = spectra.cut_batches(x, y[:, :1], torch.arange(20), 6)
    problem = spectra.Problem(model, spectra.MeanSquaredError(), batches)
    expected = by_falling(around(2 * x.T @ x / 20, p))
    for given in ({"weight": p[None]}, p, p.numpy(), torch.diag(p.rsqrt()), spectra.preconditioner(sgd(model), model)):
        values = spectra.eig(problem, k=3, which="LA", method="dense", precondition=given).values
        if isinstance(given, spectra.Preconditioner):
            expected = by_falling(2 * x.T @ x / 20)
        assert values.tolist() == pytest.approx(expected, rel=1e-10)
    live = trained(network(), torch.optim.Adam, lr=0.01)
    with pytest.raises(SpectraError, match="`precondition` Adam given in Python: "):
        spectra.eig(problem, k=1, precondition=live)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_scale_batches_frozen_and_tied_parameters(found):
    model = network()
    torch.save(model.state_dict(), "w.pt")
    own = f"{LINE} --checkpoint w.pt -k 4 --which LA --method dense"
    one, three = (
        found(f"eig {own} --precondition nets.py:vector?scale={scale}")["results"][0]["eigenvalues"] for scale in (1, 3)
    )
    assert one == pytest.approx([3 * value for value in three], rel=1e-12)
    cut = found(f"eig {own} --precondition nets.py:P --batch-size 7")["results"][0]["eigenvalues"]
    assert cut == pytest.approx(one, rel=1e-12)

    some = network(frozen=True)
    optimizer = trained(some, torch.optim.Adam, lr=0.01)
    in_checkpoint(some, optimizer)
    p = (1 - 0.9**T) * ((flat(optimizer, "exp_avg_sq") / (1 - 0.999**T)).sqrt() + 1e-8)
    line = f"eig {MEETS} -k 4 --which LA --method dense"
    values = found(line.replace("nets.py:build", "nets.py:frozen"))["results"][0]["eigenvalues"]
    assert values == pytest.approx(by_falling(around(dense(some), p))[:4], rel=1e-9)
    chosen = found(f"{line} --params 2.*")["results"][0]["eigenvalues"]  # of an optimizer that has more
    assert chosen == pytest.approx(by_falling(around(dense(some), p)[-15:, -15:])[:4], rel=1e-9)

    space: dict = {}
    exec(FILE, space)
    tied = space["Tied"]()
    optimizer = trained(tied, torch.optim.RMSprop, lr=0.01)
    in_checkpoint(tied, optimizer)
    p = flat(optimizer, "square_avg").sqrt() + 1e-8
    values = found(line.replace("nets.py:build", "nets.py:Tied"))["results"][0]["eigenvalues"]
    assert values == pytest.approx(by_falling(around(dense(tied), p))[:4], rel=1e-9)


def test_maximize_is_the_matrix_of_the_loss_turned_over(found):
    _, _, matrix = saved("RMSprop", maximize=True)
    record = found(f"eig {MEETS} -k 3 --which SA --method dense")
    assert record["results"][0]["eigenvalues"] == pytest.approx(torch.linalg.eigvalsh(-matrix)[:3].tolist(), rel=1e-9)
    assert record["problem"]["precondition"]["maximize"]
    ggn = found(f"density {MEETS} --curvature ggn --steps 6 --probes 3 --out d")["results"][0]
    assert ggn["negative"]["value"] > 0  # which of a GGN itself is zero by definition


@pytest.mark.parametrize("more", ["--products finite-difference", "--precision bf16 --dtype float32", "--batch-size 7"])
def test_products_of_other_kinds(found, more):
    """What is measured of their noise is that of the preconditioned matrix."""
    _, _, matrix = saved("AdamW")
    entry = found(f"eig {MEETS} -k 2 --which LA --tol 1e-3 {more}")["results"][0]
    values, residuals = entry["eigenvalues"], entry["residuals"]
    for value, residual, expected in zip(values, residuals, by_falling(matrix)[:2], strict=True):
        assert abs(value - expected) <= residual + 1e-4 * abs(expected)


def test_a_page_begins_with_whose_preconditioner_it_is(call):
    saved("AdamW")
    assert call(f"eig {MEETS} -k 1 --out e")[0] == 0
    assert call("report e --out page.html")[0] == 0
    with open("page.html", encoding="utf-8") as file:
        page = file.read()
    assert "; preconditioned: P^-1/2 A P^-1/2" in page
    assert r"\npreconditioned" not in page


REFUSED = {  # what is typed, and how the line of the error goes on
    "--precondition optimizer": "--precondition optimizer: there is no --checkpoint to read it from",
    "--precondition optimizer --checkpoint w.pt": "--precondition optimizer: w.pt holds no optimizer state",
    "--precondition w.pt": "--precondition w.pt: holds no optimizer state, only 0.weight",
    "--precondition none.pt": "--precondition none.pt: no such file",
    "--precondition last.pt?nam=Adam": "--precondition last.pt?nam=Adam: it has no option nam",
    "--precondition last.pt?name=SGD": "--precondition last.pt?name=SGD: its groups have",
    "--precondition text.npz": "--precondition text.npz: it is damaged, or not a .npz file of numeric arrays",
    "--precondition text.pt": "--precondition text.pt: it is a text file",
    "--precondition code.pt": (
        "--precondition code.pt: it holds json.loads, which could run code, so it was not run; save it "
        'again, where it was made: torch.save(optimizer.state_dict(), "optimizer.pt")'
    ),
    "--precondition less.npz": (
        "--precondition less.npz: it has no array for 0.bias, 2.weight, 2.bias, only for 0.weight"
    ),
    "--precondition zero.npz": "--precondition zero.npz: its P for 2.bias is zero, negative or not finite",
    "--precondition shape.npz": (
        "--precondition shape.npz: its P for 0.weight has shape (12,), but the parameter has shape (4, 3)"
    ),
    "--precondition nets.py:skew": "--precondition nets.py:skew: its P^-1/2: the matrix is not symmetric",
    "--precondition nets.py:FILE": "--precondition nets.py:FILE: nets.py has no FILE",
    "--precondition nets.py:vector?scale=-1": (
        "--precondition nets.py:vector?scale=-1: its P for all parameters is zero"
    ),
    "--precondition nets.py:P --params 0.*": "--precondition nets.py:P: its P has 31 entries, but there are 16",
    "--precondition nets.py:P --wrt inputs": "--precondition: an optimizer updates parameters, not inputs",
    "--precondition nets.py:P --curvature ntk": "--curvature ntk: is a matrix over examples",
    "--precondition nets.py:P --curvature ggn --method gram": "--method gram: needs a factor of the matrix",
    "--precondition last.pt --weight-decay 0.1": (
        "--weight-decay 0.1: the optimizer of --precondition has its own weight"
    ),
    "--precondition last.pt --deflate plain": "--deflate plain: its matrices are not preconditioned",
}


@pytest.fixture
def files():
    model, _, _ = saved("Adam")
    torch.save(model.state_dict(), "w.pt")
    torch.save({"callback": json.loads}, "code.pt")
    parts = {name: part.numpy() for name, part in by_names(diagonal_of()).items()}
    np.savez("less.npz", **{"0.weight": parts["0.weight"]})
    np.savez("zero.npz", **parts | {"2.bias": 0 * parts["2.bias"]})
    np.savez("shape.npz", **{name: part.ravel() for name, part in parts.items()})
    for name in ("text.npz", "text.pt"):
        with open(name, "w") as file:
            file.write("no numbers")


@pytest.mark.sampled(10)
@pytest.mark.parametrize("typed", REFUSED)
def test_refusals(call, files, typed):
    command = "trace" if "--deflate" in typed else "eig"
    if command == "trace":
        assert call(f"eig {LINE} -k 2 --out plain")[0] == 0
    status, out, err = call(f"{command} {LINE} {typed}")
    assert (status, out) == (2, "")
    (line,) = [told for told in err.splitlines() if not told.startswith("PyTorch")]
    assert line.startswith(f"spectra: {REFUSED[typed]}")


def test_layers_refuse_what_mixes_them(call):
    status, _, err = call(f"layers {LINE} --precondition nets.py:operator")
    assert status == 2
    assert "--precondition: P^-1/2 is not diagonal, so it mixes layers" in err


def test_the_threshold_stands_beside_eigenvalues(call):
    _, _, matrix = saved("RMSprop")
    text = " ".join(call(f"eig {MEETS} -k 2 --which LA")[1].split())
    assert "hessian, preconditioned" in text
    assert "preconditioned: P^-1/2 A P^-1/2 for each matrix A, P of RMSprop in the checkpoint" in text
    assert "threshold of stability 300 (RMSprop, eta 0.01)" in text
    assert f"hessian: eigenvalue 1 is {by_falling(matrix)[0] / 300:.4f} ± " in text
    assert "is at" not in call(f"eig {MEETS} -k 2 --which SA")[1]  # the largest eigenvalue is not known there
    lines = (f"layers {MEETS} --rtol 0.1", f"density {MEETS} --steps 5 --probes 2 --out d")
    for line in lines:
        assert "threshold of stability 300" in call(line)[1]
    assert "threshold of stability 300" in facts(spectra.load_result("d"))["Preconditioner"]


def test_groups_whose_rates_or_momenta_differ(call, found):
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[2].parameters(), "lr": 0.03}]
    optimizer = trained(model, torch.optim.RMSprop, groups)
    in_checkpoint(model, optimizer)
    rates = torch.tensor([0.01] * 16 + [0.03] * 15, dtype=torch.float64)
    p = (flat(optimizer, "square_avg").sqrt() + 1e-8) / rates
    record = found(f"eig {MEETS} -k 3 --which LA --method dense")
    assert record["results"][0]["eigenvalues"] == pytest.approx(by_falling(around(dense(model), p))[:3], rel=1e-9)
    assert (record["problem"]["precondition"]["rate"], record["problem"]["precondition"]["threshold"]) == (None, 2.0)
    assert "threshold of stability 2 (RMSprop, without eta)" in call(f"eig {MEETS} -k 1")[1]
    groups = [{"params": model[0].parameters(), "momentum": 0.5}, {"params": model[2].parameters()}]
    in_checkpoint(model, trained(model, torch.optim.RMSprop, groups, lr=0.01))
    assert "no threshold of stability: momentum differs between parameters" in call(f"eig {MEETS} -k 1")[1]


def test_a_figure_marks_a_threshold_that_is_near(found):
    saved("RMSprop")
    found(f"eig {MEETS} -k 3 --which LA --out e")
    record = spectra.load_result("e")
    top = record.results[0].values[0]

    def dashed(axes):
        return [line for line in axes.lines if line.get_linestyle() == "--" and line.get_color() == LOOK["color"]]

    class Found:
        values, residuals = record.results[0].values, record.results[0].residuals

    for threshold, count in ((1.5 * top, 1), (0.5 * top, 1), (3 * top, 0), (None, 0)):
        for log in (False, True)[: 1 + count]:
            (axes,) = eigenvalue_figure({"hessian": Found}, log=log, thresholds=[threshold]).axes
            assert len(dashed(axes)) == count
            low, high = axes.get_ylim()
            assert not count or low < threshold < high
    measure = spectra.spectral_measure(torch.diag(torch.arange(30.0)).double(), steps=8, probes=3)
    for threshold, count in ((40.0, 1), (100.0, 0)):
        for log in (False, True)[: 1 + count]:
            figure = density_figure({"hessian": measure}, log=log, thresholds=[threshold])
            panels = (figure.axes[0], figure.axes[2])
            assert [len(dashed(axes)) for axes in panels] == [count, count]
            assert not count or panels[0].get_xlim()[1] > threshold


def test_eigenvectors_of_the_same_preconditioned_matrix_are_used(found, call):
    saved("AdamW")
    eig = found(f"eig {MEETS} -k 3 --out o")
    again = found(f"trace {MEETS} --out o")["results"][0]
    assert again["projected_out"] == 3
    plain = call(f"trace {LINE} --checkpoint last.pt --out o --rtol 0.2")
    assert "its matrices are preconditioned by optimizer, unlike those of this run" in plain[2]
    assert call(f"landscape {LINE} --checkpoint last.pt --eigenvectors o")[0] == 2
    told = found("trace --config o/eig.json --model nets.py:build --out p")
    assert told["problem"]["precondition"] == eig["problem"]["precondition"]
    saved("AdamW", lr=0.02)  # another state in the same file
    assert "has changed since that result" in call("trace --config o/eig.json --model nets.py:build")[2]


def test_another_state_is_another_run(found, call, monkeypatch):
    """What an unfinished run has left is taken up for the same P alone."""
    model, _, _ = saved("RMSprop")
    torch.save(model.state_dict(), "w.pt")
    kept = Session.save_record
    line = f"eig {LINE} --checkpoint w.pt --precondition P.npz -k 2 --which LA --out o"

    def killed(session, record):
        raise KeyboardInterrupt

    as_npz(diagonal_of())
    monkeypatch.setattr(Session, "save_record", killed)
    assert call(line)[0] == 130
    monkeypatch.setattr(Session, "save_record", kept)
    as_npz(diagonal_of(2.0))
    status, _, err = call(line)
    assert status == 2
    assert "an unfinished run of another problem is there (preconditioner checksum was" in err
    as_npz(diagonal_of())
    record = found(line)
    assert record["results"][0]["eigenvalues"] == pytest.approx(by_falling(around(dense(model), diagonal_of()))[:2])


def test_a_result_of_an_object_cannot_be_repeated_without_it(call):
    model = network()
    optimizer = trained(model, torch.optim.Adam, lr=0.01)
    torch.save(model.state_dict(), "w.pt")
    x, y = data()
    spectra.eig(
        "nets.py:build",
        "mse",
        "points.npz",
        checkpoint="w.pt",
        dtype="float64",
        k=1,
        precondition=diagonal_of(),
        out="o",
    )
    record = spectra.load_result("o")
    assert record.problem.precondition.spec == "Tensor given in Python"
    assert "precondition" not in record.problem.options
    line = "trace --config o/eig.json --model nets.py:build"
    status, _, err = call(line)
    assert status == 2
    assert "the preconditioner was Tensor given in Python, which a file cannot name; give --precondition" in err
    values = spectra.eig(model, nn.MSELoss(), (x, y), k=1, precondition=optimizer, method="dense").values
    p = (1 - 0.9**T) * ((flat(optimizer, "exp_avg_sq") / (1 - 0.999**T)).sqrt() + 1e-8)
    expected = torch.linalg.eigvalsh(around(dense(model), p))
    assert values.tolist() == pytest.approx([expected[expected.abs().argmax()].item()], rel=1e-9)
