"""Carry out a request: load its problem, apply methods to each matrix, and save the results.

Nothing here prints or knows of a command line: a `Listener` receives progress and notes.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, cast

import torch

from spectra.cluster import ranks
from spectra.curvature.engine.autotuning import Autotuner
from spectra.curvature.finite_differences import FORMS, FiniteDifferences
from spectra.curvature.operator import Curvature
from spectra.defaults import EXACT
from spectra.devices import as_current
from spectra.errors import SpectraError
from spectra.inputs.operators import Operators
from spectra.krylov.results import Eigenpairs
from spectra.memory import explain_out_of_memory, fixed_basis_place, fixed_memory_share, host_share, memory_share
from spectra.operator import Counting, SymmetricOperator, mesh_of
from spectra.problem.problem import Problem, Processes
from spectra.quoting import quoted
from spectra.records.entry import Entry
from spectra.records.files import prepare_directory, remove_empty
from spectra.records.problem import ProblemRecord
from spectra.records.record import Record
from spectra.resume.journal import CheckpointedOperator
from spectra.resume.state import State
from spectra.run import basis
from spectra.run.earlier_eigenpairs import eigenpairs, other_preconditioning
from spectra.run.listener import Caller, Listener
from spectra.run.loading import checks_of, idle_cards
from spectra.run.matrix_source import Matrix, MatrixSource
from spectra.run.measurement import Measurement, imprecise, in_ieee_instead, measure
from spectra.run.network import Network
from spectra.run.operators import GivenOperators
from spectra.run.request import Request, S
from spectra.vectors import shard_sizes, without_autocast


class Session(Generic[S]):
    """A context that carries out a request, and restores the model and global state on leaving."""

    def __init__(self, request: Request[S], listener: Listener | None = None):
        self.request, self.listener = request, listener or Caller()
        self.matrix_source = matrix_source_of(request)
        self.processes = Processes()
        self.state: State | None = None  # for a run that can be resumed
        self.device: torch.device  # once loaded
        self.problem_record: ProblemRecord
        self._stack = ExitStack()

    def __enter__(self) -> Session[S]:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the matrices; once loaded, only those that the problem has."""
        return self.matrix_source.names

    @property
    def network(self) -> Network:
        """The network of the run; only for commands that take no operators."""
        return cast(Network, self.matrix_source)

    @property
    def problem(self) -> Problem:
        """The problem of the network, once loaded."""
        return self.network.problem

    def load(self, complete: Callable[[], ProblemRecord] | None = None) -> None:
        """Load the subject, so that products can be computed.

        Errors are raised as early as possible: before the model is built, or before data are read. At the end,
        `complete` returns the record of the problem, and the listener gets it as the heading.
        """
        request = self.request
        request.refuse()
        with self.listener.work("loading") as line:
            line.stage("PyTorch")
            device = self.matrix_source.device()
            self.matrix_source.refuse_early(device)
            if ranks.world() > 1:
                line.stage("waiting for the other ranks")
            self.processes = self.matrix_source.processes(device)
            self.device = device = self.matrix_source.device()  # each of torchrun's ranks has its own GPU
            self.listener.begin()
            self.prepare()
            if request.out and request.save_every:
                self.state = self._open_state(request.out / f"{request.settings.command}.state", request.save_every)
            settled = self.state and self.state.settled
            self._stack.enter_context(as_current(device))
            share = settled["memory_share"] if settled else memory_share(device)
            share = self.processes.least(share)
            self._stack.enter_context(fixed_memory_share(share))
            self._stack.enter_context(torch.inference_mode(False))  # autograd is on, whatever the caller has set
            self._stack.enter_context(self.matrix_source.preserved())
            self.matrix_source.load(self.processes, line.stage)
            self.problem_record = self.matrix_source.record
            self._stack.enter_context(without_autocast())  # the user's file may have switched autocast on
            request.verify(self.problem_record)
            place, notes = self._settle_basis()
            if self.state:
                self._stack.callback(self.state.close)
                self.state.begin(self.fingerprint(), settled or {"memory_share": share, **place})
        record = complete() if complete else self.problem_record
        self.problem_record = record.changed(notes=[*(record.notes or ()), *notes]) if notes else record
        for text in [*self.matrix_source.initial_notes, *filter(None, [idle_cards(request, device)])]:
            self.listener.note(text)
        self.listener.heading(self.problem_record)

    def _settle_basis(self) -> tuple[dict[str, Any], list[str]]:
        """Choose the memory for bases: that of the unfinished run, unless another is requested.

        Returns the settings for a resumed run, and notes for the reader.
        """
        space, requested = self.matrix_source.space, self.request.basis
        before = (self.state and self.state.settled) or {}
        on_cpu = space.device.type == "cpu"
        share = before.get("host_share", 0 if on_cpu else self.processes.least(host_share()))
        place = before.get("basis", "auto") if requested == "auto" else requested
        with fixed_basis_place(place, share):
            found = self.request.settings.basis(space)
        place = basis.name_of(found, space) if found else place
        self._stack.enter_context(fixed_basis_place(place, share))
        notes = list(basis.notes(found, space, requested)) if found else []
        return {"basis": place, "host_share": share}, notes

    def prepare(self) -> None:
        """Check that files can be written; a directory that is made for this is removed on leaving if it is empty."""
        home = self.request.artifacts_dir or self.request.out
        if home and self.first:
            self._stack.callback(partial(remove_empty, prepare_directory(home, self.request.settings.command)))

    def _open_state(self, directory: Path, minutes: float) -> State:
        """Open the state of an unfinished run of the same command, or a new one."""
        note, shared = self.listener.note, self.processes
        return State(directory, 60 * minutes, note, shared.rank, shared.least)

    @property
    def checks(self) -> int:
        """The number of products for checking that a matrix is symmetric."""
        return checks_of(self.request)

    @property
    def first(self) -> bool:
        """Whether this process writes files and reports; only rank 0 does."""
        return (ranks.rank() if self.request.ranks else self.processes.rank) == 0

    def fingerprint(self) -> dict[str, Any]:
        """The inputs on which the numbers of this command depend, for a resumed run to compare."""
        record = self.problem_record
        found = {
            "command": self.request.settings.command,
            **self.recorded_options(),
            "version": (record.versions or {})["spectra"],
            **self.matrix_source.fingerprint(),
            **getattr(self.request.settings, "fingerprint", dict)(),  # further files
            "device": (record.device or "").partition(":")[0],  # without its index
            "ranks": record.ranks,
        }
        found.pop("basis", None)  # an unfinished run may have had another
        return found

    def recorded_options(self) -> dict[str, Any]:
        """The options that were requested, with only the matrices that the problem has."""
        options = dict(self.request.options)
        if "curvature" in options:
            options["curvature"] = [name for name in options["curvature"] if name in self.names]
        return options

    def matrices(self, products: int = 100, names: Sequence[str] = (), precision: str | None = None) -> list[Any]:
        """The requested matrices, or those in `names`, each for this many products.

        `precision` overrides the requested one. All are made before any product is computed.
        """
        make, memory = self.matrix_source.matrix, self.request.memory
        return [make(self, name, products, memory, precision) for name in names or self.names]

    def matrix(
        self, problem: Problem, name: str, products: int, memory: int | None, precision: str | None = None
    ) -> Curvature:
        """Make the matrix `name` of a problem, for this many products and this much memory."""
        expected = min(products, self.request.max_products or products)
        precision = precision or self.request.precision
        if self.request.products != EXACT:
            form, step = FORMS[self.request.products], self.request.difference_step
            return FiniteDifferences(problem, form, step, memory, expected, self.request.check, self.listener.note)
        choices = Autotuner(self.state.choices if self.state else None)
        return Curvature(
            problem,
            name,
            memory,
            expected,
            self.request.check,
            choices,
            precision,
            self.request.compile,
            self.listener.note,
        )

    def measure(self, method: Callable, reuse: bool = False, **which) -> list[Measurement]:
        """Apply `method(operator, generator=, max_products=, progress=)` to each of `matrices(**which)`, from one seed.

        With `reuse` the method also gets `known=`: eigenpairs of an earlier `eig`, or None.
        """
        matrices, found = self.matrices(**which), []
        earlier = self.arrays_of_earlier() if reuse else None
        while matrices:
            matrix = matrices.pop(0)  # its memory is freed at the end
            with self.resumable():
                found.append(self._measure_resumable(matrix, method, reuse, earlier))
        return found

    def arrays_of_earlier(self) -> Path | None:
        """The file of arrays of an earlier `eig`, if every process finds it; otherwise None.

        Raises SpectraError if a named file belongs to matrices with another preconditioner, or without one.
        """
        request, now = self.request, self.problem_record.get("precondition")
        earlier = request.arrays_of_earlier()
        if earlier and (how := other_preconditioning(earlier, now)):
            text = f"its matrices are {quoted(how)}, unlike those of this run"
            if request.earlier:
                raise SpectraError(f"`{request.earlier_option}` {request.earlier}: {text}; give another result of eig")
            self.listener.note(f"{earlier}: {text}, so its eigenvectors are not used")
            earlier = None
        return earlier if self.processes.least(earlier is not None) else None

    def _measure_resumable(self, matrix: Matrix, *how) -> Measurement:
        """Return the answer that an earlier run saved, or measure now, and save products and the answer."""
        operator = self.operator(matrix, matrix.name)
        if not isinstance(operator, CheckpointedOperator):
            return self._measure_one(matrix, operator, *how)
        if kept := operator.answer():
            return Measurement.of(kept)
        found = self._measure_one(matrix, operator, *how)
        found = replace(found, seconds=found.seconds + operator.journal.seconds)
        operator.journal.finish(found.packed())
        return found

    def operator(self, matrix: Matrix, name: str) -> SymmetricOperator:
        """The operator to multiply by: distributed over ranks, with its products logged under this name."""
        return self.remembered(self.matrix_source.distributed(matrix), name)

    def remembered(self, operator: SymmetricOperator, name: str) -> SymmetricOperator:
        """The operator with its products logged in the state, from which a resumed run reads them."""
        if not self.state:
            return operator
        journal = self.state.journal(file_name(name))
        part = shard_sizes(mesh_of(operator), operator.shape[0])[0]  # of a vector, in rank 0
        if held := journal.held(part * operator.dtype.itemsize):
            self.listener.note(f"{name}: resumes after {held} products of an earlier run ({self.state.directory})")
        return CheckpointedOperator(operator, journal)

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """A context that reports where an interrupted run is saved, and removes it after an error that would recur."""
        try:
            with explain_out_of_memory(*self.request.settings.less_memory):
                yield
        except SpectraError:
            if self.state and not self.state.settled:  # otherwise the work of an earlier run would be lost
                self.state.remove()
            raise
        except KeyboardInterrupt as error:
            if self.state:
                error.args = (f"{self.state.directory} holds the work so far; run the same command again to resume",)
            raise

    def _measure_one(
        self, matrix: Matrix, operator: SymmetricOperator, method: Callable, reuse: bool, earlier: Path | None
    ) -> Measurement:
        limit, agree = self.request.max_products, self.processes.least

        def known(counted: Counting) -> Eigenpairs | None:
            if not (earlier and self.checks):
                return None
            room = None if limit is None else (limit - counted.products) // 4  # for checking them
            return eigenpairs(earlier, counted, matrix.name, self.listener.note, agree, most=room)

        with self.listener.work(matrix.name) as progress:
            return measure(
                matrix,
                method,
                operator,
                seed=self.request.seed,
                check=bool(self.checks),
                known=known if reuse else None,
                earlier=earlier,
                left=lambda spent: None if limit is None else limit - spent,
                progress=progress,
            )

    def record(self, found: Sequence[Measurement], results: Sequence[Entry], **parts: Any) -> Record:
        """Make the record of the request, its problem and its results; `parts` are further fields."""
        options = self.recorded_options()
        if used := [m.earlier for m in found if m.earlier]:
            options["deflate"] = str(used[0].with_suffix(".json"))  # so that --config repeats it with another --out
        notes = [
            *(self.problem_record.notes or ()),
            *(imprecise(found, self.matrix_source.space.dtype, self.matrix_source.computes) if found else ()),
        ]
        notes += in_ieee_instead(self.request.precision, results)
        problem = self.problem_record.changed(notes=notes, options=options)
        return Record(command=self.request.settings.command, problem=problem, results=list(results), **parts)

    def save_record(self, record: Record) -> None:
        """Write the record and its arrays to `out`, and remove the state for resuming."""
        if self.request.out and self.first:
            record.save(self.request.out)
        if self.state:
            self.state.remove()


def matrix_source_of(request: Request) -> MatrixSource:
    """The subject of a request: given operators or a network."""
    given = request.problem
    return GivenOperators(request, given) if isinstance(given, Operators) else Network(request)


def file_name(name: str) -> str:
    """A file name for the name of a matrix: the name itself if it has only plain characters, otherwise with a hash."""
    plain = re.sub(r"[^\w ,.()+=-]", "_", name)[:60].lstrip(".")
    return name if plain == name and name else f"{plain}-{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"
