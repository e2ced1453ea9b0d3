"""A problem: what it refuses, in which words, and that the model is left as it is found."""

import re
import sys
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from networks import BY_NAME, CASES, MASKED, SOFT, Lambda, X, Y, chosen, floats, labels, mlp, name_of
from test_dense_reference import Reference
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from spectra.curvature.evaluation import accuracy, cut_batches, mean_loss
from spectra.curvature.matrices import MATRICES, definition
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.problem.batch import Batch
from spectra.problem.binary import BinaryCrossEntropy
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.losses import CustomLoss, MeanSquaredError
from spectra.problem.problem import Problem
from spectra.product_checks import check_operator

CASE = BY_NAME["mlp"]


def refused(*words: str):
    """A SpectraError of one line with all these words in order, the first being the argument it names."""
    return pytest.raises(SpectraError, match=r"\A" + ".*".join(map(re.escape, words)) + r"[^\n]*\Z")


def multiply(problem: Problem, name: str = "hessian", memory: int | None = None) -> torch.Tensor:
    return Curvature(problem, name, memory) @ torch.ones(problem.size, dtype=problem.dtype)


def name_of_layer(layer: nn.Module) -> str:
    return type(layer).__name__


def of(model: nn.Module, inputs=X, targets=Y, loss=None, **settings) -> Problem:
    batch = Batch(inputs, targets, torch.arange(len(targets)))
    return Problem(model.double(), loss or CrossEntropy(), [batch], **settings)


# The model is left as it is found.

LEFT = [BY_NAME[name] for name in ("convolution, BatchNorm", "LSTM", "transformer layer, tied head", "fused attention")]


def flags() -> dict:
    backends = torch.backends
    return {
        "mha": backends.mha.get_fastpath_enabled(),
        "cudnn": [getattr(backends.cudnn, k) for k in ("enabled", "benchmark", "deterministic", "allow_tf32")],
        "mkldnn": [backends.mkldnn.enabled, backends.mkldnn.deterministic],
        "matmul": [torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32],
        "precision": [
            owner.fp32_precision
            for owner in (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
        ],
        "attention": [
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
        ],
        "weight norm": [torch._weight_norm, sys.modules["torch.nn.utils.weight_norm"]._weight_norm],
        "grad": torch.is_grad_enabled(),
        "chance": torch.get_rng_state().tolist(),
    }


def state(model: nn.Module) -> list:
    tensors = [(name, t.clone(), t._version, t.requires_grad, t.grad) for name, t in model.state_dict().items()]
    own = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    return [tensors, own, [layer.training for layer in model.modules()]]


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(params=["as they come", "other precision", "new names of precision"])
def global_flags(request):
    """Settings that a program may have made before, of PyTorch's older and newer switches."""
    matmul = torch.backends.cuda.matmul
    if request.param == "other precision":
        torch.set_float32_matmul_precision("medium")
        yield
        torch.set_float32_matmul_precision("highest")
    elif request.param == "new names of precision":
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
        yield
        matmul.fp32_precision = before
    else:
        yield


@pytest.mark.parametrize("name", ["hessian", "fisher-empirical"])
@pytest.mark.parametrize("case", LEFT, ids=name_of)
def test_model_and_settings_are_left_as_found(case, name):
    model = case.model()
    next(model.parameters()).requires_grad_(False)
    last = list(model.parameters())[-1]
    last.grad = torch.ones_like(last)
    problem = case.problem(model=model)
    torch.backends.mha.set_fastpath_enabled(True)  # PyTorch's default, whatever ran before
    before, settings = state(model), flags()
    with torch.no_grad():
        expected = multiply(problem, name)
        multiply(problem, name, memory=0)
        assert not torch.is_grad_enabled()
    assert torch.equal(multiply(problem, name), expected)
    assert same(state(model), before)
    assert flags() == settings


@pytest.mark.parametrize("at", ["first", "later"])
def test_settings_are_put_back_when_something_fails_inside(at):
    case, calls = BY_NAME["custom, values"], []

    def fails(output, targets):
        calls.append(1)
        if at == "first" or len(calls) > 2:
            raise ValueError("a loss\nof two lines")
        return (output - targets) ** 2

    torch.backends.mha.set_fastpath_enabled(True)
    model = case.model()
    before, settings = state(model), flags()
    with refused("`loss` custom: fails on the data (ValueError: a loss)"):
        multiply(case.problem(model=model, sizes=(2, 2, 3), loss=CustomLoss(fails)), memory=0)
    assert same(state(model), before)
    assert flags() == settings


def test_precision_is_full_inside_and_as_it_was_outside(global_flags):
    def precision():
        owners = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
        return [owner.fp32_precision for owner in owners]

    seen, before = [], precision()

    def loss(output, targets):
        seen.append(precision())
        return (output - targets) ** 2

    case = BY_NAME["custom, values"]
    multiply(case.problem(loss=CustomLoss(loss)))
    assert all(inside == ["ieee", "ieee"] for inside in seen)
    assert precision() == before


def test_hooks_and_gradients_of_the_model_are_not_touched():
    model, called = CASE.model(), []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: called.append(p))
    multiply(CASE.problem(model=model))
    assert called == []
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("which", [0, -1])
def test_parameters_that_change_after_the_matrix_was_made_are_noticed(which, memory):
    problem = CASE.problem()
    operator = Curvature(problem, "hessian", memory)
    vector = floats(problem.size)
    operator @ vector
    with torch.no_grad():
        problem.leaves[which].mul_(1.5)
    with refused("`model`", "parameters have changed", "make the matrix again"):
        operator @ vector


def test_a_layer_that_overwrites_what_its_derivative_needs_is_noticed():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            y = self.layer(x).sigmoid()
            return y.mul_(2)

    with refused("`model`", "modified by an inplace operation"):
        multiply(of(Overwrites()))


# Layers in training mode and chance.


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(3),
        nn.SyncBatchNorm(3),
        nn.InstanceNorm1d(3, track_running_stats=True),
        nn.Dropout(0.5),
        nn.AlphaDropout(0.1),
        nn.LSTM(3, 3, num_layers=2, dropout=0.5),
        nn.MultiheadAttention(3, 1, dropout=0.5),
        nn.RReLU(),
    ],
    ids=name_of_layer,
)
def test_layers_in_training_mode_are_named(layer):
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(layer))
    with refused("`model`", type(layer).__name__, "'1.0'", "training mode", "model.eval()"):
        of(model.train())
    of(model.eval())


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout(0.0), nn.LSTM(3, 3), nn.MultiheadAttention(3, 1), nn.InstanceNorm1d(3), nn.LayerNorm(3)],
    ids=name_of_layer,
)
def test_layers_that_are_alike_in_both_modes_may_train(layer):
    of(nn.Sequential(nn.Linear(3, 3), layer).train())


def test_batch_norm_without_running_statistics_is_named():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with refused("`model`", "BatchNorm1d '1'", "no running statistics", "track_running_stats=True"):
        of(model)


class Random(nn.Module):
    """Chance that no flag of a layer shows."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(3, 20), nn.Linear(20, 3), function

    def forward(self, x):
        return self.last(self.function(self.first(x).tanh()))


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("name", MATRICES)
def test_chance_in_the_forward_pass_is_noticed(name, memory):
    model = Random(lambda x: F.dropout(x, 0.2, training=True))
    with refused("`model`: its output changes from call to call", "dropout", "model.eval()"):
        multiply(of(model), name, memory)


def test_chance_that_starts_later_is_noticed_by_the_check_of_operators():
    started = []
    operator = Curvature(of(Random(lambda x: F.dropout(x, 0.2, training=bool(started)))), "hessian", memory=0)
    operator.prepare()
    started.append(1)
    with pytest.raises(SpectraError, match=r"the matrix changes from product to product .*model\.eval"):
        check_operator(operator, torch.Generator().manual_seed(0))


def test_a_derivative_that_is_wrong_is_noticed_by_the_check_of_operators():
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            ctx.save_for_backward(x, y)
            return x * y

        @staticmethod
        def backward(ctx, g):
            x, y = ctx.saved_tensors
            return g * y, 2 * g * x

    model = nn.Sequential(mlp(), Lambda(lambda x: Product.apply(x, x.roll(1, -1))), nn.Linear(3, 3))
    with pytest.raises(SpectraError, match="the matrix is not symmetric"):
        check_operator(Curvature(of(model), "hessian", check=False), torch.Generator().manual_seed(0))


# Examples that do not stand alone.


def centred() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), Lambda(lambda h: h - h.mean(0) / 2), nn.Linear(4, 3))


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("name", MATRICES)
def test_outputs_that_depend_on_the_rest_of_the_batch(name, memory):
    with refused(
        "`model`: its output for an example depends on the other examples in the batch (relative change",
        "split",
        "GroupNorm",
    ):
        multiply(of(centred()), name, memory)


def test_outputs_of_one_example_or_one_size_of_batch_are_taken_as_they_are():
    assert multiply(of(centred(), X[:1], Y[:1]), "ggn").count_nonzero()
    assert multiply(of(nn.Sequential(mlp(), Lambda(lambda h: h.view(7, 3))))).count_nonzero()


def test_inputs_that_cannot_be_cut_are_taken_as_they_are():
    model = nn.Sequential(Lambda(lambda holder: holder.logits), mlp())
    assert multiply(of(model, inputs=Holder(X))).count_nonzero()


# Second derivatives that there are not.


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


@pytest.mark.parametrize("name", [name for name in MATRICES if name != "fisher-batch"])
def test_a_layer_without_second_derivative_is_told_in_one_line(name):
    with refused("`model`: a layer has no second derivative", "once_differentiable", "replace that layer"):
        multiply(of(nn.Sequential(nn.Linear(3, 3), Lambda(Once.apply))), name)


def test_gradients_of_batches_need_no_second_derivative():
    assert multiply(of(nn.Sequential(nn.Linear(3, 3), Lambda(Once.apply))), "fisher-batch").count_nonzero()


def test_a_loss_without_second_derivative_has_an_empirical_fisher():
    problem = of(mlp(), loss=CustomLoss(lambda output, targets: Once.apply(output).sum(dim=1)))
    for name in ("hessian", "ggn"):
        with refused("`loss` custom: has no second derivative", "once_differentiable", "fisher-empirical"):
            multiply(problem, name)
    assert multiply(problem, "fisher-empirical").count_nonzero()


# Data, targets, shapes.


@pytest.mark.parametrize(
    ("targets", "way_out"),
    [
        (torch.eye(3, dtype=torch.int64), "y.argmax(1), or probabilities, y.float()"),
        (torch.tensor([[0], [1], [2]]), "give y[..., 0]"),
        (torch.tensor([0, 1]), "reshape the data"),
    ],
)
def test_labels_of_another_shape(targets, way_out):
    with refused("`loss` cross_entropy: the output has shape (3, 3)", way_out):
        CrossEntropy().rows(torch.ones(3, 3), targets)


def test_a_label_below_0_is_counted_from_1_or_ignored():
    with refused("`data`: label -1 is out of range", "count classes from 0", "?ignore_index=-1"):
        CrossEntropy().check(torch.ones(2, 3), torch.tensor([0, -1]))


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("wrong", [3, -1, 255])
@pytest.mark.parametrize("weight", [None, torch.ones(3)])
def test_labels_out_of_range(name, wrong, weight):
    targets = Y.clone()
    targets[4] = wrong
    with refused("`data`", f"label {wrong} is out of range for 3 classes (0 to 2)", "ignore_index"):
        multiply(of(mlp(), targets=targets, loss=CrossEntropy(weight)), name)


@pytest.mark.parametrize(("loss", "good", "bad"), [(CrossEntropy(), Y, Y + 3), (BinaryCrossEntropy(), SOFT, -SOFT)])
def test_targets_of_later_batches(loss, good, bad):
    problem = of(mlp(), targets=torch.cat([good[:3], bad[3:]]), loss=loss)
    with refused("`data`"):
        multiply(replace(problem, batches=[problem.batches[0].part(cut) for cut in (slice(3), slice(3, 7))]))


SHAPES = [
    (CrossEntropy(), floats(7), "`loss` cross_entropy"),  # floats that are not probabilities of each class
    (CrossEntropy(), floats(7, 2), "`loss` cross_entropy"),
    (CrossEntropy(), labels(6, below=3), "`loss` cross_entropy"),
    (CrossEntropy(), labels(7, 1, below=3), "`loss` cross_entropy"),
    (CrossEntropy(), labels(7, 3, below=2), "`loss` cross_entropy"),
    (MeanSquaredError(), floats(7), "`loss` mse"),
    (MeanSquaredError(), floats(7, 1), "`loss` mse"),
    (MeanSquaredError(), floats(7, 3, 1), "`loss` mse"),
    (BinaryCrossEntropy(), floats(7, 1).sigmoid(), "`loss` bce_with_logits"),
    (CustomLoss(lambda output, targets: output, "own.py:f"), floats(6, 3), "`loss` own.py:f"),
]


@pytest.mark.parametrize(("loss", "targets", "argument"), SHAPES)
def test_shapes_that_do_not_fit(loss, targets, argument):
    with refused(argument, "the output has shape (7, 3), the targets", str(tuple(targets.shape))):
        multiply(of(mlp(), targets=targets, loss=loss))


@pytest.mark.parametrize(
    ("loss", "targets", "words"),
    [
        (CrossEntropy(torch.ones(4)), Y, ("`loss` cross_entropy", "weight has 4 numbers for 3 classes")),
        (CrossEntropy(ignore_index=0), SOFT, ("`loss` cross_entropy", "ignore_index is 0", "omit it")),
        (CrossEntropy(), torch.full((7,), -100), ("`data`", "all are ignored or have weight 0", "ignore_index")),
        (
            CrossEntropy(torch.tensor([0.0, 0.0, 1.0])),
            Y.clamp(max=1),
            ("`data`", "all are ignored or have weight 0", "weight"),
        ),
        (BinaryCrossEntropy(), floats(7, 3), ("`data`", "must be in [0, 1], and some are not")),
        (CustomLoss(lambda output, targets: 1.0), Y, ("`loss` custom", "returned a float")),
        (CustomLoss(lambda output, targets: output[:3]), Y, ("`loss` custom", "(3, 3) for 7 examples", "one value")),
    ],
)
@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher-empirical"])
def test_losses_and_targets_that_do_not_fit(loss, targets, words, name):
    with refused(*words):
        multiply(of(mlp(), targets=targets, loss=loss), name)


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 2)])
def test_labels_that_are_real_numbers(shape):
    output = floats(*shape)
    with refused("`loss` cross_entropy", str(shape), "labels are floating-point; store them as integers"):
        CrossEntropy().rows(output, torch.ones(7, *shape[2:]))
    with refused("`loss` cross_entropy", str(shape), "(7, 5)", "choose the loss that fits them"):
        CrossEntropy().rows(output, torch.ones(7, 5))


@pytest.mark.parametrize("loss", [MeanSquaredError(), BinaryCrossEntropy()])
def test_a_dimension_too_few_or_too_many(loss):
    with refused(f"`loss` {loss.name}", "(7, 1), the targets (7,)", "; add", "y[..., None]", "output.squeeze(-1)"):
        loss.rows(torch.ones(7, 1), torch.ones(7))
    with refused(f"`loss` {loss.name}", "(7,), the targets (7, 1)", "; drop", "y[..., 0]", "output.unsqueeze(-1)"):
        loss.rows(torch.ones(7), torch.ones(7, 1))


FOREIGN = [(nn.MSELoss(), "MSELoss"), (F.mse_loss, "mse_loss"), (MeanSquaredError, "MeanSquaredError")]


@pytest.mark.parametrize(("loss", "name"), FOREIGN)
def test_losses_of_pytorch_and_classes_of_losses(loss, name):
    with refused(
        f"`loss`: expected a loss of spectra, got {name}", "; use spectra.MeanSquaredError()", "CustomLoss(function)"
    ):
        of(mlp(), loss=loss)


@pytest.mark.parametrize(
    ("batches", "name"),
    [
        (DataLoader(TensorDataset(X, Y), 3), "DataLoader"),
        ([(X, Y)], "list of tuple"),
        ((X, Y), "tuple of Tensor"),
        (Batch(X, Y, torch.arange(7)), "Batch"),
    ],
)
def test_batches_that_are_not_ours(batches, name):
    way_out = "; make them with spectra.cut_batches(x, y, torch.arange(len(y)), size)"
    with refused(f"`batches`: expected a list of spectra.Batch, got {name}", way_out):
        Problem(CASE.model(), CrossEntropy(), batches)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (), (2, 31, 1)])
def test_vectors_of_another_length(shape):
    matrix = Curvature(CASE.problem(), "hessian")
    assert matrix.shape == (31, 31)
    with pytest.raises(ValueError, match=re.escape(f"expected vectors of shape (31,) or (31, k), got {shape}")):
        matrix @ torch.ones(shape, dtype=torch.float64)


def test_no_examples():
    with refused("`batches`", "is empty", "one spectra.Batch or more"):
        multiply(Problem(mlp(), CrossEntropy(), []))


def test_a_batch_of_ignored_targets_alone_counts_for_nothing():
    every = [Batch(X[part], MASKED[part], part) for part in torch.arange(7).split([1, 6])]
    assert MASKED[0] == -100
    for name in MATRICES:
        whole, rest = (Problem(CASE.model(), CrossEntropy(), part) for part in (every, every[1:]))
        torch.testing.assert_close(multiply(whole, name), multiply(rest, name), rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Linear(4, 3)), ("fails on the data", "RuntimeError", "shapes cannot be multiplied")),
        (nn.Sequential(nn.Embedding(2, 3)), ("fails on the data", "RuntimeError")),
        (nn.Sequential(nn.Bilinear(3, 3, 3)), ("fails on the data", "TypeError", "forward()")),
    ],
)
def test_models_that_fail(model, words):
    with refused("`model`", *words):
        multiply(of(model))


@pytest.mark.parametrize("model", [nn.Conv2d(3, 2, 3), nn.Linear(4, 3), nn.BatchNorm2d(3).eval()], ids=name_of_layer)
def test_images_of_bytes(model):
    images = torch.zeros(7, 3, 4, 4, dtype=torch.uint8)
    with refused(
        "`model`: fails on the data", "; x holds integers (torch.uint8)", "floats", "`transform` file.py:name"
    ):
        multiply(of(model, images))


def test_an_index_out_of_range_of_an_embedding():
    with refused("`model`: fails on the data", "IndexError", "an index exceeds an embedding: check the token ids"):
        multiply(of(nn.Embedding(2, 3), inputs=torch.arange(7)))


# Outputs that are not one tensor.


Point = namedtuple("Point", "logits hidden")


@dataclass
class Record:
    logits: torch.Tensor
    score: float = 0.0


class Holder:
    def __init__(self, logits):
        self.logits, self.hidden, self._own = logits, 2 * logits, logits


class Wraps(nn.Module):
    """The network of the case, its output x as `wrap(x)`."""

    def __init__(self, wrap):
        super().__init__()
        self.network, self.wrap = CASE.model(), wrap

    def forward(self, x):
        return self.wrap(self.network(x))


OUTPUTS = [
    (lambda x: {"logits": x}, None),
    (lambda x: (x, [x]), None),
    (lambda x: [None, x, (2 * x, x)], None),
    (lambda x: OrderedDict(logits=x, loss=None), None),
    (Record, None),
    (lambda x: {"logits": x, "hidden": 2 * x}, "logits"),
    (lambda x: (2 * x, x), "1"),
    (lambda x: (2 * x, x), "-1"),
    (lambda x: Point(x, 2 * x), "logits"),
    (lambda x: Point(x, 2 * x), "0"),
    (lambda x: Point(2 * x, {"all": [2 * x, x]}), "hidden.all.1"),
    (lambda x: {"out": Holder(x)}, "out.logits"),
    (lambda x: {0: x, 1: 2 * x}, "0"),
    (Record, "logits"),
]


@pytest.mark.parametrize(("wrap", "key"), OUTPUTS)
def test_the_tensor_of_a_container_is_the_output(wrap, key):
    found = multiply(CASE.problem(model=Wraps(wrap), output_key=key))
    assert torch.equal(found, multiply(CASE.problem()))


@pytest.mark.parametrize(
    ("wrap", "key", "words"),
    [
        (lambda x: {"a": x, "b": 2 * x}, None, ("`model`", "type dict (it has a (5, 3), b (5, 3)), not", "`output`")),
        (lambda x: {"a": None}, None, ("`model`", "type dict (it has a NoneType), not", "`output`")),
        (lambda x: 3, None, ("`model`", "its output is of type int, not one tensor", "wrap")),
        (Holder, None, ("`model`", "Holder (it has logits (5, 3), hidden (5, 3)), not one tensor", "`output`")),
        (lambda x: 20 * (x,), None, ("`model`", "tuple (it has 0 (5, 3)", "7 (5, 3), ...), not one tensor")),
        (lambda x: x, "logits", ("`output` logits", "one tensor (5, 3)", "omit `output`")),
        (lambda x: {"a": x}, "b", ("`output` b", "the model's output has no entry 'b' (it has a (5, 3))", "name one")),
        (lambda x: (x,), "1", ("`output` 1", "no entry '1'")),
        (lambda x: (x,), "-2", ("`output` -2", "no entry '-2'")),
        (lambda x: {"a": (x,)}, "a.b", ("`output` a.b", "its entry a has no entry 'b' (it has 0 (5, 3))")),
        (lambda x: {"a": x}, "a.0", ("`output` a.0", "its entry a has no entry '0'")),
        (
            lambda x: {"a": (x,)},
            "a",
            ("`output` a", "its entry a is of type tuple (it has 0 (5, 3))", "nested"),
        ),
        (lambda x: {"a": (x,)}, "", ("`output`", "no entry ''")),
    ],
)
def test_outputs_that_are_not_one_tensor(wrap, key, words):
    with refused(*words):
        multiply(CASE.problem(model=Wraps(wrap), output_key=key))


# Parameters.


def test_parameters_none_of_which_reaches_the_output():
    for name in MATRICES:
        unused = {"unused": nn.Parameter(torch.ones(2, dtype=torch.float64))}
        with refused("`params`", "does not depend on any chosen parameter (unused)", "detach()"):
            multiply(CASE.problem(parameters=unused), name)
        with refused("`params`", "(network.0.weight, network.0.bias, network.2.weight, network.2.bias)", "choose some"):
            multiply(CASE.problem(model=Wraps(torch.Tensor.detach)), name)


def test_all_parameters_frozen():
    model = mlp().requires_grad_(False)
    with refused("`model`", "all its parameters are frozen", "requires_grad"):
        of(model)
    model[0].requires_grad_(True)
    with refused("`params` 2.*", "all its parameters are frozen", "requires_grad"):
        chosen(model, "2.*")


def test_patterns_of_parameters():
    model = mlp()
    assert list(chosen(model, "*.weight")) == ["0.weight", "2.weight"]
    assert list(chosen(model, "2.bias", "0.*")) == ["0.weight", "0.bias", "2.bias"]  # the model's order
    with refused("`params` head.*", "matches no parameter", "0.weight, 0.bias, 2.weight, 2.bias"):
        chosen(model, "0.*", "head.*")
    with refused("`params` 2: matches no parameter; write '2.*' for all of this layer"):
        chosen(model, "2")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Tanh()), ("`model`", "has no parameters")),
        (
            nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double()),
            ("`model`", "differ in dtype", "float32", "float64"),
        ),
        (nn.Linear(3, 3, dtype=torch.complex64), ("`model`", "complex64", "not real")),
    ],
)
def test_models_without_fit_parameters(model, words):
    with refused(*words):
        chosen(model)


# Matrices that do not suit.


def test_no_such_matrix():
    with refused("`curvature` hesian", "choose from", *MATRICES):
        Curvature(CASE.problem(), "hesian")


@pytest.mark.parametrize("name", ["fisher", "fisher-mc"])
def test_a_custom_loss_has_no_fisher(name):
    with refused(f"`curvature` {name}", "no known distribution", "ggn"):
        Curvature(BY_NAME["custom, values"].problem(), name)


@pytest.mark.parametrize("name", [name for name in MATRICES if definition(name).loss_power == 2])
def test_weight_decay_is_refused_for_products_of_gradients(name):
    with refused("`weight_decay` 0.1", name, "hessian"):
        Curvature(CASE.problem(weight_decay=0.1), name)


def test_one_example_has_no_covariance():
    with refused("`curvature` gradient-covariance", "two examples or more, got 1", "`samples`"):
        multiply(of(CASE.model(), X[:1], Y[:1]), "gradient-covariance")


DETACHED = [
    lambda output, targets: (output.detach() - targets) ** 2,
    lambda output, targets: torch.tensor(((output - targets) ** 2).mean().item()),
    lambda output, targets: (output.argmax(dim=1) == 0).double(),
    torch.no_grad()(lambda output, targets: (output - targets) ** 2),
]


@pytest.mark.parametrize("function", DETACHED)
@pytest.mark.parametrize("name", [name for name in MATRICES if not definition(name).needs_distribution])
def test_a_loss_that_is_cut_off_from_the_output(name, function):
    problem = BY_NAME["custom, values"].problem(loss=CustomLoss(function, "own.py:f"))
    assert mean_loss(problem) >= 0
    with refused("`loss` own.py:f: its value does not depend on the output", "detach()"):
        multiply(problem, name)


def test_out_of_memory_names_the_batch_size():
    def exhausts(output, targets):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines")

    with refused("`batch_size`: out of memory", "try a smaller one"):
        multiply(BY_NAME["custom, values"].problem(loss=CustomLoss(exhausts)))


def test_recurrent_networks_raise_no_warning_in_single_precision():
    """Warnings are errors here: switches of precision that the machine does not have would be one."""
    assert multiply(BY_NAME["LSTM"].problem(dtype=torch.float32)).isfinite().all()


def test_real_numbers_are_no_soft_targets():
    output, targets = torch.zeros(5, 3), torch.randn(5, 3)
    with refused("`loss` cross_entropy", "not probabilities", "`loss` mse"):
        CrossEntropy().check(output, targets)


@pytest.mark.parametrize("class_dim", [None, 1, -1])
def test_joined_sequences_are_rows(class_dim):
    output, targets = torch.randn(6, 3), torch.randint(3, (2, 3))
    torch.testing.assert_close(CrossEntropy(class_dim=class_dim).rows(output, targets), output)


# The dimension of the classes.


@pytest.mark.parametrize("class_dim", [1, -1])
@pytest.mark.parametrize("targets", [labels(2, 3, below=3), floats(2, 3, 3).softmax(dim=1)], ids=["hard", "soft"])
def test_class_dim_decides_where_both_readings_fit(class_dim, targets):
    output, loss = floats(2, 3, 3), CrossEntropy(class_dim=class_dim)
    moved = [t.movedim(class_dim, 1) if t.ndim == 3 else t for t in (output, targets)]
    total = loss.total(loss.rows(output, targets), targets) / loss.weight(targets)
    torch.testing.assert_close(total, F.cross_entropy(*moved))
    assert loss.examples(targets) == 6


@pytest.mark.parametrize("output", [floats(2, 3, 3), floats(2, 3, 3, 3)], ids=["sequences", "images"])
def test_classes_that_may_be_either_dimension_are_refused(output):
    targets = labels(*output.shape[:-1], below=3)
    with refused("`loss` cross_entropy", str(tuple(output.shape)), "cross_entropy?class_dim=1", "?class_dim=-1"):
        CrossEntropy().rows(output, targets)


def test_class_dim_against_the_shapes():
    for class_dim, shape in ((1, (2, 4, 3)), (-1, (2, 3, 4))):
        with refused("`loss` cross_entropy", str(shape), "(2, 4)"):
            CrossEntropy(class_dim=class_dim).rows(floats(*shape), labels(2, 4, below=3))
    with refused("`loss` cross_entropy", "class_dim is 2", "give 1"):
        CrossEntropy(class_dim=2)


# The mean loss and the accuracy.


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_mean_loss_is_pytorch_s(case):
    with torch.no_grad():
        expected = case.mean(Reference(case, "cpu").at, case.data()[1]).item()
    assert mean_loss(case.problem()) == pytest.approx(expected, rel=1e-12)


ACCURACY = [
    (CrossEntropy(), [[2.0, 1, 0], [0, 1, 2], [3, 0, 1], [0, 4, 1]], torch.tensor([0, 1, 0, 1]), 3 / 4),
    (CrossEntropy(ignore_index=1), [[2.0, 1, 0], [0, 1, 2], [3, 0, 1], [0, 4, 1]], torch.tensor([0, 1, 0, 1]), 1.0),
    (CrossEntropy(), [[2.0, 1], [1, 2], [1, 2], [2, 1]], torch.tensor([[0.6, 0.4], [0, 1], [1, 0], [1, 0]]), 3 / 4),
    (CrossEntropy(), [[[1.0, 2], [2, 1]]], torch.tensor([[1, 1]]), 1 / 2),
    (BinaryCrossEntropy(), [[1.0, -1], [-1, 2]], torch.tensor([[0.7, 0.7], [0, 1]]), 3 / 4),
    (MeanSquaredError(), [[1.0]], torch.ones(1, 1), None),
    (CustomLoss(lambda output, targets: output.sum()), [[1.0]], torch.ones(1, 1), None),
]


@pytest.mark.parametrize(("loss", "output", "targets", "share"), ACCURACY)
def test_accuracy_is_the_share_of_counted_targets(loss, output, targets, share):
    scale = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        scale.weight.fill_(2.0)
    model = nn.Sequential(nn.Unflatten(-1, (-1, 1)), scale, nn.Flatten(-2))
    output = torch.tensor(output)
    loss = replace(loss, class_dim=-1) if output.ndim == 3 else loss
    problem = Problem(model, loss, cut_batches(output, targets, torch.arange(len(output)), 3))
    assert accuracy(problem) == (share if share is None else pytest.approx(share, rel=1e-12))


def weighted_mean(output, targets):
    """As CrossEntropyLoss with class weights: a batch's mean over the weights in it."""
    weights = 1.0 + targets
    return (weights * (output.logsumexp(1) - output.gather(1, targets[:, None])[:, 0])).sum() / weights.sum()


@pytest.mark.parametrize("loss", [weighted_mean, lambda output, targets: output.square().sum()], ids=["weights", "sum"])
def test_a_loss_that_depends_on_the_split_is_refused(loss):
    inputs, targets = torch.randn(9, 4), torch.arange(9) % 3

    def matrix(size):
        batches = cut_batches(inputs, targets, torch.arange(9), size)
        return Curvature(Problem(nn.Linear(4, 3), CustomLoss(loss, "mine"), batches), "ggn")

    matrix(9).prepare()  # one batch of all is what the user wrote
    with pytest.raises(SpectraError, match=r"`loss` mine: .*parts.*`batch_size`"):
        matrix(4).prepare()
