"""Measurements: the answer of a method for one matrix and its cost, from which results are made."""

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
from spectra.run.matrix_source import Matrix
from spectra.vectors import gather_on_first

ON_HOST = "; basis in host memory"


@dataclass(frozen=True)
class Measurement:
    """The answer of a method for one matrix, and its cost."""

    curvature: str
    answer: Any
    products: int
    seconds: float
    setup_seconds: float
    noise: float | None  # relative, of one product, from `check_operator` in ieee, otherwise from `measure_noise`
    path: str  # how products were computed
    kept_bytes: int  # between products
    peak_bytes: int  # with one product
    semidefinite: bool  # whether no eigenvalue is negative, by definition
    derivative_check: dict[str, Any] | None = None  # a product compared with finite differences; None: not requested
    precision: str = IEEE  # of products
    noise_norm: float | None = None  # the largest measured |Ev| / |v| of products in lower precision
    ieee_products: int = 0  # the number in ieee or exact, if others are noisy
    finite_difference: dict[str, Any] | None = None  # the form and error of finite differences; None: exact
    projected_out: int = 0  # eigenpairs of an earlier run
    earlier: Path | None = None  # that run's arrays

    @classmethod
    def of(cls, packed: dict[str, Any]) -> Measurement:
        """Restore a measurement from the result of `packed`."""
        kind, fields = packed["answer"]
        earlier = packed["earlier"] and Path(packed["earlier"])
        return cls(**{**packed, "answer": getattr(results, kind)(**fields), "earlier": earlier})

    def packed(self) -> dict[str, Any]:
        """The fields as CPU tensors, numbers and strings, to be saved."""
        fields = {name: value.cpu() if hasattr(value, "cpu") else value for name, value in vars(self.answer).items()}
        answer, earlier = (type(self.answer).__name__, fields), self.earlier and str(self.earlier)
        return {**vars(self), "answer": answer, "earlier": earlier}

    def cost(self) -> dict[str, Any]:
        """The cost with the field names of records."""
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
    """Prepare and check one matrix, and apply `method(operator, generator=, max_products=, progress=)` to it.

    Args:
        operator: the operator that the method multiplies by; None: the matrix itself.
        check: check first that products are repeatable and symmetric; raises SpectraError if they are not.
        known: returns eigenpairs of an earlier run, with counted products; the method gets them as `known=`.
        earlier: the arrays of that run.
        left: returns the number of products left for the method, given the number already spent.
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
    """The fields of a measurement about the noise of products; `checked` is that from the check in ieee."""
    if counted.noise is None:
        return {"noise": checked}
    noise = counted.noise
    return {"noise": noise.relative, "noise_norm": noise.norm, "ieee_products": counted.ieee_products}


def gathered(answer: Any) -> Any:
    """The answer with its eigenvectors in host memory; sharded ones are gathered on rank 0, which writes them."""
    return replace(answer, vectors=gather_on_first(answer.vectors).cpu()) if hasattr(answer, "vectors") else answer


def measured(
    matrix: Matrix, operator: SymmetricOperator, answer: Any, noise_found: Noise | None = None, **cost: Any
) -> Measurement:
    """Make the measurement of an answer, with the properties of its matrix and the measured noise of products.

    Args:
        operator: the operator that the method multiplied by: the matrix, or a wrapper of it.
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
        finite_difference=noise_found and difference_fields(matrix, noise_found),
        **cost,
    )


def difference_fields(matrix: Any, noise: Noise) -> dict[str, Any] | None:
    """The form and the error of finite-difference products; None if products are exact."""
    if not isinstance(matrix, FiniteDifferences):
        return None
    found = {"form": matrix.form, "step": matrix.step, "length": matrix.length, "error": noise.random}
    return found | {"estimated": matrix.not_exact is not None, "not_exact": matrix.not_exact}


def in_ieee_instead(requested: str, results: Sequence[Any]) -> list[str]:
    """A note for each matrix with products in ieee, if a lower precision was requested."""
    lines = []
    for result in results:
        if requested != IEEE and result.precision == IEEE:
            why = result.path.partition(f"not {requested}: ")[2] or f"method {result.method} needs ieee"
            lines.append(f"{result.curvature}: products are in ieee, not in {requested}: {why}")
    return lines


def imprecise(found: Sequence[Measurement], dtype: Any, computes: str) -> list[str]:
    """A note for each matrix with products that `check_operator` found less precise than vectors of this dtype.

    Args:
        computes: what computes products, as text.
    """
    limit = torch.finfo(dtype).eps ** 0.5
    return [
        f"{m.curvature}: products have a relative error of {m.noise:.0e}, since {computes} computes in a lower "
        f"precision than {str(dtype).removeprefix('torch.')}"
        for m in found
        if m.precision == IEEE and not m.finite_difference and m.noise is not None and m.noise > limit
    ]
