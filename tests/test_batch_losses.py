"""Losses of (model, batch), losses of several parts, and losses that models return, against dense references."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import spectra
from spectra.cli import run
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.inputs.problem import load_problem

FILE = '''
import torch
import torch.nn.functional as F
from torch import nn

def net(inputs=2, outputs=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs))

def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

def points():
    return draw(24, 2)

def pairs():
    return draw(24, 2), draw(24, 2, seed=1)

def noised():
    return {"x": draw(24, 2), "t": draw(24, 1, seed=1).sigmoid(), "noise": draw(24, 2, seed=2)}

def heat(model, x):
    """A physics-informed loss: a residual at each point, and the boundary, which is one number."""
    x = x.requires_grad_()
    u = model(x)[:, :1]
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)
    edge = model(torch.zeros(1, 2, dtype=x.dtype, device=x.device))
    return {"residual": (slope[:, 1] - bend[:, 0] + x[:, 0].sin()) ** 2, "boundary": (edge**2).sum()}

def squares(model, batch):
    x, y = batch
    return (model(x) - y) ** 2

def mean_square(model, batch):
    x, y = batch
    return F.mse_loss(model(x), y)

def simclr(model, batch):
    one, two = (F.normalize(model(x), dim=1) for x in batch)
    scores = one @ two.T / 0.5
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))

def anchors(model, batch):
    """The same contrast with a value for each example, which depends on the others."""
    one, two = (F.normalize(model(x), dim=1) for x in batch)
    scores = one @ two.T / 0.5
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="none")

def diffusion(model, batch):
    moved = (1 - batch["t"]) * batch["x"] + batch["t"] * batch["noise"]
    return F.mse_loss(model(moved), batch["noise"], reduction="none").mean(1)

def two_parts(output, target):
    return {"error": ((output - target) ** 2).mean(1), "size": 0.3 * output.exp().mean()}

def by_another_name(network, batch):
    return squares(network, batch)

class Weighted(nn.Module):
    def __init__(self, scale=2.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, model, batch):
        return self.scale.detach() * mean_square(model, batch)
'''
WHOLE = ("heat", "mean_square", "simclr", "anchors", "Weighted")  # which take whole batches
DATA = {"heat": "points", "simclr": "pairs", "anchors": "pairs", "diffusion": "noised"}
OPTIONS = {"by_another_name": "?signature=model", "Weighted": "?scale=3.0"}
LOSSES = ["heat", "squares", "mean_square", "simclr", "anchors", "diffusion", "by_another_name", "Weighted"]


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch):
    """The user's file as a namespace, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(FILE)
    names: dict = {}
    exec(FILE, names)
    return names


def dense(model: nn.Module, loss: Callable, count: int = 24) -> Tensor:
    """The Hessian of loss(model) by the parameters, by autograd in forward mode over reverse."""
    named = {name: p.detach().double() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]

    def value(theta):
        parts = [part.view(p.shape) for part, p in zip(theta.split(sizes), named.values(), strict=True)]
        given = dict(zip(named, parts, strict=True))
        return loss(lambda *args, **keywords: functional_call(model, given, args, keywords))

    return torch.autograd.functional.hessian(value, torch.cat([p.flatten() for p in named.values()]))


def take(data, first, last):
    if isinstance(data, dict):
        return {key: value[first:last] for key, value in data.items()}
    return tuple(x[first:last] for x in data) if isinstance(data, tuple) else data[first:last]


def whole_loss(loss: Callable, data, sizes: list[int]) -> Callable:
    """The loss over all data, each batch by its share of the examples; parts of a mapping are added."""

    def of(model):
        total, first = 0.0, 0
        for size in sizes:
            value = loss(model, take(data, first, first + size))
            parts = value.values() if isinstance(value, dict) else [value]
            total, first = total + size / sum(sizes) * sum(part.mean() for part in parts), first + size
        return total

    return of


def matrix(problem, name="hessian"):
    operator = Curvature(problem, name)
    eye = torch.eye(problem.size, dtype=problem.dtype, device=problem.device)
    return (operator @ eye).cpu(), operator


def loss_of(user, name) -> Callable:
    return user["Weighted"](3.0).double() if name == "Weighted" else user[name]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sizes", [[24], [10, 10, 4]])
def test_hessian(user, name, sizes):
    data = user[DATA.get(name, "pairs")]()
    expected = dense(user["net"]().double(), whole_loss(loss_of(user, name), data, sizes))
    loaded = load_problem(
        model="own.py:net",
        data=f"own.py:{DATA.get(name, 'pairs')}",
        loss=f"own.py:{name}{OPTIONS.get(name, '')}",
        dtype="float64",
        batch_size=sizes[0],
    )
    found, _ = matrix(loaded.problem)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    whole = any("takes whole batches" in note for note in loaded.record.notes)
    assert whole == (name in WHOLE)
    assert any(f"{len(sizes)} batch" in note for note in loaded.record.notes) == whole
    assert [len(batch) for batch in loaded.problem.batches] == sizes


@pytest.mark.parametrize("name", LOSSES)
def test_all_examples_are_one_batch_by_default(user, name):
    """A whole batch is never cut for memory, and examples that stand alone may be."""
    settings = {"model": "own.py:net", "loss": f"own.py:{name}{OPTIONS.get(name, '')}", "dtype": "float64"}
    found = load_problem(**settings, data=f"own.py:{DATA.get(name, 'pairs')}", memory=1)
    assert ([len(batch) for batch in found.problem.batches] == [24]) == (name in WHOLE)


@pytest.mark.parametrize("name", LOSSES)
def test_by_the_command_and_in_python(user, name, capsys):
    data = user[DATA.get(name, "pairs")]()
    expected = torch.linalg.eigvalsh(dense(user["net"]().double(), whole_loss(loss_of(user, name), data, [12, 12])))
    line = f"eig --model own.py:net --data own.py:{DATA.get(name, 'pairs')} --loss own.py:{name}"
    line += f"{OPTIONS.get(name, '')} --batch-size 12 --dtype float64 -k 3 --which LA --tol 1e-8 --json"
    assert run(shlex.split(line)) == 0
    record = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(record["results"][0]["eigenvalues"], expected.flip(0)[:3], rtol=1e-7)

    loss = loss_of(user, name)
    if name == "by_another_name":
        loss = lambda model, batch: user["squares"](model, batch)  # noqa: E731
    batches = [take(data, i, i + 12) for i in (0, 12)]
    result = spectra.eig(user["net"]().double(), loss, batches, k=3, which="LA", tolerance=1e-8)
    np.testing.assert_allclose(result.values, expected.flip(0)[:3], rtol=1e-7)


def test_empirical_fisher_of_values(user):
    """One value an example: the mean outer product of their gradients; with one number there are none."""
    data, model = user["noised"](), user["net"]().double()
    rows = []
    for i in range(24):
        model.zero_grad()
        user["diffusion"](model, take(data, i, i + 1)).mean().backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    g = torch.stack(rows)
    problem = load_problem(model=user["net"]().double(), data=[data], loss=user["diffusion"]).problem
    torch.testing.assert_close(matrix(problem, "fisher-empirical")[0], g.T @ g / 24)
    noise = g.T @ g / 24 - torch.outer(g.mean(0), g.mean(0))
    torch.testing.assert_close(matrix(problem, "gradient-covariance")[0], noise)
    other = load_problem(model=model, data=[user["pairs"]()], loss=user["simclr"]).problem
    with pytest.raises(SpectraError, match=r"fisher-empirical.*one number for a batch"):
        matrix(other, "fisher-empirical")
    for name in ("ggn", "fisher", "fisher-mc"):
        with pytest.raises(SpectraError, match=f"`curvature` {name}: a loss of"):
            matrix(problem, name)


@pytest.mark.parametrize(("part", "chosen"), [(None, None), ("residual", "residual"), ("boundary", "boundary")])
def test_parts(user, part, chosen):
    def alone(model, batch):
        found = user["heat"](model, batch)
        return found if chosen is None else found[chosen]

    expected = dense(user["net"]().double(), whole_loss(alone, user["points"](), [24]))
    problem = load_problem(
        model=user["net"]().double(), data=[user["points"]()], loss=user["heat"], loss_part=part
    ).problem
    torch.testing.assert_close(matrix(problem)[0], expected, rtol=1e-9, atol=1e-10)


def test_parts_of_output_and_target(user):
    x, y = user["pairs"]()
    made = {}
    for part in (None, "error", "size"):
        problem = load_problem(model=user["net"]().double(), data=(x, y), loss=user["two_parts"], loss_part=part)
        made[part] = matrix(problem.problem)[0]
    torch.testing.assert_close(made[None], made["error"] + made["size"])
    expected = dense(user["net"]().double(), lambda model: 0.3 * model(x).exp().mean())
    torch.testing.assert_close(made["size"], expected)


def test_wrong_parts_are_refused(user, capsys):
    for loss, message in {
        "own.py:heat": "--loss own.py:heat has no such part; available: residual, boundary",
        "mse": "--loss mse has no parts",
        "own.py:squares": "does not return a mapping of parts; omit it",
    }.items():
        data = "points" if "heat" in loss else "pairs"
        line = f"eig --model own.py:net --data own.py:{data} --loss {loss} --loss-part nothing"
        assert run(line.split()) == 2
        error = capsys.readouterr().err
        assert "--loss-part nothing: " in error
        assert message in error


def test_compare_on_parts(user, capsys):
    """Matrices that the loss has not are left out of the default ones."""
    line = (
        "compare --model own.py:net --data own.py:points --loss own.py:heat --loss-part residual --loss-part boundary"
    )
    line += " --dtype float64 -k 3 --probes 4 --steps 10 --json"
    assert run(line.split()) in (0, 1)
    record = json.loads(capsys.readouterr().out)
    assert [one["curvature"] for one in record["results"]] == ["hessian", "hessian, residual", "hessian, boundary"]
    assert any(note.startswith("fisher-empirical is left out: ") for note in record["problem"]["notes"])
    assert len(record["pairs"]) == 3
    for result, part in zip(record["results"], (None, "residual", "boundary"), strict=True):
        problem = load_problem(
            model="own.py:net", data="own.py:points", loss="own.py:heat", loss_part=part, dtype="float64"
        ).problem
        values = torch.linalg.eigvalsh(matrix(problem)[0])
        largest = values[values.abs().argsort(descending=True)][:1]
        np.testing.assert_allclose(result["eigenvalues"][:1], largest, rtol=1e-4)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def loss(model, batch): return model(batch).detach().sum()", "does not depend on the model's parameters"),
        ("def loss(model, batch): return 3.0", "returned a float; return a floating-point tensor"),
        ("def loss(model, batch): return model(batch)[:3]", "returned shape (3, 2) for 24 examples"),
        ("def loss(model, batch): return {}", "returned an empty mapping"),
        ("def loss(model, batch): return model(batch).no_such_thing", "fails on the data"),
        (
            "def loss(model, batch): return (model(batch) * torch.rand(2).to(batch)).sum(1)",
            "loss: its value changes from call to call",
        ),
        ("def loss(model): return model.sum()", "it does not take (model, batch)"),
    ],
)
def test_what_a_loss_may_not_do(source, message, capsys):
    Path("bad.py").write_text(f"import torch\n{source}\n")
    line = "eig --model own.py:net --data own.py:points --loss bad.py:loss"
    assert run(line.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_loss_of_a_batch_without_a_second_derivative_is_named():
    """CTC's backward pass cannot be differentiated: the loss is at fault, not a layer of the model."""

    def ctc(model, batch):
        steps = model(batch[0]).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(steps, *batch[1:], reduction="none")

    draw = torch.Generator().manual_seed(0)
    lengths = torch.full((6,), 7), torch.tensor([3, 2, 1, 3, 2, 1])
    data = [(torch.randn(6, 7, 3, generator=draw), torch.randint(1, 5, (6, 3), generator=draw), *lengths)]
    with pytest.raises(SpectraError, match=r"^`loss`: has no second derivative .*ctc.* \(output, target\)"):
        spectra.eig(nn.Linear(3, 5), ctc, data)


@pytest.mark.parametrize("sets", ["backward", "zero_grad"])
def test_gradients_of_the_caller_s_model_are_left_as_found(sets):
    """A loss taken from a training step may fill or clear them."""
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 2
    model = nn.Linear(3, 2).double()
    model.weight.grad = torch.ones_like(model.weight)
    before, values = model.weight.grad, model.weight.grad.clone()

    def step(model, batch):
        loss = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        if sets == "backward":
            loss.sum().backward(retain_graph=True)
        else:
            model.zero_grad()
        return loss

    spectra.eig(model, step, (x, y), k=1)
    assert model.weight.grad is before
    assert torch.equal(before, values)
    assert model.bias.grad is None


class Returns(nn.Module):
    """A network that computes its own loss, and returns it in one of several forms."""

    def __init__(self, form: str, own: Callable, classes: int = 3):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.form, self.own = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, classes)), form, own

    def forward(self, x, labels=None):
        logits = self.body(x)
        loss = None if labels is None else self.own(logits, labels)
        if self.form == "mapping":
            return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}
        if self.form == "tuple":
            return (logits,) if loss is None else (loss, logits)
        return logits if loss is None else loss


def shifted(logits, labels):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def twice(logits, labels):
    return 2 * F.cross_entropy(logits, labels)


X, LABELS = torch.randn(12, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64), torch.arange(12) % 3
TOKENS = torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
NEXT = (torch.arange(30) % 4 - 1).view(6, 5).where(torch.arange(30).view(6, 5) % 4 > 0, -100).clamp(max=2)
KNOWN = {  # a model's own loss, the batch, and our name for the loss
    "labels": (F.cross_entropy, X, LABELS, "cross_entropy"),
    "shifted tokens": (shifted, TOKENS, NEXT.where(NEXT != -1, -100), "cross_entropy"),
    "numbers": (F.mse_loss, X, X.repeat(1, 2)[:, :3], "mse"),
    "several labels": (F.binary_cross_entropy_with_logits, X, (X.repeat(1, 2)[:, :3] > 0).double(), "bce_with_logits"),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("form", ["mapping", "tuple", "loss"])
@pytest.mark.parametrize("kind", KNOWN)
def test_the_loss_that_a_model_returns_is_recognised(form, kind):
    """GGN and Fisher of the logits, and the mean over all that counts, whatever the batches."""
    own, x, y, name = KNOWN[kind]
    model = Returns(form, own).double()
    expected = dense(model, lambda network: loss_in(network(x, y)))
    problems = []
    for size in (len(x), 4):
        batches = [{"x": x[i : i + size], "labels": y[i : i + size]} for i in range(0, len(x), size)]
        loaded = load_problem(model=model, loss="model", data=batches)
        assert loaded.record.loss == "model"
        assert getattr(loaded.problem.loss, "name", "cross_entropy") == name
        torch.testing.assert_close(matrix(loaded.problem)[0], expected, rtol=1e-9, atol=1e-10)
        problems.append(loaded.problem)
    ggn, fisher = (matrix(problems[1], which)[0] for which in ("ggn", "fisher"))
    torch.testing.assert_close(ggn, fisher)
    assert torch.linalg.eigvalsh(ggn)[-1] > 0.01


def loss_in(returned):
    if isinstance(returned, dict):
        return returned["loss"]
    return returned[0] if isinstance(returned, tuple) else returned


def smoothed(logits, labels):
    return F.cross_entropy(logits, labels, label_smoothing=0.2)


def penalised(logits, labels):
    """The cross entropy and its value at this point, but not its gradient."""
    return F.cross_entropy(logits, labels) + (logits.sum(1).mean() - logits.sum(1).mean().detach())


@pytest.mark.sampled(6)
@pytest.mark.parametrize("form", ["mapping", "tuple", "loss"])
@pytest.mark.parametrize(("own", "scale"), [(twice, 2.0), (smoothed, 1.0), (penalised, 1.0)])
def test_another_loss_that_a_model_returns_is_a_function_of_its_logits(form, own, scale):
    """GGN by its definition: these have the second derivative of the cross entropy by the logits, up to scale."""
    model = Returns(form, own).double()
    batches = [{"x": X[i : i + 4], "labels": LABELS[i : i + 4]} for i in range(0, 12, 4)]
    loaded = load_problem(model=model, loss="model", data=batches)
    assert any("not one that spectra knows" in note for note in loaded.record.notes)
    expected = dense(model, lambda network: own(logits(network), LABELS))
    torch.testing.assert_close(matrix(loaded.problem)[0], expected, rtol=1e-9, atol=1e-10)
    plain = load_problem(model=model.body, loss="cross_entropy", data=(X, LABELS)).problem
    torch.testing.assert_close(matrix(loaded.problem, "ggn")[0], scale * matrix(plain, "ggn")[0])
    if own is twice:
        empirical = matrix(plain, "fisher-empirical")[0]
        torch.testing.assert_close(matrix(loaded.problem, "fisher-empirical")[0], 4 * empirical)
    with pytest.raises(SpectraError, match="`curvature` fisher: a custom loss has no known distribution"):
        matrix(loaded.problem, "fisher")


def logits(network):
    found = network(X)
    if isinstance(found, dict):
        return found["logits"]
    return found[0] if isinstance(found, tuple) else found


class Balanced(Returns):
    """A network whose loss depends on its parameters beside the logits."""

    def forward(self, x, labels=None):
        found = super().forward(x, labels)
        if labels is not None:
            found["loss"] = found["loss"] + 0.1 * self.body[0].weight.square().sum()
        return found


def masked_mean(logits, labels):
    return F.cross_entropy(logits, labels.where(labels > 0, -100)) * 1.5


@pytest.mark.parametrize(("kind", "own"), [(Balanced, F.cross_entropy), (Returns, masked_mean)])
def test_a_loss_that_is_more_than_its_logits_or_ties_examples_is_taken_as_it_is(kind, own):
    model = kind("mapping", own).double()
    uneven = torch.tensor([0, 0, 0, 1, 1, 2, 2, 1, 0, 2, 1, 0])
    batches = [{"x": X[i : i + 6], "labels": uneven[i : i + 6]} for i in range(0, 12, 6)]
    loaded = load_problem(model=model, loss="model", data=batches)
    assert any("takes whole batches" in note for note in loaded.record.notes)
    expected = dense(model, lambda net: sum(loss_in(net(**batch)) for batch in batches) / 2)
    torch.testing.assert_close(matrix(loaded.problem)[0], expected, rtol=1e-9, atol=1e-10)
    with pytest.raises(SpectraError, match="`curvature` ggn: the model's own loss"):
        matrix(loaded.problem, "ggn")


def test_a_model_without_a_loss_is_refused(capsys):
    with pytest.raises(SpectraError, match=r"`loss` model: .* a tensor of shape \(8, 3\).*, such as labels"):
        load_problem(model=Returns("loss", F.cross_entropy).double(), loss="model", data=[X])


@pytest.mark.parametrize("names", [("x", "y"), ("x", "y", "weight"), ("x", "t", "noise")])
def test_arrays_of_a_file_are_the_batch(user, names, capsys):
    """A pair x and y is a pair; with more beside them, or by other names, the batch is the mapping of all."""
    arrays = {name: user["draw"](24, 2, seed=seed) for seed, name in enumerate(names)}
    np.savez("arrays.npz", **{name: array.numpy() for name, array in arrays.items()})
    Path("taken.py").write_text(
        "def loss(model, batch):\n"
        "    arrays = dict(zip('xy', batch)) if isinstance(batch, tuple) else batch\n"
        "    return sum((model(array) ** 2).mean(1) * (i + 1) for i, array in enumerate(arrays.values()))\n"
    )
    line = "eig --model own.py:net --data arrays.npz --loss taken.py:loss --dtype float64 -k 2 --tol 1e-8 --json"
    assert run(line.split()) == 0
    found = json.loads(capsys.readouterr().out)["results"][0]["eigenvalues"]
    expected = torch.linalg.eigvalsh(
        dense(
            user["net"]().double(),
            lambda model: sum(model(array).square().mean() * (i + 1) for i, array in enumerate(arrays.values())),
        )
    )
    largest = expected[expected.abs().argsort(descending=True)][:2]
    np.testing.assert_allclose(found, largest, rtol=1e-7)
