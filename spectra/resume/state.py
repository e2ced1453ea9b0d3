"""The state of an unfinished command, in a directory beside its results.

    DIR/manifest.json, DIR/lock     the problem, written first; a lock held by the active run, and removed last
    DIR/NAME.KIND                   the journal of a matrix (`spectra.resume.journal`)
    DIR/choices.json                decisions made by timing (`spectra.resume.decisions`)

After a kill at any moment, the same command resumes, and ends with the numbers of an uninterrupted run. Every file has
a checksum, and the files of matrices name the manifest that they belong to.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from spectra.atomic import reason, unwritable, write_atomically
from spectra.errors import SpectraError
from spectra.locks import lock as take_lock
from spectra.records.files import finite
from spectra.resume.decisions import Decisions
from spectra.resume.files import checksum, opened, refuse_another_kind
from spectra.resume.journal import KINDS, Journal, JournalSettings

Note = Callable[[str], None]
LOSS = "mean loss"  # the key in a problem of a number that rounding may change
LIKE = 2.0**-11.5  # relative tolerance, sqrt(eps) of float32
LARGEST = 2**62


class State:
    """The state of one command in `directory`.

    Args:
        directory: the directory of the state.
        save_every: the seconds between syncs to the disk.
        note: called with a message for the user.
        rank: the rank of this process; each writes its own files, and only rank 0 the manifest.
        least: returns the minimum of a number over all processes.

    Raises:
        SpectraError: the directory cannot be read.
    """

    def __init__(
        self, directory: Path, save_every: float, note: Note, rank: int = 0, least: Callable[[int], int] = int
    ):
        self.directory, self._note = directory, note
        self._save_every, self._rank, self._least = save_every, rank, least
        refuse_another_kind(directory, stat.S_IFDIR)
        self._manifest = read_manifest(directory)
        self.settled = self._manifest and self._manifest["settled"]  # adopted from an unfinished run
        self._journals: dict[str, Journal] = {}
        self._lock: IO | None = None
        self._told = False  # whether the user was told that it cannot be written
        self._ours = False  # whether the directory belongs to this run, which may remove it

    def begin(self, problem: Mapping[str, Any], settled: Mapping[str, Any]) -> None:
        """Resume the state of this problem, or begin a new one.

        All processes call this, and none returns before rank 0 has its manifest. Raises SpectraError if the state
        belongs to another problem, or is in use.
        """
        now = json.loads(json.dumps({"problem": finite(problem), "settled": settled}))
        refuse_changed(self.directory, self._manifest, now["problem"])
        if not self._rank:
            self._begin(now)
        self._settings  # noqa: B018, all processes agree on them

    def _begin(self, now: dict[str, Any]) -> None:
        self._lock = locked(self.directory)
        manifest = read_manifest(self.directory)  # again: another run may have begun and ended meanwhile
        if manifest is None:
            self._ours = True  # and is removed, if no manifest is written
            self._clear()
            write_manifest(self.directory, now)
            manifest = now
        refuse_changed(self.directory, manifest, now["problem"])
        if manifest["settled"] != now["settled"]:
            text = "another run has used it since this one began; run the same command again"
            raise SpectraError(f"`out` {self.directory.parent}: {text}")
        self._manifest, self._ours = manifest, True

    @cached_property
    def _settings(self) -> JournalSettings:
        """The settings that its journals share; files of all ranks belong to the manifest of rank 0."""
        owner = LARGEST if self._rank else int(checksum(self._manifest or {})[:15], 16)
        return JournalSettings(str(self._least(owner)), self._save_every, self._failed, self._least, self._note)

    def journal(self, name: str) -> Journal:
        """Open the journal of the products of matrix `name`."""
        path = self.directory / (f"{name}.rank{self._rank}" if self._rank else name)
        self._journals[name] = Journal(path, self._settings)
        return self._journals[name]

    @cached_property
    def choices(self) -> Decisions:
        """The decisions that this process, and an unfinished run before it, made by timing."""
        name = f"choices.rank{self._rank}.json" if self._rank else "choices.json"
        return Decisions(self.directory / name, self._note, self._failed)

    def close(self) -> None:
        """Sync all files to the disk and close the state; remove it if it has no content."""
        self._close_journals()
        if self._ours and not any(path.lstat().st_size for path in self._contents("products", "steps", "done")):
            self._remove()
        if self._lock:
            self._lock.close()

    def remove(self) -> None:
        """Close the state and remove it."""
        self._close_journals()
        if self._ours:
            self._remove()
        if self._lock:
            self._lock.close()

    def _close_journals(self) -> None:
        for journal in self._journals.values():
            journal.close()
        self._journals.clear()

    def _remove(self) -> None:
        """Remove the directory; the lock comes last, so that no other run begins before the rest is removed."""
        self._ours = False
        with suppress(OSError):
            (self.directory / "manifest.json").unlink(missing_ok=True)
            for path in self.directory.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            (self.directory / "lock").unlink(missing_ok=True)
            self.directory.rmdir()  # fails if another run has begun meanwhile

    def _clear(self) -> None:
        """Remove what is left of a state that has lost its manifest, or was about to be removed."""
        if any(path.lstat().st_size for path in self._contents(*KINDS)):
            self._note(f"{self.directory}: its manifest.json is missing, so everything else there is computed again")
        for path in [*self._contents(*KINDS), *self.directory.glob("choices*.json")]:
            refuse_another_kind(path)
            path.unlink()

    def _contents(self, *kinds: str) -> Iterator[Path]:
        for kind in kinds:
            yield from self.directory.glob(f"*.{kind}")

    def _failed(self, error: Exception) -> None:
        if not self._told:
            text = "so this run saves nothing more before its end"
            self._note(f"{self.directory}: cannot be written ({reason(error)}), {text}")
        self._told = True


def locked(directory: Path) -> IO:
    """Take the lock of the directory; both are made if they are missing.

    Raises SpectraError if another run holds it.
    """
    home, path = directory.parent, directory / "lock"
    for _ in range(100):
        try:
            with suppress(FileExistsError):  # `exist_ok` checks again, and fails if it was removed meanwhile
                directory.mkdir()
            lock = opened(path, "a+b")
        except FileNotFoundError:  # removed by the run that has just ended
            continue
        except OSError as error:
            with suppress(OSError):
                directory.rmdir()
            raise unwritable(path, error, "choose another directory") from error
        try:
            take_lock(lock)
        except BlockingIOError as error:
            lock.close()
            text = "another run is using it; wait for its end, or choose another directory"
            raise SpectraError(f"`out` {home}: {text}") from error
        except OSError:
            return lock  # a file system without locks
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.lstat()):
                return lock
        lock.close()  # of a run that has just ended, and has removed it
    raise SpectraError(f"`out` {home}: other runs keep using it; choose another directory")


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of an unfinished run; None if there is none. Raises SpectraError if it is damaged."""
    path = directory / "manifest.json"
    try:
        with opened(path) as file:
            content = json.loads(file.read())
        if content.pop("checksum") == checksum(content):
            return content
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise SpectraError(f"`out` {directory.parent}: {path} cannot be read; remove {directory}") from error
    raise SpectraError(f"`out` {directory.parent}: {path} is damaged; remove {directory}")


def write_manifest(directory: Path, content: dict[str, Any]) -> None:
    """Write the manifest with its checksum."""
    text = json.dumps(content | {"checksum": checksum(content)})
    write_atomically(directory / "manifest.json", lambda file: file.write(text.encode()))


def refuse_changed(directory: Path, manifest: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Raise SpectraError if there is a manifest of another problem."""
    if manifest and (changes := list(differences(manifest["problem"], now))):
        raise SpectraError(
            f"`out` {directory.parent}: an unfinished run of another problem is there ({'; '.join(changes[:3])}); give "
            f"the same options to finish it, choose another directory, or remove {directory}"
        )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield `k was 5, is 10` for each entry that differs; mappings are compared entry by entry."""
    for key in sorted({*then, *now}):
        before, after = then.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after)
        elif not (before == after or (key == LOSS and alike(before, after))):
            cause = ", so the model's code or the data have changed" if key == LOSS else ""
            yield f"{key.replace('_', ' ')} was {json.dumps(before)}, is {json.dumps(after)}{cause}"


def alike(before: Any, after: Any) -> bool:
    """Whether two numbers differ by no more than rounding."""
    return isinstance(before, float) and isinstance(after, float) and math.isclose(before, after, rel_tol=LIKE)
