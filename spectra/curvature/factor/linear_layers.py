"""Inner products of the gradients of single examples by linear layers, without forming the gradients.

A call y = x W' + c on a batch, row u of x belonging to unit u, has the derivative s_u (z_u, 1)' by (W, c), where z_u is
the row of x and s_u the derivative by the row of y: inner products of such gradients are (z'z + 1)(s's) (Goodfellow
2015). Whether rows belong to units is tested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from spectra.curvature.engine.differentiation import gradient
from spectra.curvature.factor.part import BatchRoot
from spectra.devices import device_of_vectors
from spectra.problem.autograd_graph import leaf_of, nodes_behind
from spectra.problem.batch import Batch
from spectra.problem.problem import Problem

Features = dict[tuple[int, ...], tuple[Tensor, Tensor]]  # inputs and slopes, by the ids of a layer's parameters


@dataclass(frozen=True)
class LinearCall:
    """One call of `torch.nn.functional.linear`."""

    input: Tensor
    parameters: tuple[Tensor | None, Tensor | None]  # weight and bias
    added: Tensor  # zeros added to the result, by which we differentiate: the result may be changed in place

    @property
    def key(self) -> tuple[int, ...]:
        """The ids of the parameters."""
        return tuple(id(p) for p in self.parameters if p is not None)

    @property
    def width(self) -> int:
        """The count of numbers in features and slopes for one row of F."""
        return self.input.shape[1] + 1 + self.added.shape[1]

    @property
    def features(self) -> Tensor:
        """The factor of the derivative by the result: the input for the weight, one for the bias."""
        weight, bias = self.parameters
        ones = self.input.new_ones(len(self.input), bias is not None)
        return torch.cat([self.input, ones], dim=1) if weight is not None else ones


class LinearCalls(TorchFunctionMode):
    """A context that records the linear layers called inside it, in `calls`."""

    def __init__(self):
        super().__init__()
        self.calls: list[LinearCall] = []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if function is not F.linear or not result.requires_grad:
            return result
        given = dict(zip(("input", "weight", "bias"), arguments, strict=False), **(keywords or {}))
        added = torch.zeros_like(result, requires_grad=True)
        self.calls.append(LinearCall(given["input"].detach(), (given["weight"], given.get("bias")), added))
        return result + added


def alone(calls: Iterable[LinearCall], rows: Tensor, units: int, leaves: Iterable[Tensor]) -> list[LinearCall]:
    """The calls on rows (units, d) with parameters that the model uses nowhere else.

    Parameters that are used elsewhere too are None in the result.
    """
    wanted, uses = {id(p) for p in leaves}, uses_behind(rows)
    calls = [call for call in calls if call.input.ndim == 2 and len(call.input) == units]
    times = Counter(id(p) for call in calls for p in call.parameters)

    def single(p: Tensor | None) -> Tensor | None:
        return p if id(p) in wanted and times[id(p)] == uses[id(p)] == 1 else None

    found = [replace(call, parameters=tuple(map(single, call.parameters))) for call in calls]
    return [call for call in found if any(p is not None for p in call.parameters)]


def uses_behind(tensor: Tensor) -> Counter[int]:
    """The number of nodes of the graph that take each leaf, by the leaf's id."""
    parents = (parent for node in nodes_behind([tensor]) for parent, _ in node.next_functions)
    return Counter(id(leaf) for parent in parents if (leaf := leaf_of(parent)) is not None)


def linear_features(problem: Problem, part: BatchRoot, keys: Container[tuple[int, ...]]) -> Features:
    """Inputs (rows, d) and slopes (rows, width) of linear layers; their outer products are the part's rows of F.

    Layers not among `keys` are left out, and those whose rows turn out not to belong to units.
    """
    rows, calls = linear_calls(problem, part.batch, len(part.roots))
    calls = [call for call in calls if call.key in keys]
    slopes = [call.added.new_zeros(*part.kept.shape, call.added.shape[1]) for call in calls]
    for (i, position), found in by_kind(rows, calls, part):
        for store, slope in zip(slopes, found, strict=True):
            store[:, i, position] = slope
    sound = by_unit(rows, calls, part, [store.sum(dim=(1, 2)) for store in slopes])
    unit = part.kept.nonzero()[:, 0]
    return {
        call.key: (call.features[unit], store[part.kept])
        for call, store, good in zip(calls, slopes, sound, strict=True)
        if good
    }


def linear_squares(problem: Problem, part: BatchRoot) -> dict[tuple[int, ...], Tensor]:
    """|row|^2 (size,) of the part's rows of F by each linear layer, in float64, without storing a row."""
    rows, calls = linear_calls(problem, part.batch, len(part.roots))
    sums = [torch.zeros_like(call.added) for call in calls]
    kept = part.kept.to(device_of_vectors(part.kept.device))
    squares = [torch.zeros(kept.shape, dtype=torch.float64, device=kept.device) for _ in calls]
    for (i, position), found in by_kind(rows, calls, part):
        for total, square, slope in zip(sums, squares, found, strict=True):
            total += slope
            square[:, i, position] = row_squares(slope)
    sound = by_unit(rows, calls, part, sums)
    return {
        call.key: (row_squares(call.features)[:, None, None] * square)[kept]
        for call, square, good in zip(calls, squares, sound, strict=True)
        if good
    }


def by_kind(rows: Tensor, calls: Sequence[LinearCall], part: BatchRoot) -> Iterator[tuple[list[int], Sequence[Tensor]]]:
    """Yield each kind of the part's rows, with its derivatives (units, width) by the results of the calls."""
    for kind in part.kinds if calls else ():
        yield kind, gradient(rows, [call.added for call in calls], part.of_kind(*kind).view_as(rows))


def by_unit(rows: Tensor, calls: Sequence[LinearCall], part: BatchRoot, sums: Sequence[Tensor]) -> list[bool]:
    """Whether the rows of each call belong to units, given the sum (units, width) of their slopes over all kinds.

    Units get random weights; the slope of each unit has to be multiplied by its own weight.
    """
    if not calls:
        return []
    drawn = torch.rand(len(part.roots), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(rows)
    weighted = torch.einsum("u,uipd->upd", drawn, part.roots).view_as(rows)
    found = gradient(rows, [call.added for call in calls], weighted)
    return [close(slope, drawn[:, None] * total) for slope, total in zip(found, sums, strict=True)]


def linear_calls(problem: Problem, batch: Batch, units: int) -> tuple[Tensor, list[LinearCall]]:
    """The model's rows, and the calls of linear layers in the model with parameters that are used nowhere else."""
    with LinearCalls() as record:
        rows = problem.rows(batch)
    return rows, alone(record.calls, rows, units, problem.leaves)


def row_squares(rows: Tensor) -> Tensor:
    """|x|^2 of each row, in float64."""
    rows = rows.to(device_of_vectors(rows.device))
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors agree up to rounding."""
    return bool((found - expected).norm() <= torch.finfo(found.dtype).eps ** 0.5 * expected.norm())
