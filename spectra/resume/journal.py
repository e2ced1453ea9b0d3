"""The products of one matrix, written down as they are made and given again to a run that repeats the last.

A method is a function of the products it is given and of a seed: with the same products it takes the same way, bit for
bit. A product is given again only for the very vector it was made of; from the first that differs, as on another kind
of processor it may, all are made anew. Of a step that has ended, with nothing left but its outcome
(`spectra.operator.once`), the outcome replaces the products.
"""

from __future__ import annotations

import io
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectra.errors import SpectraError
from spectra.operator import SymmetricFactor, SymmetricOperator, Wrapper
from spectra.resume.log import Entry, Log
from spectra.vectors import local, norm


class Journal:
    """Products and finished steps, in order; a position counts the steps and the products outside of them.

    PATH.products holds a record for each product since the last step, PATH.steps one for each step. They are brought to
    the disk itself every `save_every` seconds; an error of the disk is told to `failed`, and nothing more is written.
    `agree` tells each of several processes the least of their numbers, so that all give again or all multiply.
    """

    def __init__(
        self, path: Path, save_every: float, failed: Callable[[OSError], None], agree: Callable[[int], int] = int
    ):
        self.seconds = 0.0  # that what is given again took when it was made
        self._save_every, self._failed, self._agree = save_every, failed, agree
        self._products, self._steps = (Log(path.with_name(f"{path.name}.{kind}")) for kind in ("products", "steps"))
        finished = {entry.position for entry in self._steps.entries}
        made = self._products.entries
        self._products.cut(next((i for i, entry in enumerate(made) if entry.position in finished), len(made)))
        self._position = self._place = self._next = self._spent = 0
        self._inside, self._repeating, self._writing = False, True, True
        self._synced = time.monotonic()

    def held(self, vector_bytes: int) -> int:
        """How many products are written down."""
        made = sum(entry.size for entry in self._products.entries) // max(vector_bytes, 1)
        return made + sum(entry.mark for entry in self._steps.entries)

    def product(self, operator: SymmetricOperator, vectors: Tensor) -> Tensor:
        """`operator @ vectors`: of an earlier run that has made it at this point, or made now."""
        self._spent += 1 if vectors.ndim == 1 else vectors.shape[1]
        mark = zlib.crc32(as_bytes(vectors))
        if self._repeating:
            found = self._made(mark, vectors)
            if self._agree(found is not None):
                if not self._next:
                    self._refuse_another(operator @ vectors, found)
                self.seconds += self._products.entries[self._next].seconds
                self._next += 1
                self._advance()
                return found
            self._stop_repeating()
        start = time.perf_counter()
        product = operator @ vectors
        content = as_bytes(product)
        self._write(self._products, self._place, mark, time.perf_counter() - start, content)
        self._advance()
        return product

    def _advance(self) -> None:
        if self._inside:
            self._place += 1
        else:
            self._position += 1

    def once(self, compute: Callable[[], Any], generator: torch.Generator) -> Any:
        """What `compute` came to in an earlier run, the generator being left as it left it; or computed now."""
        if self._inside:
            return compute()
        step = self._finished()
        if self._agree(step is not None):
            outcome, state, seconds = step
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

    def _made(self, mark: int, vectors: Tensor) -> Tensor | None:
        """The next product, where it is this one: laid out in memory as `vectors` are, as a new one would be."""
        entry = next(iter(self._products.entries[self._next : self._next + 1]), None)
        if entry is None or (entry.position, entry.place, entry.mark) != (self._position, self._place, mark):
            return None
        content = self._products.content(entry)
        product = torch.empty_like(vectors)
        part = local(product)
        if content is None or entry.size != part.nbytes:
            return None
        part.copy_(torch.from_numpy(content).view(part.dtype).view(part.shape))
        return product

    def _refuse_another(self, now: Tensor, then: Tensor) -> None:
        """Raise SpectraError where a product made again is not what it was: code or data are no longer the same."""
        change = norm(local(now - then)) / max(norm(local(then)), torch.finfo(then.dtype).tiny)
        if not self._agree(change <= torch.finfo(then.dtype).eps ** 0.5):
            home = self._products.path.parent
            raise SpectraError(
                f"--out {home.parent}: the matrix is not that of the unfinished run there, as a product shows, so the "
                f"model's code or the data have changed; restore them, or remove {home}"
            )

    def _finished(self) -> tuple[Any, Tensor, float] | None:
        """The step at this position: its outcome, the generator's state and the seconds it took."""
        entry: Entry | None = next((e for e in self._steps.entries if e.position == self._position), None)
        content = self._steps.content(entry) if entry and self._repeating else None
        return None if content is None else torch.load(io.BytesIO(content.tobytes()), weights_only=True)

    def _stop_repeating(self) -> None:
        self._repeating = False
        self._products.cut(self._next)
        self._drop_steps()

    def _drop_steps(self) -> None:
        """Those from here on: they follow products that are no longer there."""
        kept = [entry for entry in self._steps.entries if entry.position < self._position]
        self._steps.cut(len(kept))

    def _write(self, log: Log, place: int, mark: int, seconds: float, content: np.ndarray) -> None:
        if not self._writing:
            return
        try:
            log.append(self._position, place, mark, seconds, content)
            if time.monotonic() > self._synced + self._save_every:
                self.sync()
        except OSError as error:
            self._writing = False
            self._failed(error)

    def sync(self) -> None:
        """Bring all of it to the disk itself. Raises OSError."""
        for log in (self._products, self._steps):
            log.sync()
        self._synced = time.monotonic()

    def close(self) -> None:
        for log in (self._products, self._steps):
            log.close()

    def remove(self) -> None:
        self.close()
        for log in (self._products, self._steps):
            log.path.unlink(missing_ok=True)


class Remembering(Wrapper):
    """The same matrix, its products written down in a journal."""

    def __init__(self, operator: SymmetricOperator, journal: Journal):
        super().__init__(operator)
        self.journal = journal

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.journal.product(self.operator, vectors)

    def once(self, compute: Callable[[], Any], generator: torch.Generator) -> Any:
        return self.journal.once(compute, generator)

    def factor(self) -> SymmetricFactor:
        """The operator's own, whose passes over the data are not written down."""
        return self.operator.factor()


def as_bytes(tensor: Tensor) -> np.ndarray:
    """A tensor's bytes, of this process's part, in the order of its indices, on the host."""
    return local(tensor).detach().contiguous().cpu().numpy().reshape(-1).view("u1")
