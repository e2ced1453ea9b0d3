"""The register of matrices: each is defined once, by M and its root S; a new one is a file and a line."""

import math

import pytest
import torch
from networks import BY_NAME, CASES
from torch import Tensor

from spectra.cli import run
from spectra.curvature.definition import Definition
from spectra.curvature.factor.gram import Factor
from spectra.curvature.matrices import MATRICES, definition
from spectra.curvature.operator import Curvature
from spectra.directions.spread import per_example
from spectra.errors import SpectraError
from spectra.krylov.dense import dense_matrix
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.gram import gram_eigenpairs
from spectra.problem.batch import Batch
from spectra.problem.problem import Problem
from spectra.register import Entry

MLP = BY_NAME["mlp"]
INDEFINITE = BY_NAME["custom, mean"]  # a loss that is not convex in the output
ROOTED = [name for name in MATRICES if not definition(name).has_model_curvature]


class Damped(Definition):
    """J'(L + 1/W)J for the GGN J'L J: what a matrix of somebody else may look like."""

    derivatives = ("jacobian", "loss hessian")

    def middle(self, problem: Problem, batch: Batch, rows: Tensor):
        loss = definition("ggn").middle(problem, batch, rows)
        return lambda vectors: loss(vectors) + vectors / problem.weight


@pytest.fixture
def toy(monkeypatch) -> str:
    monkeypatch.setitem(MATRICES.own, "toy", Entry(f"{__name__}:Damped", "the GGN with another M"))
    return "toy"


def apart(problem: Problem) -> Tensor:
    """J'J / W (n, n), by autograd on each output."""
    total = torch.zeros(problem.size, problem.size, dtype=problem.dtype)
    for batch in problem.batches:
        rows = problem.loss.rows(problem.output(batch), batch.targets)
        for output in rows.reshape(-1):
            g = problem.vector(torch.autograd.grad(output, problem.leaves, retain_graph=True))
            total += g.outer(g)
    return total / problem.weight


@pytest.mark.parametrize("name", ROOTED)
def test_the_root_is_that_of_the_middle(name):
    """S'S u = M u, S from `root` and M from `middle`."""
    matrix = definition(name)
    for case in CASES:
        if (case, name) != (INDEFINITE, "ggn") and not (matrix.needs_distribution and case.kind == "custom"):
            assert_root_of_middle(matrix, case.problem(seed=5, mc_samples=3))


def assert_root_of_middle(matrix: Definition, problem: Problem) -> None:
    for batch in problem.batches:
        rows = problem.loss.rows(problem.output(batch), batch.targets).detach()
        u = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected = matrix.middle(problem, batch, rows)(u)
        root = matrix.root(problem, batch, rows)  # (units, s, positions, D)
        along = (root * u.reshape(len(root), 1, root.shape[2], -1)).sum(dim=3, keepdim=True)
        torch.testing.assert_close((along * root).sum(dim=1).reshape(rows.shape), expected, rtol=1e-9, atol=1e-12)
        assert root.shape[1] <= matrix.most_root_rows(problem, rows)


def test_products_of_a_new_matrix(toy):
    problem = MLP.problem()
    found = Curvature(problem, toy)
    expected = dense_matrix(Curvature(problem, "ggn")) + apart(problem)
    torch.testing.assert_close(dense_matrix(found), expected)
    assert found.derivative_check.error < 1e-6
    pairs = eigenpairs(found, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pairs.values, torch.linalg.eigvalsh(expected).flip(0)[:3].cpu(), rtol=1e-3, atol=0)


def test_gram_matrix_of_a_new_matrix(toy):
    """Its root is found by decomposing M, whose blocks have full rank here."""
    matrix = Curvature(MLP.problem(), toy)
    factor = matrix.factor()
    assert factor.rows == 21
    assert math.isclose(factor.trace(), dense_matrix(matrix).trace().item(), rel_tol=1e-9)
    found = gram_eigenpairs(matrix, 5, which="LA", generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(dense_matrix(matrix)).flip(0)[:5])
    assert Factor(MLP.problem(), toy).trace_work() < math.inf


def test_examples_of_a_new_matrix(toy):
    """Their mean is the matrix, as of every other."""
    problem = MLP.problem()
    d = torch.ones(problem.size, dtype=torch.float64) / problem.size
    curvatures, _ = per_example(problem, toy, [d])
    assert math.isclose(curvatures.mean(), (d @ (Curvature(problem, toy) @ d)).item(), rel_tol=1e-9)


@pytest.mark.parametrize("method", ["lanczos", "gram"])
def test_a_new_matrix_is_a_choice_of_the_command_line(toy, capsys, method):
    line = f"eig --model spectra.demo:mlp --data digits --samples 20 -k 2 --curvature toy --method {method} --json"
    assert run(line.split()) == 0
    assert '"curvature": "toy"' in capsys.readouterr().out
    assert run(["eig", "--help"]) == 0
    assert "fisher-batch,toy;" in "".join(capsys.readouterr().out.split())


def test_no_such_matrix():
    with pytest.raises(SpectraError, match=r"curvature\W* toy: no such matrix; choose from hessian, ggn, "):
        definition("toy")
    with pytest.raises(SpectraError, match=r"curvature\W* toy: no such matrix"):
        Curvature(MLP.problem(), "toy")
