"""The record of a comparison: what its pipeline has found, as entries."""

from __future__ import annotations

from typing import Any

from spectra.comparison.pipeline import Answer
from spectra.run.session import Session
from spectra.tables.comparison import cause_entries, compare_results, pair_entries, subsample_entries
from spectra.tables.outliers import class_entry, outlier_entry


def compare_record(session: Session, answer: Answer) -> dict[str, Any]:
    """The whole record but for its figures."""
    k, comparison = session.request.settings.k, answer.comparison
    results, pairs, more = compare_results(answer.found, k), pair_entries(comparison), {}
    for entry, m in zip(results, answer.found, strict=True):
        entry |= outlier_entry(m.answer.measure, answer.classes)
        entry["converged"] &= m.curvature not in answer.by_size or answer.by_size[m.curvature].converged
    if answer.held_out:
        results += compare_results(answer.held_out.found, k)
        pairs += [entry for one in answer.held_out.comparisons.values() for entry in pair_entries(one)]
        more["held_out"] = answer.held_out.about
    if answer.by_size:
        more["subsample"] = subsample_entries(answer.by_size, comparison, session.loaded.record["samples"])
    more |= class_entry(answer.structure) if answer.structure else {}
    return session.record([], results).to_dict() | {"pairs": pairs, "causes": cause_entries(answer.causes)} | more
