"""The table of an evolution as an experiment tracker takes it: numbers by name, one step for each checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

from spectra.records.sweep import Evolution, Number, Row

ERRORS = {"eigenvalue": "residual", "trace": "trace_error"}  # the names of errors; of others QUANTITY_error


def scalars_by_step(evolution: Evolution) -> list[tuple[int, dict[str, float]]]:
    """The numbers of each checkpoint by their names, such as `spectra/hessian/eigenvalue_1`, in the order of steps.

    A step is that of the table; where these are no whole numbers, as parts of an epoch, it is the place in the order,
    and the table's own stands beside it. What has no value is left out, and so is what the table says nothing by.
    Where there are several seeds, their names follow the matrix. Preconditioned matrices are called
    `hessian_preconditioned`.
    """
    places = list(dict.fromkeys((row.step, row.checkpoint) for row in evolution.rows))
    steps = [step for step, _ in places]
    whole = len(set(steps)) == len(steps) and all(float(step).is_integer() for step in steps)
    several = len({seed for _, seed in evolution.series()}) > 1
    found = []
    for place, (step, checkpoint) in enumerate(places):
        rows = [row for row in evolution.rows if (row.step, row.checkpoint) == (step, checkpoint)]
        values = {} if whole else {f"spectra/{evolution.axis.replace(' ', '_')}": float(step)}
        values |= {"spectra/products": float(products(rows))}
        for row in rows:
            matrix = row.curvature and named(row.curvature, bool(evolution.precondition))
            parts = (matrix, f"seed-{row.seed}" if several and row.seed is not None else None)
            values |= scalars_of(row, "/".join(filter(None, ("spectra", *parts))))
        found.append((int(step) if whole else place, values))
    return found


def scalars_of(row: Row, where: str) -> dict[str, float]:
    """The value, error and limits of one row by their names behind `where`."""
    if row.converged is False and row.products is None:  # a comparison without a gap
        return {}
    name, error = names_of(row.quantity, row.index)
    numbers = {name: row.value, error: row.error, f"{name}_lower": row.lower, f"{name}_upper": row.upper}
    return {
        f"{where}/{key}": float(number)
        for key, number in numbers.items()
        if number is not None and math.isfinite(number)
    }


def named(matrix: str, preconditioned: bool) -> str:
    """The name of a matrix in a tracker."""
    return f"{matrix}_preconditioned" if preconditioned else matrix


def names_of(quantity: str, index: int | None) -> tuple[str, str]:
    """The names of a number and of its error: `eigenvalue_1` and `residual_1` of the largest eigenvalue.

    Args:
        index: as in the table; of eigenvalues below zero -1 is the smallest.
    """
    error = ERRORS.get(quantity, f"{quantity}_error")
    if index is None:
        return quantity, error
    end = "smallest_" if index < 0 else ""
    return f"{end}{quantity}_{abs(index)}", f"{end}{error}_{abs(index)}"


def products(rows: Sequence[Row]) -> Number:
    """The products that the results in these rows have taken."""
    spent = {(row.command, row.curvature, row.seed): row.products for row in rows if row.products is not None}
    return sum(spent.values())
