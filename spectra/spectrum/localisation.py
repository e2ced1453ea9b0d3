"""How localised eigenvectors are, overall and within each layer, compared with random vectors.

A random unit vector u of R^n has E sum u_i^4 = 3/(n + 2), and its squared entries are Dirichlet(1/2, ..., 1/2). So its
part in a layer of m parameters has a share of m/n on average and, scaled to norm 1, is a random unit vector of R^m.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spectra.errors import ArgumentError
from spectra.krylov.results import Eigenpairs
from spectra.records.eig import EigResult
from spectra.records.localisation import Localisation
from spectra.records.record import Record


def localisation(
    result: Record | EigResult | Eigenpairs | Any, shapes: Mapping[str, Sequence[int]] | None = None
) -> Localisation:
    """Compute how localised eigenvectors are (inverse participation ratios), overall and by layer.

    The inverse participation ratio sum_i u_i^4 of a unit vector u is 1 where u is a single parameter and 1/n where it
    is spread evenly; random vectors have about 3/n. The result also holds the ratios of random vectors.

    Args:
        result: what `spectra.eig` returns; a saved record of it for one matrix, as `spectra.load_result` returns it;
            `Eigenpairs`; or eigenvectors (k, n), one a row.
        shapes: the shape of each parameter by name, in their order in the vectors. None: the shapes that a record
            holds; without any, all parameters are one layer. Parameters of one module form one layer.

    Returns:
        The ratios, with bounds on how far the error of an eigenvector may change them. The bounds need residuals and
        the order asked for (`which`), which a record holds.

    Raises:
        SpectraError: no eigenvectors were saved, they are not finite, or the shapes do not fit them.
    """
    which = None
    if isinstance(result, Record):
        shapes, which = shapes or result.problem.get("shapes"), result.problem.option("which")
        if len(result.results) != 1:
            raise ArgumentError(
                f"`result`: expected one entry, got {len(result.results)}; give one, such as `record.results[0]`, and "
                "`shapes`"
            )
        (result,) = result.results
    given: Any = result.vectors if isinstance(result, (EigResult, Eigenpairs)) else result
    if given is None:
        raise ArgumentError("`result`: it holds no eigenvectors; run `eig` with `save_vectors`")
    vectors = np.atleast_2d(np.asarray(given.cpu() if hasattr(given, "cpu") else given))
    sines = np.full(len(vectors), np.nan)
    if which and isinstance(result, (EigResult, Eigenpairs)):
        sines = angle_bounds(np.asarray(result.values), np.asarray(result.residuals), which, vectors.shape[1])
    return vector_localisation(vectors, layer_sizes(shapes, vectors.shape[1]), sines)


def localisation_of(pairs: Eigenpairs, which: str, shapes: Mapping[str, Sequence[int]] | None) -> Localisation | None:
    """The localisation of eigenpairs in the order of `which`; None if the vectors are missing or not finite."""
    vectors = pairs.vectors.numpy()
    if not pairs.holds_vectors or not vectors.size or not all(np.isfinite(row).all() for row in vectors):
        return None
    sines = angle_bounds(pairs.values.numpy(), pairs.residuals.numpy(), which, vectors.shape[1], pairs.complement)
    return vector_localisation(vectors, layer_sizes(shapes, vectors.shape[1]), sines)


def angle_bounds(
    values: np.ndarray,
    residuals: np.ndarray,
    which: str,
    size: int,
    complement: tuple[float, float] | None = None,
) -> np.ndarray:
    """Bound the sines of the angles (k,) between computed and true eigenvectors; nan if there is no bound.

    The bound is the residual over the distance from the value to all other eigenvalues (Davis, Kahan 1970), if none
    was missed. Eigenvalues that were not computed lie inside the computed ones, and in `complement` if it is known.
    Without `complement`, there is no bound for the innermost eigenvector.

    Args:
        values: eigenvalues (k,) in the order of `which`.
        residuals: the residuals |A u - lambda u| (k,).
        which: LM, LA, SA or BE.
        size: the number of rows n of the matrix.
        complement: an interval that contains the eigenvalues that were not computed.
    """
    apart = np.abs(values[:, None] - values) - residuals
    np.fill_diagonal(apart, np.inf)
    distance = apart.min(axis=1)
    if len(values) < size:
        low, high = uncomputed_interval(values, residuals, which)
        if complement:
            low, high = max(low, complement[0]), min(high, complement[1])
        distance = np.minimum(distance, np.maximum(low - values, values - high))
    with np.errstate(divide="ignore", invalid="ignore"):
        sines = residuals / distance
    return np.where((distance > 0) & (sines < 1), sines, np.nan)


def uncomputed_interval(values: np.ndarray, residuals: np.ndarray, which: str) -> tuple[float, float]:
    """The interval that contains the eigenvalues that were not computed."""
    if which == "LM":
        last = int(np.argmin(np.abs(values)))
        most = float(np.abs(values[last]) + residuals[last])
        return -most, most
    top = {"LA": len(values), "SA": 0, "BE": (len(values) + 1) // 2}[which]
    high = (values + residuals)[:top].min(initial=np.inf)
    return float((values - residuals)[top:].max(initial=-np.inf)), float(high)


def layer_sizes(shapes: Mapping[str, Sequence[int]] | None, size: int) -> dict[str, int]:
    """The number of parameters of each module, in the order of the vectors.

    Raises ArgumentError if the shapes do not add up to `size`.
    """
    if not shapes:
        return {"": size}
    total = sum(math.prod(shape) for shape in shapes.values())
    if total != size:
        raise ArgumentError(
            f"`shapes`: they have {total:,} entries in total, but eigenvectors have {size:,}; give the shapes of the "
            "chosen parameters"
        )
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        layer = name.rpartition(".")[0]
        sizes[layer] = sizes.get(layer, 0) + math.prod(shape)
    return sizes


def vector_localisation(vectors: np.ndarray, sizes: Mapping[str, int], sines: np.ndarray) -> Localisation:
    """Compute the localisation of non-zero vectors (k, n), with entries ordered layer by layer.

    `sines` (k,) bound the sine s of the angle to the true eigenvector u: for v of norm 1, |u'Pu - v'Pv| <= s for every
    projector P.
    """
    size, layers = vectors.shape[1], np.array(list(sizes.values()))
    ends = np.cumsum(layers)[:-1]
    powers = [powers_of(np.split(row, ends)) for row in vectors]
    shares, fourths, sixths, largest = (np.array(some) for some in zip(*powers, strict=True))
    ratios = fourths.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        by_layer = np.where(shares > 0, fourths / shares**2, np.nan)
    return Localisation(
        inverse_participation=ratios,
        random=3 / (size + 2),
        random_deviation=deviation(size),
        layers=list(sizes),
        sizes=list(sizes.values()),
        shares=shares,
        inverse_participation_by_layer=by_layer,
        random_by_layer=3 / (layers + 2),
        inverse_participation_error=fourths_error(ratios, sixths, largest, sines),
        share_error=sines,
    )


def powers_of(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, float, float]:
    """The sums of v_i^2 and v_i^4 by part, the sum of v_i^6, and the largest v_i^2, for a vector scaled to norm 1."""
    scale = max(float(np.abs(part).max(initial=0.0)) for part in parts)
    if not (np.isfinite(scale) and scale):
        raise ArgumentError("`result`: an eigenvector is zero or not finite; leave it out")
    sums = np.zeros((3, len(parts)))
    for i, part in enumerate(parts):  # one at a time, because all in float64 may not fit memory
        squares = np.square(part.astype(np.float64) / scale)
        sums[:, i] = squares.sum(), squares @ squares, (squares**2) @ squares
    length = sums[0].sum()
    return sums[0] / length, sums[1] / length**2, float(sums[2].sum() / length**3), 1 / float(length)


def fourths_error(ratios: np.ndarray, sixths: np.ndarray, largest: np.ndarray, sines: np.ndarray) -> np.ndarray:
    """Bound |sum u_i^4 - sum v_i^4| (k,), from sum v_i^4 (`ratios`), sum v_i^6 and the largest v_i^2.

    With u = c v + s w, and w of norm 1 orthogonal to v, |sum v_i^3 w_i|^2 <= sum v_i^6 - (sum v_i^4)^2.
    """
    s, c = sines, np.sqrt(1 - sines**2)
    slope = np.sqrt(np.maximum(sixths - ratios**2, 0))
    mixed = 4 * c**3 * s * slope + 6 * (c * s) ** 2 * largest + 4 * c * s**3 * np.sqrt(largest)
    return (1 - c**4) * ratios + mixed + s**4


def deviation(size: int) -> float:
    """The standard deviation of sum u_i^4 over random unit vectors, from their moments of order 8."""
    squared = (105 + 9 * (size - 1)) / ((size + 2) * (size + 4) * (size + 6))
    return math.sqrt(max(0.0, squared - (3 / (size + 2)) ** 2))
