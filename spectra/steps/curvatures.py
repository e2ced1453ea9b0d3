"""The curvature of one matrix along a direction, d'Ad, and how it splits within and between layers.

    d'Ad  =  sum_l d_l'A_ll d_l  +  sum_(l != m) d_l'A_lm d_m

with d_l the part of d that belongs to layer l. The first sum is the curvature if each layer took its step alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from spectra.directions.training import Direction
from spectra.layerwise.parameter_blocks import ParameterBlock
from spectra.operator import SymmetricOperator, placed
from spectra.vectors import dot, full_tensor, norm


@dataclass(frozen=True)
class LayerPart:
    """The share of one layer in a direction and in the curvature along it."""

    name: str
    share: float  # |d_l|^2 / |d|^2
    part: float  # d_l'(A d)_l; the parts add up to d'Ad
    own: float | None  # d_l'A_ll d_l; None if it was not computed


@dataclass(frozen=True)
class DirectionalCurvature:
    """The curvature d'Ad with its rounding error, and its parts within and between layers, None if not computed."""

    value: float
    error: float
    within: float | None
    between: float | None
    split_error: float | None  # of `within` and of `between`
    layers: list[LayerPart]


def curvature_along(
    operator: SymmetricOperator,
    diagonal_blocks: SymmetricOperator | None,
    blocks: Sequence[ParameterBlock],
    direction: Direction,
    noise: float,
) -> DirectionalCurvature:
    """The curvature along a direction, by one product with the matrix and one with its diagonal blocks.

    Args:
        operator: the matrix A (n, n).
        diagonal_blocks: diag(A_11, ..., A_LL), as `parameter_blocks.diagonal_blocks` makes it; None: no split within
            and between layers.
        blocks: the layers, a partition of the parameters.
        direction: d.
        noise: the relative error of a product, so that d'Ad has an error of up to noise |d| |Ad|.
    """
    d = direction.vector
    image = full_tensor(operator @ placed(d, operator))
    value, error = dot(d, image), noise * direction.norm * norm(image)
    own = None if diagonal_blocks is None else full_tensor(diagonal_blocks @ placed(d, diagonal_blocks))
    if len(blocks) == 1:
        own = image
    layers = [part_of(block, direction, image, own) for block in blocks]
    if own is None:
        return DirectionalCurvature(value, error, None, None, None, layers)
    within, more = sum(layer.own or 0.0 for layer in layers), noise * direction.norm * norm(own)
    return DirectionalCurvature(value, error, within, value - within, error + more, layers)


def part_of(block: ParameterBlock, direction: Direction, image: Tensor, own: Tensor | None) -> LayerPart:
    """The part of one layer, from A d and diag(A_ll) d."""
    index = block.index.to(image.device)
    d, whole = direction.vector[index], image[index]
    alone = None if own is None else dot(d, own[index])
    return LayerPart(block.name, dot(d, d) / direction.norm**2, dot(d, whole), alone)
