"""spectra compare."""

from __future__ import annotations

from collections.abc import Sequence

import click

from spectra.cli.options import LARGEST, SAVE_EVERY, Count, with_data
from spectra.cli.progress import progress_line
from spectra.cli.session import Session
from spectra.cli.terminal import finish, note, prints_to_stderr
from spectra.cli.together import Prepared, Together
from spectra.cli.trust import vouched
from spectra.quoting import quoted

MATRICES = ("hessian", "ggn", "fisher", "fisher-empirical")


class Sizes(click.ParamType):
    """Whole numbers above zero, with commas between them."""

    name = "sizes"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            sizes = (0,)
        if not 1 <= min(sizes) <= max(sizes) <= LARGEST:
            self.fail(f"{quoted(value, 40)!r} is no list of numbers of examples; write it as 256,512,1024.", param, ctx)
        return sizes


@click.command()
@click.option("-k", metavar="K", type=Count(min=1), default=10, show_default=True, help="How many leading eigenvectors.")  # fmt: skip
@click.option("--probes", metavar="P", type=Count(min=1), default=16, show_default=True, help="Random vectors, the same for all matrices.")  # fmt: skip
@click.option("--steps", metavar="M", type=Count(min=2), default=40, show_default=True, help="Products a probe of a spectrum.")  # fmt: skip
@click.option(
    "--held-out", metavar="SPEC", callback=vouched, help="Other data, on which every matrix is compared with itself."
)
@click.option("--subsample", metavar="N,N,...", type=Sizes(), help="Leading eigenvalues on so many examples, and where they tend to.")  # fmt: skip
@with_data(SAVE_EVERY, required=True, curvature=MATRICES)
def compare(k, probes, steps, held_out, subsample, **options) -> int:
    """How far matrices are from each other, and why.

    Distances, eigenspaces and spectra of every two of them, from products with
    the same random vectors, each number with its error.

    \b
    spectra compare --model nets.py:build --checkpoint last.pt --data digits
    spectra compare ... --curvature hessian --curvature fisher-mc --out run1
    """
    with prints_to_stderr():
        from spectra.tables.comparison import compare_arrays, compare_text

        session = Session()
        refuse_at_once(options["curvature"], subsample)
        session.load()
        other = other_data(session)
        with session.resumable():
            record, figures = answered(session, other, k, probes, steps)
        record["figures"] = session.draw(figures) if options["out"] else []
        session.write(record, compare_arrays(record))
    return finish(record, options["as_json"], compare_text(record))


def refuse_at_once(names: Sequence[str], sizes: Sequence[int] | None) -> None:
    """Raise SpectraError where there are no two matrices, or no two sizes of subsets."""
    from spectra.comparison.comparison import refuse_alone
    from spectra.comparison.subsample import refuse_sizes

    refuse_alone(dict.fromkeys(names))
    if sizes:
        refuse_sizes(sizes)


def other_data(session: Session):
    """The problem on the data held out, and what is to be said of them; None where none are.

    Whatever else is chosen by the data is refused here too, before anything is computed. Raises SpectraError.
    """
    from spectra.comparison.held_out import on_other_data
    from spectra.comparison.subsample import refuse_sizes

    options, problem = session.options, session.loaded.problem
    if options["subsample"]:
        refuse_sizes(options["subsample"], session.loaded.record["samples"])
    if not options["held_out"]:
        return None
    with progress_line("held-out data") as line:
        line.stage("loading")
        return on_other_data(problem, options["held_out"], options["transform"], options["model"])


def answered(session: Session, other, k: int, probes: int, steps: int) -> tuple[dict, dict]:
    """The record, and the figures that go with it by their names."""
    from spectra.plots.comparison import comparison_figure
    from spectra.plots.examples import held_out_figure, subsample_figure
    from spectra.spectrum.classes import class_count
    from spectra.tables.comparison import cause_entries, compare_results, pair_entries, subsample_entries
    from spectra.tables.outliers import outlier_entry

    problem, names = session.loaded.problem, list(dict.fromkeys(session.options["curvature"]))
    together, products = Together(session, len(names) + 2), (probes + 1) * steps
    matrices = {name: together.matrix(problem, name, products) for name in names}
    comparison = compared(session, matrices, k, probes, steps)
    causes = explained(session, together, comparison, probes)
    found = [matrices[name].measured(p, p.products, p.seconds) for name, p in comparison.portraits.items()]
    results, pairs = compare_results(found, k), pair_entries(comparison)
    classes = class_count(problem)
    for entry, m in zip(results, found, strict=True):
        entry |= outlier_entry(m.answer.measure, classes)
    figures, more = {"compare": comparison_figure(comparison)}, {}
    if other:
        there, more["held_out"] = other
        others, again = on_held_out(session, there, together, matrices, comparison, k, probes, steps)
        results += compare_results(others, k)
        pairs += [entry for one in again.values() for entry in pair_entries(one)]
        figures["compare-held-out"] = held_out_figure(again)
    if session.options["subsample"]:
        of_sizes = on_subsets(session, together, names, k)
        more["subsample"] = subsample_entries(of_sizes, comparison, session.loaded.record["samples"])
        figures["compare-subsample"] = subsample_figure(more["subsample"])
        for entry in results[: len(names)]:
            entry["converged"] &= of_sizes[entry["curvature"]].converged
    more |= levels(problem, comparison) if classes else {}
    record = session.record([], results)
    return record | {"pairs": pairs, "causes": cause_entries(causes)} | more, figures


def compared(session: Session, matrices: dict[str, Prepared], k: int, probes: int, steps: int, known=()):
    """Matrices by name, checked and compared; `known` are portraits of an earlier comparison."""
    from spectra.comparison.comparison import compare

    limit = session.options["max_products"]
    for name, matrix in matrices.items():
        if name not in known:
            matrix.check(seeded(session), limit)
    left = None if limit is None else limit - max(matrix.checks for matrix in matrices.values())
    return compare(
        {name: matrix.operator for name, matrix in matrices.items()},
        k=k,
        probes=probes,
        steps=steps,
        generator=seeded(session),
        max_products=left,
        known=dict(known),
        watch=progress_line,
    )


def explained(session: Session, together: Together, comparison, probes: int) -> list:
    """Why the matrices differ; what batches give is left out where it would take too many products."""
    from spectra.comparison.batch_products import TAKEN_FOR, batch_products, in_usual_batches
    from spectra.comparison.causes import causes
    from spectra.comparison.portrait import timed
    from spectra.comparison.residuals import residuals
    from spectra.curvature.engine.gradients import mean_gradient
    from spectra.vectors import norm

    if not comparison.pairs:
        return []
    problem, batch = session.loaded.problem, None
    gradient = mean_gradient(problem)
    held = [portrait for name, portrait in comparison.portraits.items() if name in TAKEN_FOR]
    if held and not problem.weight_decay and session.options["max_products"] is None:
        split = problem if session.options["batch_size"] else in_usual_batches(problem)
        batches = together.matrix(split, "fisher-batch", probes, "batches").operator
        with progress_line("gradients of batches"), timed(held):
            batch = batch_products(split, comparison, batches, gradient, probes, seeded(session))
    return causes(comparison, residuals(problem), norm(gradient) ** 2, batch)


def levels(problem, comparison) -> dict:
    """What means of classes give of the GGN, where it was asked for and they fit memory."""
    from spectra.curvature.factor.gram import Factor
    from spectra.errors import SpectraError
    from spectra.spectrum.classes import class_structure
    from spectra.tables.outliers import class_entry

    portrait = comparison.portraits.get("ggn", comparison.portraits.get("fisher"))
    if portrait is None or not portrait.eigenpairs.values.isfinite().all():
        return {}
    estimated = portrait.trace.value - problem.weight_decay * problem.size if portrait.trace else None
    exact = Factor(problem, "ggn").trace_work() <= portrait.products
    try:
        return class_entry(class_structure(problem, portrait.eigenpairs, None if exact else estimated))
    except SpectraError as error:
        note(str(error))
        return {}


def on_held_out(session: Session, other, together: Together, matrices: dict, comparison, k, probes, steps):
    """Measurements on the other data; every matrix compared with itself there."""
    found, comparisons = [], {}
    for name, matrix in matrices.items():
        there = f"{name}, held out"
        two = {name: matrix, there: together.matrix(other, name, (probes + 1) * steps, there)}
        known = {name: comparison.portraits[name]}
        comparisons[name] = one = compared(session, two, k, probes, steps, known)
        portrait = one.portraits[there]
        found.append((there, two[there].measured(portrait, portrait.products, portrait.seconds)))
    return [renamed(name, m) for name, m in found], comparisons


def renamed(name: str, measurement):
    from dataclasses import replace

    return replace(measurement, curvature=name)


def on_subsets(session: Session, together: Together, names: list[str], k: int) -> dict:
    """Largest eigenvalues of each matrix on subsets of the examples."""
    from spectra.comparison.subsample import BySize, chains
    from spectra.krylov.eigenpairs import eigenpairs

    options = session.options
    found = {name: BySize() for name in names}
    for chain, size, problem in chains(session.loaded.problem, options["subsample"], options["seed"]):
        for name in names:
            what = f"{name}, {size} examples, {chain + 1}"
            matrix = together.matrix(problem, name, 20 + 3 * k, what)
            with progress_line(what) as progress:
                cost = {"max_products": options["max_products"], "progress": progress}
                found[name].add(size, eigenpairs(matrix.operator, k, which="LA", generator=seeded(session), **cost))
    return found


def seeded(session: Session):
    import torch

    return torch.Generator().manual_seed(session.options["seed"])
