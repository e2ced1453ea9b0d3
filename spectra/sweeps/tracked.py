"""Convert the table of an evolution for experiment trackers: numbers by name, with one step per checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

from spectra.records.sweep import Evolution, Number, Row

ERRORS = {"eigenvalue": "residual", "trace": "trace_error"}  # names of errors; others are QUANTITY_error


def scalars_by_step(evolution: Evolution) -> list[tuple[int, dict[str, float]]]:
    """The numbers of each checkpoint by their names, such as `spectra/hessian/eigenvalue_1`, in the order of steps.

    A step is that of the table; if these are not distinct whole numbers, such as fractions of an epoch, it is the
    position in the order, and the table's step is one of the numbers. Missing values and comparisons without a gap are
    left out. With several seeds, the seed follows the matrix in names. A preconditioned matrix is called
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
    """The value, error and interval of one row by name, with the prefix `where`."""
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
        index: the index in the table; -1 is the smallest eigenvalue.
    """
    error = ERRORS.get(quantity, f"{quantity}_error")
    if index is None:
        return quantity, error
    end = "smallest_" if index < 0 else ""
    return f"{end}{quantity}_{abs(index)}", f"{end}{error}_{abs(index)}"


def products(rows: Sequence[Row]) -> Number:
    """The number of products spent on the results in these rows."""
    spent = {(row.command, row.curvature, row.seed): row.products for row in rows if row.products is not None}
    return sum(spent.values())
