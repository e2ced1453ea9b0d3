"""Rows about the eigenvalues and eigenspaces of checkpoints, and how eigenspaces turn between checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from spectra.records.files import read_arrays
from spectra.records.sweep import Row
from spectra.spectrum.subspaces import (
    Gap,
    gap_behind,
    overlap,
    overlap_error,
    principal_angles,
    share_inside,
    widest_gap,
)
from spectra.sweeps.rows import ResultEntry, threshold_rows

Weights = Callable[[ResultEntry], np.ndarray | None]


def ranks(values: np.ndarray, which: str) -> np.ndarray:
    """The rank of each value (k,) of `eig --which`: 1 the largest of the matrix, 2 the second; -1 the smallest.

    With LM, values at or above zero are ranked from the largest, and negative ones from the smallest.
    """
    top = {
        "LM": values >= 0,
        "LA": np.ones(len(values), bool),
        "SA": np.zeros(len(values), bool),
        "BE": np.arange(len(values)) < len(values) - len(values) // 2,
    }[which]
    found = np.empty(len(values), int)
    for held, sign in ((top, 1), (~top, -1)):
        found[held] = sign * (1 + np.argsort(np.argsort(-sign * values[held], kind="stable"), kind="stable"))
    return found


def eigenvalue_rows(found: ResultEntry) -> Iterator[Row]:
    """Rows of the eigenvalues of one result, by rank, and of the threshold of stability if there is one."""
    values, residuals, which = numbers(found)
    order = ranks(values, which) if np.isfinite(values).all() else 1 + np.arange(len(values))
    ranked = sorted(range(len(values)), key=lambda i: (order[i] < 0, abs(order[i])))
    rows = [found.row("eigenvalue", int(order[i]), float(values[i]), error=float(residuals[i])) for i in ranked]
    yield from rows
    yield from threshold_rows(found, rows)


def numbers(found: ResultEntry) -> tuple[np.ndarray, np.ndarray, str]:
    """The eigenvalues (k,) and residuals (k,) as they are saved, null as nan, and which end they are from."""
    return found.entry.values, found.entry.residuals, found.problem.option("which") or "LM"


@dataclass(frozen=True)
class SavedPairs:
    """Eigenvalues from the top inwards (with --which SA from the bottom), and the indices of their saved vectors."""

    found: ResultEntry
    values: np.ndarray
    residuals: np.ndarray
    places: np.ndarray

    def vectors(self, k: int) -> np.ndarray | None:
        """The first k eigenvectors (k, n), float64; None if they were not saved."""
        name = f"eigenvectors_{self.found.curvature}"
        arrays = read_arrays(self.found.file.with_suffix(".npz"), [name])
        return None if arrays is None else arrays[name][self.places[:k]].astype(np.float64)

    def gap(self, k: int) -> Gap | None:
        """The gap between eigenvalues k and k + 1; None if eigenvalue k + 1 was not computed."""
        return gap_behind(self.values, self.residuals, k)

    def gap_within(self, k: int) -> Gap:
        """The gap between eigenvalues k and k + 1, if eigenvalue k + 1 was computed."""
        gap = self.gap(k)
        assert gap is not None
        return gap


def leading(found: ResultEntry) -> SavedPairs | None:
    """The eigenpairs in a result from one end inwards; None if a number is not finite."""
    values, residuals, which = numbers(found)
    if not (np.isfinite(values).all() and np.isfinite(residuals).all()):
        return None
    order = ranks(values, which)
    held = np.flatnonzero(order < 0 if which == "SA" else order > 0)
    places = held[np.argsort(np.abs(order[held]))]
    return SavedPairs(found, values[places], residuals[places], places) if len(places) else None


def eigenspace_rows(series: Sequence[ResultEntry], weights: Weights, note: Callable[[str], Any]) -> Iterator[Row]:
    """Rows about one matrix over its checkpoints: how leading eigenvectors turn, and whether training follows them.

    The leading k-space has the same k throughout, that of the widest gap (`widest_gap`).

    Args:
        weights: returns the parameters (n,) at a checkpoint, or None if they cannot be read.
        note: called with what could not be read.
    """
    known = [pairs for found in series if (pairs := leading(found))]
    k = widest_gap([pairs.values for pairs in known])
    if k:
        yield from gap_rows(known, k)
    if len(known) > 1:
        yield from rotation_rows(known, k, weights, note)


def gap_rows(known: Sequence[SavedPairs], k: int) -> Iterator[Row]:
    """Rows with the gap behind the first k eigenvalues at each checkpoint."""
    for pairs in known:
        error = (pairs.residuals[k - 1] + pairs.residuals[k]) / abs(pairs.values[k - 1] or np.nan)
        yield derived(pairs, "gap", k, pairs.gap_within(k).relative, float(error), gap_is_reliable(k, pairs))


def rotation_rows(known: Sequence[SavedPairs], k: int | None, weights: Weights, note: Callable) -> Iterator[Row]:
    """Rows about how eigenspaces turn, with the vectors of only two checkpoints and of the last one in memory."""
    last = known[-1]
    final, here, start = last.vectors(k or 1), known[0].vectors(k or 1), weights(known[0].found)
    for pairs, following in pairwise(known):
        there, end = following.vectors(k or 1), weights(following.found)
        if here is None:
            name = pairs.found.curvature
            note(f"{name}: without saved eigenvectors (spectra eig --save-vectors) there are no overlaps")
        both = comparable(here, there)
        if both:
            error = bound_of_overlap(pairs, following, 1)
            cosine = min(abs(float(both[0][0] @ both[1][0])), 1.0)
            yield derived(pairs, "alignment_next", 1, cosine, error, gap_is_reliable(1, pairs, following))
        if k and both:
            yield from compared("next", pairs, following, *both)
        if k and (ends := comparable(here, final)):
            yield from compared("last", pairs, last, *ends)
        if scaled(pairs.found):
            name = pairs.found.curvature
            note(f"{name}: the share of updates in leading spaces is left out, since these have coordinates P^1/2 x")
        elif k and here is not None and start is not None and end is not None and len(start) == here.shape[1]:
            share = share_inside(here, end - start)
            yield derived(
                pairs, "update_share", k, share, min(pairs.gap_within(k).bound, 1.0), gap_is_reliable(k, pairs)
            )
        here, start = there, end


def compared(which: str, pairs: SavedPairs, other: SavedPairs, here: np.ndarray, there: np.ndarray) -> Iterator[Row]:
    """Rows of overlap and angles between the k-spaces `here` and `there`, (k, n) each."""
    k = len(here)
    reliable = gap_is_reliable(k, pairs, other)
    error = bound_of_overlap(pairs, other, k)
    yield derived(pairs, f"overlap_{which}", k, overlap(here, there), error, reliable)
    for i, angle in enumerate(principal_angles(here, there), start=1):
        yield derived(pairs, f"angle_{which}", i, float(angle), None, reliable)


def scaled(found: ResultEntry) -> bool:
    """Whether eigenvectors are in coordinates P^1/2 x, not in those of the parameters; SGD has P = I."""
    of = found.problem.get("precondition")
    return of is not None and of.get("optimizer") != "SGD"


def comparable(here: np.ndarray | None, there: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
    """The pair of bases; None if one is missing or their shapes differ."""
    return (here, there) if here is not None and there is not None and here.shape == there.shape else None


def bound_of_overlap(pairs: SavedPairs, other: SavedPairs, k: int) -> float | None:
    """A bound on the error of the overlap of two k-spaces; None if a gap is not known."""
    one, two = pairs.gap(k), other.gap(k)
    return None if one is None or two is None else overlap_error(one.bound, two.bound, k)


def gap_is_reliable(k: int, *some: SavedPairs) -> bool:
    """Whether there is a gap behind the first k eigenvalues of each, as far as it is known (`Gap.reliable`)."""
    return all(gap is None or gap.reliable for gap in (pairs.gap(k) for pairs in some))


def derived(pairs: SavedPairs, quantity: str, index: int, value: float, error: float | None, reliable: bool) -> Row:
    """Make the row of a number that took no products of its own."""
    converged = pairs.found.entry.converged and reliable
    return pairs.found.row(quantity, index, value, error=error, products=None, converged=converged)
