"""Products as CUDA graphs are those without, bit for bit, and what can't be captured says why and goes on without."""

import pytest
import torch
from networks import NETWORKS, Case, Lambda, X, Y, name_of
from torch import nn

from spectra.curvature.matrices import MATRICES
from spectra.curvature.operator import Curvature

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
MANY = 10**12  # products, for which any trace pays


def columns(problem, count=3):
    drawn = torch.randn(problem.size, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn.to(problem.device, problem.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [name for name in MATRICES if name != "fisher-batch"])
@pytest.mark.parametrize("case", NETWORKS, ids=name_of)
def test_graphs_give_the_same_bits(case, name, dtype, monkeypatch):
    problem = case.problem(dtype=dtype, device="cuda")
    graphs = Curvature(problem, name, products=MANY, check=False)
    found = graphs @ columns(problem)
    monkeypatch.setattr("spectra.curvature.products.WORTH_A_GRAPH", 2 * MANY)
    eager = Curvature(problem, name, products=MANY, check=False)
    assert found.equal(eager @ columns(problem))
    assert found.equal(graphs @ columns(problem))
    assert "CUDA graph" not in eager.path
    if "hoisted" in graphs.path:
        assert "as CUDA graphs" in graphs.path, graphs.path


def test_batches_share_one_pool_and_keep_apart():
    """Products of several graphs, one after the other and out of order, with what each leaves behind."""
    case = next(case for case in NETWORKS if case.name == "mlp")
    problem = case.problem(device="cuda", sizes=(2, 2, 3))
    matrix = Curvature(problem, "hessian", memory=2**24, products=MANY, check=False)
    first = matrix @ columns(problem)
    applies = [*matrix._products][::-1]
    again = torch.stack([sum(apply(v) for apply in applies) for v in columns(problem).unbind(1)], dim=1)
    torch.testing.assert_close(first, again, rtol=1e-13, atol=1e-15)


def test_what_cannot_be_captured_is_made_without(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    problem = Case("small", lambda: nn.Sequential(nn.Linear(3, 3), Lambda(torch.tanh)), X, Y).problem(device="cuda")
    matrix = Curvature(problem, "hessian", products=MANY, check=False)
    found = matrix @ columns(problem)
    assert "no CUDA graph: RuntimeError: operation not permitted" in matrix.path
    assert found.isfinite().all()
