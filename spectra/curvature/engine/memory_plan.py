"""Save memory where products do not fit it: logits in chunks of tokens, and recomputed activations of blocks.

Both cost time, so they are used only where memory is too small otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from spectra.curvature.engine.batches import own_batches
from spectra.curvature.engine.differentiation import combined_gradient
from spectra.curvature.engine.footprint import FEW, Footprint, elements, footprint
from spectra.curvature.engine.hoisting import Linearise
from spectra.errors import SpectraError
from spectra.memory import out_of_memory, products_share
from spectra.problem.batch import Batch
from spectra.problem.blocks import blocks_of, repeatable
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.head import find_head
from spectra.problem.problem import Problem
from spectra.problem.side_effects import modules
from spectra.problem.tokens import Head
from spectra.wording import counted

COPIES = 10  # the largest number of copies of the logits that a product from scratch takes
FEWER = 16  # the smallest chunk has (hidden size) / 16 tokens
PART = 8  # an eighth of memory for the copies of a chunk
LARGE = 2**28  # the largest bytes of a chunk's copies on a CPU, where larger tensors are slower


@dataclass(frozen=True)
class MemoryPlan:
    """A problem in a form whose products fit memory, and the memory that they take."""

    problem: Problem
    costs: Footprint

    @property
    def path(self) -> str:
        """How memory is saved, for the record; empty where it is not."""
        head, blocks = self.problem.head, len(self.problem.blocks)
        found = [f"logits in chunks of {counted(head.chunk, 'token')}"] if head else []
        if blocks:
            found.append(f"activations of {counted(blocks, 'block')} recomputed")
        elif self.problem.recompute_activations:
            found.append("the model has no blocks whose activations can be recomputed")
        return "; ".join(found)


def plan_memory(linearise: Linearise, problem: Problem, memory: int | None, whole: bool = False) -> MemoryPlan:
    """Choose a form of the problem whose products fit memory.

    Args:
        linearise: the function that makes the product of a batch.
        problem: the model, loss and data.
        memory: bytes for products; None: a share of the device's; 0: no limit, and no memory is saved.
        whole: whether batches stay as they are.
    """
    limit = products_share(problem.device) if memory is None else memory
    if problem.recompute_activations and not problem.blocks:
        problem = with_blocks(problem)
    if not limit:
        return MemoryPlan(problem, footprint(linearise, problem))
    plain, *leaner = forms(problem, limit)
    found = attempt(linearise, plain)
    if leaner and not (found and all_fit(found, limit, whole)):
        chunked = attempt(linearise, leaner[0])
        if chunked and (all_fit(chunked, limit, whole) or not (found and one_fits(found, limit, whole))):
            found = chunked
    if found and one_fits(found, limit, whole):
        return found
    other = problem if problem.recompute_activations is False else with_blocks([plain, *leaner][-1])
    leanest = found if other.blocks == problem.blocks else attempt(linearise, other)
    tried = [each for each in (found, leanest) if each]
    if not tried:
        return MemoryPlan(plain, footprint(linearise, plain))  # raises
    return min(tried, key=lambda each: each.costs.peak(smallest(each, whole)))


def attempt(linearise: Linearise, problem: Problem) -> MemoryPlan | None:
    """Measure the memory of a problem's products; None where memory runs out in doing so."""
    try:
        return MemoryPlan(problem, footprint(linearise, problem))
    except RuntimeError as error:
        if out_of_memory(error):
            return None
        raise


def forms(problem: Problem, limit: int) -> list[Problem]:
    """The problem as it is, unless the logits of a few examples clearly do not fit, and with logits in chunks."""
    layer = find_head(problem) if problem.head is None else None
    if layer is None:
        return [problem]
    few = min(FEW[-1], len(problem.batches[0])) * COPIES * layer[1] * layer[2] * problem.dtype.itemsize
    return [problem, with_head(problem, layer, limit)][few > limit :]


def all_fit(found: MemoryPlan, limit: int, whole: bool) -> bool:
    """Whether all that this process's batches keep, plus a product of the smallest batch, fits the limit."""
    sizes = [elements(batch) for batch in own_batches(found.problem)]
    kept = sum(found.costs.kept(size) for size in sizes)
    return kept + found.costs.peak(smallest(found, whole)) <= limit


def one_fits(found: MemoryPlan, limit: int, whole: bool) -> bool:
    """Whether a product of the smallest possible batch fits the limit."""
    return found.costs.peak(smallest(found, whole)) <= limit


def smallest(found: MemoryPlan, whole: bool) -> float:
    """The elements of the smallest possible batch: of one example, or of the largest batch if batches stay whole."""
    whole = whole or not found.costs.scales
    return max(elements(batch) / (1 if whole else len(batch)) for batch in found.problem.batches)


def with_head(problem: Problem, found: tuple[str, int, int], limit: int) -> Problem:
    """The problem with logits in chunks, each of as many tokens as a part of memory holds."""
    name, classes, _ = found
    room = limit // PART if problem.device.type != "cpu" else min(limit // PART, LARGE)
    layer = problem.model.get_submodule(name)
    least = (
        getattr(layer, "in_features", 0) // FEWER
    )  # a smaller chunk would save little beside the layer's own gradient
    chunk = max(1, least, room // (COPIES * classes * problem.dtype.itemsize))
    return replace(problem, head=Head(name, chunk))


def with_small_logits(problem: Problem) -> Problem:
    """The problem with logits in chunks if those of a batch are large, to evaluate the loss and its gradient."""
    if problem.head is not None or largest_logits(problem) <= LARGE:
        return problem
    layer = find_head(problem)
    return with_head(problem, layer, PART * LARGE) if layer else problem


def largest_logits(problem: Problem) -> int:
    """An upper bound of the bytes of a batch's logits, from labels and linear layers; 0 without cross entropy."""
    if not isinstance(problem.loss, CrossEntropy):
        return 0
    widths = (layer.out_features for layer in modules(problem.model) if isinstance(layer, nn.Linear))
    tokens = (problem.labels(batch).numel() for batch in problem.batches)
    return max(widths, default=0) * max(tokens) * problem.dtype.itemsize


def with_blocks(problem: Problem) -> Problem:
    """The problem with recomputed activations in all blocks that allow it; the problem itself where none does."""
    names = blocks_of(problem.model)
    if not names:
        return problem
    batch = problem.batches[0]
    try:
        some = batch.part(slice(1))
        problem.output(some)
    except (SpectraError, TypeError):
        some = batch
    try:
        names = repeatable(problem.model, names, lambda: problem.output(some))
    except (SpectraError, RuntimeError):
        return problem
    found = replace(problem, blocks=tuple(names))
    return found if same_derivative(problem, found, some) else problem


def same_derivative(problem: Problem, other: Problem, batch: Batch) -> bool:
    """Whether two forms of a problem have the same J'u on a batch, for one u in output space."""
    slopes = []
    try:
        for each in (problem, other):
            rows = each.rows(batch)
            weights = torch.linspace(1, 2, rows.numel(), dtype=rows.dtype, device=rows.device).view_as(rows)
            slopes.append(problem.vector(combined_gradient([rows], problem.leaves, [weights])))
    except RuntimeError as error:
        return out_of_memory(error)  # then recomputation is needed, and the check of derivatives finds any error
    return bool((slopes[0] - slopes[1]).norm() <= torch.finfo(problem.dtype).eps ** 0.5 * slopes[0].norm())
