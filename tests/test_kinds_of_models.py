"""Models of many kinds have the Hessian that finite differences of their gradients give, however products are made."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from finite_differences import hessian
from networks import DEVICES
from torch import Tensor, nn
from torch.nn.attention import flex_attention as flex
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from spectra.curvature.engine.replacements import grouped_mm, replacements
from spectra.curvature.evaluation import cut_batches, mean_loss
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.inputs.problem import load_problem
from spectra.problem.batch import Batch
from spectra.problem.losses import CustomLoss, Loss, MeanSquaredError
from spectra.problem.problem import Problem
from spectra.product_checks import check_operator
from spectra.run.measurement import Measurement, imprecise

WAYS = {"kept": {}, "anew": {"memory": 0}, "traced": {"products": 10**9}}


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = drawn(6, 3), drawn(6, 2, seed=2)
IDS = torch.tensor([[0, 1, 1], [4, 2, 0], [3, 3, 3], [1, 4, 0], [2, 2, 1], [0, 0, 4]])


def mean_square(output: Tensor, targets: Tensor) -> Tensor:
    return (output - targets).square().mean()


@dataclass(frozen=True)
class Kind:
    """A model, and the same function written without what is in question, its parameters in the same order."""

    name: str
    build: Callable[[], nn.Module]
    plain: Callable[[], nn.Module] | None = None  # the model itself, where its gradients are beyond doubt
    inputs: Tensor = field(default=X, repr=False)
    function: Callable[[Tensor, Tensor], Tensor] = mean_square
    loss: Loss = field(default_factory=MeanSquaredError)

    def model(self, device: str) -> nn.Module:
        torch.manual_seed(0)
        return self.build().double().to(device).eval()

    def problem(self, device: str) -> Problem:
        inputs, targets = self.inputs.to(device, copy=True), Y.to(device)
        return Problem(self.model(device), self.loss, cut_batches(inputs, targets, torch.arange(6, device=device), 6))

    def reference(self, device: str) -> tuple[Tensor, float]:
        """The Hessian and the loss."""
        model, (inputs, targets) = self.model(device), (self.inputs.to(device, copy=True), Y.to(device))
        if self.plain:
            same = self.plain().double().to(device).eval()
            for p, value in zip(same.parameters(), model.parameters(), strict=True):
                p.data.copy_(value)
            model = same
        found = hessian(model, lambda: self.function(model(inputs.clone()), targets))
        return found, self.function(model(inputs), targets).item()


def between(layer: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2))


class Graph(nn.Module):
    """Two graph convolutions; the adjacency matrix lies in `layout`."""

    def __init__(self, layout: torch.layout, multiply=torch.matmul):
        super().__init__()
        self.first, self.second, self.multiply = nn.Linear(1, 4), nn.Linear(4, 2), multiply
        adjacency = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 2]])
        self.adjacency = nn.Buffer(adjacency.to_sparse(layout=layout) if layout is not torch.strided else adjacency)

    def forward(self, x):
        """x (N, 3) is one number for each of the three nodes."""
        return self.spread(self.second(self.spread(self.first(x[..., None])).tanh())).sum(1)

    def spread(self, x):
        nodes_first = x.movedim(1, 0)
        return self.multiply(self.adjacency, nodes_first.flatten(1)).view_as(nodes_first).movedim(0, 1)


class SparseWeights(nn.Module):
    """A matrix of which few entries are trained, one of them twice and one 0."""

    def __init__(self, sparse: bool, multiply=torch.sparse.mm):
        super().__init__()
        self.values, self.head = nn.Parameter(torch.tensor([0.3, 0.0, -0.7, 1.1, 0.2])), nn.Linear(3, 2)
        self.places, self.sparse, self.multiply = torch.tensor([[0, 1, 2, 0, 2], [0, 2, 1, 1, 1]]), sparse, multiply

    def forward(self, x):
        places = self.places.to(x.device)
        if self.sparse:
            weights = torch.sparse_coo_tensor(places, self.values, (3, 3))
            return self.head(self.multiply(weights, x.T).T.tanh())
        weights = x.new_zeros(3, 3).index_put(tuple(places), self.values, accumulate=True)
        return self.head((weights @ x.T).T.tanh())


class Embedded(nn.Module):
    """Words by their vectors, or by rows of the identity times the vectors: `by_hand`."""

    def __init__(self, by_hand: bool = False, **options):
        super().__init__()
        self.table, self.head, self.by_hand = nn.Embedding(5, 3, **options), nn.Linear(9, 2), by_hand

    def forward(self, ids):
        words = F.one_hot(ids, 5).double() @ self.table.weight if self.by_hand else self.table(ids)
        return self.head(words.flatten(1).tanh())


class Bag(nn.Module):
    def __init__(self, mode: str, by_hand: bool = False, weighted: bool = False, offsets: bool = False, **options):
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(5, 3, mode=mode, **options), nn.Linear(3, 2)
        self.by_hand, self.weighted, self.offsets = by_hand, weighted, offsets

    def forward(self, ids):
        weights = (1 + ids).double() if self.weighted else None
        if self.by_hand:
            return self.head(self.bags(ids, weights).tanh())
        if self.offsets:
            offsets = torch.arange(0, ids.numel(), 3, device=ids.device)
            return self.head(self.table(ids.flatten(), offsets, None if weights is None else weights.flatten()).tanh())
        return self.head(self.table(ids, per_sample_weights=weights).tanh())

    def bags(self, ids, weights):
        words = F.one_hot(ids, 5).double() @ self.table.weight
        if self.weighted:
            words = words * weights[..., None]
        if self.table.mode == "max":
            return words.amax(1)
        counted = (ids != (-1 if self.table.padding_idx is None else self.table.padding_idx)).double()
        total = (words * counted[..., None]).sum(1)
        return total / counted.sum(1, keepdim=True).clamp(min=1) if self.table.mode == "mean" else total


class Ragged(nn.Module):
    """The examples as sequences of three lengths, in one nested tensor; or padded, by hand."""

    def __init__(self, nested: bool):
        super().__init__()
        self.first, self.second, self.nested = nn.Linear(1, 4), nn.Linear(4, 2), nested

    def forward(self, x):
        lengths = 1 + (x[:, :2] > 0).sum(1)  # of an example, wherever it stands
        counted = torch.arange(3, device=x.device) < lengths[:, None]
        if not self.nested:
            return (self.second(self.first(x[..., None]).tanh()) * counted[..., None]).sum(1)
        ends = F.pad(lengths.cumsum(0), (1, 0))
        sequences = torch.nested.nested_tensor_from_jagged(x[counted][:, None], ends)
        words = self.second(self.first(sequences).tanh()).values()
        rows = torch.arange(len(x), device=x.device).repeat_interleave(lengths)
        return x.new_zeros(len(x), 2).index_add(0, rows, words)


class Experts(nn.Module):
    """The two of three experts that each example's router likes best: by one product for all, or for each expert."""

    def __init__(self, multiply=None):
        super().__init__()
        self.router, self.head, self.multiply = nn.Linear(3, 3), nn.Linear(4, 2), multiply
        self.experts, self.bias = nn.Parameter(drawn(3, 3, 4)), nn.Parameter(drawn(3, 4))

    def forward(self, x):
        shares, chosen = self.router(x).softmax(-1).topk(2)
        shares = shares / shares.sum(-1, keepdim=True)
        if not self.multiply:
            every = (torch.einsum("nd,edh->neh", x, self.experts) + self.bias).tanh()
            return self.head((every.gather(1, chosen[..., None].expand(-1, -1, 4)) * shares[..., None]).sum(1))
        expert = chosen.flatten()
        order = expert.argsort()
        ends = expert.bincount(minlength=3).cumsum(0).int()
        made = (self.multiply(x[order // 2], self.experts, offs=ends) + self.bias[expert[order]]).tanh()
        return self.head(x.new_zeros(len(x), 4).index_add(0, order // 2, made * shares.flatten()[order, None]))


def for_each_expert(x: Tensor, experts: Tensor, offs: Tensor) -> Tensor:
    """One product for each expert, of the rows that a mask selects."""
    group = torch.searchsorted(offs, torch.arange(len(x), device=x.device), right=True)
    found = x.new_zeros(len(x), experts.shape[2])
    for number, expert in enumerate(experts):
        found = found.index_put((group == number,), x[group == number] @ expert)
    return found


class Flexible(nn.Module):
    """Attention among the three numbers of an example, each to those before it: `flex_attention`, or by hand."""

    def __init__(self, attend=None):
        super().__init__()
        self.inputs, self.head, self.attend = nn.Linear(1, 12), nn.Linear(4, 2), attend
        self.distances = nn.Parameter(drawn(5))

    def forward(self, x):
        q, k, v = self.inputs(x[..., None]).view(len(x), 3, 3, 4).unbind(2)
        if not self.attend:
            places = torch.arange(3, device=x.device)
            behind = places[:, None] - places
            scores = (q @ k.mT / 2 + self.distances[behind + 2]).masked_fill(behind < 0, -torch.inf)
            return self.head(scores.softmax(-1) @ v).sum(1)
        causal = flex.create_block_mask(lambda b, h, i, j: i >= j, None, None, 3, 3, device=x.device)
        scored = lambda score, b, h, i, j: score + self.distances[i - j + 2]  # noqa: E731
        q, k, v = q[:, None], k[:, None], v[:, None]
        return self.head(self.attend(q, k, v, score_mod=scored, block_mask=causal)[:, 0]).sum(1)


class StateSpace(nn.Module):
    """A diagonal state space model of complex numbers: by its recurrence, or by its kernel and FFTs, or in reals."""

    def __init__(self, way: str):
        super().__init__()
        self.decay, self.turn, self.way = nn.Parameter(drawn(4)), nn.Parameter(drawn(4, seed=2)), way
        self.read, self.head = nn.Parameter(drawn(4, 2, seed=3)), nn.Linear(4, 2)

    def forward(self, x):
        rate = torch.complex(-F.softplus(self.decay), self.turn)
        if self.way == "recurrence":
            state, sums = x.new_zeros(len(x), 4, dtype=torch.complex128), 0
            for t in range(3):
                state = state * rate.exp() + x[:, t, None]
                sums = sums + (state * torch.view_as_complex(self.read)).real.tanh()
            return self.head(sums)
        ages = torch.arange(3, device=x.device)
        grown, angle = (-F.softplus(self.decay)[:, None] * ages).exp(), self.turn[:, None] * ages
        kernel = grown * (self.read[:, :1] * angle.cos() - self.read[:, 1:] * angle.sin())
        if self.way == "kernel":
            kernel = (torch.view_as_complex(self.read)[:, None] * (rate[:, None] * ages).exp()).real
            spectrum = torch.fft.rfft(x, n=6)[:, None] * torch.fft.rfft(kernel, n=6)
            return self.head(torch.fft.irfft(spectrum, n=6)[..., :3].tanh().sum(-1))
        past = torch.stack([F.pad(x, (age, 0))[:, :3] for age in range(3)], -1)
        return self.head((past @ kernel.T).tanh().sum(1))


class Packed(nn.Module):
    """A recurrent network on sequences of three lengths, packed; or one by one."""

    def __init__(self, kind: type[nn.RNNBase], packed: bool):
        super().__init__()
        self.network, self.head, self.packed = kind(1, 3, batch_first=True), nn.Linear(3, 2), packed

    def forward(self, x):
        lengths = 1 + (x[:, :2] > 0).sum(1)
        if self.packed:
            sequences = pack_padded_sequence(x[..., None], lengths.cpu(), batch_first=True, enforce_sorted=False)
            words = pad_packed_sequence(self.network(sequences)[0], batch_first=True)[0].sum(1)
        else:
            words = torch.cat([self.network(x[i : i + 1, : lengths[i], None])[0].sum(1) for i in range(len(x))])
        return self.head(words)


class Attending(nn.Module):
    """Layers whose second derivatives PyTorch lacks for nested tensors."""

    def __init__(self, layer: str):
        super().__init__()
        self.first, self.norm, self.layer = nn.Linear(1, 4), nn.LayerNorm(4), layer

    def forward(self, x):
        ends = torch.arange(0, 3 * len(x) + 1, 3, device=x.device)
        words = self.first(torch.nested.nested_tensor_from_jagged(x.reshape(-1, 1), ends))
        if self.layer == "attention":
            heads = words.unflatten(-1, (2, 2)).transpose(1, 2)
            words = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(-2)
        words = self.norm(words) if self.layer == "norm" else words
        return words.sum(1)[:, :2] if self.layer == "sum" else words.to_padded_tensor(0.0).sum(1)[:, :2]


class Tangent(nn.Module):
    """The derivative of a network along a direction, by `derivative(network, x, direction)`."""

    def __init__(self, derivative):
        super().__init__()
        self.network, self.derivative = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), derivative

    def forward(self, x):
        return self.derivative(self.network, x, torch.ones_like(x))


class TangentByHand(Tangent):
    def forward(self, x):
        first, _, last = self.network
        return ((1 - first(x).tanh().square()) * first.weight.sum(1)) @ last.weight.T + 0 * last.bias


class Compiled(nn.Module):
    """A method that is compiled, or not."""

    def __init__(self, compiled: bool):
        super().__init__()
        self.network = TANH()
        if compiled:
            self.squashed = torch.compile(self.squashed, backend="aot_eager")

    def squashed(self, x):
        return self.network(x).tanh()

    def forward(self, x):
        return self.squashed(x)


class ComplexWeights(nn.Module):
    """Complex weights kept as pairs of reals, which begin at an odd place among the parameters."""

    def __init__(self, by_hand: bool):
        super().__init__()
        self.scales, self.pairs, self.by_hand = nn.Parameter(drawn(3)), nn.Parameter(drawn(2, 3, 2)), by_hand

    def forward(self, x):
        x = x * self.scales
        if self.by_hand:
            return (x @ self.pairs[..., 0].T).square() + (x @ self.pairs[..., 1].T).square()
        product = x.to(torch.complex128) @ torch.view_as_complex(self.pairs).T
        return product.real.square() + product.imag.square()


class WithNothing(nn.Module):
    """A layer of no inputs, whose bias alone counts."""

    def __init__(self, by_hand: bool):
        super().__init__()
        self.weight, self.bias, self.by_hand = nn.Parameter(torch.empty(2, 0)), nn.Parameter(drawn(2)), by_hand

    def forward(self, x):
        return self.bias.tanh().expand(len(x), 2) if self.by_hand else F.linear(x, self.weight, self.bias).tanh()


class Physics(nn.Module):
    """A network's value and its Laplacian by the inputs: of autograd, or of the closed form for one hidden layer."""

    def __init__(self, by_hand: bool):
        super().__init__()
        self.network, self.by_hand = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), by_hand

    def forward(self, x):
        if self.by_hand:
            first, _, last = self.network
            slopes, curvatures = first.weight, first.weight.square().sum(1)
            t = (x @ slopes.T + first.bias).tanh()
            return torch.cat([last(t), (-2 * t * (1 - t.square()) * curvatures) @ last.weight.T], 1)
        x.requires_grad_()
        value = self.network(x)
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        second = (torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(3))
        return torch.cat([value, sum(second)[:, None]], 1)


class Shifted(nn.Module):
    """Preprocessing that writes to the data, by `prepare`."""

    def __init__(self, prepare):
        super().__init__()
        self.network, self.prepare = TANH(), prepare

    def forward(self, x):
        return self.network(self.prepare(x))


def scale_a_column(x):
    x[:, 0] *= 3
    return x


def by_dual_numbers(network, x, direction):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, direction)
        return torch.autograd.forward_ad.unpack_dual(network(dual)).tangent


def elastic(output: Tensor, targets: Tensor) -> Tensor:
    return (output - targets).square() + 0.1 * (output - targets).abs()


def absolute(output: Tensor, targets: Tensor) -> Tensor:
    return (output - targets).abs()


TANH = between(nn.Tanh())
ABSOLUTE = [
    Kind("Softsign", between(nn.Softsign())),
    Kind("L1 loss", TANH, function=lambda o, t: absolute(o, t).mean(), loss=CustomLoss(absolute)),
    Kind("elastic net", TANH, function=lambda o, t: elastic(o, t).mean(), loss=CustomLoss(elastic)),
]
TANGENTS = [
    Kind("torch.func.jvp", lambda: Tangent(lambda f, x, u: torch.func.jvp(f, (x,), (u,))[1])),
    Kind("dual numbers", lambda: Tangent(by_dual_numbers)),
    Kind("jacfwd", lambda: Tangent(lambda f, x, u: torch.func.vmap(torch.func.jacfwd(f))(x).sum(-1))),
]
TANGENTS = [Kind(kind.name, kind.build, lambda: TangentByHand(None)) for kind in TANGENTS]
DENSE = lambda: Graph(torch.strided)  # noqa: E731
SPARSE = [
    *(
        Kind(f"adjacency {layout}", lambda layout=layout: Graph(layout))
        for layout in (torch.sparse_coo, torch.sparse_csr)
    ),
    Kind("adjacency sparse.mm", lambda: Graph(torch.sparse_coo, torch.sparse.mm)),
    Kind("adjacency csc", lambda: Graph(torch.sparse_csc)),
]
SPARSE = [Kind(kind.name, kind.build, DENSE) for kind in SPARSE]
EMBEDDED = [
    Kind("Embedding", Embedded, lambda: Embedded(True)),
    Kind("Embedding sparse", lambda: Embedded(sparse=True), lambda: Embedded(True)),
    Kind("Embedding by frequency", lambda: Embedded(scale_grad_by_freq=True), lambda: Embedded(True)),
    *(
        Kind(f"EmbeddingBag {mode}", lambda mode=mode: Bag(mode), lambda mode=mode: Bag(mode, True))
        for mode in ("sum", "mean", "max")
    ),
    Kind("EmbeddingBag sparse", lambda: Bag("mean", sparse=True), lambda: Bag("mean", True)),
    Kind(
        "EmbeddingBag weighted",
        lambda: Bag("sum", weighted=True, offsets=True),
        lambda: Bag("sum", True, weighted=True),
    ),
    Kind(
        "EmbeddingBag padded",
        lambda: Bag("mean", padding_idx=-5, sparse=True),
        lambda: Bag("mean", True, padding_idx=0),
    ),
    Kind("EmbeddingBag last offset", lambda: Bag("sum", scale_grad_by_freq=True), lambda: Bag("sum", True)),
]
EMBEDDED = [Kind(kind.name, kind.build, kind.plain, IDS) for kind in EMBEDDED]
DIFFERENTIATING = [Kind("physics-informed", lambda: Physics(False), lambda: Physics(True))]
IN_PLACE = [
    Kind(
        "scaled in place",
        lambda: Shifted(lambda x: x.sub_(0.3).mul_(2)),
        lambda: Shifted(lambda x: (x - 0.3) * 2),
    ),
    Kind("a column in place", lambda: Shifted(scale_a_column), lambda: Shifted(lambda x: scale_a_column(x.clone()))),
]
OTHERS = [
    Kind("compiled method", lambda: Compiled(True), lambda: Compiled(False)),
    Kind("view_as_complex", lambda: ComplexWeights(False), lambda: ComplexWeights(True)),
    Kind("no inputs", lambda: WithNothing(False), lambda: WithNothing(True), inputs=X[:, :0]),
    Kind("Embedding within max_norm", lambda: Embedded(max_norm=9.0), lambda: Embedded(True), inputs=IDS),
    *DIFFERENTIATING,
    *IN_PLACE,
    Kind("sparse weights", lambda: SparseWeights(True), lambda: SparseWeights(False)),
    Kind("sparse weights @", lambda: SparseWeights(True, torch.matmul), lambda: SparseWeights(False)),
    Kind("nested tensor", lambda: Ragged(True), lambda: Ragged(False)),
]


EXPERTS = [
    *(
        Kind(f"experts {name}", lambda multiply=multiply: Experts(multiply), Experts)
        for name, multiply in {"grouped_mm": F.grouped_mm, "by masks": for_each_expert}.items()
    ),
    *(
        Kind(f"flex_attention {name}", lambda attend=attend: Flexible(attend), Flexible)
        for name, attend in {"": flex.flex_attention, "compiled": torch.compile(flex.flex_attention)}.items()
    ),
    *(
        Kind(f"state space by {way}", lambda way=way: StateSpace(way), lambda: StateSpace("reals"))
        for way in ("recurrence", "kernel")
    ),
    *(
        Kind(f"packed {kind.__name__}", lambda kind=kind: Packed(kind, True), lambda kind=kind: Packed(kind, False))
        for kind in (nn.RNN, nn.GRU, nn.LSTM)
    ),
]


EVERY = [(kind, way) for way in WAYS for kind in [*ABSOLUTE, *TANGENTS, *SPARSE, *EMBEDDED, *OTHERS, *EXPERTS]]


# PyTorch's own: forward-mode derivatives, sparse layouts and nested tensors.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning", "ignore:Sparse:UserWarning")
@pytest.mark.sampled(15)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kind", "way"), EVERY, ids=lambda part: getattr(part, "name", part))
def test_the_hessian_is_that_of_finite_differences(kind, way, device):
    problem = kind.problem(device)
    before = problem.batches[0].inputs.clone()
    found = Curvature(problem, "hessian", **WAYS[way]) @ torch.eye(problem.size, dtype=torch.float64, device=device)
    expected, value = kind.reference(device)
    assert (found - expected).norm() < 1e-8 * expected.norm()
    assert mean_loss(problem) == pytest.approx(value, rel=1e-12)
    inputs = problem.batches[0].inputs
    assert torch.equal(inputs, before)
    assert not inputs.requires_grad


class Given(nn.Module):
    """A convolution on a graph that comes with the batch."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x, adjacency):
        return self.second((adjacency @ self.first(x)).tanh())


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_matrices_in_the_batch(layout, way):
    """Batches with one are neither cut nor joined, whatever their sizes."""
    torch.manual_seed(0)
    model, adjacency = Given().double(), (drawn(6, 6) > 0).double()
    sparse = adjacency.to_sparse(layout=layout)
    batches = [Batch({"x": x, "adjacency": sparse}, Y, torch.arange(6)) for x in (X, 2 * X)]
    problem = Problem(model, MeanSquaredError(), batches)
    expected = hessian(model, lambda: sum(mean_square(model(x, adjacency), Y) / 2 for x in (X, 2 * X)))
    found = Curvature(problem, "hessian", **WAYS[way]) @ torch.eye(problem.size, dtype=torch.float64)
    assert (found - expected).norm() < 1e-8 * expected.norm()
    with pytest.raises(SpectraError, match=r"^`data`: a batch with a sparse or nested tensor cannot be cut"):
        batches[0].part(slice(2))


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("layer", ["attention", "norm", "sum"])
def test_layers_without_second_derivatives_for_nested_tensors_are_told_of(layer, curvature):
    problem = Kind(layer, lambda: Attending(layer)).problem("cpu")
    expected = r"^`model`: PyTorch lacks a derivative of a layer for nested tensors \(.*\); pad the sequences to"
    with pytest.raises(SpectraError, match=expected) as refusal:
        Curvature(problem, curvature) @ torch.ones(problem.size, dtype=torch.float64)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("form", ["rows", "columns", "shared", "stacked"])
def test_grouped_products_are_those_of_pytorch(form):
    """In float32, where PyTorch has them; beyond the last range it leaves numbers undefined, we zeros."""
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    shapes = {
        "rows": ((7, 4), (3, 4, 8)),
        "columns": ((3, 4, 8), (8, 7)),
        "shared": ((4, 7), (7, 8)),
        "stacked": ((3, 4, 8), (3, 8, 4)),
    }
    a, b = (drawn(*shape).float() for shape in shapes[form])
    offs = None if form == "stacked" else ends
    found = grouped_mm(a, b, offs, out_dtype=torch.float64)
    assert found.dtype == torch.float64
    pieces = [slice(0, 2), slice(2, 2), slice(2, 5)]
    groups = {
        "rows": lambda: torch.cat([a[own] @ b[i] for i, own in enumerate(pieces)] + [torch.zeros(2, 8)]),
        "columns": lambda: torch.cat([a[i] @ b[:, own] for i, own in enumerate(pieces)] + [torch.zeros(4, 2)], 1),
        "shared": lambda: torch.stack([a[:, own] @ b[own] for own in pieces]),
        "stacked": lambda: torch.stack([a[i] @ b[i] for i in range(3)]),
    }
    torch.testing.assert_close(found.float(), groups[form]())
    if form == "rows":  # the others ask for layouts of a GPU
        torch.testing.assert_close(found[:5].float(), F.grouped_mm(a, b, offs=offs)[:5])


def test_flex_attention_is_pytorchs(monkeypatch):
    """Of fewer heads of keys than of queries, with a score that reads a table, and a row that sees nothing."""
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    q, k, v, table = drawn(2, 4, 5, 16), drawn(2, 2, 6, 16, seed=2), drawn(2, 2, 6, 3, seed=3), drawn(4, 11)
    mask = flex.create_block_mask(lambda b, h, i, j: (j <= i + b) & (i != 3 + h), 2, 4, 5, 6, device="cpu")
    options = {"score_mod": lambda score, b, h, i, j: score.tanh() + table[h, i - j + 5], "block_mask": mask}
    options |= {"enable_gqa": True, "scale": 0.3, "return_aux": flex.AuxRequest(lse=True)}
    wanted, told = flex.flex_attention(q, k, v, **options)
    for owner, name, form in replacements():
        monkeypatch.setattr(owner, name, form)
    found, ours = flex.flex_attention(q, k, v, **options)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(ours.lse, told.lse)
    assert found[:, 0, 3].norm() == 0


def test_a_model_that_writes_to_some_batches_alone_is_named():
    def prepare(x):
        return x.mul_(2) if len(x) == 6 else x

    kind = Kind("sometimes", lambda: Shifted(prepare))
    with pytest.raises(SpectraError, match=r"^`model`: its forward wrote to its inputs in place, for some batches"):
        mean_loss(kind.problem("cpu"))


def test_embeddings_that_would_be_renormalised_are_refused_and_left_alone():
    kind = Kind("max_norm", lambda: Embedded(max_norm=1.0), inputs=IDS)
    problem = kind.problem("cpu")
    before = problem.model.table.weight.detach().clone()
    with pytest.raises(SpectraError, match=r"max_norm is 1; first set its weights to torch\.renorm\(weight, 2, 0, 1\)"):
        mean_loss(problem)
    assert torch.equal(problem.model.table.weight, before)


def parameter(made: Callable[[], Tensor]) -> nn.Module:
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(made())
    return model


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(3, 2)


UNSUITABLE = {
    "complex": (lambda: parameter(lambda: torch.ones(2, 3) + 0j), r"weight is complex .*torch\.view_as_real"),
    "sparse": (lambda: parameter(lambda: torch.eye(3).to_sparse()), r"weight is sparse .*torch\.sparse_coo_tensor"),
    "inference mode": (in_inference_mode, r"weight was made under torch\.inference_mode\(\).*outside"),
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_parameters_without_derivatives_are_named(name):
    build, expected = UNSUITABLE[name]
    with pytest.raises(SpectraError, match=f"^`model`: its parameter {expected}"):
        Problem(build(), MeanSquaredError(), cut_batches(X.float(), Y.float(), torch.arange(6), 6))


BUILDERS = """
import torch
from torch import nn

def plain(**options):
    return nn.Sequential(nn.Embedding(5, 3, **options), nn.Flatten(), nn.Linear(9, 2))

def inference():
    with torch.inference_mode():
        return plain()

def exported():
    any_size = ({0: torch.export.Dim("b")},)
    return torch.export.export(plain(), (torch.zeros(4, 3).long(),), dynamic_shapes=any_size).module()

def renormalised():
    model = plain(max_norm=1.0)
    model(torch.arange(5)[None, [0, 1, 2, 3, 4, 0, 1, 2, 3]].reshape(3, 3))  # as its forward does it
    model(torch.full((1, 3), 4))
    model[0].max_norm = None
    return model

def data():
    torch.manual_seed(3)
    return torch.randint(0, 5, (9, 3)), torch.randn(9, 2)
"""
SAME = {"inference": "plain", "exported": "plain", "plain?max_norm=1.0": "renormalised"}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", SAME)
def test_what_builders_make_is_the_plain_model(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "built.py").write_text(BUILDERS)
    found, expected = (
        load_problem(model=f"built.py:{each}", data="built.py:data", loss="mse", device="cpu", dtype="float64")
        for each in (name, SAME[name])
    )
    assert found.record.loss_value == pytest.approx(expected.record.loss_value, rel=1e-7)
    eye = torch.eye(found.problem.size, dtype=torch.float64)
    one, other = (Curvature(loaded.problem, "hessian") @ eye for loaded in (found, expected))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)  # PyTorch renormalises in float32, to 1e-7 less
    renormalised = "max_norm" in name
    assert (
        found.record.notes == ["Embedding '0': 4 of 5 rows were cut to max_norm=1, then it was disabled"] * renormalised
    )


class SingleInside(nn.Module):
    """RMSNorm as language models have it: in float32, whatever the model is in."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)


def test_a_model_that_computes_in_float32_inside_is_told_of():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), SingleInside(), nn.Tanh(), nn.Linear(8, 8), SingleInside(), nn.Linear(8, 2))
    problem = Problem(model.double(), MeanSquaredError(), cut_batches(X, Y, torch.arange(6), 6))
    noise = check_operator(Curvature(problem, "hessian"), torch.Generator().manual_seed(0))
    assert 1e-9 < noise < 1e-6
    found = Measurement("hessian", None, 3, 0.0, 0.0, noise, "", 0, 0, False)
    (line,) = imprecise([found], torch.float64, "a part of the model")
    assert re.fullmatch(
        r"hessian: products have a relative error of \de-0\d, since a part of the model .* float64", line
    )
    assert imprecise([found], torch.float32, "a part of the model") == []
