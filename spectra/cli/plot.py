"""spectra plot."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spectra.cli.layout import Command
from spectra.cli.options import WIDTH, Named
from spectra.cli.terminal import answer, note
from spectra.errors import SpectraError
from spectra.quoting import quoted

if TYPE_CHECKING:
    from spectra.plots.style import Figure


class FigurePath(Named):
    """A path that ends in .png, .pdf or .svg."""

    def convert(self, value, param, ctx):
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix.lower() not in (".png", ".pdf", ".svg"):
            self.fail(f"{value!r} does not end in .png, .pdf or .svg; write {path.with_suffix('.png')}.", param, ctx)
        return path


@click.command(
    cls=Command,
    examples=(
        "spectra plot run1 --out run1.pdf --width 3.25",
        "spectra plot start/eig.json end/eig.json --label start --label end --out a.svg",
    ),
)
@click.argument("results", metavar="RESULT...", nargs=-1, required=True, type=Named(path_type=Path))
@click.option(
    "--out",
    metavar="FILE",
    required=True,
    type=FigurePath(path_type=Path, dir_okay=False),
    help="File to write the figure to: .png, .pdf or .svg.",
)
@click.option("--curvature", metavar="NAME", multiple=True, help="Draw only this matrix. Repeatable.  [default: all]")
@click.option(
    "--label",
    metavar="TEXT",
    multiple=True,
    help="Name of a RESULT in the figure. Give one for each RESULT, in the same order.  [default: from the paths]",
)
@click.option("--title", metavar="TEXT", help="Title above the figure.")
@click.option(
    "--log", is_flag=True, help="Draw eigenvalues and traces on a logarithmic axis, which is linear around zero."
)
@WIDTH
@click.option(
    "--figure",
    metavar="NAME",
    help="Figure of compare, layers or landscape, by the name of its file (e.g. compare-held-out).  [default: the first]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the path of the figure.")
def plot(results, out, curvature, label, title, log, width, figure, as_json) -> int:
    """Draw a figure from saved results, without computing them again.

    A RESULT is a file that eig, trace, density, compare, layers, landscape or
    step wrote, or a directory with such a file. Several results of eig, of trace
    or of density share a figure. Results of the other commands are drawn one at a
    time, and take only --width and --figure. A directory of spectra.watch, with a
    folder for each step, is drawn over training, and takes only --width.
    """
    from spectra.atomic import write_atomically
    from spectra.plots import save_figure
    from spectra.plots.saved import saved_figure
    from spectra.records.drawn import PlotRecord
    from spectra.records.files import prepare_directory

    if len(results) == 1 and of_training(results[0]):
        other = {"--label": label, "--curvature": curvature, "--title": title, "--log": log, "--figure": figure}
        drawn, files = over_training(results[0], [option for option, given in other.items() if given], width), results
    else:
        drawn, files = saved_figure(results, label, curvature, title, log, width, figure)
    prepare_directory(out.parent)
    write_atomically(out, lambda file: save_figure(drawn, file, out.suffix[1:].lower()))
    record = PlotRecord(figure=str(out), results=list(map(str, files)))
    answer(record.to_json() if as_json else quoted(out, None))
    return 0


def of_training(path: Path) -> bool:
    """Whether a directory holds no result itself, but its folders hold results of the steps of a training run."""
    from spectra.plots.saved import KINDS, WHOLE

    own = any((path / f"{name}.json").exists() for name in (*KINDS, *WHOLE))
    return not own and any(file for name in KINDS for file in path.glob(f"*/{name}.json"))


def over_training(directory: Path, unused: Sequence[str], width: float) -> Figure:
    """The figure over training of the results in a directory. Raises SpectraError, also for options without effect."""
    from spectra.plots.evolution import evolution_figure
    from spectra.sweeps.evolution import evolution_of

    if unused:
        raise SpectraError(f"{unused[0]}: it has no effect on a figure over training; leave it out")
    evolution = evolution_of(directory)
    for text in evolution.notes:
        note(text)
    return evolution_figure(evolution, width)
