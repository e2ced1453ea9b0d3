"""Eigenpairs that an earlier `eig` has left where an option says, or else in --out: they spare products."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from spectra.cli.terminal import note


def source(options: dict[str, Any], option: str = "deflate") -> Path | None:
    """The arrays of the earlier result, if there is one. Raises SpectraError where the option names none."""
    from spectra.records.files import read

    if options[option]:
        path, _ = read(options[option], ("eig",), f"--{option}")
        return path.with_suffix(".npz")
    if options["out"] and (options["out"] / "eig.npz").exists():
        return options["out"] / "eig.npz"
    return None


def eigenpairs(
    path: Path,
    operator,
    name: str,
    agree: Callable[[int], int] = int,
    use: str = "projected out",
    most: int | None = None,
):
    """What the file knows of this matrix, checked by a product a pair, `most` at most; None, and why, if it serves not.

    `agree` tells each of several processes the least of their numbers: all must be able to read it.
    """
    import torch

    from spectra.krylov.deflation import known_pairs
    from spectra.records.files import read_arrays

    arrays = read_arrays(path, [f"{what}_{name}" for what in ("eigenvalues", "eigenvectors", "residuals")])
    if not agree(arrays is not None and are_pairs(*arrays.values())):
        note(f"{name}: {path} holds no eigenvectors of it (eig writes them with --out), so none are {use}")
        return None
    if most == 0:
        note(f"{name}: --max-products leaves no room to check the eigenvectors of {path}, so none are {use}")
        return None
    known = known_pairs(operator, *(torch.from_numpy(array) for array in arrays.values()), most=most)
    if known is None:
        note(f"{name}: {path} holds no converged eigenpairs of this matrix, so none are {use}")
        return None
    return known


def are_pairs(values, vectors, residuals) -> bool:
    """Whether arrays are real numbers of the shapes (k,), (k, n) and (k,)."""
    shapes = values.ndim == 1 and vectors.shape[:1] == values.shape == residuals.shape and vectors.ndim == 2
    return shapes and all(array.dtype in ("float32", "float64") for array in (values, vectors, residuals))


def end_of(arrays: Path) -> str | None:
    """The --which of an earlier `eig`, where its record tells."""
    from spectra.errors import SpectraError
    from spectra.records.files import read

    try:
        _, record = read(arrays.with_suffix(".json"), ("eig",))
    except SpectraError:
        return None
    options = record["problem"].get("options")
    which = options.get("which") if isinstance(options, dict) else None
    return which if isinstance(which, str) else None
