"""Compare several matrices of one size: distances, eigenspaces and spectra, each with its error.

All matrices are multiplied by the same random vectors, so that in differences the errors of common parts cancel. This
module knows operators, nothing of networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from spectra.arguments import chosen_generator, require_integer, require_number, wrong
from spectra.comparison.frobenius import FrobeniusProducts, frobenius_products
from spectra.comparison.matrix_summary import MatrixSummary, common_basis, find_measure, summarise_matrix, timed
from spectra.comparison.pairs import Ends, Pair, compare_pair
from spectra.defaults import COMPARE_PROBES, COMPARE_STEPS, TOLERANCE, K
from spectra.errors import ArgumentError, SpectraError
from spectra.given_operator import as_operator
from spectra.krylov.limits import refuse_k
from spectra.krylov.results import Progress
from spectra.operator import Counting, SymmetricOperator
from spectra.optimizer.preconditioner import Preconditioner
from spectra.vectors import without_autocast
from spectra.wording import outline

Watch = Callable[[str], AbstractContextManager[Progress | None]]


@dataclass
class Comparison:
    """The results of `compare`: a summary of each matrix and a comparison of each pair, in the order given."""

    k: int
    summaries: dict[str, MatrixSummary]
    basis: Tensor  # (r, n), orthonormal: the span of all eigenvectors found
    pairs: list[Pair] = field(default_factory=list)

    __repr__ = outline

    @property
    def dimension(self) -> int:
        """The number of rows n of the matrices."""
        return self.basis.shape[1]

    def pair(self, first: str, second: str) -> Pair:
        """The comparison of these two matrices, in this order."""
        return next(pair for pair in self.pairs if (pair.first, pair.second) == (first, second))


@contextmanager
def quiet(what: str) -> Iterator[None]:
    """A context that reports no progress."""
    yield None


@without_autocast()
def compare(
    operators: Mapping[str, Any],
    *,
    k: int = K,
    probes: int = COMPARE_PROBES,
    steps: int = COMPARE_STEPS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    generator: torch.Generator | None = None,
    max_products: int | None = None,
    known: Mapping[str, MatrixSummary] = MappingProxyType({}),
    precondition: Preconditioner | None = None,
    watch: Watch = quiet,
) -> Comparison:
    """Compare two or more symmetric matrices of one size: eigenvalues, leading eigenspaces, distances and spectra.

    It takes some 5 k + (1 + probes) steps products of each matrix, and more for each pair.

    Args:
        operators: the matrices (n, n) by name, two or more, in any form that `spectra.as_operator` takes.
        k: the number of leading eigenpairs by |eigenvalue|; one more is found, for the gap after them.
        probes: the number of random vectors, for distances and for spectra.
        steps: the products that each probe of a spectrum takes, and the most for the extreme eigenvalues of a
            difference; 0: neither spectra nor extreme eigenvalues are computed.
        tolerance: the residual over |eigenvalue| at which an eigenpair has converged.
        seed: the seed of all random vectors, used where no `generator` is given.
        generator: a torch.Generator on the CPU, used instead of the seed.
        max_products: the most products with one matrix; what no longer fits is None or missing in the result.
        known: results of an earlier comparison for some of the matrices, made with the same settings and seed.
        precondition: P, as `spectra.preconditioner` returns it: each matrix A is compared as P^-1/2 A P^-1/2, plus the
            optimizer's weight decay.
        watch: a function from the name of the next step to a context in which methods report their progress.

    Returns:
        A `Comparison`, which `spectra.comparison_figure` draws.

    Raises:
        SpectraError: k > n, the matrices differ in size, or there are fewer than two.
    """
    operators = of_one_size(operators)
    if precondition is not None:
        operators = {name: preconditioned(precondition, operator) for name, operator in operators.items()}
    n = next(iter(operators.values())).shape[0]
    refuse_k(k, n)
    require_integer("probes", probes)
    require_integer("steps", steps, least=0)
    require_number("tolerance", tolerance)
    require_integer("max_products", max_products, optional=True)
    generator = chosen_generator(seed, generator)
    limit = math.inf if max_products is None else max_products
    seed = int(torch.randint(2**62, (), generator=generator))

    def again(use: int) -> torch.Generator:
        """A generator that draws the same numbers for every matrix."""
        return torch.Generator().manual_seed(seed + use)

    summaries: dict[str, MatrixSummary] = {}
    for name, operator in operators.items():
        if name in known:
            summaries[name] = replace(known[name], operator=Counting(operator), seconds=0.0)
            continue
        with watch(name) as progress:
            search = {"generator": again(0), "max_products": max_products, "progress": progress}
            summaries[name] = summarise_matrix(operator, min(k + 1, n), tolerance=tolerance, **search)
    basis, leading = common_basis(summaries)
    with watch("the same vectors") as progress, timed(summaries.values()):
        products = multiply(summaries, basis, probes, limit, again(1), progress)
    for name, summary in summaries.items():
        if not steps or summary.measure is not None:
            continue
        with watch(f"{name}, spectrum") as progress, timed([summary]):
            find_measure(summary, probes, steps, limit, again(2), progress)
    comparison = Comparison(k, summaries, basis)
    if not products:
        return comparison
    for names in combinations(summaries, 2):
        two = summaries[names[0]], summaries[names[1]]
        with watch(" - ".join(names)) as progress, timed(two):
            ends = Ends(steps, limit, again(3), progress)
            comparison.pairs.append(compare_pair(names, two, products, leading, k, ends))
    return comparison


def of_one_size(operators: Mapping[str, Any]) -> dict[str, SymmetricOperator]:
    """Convert the matrices to operators. Raises SpectraError if their sizes differ, or for fewer than two."""
    if not isinstance(operators, Mapping):
        raise ArgumentError(f"`operators`: expected a dict of matrices by name, got {type(operators).__name__}")
    refuse_single_matrix(operators, "operators", "give two matrices or more")
    found = {name: as_operator(operator, f"operators[{name!r}]") for name, operator in operators.items()}
    sizes = {name: operator.shape[0] for name, operator in found.items()}
    if len(set(sizes.values())) > 1:
        raise ArgumentError(f"`operators`: the matrices have different sizes, {sizes}; give matrices of one size")
    return found


def preconditioned(precondition: Any, operator: SymmetricOperator) -> SymmetricOperator:
    """The preconditioned matrix of an operator. Raises ArgumentError if `precondition` has another type."""
    if not isinstance(precondition, Preconditioner):
        raise wrong("precondition", precondition, "what spectra.preconditioner returns")
    return precondition.around(operator)


def refuse_single_matrix(names: Collection[str], argument: str, way_out: str) -> None:
    """Raise SpectraError for fewer than two matrices."""
    if len(names) < 2:
        named = " ".join(names) or "(none)"
        raise SpectraError(f"`{argument}` {named}: there is no second matrix to compare with; {way_out}")


def multiply(
    summaries: Mapping[str, MatrixSummary],
    basis: Tensor,
    probes: int,
    limit: float,
    generator: torch.Generator,
    progress: Progress | None,
) -> FrobeniusProducts | None:
    """Multiply all matrices by the same vectors and set norms and traces; None if the budget is too small."""
    room = limit - max(summary.products for summary in summaries.values()) - len(basis)
    if room < 1:
        return None
    operators = {name: summary.operator for name, summary in summaries.items()}
    products = frobenius_products(operators, basis, int(min(probes, room)), generator, progress)
    for name, summary in summaries.items():
        summary.norm, summary.trace = products.norm(name), products.trace(name)
    return products
