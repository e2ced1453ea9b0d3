"""Choose the batches that products are made of: small ones are merged and large ones cut.

No matrix but fisher-batch depends on the split, and that one keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from spectra.curvature.engine.footprint import Footprint, elements
from spectra.problem.batch import Batch, join_trees
from spectra.problem.model_inputs import Structured, divisible
from spectra.problem.problem import Problem

QUARTER = 4  # a quarter of memory for one batch, where not all fit: the rest keeps others
SMALL = 2**26  # bytes of a batch's product beyond which a larger batch is no faster per example
LARGE = 2**29  # bytes of a product beyond which a CPU is slower: a ViT's Hessian by a half, because of page faults


def own_batches(problem: Problem, whole: bool = True) -> Sequence[Batch]:
    """The batches of this process: those with numbers rank, rank + P, ..., for P processes.

    Where there are fewer batches than processes and they need not stay `whole`, each process takes a part of every
    batch.
    """
    batches, rank, count = problem.batches, problem.processes.rank, problem.processes.count
    if whole or len(batches) >= count:
        return batches[rank::count] if count > 1 else batches
    cuts = ((batch, -(-len(batch) // count)) for batch in batches)
    parts = [batch.part(slice(rank * size, (rank + 1) * size)) for batch, size in cuts]
    return [part for part in parts if len(part)]


def resized(batches: Sequence[Batch], costs: Footprint, memory: int) -> list[Batch]:
    """Cut or merge batches, in order, so that their products fit `memory` bytes and are each worth a call."""
    largest, fitting = max(map(elements, batches)), costs.peak.within(memory)
    room = fitting if largest <= fitting else fitting / QUARTER
    if batches[0].indices.device.type == "cpu":
        room = min(room, costs.peak.within(LARGE))
    if largest > room:
        return cut(batches, room)
    return merged(batches, min(costs.peak.within(SMALL), fitting / QUARTER))


def cut(batches: Sequence[Batch], room: float) -> list[Batch]:
    """Cut batches into parts of at most `room` elements, or of one example; into equal parts, where possible."""
    parts = []
    for batch in batches:
        fewest = -(-len(batch) // max(1, int(room * len(batch) / elements(batch))))
        count = next((count for count in range(fewest, 2 * fewest) if len(batch) % count == 0), fewest)
        size = -(-len(batch) // count)
        parts += [batch.part(slice(first, first + size)) for first in range(0, len(batch), size)]
    return parts


def merged(batches: Sequence[Batch], room: float) -> list[Batch]:
    """Join neighbouring batches of one kind, up to `room` elements."""
    groups: list[list[Batch]] = []
    held = 0
    for batch in batches:
        held += elements(batch)
        if not groups or held > room or kind(batch) != kind(groups[-1][0]):
            groups.append([])
            held = elements(batch)
        groups[-1].append(batch)
    return [group[0] if len(group) == 1 else joined(group) for group in groups]


def kind(batch: Batch) -> Any:
    """A key that is equal for batches that can be joined: dtypes, and shapes without the first dimension."""
    values, structure = pytree.tree_flatten((batch.inputs, batch.targets, batch.indices), is_leaf=is_joined_whole)
    return structure, [kind_of_part(x) for x in values]


def kind_of_part(x: Any) -> Any:
    """The key of a part of a batch."""
    if isinstance(x, Structured):
        return x.kind()
    if isinstance(x, Tensor) and not divisible(x):
        return object()  # unequal to any other
    return list if isinstance(x, list) else (x.shape[1:], x.dtype) if isinstance(x, Tensor) else x


def is_joined_whole(x: Any) -> bool:
    """Whether a part of a batch is joined as one object, not as a tree of tensors: a list of examples, or graphs."""
    return isinstance(x, list | Structured)


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all examples of these batches."""
    return Batch(*join_trees([(batch.inputs, batch.targets, batch.indices) for batch in batches]))
