"""spectra layers."""

from __future__ import annotations

import time

import click

from spectra.cli.options import EIGENVECTORS, SAVE_EVERY, Count, Positive, with_data
from spectra.cli.progress import progress_line
from spectra.cli.reuse import eigenpairs, end_of, source
from spectra.cli.session import Session
from spectra.cli.terminal import finish, prints_to_stderr
from spectra.cli.together import Prepared, Together

SORTS = ("order", "trace", "mean", "eigenvalue", "mass", "sensitivity")
LEADING = ("LM", "BE")  # results of eig that hold the eigenvalue of largest magnitude


@click.command()
@click.option("--by", type=click.Choice(["layer", "module", "channel"]), default="layer", show_default=True, help="Blocks: modules that own parameters, the model's branches, or output channels.")  # fmt: skip
@click.option("-k", metavar="K", type=Count(min=0), help="Leading eigenvalues of each block; 0: none.  [default: 1; of channels 0]")  # fmt: skip
@click.option("--sort", type=click.Choice(SORTS), help="Order of the table, falling.  [default: order; of channels sensitivity]")  # fmt: skip
@click.option("--method", type=click.Choice(["xdiag", "hutchinson"]), default="xdiag", show_default=True, help="How diagonal and traces are estimated.")  # fmt: skip
@click.option("--rtol", metavar="X", type=Positive(), help="Standard error of each trace over that of all, and of channels' saliencies.  [default: 0.01; of channels 0.05]")  # fmt: skip
@click.option("--tol", metavar="X", type=Positive(), default=1e-3, show_default=True, help="Residual over |eigenvalue|.")  # fmt: skip
@click.option("--density", is_flag=True, help="The spectral density of each block too.")
@click.option("--steps", metavar="M", type=Count(min=2), default=40, show_default=True, help="Products a probe of a density.")  # fmt: skip
@click.option("--probes", metavar="P", type=Count(min=1), default=4, show_default=True, help="Random vectors of a density.")  # fmt: skip
@EIGENVECTORS
@with_data(SAVE_EVERY, required=True)
def layers(by, k, sort, method, rtol, tol, density, steps, probes, **options) -> int:
    """The same, layer by layer.

    Trace, diagonal, leading eigenvalues and density of each diagonal block, and
    how much of the whole matrix's leading eigenvector lies in it.

    \b
    spectra layers --model nets.py:build --checkpoint last.pt --data digits
    spectra layers ... --by channel --sort sensitivity --out run1
    """
    with prints_to_stderr():
        from spectra.layerwise.parameter_blocks import parameter_blocks, tied
        from spectra.plots.layers import layers_figures
        from spectra.tables.layers import layers_arrays, layers_results, layers_text

        session = Session()
        problem = session.load().problem
        blocks = parameter_blocks(problem, by)
        k = (0 if by == "channel" else 1) if k is None else k
        sort = sort or ("sensitivity" if by == "channel" else "order")
        rtol = (0.05 if by == "channel" else 0.01) if rtol is None else rtol
        ranked = by == "channel" or sort == "sensitivity"
        settings = {"k": k, "method": method, "rtol": rtol, "ranked": ranked, "tolerance": tol}
        settings |= {"steps": steps if density else 0, "probes": probes}
        with session.resumable():
            found = [measured(session, name, blocks, settings) for name in dict.fromkeys(options["curvature"])]
        record = session.record([], layers_results(found, by, sort, method))
        record["problem"]["notes"] = [*record["problem"]["notes"], *tied(problem)]
        record["figures"] = session.draw(layers_figures(record)) if options["out"] else []
        session.write(record, layers_arrays(found))
    return finish(record, options["as_json"], layers_text(record))


def measured(session: Session, name: str, blocks: list, settings: dict):
    """The answer for one matrix, and what it cost."""
    import torch

    from spectra.cluster.distributed import distributed
    from spectra.layerwise.layers import layers
    from spectra.layerwise.parameter_blocks import block_sums, diagonal_blocks

    limit = session.options["max_products"]
    generator = torch.Generator().manual_seed(session.options["seed"])
    together = Together(session, 2)
    matrix = together.matrix(session.loaded.problem, name, 200)
    with progress_line(name):
        matrix.check(generator, limit)
    own = diagonal_blocks(distributed(matrix.curvature), blocks, session.loaded.problem, name, together.memory)
    start = time.perf_counter()
    found = layers(
        matrix.operator,
        session.remembered(own, f"{name}-blocks"),
        blocks,
        block_sums(session.loaded.problem, blocks, matrix.operator),
        known=leading(session, matrix, name, limit) if settings["k"] else None,
        generator=generator,
        max_products=None if limit is None else limit - matrix.checks,
        watch=lambda what: progress_line(f"{name}, {what}"),
        **settings,
    )
    return matrix.measured(found, found.products, time.perf_counter() - start)


def leading(session: Session, matrix: Prepared, name: str, limit: int | None):
    """The leading eigenpair that an earlier eig has left, if there is one."""
    from dataclasses import replace

    from spectra.krylov.bounds import kato_temple
    from spectra.vectors import taken

    path = source(session.options, "eigenvectors")
    if not session.processes.least(path is not None and end_of(path) in LEADING):
        return None
    room = None if limit is None else max(0, limit - matrix.checks) // 4
    known = eigenpairs(path, matrix.operator, name, session.processes.least, "taken", room)
    if known is None:
        return None
    first = [int(known.values.abs().argmax())]
    values, residuals = known.values[first], known.residuals[first]
    return replace(
        known,
        values=values,
        vectors=taken(known.vectors, first),
        residuals=residuals,
        error_estimates=kato_temple(values, residuals, known.values),
    )
