"""Tables of 80 columns on the localisation of eigenvectors: how few parameters hold each, and in which layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spectra.records.eig import EigResult
from spectra.records.localisation import Localisation
from spectra.records.record import Record
from spectra.tables.results import eig_parts as eigenvalue_parts
from spectra.tables.results import new_table
from spectra.wording import brief

RULE = (
    "localisation of each eigenvector u: sum of u_i^4 relative to a random vector; the layer with the largest share of "
    "|u|^2, and its share of the parameters"
)
UNRESOLVED = "?: unknown, as the eigenvalue is too close to its neighbours to separate their eigenvectors"


def eig_parts(record: Record) -> list[Any]:
    """Texts and tables of `spectra eig`: eigenvalues, cost and quality, and the localisation of eigenvectors."""
    return [*eigenvalue_parts(record), *localisation_parts(record.results)]


def localisation_parts(results: Sequence[EigResult]) -> list[Any]:
    """A table for each matrix: the localisation of its eigenvectors, and the layer that holds most of each."""
    known = [(r.curvature, held) for r in results if (held := r.localisation)]
    parts = [table_of(name, held) for name, held in known]
    unresolved = any("?" in cell for table in parts for column in table.columns for cell in column.cells)
    return ["", RULE, *parts, *([UNRESOLVED] if unresolved else [])] if parts else []


def table_of(name: str, held: Localisation) -> Any:
    """The table of one matrix; the columns on layers are left out for a single layer."""
    layered = len(held.layers) > 1
    table = new_table(name, "sum u^4 / random", *(["% of |u|^2", "% of parameters", "layer"] if layered else []))
    for i, ratio in enumerate(held.inverse_participation):
        cells = [cell(ratio / held.random, held.inverse_participation_error[i] / held.random)]
        if layered:
            j = held.main_layer(i)
            chance = f"{100 * held.sizes[j] / sum(held.sizes):.2g}"
            cells += [cell(100 * held.shares[i, j], 100 * held.share_error[i]), chance, held.layers[j] or "model"]
        table.add_row(str(i + 1), *cells)
    return table


def cell(value: float, error: float) -> str:
    """A number with the bound of its error, or with ? if the bound is not below the number."""
    return brief(value, error) if error < value else f"{value:.3g} ± ?"
