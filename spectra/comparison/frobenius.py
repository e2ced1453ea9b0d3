"""Estimate the Frobenius products of several matrices: exactly on a subspace, by random vectors on its complement.

For U (r, n) with orthonormal rows and P = I - U'U,

    <A, B> = 2 <AU', BU'> - <UAU', UBU'> + <PAP, PBP>,        tr A = tr UAU' + tr PAP.

The first terms take r products of each matrix. The last are n - r times the means of (PAw)'(PBw) and w'Aw over w
uniform on the unit sphere of the complement, so that only the complement of U has a random error. The same w for all
matrices makes the errors of differences small if the matrices are similar.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from spectra.krylov.blocks import columns, fitting_vectors
from spectra.krylov.results import Progress
from spectra.operator import Deflated, SymmetricOperator, random_vectors
from spectra.spectrum.estimates import Estimate, jackknife_of_means
from spectra.vectors import map_shards, norms, row_dots, sum_shards


@dataclass(frozen=True)
class FrobeniusProducts:
    """The inner products <A, B> and traces of q matrices and of their differences, s = q + q (q - 1) / 2 items in all.

    `items` gives the index of A under (A,) and of A - B under (A, B). Products of A - B are computed from differences
    of images, which avoids cancellation.
    """

    items: dict[tuple[str, ...], int]
    exact: np.ndarray  # (s, s), the exact part of the products
    samples: np.ndarray  # (m, s, s), with the rest as their mean
    exact_traces: np.ndarray  # (s,)
    trace_samples: np.ndarray  # (m, s)
    inside: dict[str, np.ndarray]  # U A U' (r, r) of each matrix

    def norm(self, *item: str) -> Estimate:
        """The norm |A|_F, or |A - B|_F."""
        i = self.items[item]
        return jackknife_of_means(lambda gram: root(gram[..., i, i]), self.exact, self.samples)

    def trace(self, *item: str) -> Estimate:
        """The trace tr A, or tr (A - B)."""
        i = self.items[item]
        return jackknife_of_means(lambda traces: traces[..., i], self.exact_traces, self.trace_samples)

    def distance(self, first: str, second: str) -> Estimate:
        """The relative distance |A - B|_F / |A|_F."""
        i, d = self.items[first,], self.items[first, second]
        return self._ratio(lambda gram: root(gram[..., d, d] / gram[..., i, i]))

    def cosine(self, first: str, second: str) -> Estimate:
        """The cosine <A, B> / (|A|_F |B|_F)."""
        i, j = self.items[first,], self.items[second,]
        return self._ratio(lambda gram: gram[..., i, j] / root(gram[..., i, i] * gram[..., j, j]))

    def scale(self, first: str, second: str) -> Estimate:
        """The scale c* = <A, B> / |B|_F^2 that makes |A - c B|_F least."""
        i, j = self.items[first,], self.items[second,]
        return self._ratio(lambda gram: gram[..., i, j] / gram[..., j, j])

    def scaled_distance(self, first: str, second: str) -> Estimate:
        """The distance |A - c* B|_F / |A|_F, the sine of the angle between A and B, computed accurately from A - B."""
        i, j, d = self.items[first,], self.items[second,], self.items[first, second]

        def sine(gram: np.ndarray) -> np.ndarray:
            left = gram[..., d, d] - gram[..., d, j] ** 2 / gram[..., j, j]
            return root(left / gram[..., i, i])

        return self._ratio(sine)

    def _ratio(self, statistic) -> Estimate:
        """An estimate of a ratio; nan without a warning if a matrix is zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return jackknife_of_means(statistic, self.exact, self.samples)


def frobenius_products(
    operators: Mapping[str, SymmetricOperator],
    basis: Tensor,
    probes: int,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> FrobeniusProducts:
    """Estimate all <A, B> from products with an orthonormal `basis` (r, n) and with `probes` random vectors.

    All matrices must have one shape. It takes r + probes products of each, without probes if the basis spans all.
    """
    first, pairs = next(iter(operators.values())), list(combinations(operators, 2))
    complement, rest = Deflated(first, basis), first.shape[0] - len(basis)
    width = columns(fitting_vectors(first), 2 * len(operators))
    done = 0

    def images(vectors: Tensor) -> dict[Hashable, Tensor]:
        nonlocal done
        done += len(vectors) * len(operators)
        made: dict[Hashable, Tensor] = {
            name: (operator @ vectors.T.contiguous()).T for name, operator in operators.items()
        }
        if progress:
            progress(products=done)
        return made | {(a, b): made[a] - made[b] for a, b in pairs}

    grams, inside = [], []
    for block in basis.split(width) if len(basis) else ():
        made = images(block)
        grams.append(2 * gram(made).sum(axis=0))
        inside.append([as_array(sum_shards(torch.matmul, basis, image.T)) for image in made.values()])
    count = len(operators) + len(pairs)
    inner = np.concatenate(inside, axis=2) if inside else np.zeros((count, 0, 0))

    samples, traces = [np.zeros((0, count, count))], [np.zeros((0, count))]
    for start in range(0, probes if rest else 0, width):
        w = unit(complement.project(random_vectors(first, min(width, probes - start), generator).T).T)
        made = images(w)
        traces.append(rest * np.stack([as_array(row_dots(w, image)) for image in made.values()], axis=1))
        samples.append(rest * gram({name: complement.project(image.T).T for name, image in made.items()}))
    keys = [*((name,) for name in operators), *pairs]
    return FrobeniusProducts(
        items={key: i for i, key in enumerate(keys)},
        exact=sum(grams, np.zeros((count, count))) - np.einsum("iab,jab->ij", inner, inner),
        samples=np.concatenate(samples),
        exact_traces=np.trace(inner, axis1=1, axis2=2),
        trace_samples=np.concatenate(traces),
        inside=dict(zip(operators, inner, strict=False)),
    )


def gram(images: Mapping[Hashable, Tensor]) -> np.ndarray:
    """Inner products (c, s, s) of the same rows of s images (c, n), accumulated in float64."""
    rows = zip(*images.values(), strict=True)
    return np.stack([as_array(sum_shards(square, torch.stack(same))) for same in rows])


def square(rows: Tensor) -> Tensor:
    """The inner products (k, k), float64, of rows (k, n)."""
    return rows.double() @ rows.double().T


def root(squares: np.ndarray) -> np.ndarray:
    """The square root; zero for values that rounding made negative."""
    return np.sqrt(np.maximum(squares, 0))


def unit(rows: Tensor) -> Tensor:
    """Rows (k, n) divided by their lengths."""
    lengths = norms(rows).to(rows.dtype)[:, None]
    return map_shards(lambda part: part / lengths, rows)


def as_array(tensor: Tensor) -> np.ndarray:
    """The tensor as a float64 NumPy array."""
    return tensor.double().cpu().numpy()
