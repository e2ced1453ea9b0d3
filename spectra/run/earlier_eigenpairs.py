"""Eigenpairs of an earlier `eig`, which save products; the request names them, or they are in its output directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from spectra.errors import SpectraError
from spectra.krylov.deflation import known_pairs
from spectra.krylov.results import Eigenpairs
from spectra.operator import SymmetricOperator
from spectra.records.files import read_arrays
from spectra.records.precondition import PreconditionRecord
from spectra.records.record import load
from spectra.vectors import take_rows


def earlier_arrays(named: Path | None, option: str, out: Path | None) -> Path | None:
    """The arrays of the earlier result; None if there is none. Raises SpectraError if a named one is missing."""
    if named:
        path, _ = load(named, ("eig",), f"`{option}`")
        return path.with_suffix(".npz")
    if out and (out / "eig.npz").exists():
        return out / "eig.npz"
    return None


def other_preconditioning(arrays: Path, now: PreconditionRecord | None) -> str | None:
    """How an earlier result's matrices are preconditioned, as text, if that differs from now; otherwise None."""
    try:
        _, record = load(arrays.with_suffix(".json"), ("eig",))
    except SpectraError:  # its vectors are tested with this matrix anyway
        return None
    then = record.problem.get("precondition")
    if then is None or now is None:
        other = then is not now
    else:
        keys = [key for key in vars(now) if key != "spec" or now.sha256 is None]
        other = any(getattr(then, key, None) != getattr(now, key) for key in keys)
    if not other:
        return None
    return "not preconditioned" if then is None else f"preconditioned by {then.spec}"


def eigenpairs(
    path: Path,
    operator: SymmetricOperator,
    name: str,
    note: Callable[[str], None],
    agree: Callable[[int], int] = int,
    use: str = "projected out",
    most: int | None = None,
) -> Eigenpairs | None:
    """Read eigenpairs from the file, and confirm them with at most `most` products; None if they cannot be used.

    `note` is called with the reason. `agree` returns the minimum of a number over all processes, since all must be able
    to read the file.
    """
    arrays = read_arrays(path, [f"{what}_{name}" for what in ("eigenvalues", "eigenvectors", "residuals")])
    if not agree(arrays is not None and are_pairs(*arrays.values())) or arrays is None:
        note(f"{name}: {path} has no eigenvectors of this matrix (eig writes them to `out`), so none are {use}")
        return None
    if most == 0:
        note(f"{name}: `max_products` leaves no room to check the eigenvectors of {path}, so none are {use}")
        return None
    known = known_pairs(operator, *(torch.from_numpy(array) for array in arrays.values()), most=most)
    if known is None:
        note(f"{name}: {path} has no converged eigenpairs of this matrix, so none are {use}")
        return None
    return known


def are_pairs(values, vectors, residuals) -> bool:
    """Whether arrays are real numbers of the shapes (k,), (k, n) and (k,)."""
    shapes = values.ndim == 1 and vectors.shape[:1] == values.shape == residuals.shape and vectors.ndim == 2
    return shapes and all(array.dtype in ("float32", "float64") for array in (values, vectors, residuals))


def earlier_which(arrays: Path) -> str | None:
    """The --which of an earlier `eig`; None if its record lacks it."""
    try:
        _, record = load(arrays.with_suffix(".json"), ("eig",))
    except SpectraError:
        return None
    which = record.problem.option("which")
    return which if isinstance(which, str) else None


def leading_eigenpairs(
    session: Any,
    arrays: Path,
    operator: SymmetricOperator,
    name: str,
    needed: Mapping[str, int],
    room: int | None,
    extra: int = 0,
) -> tuple[str, Eigenpairs] | None:
    """Read the first eigenpairs at one end of the spectrum, and return them with that end; None if they do not serve.

    They must be within the tolerance of the settings, also from the stored eigenvalues of the same ranks.

    Args:
        session: the `run.session.Session`; its listener gets a note with the reason if they do not serve.
        arrays: the arrays of the earlier result.
        operator: the matrix.
        name: its name.
        needed: the least number of eigenpairs, for each end (LM or SA) that serves.
        room: the largest number of products; None: no limit.
        extra: how many more to read of LM, if the file has them.
    """
    note, agree, tolerance = session.listener.note, session.processes.least, session.request.settings.tolerance
    which = earlier_which(arrays)
    if not agree(which in needed) or which is None:
        note(f"{name}: {arrays} holds eigenvectors of `which` {which or 'unknown'}, so new ones are computed")
        return None
    if room is not None and room < needed[which]:
        note(f"{name}: `max_products` leaves no room to check the eigenvectors of {arrays}, so new ones are computed")
        return None
    limits = [limit for limit in (room, needed[which] + extra if which == "LM" else None) if limit is not None]
    pairs = eigenpairs(arrays, operator, name, note, agree, use="taken", most=min(limits, default=None))
    if pairs is None:
        return None
    stored = (read_arrays(arrays, [f"eigenvalues_{name}"]) or {})[f"eigenvalues_{name}"].tolist()
    rows = zip(stored, pairs.values.tolist(), pairs.residuals.tolist(), strict=False)
    good = takewhile(lambda row: max(abs(row[0] - row[1]), row[2]) <= tolerance * abs(row[1]), rows)
    count = sum(1 for _ in good)
    if count < needed[which]:
        held = f"{arrays} holds only {count} of {needed[which]} eigenvectors within `tolerance`"
        note(f"{name}: {held}, so new ones are computed")
        return None
    return which, first_pairs(pairs, count)


def first_pairs(pairs: Eigenpairs, count: int) -> Eigenpairs:
    """The first pairs."""
    rows = list(range(count))
    numbers = {name: getattr(pairs, name)[rows] for name in ("values", "residuals", "error_estimates")}
    return replace(pairs, vectors=take_rows(pairs.vectors, rows), **numbers)
