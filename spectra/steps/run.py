"""Run `spectra step`: its settings, and the function that makes the record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spectra.cluster.distributed import distributed
from spectra.curvature.matrices import definition
from spectra.defaults import ADAPTIVE_RHO, ASCENT_STEPS, RHO, TOLERANCE, K
from spectra.directions.point import Point
from spectra.directions.training import (
    RATE,
    Direction,
    checkpoint_direction,
    gradient_direction,
    momentum_direction,
    update_direction,
)
from spectra.errors import SpectraError
from spectra.krylov.eigenpairs import basis_of, eigenpairs_unchecked
from spectra.krylov.limits import refuse_k
from spectra.krylov.placement import Placement
from spectra.krylov.results import Eigenpairs
from spectra.layerwise.parameter_blocks import ParameterBlock, diagonal_blocks, parameter_blocks
from spectra.operator import Counting, Deflated, Shaped
from spectra.optimizer.files import find_optimizer
from spectra.problem.problem import Problem
from spectra.quoting import quoted
from spectra.records.record import Record
from spectra.run.earlier_eigenpairs import leading_eigenpairs
from spectra.run.matrix_set import MatrixSet, PreparedMatrix
from spectra.run.measurement import Measurement
from spectra.run.session import Session
from spectra.steps.alignment import Alignment, alignment
from spectra.steps.curvatures import DirectionalCurvature, curvature_along
from spectra.steps.line_search import Line, search_line
from spectra.steps.noise_and_balls import NoiseAndBalls
from spectra.steps.recording import point_record, step_result
from spectra.steps.slopes import slopes

NEARBY = 0.01  # of |theta|: the first step to try if the curvature gives no guess
NO_OPTIMIZER = "no optimizer state is given"


@dataclass(frozen=True)
class StepSettings:
    """The settings of `spectra step`.

    Attributes:
        k: the number of leading eigenvectors; 0: none.
        tolerance: the residual over |eigenvalue| at which an eigenpair has converged.
        optimizer: a torch.optim optimizer, its state dict, or a file, with `?name=AdamW` appended if the state does not
            name its class; None: the state in the checkpoint, if any.
        to: other checkpoints.
        noise: whether to estimate noise scales.
        population: whether the data are the whole population.
        rho: the radius of a ball.
        adaptive_rho: the radius of a ball with distances relative to the size of each parameter.
        ascent_steps: the number of steps of ascent in each ball; 0: no balls.
    """

    k: int = K
    tolerance: float = TOLERANCE
    optimizer: Any = None
    to: tuple[Any, ...] = ()
    noise: bool = True
    population: bool = False
    rho: float = RHO
    adaptive_rho: float = ADAPTIVE_RHO
    ascent_steps: int = ASCENT_STEPS

    command = "step"
    less_memory = ("`k`", "ask for fewer, or choose fewer parameters with `params`")

    def refuse(self, matrices: Sequence[str]) -> None:
        pass

    def refuse_size(self, size: int, products: int | None) -> None:
        if self.k:
            refuse_k(self.k, size)

    def basis(self, space: Shaped) -> Placement | None:
        return basis_of(space, self.k + 1) if self.k else None


def step(session: Session[StepSettings]) -> Record:
    """Analyse each direction for each matrix, and return the record."""
    session.load()
    problem = session.problem
    with session.resumable():
        point = Point.of(problem)
        directions, left_out = found_directions(session, point)
        along = slopes(problem, point.gradient, [d.vector for d in directions])
        matrix_set, blocks = MatrixSet(session, 2), parameter_blocks(problem, "layer")
        with session.listener.work("noise and worst case"):
            noise_and_balls = NoiseAndBalls.of(session)
        analyse = Analysis(session, matrix_set, blocks, directions, noise_and_balls)
        matrices = [matrix_set.matrix(problem, name, 20 + 3 * session.request.settings.k) for name in session.names]
        found = []
        while matrices:  # each is released after use
            found.append(analyse(matrices.pop(0)))
        guesses = next((m.answer.curvatures for m in found if definition(m.curvature).loss_power == 1), {})
        lines = {}
        with session.listener.work("loss along directions") as line:
            for d, slope, error in zip(directions, *along, strict=True):
                line.stage(d.name)
                curvature = guesses[d.name].value if d.name in guesses else None
                lines[d.name] = loss_along(problem, d, slope, error, curvature, point.norm)
    results = [step_result(measurement, directions, along, problem.size) for measurement in found]
    record = session.record(
        [], results, point=point_record(point, directions, along, lines, left_out, noise_and_balls.found())
    )
    if notes := [d.note for d in directions if d.note]:
        record = record.changed(problem=record.problem.changed(notes=[*(record.problem.notes or ()), *notes]))
    return with_earlier(record, found)


def loss_along(
    problem: Problem, d: Direction, slope: float, slope_error: float | None, curvature: float | None, size: float
) -> Line:
    """The loss along a direction; `size` is |theta|."""
    radius, show = NEARBY * (size or 1.0) / d.norm, 0.0 if d.unit == RATE else 1.0
    return search_line(problem, d.vector, slope, curvature, radius=radius, slope_error=slope_error, show=show)


def with_earlier(record: Record, found: Sequence[Measurement]) -> Record:
    """Add the file of eigenvectors that were used to the options of the record, so that --config works elsewhere."""
    taken = [m.answer.source for m in found if m.answer.source not in (None, "computed")]
    if not taken:
        return record
    options = (record.problem.options or {}) | {"eigenvectors": taken[0]}
    return record.changed(problem=record.problem.changed(options=options))


# Directions


def found_directions(session: Session[StepSettings], point: Point) -> tuple[list[Direction], list[str]]:
    """The directions that can be determined, and the reasons why others are left out.

    Raises SpectraError if there is none, or if a requested one cannot be determined.
    """
    problem, settings = session.problem, session.request.settings
    found, missing = [], {}  # the directions that are left out, by reason

    def take(what: str, make: Callable[[], Direction], asked_for: bool) -> None:
        try:
            found.append(make())
        except SpectraError as error:
            if asked_for:
                raise with_optimizer_name(error, settings.optimizer) from error
            missing.setdefault(reason_of(error).removeprefix(f"{what}: "), []).append(what)

    take("gradient", lambda: gradient_direction(point.gradient), asked_for=False)
    model, given = session.network.trained_model, settings.optimizer is not None
    try:
        state, without = find_optimizer(settings.optimizer, session.request.named.get("checkpoint")), NO_OPTIMIZER
    except SpectraError as error:
        if given:
            raise
        state, without = None, reason_of(error)
    if state is None:
        missing[without] = ["update", "momentum"]
    else:
        how = state.optimizer, state.name, model
        take("update", lambda: update_direction(problem, point.gradient, *how), given)
        take("momentum", lambda: momentum_direction(problem, *how), asked_for=False)
    key = session.request.named.get("checkpoint_key")
    for other, name in zip(settings.to, checkpoint_names(settings.to), strict=True):
        found.append(checkpoint_direction(problem, other, key, name))
    left_out = [f"{' and '.join(names)}: {reason}" for reason, names in missing.items()]
    if not found:
        raise SpectraError(f"`to`: there is no direction to analyse ({'; '.join(left_out)}); name another checkpoint")
    return found, left_out


def with_optimizer_name(error: SpectraError, optimizer: Any) -> SpectraError:
    """The error, with the name of the optimizer's file."""
    if not isinstance(optimizer, str | Path):
        return error
    return SpectraError(str(error).replace("`optimizer`: ", f"`optimizer` {quoted(str(optimizer))}: ", 1))


def reason_of(error: SpectraError) -> str:
    """The text of an error for a record, without names of arguments, since none was given."""
    return str(error).removeprefix("`optimizer`: ").replace("`", "")


def checkpoint_names(others: Sequence[Any]) -> list[str]:
    """The names of directions to other checkpoints; several are told apart by their files, or by numbers."""
    if len(others) == 1:
        return ["checkpoint"]
    files = [Path(other).name if isinstance(other, str | Path) else "" for other in others]
    distinct = len({*files}) == len(files) and all(files)
    return [f"checkpoint {files[i] if distinct else i + 1}" for i in range(len(others))]


# Matrices


@dataclass(frozen=True)
class MatrixResult:
    """The results for one matrix: curvatures and shares of directions, eigenpairs, noise and balls."""

    curvatures: Mapping[str, DirectionalCurvature]
    pairs: Eigenpairs | None
    k: int
    shares: Mapping[str, Alignment]
    source: str | None
    converged: bool
    noise: Mapping[str, Any]  # fields of the record on noise and balls


@dataclass(frozen=True)
class Cost:
    """The products of a matrix and of its diagonal blocks; one of the latter counts as many as there are blocks."""

    matrix: Counting
    own: Counting | None  # the diagonal blocks, if there are several
    blocks: int
    limit: int | None

    @property
    def spent(self) -> int:
        """The number of products made."""
        return self.matrix.products + (self.blocks * self.own.products if self.own else 0)

    @property
    def left(self) -> int | None:
        """The number of products that are left; None: no limit."""
        return None if self.limit is None else max(0, self.limit - self.spent)

    def allows(self, directions: int) -> bool:
        """Whether there is room for a product of either kind along so many directions."""
        return self.left is None or self.left >= directions * (1 + (self.blocks if self.own else 0))


@dataclass(frozen=True)
class Analysis:
    """The analysis of the same directions for one matrix after the other."""

    session: Session[StepSettings]
    matrix_set: MatrixSet
    blocks: list[ParameterBlock]
    directions: Sequence[Direction]
    noise_and_balls: NoiseAndBalls

    def __call__(self, matrix: PreparedMatrix) -> Measurement:
        """Analyse the directions for one matrix, and count the cost."""
        name, k, limit = matrix.curvature.name, self.session.request.settings.k, self.session.request.max_products
        generator = torch.Generator().manual_seed(self.session.request.seed)
        with self.session.listener.work(name) as progress:
            matrix.check(generator, limit)
            start, counted = time.perf_counter(), Counting(matrix.operator)
            own = Counting(self.blocks_of(matrix)) if len(self.blocks) > 1 else None
            cost = Cost(counted, own, len(self.blocks), None if limit is None else limit - matrix.checks)
            some, whole = self.directions[: cost.left], cost.allows(len(self.directions))
            noise = max(matrix.noise or 0.0, torch.finfo(counted.dtype).eps)
            curvatures = {d.name: curvature_along(counted, own if whole else None, self.blocks, d, noise) for d in some}
            pairs, source = self.leading(counted, name, generator, cost.left, progress) if k else (None, None)
        shares = {d.name: alignment(counted, pairs, k, d.vector) for d in some} if pairs and len(pairs.values) else {}
        with self.session.listener.work(f"{name}, noise and worst case"):
            more, apart = self.noise_and_balls.matrix(counted, name, cost.left)
        good = whole and (not k or (pairs is not None and pairs.converged and len(pairs.values) >= k))
        result = MatrixResult(curvatures, pairs, k if shares else 0, shares, source if shares else None, good, more)
        return matrix.measured(result, cost.spent + apart, time.perf_counter() - start)

    def blocks_of(self, matrix: PreparedMatrix) -> Any:
        """The diagonal blocks of the layers."""
        name, problem = matrix.curvature.name, self.session.problem
        made = diagonal_blocks(distributed(matrix.curvature), self.blocks, problem, name, self.matrix_set.memory)
        return self.session.remembered(made, f"{name}-blocks")

    def leading(
        self, operator: Counting, name: str, generator: torch.Generator, left: int | None, progress: Any
    ) -> tuple[Eigenpairs | None, str | None]:
        """The leading eigenpairs, one more than requested if there is one, and their source."""
        settings, n = self.session.request.settings, operator.shape[0]
        wanted, before = min(settings.k + 1, n), operator.products
        known = self.known(operator, name, None if left is None else left // 2)
        if left is not None:
            left = max(0, left - (operator.products - before))
        search = {"which": "LM", "tolerance": settings.tolerance, "generator": generator, "progress": progress}
        if known is None:
            return eigenpairs_unchecked(operator, wanted, max_products=left, **search), "computed"
        pairs, source = known
        if len(pairs.values) >= wanted:
            return pairs, source
        rest = eigenpairs_unchecked(Deflated(operator, pairs.vectors), wanted - settings.k, max_products=left, **search)
        return followed_by(pairs, rest), source

    def known(self, operator: Counting, name: str, room: int | None) -> tuple[Eigenpairs, str] | None:
        """Eigenpairs from an earlier result of `eig`, k or k + 1 of them, and its file; None if there are too few."""
        earlier = self.session.arrays_of_earlier()
        if earlier is None:
            return None
        needed = {"LM": self.session.request.settings.k}
        found = leading_eigenpairs(self.session, earlier, operator, name, needed, room, extra=1)
        return None if found is None else (found[1], str(earlier.with_suffix(".json")))


def followed_by(pairs: Eigenpairs, rest: Eigenpairs) -> Eigenpairs:
    """The pairs, followed by the eigenvalues `rest` of a search with the pairs projected out, without eigenvectors.

    The error of such an eigenvalue is bounded by its residual plus those of the pairs that were projected out.
    """
    residuals = rest.residuals + pairs.residuals.square().sum().sqrt()
    return replace(
        pairs,
        values=torch.cat([pairs.values, rest.values]),
        residuals=torch.cat([pairs.residuals, residuals]),
        error_estimates=torch.cat([pairs.error_estimates, residuals]),
        complete=rest.complete,
        converged=rest.converged,
    )
