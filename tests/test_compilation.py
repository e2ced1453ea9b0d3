"""What Inductor compiles of a product is the product, and the code that it keeps on disk serves all points."""

import logging
import warnings
from functools import partial

import pytest
import torch
from helpers import seeded
from networks import BY_NAME, Case, X, floats
from test_hoisting import made
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from spectra.curvature.engine import compilation
from spectra.curvature.engine.compilation import Uncompilable, compiled, pays, without_constants
from spectra.curvature.engine.differentiation import twice_differentiable
from spectra.curvature.engine.graphs import split
from spectra.curvature.engine.hoisting import leaves, trace


@pytest.fixture(scope="session", autouse=True)
def own_compiler_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        patch.setattr("torch._inductor.config.cpp_cache_precompile_headers", False)  # which pays for many graphs
        yield


def halves(case: Case, name: str, **settings):
    """The two halves of a traced product, and the problem and function that they are of."""
    problem, linearise, _ = made(case, name, **settings)
    with twice_differentiable(problem.model):
        first, second, _ = split(trace(linearise, problem, problem.batches[0]))
    return problem, linearise, first, second


def arguments_of(first, batch, vector) -> list:
    with torch.no_grad():
        return [*first(*leaves(batch)), vector]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("matrix", ["hessian", "ggn", "fisher-empirical"])
@pytest.mark.parametrize("name", ["mlp", "convolution, BatchNorm", "LayerNorm, dropout"])
def test_compiled_products_are_autograds(name, matrix):
    problem, linearise, first, second = halves(BY_NAME[name], matrix)
    vectors = torch.randn(3, problem.size, generator=seeded(), dtype=problem.dtype)
    with twice_differentiable(problem.model):
        function = compiled(second, arguments_of(first, problem.batches[0], vectors[0]))
        for batch in problem.batches[:3]:
            apply = linearise(problem, batch)
            for vector in vectors:
                wanted = apply(vector)
                with torch.no_grad():
                    found = function(*arguments_of(first, batch, vector))
                assert (found - wanted).norm() <= 1e-12 * wanted.norm()


def traced(function, *inputs):
    return make_fx(function)(*inputs)


def test_points_of_one_network_share_compiled_code():
    """Of other parameters and data: the second compilation reads what the first has left on disk."""
    from torch._dynamo.utils import counters

    hits = []
    for seed in range(2):
        weight, x = nn.Parameter(floats(3, 4) + seed), X + seed
        before = counters["inductor"]["fxgraph_cache_hit"]
        function = compiled(traced(partial(torch.matmul, other=weight), x), [x])
        torch.testing.assert_close(function(x), x @ weight.detach())
        hits.append(counters["inductor"]["fxgraph_cache_hit"] - before)
    assert hits == [0, 1]


def test_compiling_leaves_the_program_as_it_was(capfd):
    """Its random numbers, logs, warnings, what it has compiled, and standard error; arguments may lie otherwise."""
    calls = []

    def counting(graph, _):
        calls.append(graph)
        return graph.forward

    users = torch.compile(lambda x: x.sin() + 1, backend=counting)
    users(X)
    random, disabled = torch.get_rng_state(), logging.root.manager.disable
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        function = compiled(traced(lambda x: x @ X.T, X), [X])
    turned = X.T.contiguous().T
    assert turned.stride() != X.stride()
    for x in (X, turned):
        torch.testing.assert_close(function(x), X @ X.T)
    users(X)
    assert torch.equal(torch.get_rng_state(), random)
    assert logging.root.manager.disable == disabled
    assert len(calls) == 1
    assert not warned
    assert capfd.readouterr() == ("", "")


def test_constants_become_inputs():
    module = nn.Linear(3, 2).double()
    table = floats(2)
    graph = traced(lambda x: module(x) * table, X)
    found, constants = without_constants(graph)
    assert not found.graph.find_nodes(op="get_attr")
    assert sorted(map(tuple, (c.shape for c in constants))) == [(2,), (2,), (2, 3)]
    assert not any(c.requires_grad for c in constants)
    torch.testing.assert_close(found(*constants, X), graph(X))


def test_what_cannot_be_compiled_says_why(monkeypatch):
    def fails(*_, **__):
        raise OSError("no C++ compiler\nat all")

    monkeypatch.setattr("torch._inductor.compile", fails)
    disabled = logging.root.manager.disable
    with pytest.raises(Uncompilable, match=r"^OSError: no C\+\+ compiler$"):
        compiled(traced(torch.sin, X), [X])
    assert logging.root.manager.disable == disabled


def test_running_out_of_memory_is_no_reason_not_to_compile(monkeypatch):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("torch._inductor.compile", fails)
    with pytest.raises(torch.OutOfMemoryError):
        compiled(traced(torch.sin, X), [X])


def test_compiling_pays_for_many_long_products():
    graph = traced(lambda x: x.sin() + x, X)
    seconds = len(graph.graph.nodes) * compilation.COMPILING
    assert pays(graph, 0.01, int(seconds / compilation.SAVED / 0.01) + 1)
    assert not pays(graph, 0.01, int(seconds / compilation.SAVED / 0.01) - 1)
