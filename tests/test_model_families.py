"""Families of models, each a file as a user writes it, by the command and in Python, against dense references.

The files are families/*.py; family_table.py has what is typed and the loss by its formula.
"""

import json
import runpy
import shlex
import sys
import warnings
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_table import FAMILIES, Family
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.fx import GraphModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

import spectra
from spectra.cli import run
from spectra.curvature.engine.differentiation import twice_differentiable
from spectra.curvature.engine.hoisting import trace
from spectra.curvature.matrices import definition
from spectra.inputs.problem import load_problem
from spectra.problem.model_inputs import map_tensors

with warnings.catch_warnings(action="ignore"):
    import torch._decomp.decompositions_for_jvp  # which torch.func.hessian imports, and which calls torch.jit.script

FOLDER = Path(__file__).parent / "families"
SIZE = 7  # of the batches where there are several, so that the last one is shorter
ALONE = [name for name, family in FAMILIES.items() if not family.whole]
WHOLE = [name for name, family in FAMILIES.items() if family.whole]
SEVERAL = [name for name in WHOLE if FAMILIES[name].divisible]
MATRICES = ("hessian", "ggn", "fisher", "fisher-empirical", "gradient-covariance")


@pytest.fixture(autouse=True)
def folder(monkeypatch):
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


class Reference:
    """The user's network and data in float64, and dense matrices of the loss by its formula."""

    def __init__(self, name: str):
        self.family: Family = FAMILIES[name]
        names = runpy.run_path(str(FOLDER / f"{file_of(name)}.py"))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = names[self.family.net]().double().eval()
            torch.manual_seed(0)
            data = names["data"]()
        self.data = map_tensors(lambda x: x.double() if x.is_floating_point() else x, data)
        self.loss = names.get(self.family.loss.partition(":")[2] or "loss")
        self.named = dict(self.model.named_parameters())
        self.point = torch.cat([p.detach().flatten() for p in self.named.values()])

    @property
    def count(self) -> int:
        return max(len(x) for x in torch.utils._pytree.tree_leaves(self.data))

    def at(self, point: Tensor, function: Callable, data: Any) -> Tensor:
        parts = point.split([p.numel() for p in self.named.values()])
        weights = {name: part.view(p.shape) for (name, p), part in zip(self.named.items(), parts, strict=True)}

        def call(*args: Any, **keywords: Any) -> Any:
            return functional_call(self.model, weights, args, keywords)

        call.weights = weights
        return function(call, data)

    def batches(self, size: int | None) -> list[Any]:
        if size is None:
            return [self.data]
        cuts = [slice(first, first + size) for first in range(0, self.count, size)]
        return [map_tensors(lambda x, cut=cut: x[cut], self.data) for cut in cuts]

    def mean(self, point: Tensor, size: int | None) -> Tensor:
        shares = [1.0] if size is None else [min(size, self.count - i) / self.count for i in range(0, self.count, size)]
        values = [self.at(point, self.family.of, batch).mean() for batch in self.batches(size)]
        return torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum()

    def gradients(self) -> Tensor:
        """The gradients of the losses of single examples, one a row."""
        return jacobian(lambda point: self.at(point, self.family.of, self.data), self.point)

    def matrix(self, curvature: str, size: int | None = None) -> Tensor | None:
        """The matrix over all data, whatever the batches; None where it is not defined."""
        family = self.family
        if curvature == "hessian":
            return hessian(lambda point: self.mean(point, size if family.whole else None), self.point)
        if curvature == "ggn" or (curvature == "fisher" and family.distribution):
            return None if family.outputs is None else self.ggn()
        if curvature == "fisher" or family.whole:
            return None
        g = self.gradients()
        mean = g.mean(0) if curvature == "gradient-covariance" else torch.zeros(g.shape[1], dtype=g.dtype)
        return g.T @ g / len(g) - torch.outer(mean, mean)

    def ggn(self) -> Tensor | None:
        """J' L J; None where L is zero, as for a loss that is linear in the outputs."""
        outputs = self.at(self.point, self.family.outputs, self.data).detach()
        j = jacobian(lambda point: self.at(point, self.family.outputs, self.data), self.point)
        inner = hessian(lambda y: self.family.values(y.view(outputs.shape), self.data).mean(), outputs.flatten())
        j = j.reshape(outputs.numel(), -1)
        return j.T @ inner @ j if inner.any() else None


@cache
def reference(name: str) -> Reference:
    return Reference(name)


@cache
def spectrum(name: str, curvature: str = "hessian", size: int | None = None) -> np.ndarray | None:
    """All eigenvalues in falling magnitude; None where the matrix is not defined."""
    with sdpa_kernel(SDPBackend.MATH):  # other kernels of attention have no second derivative
        matrix = reference(name).matrix(curvature, size)
    return None if matrix is None else np.array(sorted(torch.linalg.eigvalsh(matrix).tolist(), key=abs, reverse=True))


REFUSED = [
    ("distilled", "distilled.py:single", "", "convert its own tensors and networks to the model's dtype and device"),
    ("diffusion", "diffusion.py:drawing", "", "its value changes from call to call"),
    ("diffusion", "diffusion.py:loss", "--curvature fisher", "hides the model's output"),
    ("supcon of outputs", "contrast.py:loss", "--curvature gradient-covariance", "compares the examples of a batch"),
    ("supcon of outputs", "contrast.py:loss", "--batch-size 7", "write the loss as a function of (model, batch)"),
    ("supcon", "contrast.py:of_net", "", "call its first parameter model"),
    ("pinn", "pinn.py:loss", "--loss-part residuals", "available: residual, border, known"),
]


@pytest.mark.parametrize(("name", "loss", "more", "message"), REFUSED)
def test_a_line_for_what_cannot_be(name, loss, more, message, capfd):
    line = typed(name).partition(" --loss")[0]
    capfd.readouterr()
    assert run(shlex.split(f"eig {line} --loss {loss} --dtype float64 {more}")) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def file_of(name: str) -> str:
    return FAMILIES[name].file or name


def typed(name: str) -> str:
    """The options that name the problem, as a user types them."""
    family, file = FAMILIES[name], f"{file_of(name)}.py"
    return f"--model {file}:{family.net} --data {file}:data --loss {family.loss or f'{file}:loss'}"


def command(capfd, line: str) -> dict:
    capfd.readouterr()
    status = run(shlex.split(f"{line} --json"))
    out, err = capfd.readouterr()
    assert status == 0, err
    assert all(told.startswith("spectra: ") for told in err.splitlines()), err
    return json.loads(out)


def assert_spectrum(found: list[float], expected: np.ndarray, rtol: float = 1e-6) -> None:
    """Eigenvalues agree, each to rtol and the smallest to rounding; the order of equal magnitudes is free."""
    np.testing.assert_allclose(np.sort(found), np.sort(expected[: len(found)]), rtol=rtol, atol=rtol * abs(expected[0]))


@pytest.mark.parametrize(("name", "curvature"), [*product(FAMILIES, MATRICES)])
@pytest.mark.sampled(15)
def test_every_eigenvalue(name, curvature, capfd):
    """By `spectra eig`; and where there is no such matrix, one line says so."""
    expected = spectrum(name, curvature)
    n = len(reference(name).point)
    line = f"eig {typed(name)} --curvature {curvature} --dtype float64 --method dense -k {n}"
    if expected is None:
        capfd.readouterr()
        assert run(shlex.split(f"{line} --json")) == 2
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert f"--curvature {curvature}: " in err
        return
    record = command(capfd, line)
    assert_spectrum(record["results"][0]["eigenvalues"], expected)
    assert record["problem"]["parameters"] == n
    whole = any("takes whole batches" in note for note in record["problem"]["notes"])
    assert whole == FAMILIES[name].whole


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.sampled(5)
def test_trace_and_loss_in_float32(name, capfd):
    record = command(capfd, f"trace {typed(name)} --method dense --device cpu")
    expected = spectrum(name)
    # The sum cancels: its error is of the size of the eigenvalues.
    assert record["results"][0]["trace"] == pytest.approx(expected.sum(), abs=1e-3 * abs(expected).sum())
    own = reference(name)
    assert record["problem"]["loss_value"] == pytest.approx(
        own.mean(own.point.clone().requires_grad_(), None).item(), rel=1e-4
    )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.sampled(5)
def test_leading_eigenvalues_in_float32(name, capfd):
    found = command(capfd, f"eig {typed(name)} -k 3 --tol 1e-5 --device cpu")["results"][0]["eigenvalues"]
    assert_spectrum(found, spectrum(name), rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "curvature"),
    [(name, "hessian") for name in ALONE]
    + [(name, "fisher-empirical") for name in ALONE]
    + [(name, "ggn") for name in ALONE if FAMILIES[name].outputs and name != "flow"],
)
@pytest.mark.sampled(8)
@pytest.mark.usefixtures("batches_as_given")
def test_batches_change_nothing_where_losses_stand_alone(name, curvature, capfd):
    expected = spectrum(name, curvature)
    line = f"eig {typed(name)} --curvature {curvature} --dtype float64 --batch-size {SIZE} -k 4 --tol 1e-9"
    assert_spectrum(command(capfd, line)["results"][0]["eigenvalues"], expected)


@pytest.mark.parametrize("name", SEVERAL)
def test_losses_of_whole_batches_belong_to_them(name, capfd):
    expected = spectrum(name, size=SIZE)
    changed = np.abs(np.sort(expected) - np.sort(spectrum(name))).max()
    assert (changed > 1e-5 * abs(expected[0])) == (name != "critic")  # which returns means of losses that stand alone
    record = command(capfd, f"eig {typed(name)} --dtype float64 --batch-size {SIZE} -k 4 --tol 1e-9")
    assert_spectrum(record["results"][0]["eigenvalues"], expected)
    (note,) = [note for note in record["problem"]["notes"] if "takes whole batches" in note]
    assert f"belong to {len(reference(name).batches(SIZE))} batches of " in note


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.sampled(8)
def test_in_python(name):
    own = reference(name)
    loss: Any = {"": own.loss, "cross_entropy": nn.CrossEntropyLoss(), "mse": nn.MSELoss()}.get(own.family.loss)
    if ":" in own.family.loss:
        loss = own.loss() if isinstance(own.loss, type) else own.loss
    if not own.family.divisible:
        batches: Any = [own.data]
    elif own.family.whole:
        batches = own.batches(SIZE)
    else:
        items = [map_tensors(lambda x, i=i: x[i], own.data) for i in range(own.count)]
        batches = DataLoader(items, batch_size=SIZE)
    result = spectra.eig(own.model, loss or own.family.loss, batches, k=3, tolerance=1e-9)
    size = SIZE if own.family.whole and own.family.divisible else None
    assert_spectrum(result.values, spectrum(name, size=size))


def test_derivatives_by_torch_func_are_traced():
    """Zeros of forward mode, which have no memory, would end the process in a trace."""
    own = reference("laplacian")
    problem = load_problem(model=own.model, loss=own.loss, data=[own.data]).problem
    vector = torch.linspace(-1, 1, problem.size, dtype=torch.float64)
    batch = problem.batches[0]
    with twice_differentiable(problem.model):
        graph = GraphModule(*trace(definition("hessian").linearise, problem, batch))
        product = graph(batch.inputs, batch.targets, batch.indices, vector)
    torch.testing.assert_close(product.detach(), own.matrix("hessian") @ vector, rtol=1e-7, atol=1e-9)
