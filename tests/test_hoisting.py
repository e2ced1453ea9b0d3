"""The traced product is autograd's, on batches that the trace has not seen, and what it keeps is what must be kept."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import seeded
from networks import BY_NAME, LOSSES, NETWORKS, SOME, Case, Lambda, X, Y, floats, name_of
from torch import Tensor, nn
from torch.fx import GraphModule

from spectra.curvature.engine.differentiation import twice_differentiable
from spectra.curvature.engine.graphs import Mutation, simplify, split, storage
from spectra.curvature.engine.hoisting import HoistedProduct, Untraceable, shape_of
from spectra.curvature.engine.meter import Meter
from spectra.curvature.engine.recorder import record
from spectra.curvature.engine.rewrites import SLOPES, improve
from spectra.curvature.matrices import MATRICES, definition
from spectra.curvature.operator import Curvature

aten = torch.ops.aten
ALIKE = (2, 2, 2, 1)  # traced on the first, checked on the second, tried on the third
GRAPHS = [name for name in MATRICES if name not in ("fisher-batch", "gradient-covariance")]


IMAGES, SIGNALS = floats(7, 2, 6, 6), floats(7, 2, 8)
CONVOLUTIONS = [
    Case("strides", lambda: stack(nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, 2, 2)), IMAGES, Y),
    Case("dilation", lambda: stack(nn.Conv2d(2, 4, 2, dilation=2), nn.Tanh(), nn.Conv2d(4, 3, 3)), IMAGES, Y),
    Case("groups", lambda: stack(nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.Conv2d(4, 3, 3)), IMAGES, Y),
    Case("transposed", lambda: stack(nn.ConvTranspose2d(2, 4, 2, 2), nn.Tanh(), nn.Conv2d(4, 3, 3)), IMAGES, Y),
    Case("one dimension", lambda: stack(nn.Conv1d(2, 4, 3, 2, 1), nn.SiLU(), nn.Conv1d(4, 3, 2)), SIGNALS, Y),
]


def stack(first: nn.Module, bend: nn.Module, second: nn.Module) -> nn.Module:
    return nn.Sequential(first, bend, second, nn.Tanh(), Lambda(lambda x: x.flatten(2).mean(dim=2)))


def made(case: Case, name: str, **settings):
    """A problem of batches alike, its matrix's function, and what is hoisted of it."""
    problem, linearise = case.problem(**{"sizes": ALIKE, **settings}), definition(name).linearise
    with twice_differentiable(problem.model):
        return problem, linearise, HoistedProduct(linearise, problem, problem.batches[:2])


def assert_products_are_autograds(problem, linearise, hoisted, tolerance):
    for batch in problem.batches[:3]:
        with twice_differentiable(problem.model):
            apply, residuals = linearise(problem, batch), hoisted.residuals(batch)
            for seed in range(2):
                vector = torch.randn(problem.size, generator=seeded(seed), dtype=problem.dtype)
                wanted, found = apply(vector), hoisted.apply(residuals, vector)
                assert (found - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.sampled(20)
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("case", NETWORKS, ids=name_of)
def test_products_of_batches_never_traced_are_autograds(case, name):
    assert_products_are_autograds(*made(case, name), 1e-13)


@pytest.mark.parametrize("name", ["hessian", "fisher-mc"])
@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_products_in_single_precision_agree_to_its_rounding(case, name):
    assert_products_are_autograds(*made(case, name, dtype=torch.float32), 1e-5)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=name_of)
def test_convolutions_of_every_kind(case):
    problem, linearise, hoisted = made(case, "hessian")
    assert_products_are_autograds(problem, linearise, hoisted, 1e-13)
    across = [
        node
        for node in hoisted.second.graph.find_nodes(op="call_function", target=aten.convolution.default)
        if all(storage(x) is not x for x in node.args[:2])
    ]
    assert not across  # they are written as derivatives by the weight


@pytest.mark.parametrize(("name", "limit"), [("hessian", 6), ("ggn", 4)])
def test_no_more_matrix_products_than_counting_requires(name, limit):
    """A layer's gradient takes 3; of its second derivative's 9, 3 do not depend on the vector; of J'MJ's, 5."""
    layers = 4
    hidden = [layer for _ in range(layers - 1) for layer in (nn.Linear(3, 3), nn.ReLU())]
    _, _, hoisted = made(Case("deep", lambda: nn.Sequential(*hidden, nn.Linear(3, 3)), X, Y), name)
    packets = {aten.mm, aten.addmm, aten.addmm_}
    products = [n for n in hoisted.second.graph.nodes if getattr(n.target, "overloadpacket", None) in packets]
    assert len(products) <= limit * layers


@pytest.mark.parametrize("name", GRAPHS)
def test_residual_bytes_are_those_of_the_storages(name):
    problem, _, hoisted = made(BY_NAME["convolution, BatchNorm"], name)
    batch = problem.batches[2]
    given = {x.untyped_storage().data_ptr() for x in (batch.inputs, batch.targets, batch.indices)}
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in hoisted.residuals(batch)}
    assert hoisted.residual_bytes == sum(size for place, size in storages.items() if place not in given)


def test_no_more_is_kept_than_by_a_retained_graph():
    """A rectifier's mask follows from its output, and views from what they view."""
    case = Case("residual", Residual, floats(7, 3, 4, 4), Y)
    problem, linearise, hoisted = made(case, "hessian")
    own = [*problem.model.parameters(), *problem.model.buffers(), problem.batches[0].inputs, problem.batches[0].targets]
    with twice_differentiable(problem.model), Meter(own) as meter:
        apply = linearise(problem, problem.batches[0])
        retained = meter.bytes
        del apply
    assert 0 < hoisted.residual_bytes <= retained


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.first(x).relu()
        return (x + self.norm(self.second(x))).relu().mean(dim=(2, 3))


def test_products_leave_residuals_and_model_as_they_were():
    problem, _, hoisted = made(BY_NAME["LayerNorm, dropout"], "hessian")
    tensors = [*problem.model.parameters(), *problem.model.buffers()]
    versions = [t._version for t in tensors]
    residuals = hoisted.residuals(problem.batches[0])
    before = [r.clone() for r in residuals]
    vector = torch.randn(problem.size, generator=seeded(), dtype=problem.dtype)
    product = hoisted.apply(residuals, vector)
    product.zero_()  # what is handed out is nobody else's
    assert hoisted.apply(residuals, vector).norm() > 0
    assert all(torch.equal(r, b) for r, b in zip(residuals, before, strict=True))
    assert [t._version for t in tensors] == versions
    assert all(p.grad is None for p in problem.model.parameters())


def test_a_frozen_layer_is_a_constant():
    model = BY_NAME["mlp"].model()
    model[0].requires_grad_(False)
    assert_products_are_autograds(*made(BY_NAME["mlp"], "hessian", model=model), 1e-13)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0] ** 2 * slope


def test_custom_functions_of_tensor_operations_are_traced():
    case = Case("cube", lambda: nn.Sequential(nn.Linear(3, 3), Lambda(Cube.apply), nn.Linear(3, 3)), X, Y)
    assert_products_are_autograds(*made(case, "hessian"), 1e-13)


class Once(Cube):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0] ** 2 * slope


def branching(x):
    return x if x.sum() > 0 else -x


def frozen_values(x):
    return x * torch.from_numpy(x.detach().numpy().copy()).tanh()


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (branching, "reads values of a tensor that depends on the data"),
        (frozen_values, "differs"),
        (Once.apply, "twice"),
    ],
)
def test_what_cannot_be_traced_says_why(function, told):
    case = Case("bad", lambda: nn.Sequential(nn.Linear(3, 3), Lambda(function), nn.Linear(3, 3)), X, Y)
    with pytest.raises(Untraceable, match=told):
        made(case, "hessian")


def changed_in_part(x):
    y = x * 1
    y[:, 0].add_(y[:, 1])
    return y


def by_masks(x, h):
    return torch.zeros_like(h).masked_scatter((x > 0)[:, :1].expand_as(h), h[x[:, 0] > 0].square())


def by_repetition(x, h):
    counts = 1 + (x[:, 0] > 0).long()
    rows = torch.arange(len(x)).repeat_interleave(counts)
    return torch.zeros_like(h).index_add(0, rows, h.repeat_interleave(counts, 0).square())


def by_python(x, h):
    return torch.stack([row[:count].square().sum() * row for row, count in zip(h, kept(x).tolist(), strict=True)])


def by_numpy(x, h):
    return torch.stack([row[:count].square().sum() * row for row, count in zip(h, kept(x).numpy(), strict=True)])


def by_list_of_tensors(x, h):
    return h.square() * torch.tensor([row.sum() for row in kept(x)], dtype=h.dtype)[:, None]


def by_thread(x, h):
    with ThreadPoolExecutor(1) as pool:
        return h.square() * pool.submit(kept, x).result()[:, None]


def by_library(x, h):
    return h.square() * torch.from_numpy(np.from_dlpack(kept(x)))[:, None]


def by_split(x, h):
    pairs = zip(h, kept(x), strict=True)
    return torch.stack([row * torch.tensor_split(row, count[None])[0].square().sum() for row, count in pairs])


def by_text(x, h):
    return torch.stack([row.square() * float("2" in str(count)) for row, count in zip(h, kept(x), strict=True)])


def by_kept_tensor(x, h):
    KEPT.numpy()[: len(x)] = kept(x).numpy()
    return h.square() * KEPT[: len(x), None].clone()


KEPT = torch.zeros(6, dtype=torch.float64)
READERS = [by_kept_tensor, by_python, by_numpy, by_list_of_tensors, by_thread, by_library, by_split, by_text]


class Ragged(nn.Module):
    """A layer, and a function of the inputs and of what it gives."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.head, self.function = nn.Linear(3, 3), nn.Linear(3, 3), function

    def forward(self, x):
        return self.head(self.function(x, self.layer(x)))


def kept(x: Tensor) -> Tensor:
    return (x > 0).sum(1)


@pytest.mark.parametrize("name", ["hessian", "ggn"])
@pytest.mark.parametrize("function", [by_masks, by_repetition, *READERS])
def test_what_depends_on_values_is_that_of_every_batch(function, name, batches_as_given):
    """The first and the last batch have the same, the one between has another."""
    inputs = torch.tensor([[1.0, -1, 2], [-2, 1, 3]], dtype=torch.float64)
    inputs = torch.cat([inputs, -inputs, inputs / 2])
    inputs[2, 0] = 1
    case = Case("ragged", lambda: Ragged(function), inputs, Y[:6])
    problem = case.problem(sizes=(2, 2, 2))
    eye = torch.eye(problem.size, dtype=torch.float64)
    traced = Curvature(problem, name, products=10**9)
    torch.testing.assert_close(traced @ eye, Curvature(problem, name, memory=0) @ eye, rtol=1e-12, atol=1e-14)


def backwards(x):
    return x[:, None].expand(-1, 3, -1).permute(-1, 0, 1)[0] * x


def multiplied_in_place(x):
    parts = [x * 1, x * 2]
    torch._foreach_mul_(parts, 3.0)
    return parts[0] * parts[1]


@pytest.mark.parametrize("function", [backwards, multiplied_in_place])
def test_dimensions_from_the_end_and_lists_changed_in_place(function):
    case = Case("strange", lambda: nn.Sequential(nn.Linear(3, 3), Lambda(function), nn.Tanh()), X, Y)
    assert_products_are_autograds(*made(case, "hessian"), 1e-13)


def test_a_model_may_write_into_parts_of_its_tensors():
    case = Case("part", lambda: nn.Sequential(nn.Linear(3, 3), Lambda(changed_in_part), nn.Tanh()), X, Y)
    assert_products_are_autograds(*made(case, "hessian"), 1e-13)


def test_one_trace_serves_batches_of_one_shape():
    first, second, third = BY_NAME["transformer layer, tied head"].problem(sizes=(3, 3, 1)).batches
    assert shape_of(first) == shape_of(second) != shape_of(third)


def traced(function, *arguments):
    constants, graph = record(function, arguments)
    simplify(graph)
    return GraphModule(constants, graph)


def test_changes_in_place_become_new_values():
    def function(x, vector):
        y = x * 2
        before = y + 1
        y.add_(before).mul_(vector)
        return y.t() @ before

    x, vector = floats(3, 3), floats(3)
    module = traced(function, x, vector)
    assert not any(getattr(n.target, "_schema", None) and n.target._schema.is_mutable for n in module.graph.nodes)
    improve(module.graph)
    module.recompile()
    torch.testing.assert_close(module(x, vector), function(x, vector), rtol=1e-14, atol=0)


def test_a_change_seen_through_another_view_is_refused():
    def function(x, vector):
        y = x * 2
        y[0].add_(1)
        return y * vector

    with pytest.raises(Mutation):
        traced(function, floats(3, 3), floats(3))


def halves(module):
    return split(module, module.graph)


def test_the_second_half_does_nothing_that_the_first_could():
    def function(a, vector):
        return (a @ a).exp().relu() @ vector

    first, second, kept = halves(traced(function, floats(3, 3), floats(3)))
    names = [str(node.target) for node in second.graph.nodes if node.op == "call_function"]
    assert names == ["aten.mv.default"]
    assert len(kept) == 1 + len([node for node in kept if node.op == "placeholder"])
    a, vector = floats(3, 3), floats(3)
    torch.testing.assert_close(second(*first(a), vector), function(a, vector))


def test_the_smallest_set_of_values_is_kept():
    """Two factors follow from y by cheap operations, so y alone is kept; of a large value its small part."""

    def function(a, vector):
        y = a @ a
        return (y.relu() @ vector) * (y * 2 + 1)[0] + (a @ a.t()).exp().sum(dim=0)

    first, _, kept = halves(traced(function, floats(5, 5), floats(5)))
    sizes = sorted(node.meta["val"].numel() for node in kept if node.op != "placeholder")
    assert sizes == [5, 25]
    assert len(first(floats(5, 5))) == len(kept)


def improved(function, *arguments: Tensor) -> list:
    """The targets of the improved trace, which gives what the function gives."""
    module = traced(function, *arguments)
    improve(module.graph)
    module.recompile()
    torch.testing.assert_close(module(*arguments), function(*arguments), rtol=1e-13, atol=1e-13)
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


def test_a_sum_with_a_multiple_is_not_taken_for_one_without():
    def function(x, vector):
        product = torch.add(torch.zeros_like(x), x, alpha=3) @ vector
        return torch.add(product, x @ x @ vector, alpha=2)

    improved(function, floats(3, 3), floats(3))


def test_what_is_expanded_is_multiplied_before():
    """X a b, a expanded by hand: one product with all of X, one of channels, and no expansion."""

    def function(x, a, b):
        return a[:, None].expand(x.shape) * x * b[:, None]

    targets = improved(function, floats(9, 10), floats(9), floats(9))
    assert targets.count(aten.mul.Tensor) == 2
    assert aten.expand.default not in targets
    found = improved(lambda a, b: a.expand(9, 10) * b, floats(10), floats(10))
    assert found[-1] is aten.expand.default


def test_numbers_go_to_the_smaller_factor():
    def function(x, a):
        return aten.div.Scalar(aten.mul.Scalar(x * a, 3), 7)

    assert improved(function, floats(9, 10), floats(10))[-1] is aten.mul.Tensor  # the only one with all of x


def test_factors_stay_apart_where_another_reads_their_product():
    def function(x, a, b):
        return (x * a) * b, (x * a).exp()

    assert improved(function, floats(9, 10), floats(10), floats(10)).count(aten.mul.Tensor) == 2


def test_sums_over_one_dimension_after_the_other_are_one():
    targets = improved(lambda x: x.sum(1).sum([0, 2]), floats(2, 3, 4, 5))
    assert targets == [aten.sum.dim_IntList]


@pytest.mark.parametrize("read", [(0, 1, 2), (2, 0), (-1, 1), (0, 0, 1)])
def test_derivatives_by_slices_are_stacked(read):
    """Each in zeros of its own they would cost their number squared; (0, 0, 1) overlap and stay a sum."""

    def function(x, vector):
        parts = [aten.select_backward(x[i] * vector, [4, 3], 0, at) for i, at in enumerate(read)]
        return sum(parts[1:], parts[0]) + x

    targets = improved(function, floats(4, 3), floats(3))
    assert (aten.stack.default in targets) == (len({*read}) == len(read))
    assert (aten.select_backward.default in targets) == (aten.stack.default not in targets)


@pytest.mark.parametrize("copied", [False, True])
def test_convolutions_across_the_batch_are_derivatives_by_the_weight(copied):
    """As autograd writes them on CUDA, too, where it copies the kernels; cuDNN then takes twenty times as long."""

    def function(x, slopes):
        kernels = slopes.transpose(0, 1)
        kernels = kernels.contiguous() if copied else kernels
        return torch.convolution(x.transpose(0, 1), kernels, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)

    targets = improved(function, floats(5, 2, 6, 6), floats(5, 3, 6, 6))
    assert aten.convolution_backward.default in targets
    assert aten.convolution.default not in targets


def test_elements_are_multiplied_and_added_at_once():
    x, y = floats(3, 3), floats(3, 3)
    assert improved(lambda x, y: x + x * y, x, y) == [aten.addcmul.default]
    assert aten.add.Tensor in improved(lambda x, y: torch.add(x, x * y, alpha=2), x, y)
    assert aten.add.Tensor in improved(lambda x, y: x + x * y.float(), x, y)


@pytest.mark.parametrize("bend", [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Softplus(), nn.Hardsigmoid()])
def test_slopes_of_activations_are_computed_once(bend):
    case = Case("bent", lambda: nn.Sequential(nn.Linear(3, 4), bend, nn.Linear(4, 3)), X, Y)
    problem, linearise, hoisted = made(case, "hessian")
    assert_products_are_autograds(problem, linearise, hoisted, 1e-13)
    slow = {aten.exp.default, aten.erf.default, aten.sigmoid.default, aten._log_softmax_backward_data.default, *SLOPES}
    assert slow.isdisjoint(node.target for node in hoisted.second.graph.nodes)


@pytest.mark.parametrize("case", LOSSES, ids=name_of)
def test_losses_look_at_no_value(case):
    assert_products_are_autograds(*made(case, "hessian"), 1e-12)


def test_recurrent_layers_that_are_fused_in_single_precision():
    before = torch._C._get_mkldnn_enabled()
    assert_products_are_autograds(*made(BY_NAME["LSTM"], "hessian", dtype=torch.float32), 1e-5)
    assert torch._C._get_mkldnn_enabled() == before


def test_images_are_kept_with_channels_last():
    problem, _, hoisted = made(CONVOLUTIONS[0], "hessian")
    batch = problem.batches[2]
    images = [r for r in hoisted.residuals(batch) if r.ndim == 4 and r.shape[0] == len(batch)]
    assert images
    assert all(r.is_contiguous(memory_format=torch.channels_last) for r in images)
    assert batch.inputs.is_contiguous()
    given = {x.untyped_storage().data_ptr() for x in (batch.inputs, batch.targets, batch.indices)}
    storages = {r.untyped_storage().data_ptr(): r.untyped_storage().nbytes() for r in hoisted.residuals(batch)}
    assert hoisted.residual_bytes == sum(size for place, size in storages.items() if place not in given)


def test_products_with_columns():
    problem, _, hoisted = made(BY_NAME["mlp"], "hessian")
    vectors, residuals = torch.randn(problem.size, 3, dtype=problem.dtype), hoisted.residuals(problem.batches[0])
    column = hoisted.apply(residuals, vectors[:, 1])
    torch.testing.assert_close(column, hoisted.apply(residuals, vectors[:, 1].clone()))
