"""The register of commands: the parts of each command, by its name.

A new command is a file in `spectra/cli`, the functions that it calls, and an entry here. The command line then lists
it, a sweep may run it, and its results are read, drawn, and shown on a page. Parts are named as module:name, so that
this module loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

MORE = "raise --max-products"
CROWDED = "clustered eigenvalues (e.g. near 0) converge slowly"


@dataclass(frozen=True)
class Command:
    """The parts of one command, functions as module:name. A command without a title writes no results."""

    cli: str  # the click command
    group: str = "Analyse"  # the heading in help
    spends_products: bool = True  # if not, the first of several ranks does all the work
    title: str = ""  # the heading of its results on a page
    tables: str = ""  # a function that makes strings and tables of a record
    figures: str = ""  # a function that makes the figures of a record, by name
    captions: Mapping[str, str] = field(default_factory=dict)  # of figures, by name
    way_out: str = ""  # what to try where a method has not converged
    rows: str = ""  # a function that makes a sweep's table rows of a result; sweeps run only commands that have it


COMMANDS = {  # in the order in which a page shows their results
    "inspect": Command(
        "spectra.cli.inspect:inspect",
        title="Checkpoint and cost",
        tables="spectra.tables.inspection:inspect_parts",
    ),
    "eig": Command(
        "spectra.cli.eig:eig",
        title="Eigenvalues",
        tables="spectra.tables.localisation:eig_parts",
        captions={"eig": "Eigenvalues by rank, with residuals"},
        way_out=f"{MORE}, try --dtype float64, or loosen --tol; {CROWDED}",
        rows="spectra.sweeps.eigenspaces:eigenvalue_rows",
    ),
    "trace": Command(
        "spectra.cli.trace:trace",
        title="Trace",
        tables="spectra.tables.results:trace_parts",
        captions={"trace": "Traces, with error bars of two standard errors"},
        way_out=f"{MORE}, or loosen --rtol",
        rows="spectra.sweeps.rows:trace_rows",
    ),
    "density": Command(
        "spectra.cli.density:density",
        title="Spectral density",
        tables="spectra.tables.outliers:density_parts",
        captions={
            "density": "Spectral density, and below it the cumulative distribution, with 95 % bands",
            "density-log": "Spectral density on an asinh axis, which is logarithmic but linear around zero",
        },
        way_out=MORE,
        rows="spectra.sweeps.rows:density_rows",
    ),
    "compare": Command(
        "spectra.cli.compare:compare",
        group="Compare",
        title="Comparison of matrices",
        tables="spectra.tables.comparison:compare_parts",
        figures="spectra.plots.compared:compare_figures",
        captions={
            "compare": "Eigenvalues, leading eigenspaces, distributions and distances of the matrices",
            "compare-held-out": "Leading eigenvalues and eigenspaces on the data and on the held-out data",
            "compare-subsample": "Largest eigenvalues on N examples, extrapolated to infinitely many",
        },
        way_out=f"{MORE}, or ask for fewer -k",
    ),
    "layers": Command(
        "spectra.cli.layers:layers",
        title="Layer by layer",
        tables="spectra.tables.layers:layers_parts",
        figures="spectra.plots.layers:layers_figures",
        captions={
            "layers": "Trace, eigenvalues and leading eigenvector of each diagonal block",
            "layers-density": "Spectral density of each diagonal block",
        },
        way_out=f"{MORE}, try --dtype float64, or loosen --rtol or --tol",
    ),
    "landscape": Command(
        "spectra.cli.landscape:landscape",
        title="Loss along directions",
        tables="spectra.tables.landscape:landscape_parts",
        figures="spectra.plots.landscape:landscape_figures",
        captions={
            "landscape": "Loss along directions, its quadratic model, and the barrier on the way to a checkpoint",
            "landscape-plane": "Loss in the planes of two directions, with other checkpoints as points",
            "landscape-surface": "Loss in these planes, as surfaces",
        },
        way_out=f"{MORE}, try --dtype float64, or loosen --tol; {CROWDED}",
    ),
    "step": Command(
        "spectra.cli.step:step",
        title="The next step",
        tables="spectra.tables.step:step_parts",
        figures="spectra.plots.step:step_figures",
        captions={"step": "Loss along the next step, its share in leading eigenvectors, and its noise"},
        way_out=f"{MORE}, try --dtype float64, or loosen --tol; {CROWDED}",
    ),
    "demo": Command("spectra.cli.demo:demo", group="Run many"),
    "sweep": Command("spectra.cli.sweep:sweep", group="Run many", spends_products=False),
    "plot": Command("spectra.cli.plot:plot", group="Show", spends_products=False),
    "report": Command("spectra.cli.report:report", group="Show", spends_products=False),
}


def with_results() -> list[str]:
    """The commands that write results, in the order in which a page shows them."""
    return [name for name, command in COMMANDS.items() if command.title]


def of_sweeps() -> tuple[str, ...]:
    """The commands that a sweep can run."""
    return tuple(name for name, command in COMMANDS.items() if command.rows)


def cli_command(name: str) -> Any:
    """The click command of this name."""
    return resolve_name(COMMANDS[name].cli)
