"""Convolutions with fast second derivatives, made of convolutions and their derivatives with all groups in one call.

PyTorch computes the second derivative by the weight as a convolution across the batch with kernels as large as images,
one for each group: on a GPU that takes twenty times as long as a derivative by the weight, and for depthwise layers it
is thousands of calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.autograd.graph import Node

aten = torch.ops.aten
PLAIN = (Tensor, nn.Parameter)


class Geometry(NamedTuple):
    """The settings of a convolution, in the order of the last arguments of `torch.convolution`."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


class Convolution(torch.autograd.Function):
    """The convolution of images x by a weight w, plus a bias; linear in each."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Convolve the images."""
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return aten.convolution.default(x, w, bias, *geometry)

    @staticmethod
    def backward(ctx, *slopes: Tensor):
        """The derivatives by x, w and the bias."""
        by_x, by_w, by_bias, *_ = [*asked_for(ctx), False]
        x, w = ctx.saved_tensors
        (slope,) = slopes
        parts = Derivatives.apply(slope, x, w, ctx.geometry, (by_x, by_w)) if by_x or by_w else (None, None)
        over = [dim for dim in range(slope.ndim) if dim != 1]
        return *parts, slope.sum(over) if by_bias else None, None


class Derivatives(torch.autograd.Function):
    """The derivatives of a convolution by x and by w, given the slope by its output; None for one not wanted.

    The first is linear in the slope and w, the second in the slope and x.
    """

    @staticmethod
    def forward(ctx, slope: Tensor, x: Tensor, w: Tensor, geometry: Geometry, wanted: tuple[bool, bool]):
        """Differentiate the convolution."""
        ctx.save_for_backward(slope, x, w)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return derivatives(slope, x, w, geometry, wanted)

    @staticmethod
    def backward(ctx, *directions: Tensor | None):
        """The derivatives by slope, x and w, given those by the outputs."""
        slope, x, w = ctx.saved_tensors
        geometry, (by_slope, by_x, by_w) = ctx.geometry, asked_for(ctx)
        dx, dw = directions
        found: list[Tensor | None] = [None, None, None]
        if by_slope:
            pairs = [pair for pair in ((dx, w), (x, dw)) if None not in pair]
            terms = [aten.convolution.default(*pair, None, *geometry) for pair in pairs]
            found[0] = functools.reduce(torch.add, terms) if terms else None
        if by_x and dw is not None:
            found[1], _ = derivatives(slope, x, dw, geometry, (True, False))
        if by_w and dx is not None:
            _, found[2] = derivatives(slope, dx, w, geometry, (False, True))
        return *found, None, None


def asked_for(ctx) -> list[bool]:
    """Whether the backward pass that is running asks for the derivative by each tensor that a function was given.

    `ctx.needs_input_grad` only says whether some backward pass may ask for it.
    """
    return [node is not None and is_run(node) for node, _ in ctx.next_functions]


def is_run(node: Node) -> bool:
    """Whether the backward pass that is running reaches a node of its graph."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf by which the derivative is wanted
        return True


def derivatives(slope: Tensor, x: Tensor, w: Tensor, geometry: Geometry, wanted: tuple[bool, bool]):
    """The derivatives of a convolution by x and w; None for one that is not wanted."""
    found = aten.convolution_backward.default(slope, x, w, None, *geometry, [*wanted, False])
    return found[:2]


def convolving(function: Callable[..., Tensor], dims: int, transposed: bool) -> Callable[..., Tensor]:
    """A form of `torch.conv2d` or another such function, for images of `dims` dimensions.

    It calls the function itself where nothing is differentiated, or by other means than autograd's.
    """

    def convolve(input: Tensor, weight: Tensor, bias: Tensor | None = None, *settings, **keywords) -> Tensor:
        named = {**dict(zip(SETTINGS[transposed], settings, strict=False)), **keywords}
        geometry = geometry_of(weight, dims, transposed, **named) if serves(input, weight, bias, dims) else None
        if geometry is None:
            return function(input, weight, bias, *settings, **keywords)
        return Convolution.apply(input, weight, bias, geometry)

    return convolve


SETTINGS = {
    False: ("stride", "padding", "dilation", "groups"),
    True: ("stride", "padding", "output_padding", "groups", "dilation"),
}


def serves(x: Any, w: Any, bias: Any, dims: int) -> bool:
    """Whether the arguments are plain batches of images and weights that only autograd differentiates."""
    tensors = [x, w] if bias is None else [x, w, bias]
    return (
        all(type(tensor) in PLAIN for tensor in tensors)
        and x.ndim == w.ndim == dims + 2
        and x.is_floating_point()
        and len({(tensor.dtype, tensor.device, tensor.layout) for tensor in tensors}) == 1
        and any(tensor.requires_grad for tensor in tensors)
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled(x.device.type)
        and peek_interpreter_stack() is None
        and forward_ad._current_level < 0
    )


def geometry_of(
    w: Tensor, dims: int, transposed: bool, stride=1, padding=0, dilation=1, output_padding=0, groups=1
) -> Geometry | None:
    """The settings as `torch.convolution` takes them; None for a padding that differs between the two sides."""
    dilation = each(dilation, dims)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        around = [apart * (size - 1) for apart, size in zip(dilation, w.shape[2:], strict=True)]
        if any(total % 2 for total in around):
            return None
        padding = [total // 2 for total in around]
    padding, output_padding = each(padding, dims), each(output_padding, dims)
    return Geometry(each(stride, dims), padding, dilation, transposed, output_padding, groups)


def each(setting: int | Sequence[int], dims: int) -> list[int]:
    """A setting for each dimension."""
    settings = [setting] if isinstance(setting, int) else [*setting]
    return settings * dims if len(settings) == 1 else settings


KINDS = {"conv1d": (1, False), "conv2d": (2, False), "conv3d": (3, False)}
KINDS |= {"conv_transpose1d": (1, True), "conv_transpose2d": (2, True), "conv_transpose3d": (3, True)}
CONVOLUTIONS = [
    (owner, name, form)
    for name, kind in KINDS.items()
    for form in [convolving(getattr(torch, name), *kind)]
    for owner in (torch, nn.functional)
]
