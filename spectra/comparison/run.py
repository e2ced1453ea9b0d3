"""Run `spectra compare`: its settings, and the function that makes the record and the data of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from spectra.comparison.batch_products import TAKEN_FOR, batch_products, in_usual_batches
from spectra.comparison.causes import Cause as Reason
from spectra.comparison.causes import causes
from spectra.comparison.comparison import Comparison, compare, refuse_single_matrix
from spectra.comparison.held_out import on_other_data
from spectra.comparison.matrix_summary import MatrixSummary, timed
from spectra.comparison.residuals import residuals
from spectra.comparison.subsample import SubsetEigenvalues, chains, refuse_sizes
from spectra.curvature.engine.gradients import mean_gradient
from spectra.curvature.factor.gram import Factor
from spectra.defaults import COMPARE_PROBES, COMPARE_STEPS, K
from spectra.errors import SpectraError
from spectra.inputs.user_loss import part_of
from spectra.krylov.eigenpairs import basis_of, eigenpairs
from spectra.krylov.limits import refuse_k
from spectra.krylov.placement import Placement
from spectra.operator import Shaped
from spectra.problem.problem import Problem
from spectra.records.compare import (
    Cause,
    ClassStructure,
    CompareResult,
    HeldOut,
    Pair,
    Subsample,
    of_part,
    on_held_out_data,
)
from spectra.records.record import Record
from spectra.run.matrix_set import MatrixSet, PreparedMatrix
from spectra.run.measurement import Measurement
from spectra.run.network import Network
from spectra.run.session import Session
from spectra.spectrum.classes import class_count, class_structure
from spectra.spectrum.recording import outliers_of
from spectra.vectors import norm


@dataclass(frozen=True)
class CompareSettings:
    """The settings of `spectra compare`.

    Attributes:
        k: the number of leading eigenvectors.
        probes: the number of random vectors.
        steps: the number of Lanczos steps for each random vector.
        held_out: the name of other data; None: none.
        subsample: the sizes of subsets of examples; None: none.
        parts: the names of parts of the loss.
    """

    k: int = K
    probes: int = COMPARE_PROBES
    steps: int = COMPARE_STEPS
    held_out: str | None = None
    subsample: tuple[int, ...] | None = None
    parts: tuple[str, ...] = ()

    command = "compare"
    less_memory = ("`k`", "ask for fewer, for fewer `probes`, or choose fewer parameters with `params`")

    def refuse(self, matrices: Sequence[str]) -> None:
        if not self.parts:
            refuse_single_matrix(dict.fromkeys(matrices), "curvature", "name two matrices or more, or a `loss_part`")
        if self.parts and (self.held_out or self.subsample):
            raise SpectraError("`loss_part`: cannot be combined with `held_out` or `subsample`; leave one out")
        if self.subsample:
            refuse_sizes(self.subsample)

    def refuse_size(self, size: int, products: int | None) -> None:
        refuse_k(self.k, size)

    def basis(self, space: Shaped) -> Placement | None:
        return basis_of(space, self.k + 1)


@dataclass(frozen=True)
class ComparisonRecord:
    """The record of a comparison, and the data of its figures."""

    record: Record
    comparison: Comparison
    held_out: dict[str, Comparison]  # of each matrix with the same matrix on the held-out data, if there are any


class OperatorComparison:
    """A comparison of matrices in a session."""

    def __init__(self, session: Session[CompareSettings]):
        self.session, self.settings, self.limit = session, session.request.settings, session.request.max_products
        self.matrix_set = MatrixSet(session, len(session.names) * (1 + len(self.settings.parts)) + 2)
        self.products = (self.settings.probes + 1) * self.settings.steps

    def make_record(self) -> ComparisonRecord:
        """Compare distances, eigenspaces and spectra of the matrices."""
        matrices = {name: self.matrix_set.of(name, self.products) for name in self.session.names}
        comparison = self.compared(matrices)
        found = self.measured(matrices, comparison)
        results = [CompareResult.of(m, self.settings.k, outliers_of(m.answer.measure, None)) for m in found]
        pairs = [Pair.of(pair, comparison.dimension) for pair in comparison.pairs]
        return ComparisonRecord(self.session.record(found, results, pairs=pairs, causes=[]), comparison, {})

    def measured(self, matrices: Mapping[str, PreparedMatrix], comparison: Comparison) -> list[Measurement]:
        """The measurement of each matrix alone."""
        return [
            replace(matrices[name].measured(p, p.products, p.seconds), curvature=name)
            for name, p in comparison.summaries.items()
        ]

    def compared(
        self, matrices: Mapping[str, PreparedMatrix], known: Mapping[str, MatrixSummary] | None = None
    ) -> Comparison:
        """Check and compare matrices given by name; `known` are summaries of an earlier comparison."""
        known = known or {}
        for name, matrix in matrices.items():
            if name not in known:
                matrix.check(self.seeded(), self.limit)
        left = None if self.limit is None else self.limit - max(matrix.checks for matrix in matrices.values())
        return compare(
            {name: matrix.operator for name, matrix in matrices.items()},
            k=self.settings.k,
            probes=self.settings.probes,
            steps=self.settings.steps,
            generator=self.seeded(),
            max_products=left,
            known=known,
            watch=self.session.listener.work,
        )

    def seeded(self) -> torch.Generator:
        """A new generator with the request's seed."""
        return torch.Generator().manual_seed(self.session.request.seed)


class NetworkComparison(OperatorComparison):
    """A comparison of matrices of a network, also for parts of the loss and other data, with causes of differences."""

    def make_record(self, other: tuple[Problem, dict[str, Any]] | None = None) -> ComparisonRecord:
        """Compute everything that was requested; `other` is the problem on the held-out data and its description."""
        problem, names, k = self.session.problem, self.session.names, self.settings.k
        matrices = {name: self.matrix_set.matrix(problem, name, self.products) for name in names}
        matrices |= self.compare_parts(names)
        comparison = self.compared(matrices)
        reasons = self.find_causes(comparison)
        found = self.measured(matrices, comparison)
        there, again = self.compare_held_out(other[0], matrices, comparison) if other else ([], {})
        by_size = self.compare_subsets(self.settings.subsample) if self.settings.subsample else {}
        classes = None if self.session.request.preconditioner else class_count(problem)
        structure = self.levels(comparison) if classes else None

        results = [CompareResult.of(m, k, outliers_of(m.answer.measure, classes)) for m in found]
        if by_size:
            results = [one.changed(converged=one.converged and by_size[one.curvature].converged) for one in results]
        here = {name: summary.eigenpairs.values.numpy() for name, summary in comparison.summaries.items()}
        samples = sum(map(len, self.session.problem.batches))
        record = self.session.record(
            [],
            results + [CompareResult.of(m, k) for m in there],
            pairs=[Pair.of(pair, one.dimension) for one in (comparison, *again.values()) for pair in one.pairs],
            causes=[Cause.of(reason) for reason in reasons],
            held_out=HeldOut(**other[1]) if other else None,
            subsample=[Subsample.of(name, one, here[name], samples) for name, one in by_size.items()] or None,
            class_structure=structure,
        )
        return ComparisonRecord(record, comparison, again)

    def compare_parts(self, names: Sequence[str]) -> dict[str, PreparedMatrix]:
        """The matrices of each requested part of the loss, named `matrix, part`."""
        problem, found = self.session.problem, {}
        for part in self.settings.parts:
            alone = replace(problem, loss=part_of(problem.loss, part))
            for name in names:
                label = of_part(name, part)
                found[label] = self.matrix_set.matrix(alone, name, self.products, label)
        return found

    def find_causes(self, comparison: Comparison) -> list[Reason]:
        """The reasons why the matrices differ; fisher-batch is left out if the number of products is limited."""
        if not comparison.pairs or self.session.request.preconditioner:  # reasons hold for unpreconditioned matrices
            return []
        problem, batch, probes = self.session.problem, None, self.settings.probes
        gradient = mean_gradient(problem)
        held = [summary for name, summary in comparison.summaries.items() if name in TAKEN_FOR]
        if held and not problem.weight_decay and self.limit is None:
            split = problem if self.session.request.named.get("batch_size") else in_usual_batches(problem)
            batches = self.matrix_set.matrix(split, "fisher-batch", probes, "batches").operator
            with self.session.listener.work("gradients of batches"), timed(held):
                batch = batch_products(split, comparison, batches, gradient, probes, self.seeded())
        return causes(
            comparison, residuals(problem), norm(gradient) ** 2, batch, getattr(problem.loss, "natural", False)
        )

    def levels(self, comparison: Comparison) -> ClassStructure | None:
        """The class structure of the GGN, if it is among the matrices and fits in memory."""
        problem, summaries = self.session.problem, comparison.summaries
        summary = summaries.get("ggn", summaries.get("fisher"))
        if summary is None or not summary.eigenpairs.values.isfinite().all():
            return None
        estimated = summary.trace.value - problem.weight_decay * problem.size if summary.trace else None
        exact = Factor(problem, "ggn").trace_work() <= summary.products
        try:
            return ClassStructure.of(class_structure(problem, summary.eigenpairs, None if exact else estimated))
        except SpectraError as error:
            self.session.listener.note(str(error))
            return None

    def compare_held_out(
        self, other: Problem, matrices: Mapping[str, PreparedMatrix], comparison: Comparison
    ) -> tuple[list[Measurement], dict[str, Comparison]]:
        """Compare every matrix with itself on the held-out data; measurements and comparisons there."""
        found, comparisons = [], {}
        for name, matrix in matrices.items():
            there = on_held_out_data(name)
            two = {name: matrix, there: self.matrix_set.matrix(other, name, self.products, there)}
            comparisons[name] = one = self.compared(two, {name: comparison.summaries[name]})
            summary = one.summaries[there]
            measurement = two[there].measured(summary, summary.products, summary.seconds)
            found.append(replace(measurement, curvature=there))
        return found, comparisons

    def compare_subsets(self, sizes: Sequence[int]) -> dict[str, SubsetEigenvalues]:
        """Find the largest eigenvalues of each matrix on subsets of these sizes."""
        names, k = self.session.names, self.settings.k
        found = {name: SubsetEigenvalues() for name in names}
        for chain, size, problem in chains(self.session.problem, sizes, self.session.request.seed):
            for name in names:
                what = f"{name}, {size} examples, {chain + 1}"
                matrix = self.matrix_set.matrix(problem, name, 20 + 3 * k, what)
                with self.session.listener.work(what) as progress:
                    cost = {"max_products": self.limit, "progress": progress}
                    pairs = eigenpairs(matrix.operator, k, which="LA", generator=self.seeded(), **cost)
                    found[name].add(size, pairs)
        return found


def compare_matrices(session: Session[CompareSettings]) -> ComparisonRecord:
    """Compare the requested matrices."""
    session.load()
    if not isinstance(session.matrix_source, Network):
        with session.resumable():
            return OperatorComparison(session).make_record()
    refuse_undefined_defaults(session)
    other = other_data(session)
    with session.resumable():
        return NetworkComparison(session).make_record(other)


def refuse_undefined_defaults(session: Session[CompareSettings]) -> None:
    """Raise SpectraError where the loss has only one of the matrices that are compared by default."""
    requested, names = session.request.curvature, session.names
    if len(names) > 1 or len(requested) < 2 or session.request.settings.parts:
        return
    problem = session.problem_record
    missing = next(note for note in problem.notes or () if " is left out: " in note)
    raise SpectraError(
        f"`loss` {problem.loss}: it has no matrix to compare {' '.join(names) or '(none)'} with; {missing}; give "
        "a loss of (output, target), or name matrices by `curvature`, such as hessian and fisher-batch"
    )


def other_data(session: Session[CompareSettings]) -> tuple[Problem, dict[str, Any]] | None:
    """The problem on the held-out data, and the fields that describe it; None if none are requested.

    Sizes of subsets that exceed the data are refused here too, before anything is computed. Raises SpectraError.
    """
    settings, named = session.request.settings, session.request.named
    if settings.subsample:
        refuse_sizes(settings.subsample, sum(map(len, session.problem.batches)))
    if not settings.held_out:
        return None
    with session.listener.work("held-out data") as line:
        line.stage("loading")
        return on_other_data(session.problem, settings.held_out, named["transform"], named["model"])
