"""spectra report."""

from __future__ import annotations

import os
from pathlib import Path

import click

from spectra.cli.layout import Command
from spectra.cli.options import Named
from spectra.cli.terminal import answer
from spectra.quoting import quoted


class PagePath(Named):
    """A path that ends in .html."""

    def convert(self, value, param, ctx):
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix.lower() != ".html":
            self.fail(f"{value!r} does not end in .html; write {path.with_suffix('.html')}.", param, ctx)
        return path


@click.command(
    cls=Command,
    examples=(
        "spectra report run1 --out run1.html",
        "spectra report start/eig.json end/eig.json --out training.html",
    ),
)
@click.argument("results", metavar="RESULT...", nargs=-1, required=True, type=Named(path_type=Path))
@click.option(
    "--out",
    metavar="FILE",
    required=True,
    type=PagePath(path_type=Path, dir_okay=False),
    help="File to write the page to, ending in .html.",
)
@click.option("--title", metavar="TEXT", help="Title of the page.  [default: model and data]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the path of the page.")
def report(results, out, title, as_json) -> int:
    """Write one HTML page from saved results.

    The page shows the tables and figures of each result, the problem, and the
    command that repeats it. It is one file that loads nothing from the network.
    RESULT is a .json file that eig, trace, density, inspect, compare, layers,
    landscape or step wrote, or a directory with such files.
    """
    from spectra.atomic import write_atomically
    from spectra.cli.repeat import repeat_commands
    from spectra.page.document import document
    from spectra.page.results import read_all
    from spectra.records.drawn import ReportRecord
    from spectra.records.files import prepare_directory

    found = read_all(results)
    page = document(found, title, repeat_commands).encode()
    prepare_directory(out.parent)
    write_atomically(out, lambda file: file.write(page))
    record = ReportRecord(page=str(out), results=[str(path) for path, _ in found])
    answer(record.to_json() if as_json else quoted(out, None))
    return 0
