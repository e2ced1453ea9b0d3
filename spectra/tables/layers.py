"""What is shown of a matrix block by block: entries of the JSON record, arrays, tables of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from spectra.layerwise.layers import distinct
from spectra.quoting import readable
from spectra.spectrum.estimates import Estimate
from spectra.tables.results import LARGEST_VECTORS, cost_cells, figure_lines, heading, new_table, remarks, rendered
from spectra.wording import brief

MOST = 40  # rows of a table
LONGEST = 24  # characters of a name
SORTED = {"mass": "|u|²", "mean": "mean λ", "eigenvalue": "|leading λ|", "sensitivity": "saliency", "trace": "trace"}
TRACES = (
    "± of traces, shares and saliencies: standard error (mean λ has that of its trace, in proportion); of λ: residual "
    "|Au - λu|"
)
MEANING = (
    "u: leading eigenvector of all; |u|²: what of it lies in the block; cosine: of that with the block's own; stable "
    "rank: of the block's own in the shape of its weight, and of u"
)
Entry = dict[str, Any]


def layers_results(found: Sequence[Any], by: str, sort: str, method: str) -> list[Entry]:
    """An entry for each matrix, of measurements whose answers are `analysis.layers.Layers`."""
    return [
        {
            "curvature": m.curvature,
            "method": method,
            "by": by,
            "sort": sort,
            "trace": m.answer.trace.value,
            "standard_error": error_of(m.answer.trace, unknown=math.inf),
            **pairs_entry(m.answer.leading),
            "blocks": [block_entry(m.answer, i) for i in range(len(m.answer.blocks))],
            **m.cost(),
        }
        for m in found
    ]


def pairs_entry(pairs: Any) -> Entry:
    if pairs is None:
        return {"eigenvalues": None, "residuals": None}
    return {"eigenvalues": pairs.values.tolist(), "residuals": pairs.residuals.tolist()}


def block_entry(found: Any, i: int) -> Entry:
    """One block: what is not asked for is None."""
    block, trace, share, sensitivity = found.blocks[i], found.traces[i], found.shares[i], found.sensitivities[i]
    size = len(block.index)
    entry = {
        "name": block.name,
        "parameters": size,
        "trace": trace.value,
        "standard_error": error_of(trace),
        "share": share.value if found.trace.value else None,
        "share_error": error_of(share) if found.trace.value else None,
        "mean": trace.value / size,
        "mean_error": error_of(Estimate(trace.value / size, trace.standard_error / size)),
        "sensitivity": sensitivity.value,
        "sensitivity_error": error_of(sensitivity),
        **pairs_entry(found.eigenpairs[i] if found.eigenpairs else None),
        "complete": found.eigenpairs[i].complete if found.eigenpairs else None,
        "mass": found.mass(i) if found.leading and distinct(found.leading) else None,
        "overlap": found.overlap(i) if found.eigenpairs else None,
        "low_rank": low_rank_entry(found, i) if found.eigenpairs else None,
    }
    if found.measures:
        m = found.measures[i]
        numbers = {"nodes": m.nodes.tolist(), "weights": m.weights.tolist()}
        entry |= numbers | {"dimension": m.dimension, "deflated": m.deflated}
    return entry


def error_of(estimate: Estimate, unknown: float | None = None) -> float | None:
    """Its standard error; `unknown` where one probe cannot tell it."""
    return unknown if math.isfinite(estimate.value) and math.isnan(estimate.standard_error) else estimate.standard_error


def low_rank_entry(found: Any, i: int) -> list[Entry]:
    """Stable ranks of the block's own leading eigenvector and of the whole matrix's, by weight."""
    own = found.low_ranks(i, found.eigenpairs[i].vectors[0].cpu()) if found.told(i) else []
    everything = dict(found.low_ranks(i, found.vector[found.blocks[i].index])) if found.told_of_whole(i) else {}
    return [{"weight": w, "stable_rank": rank, "of_whole": everything.get(w)} for w, rank in own]


def layers_arrays(found: Sequence[Any]) -> dict[str, np.ndarray]:
    """Of each matrix the diagonal (n,), its standard errors, and up to 1 GiB the blocks' eigenvectors.

    `eigenvectors_<matrix>` is (k, n): row j holds the j-th of every block in the block's places, nan where it has none.
    """
    from spectra.vectors import at_first

    arrays = {}
    for m in found:
        for what, vector in (("diagonal", m.answer.diagonal.values), ("errors", m.answer.diagonal.standard_errors)):
            rows = at_first(vector[None]).cpu().numpy()
            if len(rows):
                arrays[f"{what}_{m.curvature}"] = rows[0]
        size = sum(pairs.vectors.nbytes for pairs in m.answer.eigenpairs)
        if 0 < size <= LARGEST_VECTORS:
            arrays[f"block_eigenvectors_{m.curvature}"] = side_by_side(m.answer)
    return arrays


def side_by_side(found: Any) -> np.ndarray:
    k, n = max(len(pairs.values) for pairs in found.eigenpairs), sum(len(block.index) for block in found.blocks)
    rows = np.full((k, n), np.nan, dtype=found.eigenpairs[0].vectors.cpu().numpy().dtype)
    for block, pairs in zip(found.blocks, found.eigenpairs, strict=True):
        rows[: len(pairs.values), block.index.numpy()] = pairs.vectors.cpu().numpy()
    return rows


def layers_text(record: Entry) -> str:
    return rendered(*layers_parts(readable(record)), *figure_lines(record))


def layers_parts(record: Entry) -> list[str | Table]:
    """Of every matrix what its blocks sum up to, and their eigenvectors where there are any; below, the cost."""
    parts: list[str | Table] = [heading(record), TRACES]
    for entry in record["results"]:
        blocks, left_out = sorted_blocks(entry)
        parts += [told(entry), trace_table(blocks, entry)]
        if any(block["eigenvalues"] for block in blocks):
            parts += [MEANING, eigenvector_table(blocks)]
        if left_out:
            parts.append(f"and {left_out:,} more: all of them with --json or --out")
        if unproven := [block["name"] for block in entry["blocks"] if block["complete"] is False]:
            parts.append(f"unproven that no eigenvalue was missed: {', '.join(unproven)}")
    notes = new_table("", "products", "s", "set-up s", "converged")
    for entry in record["results"]:
        notes.add_row(entry["curvature"], *cost_cells(entry))
    return [*parts, notes, *remarks(record)]


def told(entry: Entry) -> str:
    """What the tables below are of."""
    text = f"\n{entry['curvature']}, by {entry['by']}: trace {cell(entry['trace'], entry['standard_error'])}"
    if entry["eigenvalues"]:
        text += f", leading eigenvalue {cell(entry['eigenvalues'][0], entry['residuals'][0])}"
    return text + order(entry)


def order(entry: Entry) -> str:
    return "" if entry["sort"] == "order" else f"; by falling {SORTED[entry['sort']]}"


def sorted_blocks(entry: Entry) -> tuple[list[Entry], int]:
    """The blocks that a table shows, in the order asked for, and how many it leaves out."""
    blocks = entry["blocks"]
    if entry["sort"] != "order":
        blocks = sorted(blocks, key=lambda block: key(block, entry["sort"]), reverse=True)
    return blocks[:MOST], max(0, len(blocks) - MOST)


def key(block: Entry, sort: str) -> float:
    value = (block["eigenvalues"] or [None])[0] if sort == "eigenvalue" else block[sort]
    return -math.inf if value is None else abs(value) if sort == "eigenvalue" else value


def trace_table(blocks: Sequence[Entry], entry: Entry) -> Table:
    """Traces, and mean eigenvalues or saliencies: all of it with long names would not fit a line."""
    salient = entry["by"] == "channel" or entry["sort"] == "sensitivity"
    table = new_table(entry["by"], "parameters", "trace", "% of all", "saliency" if salient else "mean λ")
    for block in blocks:
        trace = cell(block["trace"], block["standard_error"])
        share = cell(block["share"], block["share_error"], scale=100)
        last = cell(block["sensitivity"], block["sensitivity_error"]) if salient else one(block["mean"], ".2g")
        table.add_row(shown(block["name"]), f"{block['parameters']:,}", trace, share, last)
    return table


def eigenvector_table(blocks: Sequence[Entry]) -> Table:
    """The blocks' leading eigenpairs beside the whole matrix's leading eigenvector u."""
    table = new_table("", "leading λ", "|u|²", "cosine", "stable rank", "of u")
    for block in blocks:
        if not block["eigenvalues"]:
            continue
        low = next(iter(block["low_rank"]), None)
        ranks = ["", ""] if low is None else [f"{low['stable_rank']:.2f}", one(low["of_whole"], ".2f")]
        value = cell(block["eigenvalues"][0], block["residuals"][0])
        table.add_row(shown(block["name"]), value, one(block["mass"], ".3f"), one(block["overlap"], ".3f"), *ranks)
    return table


def cell(value: float | None, error: float | None, scale: float = 1.0) -> str:
    """The value with its error, where there are any."""
    if value is None:
        return ""
    return brief(scale * value + 0.0, math.nan if error is None else scale * error)  # no -0


def one(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def shown(name: str) -> str:
    """A name that leaves room for numbers: `e.l.e11.s.out_proj`, of its first parts initials and numbers alone."""
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if len(".".join(parts)) > LONGEST:
            word = part.rstrip("0123456789")
            parts[i] = word[:1] + part[len(word) :]
    short = ".".join(parts)
    first = LONGEST // 6  # the end of a name tells most
    return short if len(short) <= LONGEST else f"{short[:first]}…{short[first + 1 - LONGEST :]}"
