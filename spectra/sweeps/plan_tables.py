"""Read the TOML file of a plan, with errors that name the file; `plan` and `plan_run` check the keys of tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spectra.errors import SpectraError
from spectra.files import read_toml
from spectra.quoting import quoted


class PlanFile:
    """The tables in the file of a plan. Raises SpectraError if it cannot be read, or is not valid TOML."""

    def __init__(self, path: Path):
        self.named = path  # as the user typed it
        self.path = Path(os.path.abspath(path))
        try:
            self.content: dict[str, Any] = read_toml(path)
        except OSError as error:
            raise SpectraError(f"PLAN {path}: cannot be read ({error.strerror}); check the path") from error
        except ValueError as error:  # of TOML, or of UTF-8
            raise SpectraError(f"PLAN {path}: is not valid TOML ({error}); correct the file") from error

    def table(self, name: str) -> dict[str, Any]:
        """The keys and values of a table; empty if the file has no such table. Raises SpectraError."""
        table = self.content.get(name, {})
        if not isinstance(table, dict):
            raise self.error(f"{shown(name, table)} is not a table; write [{name}] above its keys")
        return table

    def refuse_unknown(self, table: str, known: Iterable[str]) -> None:
        """Raise SpectraError if a table ("" for the whole file) has an unknown key."""
        found = self.table(table) if table else self.content
        if unknown := found.keys() - set(known):
            from spectra.inputs.spec import suggest  # loads torch

            name = min(unknown)
            what = (
                f"[{name}] is not a table of a plan" if isinstance(found[name], dict) else f"{name} is not a key here"
            )
            raise self.error(f"{what}; {suggest(name, known)}", table)

    def error(self, text: str, table: str = "") -> SpectraError:
        """The error that names the file and the table, for the caller to raise."""
        return SpectraError(f"PLAN {self.named}: {f'[{table}] ' if table else ''}{text}")


def shown(key: str, value: Any) -> str:
    """The text `key = value`, about as in the file."""
    return f"{key} = {quoted(json.dumps(value, default=str))}"
