"""What an unfinished command has done so far, in a directory beside its results.

    DIR/manifest.json, DIR/lock           of which problem, written first; held by the run at work
    DIR/NAME.products, DIR/NAME.steps     the journal of the matrix at work (`spectra.resume.journal`)
    DIR/NAME.done                         the answer for a finished one, in place of its journal

Killed at any moment, the same command goes on from there, and ends with the numbers that it would have had.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from spectra.errors import SpectraError
from spectra.results import finite, reason, replace_file, write_atomically
from spectra.resume.journal import Journal

Note = Callable[[str], None]


class State:
    """The state of one command in `directory`: what is there belongs to `begin`'s problem, or SpectraError is raised.

    `rank` of several processes writes files of its own; only rank 0 the manifest. `note` tells the user what passes.
    """

    def __init__(
        self, directory: Path, save_every: float, note: Note, rank: int = 0, agree: Callable[[int], int] = int
    ):
        self.directory, self._note = directory, note
        self._save_every, self._rank, self._agree = save_every, rank, agree
        self._manifest = read_manifest(directory)
        self._journals: dict[str, Journal] = {}
        self._lock: IO | None = None
        self._told = False  # that it cannot be written
        self._ours = False  # the directory, to be removed where nothing has come into it

    @property
    def settled(self) -> dict[str, Any] | None:
        """What the unfinished run settled by itself, for this one to take up; None where there is no such run."""
        return self._manifest and self._manifest["settled"]

    def begin(self, problem: Mapping[str, Any], settled: Mapping[str, Any]) -> None:
        """Go on with this problem, or begin it. Raises SpectraError where the state is of another, or in use."""
        now = json.loads(json.dumps(finite(problem)))
        self._refuse_another(now)
        if self._rank:
            return
        self._ours = True
        self.directory.mkdir(exist_ok=True)
        self._take_lock()
        manifest = read_manifest(self.directory)  # anew: another run may have come meanwhile, and gone
        if manifest:
            self._manifest = manifest
            self._refuse_another(now)
        else:
            content = json.dumps({"problem": now, "settled": settled}).encode()
            write_atomically(self.directory / "manifest.json", lambda file: file.write(content))

    def _refuse_another(self, now: dict[str, Any]) -> None:
        if self._manifest and (changes := list(differences(self._manifest["problem"], now))):
            self._ours = False
            raise SpectraError(
                f"--out {self.directory.parent}: an unfinished run of another problem is there "
                f"({'; '.join(changes[:3])}); give the same options to finish it, name another directory, or remove "
                f"{self.directory}"
            )

    def _take_lock(self) -> None:
        try:
            self._lock = (self.directory / "lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            self._ours = False
            text = "another run is at work there; wait for its end, or name another directory"
            raise SpectraError(f"--out {self.directory.parent}: {text}") from error
        except OSError:
            pass  # a file system without locks, or no room for a file: the manifest will tell

    def journal(self, name: str) -> Journal:
        """Of the products of matrix `name`."""
        self._journals[name] = Journal(self._path(name), self._save_every, self._failed, self._agree)
        return self._journals[name]

    def keep(self, name: str, answer: Any) -> None:
        """The answer for a matrix, of CPU tensors, numbers, texts and containers of them; its journal goes."""
        try:
            replace_file(self._path(f"{name}.done"), lambda file: torch.save(answer, file))
        except (OSError, RuntimeError) as error:  # torch's writer hides what came of the disk
            self._failed(error)
        else:
            self._journals.pop(name).remove()

    def kept(self, name: str) -> Any | None:
        """What `keep` was given in an earlier run, or None."""
        path = self._path(f"{name}.done")
        return torch.load(path, weights_only=True) if self._agree(path.exists()) else None

    def close(self) -> None:
        """Bring all of it to the disk itself; where there is nothing, leave nothing."""
        for journal in self._journals.values():
            with suppress(OSError):
                journal.sync()
            journal.close()
        self._journals.clear()
        if self._ours and not any(path.stat().st_size for path in self._contents()):
            shutil.rmtree(self.directory, ignore_errors=True)
        if self._lock:
            self._lock.close()

    def remove(self) -> None:
        self.close()
        if self._ours:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _contents(self) -> Iterator[Path]:
        for kind in ("products", "steps", "done"):
            yield from self.directory.glob(f"*.{kind}")

    def _path(self, name: str) -> Path:
        return self.directory / (f"{name}.rank{self._rank}" if self._rank else name)

    def _failed(self, error: Exception) -> None:
        if not self._told:
            text = "so no more of this run is saved before its end"
            self._note(f"{self.directory}: cannot be written ({reason(error)}), {text}")
        self._told = True


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Of an unfinished run, or None. Raises SpectraError where it is damaged."""
    path = directory / "manifest.json"
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SpectraError(f"--out {directory.parent}: {path} cannot be read; remove {directory}") from error


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """`k was 5, is 10` for each entry that differs; mappings are compared entry by entry."""
    for key in sorted({*then, *now}):
        before, after = then.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after)
        elif before != after:
            yield f"{key.replace('_', ' ')} was {json.dumps(before)}, is {json.dumps(after)}"
