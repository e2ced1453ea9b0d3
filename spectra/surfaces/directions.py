"""Directions in parameter space along which a loss is looked at.

Eigenvectors and random ones scaled by filters are found here. Those of training are given: the gradient, the
optimizer's step, the way to another checkpoint, components of a trajectory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spectra.devices import device_of_vectors
from spectra.errors import SpectraError
from spectra.krylov.eigenpairs import eigenpairs_unchecked
from spectra.krylov.results import Eigenpairs, Progress
from spectra.layerwise.parameter_blocks import channel_of
from spectra.operator import Counting
from spectra.problem.problem import Problem
from spectra.random_numbers import draw_keys, normal_rows
from spectra.records.directions import PATH
from spectra.steps.directions import CHECKPOINT, GRADIENT, MOMENTUM, UPDATE
from spectra.vectors import full_tensor, take_rows
from spectra.wording import counted

EIGENVECTOR, RANDOM, LOWEST, COMPONENT = "eigenvector", "random", "lowest", "component"
TRAINED = (GRADIENT, UPDATE, MOMENTUM)  # names, and kinds, of directions that are looked along rather forwards
TO_A_POINT = (UPDATE, CHECKPOINT)  # kinds of directions whose t = 1 is a point of its own


@dataclass(frozen=True)
class Direction:
    """d, and what is known of it; an eigenvector has norm 1, so that t in theta + t d is a distance."""

    name: str  # `1`, `lowest`, `random 2`, `gradient`, `checkpoint:late.pt`, `PC 1`
    kind: str
    source: str  # the file of an earlier `eig`, another checkpoint, or `computed` or `drawn`
    vector: Tensor  # (n,), whole on every process
    eigenvalue: float | None = None
    residual: float | None = None  # |A d - eigenvalue d|
    buffers: Mapping[str, Tensor] = field(default_factory=dict)  # of the model, and by what they change up to t = 1


def numbered(along: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The names of lines and planes, each once, every `random` with a number of its own.

    A glob of checkpoints is the plane of its two components.
    """
    found, drawn, globs = [], 0, list(dict.fromkeys(name for names in along for name in names if name.startswith(PATH)))
    for names in along:
        told = []
        for name in names:
            drawn += name == RANDOM
            told.append(f"{RANDOM} {drawn}" if name == RANDOM else name)
        if told[0].startswith(PATH):
            told = components(globs, told[0])
        found.append(tuple(told))
    return list(dict.fromkeys(found))


def components(globs: Sequence[str], path: str) -> list[str]:
    """The names of the two components of one of the globs; they are numbered where there are several."""
    of = f" of path {globs.index(path) + 1}" if len(globs) > 1 else ""
    return [f"PC {i}{of}" for i in (1, 2)]


def find_directions(
    problem: Problem,
    operator: Counting,
    names: Sequence[str],
    known: Mapping[str, tuple[Eigenpairs, str]],
    generator: torch.Generator,
    tolerance: float,
    max_products: int | None,
    progress: Progress | None,
    given: Mapping[str, Direction] | None = None,
) -> tuple[dict[str, Direction], bool]:
    """Find the vectors of the names, in their order; also return whether all were found, each within the tolerance.

    `known` holds eigenpairs of an earlier run and its file, by which end of the spectrum they are (LM, SA); `given`
    the directions that are no eigenvectors and not drawn.
    """
    found, good, given = {}, True, given or {}
    ranks = [int(name) for name in names if name.isdigit()]
    refuse_ranks(ranks, problem.size)
    wanted = {"LM": max(ranks, default=0), "SA": int(LOWEST in names)}
    pairs = {which: known[which] for which, k in wanted.items() if k and which in known}
    for which, k in wanted.items():
        if k and which not in pairs:
            left = None if max_products is None else max_products - operator.products
            search = {"which": which, "tolerance": tolerance, "generator": generator, "progress": progress}
            computed = eigenpairs_unchecked(operator, k, max_products=left, **search)
            pairs[which], good = (computed, "computed"), good and computed.converged
    drawing = torch.Generator().manual_seed(problem.seed)  # the same directions for every matrix
    for name in names:
        if name in given:
            found[name] = given[name]
            continue
        if name.startswith(RANDOM):
            found[name] = random_direction(name, problem, drawing)
            continue
        held, source = pairs["LM" if name.isdigit() else "SA"]
        place = int(name) - 1 if name.isdigit() else 0
        if place < len(held.values):
            found[name] = eigenvector(name, held, place, source, problem.device)
    return found, good and len(found) == len(names)


def refuse_ranks(ranks: Sequence[int], n: int) -> None:
    """Raise SpectraError where an eigenvector of a rank above n is asked for."""
    if ranks and max(ranks) > n:
        raise SpectraError(
            f"`along` {max(ranks)}: a matrix with {counted(n, 'row')} has {counted(n, 'eigenvector')}; name one of them"
        )


def eigenvector(name: str, pairs: Eigenpairs, place: int, source: str, device: torch.device) -> Direction:
    """The pair at this place, its vector on the device."""
    vector = full_tensor(take_rows(pairs.vectors, [place]))[0].to(device_of_vectors(device))
    value, residual = pairs.values[place].item(), pairs.residuals[place].item()
    return Direction(name, EIGENVECTOR, source, oriented(vector), value, residual)


def oriented(vector: Tensor) -> Tensor:
    """The vector or its opposite, so that its largest component is positive: both are eigenvectors."""
    return vector * vector[vector.abs().argmax()].sign() if vector.isfinite().all() else vector


def random_direction(name: str, problem: Problem, generator: torch.Generator) -> Direction:
    """Standard normal, then each filter brought to the norm that the parameter's own has.

    Li, Xu, Taylor, Studer, Goldstein 2018, *Visualizing the loss landscape of neural nets*. A filter is what makes one
    output channel in a parameter of two dimensions or more; parameters of fewer (biases, scales of normalisation
    layers) stay where they are. Raises SpectraError where nothing is left to vary.
    """
    (drawn,) = normal_rows(draw_keys(generator, 1), slice(0, problem.size), torch.float64, torch.device("cpu"))
    modules = dict(problem.model.named_modules())
    parts = []
    for d, (name, p) in zip(problem.tensors(drawn), problem.parameters.items(), strict=True):
        filters = channel_of(modules.get(name.rpartition(".")[0]), p)
        parts.append(filter_normalised(d, p.detach(), filters))
    vector = problem.vector(parts).to(device_of_vectors(problem.device))
    if not vector.any():
        raise SpectraError(
            "`along` random: every weight of two dimensions or more is zero or not chosen, and others are left as they "
            "are, so the direction is zero; look at `params`, or take eigenvectors"
        )
    return Direction(name, RANDOM, "drawn", vector)


def filter_normalised(drawn: Tensor, parameter: Tensor, filters: Tensor) -> Tensor:
    """`drawn` with the norms of the parameter's filters, as the parameter is; zero for fewer than two dimensions.

    `filters` tells for each entry (numel,) which it belongs to.
    """
    if parameter.ndim < 2:
        return torch.zeros_like(parameter)
    own, given = (torch.bincount(filters, x.cpu().double().flatten().square()).sqrt() for x in (parameter, drawn))
    scales = own / given.clamp(min=torch.finfo(torch.float64).tiny)
    return (drawn.flatten() * scales[filters]).view(parameter.shape).to(parameter)
