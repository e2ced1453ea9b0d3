"""Registers of the names that a user may give, each with the import path of its object. Loads no torch.

A register lists what comes with spectra, and what installed packages add to it by entry points of one group:

    [project.entry-points."spectra.matrices"]
    toy = "package.module:Toy"

Nothing is imported before a name is used. A name of spectra itself wins over one of a package, and among packages the
first in alphabetical order wins. Packages are searched for where Python finds modules, since whoever can install an
entry point there can run code anyway, but not in the current directory, which may hold a stranger's files.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pkgutil import resolve_name
from typing import Any

from spectra.errors import SpectraError, describe
from spectra.quoting import quoted


class NameClash(UserWarning):
    """Warning that more than one package defines a name; it says which one is used."""


@dataclass(frozen=True)
class Entry:
    """One name of a register."""

    path: str  # of the object, as package.module:name
    sentence: str = ""
    package: str | None = None  # that adds it; None for spectra itself


class Register(Mapping[str, Entry]):
    """A read-only mapping from the names of one kind to their entries, such as `spectra.MATRICES`.

    It lists spectra's own names first, then those that installed packages add by entry points. Each value has a
    `sentence` that describes it, the `path` of the object, and the `package` that adds it.

    Args:
        group: the group of the entry points by which packages add names.
        own: spectra's own names.

    Examples:
        >>> import spectra
        >>> spectra.MATRICES["hessian"].sentence
        'second derivative of the mean loss; indefinite'
    """

    def __init__(self, group: str, own: Mapping[str, Entry]):
        self.group = group
        self.own = dict(own)

    def __getitem__(self, name: str) -> Entry:
        return self.own[name] if name in self.own else self._added()[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self.own, **self._added()})

    def __len__(self) -> int:
        return len({**self.own, **self._added()})

    def is_added(self, name: str) -> bool:
        """Whether an installed package adds the name, which spectra itself does not have."""
        return name not in self.own and name in self._added()

    def load(self, name: str, option: str) -> Any:
        """Import the object of a name.

        Raises:
            SpectraError: a package has added the name, and importing its object fails.
        """
        entry = self[name]
        try:
            return resolve_name(entry.path)
        except (Exception, SystemExit) as error:
            if entry.package is None:
                raise
            raise SpectraError(f"{option} {quoted(name)}: {broken(self.group, entry, error)}") from error

    def warn_of_clash(self, name: str, option: str) -> None:
        """Warn of a name that more than one package defines: which is used, and which are not."""
        others = [entry for key, entry in self._installed() if key == name]
        used = f"the package {self[name].package}" if self.is_added(name) else "spectra itself"
        unused = [str(entry.package) for entry in others[0 if name in self.own else 1 :]]
        if unused:
            text = f"{option} {name}: defined more than once; using {used}, not {', '.join(unused)}"
            warnings.warn(text, NameClash, stacklevel=2)

    def _added(self) -> dict[str, Entry]:
        added: dict[str, Entry] = {}
        for name, entry in self._installed():
            added.setdefault(name, entry)
        return added

    def _installed(self) -> list[tuple[str, Entry]]:
        return installed(self.group, tuple(sys.path), os.path.realpath(os.getcwd()))


def broken(group: str, entry: Entry, error: BaseException) -> str:
    """The reason why an entry point of a package cannot be used, and the way out."""
    return (
        f"the entry point of {entry.package} ({group}, {entry.path}) fails with {describe(error)}; "
        f"fix or uninstall {entry.package}"
    )


@cache
def installed(group: str, path: tuple[str, ...], here: str) -> list[tuple[str, Entry]]:
    """The entry points of a group in packages on `path`, except in the folder `here`, sorted by package.

    Packages that cannot be read are skipped.
    """
    from importlib.metadata import distributions

    found: dict[tuple[str, str], Entry] = {}
    for distribution in distributions(path=[folder for folder in path if os.path.realpath(folder) != here]):
        try:
            points = [point for point in distribution.entry_points if point.group == group]
            package = quoted(distribution.metadata["Name"]) if points else ""
        except Exception:  # a broken package must not hide the others
            continue
        for point in points:
            place = point.value.partition("[")[0].strip()
            found.setdefault((point.name, place), Entry(place, f"of the package {package}", package))
    pairs = [(name, entry) for (name, _), entry in found.items()]
    return sorted(pairs, key=lambda pair: str(pair[1].package))
