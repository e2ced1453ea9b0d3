"""What the commands that spend products do: load the problem, apply a method to each matrix, keep what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from spectra.cli.config import NOT_RECORDED, plain, refuse_beyond, refuse_changed
from spectra.cli.early import load_suited, refuse_at_once
from spectra.cli.progress import begin_work, progress_line, tell_heading
from spectra.cli.reuse import eigenpairs, source
from spectra.cli.terminal import LESS_MEMORY, note, usual_heading
from spectra.cluster import ranks
from spectra.run.measurement import Measurement, measured

SMALLEST_CHECKED = 8  # products; of fewer, the checks would leave too little


class Session:
    """The command that is running, the options that it was given, and its problem once loaded."""

    def __init__(self):
        self.context = click.get_current_context()
        self.command: str = self.context.command.name
        self.options: dict[str, Any] = self.context.params
        refuse_beyond(self.context)
        self.state = None  # of a command that can be resumed
        self.processes = None  # torchrun's ranks; this one alone

    def load(self, home: Path | None = None, heading: Callable[[Any], str] = usual_heading):
        """The problem, ready for products, and its record; `home` is where files go, --out unless given.

        What can be refused before the model is built, or before data are read, is refused then. In the end the
        `heading` of the answer is told.
        """
        refuse_at_once(self.options)
        with progress_line("loading") as line:
            line.stage("PyTorch")
            from spectra.inputs.problem import choose_device
            from spectra.memory import memory_share, settled_share
            from spectra.vectors import without_autocast

            device = choose_device(self.options["device"])
            line.stage("waiting for the other ranks")
            self.processes = processes(device)
            begin_work()
            self.prepare(home or self.options["out"])
            if self.options["out"] and "save_every" in self.options:
                directory = self.options["out"] / f"{self.command}.state"
                self.state = open_state(directory, self.options["save_every"], self.processes)
            settled = self.state and self.state.settled
            share = settled["memory_share"] if settled else memory_share(device)
            share = self.processes.least(share)
            self.context.with_resource(settled_share(share))
            self.loaded = load_suited(self.context, self.checks, self.processes, line.stage)
            self.context.with_resource(without_autocast())  # which the user's file may have switched on
            refuse_changed(self.context, self.loaded.record)
            if self.state:
                self.context.call_on_close(self.state.close)
                self.state.begin(self.fingerprint(), {"memory_share": share})
        tell_heading(heading(self.loaded))
        return self.loaded

    def prepare(self, home: Path | None) -> None:
        """See that files can be written there; a directory that is made for that goes if nothing comes into it."""
        from spectra.records.files import prepare_directory, remove_empty

        if home and self.first:
            self.context.call_on_close(partial(remove_empty, prepare_directory(home, self.command)))

    @property
    def checks(self) -> int:
        """Products that go to seeing that a matrix is one; none where too few would be left."""
        from spectra.operator import CHECKS

        limit = self.options["max_products"]
        return CHECKS if limit is None or limit >= SMALLEST_CHECKED else 0

    @property
    def first(self) -> bool:
        """Whether this process writes and tells: of torchrun's ranks one does."""
        return ranks.rank() == 0

    def fingerprint(self) -> dict[str, Any]:
        """What the numbers of this command depend on."""
        record = self.loaded.record
        return {
            "command": self.command,
            **self.asked(),
            "version": record["versions"]["spectra"],
            "mean loss": record["loss_value"],  # which tells of code that has changed
            "checkpoint_sha256": record["checkpoint_sha256"],
            "data_checksum": checksum(self.loaded.problem.batches),
            "device": record["device"],
            "ranks": record["ranks"],
        }

    def asked(self) -> dict[str, Any]:
        """The options that say what is to be computed."""
        return {name: plain(value) for name, value in self.options.items() if name not in NOT_RECORDED}

    def matrices(self, products: int = 100, names: Sequence[str] = ()) -> list:
        """Those asked for, or named, for so many products each: all can be made before any is computed."""
        from spectra.curvature.operator import Curvature

        problem, memory, check = self.loaded.problem, self.options["memory"], not self.options["no_check"]
        expected = min(products, self.options["max_products"] or products)
        return [
            Curvature(problem, name, memory, expected, check)
            for name in dict.fromkeys(names or self.options["curvature"])
        ]

    def measure(self, method: Callable, reuse: bool = False, **which) -> list[Measurement]:
        """`method(operator, generator=, max_products=, progress=)` on each of `matrices(**which)`, from the same seed.

        With `reuse` it is also given `known=`: eigenpairs that an earlier `eig` has left, or None.
        """
        matrices, found = self.matrices(**which), []
        earlier = source(self.options) if reuse else None
        if not self.processes.least(earlier is not None):
            earlier = None
        while matrices:
            matrix = matrices.pop(0)  # gives its memory back in the end
            with self.resumable():
                found.append(self._measure_resumable(matrix, method, reuse, earlier))
        return found

    def _measure_resumable(self, matrix, *how) -> Measurement:
        """What an earlier run has found; else `_measure_one`, its products written down on the way, then its answer."""
        operator = self.operator(matrix, matrix.name)
        if not self.state:
            return self._measure_one(matrix, operator, *how)
        if kept := operator.answer():
            return Measurement.of(kept)
        found = self._measure_one(matrix, operator, *how)
        found = replace(found, seconds=found.seconds + operator.journal.seconds)
        operator.journal.finish(found.packed())
        return found

    def operator(self, matrix, name: str):
        """A matrix to be multiplied by: of all ranks, its products written down under this name where results are."""
        from spectra.cluster.distributed import distributed

        return self.remembered(distributed(matrix), name)

    def remembered(self, operator, name: str):
        """The same operator, its products written down where results are."""
        from spectra.operator import mesh_of
        from spectra.resume.journal import Remembering
        from spectra.vectors import sizes

        if not self.state:
            return operator
        journal = self.state.journal(name)
        part = sizes(mesh_of(operator), operator.shape[0])[0]  # of a vector, at the first
        if held := journal.held(part * operator.dtype.itemsize):
            note(f"{name}: goes on after {held} products of an earlier run ({self.state.directory})")
        return Remembering(operator, journal)

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Tell where what is done is held, if interrupted; leave nothing after an error that would come again."""
        from spectra.errors import SpectraError
        from spectra.memory import taking_memory

        try:
            with taking_memory(*LESS_MEMORY[self.command]):
                yield
        except SpectraError:
            if self.state and not self.state.settled:  # else what an earlier run has done would be lost
                self.state.remove()
            raise
        except KeyboardInterrupt as error:
            if self.state:
                error.args = (f"{self.state.directory} holds what is done, and the same command goes on from there",)
            raise

    def _measure_one(self, matrix, operator, method: Callable, reuse: bool, earlier: Path | None) -> Measurement:
        from spectra.krylov.streams import BESIDE_EIGENVECTORS, stream
        from spectra.operator import Counting, check_operator

        with progress_line(matrix.name) as progress:
            matrix.prepare()
            start = time.perf_counter()
            counted = Counting(operator)
            generator = stream(self.options["seed"])
            limit = self.options["max_products"]
            noise = check_operator(counted, generator) if self.checks else None
            room = None if limit is None else (limit - counted.products) // 4  # for the checks of known eigenpairs
            agree = self.processes.least
            known = eigenpairs(earlier, counted, matrix.name, agree, most=room) if earlier and self.checks else None
            if known:
                generator = stream(self.options["seed"], BESIDE_EIGENVECTORS)
            spent = counted.products
            answer = method(
                counted,
                **({"known": known} if reuse else {}),
                generator=generator,
                max_products=None if limit is None else limit - spent,
                progress=progress,
            )
            seconds = time.perf_counter() - start
        return measured(
            matrix,
            gathered(answer),
            products=spent + answer.products,
            seconds=seconds,
            setup_seconds=matrix.setup_seconds,
            noise=noise,
            projected_out=len(known.values) if known else 0,
            earlier=earlier if known else None,
        )

    def record(self, found: list[Measurement], results: list[dict[str, Any]]) -> dict[str, Any]:
        """The whole record: what was asked, of which problem, and what came out."""
        from spectra.records.files import make_record
        from spectra.run.measurement import imprecise

        asked = self.asked()
        if used := [m.earlier for m in found if m.earlier]:
            asked["deflate"] = str(used[0].with_suffix(".json"))  # so that --config repeats it without this --out
        notes = [*self.loaded.record["notes"], *(imprecise(found, self.loaded.problem.dtype) if found else ())]
        return make_record(self.command, {**self.loaded.record, "notes": notes, "options": asked}, results)

    def draw(self, figures: dict[str, Any]) -> list[str]:
        """Write `<name>.png` for each figure that there is; their paths."""
        from spectra.plots.style import save_figure
        from spectra.records.files import write_atomically

        paths = {name: self.options["out"] / f"{name}.png" for name, figure in figures.items() if figure}
        for name, path in paths.items():
            if self.first:
                write_atomically(path, lambda file, name=name: save_figure(figures[name], file, "png"))
        return [str(path) for path in paths.values()]

    def write(self, record: dict[str, Any], arrays: dict[str, Any]) -> None:
        from spectra.records.files import save

        if self.options["out"] and self.first:
            save(self.options["out"], record, arrays)
        if self.state:
            self.state.remove()


def processes(device):
    """The ranks that torchrun has started, met; or this process alone."""
    if ranks.world() > 1:
        from spectra.cluster.distributed import join

        return join(device)
    from spectra.problem.problem import Processes

    return Processes()


def gathered(answer):
    """The same with eigenvectors that are sharded all at rank 0, where they are written."""
    from spectra.vectors import at_first

    return replace(answer, vectors=at_first(answer.vectors)) if hasattr(answer, "vectors") else answer


def open_state(directory: Path, save_every: float, shared):
    """What an unfinished run of the same command has left, or an empty place for it."""
    from spectra.resume.state import State

    return State(directory, 60 * save_every, note, shared.rank, shared.least)


def checksum(batches: Sequence) -> int:
    """Of all their tensors."""
    import zlib

    from spectra.curvature.engine.footprint import tensors
    from spectra.resume.journal import as_bytes

    found = 0
    for batch in batches:
        for tensor in tensors(batch):
            found = zlib.crc32(as_bytes(tensor), found)
    return found
