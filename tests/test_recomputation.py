"""Blocks that are computed anew for derivatives: the same matrices to rounding, in less memory."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from dense import Dense
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import spectra
from spectra.curvature.checks.derivative_check import KINKED
from spectra.curvature.engine.differentiation import twice_differentiable
from spectra.curvature.engine.footprint import measured
from spectra.curvature.engine.hoisting import HoistedProduct
from spectra.curvature.engine.memory_plan import with_blocks
from spectra.curvature.matrices import MATRICES, definition
from spectra.problem.autograd_graph import names_behind
from spectra.problem.blocks import blocks_of, recomputing, repeatable
from spectra.problem.recomputation import recomputed

IN, WIDTH, CLASSES, N = 2, 3, 3, 5
DOUBLE = torch.float64


class Block(nn.Module):
    """A residual block, with what a block may take and return: keywords, and a pair."""

    def __init__(self, width: int = WIDTH, hidden: int = 3):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x, scale=1.0):
        inner = F.gelu(self.up(self.norm(x)))
        return x + scale * self.down(inner), inner.sum(dim=1, keepdim=True)


class Deep(nn.Module):
    """A network of blocks; `tied` blocks are one and the same."""

    def __init__(self, count: int = 3, width: int = WIDTH, hidden: int = 3, tied: bool = False):
        super().__init__()
        self.first, self.last = nn.Linear(IN, width), nn.Linear(width, CLASSES)
        block = Block(width, hidden)
        self.layers = nn.ModuleList(block if tied else Block(width, hidden) for _ in range(count))

    def forward(self, x):
        x, extra = self.first(x), 0
        for layer in self.layers:
            x, more = layer(x, scale=x.square().mean(dim=1, keepdim=True))
            extra = extra + more
        return self.last(x) + extra / 10


class Checkpointed(Deep):
    """The same with PyTorch's own checkpoints."""

    reentrant = False

    def forward(self, x):
        x, extra = self.first(x), 0
        for layer in self.layers:
            x, more = checkpoint(layer, x, x.square().mean(dim=1, keepdim=True), use_reentrant=self.reentrant)
            extra = extra + more
        return self.last(x) + extra / 10


class Reentrant(Checkpointed):
    reentrant = True


def problem_of(model: nn.Module | None = None, count: int = N, **settings) -> spectra.Problem:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, IN, generator=draw, dtype=DOUBLE)
    y = torch.randint(0, CLASSES, (count,), generator=draw)
    model = made(Deep) if model is None else model
    return spectra.Problem(model, spectra.CrossEntropy(), [spectra.Batch(x, y, torch.arange(count))], **settings)


def made(kind, *arguments, **keywords) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind(*arguments, **keywords).double().eval()


def products(problem: spectra.Problem, name: str, hoisted: bool = False) -> torch.Tensor:
    """Products of the matrix of the first batch with two vectors."""
    vectors = torch.randn(2, problem.size, generator=torch.Generator().manual_seed(5), dtype=problem.dtype)
    linearise, batch = definition(name).linearise, problem.batches[0]
    with twice_differentiable(problem.model):
        if hoisted:
            graph = HoistedProduct(linearise, problem, [batch])
            residuals = graph.residuals(batch)
            return torch.stack([graph.apply(residuals, vector) for vector in vectors])
        apply = linearise(problem, batch)
        return torch.stack([apply(vector) for vector in vectors])


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.sampled(7)
def test_recomputing_changes_no_number(name, tied):
    plain = problem_of(made(Deep, tied=tied))
    lean = with_blocks(plain)
    assert lean.blocks == (("layers.0",) if tied else ("layers.0", "layers.1", "layers.2"))
    assert_close(products(lean, name), products(plain, name), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher-mc"])
@pytest.mark.sampled(1)
def test_a_graph_of_recomputed_blocks_has_their_products(name):
    plain = problem_of()
    assert_close(
        products(with_blocks(plain), name, hoisted=True), products(plain, name, hoisted=True), rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize("kind", [Deep, Checkpointed, Reentrant])
@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("name", ["hessian", "ggn"])
@pytest.mark.sampled(4)
def test_dense_autograd(kind, lean, name):
    problem, plain = problem_of(made(kind), recompute_activations=lean), problem_of()
    batch = problem.batches[0]
    dense = Dense(plain.model, lambda call: call(batch.inputs), lambda z: F.cross_entropy(z, batch.targets))
    matrix = spectra.Curvature(problem, name, products=0)
    assert_close(matrix @ torch.eye(problem.size, dtype=DOUBLE), getattr(dense, name)(), rtol=1e-10, atol=1e-12)
    assert matrix.path.endswith("; activations of 3 blocks recomputed" if lean else "1 of 1 batches kept")


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher-empirical"])
@pytest.mark.sampled(2)
def test_memory_falls(name):
    plain = problem_of(made(Deep, count=12, width=8, hidden=32), count=200)
    lean, linearise = with_blocks(plain), definition(name).linearise
    with twice_differentiable(plain.model):
        costs = []
        for problem in (plain, lean):
            _ = problem.weight, problem.examples, problem.writes_inputs
            costs.append(measured(linearise, problem, problem.batches[0]))
    assert costs[1].kept < 0.25 * costs[0].kept
    assert max(costs[1].history) < 0.4 * max(costs[0].history)


def test_memory_is_spared_where_no_product_of_an_example_fits():
    plain = problem_of(made(Deep, count=12, width=32, hidden=64), count=4)
    plain = replace(plain, parameters={"last.bias": plain.model.last.bias, "first.bias": plain.model.first.bias})
    vector = torch.randn(plain.size, dtype=DOUBLE)
    whole = spectra.Curvature(plain, "hessian")
    expected = whole @ vector
    with twice_differentiable(plain.model):
        _ = plain.weight, plain.examples, plain.writes_inputs
        one = max(measured(definition("hessian").linearise, plain, plain.batches[0].part(slice(1))).history)
    tight = int(0.8 * one)
    matrix = spectra.Curvature(plain, "hessian", memory=tight)
    assert_close(matrix @ vector, expected, rtol=1e-12, atol=1e-14)
    assert "activations of 12 blocks recomputed" in matrix.path
    assert matrix.peak_bytes <= tight
    with pytest.raises(spectra.SpectraError, match="`memory`"):
        spectra.Curvature(replace(plain, recompute_activations=False), "hessian", memory=tight) @ vector
    assert "recomputed" not in whole.path
    assert "recomputed" not in spectra.Curvature(plain, "hessian", memory=10 * one).path


def test_the_model_is_left_as_it_was_found():
    class Own(nn.Linear):
        pass

    problem = with_blocks(problem_of())
    own = problem.model.layers[1]
    own.forward = lambda x, scale=1.0, block=own: Block.forward(block, x, scale)
    kept = own.forward
    before = {name: dict(vars(module)) for name, module in problem.model.named_modules()}
    products(problem, "hessian")
    assert {name: dict(vars(module)) for name, module in problem.model.named_modules()} == before
    assert own.forward is kept


class Failing(Block):
    def forward(self, x, scale=1.0):
        if len(x) == 2:
            raise ValueError("two")
        return super().forward(x, scale)


def test_an_error_leaves_the_model_as_it_was_found():
    model = made(Deep)
    model.layers[2] = made(Failing)
    with pytest.raises(ValueError, match="two"), recomputing(model, blocks_of(model)):
        model(torch.ones(2, IN, dtype=DOUBLE))
    assert all("forward" not in vars(layer) for layer in model.layers)


class Counting(Block):
    """A block that is another function at each call."""

    calls = 0

    def forward(self, x, scale=1.0):
        self.calls += 1
        return super().forward(x, self.calls * scale)


class Telling(Block):
    """A block that leaves something with a graph beside what it returns."""

    def forward(self, x, scale=1.0):
        x, self.told = super().forward(x, scale)
        return x, None


class Listening(Deep):
    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x, _ = layer(x)
        return self.last(x) + sum(layer.told for layer in self.layers)


def test_blocks_that_cannot_be_computed_anew_are_left():
    model = made(Deep)
    model.layers[1] = made(Counting)
    x = torch.ones(2, IN, dtype=DOUBLE)
    assert repeatable(model, blocks_of(model), lambda: model(x)) == ["layers.0", "layers.2"]

    model = made(Listening)
    for i in range(3):
        model.layers[i] = made(Telling)
    problem = problem_of(model, recompute_activations=True)
    assert with_blocks(problem).blocks == ()  # the gradient is another
    matrix = spectra.Curvature(problem, "hessian", products=0)
    matrix.prepare()
    assert matrix.path.endswith("no blocks whose activations can be recomputed")


def test_blocks_are_those_of_containers():
    inner = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    assert blocks_of(nn.Sequential(inner, nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))) == ["0", "1"]
    assert blocks_of(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))) == []
    assert blocks_of(nn.Sequential(nn.Sequential(Block(), Block()))) == ["0.0", "0.1"]


def test_a_tensor_with_a_graph_that_is_not_handed_over():
    """Such a function is called as it is: its derivative by the tensor would be lost."""
    a = torch.randn(3, dtype=DOUBLE, requires_grad=True)
    b = torch.randn(3, dtype=DOUBLE, requires_grad=True)
    for outer in (torch.exp, lambda b: b):
        values = []
        for call in (lambda f, x: f(x), recomputed):
            c = outer(b)
            values.append(call(lambda x, c=c: (x * c).sin().sum(), a * 1))
        slopes = [torch.autograd.grad(value, (a, b), create_graph=True) for value in values]
        seconds = [torch.autograd.grad((s[0] * s[1].detach().cos()).sum() + s[1].sum(), (a, b)) for s in slopes]
        for one, other in (values, *zip(*slopes, strict=True), *zip(*seconds, strict=True)):
            assert_close(one, other, rtol=1e-13, atol=1e-14)


def test_kinks_are_seen_in_functions_that_are_computed_anew():
    x = torch.ones(2, requires_grad=True)
    value = recomputed(lambda x: nn.functional.relu(x * 2), x * 1)
    assert "ReluBackward0" not in {node.name() for node in [value.grad_fn]}
    assert any(name.startswith(KINKED) for name in names_behind([value]))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return 2 * ctx.saved_tensors[0] * slope


class OnceInside(Block):
    def forward(self, x, scale=1.0):
        return Once.apply(self.down(self.up(x))), 0 * x.sum(dim=1, keepdim=True)


def test_a_function_without_a_second_derivative_is_refused_inside_a_block():
    model = made(Deep)
    model.layers[1] = made(OnceInside)
    problem = problem_of(model, recompute_activations=True)
    with pytest.raises(spectra.SpectraError, match="once_differentiable"):
        spectra.Curvature(problem, "hessian", memory=0) @ torch.ones(problem.size, dtype=DOUBLE)


@pytest.mark.parametrize("value", [1, "yes", 0.5])
def test_wrong_values_are_refused(value):
    with pytest.raises(spectra.SpectraError, match="`recompute_activations`"):
        problem_of(recompute_activations=value)
    with pytest.raises(spectra.SpectraError, match="`recompute_activations`"):
        spectra.eig(nn.Linear(2, 2), "mse", (torch.ones(3, 2), torch.ones(3, 2)), k=1, recompute_activations=value)


@pytest.mark.parametrize("name", ["hessian", "ggn"])
@pytest.mark.sampled(1)
def test_columns_of_a_graph_of_recomputed_blocks(name):
    plain = problem_of()
    lean = with_blocks(plain)
    columns = torch.randn(3, plain.size, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    linearise, batch = definition(name).linearise, plain.batches[0]
    with twice_differentiable(plain.model):
        graph = HoistedProduct(linearise, lean, [batch])
        found = graph.execution.graph(3)(*graph.residuals(batch), columns)
        apply = linearise(plain, batch)
        expected = torch.stack([apply(column) for column in columns])
    assert_close(found.view(3, -1), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="on CUDA, whose derivatives are computed in other threads")
@pytest.mark.parametrize("hoisted", [False, True])
@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher-mc"])
def test_recomputing_on_cuda(name, hoisted):
    plain = problem_of()
    expected = products(plain, name)
    (batch,) = plain.batches
    there = spectra.Batch(batch.inputs.cuda(), batch.targets.cuda(), batch.indices.cuda())
    lean = with_blocks(spectra.Problem(made(Deep).cuda(), plain.loss, [there]))
    assert len(lean.blocks) == 3
    vectors = torch.randn(2, plain.size, generator=torch.Generator().manual_seed(5), dtype=DOUBLE).cuda()
    linearise = definition(name).linearise
    with twice_differentiable(lean.model):
        if hoisted:
            graph = HoistedProduct(linearise, lean, [there])
            residuals = graph.residuals(there)
            found = torch.stack([graph.apply(residuals, vector) for vector in vectors])
        else:
            apply = linearise(lean, there)
            found = torch.stack([apply(vector) for vector in vectors])
    assert_close(found.cpu(), expected, rtol=1e-10, atol=1e-12)
