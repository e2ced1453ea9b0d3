"""The chosen parameters in parts: each belongs to one, under the name that a reader knows it by."""

import math

import pytest
import torch
from networks import BY_NAME, NETWORKS, SOFT, Case, X, Y, chosen, floats, mlp, name_of
from torch import Tensor, nn

from spectra.curvature.operator import Curvature
from spectra.layerwise.parameter_blocks import BY, block_sums, parameter_blocks, tied
from spectra.problem.problem import Problem


class Owner(nn.Module):
    """Parameters of its own, one of them a scalar, beside a layer; as deep as it is wrapped."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shift = nn.Parameter(torch.randn(2, 3))
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x) * self.scale + self.shift.sum(dim=0)


def wrapped() -> nn.Module:
    """All below one child, where it first branches."""
    return nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Sequential(nn.Linear(4, 3))))


def transposed(groups: int = 1) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(2, 4, 2, groups=groups), nn.Flatten(), nn.Linear(36, 3))


class NoOutputs(nn.Module):
    """A layer whose parameters hold nothing, between two that do."""

    def __init__(self):
        super().__init__()
        self.first, self.none, self.last = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 3)
        self.none.weight = nn.Parameter(torch.zeros(0, 4))
        self.none.bias = nn.Parameter(torch.zeros(0))

    def forward(self, x):
        return self.last(self.first(x).tanh()) + self.none(self.first(x)).sum()


OWN = [
    Case("parameters of the root", Owner, X, Y),
    Case("under one wrapper", wrapped, X, Y),
    Case("transposed convolution", transposed, floats(7, 2, 2, 2), Y),
    Case("transposed in groups", lambda: transposed(2), floats(7, 2, 2, 2), Y),
    Case("no outputs", NoOutputs, X, Y),
    Case("one output", lambda: nn.Sequential(nn.Linear(3, 1), nn.Tanh(), nn.Linear(1, 3)), X, SOFT, "bce"),
]
ALL = {case.name: case for case in NETWORKS + OWN}


def names(case: str, by: str) -> list[str]:
    return [block.name for block in parameter_blocks(ALL[case].problem(), by)]


def vector_of(problem: Problem) -> Tensor:
    return torch.cat([p.detach().flatten() for p in problem.leaves])


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("case", ALL.values(), ids=name_of)
def test_every_parameter_is_in_one_block(case, by):
    problem = case.problem()
    blocks = parameter_blocks(problem, by)
    assert torch.cat([block.index for block in blocks]).sort().values.tolist() == list(range(problem.size))
    assert len({block.name for block in blocks}) == len(blocks)
    for block in blocks:
        assert len(block.index)
        assert (block.index.diff() > 0).all()


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("case", ALL.values(), ids=name_of)
def test_weights_lie_where_they_are_said_to(case, by):
    """Cut from the vector of all parameters, in their shape; and all of two dimensions that lie in one block."""
    problem = case.problem()
    theta, found = vector_of(problem), []
    for block in parameter_blocks(problem, by):
        for name, (place, shape) in block.weights.items():
            assert torch.equal(theta[block.index][place].view(shape), problem.parameters[name])
            found.append(name)
    if by == "channel":
        every = [name for name, p in problem.parameters.items() if p.ndim > 1 and channels_of(case, name, p) == 1]
    else:
        every = [name for name, p in problem.parameters.items() if p.ndim > 1 and p.numel()]
    assert sorted(found) == sorted(every)


def channels_of(case: Case, name: str, p: Tensor) -> int:
    return 4 if case.name == "transposed convolution" and p.ndim == 4 else p.shape[0]


@pytest.mark.parametrize("case", ALL.values(), ids=name_of)
def test_a_layer_is_what_one_module_owns(case):
    problem = case.problem()
    starts, first = {}, 0
    for name, p in problem.parameters.items():
        starts[name] = range(first, first + p.numel())
        first += p.numel()
    modules = dict(problem.model.named_modules())
    for block in parameter_blocks(problem, "layer"):
        owned = modules.get(block.name)
        if owned is None:  # a parameter of the root
            assert block.index.tolist() == list(starts[block.name])
        else:
            own = [f"{block.name}.{name}" for name, _ in owned.named_parameters(recurse=False)]
            assert block.index.tolist() == [i for name in own if name in starts for i in starts[name]]


@pytest.mark.parametrize(
    ("case", "by", "expected"),
    [
        ("mlp", "layer", ["0", "2"]),
        ("mlp", "channel", [*(f"0[{i}]" for i in range(4)), *(f"2[{i}]" for i in range(3))]),
        ("parameters of the root", "layer", ["scale", "shift", "layer"]),
        ("parameters of the root", "module", ["scale", "shift", "layer"]),
        ("parameters of the root", "channel", ["scale[0]", "shift[0]", "shift[1]", *(f"layer[{i}]" for i in range(3))]),
        ("under one wrapper", "layer", ["0.0.0", "0.1.0"]),
        ("under one wrapper", "module", ["0.0", "0.1"]),
        ("LSTM", "module", ["cell", "head"]),
        ("no outputs", "layer", ["first", "last"]),
        ("transformer layer, tied head", "module", ["embedding", "layer"]),
        (
            "transformer layer, tied head",
            "layer",
            [
                "embedding",
                *("layer.self_attn", "layer.self_attn.out_proj", "layer.linear1", "layer.linear2"),
                *("layer.norm1", "layer.norm2"),
            ],
        ),
        ("tied weights", "layer", ["embedding", "mix", "head"]),  # the head's bias is its own
        ("tied weights", "module", ["embedding", "mix", "head"]),
        ("LayerNorm, dropout", "layer", ["0", "1", "4"]),
    ],
)
def test_names(case, by, expected):
    assert names(case, by) == expected


def test_layers_with_unlike_parameters_name_their_channels_by_one_of_them():
    """An attention whose keys have a bias of their own."""
    attention = nn.MultiheadAttention(4, 2, add_bias_kv=True, batch_first=True)
    model = nn.Sequential(attention).double()
    problem = Problem(model, ALL["mlp"].loss(), ALL["mlp"].problem().batches)
    found = [block.name for block in parameter_blocks(problem, "channel")]
    assert len(found) == len(set(found))
    assert [name for name in found if "bias_k" in name] == ["0.bias_k[0]"]
    assert "0.out_proj[3]" in found
    assert "0.in_proj_weight[11]" in found


@pytest.mark.parametrize("case", ["mlp", "convolution, BatchNorm", "transposed convolution", "transposed in groups"])
def test_a_channel_is_all_that_one_output_reads(case):
    """Moved in all parameters of a channel alone, a layer changes in that output alone."""
    problem = ALL[case].problem()
    modules = dict(problem.model.named_modules())
    for block in parameter_blocks(problem, "channel"):
        name, _, place = block.name[:-1].rpartition("[")
        layer = modules[name]
        if not isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            continue
        shape = (2, layer.in_features) if isinstance(layer, nn.Linear) else (2, layer.in_channels, 3, 3)
        given, moved = floats(*shape), vector_of(problem)
        moved[block.index] += 1
        before = layer(given).detach()
        kept = vector_of(problem)
        nn.utils.vector_to_parameters(moved, problem.leaves)
        change = (layer(given).detach() - before).movedim(1, 0).flatten(1).abs().amax(dim=1)
        nn.utils.vector_to_parameters(kept, problem.leaves)
        assert change.nonzero().flatten().tolist() == [int(place)]


def test_frozen_parameters_are_in_no_block():
    model = mlp().double()
    model[0].weight.requires_grad_(False)
    problem = Problem(model, ALL["mlp"].loss(), ALL["mlp"].problem().batches)
    first, second = parameter_blocks(problem, "layer")
    assert (first.index.tolist(), second.index.tolist()) == ([0, 1, 2, 3], list(range(4, 19)))
    assert first.weights == {}
    some = Problem(model, problem.loss, problem.batches, chosen(model, "2.weight"))
    assert [(block.name, len(block.index)) for block in parameter_blocks(some, "layer")] == [("2", 12)]
    assert [block.name for block in parameter_blocks(some, "module")] == ["2"]


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("case", ["mlp", "transposed convolution", "LSTM", "parameters of the root"])
def test_sums_over_blocks(case, by):
    """Of a diagonal d: sums of d, and of d theta^2 / 2; the same bits each time."""
    problem = ALL[case].problem()
    blocks = parameter_blocks(problem, by)
    sums = block_sums(problem, blocks, Curvature(problem, "ggn"))
    d = floats(problem.size)
    theta = vector_of(problem)
    found = sums(d)
    assert found.dtype == torch.float64
    traces = [math.fsum(d[block.index].tolist()) for block in blocks]
    halves = [math.fsum((d * theta**2 / 2)[block.index].tolist()) for block in blocks]
    assert found.tolist() == pytest.approx([*traces, *halves], rel=1e-12, abs=1e-13)
    assert torch.equal(found, sums(d))


def test_sums_of_single_precision_are_taken_in_double():
    problem = BY_NAME["mlp"].problem(dtype=torch.float32)
    blocks = parameter_blocks(problem, "module")
    d = torch.full((problem.size,), 0.1)
    found = block_sums(problem, blocks, Curvature(problem, "ggn"))(d)
    assert found[:2].tolist() == pytest.approx([d[0].item() * len(block.index) for block in blocks], rel=1e-14)


def test_tied_parameters_are_told_of():
    (told,) = tied(BY_NAME["tied weights"].problem())
    assert told == "embedding.weight is the same parameter as head.weight, and is counted under the first name"
    assert tied(BY_NAME["mlp"].problem()) == []
