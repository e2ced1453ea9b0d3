"""How localised eigenvectors are, as a whole and inside of each layer, against random vectors.

A random unit vector u of R^n has E sum u_i^4 = 3/(n + 2), and its squared entries are Dirichlet(1/2, ..., 1/2). So its
part in a layer of m parameters has a share of m/n on average and, at unit norm, is a random unit vector of R^m.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spectra.arguments import wrong
from spectra.errors import ArgumentError
from spectra.krylov.results import Eigenpairs
from spectra.records.eig import EigResult
from spectra.records.localisation import Localisation
from spectra.records.record import Record


def localisation(
    result: Record | EigResult | Eigenpairs | Any, shapes: Mapping[str, Sequence[int]] | None = None
) -> Localisation:
    """Compute the inverse participation ratios of eigenvectors, by layer too, beside those of random vectors.

    Args:
        result: a record of `eig` for one matrix, as `spectra.load_result` returns it; an entry of one; `Eigenpairs`; or
            eigenvectors (k, n).
        shapes: of the parameters, by name, in the order in which they lie in the vectors. If None, those that a record
            holds; without any there is one layer. Parameters of one module are one layer.

    Returns:
        The ratios, which have no error but that of the eigenvectors.

    Raises:
        SpectraError: no eigenvectors were saved, they are not finite, or shapes do not fit them.
    """
    if isinstance(result, Record):
        shapes = shapes or result.problem.get("shapes")
        if len(result.results) != 1:
            raise wrong("result", f"a record of {len(result.results)} matrices", "one entry, and `shapes`")
        (result,) = result.results
    given: Any = result.vectors if isinstance(result, (EigResult, Eigenpairs)) else result
    if given is None:
        raise ArgumentError("`result`: holds no eigenvectors; `eig` keeps them with `save_vectors`")
    vectors = np.atleast_2d(np.asarray(given.cpu() if hasattr(given, "cpu") else given, dtype=np.float64))
    if not np.isfinite(vectors).all() or not (lengths := np.linalg.norm(vectors, axis=1, keepdims=True)).all():
        raise ArgumentError("`result`: an eigenvector is zero or not finite")
    return of_unit_vectors(vectors / lengths, layer_sizes(shapes, vectors.shape[1]))


def layer_sizes(shapes: Mapping[str, Sequence[int]] | None, size: int) -> dict[str, int]:
    """The number of parameters of each module, in the order of the vectors. Raises ArgumentError."""
    if not shapes:
        return {"": size}
    total = sum(math.prod(shape) for shape in shapes.values())
    if total != size:
        raise ArgumentError(f"`shapes`: {total:,} parameters, for eigenvectors of {size:,}; give those chosen alone")
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        layer = name.rpartition(".")[0]
        sizes[layer] = sizes.get(layer, 0) + math.prod(shape)
    return sizes


def of_unit_vectors(vectors: np.ndarray, sizes: Mapping[str, int]) -> Localisation:
    """The localisation of unit vectors (k, n) whose entries lie layer by layer."""
    size = vectors.shape[1]
    ends = np.cumsum([0, *sizes.values()])[:-1]
    shares, fourths = (np.add.reduceat(vectors**power, ends, axis=1) for power in (2, 4))
    with np.errstate(divide="ignore", invalid="ignore"):
        by_layer = np.where(shares > 0, fourths / shares**2, np.nan)
    return Localisation(
        inverse_participation=fourths.sum(axis=1),
        random=3 / (size + 2),
        random_deviation=deviation(size),
        layers=list(sizes),
        sizes=list(sizes.values()),
        shares=shares,
        inverse_participation_by_layer=by_layer,
        random_by_layer=3 / (np.array(list(sizes.values())) + 2),
    )


def deviation(size: int) -> float:
    """The standard deviation of sum u_i^4 over random unit vectors, from their moments of order 8."""
    squared = (105 + 9 * (size - 1)) / ((size + 2) * (size + 4) * (size + 6))
    return math.sqrt(max(0.0, squared - (3 / (size + 2)) ** 2))
