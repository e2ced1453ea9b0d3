"""The recorder writes the graphs that PyTorch's make_fx writes, and takes for a constant only what is one."""

import weakref

import pytest
import torch
from helpers import seeded
from networks import BY_NAME, SOME, Case, Lambda, X, Y, floats, name_of
from torch import nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from spectra.curvature.engine.differentiation import twice_differentiable
from spectra.curvature.engine.graphs import is_cheap, simplify
from spectra.curvature.engine.recorder import ValuesRead, record
from spectra.curvature.engine.zero_tensors import with_memory
from spectra.curvature.matrices import definition
from spectra.curvature.operator import Curvature
from spectra.problem.batch import Batch

aten = torch.ops.aten


def recorded(function, *arguments):
    return GraphModule(*record(function, arguments))


def calls(module):
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


class WithMemory(TorchDispatchMode):
    """What make_fx needs to be given, and the recorder does by itself."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        arguments, keywords = with_memory(arguments, keywords or {})
        return function(*arguments, **keywords)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher-mc"])
@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_graphs_are_those_of_make_fx(case, name):
    problem = case.problem(sizes=(2, 2, 2, 1))
    linearise, (first, second, *_) = definition(name).linearise, problem.batches
    _ = problem.weight, problem.examples, problem.writes_inputs

    def product(inputs, targets, indices, vector):
        return linearise(problem, Batch(inputs, targets, indices))(vector)

    def product_with_memory(*arguments):
        with WithMemory():
            return product(*arguments)

    vector = torch.randn(problem.size, generator=seeded(), dtype=problem.dtype)
    with twice_differentiable(problem.model):
        arguments = first.inputs, first.targets, first.indices, torch.zeros_like(vector)
        wanted, (constants, graph) = make_fx(product_with_memory)(*arguments), record(product, arguments)
    for each in (wanted.graph, graph):
        simplify(each)
    wanted.recompile()
    found = GraphModule(constants, graph)
    assert calls(found) == calls(wanted)
    given = second.inputs, second.targets, second.indices, vector
    with torch.no_grad():
        torch.testing.assert_close(found(*given), wanted(*given), rtol=0, atol=0)


def test_shapes_and_types_are_noted():
    module = recorded(lambda x: torch.linalg.qr(x.to(torch.float32).t())[0], floats(3, 2))
    (given,) = module.graph.find_nodes(op="placeholder")
    result = module.graph.output_node().args[0].meta["val"]
    assert (given.meta["device"], given.meta["val"].dtype) == (torch.device("cpu"), torch.float64)
    assert (result.shape, result.dtype) == ((2, 2), torch.float32)


def test_parameters_are_constants_that_the_graph_shares():
    layer = nn.Linear(3, 3, dtype=torch.float64)
    module = recorded(lambda x: layer(layer(x)), X)
    assert {id(p) for p in module.parameters()} == {id(layer.weight), id(layer.bias)}
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(module(X), layer(layer(X)), rtol=0, atol=0)


def test_an_argument_that_comes_twice_is_two_inputs():
    module = recorded(lambda x, y: x * 2 - y, X, X)
    x, y = X.flip(0), X.exp()
    torch.testing.assert_close(module(x, y), x * 2 - y, rtol=0, atol=0)


def test_a_tensor_made_of_numbers_may_be_written_to():
    def function(x):
        shift = torch.tensor([1.0, 2, 3], dtype=torch.float64)
        return x + shift.add_(1)

    module = recorded(function, X)
    for _ in range(2):
        torch.testing.assert_close(module(X), function(X), rtol=0, atol=0)


def test_casts_from_before_are_no_constants():
    layer = nn.Linear(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        layer(X.float())  # autocast keeps the cast weight
        module = recorded(layer, X.float())
    assert not [*module.buffers()]


def test_nothing_that_is_computed_is_kept():
    """Else a trace would take the memory of all that the product ever makes."""
    alive = []

    def function(x):
        y = x * 2
        memory = weakref.ref(y.untyped_storage())
        z = y.exp()
        del y
        alive.append(memory() is not None)
        return z

    assert calls(recorded(function, X)) == [aten.mul.Tensor, aten.exp.default]
    assert alive == [False]


def test_operations_are_taken_apart_under_inference_mode():
    with torch.inference_mode():
        assert aten.linear.default not in calls(recorded(nn.Linear(3, 3, dtype=torch.float64), X))


def by_branch(x):
    return x if x.sum() > 0 else -x


def by_branch_that_gives_up(x):
    try:
        return x if x.sum() > 0 else -x
    except RuntimeError:
        return x


def by_a_view(x):
    kept = torch.zeros(3, dtype=x.dtype)
    first = kept[:1]
    kept.copy_(x[0])
    return x * first.item()


def by_chance(x):
    return x * torch.rand(()).item()


@pytest.mark.parametrize("function", [by_branch, by_branch_that_gives_up, by_a_view, by_chance])
def test_values_that_others_have_another_time_are_not_read(function):
    with pytest.raises(ValuesRead, match="reads values"):
        record(function, (X,))


class Positions(nn.Module):
    """As language models ask of positions whether their sequences are packed."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(1))

    def forward(self, x):
        steps = torch.arange(x.shape[1], device=x.device).diff()
        y = self.layer(x) * (2 if (steps == 1).all() else 3)
        return y * self.scale if self.scale.item() > 0 else y


def test_values_of_constants_may_be_read():
    case = Case("positions", Positions, X, Y)
    problem = case.problem(sizes=(3, 3, 1))
    traced = Curvature(problem, "hessian", products=10**9)
    eye = torch.eye(problem.size, dtype=problem.dtype)
    torch.testing.assert_close(traced @ eye, Curvature(problem, "hessian", memory=0) @ eye, rtol=1e-12, atol=1e-14)
    assert traced.path.startswith("hoisted")


def test_tensors_without_memory_get_some():
    """Forward mode makes them for the derivative of what does not depend on its argument."""

    def function(x):
        nothing = torch._efficientzerotensor(x.shape, dtype=x.dtype)
        return x + nothing.view(-1).view(x.shape)

    module = recorded(function, X)
    assert aten.zeros.default in calls(module)
    torch.testing.assert_close(module(X), X, rtol=0, atol=0)


def test_a_graph_follows_what_is_recorded_of_functorch():
    model = nn.Sequential(nn.Linear(3, 3, dtype=torch.float64), Lambda(torch.tanh))

    def function(x):
        return torch.func.vmap(torch.func.jacrev(model))(x).sum(dim=2)

    module = recorded(function, X)
    other = X.exp()
    torch.testing.assert_close(module(other), function(other), rtol=1e-14, atol=0)


def test_copies_to_another_device_are_told_from_casts():
    """No product is to wait for one: it is made once a batch."""
    _, graph = record(lambda x: [x.to("meta"), x.to(torch.float32)], [X])
    copies = graph.find_nodes(op="call_function", target=torch.ops.aten._to_copy.default)
    assert [is_cheap(copy) for copy in copies] == [False, True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_derivatives_are_recorded_from_autograds_thread():
    """On CUDA, backward passes run in a thread of their own."""
    problem = BY_NAME["mlp"].problem(sizes=(3, 3, 1), device="cuda")
    traced = Curvature(problem, "hessian", products=10**9)
    eye = torch.eye(problem.size, dtype=problem.dtype, device="cuda")
    torch.testing.assert_close(traced @ eye, Curvature(problem, "hessian", memory=0) @ eye, rtol=1e-10, atol=1e-12)
    assert traced.path.startswith("hoisted")
