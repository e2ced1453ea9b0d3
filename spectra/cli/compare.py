"""spectra compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from spectra.cli.figures import drawn
from spectra.cli.layout import Command
from spectra.cli.options import LARGEST, PRECONDITION, SAVE_EVERY, SPEC, Count, with_data
from spectra.cli.requests import request
from spectra.cli.terminal import TERMINAL, finish, prints_to_stderr
from spectra.defaults import COMPARE_PROBES, COMPARE_STEPS, K
from spectra.quoting import quoted

if TYPE_CHECKING:
    from spectra.comparison.run import ComparisonRecord

MATRICES = ("hessian", "ggn", "fisher", "fisher-empirical")


class Sizes(click.ParamType):
    """A comma-separated list of positive integers."""

    name = "sizes"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            sizes = (0,)
        if not 1 <= min(sizes) <= max(sizes) <= LARGEST:
            self.fail(f"{quoted(value, 40)!r} is not a list of numbers of examples, such as 256,512,1024.", param, ctx)
        return sizes


@click.command(
    cls=Command,
    examples=(
        "spectra compare --model spectra.demo:mlp --data digits",
        "spectra compare --model nets.py:build --checkpoint last.pt --data digits \\",
        "    --curvature hessian --curvature fisher-mc --out run1",
    ),
)
@click.option("-k", metavar="K", type=Count(min=1), default=K, show_default=True, help="Number of leading eigenvectors.")  # fmt: skip
@click.option("--probes", metavar="P", type=Count(min=1), default=COMPARE_PROBES, show_default=True, help="Number of random vectors. All matrices are multiplied by the same ones.")  # fmt: skip
@click.option("--steps", metavar="M", type=Count(min=2), default=COMPARE_STEPS, show_default=True, help="Number of Lanczos steps for each random vector of a spectrum.")  # fmt: skip
@click.option(
    "--held-out",
    **SPEC,
    help="A second data set. Each matrix is also compared with the same matrix on these data.",
)
@click.option("--subsample", metavar="N,N,...", type=Sizes(), help="Also compute leading eigenvalues on random subsets of N examples, and extrapolate them to infinitely many examples.")  # fmt: skip
@with_data(PRECONDITION, SAVE_EVERY, required=True, curvature=MATRICES, parts=True, operators=2)
def compare(k, probes, steps, held_out, subsample, loss_part, **options) -> int:
    """Measure how far matrices are from each other, and why.

    For each pair of matrices the tables show the distance, the overlap of leading
    eigenspaces and the difference of the spectra, each with its error. The
    default matrices are the Hessian, Gauss-Newton, Fisher and empirical Fisher.
    With --loss-part, parts of the loss are compared with their sum.
    """
    with prints_to_stderr():
        from spectra.comparison.run import CompareSettings, compare_matrices
        from spectra.run.session import Session
        from spectra.tables.comparison import compare_text

        settings = CompareSettings(k, probes, steps, held_out, subsample, loss_part)
        with Session(request(settings), TERMINAL) as session:
            found = compare_matrices(session)
            record = drawn(session, found.record, lambda _: figures(found))
            session.save_record(record)
    return finish(record, options["as_json"], compare_text(record))


def figures(found: ComparisonRecord) -> dict[str, Any]:
    """All figures of a comparison, by file name."""
    from spectra.plots.compared import title_of
    from spectra.plots.comparison import comparison_figure
    from spectra.plots.examples import held_out_figure, subsample_figure

    made = {"compare": comparison_figure(found.comparison, title_of(found.record))}
    if found.held_out:
        made["compare-held-out"] = held_out_figure(found.held_out)
    if found.record.subsample:
        made["compare-subsample"] = subsample_figure(found.record.subsample)
    return made
