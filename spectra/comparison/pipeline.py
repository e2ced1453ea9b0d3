"""Matrices of a problem compared, from a request to what was found: with causes, on other data, on fewer examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from spectra.comparison.batch_products import TAKEN_FOR, batch_products, in_usual_batches
from spectra.comparison.causes import Cause, causes
from spectra.comparison.comparison import Comparison, compare, refuse_alone
from spectra.comparison.held_out import on_other_data
from spectra.comparison.portrait import Portrait, timed
from spectra.comparison.residuals import residuals
from spectra.comparison.subsample import BySize, chains, refuse_sizes
from spectra.curvature.engine.gradients import mean_gradient
from spectra.curvature.factor.gram import Factor
from spectra.errors import SpectraError
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.limits import refuse_k
from spectra.problem.problem import Problem
from spectra.run.measurement import Measurement
from spectra.run.session import Session
from spectra.run.together import Prepared, Together
from spectra.spectrum.classes import ClassStructure, class_count, class_structure
from spectra.vectors import norm


@dataclass(frozen=True)
class CompareSettings:
    """How many eigenvectors, probes, products a probe; other data, by name; and sizes of subsets."""

    k: int = 10
    probes: int = 16
    steps: int = 40
    held_out: str | None = None
    subsample: tuple[int, ...] | None = None

    command = "compare"
    less_memory = ("-k", "ask for fewer, for fewer --probes, or choose fewer parameters with --params")

    def refuse(self, matrices: Sequence[str]) -> None:
        refuse_alone(dict.fromkeys(matrices))
        if self.subsample:
            refuse_sizes(self.subsample)

    def refuse_size(self, size: int, products: int | None) -> None:
        refuse_k(self.k, size)


@dataclass(frozen=True)
class HeldOut:
    """Every matrix compared with itself on other data."""

    about: dict[str, Any]  # what is to be said of the data
    found: list[Measurement]
    comparisons: dict[str, Comparison]


@dataclass(frozen=True)
class Answer:
    """What a comparison has found."""

    comparison: Comparison
    found: list[Measurement]  # of each matrix; their answers are portraits
    causes: list[Cause]
    classes: int | None  # how many the loss has
    structure: ClassStructure | None  # what means of classes give of the GGN
    held_out: HeldOut | None
    by_size: dict[str, BySize]  # of each matrix, where subsets were asked for


class Comparing:
    """A comparison in a session, with what all of its parts need."""

    def __init__(self, session: Session):
        self.session, self.asked, self.limit = session, session.request.settings, session.request.max_products
        self.together = Together(session, len(session.names) + 2)
        self.products = (self.asked.probes + 1) * self.asked.steps

    def answer(self, other: tuple[Problem, dict[str, Any]] | None) -> Answer:
        """All that was asked for; `other` is the problem on the data held out, and what is to be said of them."""
        problem, names = self.session.problem, self.session.names
        matrices = {name: self.together.matrix(problem, name, self.products) for name in names}
        comparison = self.compared(matrices)
        explained = self.explained(comparison)
        found = [matrices[name].measured(p, p.products, p.seconds) for name, p in comparison.portraits.items()]
        held_out = self.on_held_out(*other, matrices, comparison) if other else None
        by_size = self.on_subsets() if self.asked.subsample else {}
        classes = class_count(problem)
        structure = self.levels(comparison) if classes else None
        return Answer(comparison, found, explained, classes, structure, held_out, by_size)

    def compared(self, matrices: Mapping[str, Prepared], known: Mapping[str, Portrait] | None = None) -> Comparison:
        """Matrices by name, checked and compared; `known` are portraits of an earlier comparison."""
        known = known or {}
        for name, matrix in matrices.items():
            if name not in known:
                matrix.check(self.seeded(), self.limit)
        left = None if self.limit is None else self.limit - max(matrix.checks for matrix in matrices.values())
        return compare(
            {name: matrix.operator for name, matrix in matrices.items()},
            k=self.asked.k,
            probes=self.asked.probes,
            steps=self.asked.steps,
            generator=self.seeded(),
            max_products=left,
            known=known,
            watch=self.session.listener.work,
        )

    def explained(self, comparison: Comparison) -> list[Cause]:
        """Why the matrices differ; what batches give is left out where it would take too many products."""
        if not comparison.pairs:
            return []
        problem, batch, probes = self.session.problem, None, self.asked.probes
        gradient = mean_gradient(problem)
        held = [portrait for name, portrait in comparison.portraits.items() if name in TAKEN_FOR]
        if held and not problem.weight_decay and self.limit is None:
            split = problem if self.session.request.problem["batch_size"] else in_usual_batches(problem)
            batches = self.together.matrix(split, "fisher-batch", probes, "batches").operator
            with self.session.listener.work("gradients of batches"), timed(held):
                batch = batch_products(split, comparison, batches, gradient, probes, self.seeded())
        return causes(comparison, residuals(problem), norm(gradient) ** 2, batch)

    def levels(self, comparison: Comparison) -> ClassStructure | None:
        """What means of classes give of the GGN, where it was asked for and they fit memory."""
        problem, portraits = self.session.problem, comparison.portraits
        portrait = portraits.get("ggn", portraits.get("fisher"))
        if portrait is None or not portrait.eigenpairs.values.isfinite().all():
            return None
        estimated = portrait.trace.value - problem.weight_decay * problem.size if portrait.trace else None
        exact = Factor(problem, "ggn").trace_work() <= portrait.products
        try:
            return class_structure(problem, portrait.eigenpairs, None if exact else estimated)
        except SpectraError as error:
            self.session.listener.note(str(error))
            return None

    def on_held_out(
        self, other: Problem, about: dict[str, Any], matrices: Mapping[str, Prepared], comparison: Comparison
    ) -> HeldOut:
        """Measurements on the other data; every matrix compared with itself there."""
        found, comparisons = [], {}
        for name, matrix in matrices.items():
            there = f"{name}, held out"
            two = {name: matrix, there: self.together.matrix(other, name, self.products, there)}
            comparisons[name] = one = self.compared(two, {name: comparison.portraits[name]})
            portrait = one.portraits[there]
            measurement = two[there].measured(portrait, portrait.products, portrait.seconds)
            found.append(replace(measurement, curvature=there))
        return HeldOut(about, found, comparisons)

    def on_subsets(self) -> dict[str, BySize]:
        """Largest eigenvalues of each matrix on subsets of the examples."""
        names, k = self.session.names, self.asked.k
        found = {name: BySize() for name in names}
        for chain, size, problem in chains(self.session.problem, self.asked.subsample, self.session.request.seed):
            for name in names:
                what = f"{name}, {size} examples, {chain + 1}"
                matrix = self.together.matrix(problem, name, 20 + 3 * k, what)
                with self.session.listener.work(what) as progress:
                    cost = {"max_products": self.limit, "progress": progress}
                    pairs = eigenpairs(matrix.operator, k, which="LA", generator=self.seeded(), **cost)
                    found[name].add(size, pairs)
        return found

    def seeded(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.session.request.seed)


def comparison(session: Session) -> Answer:
    """The matrices that are asked for, compared."""
    session.load()
    other = other_data(session)
    with session.resumable():
        return Comparing(session).answer(other)


def other_data(session: Session) -> tuple[Problem, dict[str, Any]] | None:
    """The problem on the data held out, and what is to be said of them; None where none are.

    Whatever else is chosen by the data is refused here too, before anything is computed. Raises SpectraError.
    """
    asked, named = session.request.settings, session.request.problem
    if asked.subsample:
        refuse_sizes(asked.subsample, session.loaded.record["samples"])
    if not asked.held_out:
        return None
    with session.listener.work("held-out data") as line:
        line.stage("loading")
        return on_other_data(session.problem, asked.held_out, named["transform"], named["model"])
