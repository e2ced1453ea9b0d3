"""Tables of 80 columns from a record of `spectra layers`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from spectra.quoting import readable
from spectra.records.layers import Block, LayersResult
from spectra.records.record import Record
from spectra.tables.results import cost_table, figure_lines, heading, new_table, remarks, rendered, title
from spectra.wording import brief

MOST = 40  # rows of a table
LONGEST = 24  # characters of a name
SORTED = {"mass": "|u|²", "mean": "mean λ", "eigenvalue": "|leading λ|", "sensitivity": "saliency", "trace": "trace"}
TRACES = (
    "± is the standard error of traces, shares and saliencies, and the residual |Au - λu| of eigenvalues λ. "
    "mean λ is the trace divided by the number of parameters."
)
MEANING = (
    "u is the leading eigenvector of the full matrix. |u|²: its share in this block. cosine: between that share "
    "and the block's own leading eigenvector. stable rank: of the block's own eigenvector and of u, each in the shape "
    "of the block's weight."
)


def layers_text(record: Record) -> str:
    """The record of `layers` as text of 80 columns."""
    return rendered(*layers_parts(readable(record)), *figure_lines(record))


def layers_parts(record: Record) -> list[str | Table]:
    """Texts and tables: for each matrix the traces and leading eigenvectors of its blocks; then the cost."""
    parts: list[str | Table] = [heading(record.problem), TRACES]
    for entry in record.results:
        blocks, left_out = sorted_blocks(entry)
        parts += [subject(record, entry), trace_table(blocks, entry)]
        if any(block.leading for block in blocks):
            parts += [MEANING, eigenvector_table(blocks)]
        if left_out:
            parts.append(f"and {left_out:,} more blocks, which --json shows and --out saves")
        if unproven := [block.name for block in entry.blocks if block.complete is False]:
            names = ", ".join(unproven)
            parts.append(f"a missed eigenvalue cannot be excluded with 99 % confidence in these blocks: {names}")
    return [*parts, cost_table(record.results), *remarks(record)]


def subject(record: Record, entry: LayersResult) -> str:
    """The heading of a matrix's tables: its trace, its leading eigenvalue, and the order of the blocks."""
    text = f"\n{title(record, entry)}, by {entry.by}: trace {cell(entry.trace, entry.standard_error)}"
    if entry.leading:
        text += f", leading eigenvalue {cell(*entry.leading)}"
    return text + order(entry)


def order(entry: LayersResult) -> str:
    """The order of a table's blocks, in words."""
    return "" if entry.sort == "order" else f"; sorted by {SORTED[entry.sort]}, largest first"


def sorted_blocks(entry: LayersResult) -> tuple[list[Block], int]:
    """The blocks that a table shows, sorted, and the number of those that it leaves out."""
    blocks = entry.blocks
    if entry.sort != "order":
        blocks = sorted(blocks, key=lambda block: key(block, entry.sort), reverse=True)
    return blocks[:MOST], max(0, len(blocks) - MOST)


def key(block: Block, sort: str) -> float:
    """The number by which a block is sorted; minus infinity if it is unknown."""
    value = (block.leading or [None])[0] if sort == "eigenvalue" else getattr(block, sort)
    if value is None or math.isnan(value):
        return -math.inf
    return abs(value) if sort == "eigenvalue" else value


def trace_table(blocks: Sequence[Block], entry: LayersResult) -> Table:
    """The table of traces, with mean eigenvalues or saliencies: both would not fit a line of 80."""
    salient = entry.by == "channel" or entry.sort == "sensitivity"
    table = new_table(entry.by, "parameters", "trace", "% of trace", "saliency" if salient else "mean λ")
    for block in blocks:
        trace = cell(block.trace, block.standard_error)
        share = cell(block.share, block.share_error, scale=100)
        last = cell(block.sensitivity, block.sensitivity_error) if salient else cell(block.mean, block.mean_error)
        table.add_row(shown(block.name), f"{block.parameters:,}", trace, share, last)
    return table


def eigenvector_table(blocks: Sequence[Block]) -> Table:
    """The table of the blocks' leading eigenpairs beside the leading eigenvector u of the full matrix."""
    table = new_table("", "leading λ", "|u|²", "cosine", "stable rank", "stable rank of u")
    for block in blocks:
        if block.leading is None:
            continue
        low = next(iter(block.low_rank or []), None)
        ranks = ["", ""] if low is None else [f"{low.stable_rank:.2f}", one(low.of_whole, ".2f")]
        value = cell(*block.leading)
        table.add_row(shown(block.name), value, one(block.mass, ".3f"), one(block.overlap, ".3f"), *ranks)
    return table


def cell(value: float | None, error: float | None, scale: float = 1.0) -> str:
    """A value with its error, if that is known; empty for None."""
    if value is None:
        return ""
    return brief(scale * value + 0.0, math.nan if error is None else scale * error)  # no -0


def one(value: float | None, form: str) -> str:
    """A number in this format; empty for None."""
    return "" if value is None else format(value, form)


def shown(name: str) -> str:
    """A name of at most `LONGEST` characters: its first parts are shortened to initials, as in `e.l.e11.s.out_proj`."""
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if len(".".join(parts)) > LONGEST:
            word = part.rstrip("0123456789")
            parts[i] = word[:1] + part[len(word) :]
    short = ".".join(parts)
    first = LONGEST // 6  # the end of a name tells most
    return short if len(short) <= LONGEST else f"{short[:first]}…{short[first + 1 - LONGEST :]}"
