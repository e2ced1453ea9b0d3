"""`spectra.eig`, `spectra.trace`, `spectra.density`: the commands' numbers and files, from objects of one's own."""

from __future__ import annotations

import importlib
import json
import pkgutil
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import arrays_of
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import spectra
from spectra.cli import run
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError

NETS = """
import torch
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
"""
CLOCKS = ("seconds", "setup_seconds", "figure")
COMMANDS = {
    "eig": ("eig -k 3 --which BE --tol 1e-4", {"k": 3, "which": "BE", "tolerance": 1e-4}),
    "trace": ("trace --method hutchinson --rtol 0.2", {"method": "hutchinson", "rtol": 0.2}),
    "density": ("density --steps 8 --probes 3 --damping 2", {"steps": 8, "probes": 3, "damping": 2}),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    np.savez("points.npz", x=draw.normal(size=(40, 4)), y=draw.integers(3, size=40))
    return tmp_path


def points():
    arrays = arrays_of("points.npz")
    return torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])


def mlp(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def numbers(path):
    """Of a file, all that no clock has measured."""
    record = json.loads(Path(path).read_text())
    for result in record["results"]:
        for name in CLOCKS:
            result.pop(name, None)
    return record


# The same as the commands


@pytest.mark.sampled(1)
@pytest.mark.parametrize("command", COMMANDS)
def test_names_give_the_file_of_the_command(command, capfd):
    line, settings = COMMANDS[command]
    problem = "--model nets.py:mlp --data points.npz --dtype float64 --seed 3 --samples 30 --params 0.* --params 2.*"
    assert run([*f"{line} {problem} --curvature hessian --curvature ggn --out typed".split()]) == 0
    capfd.readouterr()
    options = {"dtype": "float64", "seed": 3, "samples": 30, "params": ("0.*", "2.*")}
    call = getattr(spectra, command)
    found = call(
        "nets.py:mlp", "cross_entropy", "points.npz", curvature=["hessian", "ggn"], out="called", **settings, **options
    )
    assert capfd.readouterr() == ("", "")
    typed, called = numbers(f"typed/{command}.json"), numbers(f"called/{command}.json")
    assert called == typed
    assert [result.curvature for result in found] == ["hessian", "ggn"]
    names = sorted(path.name for path in Path("typed").iterdir())
    assert sorted(path.name for path in Path("called").iterdir()) == names
    if f"{command}.npz" in names:
        one, other = (arrays_of(f"{place}/{command}.npz") for place in ("typed", "called"))
        assert all((one[key] == other[key]).all() for key in one)
        assert [*one] == [*other]
    assert run([command, "--config", f"called/{command}.json", "--trust", "--out", "again"]) == 0
    assert numbers(f"again/{command}.json")["results"] == typed["results"]


@pytest.mark.parametrize("command", COMMANDS)
def test_objects_give_the_numbers_of_the_command(command):
    line, settings = COMMANDS[command]
    model = mlp()
    torch.save(model.state_dict(), "model.pt")
    problem = "--model nets.py:mlp --checkpoint model.pt --data points.npz --dtype float64 --device cpu"
    assert run(f"{line} {problem} --out a".split()) == 0
    found = getattr(spectra, command)(model, nn.CrossEntropyLoss(), points(), out="b", **settings)
    typed, called = numbers(f"a/{command}.json"), numbers(f"b/{command}.json")
    assert called["results"] == typed["results"]
    assert called["problem"]["loss"] == "cross_entropy"
    assert called["problem"]["loss_value"] == typed["problem"]["loss_value"]
    assert found.products == typed["results"][0]["products"]
    assert found.converged


def test_the_fields_of_results():
    model, loss, data = mlp(), nn.CrossEntropyLoss(), points()
    pairs = spectra.eig(model, loss, data, k=2)
    assert pairs.values.shape == pairs.residuals.shape == (2,)
    assert pairs.vectors.shape == (2, 43)
    assert (pairs.converged, pairs.complete) == (True, True)
    assert pairs.products > 0
    trace = spectra.trace(model, loss, data, method="dense")
    assert trace.standard_error == 0
    density = spectra.density(model, loss, data, steps=43, probes=2)
    assert density.dimension == 43
    assert density.weights.sum(axis=1) == pytest.approx([1, 1])
    assert not list(Path().glob("*.png"))


def test_one_name_gives_one_result_and_several_a_list_in_their_order():
    names = ["ggn", "hessian", "ggn"]
    found = spectra.trace(mlp(), nn.CrossEntropyLoss(), points(), curvature=names, method="dense")
    assert [result.curvature for result in found] == names
    assert isinstance(spectra.trace(mlp(), nn.CrossEntropyLoss(), points(), curvature=("ggn",), rtol=1.0), list)


def test_eigenpairs_of_an_earlier_call_are_projected_out():
    given = mlp(), nn.CrossEntropyLoss(), points()
    spectra.eig(*given, k=4, out="a")
    assert spectra.trace(*given, out="a", rtol=0.3).projected_out == 4
    assert spectra.density(*given, steps=5, probes=2, deflate="a/eig.json").projected_out == 4
    assert spectra.trace(*given, rtol=0.3).projected_out == 0


# Closed forms


def test_least_squares():
    """The mean of (x'w - y)^2 over N has the Hessian 2 X'X / N."""
    x, y = torch.randn(30, 6, dtype=torch.float64), torch.randn(30, 1, dtype=torch.float64)
    model = nn.Linear(6, 1, bias=False).double()
    hessian = torch.linalg.eigvalsh(2 * x.T @ x / 30).flip(0)
    for curvature in ("hessian", "ggn", "fisher"):
        found = spectra.eig(model, nn.MSELoss(), (x, y), curvature=curvature, k=6, tolerance=1e-8)
        assert found.values == pytest.approx(hessian.numpy(), rel=1e-6)
        trace = spectra.trace(model, nn.MSELoss(), (x, y), curvature=curvature, method="dense", weight_decay=0.5)
        assert trace.trace == pytest.approx(hessian.sum().item() + 6 * 0.5)
        density = spectra.density(model, nn.MSELoss(), (x, y), curvature=curvature, steps=6, probes=200)
        moment = (density.nodes * density.weights).sum(axis=1)
        assert moment.mean() == pytest.approx(hessian.mean().item(), abs=4 * moment.std() / 200**0.5 + 1e-12)


class Weighed(nn.CrossEntropyLoss):
    """A loss of the caller's own, though PyTorch's is behind it."""

    def forward(self, output, target):
        return 2 * super().forward(output, target)


def of_outputs(output, target):
    return (output - F.one_hot(target, 3)).square().sum(1)


WEIGHT = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
LOSSES = {
    "module": (nn.CrossEntropyLoss(), True),
    "weight": (nn.CrossEntropyLoss(weight=WEIGHT), True),
    "smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), True),
    "ignore_index": (nn.CrossEntropyLoss(ignore_index=1), True),
    "reduction none": (nn.CrossEntropyLoss(reduction="none"), True),
    "function of PyTorch": (F.cross_entropy, True),
    "ours": (spectra.CrossEntropy(), True),
    "name": ("cross_entropy", True),
    "subclass": (Weighed(), False),
    "function": (of_outputs, False),
    "lambda": (lambda output, target: of_outputs(output, target), False),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    """The Hessian is PyTorch's own, of the mean; where the loss is known, so is the Fisher."""
    loss, known = LOSSES[name]
    model, (x, y) = mlp(), points()
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    def mean(vector):
        parts = dict(zip(dict(model.named_parameters()), split(model, vector), strict=True))
        function = spectra_free(loss)
        return function(torch.func.functional_call(model, parts, (x,)), y).mean()

    hessian = torch.autograd.functional.hessian(mean, theta)
    batches = [(x[:7], y[:7]), (x[7:], y[7:])] if known else (x, y)
    found = spectra.trace(model, loss, batches, method="dense")
    assert found.trace == pytest.approx(hessian.trace().item(), rel=1e-9)
    if known:
        ggn, fisher = spectra.trace(model, loss, batches, curvature=["ggn", "fisher"], method="dense")
        assert ggn.trace == pytest.approx(fisher.trace, rel=1e-9)
    else:
        with pytest.raises(SpectraError, match="distribution"):
            spectra.trace(model, loss, (x, y), curvature="fisher")


def spectra_free(loss):
    """PyTorch's own function for ours, or the same with a mean."""
    if isinstance(loss, str | spectra.CrossEntropy):
        return F.cross_entropy
    return nn.CrossEntropyLoss() if getattr(loss, "reduction", "") == "none" else loss


def split(model, vector):
    parts = vector.split([p.numel() for p in model.parameters()])
    return [part.view(p.shape) for part, p in zip(parts, model.parameters(), strict=True)]


@pytest.mark.parametrize("weight", [None, [2.0, 1.0, 0.5]])
def test_binary_cross_entropy(weight):
    """With weights of positive labels it is a loss of one's own, whose GGN is there all the same."""
    x, _ = points()
    y = (torch.rand(40, 3) > 0.5).double()
    loss = nn.BCEWithLogitsLoss(pos_weight=None if weight is None else torch.tensor(weight, dtype=torch.float64))
    model = nn.Linear(4, 3).double()
    hessian, ggn = spectra.trace(model, loss, (x, y), curvature=["hessian", "ggn"], method="dense")
    assert hessian.trace == pytest.approx(ggn.trace, rel=1e-9)  # of a linear model
    sigma, scale = model(x).sigmoid().detach(), torch.ones_like(y)
    if weight:
        scale += y * (torch.tensor(weight, dtype=torch.float64) - 1)
    expected = ((scale * sigma * (1 - sigma)).sum(1) * (x.square().sum(1) + 1)).mean() / 3
    assert hessian.trace == pytest.approx(expected.item(), rel=1e-9)


# Data


class Pieces(IterableDataset):
    def __iter__(self):
        yield from zip(*points(), strict=True)


DATA = {
    "tensors": lambda x, y: (x, y),
    "list of tensors": lambda x, y: [x, y],
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=7),
    "shuffling loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True),
    "loader of an iterable": lambda x, y: DataLoader(Pieces(), batch_size=9),
    "data set": lambda x, y: TensorDataset(x, y),
    "two batches": lambda x, y: [(x[:20], y[:20]), (x[20:], y[20:])],
    "generator": lambda x, y: ((x[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8)),
    "mappings": lambda x, y: [{"input": x[:30], "labels": y[:30]}, {"input": x[30:], "labels": y[30:]}],
    "our batches": lambda x, y: spectra.cut_batches(x, y, torch.arange(40), 11),
    "int32 labels": lambda x, y: [(x, y.int())],
    "float32, cast": lambda x, y: (x.float(), y),
    "name": lambda x, y: "points.npz",
}


@pytest.mark.parametrize("name", DATA)
def test_data(name):
    expected = spectra.trace(mlp(), nn.CrossEntropyLoss(), points(), method="dense").trace
    found = spectra.trace(mlp(), nn.CrossEntropyLoss(), DATA[name](*points()), method="dense")
    assert found.trace == pytest.approx(expected, rel=1e-5 if "cast" in name else 1e-9)


def test_batches_are_kept_unless_a_size_is_asked_for():
    """fisher-batch is the one matrix that depends on them."""
    x, y = points()

    def trace(data, **options):
        found = spectra.trace(mlp(), nn.CrossEntropyLoss(), data, curvature="fisher-batch", method="dense", **options)
        return found.trace

    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    assert trace(loader) == pytest.approx(trace((x, y), batch_size=8))
    assert trace(loader, batch_size=20) == pytest.approx(trace((x, y), batch_size=20))
    assert trace(loader) != pytest.approx(trace((x, y)))


def test_samples_of_batches_are_those_of_tensors():
    x, y = points()
    loader, options = DataLoader(TensorDataset(x, y), batch_size=8), {"samples": 11, "method": "dense", "seed": 4}
    one, other = (spectra.trace(mlp(), nn.CrossEntropyLoss(), data, **options).trace for data in (loader, (x, y)))
    assert one == pytest.approx(other, rel=1e-9)


def test_batches_of_different_lengths():
    """Sequences padded batch by batch cannot be joined, and need not be."""
    model = nn.Embedding(5, 3).double()
    batches = [(torch.randint(5, (4, n)), torch.randint(3, (4, n))) for n in (2, 3)]
    found = spectra.trace(Last(model), nn.CrossEntropyLoss(), batches, method="dense")
    assert found.trace > 0
    with pytest.raises(SpectraError, match=r"`batch_size` 2: the batches cannot be joined .*; leave `batch_size` out"):
        spectra.trace(Last(model), nn.CrossEntropyLoss(), batches, batch_size=2)


class Last(nn.Module):
    """Classes are dimension 1, as PyTorch has it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).movedim(-1, 1)


# Models


def convolutional():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).train()


def everything(model):
    """All that a training loop could see of a model."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    about = [(p.requires_grad, p.dtype, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    return state, about, [module.training for module in model.modules()], [id(p) for p in model.parameters()]


def equal(one, other):
    same = all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    grads = all(torch.equal(a[2], b[2]) for a, b in zip(one[1], other[1], strict=True) if a[2] is not None)
    return same and grads and [a[:2] for a in one[1]] == [b[:2] for b in other[1]] and one[2:] == other[2:]


@pytest.mark.parametrize("around", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("options", [{}, {"dtype": "float64"}, {"dtype": torch.float64, "device": "cpu"}])
def test_the_model_is_left_as_found(options, around):
    model, (x, y) = convolutional(), points()
    model[0].bias.requires_grad_(False)
    F.cross_entropy(model(x.float()), y).backward()
    before, draws = everything(model), torch.random.get_rng_state()
    with around():
        found = spectra.eig(model, nn.CrossEntropyLoss(), DataLoader(TensorDataset(x, y), 8, shuffle=True), **options)
    assert equal(before, everything(model))
    assert torch.equal(draws, torch.random.get_rng_state())
    assert len(found.vectors[0]) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.vectors.dtype == (np.float64 if options else np.float32)


def test_the_model_is_left_as_found_where_the_call_fails():
    model = convolutional()
    before = everything(model)
    with pytest.raises(SpectraError, match="fails on the data"):
        spectra.eig(model, nn.CrossEntropyLoss(), (torch.randn(9, 3), torch.zeros(9).long()))
    assert equal(before, everything(model))


def test_what_was_made_in_inference_mode():
    expected = spectra.trace(mlp(), nn.CrossEntropyLoss(), points(), method="dense").trace
    with torch.inference_mode():
        model, data = mlp(), points()
        data = [tensor.clone() for tensor in data]
        for given in (data, [data]):
            assert spectra.trace(model, nn.CrossEntropyLoss(), given, method="dense").trace == pytest.approx(expected)
    assert model[0].weight.is_inference()


def test_it_is_looked_at_in_eval_mode():
    model, data = convolutional(), [t.float() if t.is_floating_point() else t for t in points()]
    trained = spectra.trace(model, nn.CrossEntropyLoss(), data, method="dense").trace
    assert trained == spectra.trace(model.eval(), nn.CrossEntropyLoss(), data, method="dense").trace


def test_rows_of_embeddings_are_shortened_in_a_copy():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 3, max_norm=0.1), nn.Flatten(), nn.Linear(6, 3)).double()
    before, data = everything(model), (torch.randint(6, (9, 2)), torch.randint(3, (9,)))
    spectra.eig(model, nn.CrossEntropyLoss(), data, k=1, out="a")
    assert equal(before, everything(model))
    assert model[0].max_norm == 0.1
    assert "were cut to max_norm" in json.loads(Path("a/eig.json").read_text())["problem"]["notes"][0]


def test_wrapped_models():
    model, data = mlp(), points()
    expected = spectra.trace(model, nn.CrossEntropyLoss(), data, method="dense").trace
    compiled = mlp()
    compiled[0] = torch.compile(compiled[0])
    for wrapped in (nn.DataParallel(mlp()), torch.compile(mlp()), compiled):
        assert spectra.trace(wrapped, nn.CrossEntropyLoss(), data, method="dense").trace == pytest.approx(expected)
    assert hasattr(compiled[0], "_orig_mod")


def test_a_problem_in_place_of_the_model():
    x, y = points()
    problem = spectra.Problem(mlp().eval(), spectra.CrossEntropy(), spectra.cut_batches(x, y, torch.arange(40), 16))
    expected = spectra.eig(mlp(), nn.CrossEntropyLoss(), (x, y), k=3)
    found = spectra.eig(problem, k=3, out="a")
    assert found.values == pytest.approx(expected.values, rel=1e-6)
    record = json.loads(Path("a/eig.json").read_text())
    assert record["problem"]["parameters"] == 43
    assert record["problem"]["model"] == "Sequential"
    with pytest.raises(TypeError, match=r"eig\(\) takes no weight_decay with a Problem"):
        spectra.eig(problem, weight_decay=1.0)
    with pytest.raises(TypeError, match=r"eig\(\) takes no data with a Problem"):
        spectra.eig(problem, data=(x, y))


# On the way


class Stop:
    """A callback that ends the call after so many products, as Ctrl-C would."""

    def __init__(self, products):
        self.products, self.told = products, []

    def __call__(self, name, **numbers):
        self.told.append((name, numbers))
        if numbers.get("products", 0) >= self.products:
            raise KeyboardInterrupt


@pytest.mark.parametrize("problem", [False, True], ids=["module", "Problem"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_call_that_was_cut_off_goes_on(command, problem, monkeypatch):
    calls, multiply = 0, Curvature.__matmul__

    def counting(self, vectors):
        nonlocal calls
        calls += 1 if vectors.ndim == 1 else vectors.shape[1]
        return multiply(self, vectors)

    monkeypatch.setattr(Curvature, "__matmul__", counting)
    x, y = points()
    given = mlp().eval(), nn.CrossEntropyLoss(), (x, y)
    if problem:
        given = (spectra.Problem(given[0], spectra.CrossEntropy(), spectra.cut_batches(x, y, torch.arange(40), 16)),)
    settings = COMMANDS[command][1] | {"curvature": ["hessian", "ggn"]}
    call, stop = getattr(spectra, command), Stop(9)
    whole = call(*given, out="whole", **settings)
    made, calls = calls, 0
    with pytest.raises(KeyboardInterrupt, match="holds the work so far"):
        call(*given, out="cut", progress=stop, **settings)
    assert ("loading", {"stage": "the loss over the data"}) in stop.told
    assert ("loading", {"stage": "waiting for the other ranks"}) not in stop.told  # there are none
    assert [path.name for path in Path("cut").iterdir()] == [f"{command}.state"]
    spent, calls = calls, 0
    found = call(*given, out="cut", **settings)
    assert spent >= 9
    assert calls <= made - spent + 2  # the first product of each matrix is made again
    assert [one.products for one in found] == [one.products for one in whole]
    assert numbers(f"cut/{command}.json")["results"] == numbers(f"whole/{command}.json")["results"]
    assert not Path("cut", f"{command}.state").exists()


def test_what_another_model_has_left_is_not_taken_up():
    """Not even where its loss is the same: the first layer's units change places."""
    model, data, loss = mlp(), points(), nn.CrossEntropyLoss()
    with pytest.raises(KeyboardInterrupt):
        spectra.eig(model, loss, data, out="a", progress=Stop(9))
    with torch.no_grad():
        order = torch.tensor([1, 0, 2, 3, 4])
        model[0].weight.copy_(model[0].weight[order])
        model[0].bias.copy_(model[0].bias[order])
        model[2].weight.copy_(model[2].weight[:, order])
    with pytest.raises(SpectraError, match=r"a/eig\.state"):
        spectra.eig(model, loss, data, out="a")


def test_a_command_goes_on_where_a_call_was_cut_off(capfd):
    options = {"k": 3, "dtype": "float64", "out": "a"}
    with pytest.raises(KeyboardInterrupt):
        spectra.eig("nets.py:mlp", "cross_entropy", "points.npz", progress=Stop(9), **options)
    assert (
        run(["eig", "-k", "3", "--model", "nets.py:mlp", "--data", "points.npz", "--dtype", "float64", "--out", "a"])
        == 0
    )
    assert "resumes after" in capfd.readouterr().err


# What cannot be


def bad(**options):
    return lambda: spectra.eig(mlp(), nn.CrossEntropyLoss(), points(), **options)


REFUSED = {
    "an argument that there is not": (bad(kk=3), TypeError, r"eig\(\) got an unexpected keyword argument 'kk'"),
    "a slip": (bad(weight_deacy=3), TypeError, "did you mean weight_decay"),
    "a slip of its own": (bad(tolerence=1e-3), TypeError, "did you mean tolerance"),
    "no loss": (lambda: spectra.eig(mlp()), TypeError, r"eig\(\) is missing the argument loss"),
    "no data": (lambda: spectra.trace(mlp(), nn.MSELoss()), TypeError, r"trace\(\) is missing the argument data"),
    "k": (bad(k=0), SpectraError, "^`k` 0: expected an integer of 1 or more$"),
    "k, real": (bad(k=2.5), SpectraError, r"^`k` 2\.5: expected an integer of 1 or more$"),
    "which": (bad(which="SM"), SpectraError, "^`which` 'SM': choose from BE, LA, LM, SA"),
    "method": (bad(method="lancsoz"), SpectraError, "^`method` 'lancsoz': did you mean lanczos"),
    "tolerance": (bad(tolerance=0), SpectraError, "^`tolerance` 0: expected a finite number above 0$"),
    "curvature": (bad(curvature="hesian"), SpectraError, "^`curvature` 'hesian': did you mean hessian"),
    "no curvature": (bad(curvature=[]), SpectraError, "^`curvature`: is empty"),
    "seed": (bad(seed=-1), SpectraError, "^`seed` -1"),
    "max_products": (bad(max_products=0), SpectraError, "^`max_products` 0"),
    "samples": (bad(samples=41), SpectraError, "samples"),
    "batch_size": (bad(batch_size=0), SpectraError, "^`batch_size` 0"),
    "weight_decay": (bad(weight_decay=float("nan")), SpectraError, "^`weight_decay` nan"),
    "checkpoint": (
        bad(checkpoint="a.pt"),
        SpectraError,
        "^`checkpoint` a.pt: it applies only to what is given",
    ),
    "transform": (
        bad(transform="a.py:f"),
        SpectraError,
        "^`transform` a.py:f: it applies only to what is given",
    ),
    "half precision": (
        lambda: spectra.eig(mlp(dtype=torch.float8_e4m3fn), nn.CrossEntropyLoss(), points()),
        SpectraError,
        "its parameters are torch.float8_e4m3fn, too imprecise .* `dtype` float32",
    ),
    "lazy": (
        lambda: spectra.eig(nn.LazyLinear(3), nn.CrossEntropyLoss(), points()),
        SpectraError,
        "lazy layers have no shapes",
    ),
    "classes last": (
        lambda: spectra.eig(nn.Linear(4, 3), nn.CrossEntropyLoss(), (torch.ones(6, 5, 4), torch.zeros(6, 5).long())),
        SpectraError,
        r"the last dimension holds the classes: give `loss` cross_entropy\?class_dim=-1",
    ),
    "a class": (lambda: spectra.eig(nn.Linear, nn.MSELoss(), points()), SpectraError, r"call it first: Linear\(...\)"),
    "no model": (
        lambda: spectra.eig(3, nn.MSELoss(), points()),
        SpectraError,
        "^`model`: expected a module, a name or",
    ),
    "curvature None": (bad(curvature=None), SpectraError, "^`curvature` None: expected the name of a matrix"),
    "probes": (lambda: spectra.trace(mlp(), nn.CrossEntropyLoss(), points(), probes=1), SpectraError, "^`probes` 1"),
    "steps": (lambda: spectra.density(mlp(), nn.CrossEntropyLoss(), points(), steps=1), SpectraError, "^`steps` 1"),
    "empty": (lambda: spectra.eig(mlp(), nn.CrossEntropyLoss(), []), SpectraError, "`data`: list is empty"),
    "three": (
        lambda: spectra.eig(mlp(), nn.CrossEntropyLoss(), [(1, 2, 3)]),
        SpectraError,
        r"`data`: batch 0 of list is a tuple, but every batch has to be a pair \(x, y\)",
    ),
    "lengths": (
        lambda: spectra.eig(mlp(), nn.CrossEntropyLoss(), [(torch.ones(3, 4), torch.zeros(2))]),
        SpectraError,
        r"x and y of batch 0 of list have shapes \(3, 4\), \(2,\)",
    ),
    "not finite": (
        lambda: spectra.eig(mlp(), nn.CrossEntropyLoss(), [(torch.full((3, 4), torch.nan), torch.zeros(3).long())]),
        SpectraError,
        "x of example 0 is not finite",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    call, kind, told = REFUSED[name]
    with pytest.raises(kind, match=told):
        call()


def test_no_module_takes_the_place_of_a_public_name():
    """Importing `spectra.density`, were there such a module, would overwrite the function."""
    for module in pkgutil.walk_packages(spectra.__path__, "spectra."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert [name for name in spectra.__all__ if isinstance(getattr(spectra, name), ModuleType)] == []
