"""Measurements: the answer of a method for one matrix and its cost, of which results are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spectra.curvature.finite_differences import FiniteDifferences
from spectra.defaults import IEEE
from spectra.krylov import results
from spectra.krylov.results import Eigenpairs, Progress
from spectra.krylov.streams import BESIDE_EIGENVECTORS, stream
from spectra.memory import basis_place
from spectra.operator import Counting, Noise, SymmetricOperator, find_on, reference
from spectra.product_checks import check_operator, measure_noise
from spectra.run.subject import Matrix
from spectra.vectors import gather_on_first

ON_HOST = "; basis in host memory"


@dataclass(frozen=True)
class Measurement:
    """The answer of a method for one matrix, and what it cost."""

    curvature: str
    answer: Any
    products: int
    seconds: float
    setup_seconds: float
    noise: float | None  # relative, of one product: in ieee as `check_operator`, else as `measure_noise` has found it
    path: str  # how products were made
    kept_bytes: int  # between products
    peak_bytes: int  # with one product
    semidefinite: bool  # no eigenvalue is negative, by definition
    derivative_check: dict[str, Any] | None = None  # how a product compares with differences; None: not asked for
    precision: str = IEEE  # of products
    noise_norm: float | None = None  # of products of lower precision: the largest |Ev| / |v| that was seen
    ieee_products: int = 0  # of all products, those in ieee or exact, where the others are noisy
    finite_difference: dict[str, Any] | None = None  # how products are differences, and how far off; None: exact
    projected_out: int = 0  # eigenpairs of an earlier run
    earlier: Path | None = None  # that run's arrays

    @classmethod
    def of(cls, packed: dict[str, Any]) -> Measurement:
        """The one that was `packed`."""
        kind, fields = packed["answer"]
        earlier = packed["earlier"] and Path(packed["earlier"])
        return cls(**{**packed, "answer": getattr(results, kind)(**fields), "earlier": earlier})

    def packed(self) -> dict[str, Any]:
        """The fields as tensors on the CPU, numbers and texts, to be saved."""
        fields = {name: value.cpu() if hasattr(value, "cpu") else value for name, value in vars(self.answer).items()}
        answer, earlier = (type(self.answer).__name__, fields), self.earlier and str(self.earlier)
        return {**vars(self), "answer": answer, "earlier": earlier}

    def cost(self) -> dict[str, Any]:
        """The cost by the names that records give its parts."""
        return {
            "converged": self.answer.converged,
            "products": self.products,
            "seconds": self.seconds,
            "setup_seconds": self.setup_seconds,
            "noise": self.noise,
            "precision": self.precision,
            "noise_norm": self.noise_norm,
            "ieee_products": self.ieee_products,
            "finite_difference": self.finite_difference,
            "derivative_check": self.derivative_check,
            "path": self.path,
            "kept_bytes": self.kept_bytes,
            "peak_bytes": self.peak_bytes,
            **({"projected_out": self.projected_out, "projected_from": str(self.earlier)} if self.earlier else {}),
        }


def measure(
    matrix: Matrix,
    method: Callable[..., Any],
    operator: SymmetricOperator | None = None,
    *,
    seed: int,
    check: bool = True,
    known: Callable[[Counting], Eigenpairs | None] | None = None,
    earlier: Path | None = None,
    left: Callable[[int], int | None] = lambda spent: None,
    progress: Progress | None = None,
) -> Measurement:
    """One matrix prepared, checked, and given to `method(operator, generator=, max_products=, progress=)`.

    Args:
        operator: what the method multiplies by, where that is not the matrix itself.
        check: see first that products are repeatable and symmetric. Raises SpectraError where they are not.
        known: finds eigenpairs of an earlier run, by products that count; the method is then given them as `known=`.
        earlier: that run's arrays.
        left: how many products the method may make, when so many have been made before it.
    """
    matrix.prepare()
    start, counted = time.perf_counter(), Counting(matrix if operator is None else operator)
    generator = stream(seed)
    noise = check_operator(counted, generator) if check else None
    counted.unsteady = noise or 0.0
    if reference(counted) is not counted:
        counted.noise = measure_noise(counted, generator)
    pairs = known(counted) if known else None
    if pairs:
        generator = stream(seed, BESIDE_EIGENVECTORS)
    spent = counted.products
    answer = method(
        counted,
        **({"known": pairs} if known else {}),
        generator=generator,
        max_products=left(spent),
        progress=progress,
    )
    seconds = time.perf_counter() - start
    return measured(
        matrix,
        counted,
        gathered(answer),
        products=spent + answer.products,
        seconds=seconds,
        setup_seconds=matrix.setup_seconds,
        **noise_fields(counted, noise),
        noise_found=counted.noise,
        projected_out=len(pairs.values) if pairs else 0,
        earlier=earlier if pairs else None,
    )


def noise_fields(counted: Counting, checked: float | None) -> dict[str, Any]:
    """What is told of the noise of products: in ieee what the check has found."""
    if counted.noise is None:
        return {"noise": checked}
    noise = counted.noise
    return {"noise": noise.relative, "noise_norm": noise.norm, "ieee_products": counted.ieee_products}


def gathered(answer: Any) -> Any:
    """The answer with its eigenvectors in host memory, those that are sharded together at rank 0, which writes them."""
    return replace(answer, vectors=gather_on_first(answer.vectors).cpu()) if hasattr(answer, "vectors") else answer


def measured(
    matrix: Matrix, operator: SymmetricOperator, answer: Any, noise_found: Noise | None = None, **cost: Any
) -> Measurement:
    """The answer beside what a matrix tells of itself, and of the noise that was found of its products.

    Args:
        operator: what the method multiplied by: the matrix, or one around it.
    """
    return Measurement(
        curvature=matrix.name,
        answer=answer,
        path=matrix.path + (ON_HOST if basis_place() == "host" and matrix.device.type != "cpu" else ""),
        precision=matrix.precision,
        kept_bytes=matrix.kept_bytes,
        peak_bytes=matrix.peak_bytes,
        semidefinite=matrix.semidefinite and find_on("sign", operator) != -1,
        derivative_check=matrix.derivative_check and asdict(matrix.derivative_check),
        finite_difference=noise_found and told_of(matrix, noise_found),
        **cost,
    )


def told_of(matrix: Any, noise: Noise) -> dict[str, Any] | None:
    """How products are finite differences, and how far off one is; None where they are not."""
    if not isinstance(matrix, FiniteDifferences):
        return None
    told = {"form": matrix.form, "step": matrix.step, "length": matrix.length, "error": noise.random}
    return told | {"estimated": matrix.not_exact is not None, "not_exact": matrix.not_exact}


def in_ieee_instead(asked: str, results: Sequence[Any]) -> list[str]:
    """A line for each matrix whose products are in ieee, where a lower precision was asked for."""
    lines = []
    for result in results:
        if asked != IEEE and result.precision == IEEE:
            why = result.path.partition(f"not {asked}: ")[2] or f"method {result.method} takes no others"
            lines.append(f"{result.curvature}: products are in ieee, not in {asked}: {why}")
    return lines


def imprecise(found: Sequence[Measurement], dtype: Any, computes: str) -> list[str]:
    """A line for each matrix whose products `check_operator` has found less precise than vectors of this type.

    Args:
        computes: what makes products, in words.
    """
    limit = torch.finfo(dtype).eps ** 0.5
    return [
        f"{m.curvature}: products are off by {m.noise:.0e} of their size, as {computes} computes in a lower "
        f"precision than {str(dtype).removeprefix('torch.')}"
        for m in found
        if m.precision == IEEE and not m.finite_difference and m.noise is not None and m.noise > limit
    ]
