"""The journal of one matrix: products are saved as they are computed, and a resumed run reads them back.

A method is a function of its products and of a seed: with the same products it takes the same path, bit for bit. A
saved product is used only for exactly the same vector; from the first vector that differs, as it may on another kind of
processor, all products are computed again. When a checkpointed step (`spectra.operator.checkpointed`) ends, its outcome
replaces its products. When a matrix is finished, its answer replaces everything.

The first vector and its product in ieee precision are kept as a sample. A resumed run computes that product again and
compares, before it uses anything else.
"""

from __future__ import annotations

import io
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from spectra.errors import SpectraError
from spectra.operator import (
    Factored,
    SymmetricFactor,
    SymmetricOperator,
    Wrapper,
    empty_rows,
    reference,
    refuse_other_dtype,
)
from spectra.resume.journal_file import Entry, Log, write_whole
from spectra.vectors import local, map_shards, norm

KINDS = ("sample", "products", "steps", "done")


@dataclass(frozen=True)
class JournalSettings:
    """The settings that the journals of one state share; the defaults are those of a single journal.

    Attributes:
        owner: the state that the files belong to.
        save_every: the seconds between syncs to the disk.
        failed: called with an error of the disk, after which nothing more is written.
        least: returns the minimum of a number over all processes, so that all read a product back or all multiply.
        note: called with a message for the user.
    """

    owner: str = ""
    save_every: float = 60.0
    failed: Callable[[Exception], None] = lambda error: None
    least: Callable[[int], int] = int
    note: Callable[[str], None] = lambda text: None


class Journal:
    """The products and finished steps of one matrix, in order.

    A position counts the steps, and the products outside of them. PATH.products holds a record for each product since
    the last step, PATH.steps one for each step, PATH.done the answer of a finished matrix, and PATH.sample the sample
    that they are checked by.
    """

    def __init__(self, path: Path, settings: JournalSettings | None = None):
        self.seconds = 0.0  # that the results read back took when they were computed
        self._path, self._settings = path, settings or JournalSettings()
        with ExitStack() as stack:  # closes the logs before one that is refused
            paths = (path.with_name(f"{path.name}.{kind}") for kind in KINDS)
            logs = [stack.enter_context(closing(Log(each, self._settings.owner))) for each in paths]
            stack.pop_all()
        self._sample, self._products, self._steps, self._done = logs

        finished = {entry.position for entry in self._steps.entries}
        made = self._products.entries
        self._products.cut(next((i for i, entry in enumerate(made) if entry.position in finished), len(made)))

        self._position = self._place = self._next = self._spent = 0
        self._inside, self._repeating, self._writing = False, True, True
        self._trusted = not any(log.entries for log in (self._products, self._steps, self._done))
        self._synced = time.monotonic()

        for log in self._logs:
            self._tell_damage(log)
        if self._trusted:
            self._sample.cut(0)  # a run that ended before it saved any result may have had other code

    @property
    def _logs(self) -> tuple[Log, ...]:
        return self._sample, self._products, self._steps, self._done

    def held(self, vector_bytes: int) -> int:
        """The number of products that are saved, given the bytes of a vector."""
        made = sum(entry.size for entry in self._products.entries) // max(vector_bytes, 1)
        return made + sum(entry.mark for entry in self._steps.entries)

    def product(self, operator: SymmetricOperator, vectors: Tensor) -> Tensor:
        """Return `operator @ vectors`: the product that an earlier run saved at this point, or a new one."""
        self._trust(operator)
        self._spent += 1 if vectors.ndim == 1 else vectors.shape[1]

        mark = zlib.crc32(as_bytes(vectors))
        if self._repeating:
            found = self._made(mark, vectors)
            if self._settings.least(found is not None):
                self.seconds += self._products.entries[self._next].seconds
                self._next += 1
                self._advance()
                return cast(Tensor, found)  # all processes have it
            self._stop_repeating()

        start = time.perf_counter()
        product = operator @ vectors
        seconds = time.perf_counter() - start
        if reference(operator) is operator:
            self._write_sample(vectors, product)
        self._write(self._products, self._place, mark, seconds, as_bytes(product))
        self._advance()
        return product

    def _advance(self) -> None:
        if self._inside:
            self._place += 1
        else:
            self._position += 1

    def checkpointed(self, operator: SymmetricOperator, compute: Callable[[], Any], generator: torch.Generator) -> Any:
        """Return the saved outcome of `compute()` and restore the generator's state after it, or run it now."""
        if self._inside:
            return compute()

        self._trust(operator)
        step = self._finished()
        if self._settings.least(step is not None):
            outcome, state, seconds = cast("tuple[Any, Tensor, float]", step)  # all processes have it
            generator.set_state(state)
            self.seconds += seconds
        else:
            outcome = self._take_step(compute, generator)
        self._position += 1
        return outcome

    def _take_step(self, compute: Callable[[], Any], generator: torch.Generator) -> Any:
        first = self._next if self._repeating else len(self._products.entries)
        start, again, spent = time.perf_counter(), self.seconds, self._spent
        self._inside, self._place = True, 0
        try:
            outcome = compute()
        finally:
            self._inside, self._place = False, 0

        seconds = time.perf_counter() - start + self.seconds - again
        content = io.BytesIO()
        torch.save((outcome, generator.get_state(), seconds), content)
        self._drop_steps()
        self._write(self._steps, 0, self._spent - spent, seconds, np.frombuffer(content.getvalue(), "u1"))
        if self._writing:
            self._products.cut(first)
            self._next = min(self._next, first)
        return outcome

    def finish(self, answer: Any) -> None:
        """Save the answer (CPU tensors, numbers, strings and containers of these) in place of products and steps."""
        if not self._writing:
            return
        try:
            write_whole(self._done.path, self._settings.owner, lambda file: torch.save(answer, file))
        except (OSError, RuntimeError) as error:  # torch's writer hides errors of the disk
            self._fail(error)
        else:
            self._products.cut(0)
            self._steps.cut(0)

    def answer(self, operator: SymmetricOperator) -> Any | None:
        """The answer that `finish` saved in an earlier run, or None."""
        found = None
        if self._done.entries:
            found = self._done.load(self._done.entries[0], lambda file: torch.load(file, weights_only=True))
            self._tell_damage(self._done)
        if not self._settings.least(found is not None):
            return None
        self._trust(operator)
        return found if self._done.entries else None

    def _made(self, mark: int, vectors: Tensor) -> Tensor | None:
        """The saved product, if it is the next one, with the memory layout of `vectors`; otherwise None."""
        entry = next(iter(self._products.entries[self._next : self._next + 1]), None)
        if entry is None or (entry.position, entry.place, entry.mark) != (self._position, self._place, mark):
            return None
        product = torch.empty_like(vectors)
        whole = filled(local(product), self._products, entry)
        self._tell_damage(self._products)
        return product if whole else None

    def _trust(self, operator: SymmetricOperator) -> None:
        """Check with the sample that the saved results belong to this matrix.

        If the sample is missing, everything else is dropped. Raises SpectraError if the product of the sample has
        changed.
        """
        if self._trusted:
            return
        self._trusted = True

        vector, then = (empty_rows(operator, 1)[0] for _ in range(2))
        entries = self._sample.entries
        whole = len(entries) == 2 and all(map(filled, map(local, (vector, then)), [self._sample] * 2, entries))
        if self._settings.least(whole):
            self._refuse_another(reference(operator) @ vector, then)
            return

        self._settings.note(
            f"{self._sample.path} is missing or damaged, so the results that depend on it are computed again"
        )
        for log in self._logs:
            log.cut(0)

    def _refuse_another(self, now: Tensor, then: Tensor) -> None:
        """Raise SpectraError if a repeated product has changed, which means that code or data have changed."""
        change = norm(now - then) / max(norm(then), torch.finfo(then.dtype).tiny)
        if not self._settings.least(change <= torch.finfo(then.dtype).eps ** 0.5):
            home = self._path.parent
            raise SpectraError(
                f"`out` {home.parent}: a matrix-vector product differs from that of the unfinished run there, so the "
                f"model's code or the data have changed; restore them, or remove {home}"
            )

    def _finished(self) -> tuple[Any, Tensor, float] | None:
        """The saved step at this position: its outcome, the generator's state and its time in seconds."""
        entry: Entry | None = next((e for e in self._steps.entries if e.position == self._position), None)
        content = self._steps.content(entry) if entry and self._repeating else None
        self._tell_damage(self._steps)
        return None if content is None else torch.load(io.BytesIO(content.tobytes()), weights_only=True)

    def _stop_repeating(self) -> None:
        self._repeating = False
        self._products.cut(self._next)
        self._drop_steps()

    def _drop_steps(self) -> None:
        """Drop the steps from here on, since they follow products that are no longer there."""
        kept = [entry for entry in self._steps.entries if entry.position < self._position]
        self._steps.cut(len(kept))

    def _write_sample(self, vectors: Tensor, product: Tensor) -> None:
        """Save the first vector that is multiplied, and its product."""
        if self._writing and not self._sample.entries:
            for part in (vectors, product):
                first = part if part.ndim == 1 else map_shards(lambda columns: columns[:, 0], part)
                self._write(self._sample, 0, 0, 0.0, as_bytes(first))

    def _write(self, log: Log, place: int, mark: int, seconds: float, content: np.ndarray) -> None:
        if not self._writing:
            return
        try:
            log.append(self._position, place, mark, seconds, content)
            if time.monotonic() > self._synced + self._settings.save_every:
                self.sync()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._writing = False
        self._settings.failed(error)

    def _tell_damage(self, log: Log) -> None:
        if log.damaged:
            self._settings.note(f"{log.path} is damaged, so the results after the damage are computed again")
            log.damaged = False

    def sync(self) -> None:
        """Sync all files to the disk. Raises OSError."""
        for log in self._logs:
            log.sync()
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync all files to the disk and close them."""
        with suppress(OSError):
            self.sync()
        for log in self._logs:
            log.close()


class CheckpointedOperator(Wrapper):
    """The wrapped matrix, with its products saved in a journal."""

    def __init__(self, operator: SymmetricOperator, journal: Journal):
        super().__init__(operator)
        self.journal = journal

    @property
    def ieee(self) -> CheckpointedOperator:
        """The matrix in ieee precision, with its products in the same journal; `self` if it already is."""
        inner = reference(self.operator)
        return self if inner is self.operator else CheckpointedOperator(inner, self.journal)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        refuse_other_dtype(self, vectors)
        return self.journal.product(self.operator, vectors)

    def checkpointed(self, compute: Callable[[], Any], generator: torch.Generator) -> Any:
        """Run `compute()` as a checkpointed step of the journal."""
        return self.journal.checkpointed(self.operator, compute, generator)

    def answer(self) -> Any | None:
        """The answer that the journal saved at the end of an earlier run (`Journal.finish`), or None."""
        return self.journal.answer(self.operator)

    def factor(self) -> SymmetricFactor:
        """The wrapped operator's factor, whose passes over the data are not saved."""
        return cast(Factored, self.operator).factor()


def filled(part: Tensor, log: Log, entry: Entry) -> bool:
    """Fill a tensor with a record, and return whether the record is intact and of the tensor's size."""
    room = part if part.is_cpu and part.is_contiguous() else torch.empty(part.shape, dtype=part.dtype)
    if entry.size != part.nbytes or not log.read(entry, as_bytes(room)):
        return False
    if room is not part:
        part.copy_(room)
    return True


def as_bytes(tensor: Tensor) -> np.ndarray:
    """The bytes of this process's shard of a tensor, in the order of its indices, on the host."""
    return local(tensor).detach().contiguous().cpu().numpy().reshape(-1).view("u1")
