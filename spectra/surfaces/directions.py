"""Directions in parameter space along which the loss is evaluated.

This module computes eigenvectors and filter-normalised random directions. Directions of training (gradient, optimizer
step, other checkpoints, components of a trajectory) are made in `surfaces.training_directions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spectra.devices import device_of_vectors
from spectra.directions.training import CHECKPOINT, GRADIENT, MOMENTUM, UPDATE
from spectra.errors import SpectraError
from spectra.krylov.eigenpairs import eigenpairs_unchecked
from spectra.krylov.results import Eigenpairs, Progress
from spectra.layerwise.parameter_blocks import channel_of
from spectra.operator import Counting
from spectra.problem.problem import Problem
from spectra.random_numbers import draw_keys, normal_rows
from spectra.records.directions import PATH
from spectra.vectors import full_tensor, take_rows
from spectra.wording import counted

EIGENVECTOR, RANDOM, LOWEST, COMPONENT = "eigenvector", "random", "lowest", "component"
TRAINED = (GRADIENT, UPDATE, MOMENTUM)  # names and kinds of directions whose lines go mostly forwards
TO_A_POINT = (UPDATE, CHECKPOINT)  # kinds of directions with a point of interest at t = 1


@dataclass(frozen=True)
class Direction:
    """A direction d; an eigenvector has norm 1, so that t in theta + t d is a distance."""

    name: str  # `1`, `lowest`, `random 2`, `gradient`, `checkpoint:late.pt`, `PC 1`
    kind: str
    source: str  # the file of an earlier `eig`, another checkpoint, or `computed` or `drawn`
    vector: Tensor  # (n,), whole on every process
    eigenvalue: float | None = None
    residual: float | None = None  # |A d - eigenvalue d|
    buffers: Mapping[str, Tensor] = field(default_factory=dict)  # changes of the model's buffers from t = 0 to 1


def numbered(along: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The directions of each line and plane, without repetitions; each `random` gets a number.

    `path:GLOB` becomes the plane of its two components.
    """
    found, drawn, globs = [], 0, list(dict.fromkeys(name for names in along for name in names if name.startswith(PATH)))
    for names in along:
        labels = []
        for name in names:
            drawn += name == RANDOM
            labels.append(f"{RANDOM} {drawn}" if name == RANDOM else name)
        if labels[0].startswith(PATH):
            labels = components(globs, labels[0])
        found.append(tuple(labels))
    return list(dict.fromkeys(found))


def components(globs: Sequence[str], path: str) -> list[str]:
    """The names of the two components of a glob, with the number of the glob if there are several."""
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
    """Find the directions of these names, and return whether all were found, with eigenvectors within the tolerance.

    Args:
        problem: the problem, at the current parameters.
        operator: the matrix of the eigenvectors.
        names: the names of directions, see `surfaces.names`.
        known: eigenpairs of an earlier run and its file, by the end of the spectrum (LM, SA).
        generator: the source of random starting vectors, on the CPU.
        tolerance: the residual over |eigenvalue| at which an eigenpair has converged.
        max_products: the most products of the operator in all; None: no limit.
        progress: reports the progress.
        given: the directions that are neither eigenvectors nor random, by name.
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
    """Raise SpectraError if an eigenvector of a rank above n is requested."""
    if ranks and max(ranks) > n:
        raise SpectraError(
            f"`along` {max(ranks)}: a matrix with {counted(n, 'row')} has {counted(n, 'eigenvector')}; name one of them"
        )


def eigenvector(name: str, pairs: Eigenpairs, place: int, source: str, device: torch.device) -> Direction:
    """The eigenvector at this place as a direction, on the device."""
    vector = full_tensor(take_rows(pairs.vectors, [place]))[0].to(device_of_vectors(device))
    value, residual = pairs.values[place].item(), pairs.residuals[place].item()
    return Direction(name, EIGENVECTOR, source, oriented(vector), value, residual)


def oriented(vector: Tensor) -> Tensor:
    """The eigenvector with the sign for which its largest component is positive."""
    return vector * vector[vector.abs().argmax()].sign() if vector.isfinite().all() else vector


def random_direction(name: str, problem: Problem, generator: torch.Generator) -> Direction:
    """A standard normal direction, in which each filter is scaled to the norm of the parameters' own filter.

    Li, Xu, Taylor, Studer, Goldstein 2018, *Visualizing the loss landscape of neural nets*. A filter is the part of a
    parameter of two dimensions or more that makes one output channel. Entries for parameters of fewer dimensions
    (biases, scales of normalisation layers) are zero. Raises SpectraError if the whole direction is zero.
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
            "`along` random: the direction is zero, since it varies only weights of two dimensions or more, and these "
            "are zero or not chosen; check `params`, or use eigenvectors"
        )
    return Direction(name, RANDOM, "drawn", vector)


def filter_normalised(drawn: Tensor, parameter: Tensor, filters: Tensor) -> Tensor:
    """Scale the filters of `drawn` to the norms of the parameter's filters; zero for fewer than two dimensions.

    `filters` (numel,) is the number of each entry's filter.
    """
    if parameter.ndim < 2:
        return torch.zeros_like(parameter)
    own, given = (torch.bincount(filters, x.cpu().double().flatten().square()).sqrt() for x in (parameter, drawn))
    scales = own / given.clamp(min=torch.finfo(torch.float64).tiny)
    return (drawn.flatten() * scales[filters]).view(parameter.shape).to(parameter)
