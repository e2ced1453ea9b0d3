"""Rules of `vectorization` for convolutions of k vectors at once.

Convolutions of k images with one weight are one convolution with a batch k times as large; those of one image with k
weights are one with k times as many channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

aten = torch.ops.aten


def convolution(to: Any, node: Any) -> Node | None:
    """A convolution with k images or k weights."""
    x, weight, bias, stride, padding, dilation, turned, output_padding, groups = node.args
    settings = (stride, padding, dilation, turned, output_padding, groups)
    if to.is_batched(x) and to.is_batched(weight):
        return None
    if to.is_batched(x):
        found = to.call(aten.convolution.default, with_batch(to, x), to.one(weight), None, *settings)
        found = to.call(aten.reshape.default, found, [to.width, *node.meta["val"].shape])
    elif to.is_batched(weight):
        if groups != 1:
            return None
        wide = with_dimension(to, weight, 1 if turned else 0)
        found = to.call(aten.convolution.default, to.one(x), wide, None, *settings)
        found = out_of_dimension(to, found, 1)
    else:
        return None
    if bias is None:
        return found
    ones = [1] * (len(node.meta["val"].shape) - 2)
    channels = bias.meta["val"].shape[0]
    shape = [to.width, 1, channels, *ones] if to.is_batched(bias) else [channels, *ones]
    return to.call(aten.add.Tensor, found, to.call(aten.reshape.default, to.of(bias), shape))


def convolution_backward(to: Any, node: Any) -> tuple | None:
    """The derivatives of a convolution where one argument has k values."""
    slope, x, weight, _, *settings, mask = node.args
    turned, groups = settings[3], settings[5]
    batched = [argument for argument in (slope, x, weight) if to.is_batched(argument)]
    if len(batched) != 1 or (groups != 1 and (mask[1] or batched != [slope])):
        return None
    by_image = by_weight = by_bias = None
    if mask[0]:
        if batched == [slope]:
            images = empty(to, x, [to.width * x.meta["val"].shape[0], *x.meta["val"].shape[1:]])
            found = backward(to, with_batch(to, slope), images, to.one(weight), settings, 0)
            by_image = to.call(aten.reshape.default, found, [to.width, *x.meta["val"].shape])
        elif batched == [weight]:
            place = 0 if turned else 1
            images = empty(to, x, widened(x.meta["val"].shape, 1, to.width))
            found = backward(to, to.one(slope), images, with_dimension(to, weight, place), settings, 0)
            by_image = out_of_dimension(to, found, 1)
        else:
            return None  # it is the same for all k
    if mask[1]:
        if batched == [slope]:
            place = 1 if turned else 0
            kernels = empty(to, weight, widened(weight.meta["val"].shape, place, to.width))
            found = backward(to, with_dimension(to, slope, 1), to.one(x), kernels, settings, 1)
        elif batched == [x]:
            place = 0 if turned else 1
            kernels = empty(to, weight, widened(weight.meta["val"].shape, place, to.width))
            found = backward(to, to.one(slope), with_dimension(to, x, 1), kernels, settings, 1)
        else:
            return None
        by_weight = out_of_dimension(to, found, place)
    if mask[2]:
        if batched != [slope]:
            return None
        dims = [1, *range(3, 1 + len(slope.meta["val"].shape))]
        by_bias = to.call(aten.sum.dim_IntList, to.rows[slope], dims)
    return by_image, by_weight, by_bias


def backward(to: Any, slope: Node, x: Node, weight: Node, settings: list, wanted: int) -> Node:
    """One of the derivatives of a convolution."""
    mask = [place == wanted for place in range(3)]
    found = to.call(aten.convolution_backward.default, slope, x, weight, [0], *settings, mask)
    return to.item(found, wanted)


def empty(to: Any, like: Node, shape: list[int]) -> Node:
    """An argument from which only the shape is read."""
    return to.call(aten.new_empty.default, to.of(like), shape)


def widened(shape: torch.Size, place: int, width: int) -> list[int]:
    """The shape with one dimension `width` times as long."""
    return [size * width if i == place else size for i, size in enumerate(shape)]


def with_batch(to: Any, x: Node) -> Node:
    """The k values (k, b, ...) as a batch (k b, ...)."""
    batch, *rest = x.meta["val"].shape
    return to.call(aten.reshape.default, to.rows[x], [to.width * batch, *rest])


def with_dimension(to: Any, x: Node, place: int) -> Node:
    """The k values merged into one dimension, which becomes k times as long."""
    shape = x.meta["val"].shape
    moved = to.rows[x]
    if place:
        order = [*range(1, place + 1), 0, *range(place + 1, len(shape) + 1)]
        moved = to.call(aten.permute.default, moved, order)
    return to.call(aten.reshape.default, moved, widened(shape, place, to.width))


def out_of_dimension(to: Any, x: Node, place: int) -> Node:
    """The k values, split out of the dimension into which they were merged."""
    shape = [*x.meta["val"].shape]
    found = to.call(aten.reshape.default, x, [*shape[:place], to.width, shape[place] // to.width, *shape[place + 1 :]])
    order = [place, *(i for i in range(len(shape) + 1) if i != place)]
    return to.call(aten.permute.default, found, order) if place else found
