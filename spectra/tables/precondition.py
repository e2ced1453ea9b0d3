"""Lines on a preconditioner P: where it comes from, and the largest eigenvalue over the threshold of stability."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from spectra.quoting import quoted
from spectra.records.precondition import OF_GRADIENTS, PreconditionRecord, number
from spectra.records.record import Record
from spectra.wording import brief

GIVEN = "given in Python"  # behind the type of an object, in records
FROM_THE_TOP = ("LM", "LA", "BE")  # choices of eig that include the largest eigenvalue


def precondition_line(found: PreconditionRecord) -> str:
    """The line that says that the matrices are preconditioned, and where P comes from."""
    sign = "-" if found.get("maximize") else ""
    decay = " + weight decay" if found.get("decay") else ""
    where = "the checkpoint" if found.spec.partition("?")[0] == "optimizer" else quoted(found.spec)
    whose = f"P of {found.optimizer} in {where}" if found.get("optimizer") else f"P from {where}"
    if found.spec in (found.get("optimizer"), f"{found.get('optimizer')} {GIVEN}"):
        whose = f"P of {where}"
    details = [f"parameters matched by {found.matched}"] if found.get("matched") and found.get("optimizer") else []
    if found.get("rate") is not None:
        details.append(f"eta {found.rate:g}")
    elif found.get("optimizer"):
        details.append("P/eta in place of P, as learning rates differ between parameters")
    behind = f" ({', '.join(details)})" if details else ""
    return f"preconditioned: {sign}P^-1/2 A P^-1/2{decay} for each matrix A, {whose}{behind}"


def threshold_lines(record: Record) -> Iterator[str]:
    """The threshold of stability, and the largest eigenvalue of each matrix over it."""
    found = record.problem.get("precondition")
    if not found:
        return
    if found.get("threshold") is None:
        if reason := found.get("threshold_reason"):
            yield f"no threshold of stability: {quoted(reason)}"
        return
    yield f"threshold of stability {threshold_text(found)}"
    for entry in record.results:
        limit = found.threshold_of(entry.curvature)
        if limit and (largest := largest_of(record, entry)):
            what, value, error = largest
            yield f"{entry.curvature}: {what} {brief(value / limit, error / limit)} times the threshold"
    if found.get("decay") and (names := [e.curvature for e in record.results if e.curvature.startswith(OF_GRADIENTS)]):
        yield f"{', '.join(names)}: weight decay is not added to products of gradients"


def threshold_text(found: PreconditionRecord) -> str:
    """The threshold with its optimizer and learning rate, as `38000 (AdamW, eta 0.001)`."""
    rate = "without eta" if found.get("rate") is None else f"eta {found.rate:g}"
    ends = dict.fromkeys(
        number(end) for end in (found.get("threshold"), found.get("threshold_upper")) if end is not None
    )
    return f"{' to '.join(ends)} ({found.optimizer}, {rate})"


def largest_of(record: Record, entry: Any) -> tuple[str, float, float] | None:
    """The largest known eigenvalue: words that introduce it, its value, and its residual (nan for a lower bound)."""
    values = getattr(entry, "values", None)
    if record.command == "density":
        held = entry.nodes[entry.weights != 0]
        finite = len(held) and np.isfinite(held).all()
        return ("the largest eigenvalue is at least", float(held.max()), math.nan) if finite else None
    if values is None or not len(values) or not np.isfinite(values).all():
        return None
    first = int(np.argmax(values))
    if (record.command == "eig" and record.problem.option("which") not in FROM_THE_TOP) or values[first] <= 0:
        return None
    name = f"eigenvalue {first + 1}" if record.command == "eig" else "the largest eigenvalue"
    return f"{name} is", float(values[first]), float(entry.residuals[first])
