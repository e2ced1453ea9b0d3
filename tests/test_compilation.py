"""What Inductor compiles of a product is the product, and the code that it keeps on disk serves all points."""

import json
import logging
import re
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import seeded
from networks import BY_NAME, Case, X, Y, floats
from test_hoisting import made
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import spectra
import spectra.cli
from spectra.curvature.engine import autotuning as choices_module
from spectra.curvature.engine import compilation
from spectra.curvature.engine.autotuning import Autotuner
from spectra.curvature.engine.compilation import Uncompilable, compiled, pays, without_constants
from spectra.curvature.engine.differentiation import twice_differentiable
from spectra.curvature.engine.graphs import split
from spectra.curvature.engine.hoisting import leaves, trace
from spectra.curvature.engine.products import Products
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError


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
        first, second, _ = split(*trace(linearise, problem, problem.batches[0]))
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


def test_errors_of_a_first_call_are_errors_of_compiling(monkeypatch):
    """A kernel for the GPU may be compiled as late as that."""

    def called(*_):
        raise AssertionError("expected size 3==4")

    monkeypatch.setattr("torch._inductor.compile", lambda *_, **__: called)
    with pytest.raises(Uncompilable, match=r"^AssertionError: expected size 3==4$"):
        compiled(traced(torch.sin, X), [X])


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


NET = """
from torch import nn


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 10))
"""


@pytest.fixture
def call(tmp_path, capfd, monkeypatch):
    """Run a command on a small network: its status, record and standard error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)

    def call(command: str, *more: str):
        problem = ["--model", f"{tmp_path / 'net.py'}:build", "--data", "digits", "--samples", "60", "--json"]
        status = spectra.cli.run([*command.split(), *problem, *more])
        out, err = capfd.readouterr()
        return status, json.loads(out), err

    return call


@pytest.fixture
def graphs_compiled(monkeypatch):
    """The graphs that are compiled; they run as they are, and no compiler is needed."""
    graphs = []

    def compiled(module, arguments):
        graphs.append(module)
        return lambda *arguments: module(*arguments)

    monkeypatch.setattr("spectra.curvature.engine.execution.compiled", compiled)
    return graphs


COMMANDS = ["eig -k 2", "trace --probes 20", "density --steps 5 --probes 2", "layers -k 1 --steps 4 --probes 2"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_compiles_where_it_is_told_to(call, graphs_compiled, command):
    """Where so few products would not even pay for a trace."""
    status, record, err = call(command, "--compile")
    assert status == 0
    assert len(graphs_compiled) == 1
    assert record["problem"]["options"]["compile"] is True
    assert "hoisted, compiled, 1 of 1 batches kept" in json.dumps(record)
    assert re.fullmatch(r"spectra: hessian: compiling a product of [\d,]+ operations\n", err)


@pytest.mark.parametrize("more", [[], ["--no-compile"]])
def test_on_a_cpu_nothing_is_compiled_unless_asked_for(call, graphs_compiled, more):
    status, record, err = call("eig -k 2", *more)
    assert (status, err, graphs_compiled) == (0, "", [])
    assert "compiled" not in record["results"][0]["path"]
    assert record["problem"]["options"]["compile"] is (False if more else None)


@pytest.mark.parametrize("flag", ["--compile", "--no-compile"])
def test_a_result_is_repeated_as_it_was_asked_for(call, graphs_compiled, flag, tmp_path, capfd):
    _, record, _ = call("eig -k 2", flag, "--out", str(tmp_path))
    assert spectra.cli.run(["eig", "--config", str(tmp_path / "eig.json"), "--trust", "--json"]) == 0
    again = json.loads(capfd.readouterr().out)
    assert again["problem"]["options"]["compile"] is (flag == "--compile")
    assert again["results"][0]["eigenvalues"] == record["results"][0]["eigenvalues"]
    assert len(graphs_compiled) == 2 * (flag == "--compile")


def test_matrices_that_are_not_hoisted_are_not_compiled(call, graphs_compiled):
    _, record, _ = call("eig -k 2", "--compile", "--curvature", "fisher-batch", "--curvature", "ggn")
    assert len(graphs_compiled) == 1
    assert [r["path"].partition(",")[0] for r in record["results"]] == ["double backward", "hoisted"]


def test_a_compilation_that_fails_is_told_and_changes_nothing(call, monkeypatch, tmp_path):
    def fails(*_, **__):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nTraceback of it")

    monkeypatch.setattr("torch._inductor.compile", fails)
    why = "not compiled: RuntimeError: InvalidCxxCompiler: No working C++ compiler found"
    status, record, err = call("eig -k 2", "--compile", "--dtype", "float64")
    assert status == 0
    assert record["results"][0]["path"] == f"hoisted, 1 of 1 batches kept; {why}"
    assert err.splitlines()[1:] == [f"spectra: hessian: products are {why}"]
    _, plain, _ = call("eig -k 2", "--dtype", "float64")
    assert record["results"][0]["eigenvalues"] == pytest.approx(plain["results"][0]["eigenvalues"], rel=1e-10)


def test_a_compiled_product_that_is_another_is_not_used(call, monkeypatch):
    monkeypatch.setattr("torch._inductor.compile", lambda graph, *_, **__: lambda *args: graph(*args) * 1.01)
    _, record, _ = call("eig -k 2", "--compile")
    assert record["results"][0]["path"].endswith("not compiled: the compiled product differs from the plain one")


def test_models_that_are_compiled_already(graphs_compiled):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    settings = {"dtype": torch.float64, "k": 2, "tolerance": 1e-8}
    wanted = spectra.eig(model, nn.CrossEntropyLoss(), (X, Y), **settings)
    calls = []

    def counting(graph, _):
        calls.append(graph)
        return graph.forward

    users = torch.compile(model, backend=counting)
    users(X)
    found = spectra.eig(users, nn.CrossEntropyLoss(), (X, Y), compile=True, **settings)
    users(X)
    assert graphs_compiled
    assert len(calls) == 1
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-8, atol=0)


def test_compile_is_true_false_or_none():
    with pytest.raises(SpectraError, match=r"^`compile` 'yes': expected True, False or None$"):
        spectra.eig(nn.Linear(3, 3), nn.CrossEntropyLoss(), (X.float(), Y), compile="yes")


class OnGPU(Products):
    """Products that believe they run on a GPU, of `expected` products that each take `duration` seconds."""

    def __init__(self, choices: Autotuner, expected: int, duration: float, compile: bool | None = None):
        self.compile, self.choices, self.expected, self.executions = compile, choices, expected, []
        self.graphs = SimpleNamespace(captured=lambda run, _: run)
        choices.seconds = lambda call, device: duration


@pytest.mark.parametrize("compile", [None, True, False])
def test_products_that_pay_are_compiled_and_so_again_when_the_run_is_resumed(compile, monkeypatch):
    monkeypatch.setenv("SPECTRA_CACHE", "")
    problem, _, hoisted = made(BY_NAME["mlp"], "hessian")
    product = SimpleNamespace(execution=hoisted.execution, residuals=hoisted.residuals(problem.batches[0]), widths=None)
    vector, nodes = floats(problem.size), len(hoisted.second.graph.nodes)
    enough = int(nodes * compilation.COMPILING / compilation.SAVED) + 1  # products of a second each
    kept: dict[str, str] = {}

    def compiles(expected: int, duration: float, kept=kept) -> bool:
        monkeypatch.setattr(choices_module, "_decided", {})
        products = OnGPU(Autotuner(kept), expected, duration, compile)
        return products._is_worth_compiling(product, vector, 1, "this product")

    assert compiles(enough, 1.0) is (compile is not False)
    assert compiles(enough, 0.01) is (compile is not False)  # as was decided
    assert compiles(enough - 2, 1.0) is (compile is True)
    assert compiles(enough, 0.01, kept={}) is (compile is True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_compiled_on_cuda_in_a_cuda_graph(matrix):
    case = BY_NAME["convolution, BatchNorm"]
    problem, wanted = case.problem(sizes=(2, 2, 2, 1), device="cuda"), case.problem(sizes=(2, 2, 2, 1))
    vector = floats(problem.size)
    found = Curvature(problem, matrix, products=1000, compile=True)
    product = found @ vector.cuda()
    assert "compiled" in found.path
    torch.testing.assert_close(product.cpu(), Curvature(wanted, matrix, products=0) @ vector, rtol=1e-10, atol=1e-12)
    assert torch.equal(found @ vector.cuda(), product)
    again = Curvature(problem, matrix, products=1000, compile=True) @ vector.cuda()
    assert torch.equal(again, product)
