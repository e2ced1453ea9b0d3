"""Convolutions are PyTorch's in all derivatives, and take no more calls than counting requires."""

import pytest
import torch
import torch.nn.functional as F
from networks import DEVICES, Case, Lambda, Y, floats
from test_hoisting import made
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from spectra.curvature.engine import autotuning as choices_module
from spectra.curvature.engine.autotuning import Autotuner
from spectra.curvature.engine.convolutions import CONVOLUTIONS
from spectra.curvature.engine.differentiation import twice_differentiable
from spectra.curvature.engine.graphs import value
from spectra.curvature.engine.layouts import LAYOUTS, choose_layout
from spectra.curvature.matrices import definition
from spectra.curvature.operator import Curvature

aten = torch.ops.aten
OURS = {name: form for _, name, form in CONVOLUTIONS}
CALLS = {aten.convolution.default, aten.convolution_backward.default}

# The function's name, the shapes of images and weight, and settings.
KINDS = [
    ("conv1d", (2, 4, 9), (6, 4, 3), {"stride": 2, "padding": 1}),
    ("conv1d", (2, 4, 9), (4, 1, 4), {"groups": 4, "dilation": 2, "padding": "valid"}),
    ("conv2d", (3, 2, 6, 5), (4, 2, 3, 3), {"padding": (1, 2)}),
    ("conv2d", (3, 2, 6, 6), (4, 2, 3, 2), {"stride": (2, 3)}),
    ("conv2d", (3, 4, 7, 7), (6, 2, 3, 3), {"groups": 2, "dilation": 2, "padding": "valid"}),
    ("conv2d", (2, 4, 6, 6), (4, 1, 3, 3), {"groups": 4, "padding": "same"}),
    ("conv2d", (2, 4, 6, 6), (4, 1, 4, 4), {"groups": 4, "padding": "same"}),
    ("conv2d", (2, 4, 6, 6), (8, 1, 3, 3), {"groups": 4, "stride": 2, "padding": 1}),
    ("conv2d", (3, 6, 6), (4, 3, 3, 3), {}),
    ("conv3d", (2, 4, 4, 5, 4), (2, 2, 2, 3, 2), {"groups": 2, "stride": (1, 2, 1), "padding": 1}),
    ("conv_transpose1d", (2, 4, 5), (4, 3, 3), {"stride": 2, "output_padding": 1}),
    (
        "conv_transpose2d",
        (2, 4, 4, 4),
        (4, 2, 3, 3),
        {"stride": 2, "padding": 1, "groups": 2, "output_padding": (1, 0)},
    ),
    ("conv_transpose3d", (2, 2, 3, 3, 3), (2, 1, 2, 2, 2), {"groups": 2, "dilation": 2}),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("name", "images", "weight", "settings"), KINDS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_all_derivatives_are_pytorchs(name, images, weight, settings, with_bias):
    found = derivatives(OURS[name], name, images, weight, settings, with_bias)
    wanted = derivatives(getattr(torch, name), name, images, weight, settings, with_bias)
    assert len(found) == len(wanted) == 1 + orders(settings) * (2 + with_bias)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def orders(settings) -> int:
    return 2 if "output_padding" in settings else 3


def derivatives(function, name, images, weight, settings, with_bias) -> list[Tensor]:
    """The result, and the derivatives of three orders, each along the one before; of two where PyTorch has no third."""
    outputs = weight[1] * settings.get("groups", 1) if "transpose" in name else weight[0]
    shapes = [images, weight, *([(outputs,)] if with_bias else [])]
    inputs = [floats(*shape).requires_grad_() for shape in shapes]
    found = [function(*inputs, **settings)]
    loss = found[0].tanh().square().sum()
    for _ in range(orders(settings)):
        slopes = torch.autograd.grad(loss, inputs, create_graph=True)
        found += slopes
        loss = sum((slope * floats(*slope.shape)).tanh().sum() for slope in slopes)
    return found


@pytest.mark.parametrize("order", ["positional", "named", "mixed"])
def test_settings_are_read_as_pytorch_reads_them(order):
    x, w, b = floats(2, 4, 6, 6).requires_grad_(), floats(4, 2, 3, 3), floats(4)
    settings = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "dilation": (2, 1)}
    b = floats(4)
    if order == "positional":
        calls = [f(x, w, b, *settings.values()) for f in (OURS["conv_transpose2d"], F.conv_transpose2d)]
    elif order == "named":
        calls = [f(input=x, weight=w, bias=b, **settings) for f in (OURS["conv_transpose2d"], F.conv_transpose2d)]
    else:
        named = {"groups": 2, "dilation": (2, 1)}
        calls = [f(x, w, b, 2, (1,), 1, **named) for f in (OURS["conv_transpose2d"], F.conv_transpose2d)]
    assert torch.equal(*calls)


IMAGES, SIGNALS, VOLUMES = floats(7, 4, 6, 6), floats(7, 4, 8), floats(7, 4, 4, 4, 4)


def pooled(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Tanh(), Lambda(lambda x: x.flatten(2).mean(dim=2)))


class Bottleneck(nn.Module):
    """As in ResNet-50."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(
            *(nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU()),
            *(nn.Conv2d(2, 2, 3, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU()),
            *(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3)),
        )
        self.outer = nn.Conv2d(4, 3, 1, 2, bias=False)

    def forward(self, x):
        return self.inner(x) + self.outer(x)


class Inverted(nn.Module):
    """As in MobileNet: a depthwise layer between two that mix channels, with squeeze and excitation."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, width, 1), nn.Hardswish())
        self.depthwise = nn.Conv2d(width, width, 3, 2, 1, groups=width)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 2, 1), nn.SiLU(), nn.Conv2d(2, width, 1))
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, x):
        x = self.depthwise(self.first(x))
        return self.last(x * self.squeeze(x).sigmoid())


def convnext() -> nn.Module:
    """A block of ConvNeXt: depthwise and wide, then layers of its channels."""
    first = Lambda(lambda x: x.permute(0, 2, 3, 1))
    return pooled(
        *(nn.Conv2d(4, 4, 7, padding=3, groups=4), first, nn.LayerNorm(4), nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)),
        Lambda(lambda x: x.permute(0, 3, 1, 2)),
    )


NETS = [
    Case("bottleneck", lambda: pooled(Bottleneck()), IMAGES, Y),
    Case("inverted", lambda: pooled(Inverted()), IMAGES, Y),
    Case("ConvNeXt", convnext, IMAGES, Y),
    Case("dilated", lambda: pooled(nn.Conv2d(4, 4, 2, dilation=3), nn.SiLU(), nn.Conv2d(4, 3, 2, 2)), IMAGES, Y),
    Case("decoder", lambda: pooled(nn.ConvTranspose2d(4, 4, 3, 2, 1, 1), nn.Tanh(), nn.Conv2d(4, 3, 3)), IMAGES, Y),
    Case("decoder, groups", lambda: pooled(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.Conv2d(6, 3, 2)), IMAGES, Y),
    Case("signals", lambda: pooled(nn.Conv1d(4, 4, 3, 2, 1, groups=4), nn.GELU(), nn.Conv1d(4, 3, 2)), SIGNALS, Y),
    Case("volumes", lambda: pooled(nn.Conv3d(4, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 3, 2, 2)), VOLUMES, Y),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", NETS, ids=lambda case: case.name)
def test_no_more_convolutions_than_counting_requires(case, device):
    """Of each layer two forward, and four derivatives, of the slopes and of their change; kernels are its weights."""
    problem, _, hoisted = made(case, "hessian", device=device)
    vector = floats(problem.size)
    assert_alike(Curvature(problem, "hessian", products=10**9) @ vector.to(device), pytorchs_product(case, vector))
    layers = [x.weight for x in problem.model.modules() if isinstance(x, nn.modules.conv._ConvNd)]
    calls = [node for node in hoisted.second.graph.nodes if node.target in CALLS]
    kernels = [value(node.args[1 + (node.target is aten.convolution_backward.default)]) for node in calls]
    assert {w.shape for w in kernels} <= {w.shape for w in layers}
    assert sum(len(outputs(node)) for node in calls) <= 6 * len(layers)


def pytorchs_product(case: Case, vector: Tensor) -> Tensor:
    """The product on the CPU, by PyTorch's own convolutions."""
    model, x, y = case.model(), *case.data(torch.float64, "cpu")
    parameters = list(model.double().eval().parameters())
    loss = F.cross_entropy(model(x), y)
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    return flat(torch.autograd.grad(flat(slopes) @ vector, parameters))


def flat(tensors) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])


def assert_alike(found: Tensor, wanted: Tensor) -> None:
    assert (found.cpu() - wanted).norm() <= 1e-12 * wanted.norm()


def outputs(node) -> list:
    """The results of a convolution, or its derivatives."""
    return [True] if node.target is aten.convolution.default else list(filter(None, node.args[-1]))


class Counted(TorchDispatchMode):
    """Counts convolutions and derivatives of convolutions."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is aten.convolution.default:
            self.count += 1
        if function is aten.convolution_backward.default:
            self.count += sum(args[-1][:2])
        return function(*args, **(kwargs or {}))


# Of three layers forward 3 along their weights and 2 along the images, and backward as many; of the Hessian there are
# 2 and 2 more, of the directions themselves. Of the last layer's block one forward and one backward.
@pytest.mark.parametrize(("matrix", "whole", "block"), [("hessian", 14, 2), ("ggn", 10, 2)])
def test_nothing_is_differentiated_that_a_product_does_not_ask_for(matrix, whole, block):
    layers = [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 3)]
    problem = Case("three", lambda: pooled(*layers), IMAGES, Y).problem(sizes=(7,))
    curvature, last = Curvature(problem, matrix, products=0), slice(4, 6)
    curvature.prepare()
    with Counted() as counted:
        curvature @ torch.ones(problem.size, dtype=problem.dtype)
    assert counted.count == whole
    with Counted() as counted:
        curvature.times_blocks([(last, torch.ones(sum(p.numel() for p in problem.leaves[last]), dtype=problem.dtype))])
    assert counted.count == block


def by_vmap(module: nn.Module, x: Tensor) -> Tensor:
    return torch.vmap(lambda image: module(image[None])[0])(x)


def by_jvp(module: nn.Module, x: Tensor) -> Tensor:
    return torch.func.jvp(module, (x,), (x.sin(),))[1]


def by_forward_mode(module: nn.Module, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(module(forward_ad.make_dual(x, x.sin()))).tangent


def in_autocast(module: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return module.float()(x.float())


WAYS = [by_vmap, by_jvp, by_forward_mode, in_autocast]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # PyTorch's jvp uses it
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_where_others_differentiate_pytorchs_own_are_called(way):
    x, module = IMAGES.clone().requires_grad_(), nn.Conv2d(4, 3, 3).double()
    wanted = way(module, x)
    with twice_differentiable(module):
        found = way(module, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert found.grad_fn.name() == wanted.grad_fn.name()


@pytest.mark.parametrize("faster", LAYOUTS)
def test_images_lie_as_a_clock_decides(faster, monkeypatch):
    monkeypatch.setenv("SPECTRA_CACHE", "")
    monkeypatch.setattr(choices_module, "_decided", {})
    problem, _, hoisted = made(NETS[0], "hessian")
    batch, vector, choices = problem.batches[2], floats(problem.size), Autotuner()

    def seconds(call, device):
        call()
        return 1.0 if hoisted.channels_last is LAYOUTS[faster] else 2.0

    monkeypatch.setattr(choices, "seconds", seconds)
    choose_layout(hoisted, batch, vector, choices, "this product")
    assert choices.made == {"layout": faster}
    assert hoisted.channels_last is LAYOUTS[faster]
    wanted = definition("hessian").linearise(problem, batch)(vector)
    assert_alike(hoisted.apply(hoisted.residuals(batch), vector), wanted)

    again = Autotuner()
    monkeypatch.setattr(again, "seconds", None)  # not asked
    hoisted.channels_last = not LAYOUTS[faster]
    choose_layout(hoisted, batch, vector, again, "this product")
    assert hoisted.channels_last is LAYOUTS[faster]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_on_cuda_in_either_layout(layout):
    problem, choices = NETS[0].problem(device="cuda"), Autotuner()
    choices.made["layout"] = layout
    vector, matrix = floats(problem.size), Curvature(problem, "hessian", products=10**9, choices=choices)
    assert_alike(matrix @ vector.cuda(), pytorchs_product(NETS[0], vector))
    assert ("channels last" in matrix.path) == LAYOUTS[layout]
