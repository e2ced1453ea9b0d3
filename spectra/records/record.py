"""The record of a file: a command, the problem it was about, and what it found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spectra.errors import SpectraError
from spectra.records.compare import Cause, ClassStructure, CompareResult, HeldOut, Pair, Subsample
from spectra.records.density import DensityResult
from spectra.records.eig import EigResult
from spectra.records.entry import Entry
from spectra.records.fields import Stored, WrongType, decode, layout, stored, written
from spectra.records.files import SCHEMA, read, read_arrays, save, to_json
from spectra.records.inspect import InspectResult
from spectra.records.landscape import LandscapeResult
from spectra.records.layers import LayersResult
from spectra.records.problem import ProblemRecord
from spectra.records.step import StepPoint, StepResult
from spectra.records.trace import TraceResult

if TYPE_CHECKING:
    import pandas

RESULTS: dict[str, type[Entry]] = {  # by command, what there is of each matrix
    "eig": EigResult,
    "trace": TraceResult,
    "density": DensityResult,
    "compare": CompareResult,
    "layers": LayersResult,
    "landscape": LandscapeResult,
    "step": StepResult,
    "inspect": InspectResult,
}


def given(name: str, *commands: str) -> dict[str, Any]:
    """The metadata of a field that only these commands have, which is left out where it is None."""
    return written(omitted=lambda record: getattr(record, name) is None, of=commands)


@stored
class Record(Stored):
    """A result as a command writes it: one JSON object, and arrays beside it."""

    schema: int = SCHEMA
    command: str
    problem: ProblemRecord
    results: list[Any]  # an entry of `RESULTS[command]` for each matrix
    pairs: list[Pair] | None = field(default=None, metadata=given("pairs", "compare"))
    causes: list[Cause] | None = field(default=None, metadata=given("causes", "compare"))
    held_out: HeldOut | None = field(default=None, metadata=given("held_out", "compare"))
    subsample: list[Subsample] | None = field(default=None, metadata=given("subsample", "compare"))
    class_structure: ClassStructure | None = field(default=None, metadata=given("class_structure", "compare"))
    point: StepPoint | None = field(default=None, metadata=given("point", "step"))
    # Paths of figures.
    figures: list[str] | None = field(default=None, metadata=given("figures", "compare", "layers", "landscape", "step"))

    def __repr__(self) -> str:
        return "\n".join([f"spectra {self.command}:", *(f"  {entry!r}" for entry in self.results)])

    def _repr_html_(self) -> str:
        return "\n".join(entry._repr_html_() for entry in self.results)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, as in the NPZ file: `eigenvalues_hessian`, ..."""
        return {name: array for entry in self.results for name, array in entry.arrays().items()}

    def to_json(self) -> str:
        """Strict JSON in one line; numbers that are not finite are null."""
        return to_json(self.to_dict())

    def save(self, directory: Path) -> None:
        """Write `<command>.npz` where there are arrays, then `<command>.json`, each replaced whole."""
        save(directory, self.command, self.to_json(), self.arrays)

    def to_dataframe(self) -> pandas.DataFrame:
        """A table of the numbers, for statistics and plots.

        One row an eigenvalue (eig), a trace (trace), a node of a probe (density), a pair of matrices (compare), a block
        of parameters (layers), a point of a line or plane (landscape), a direction (step), or an estimate of cost
        (inspect). The first columns say what it is of: command, checkpoint, step, seed, curvature. The last ones say
        how good it is and what it cost: converged, products, seconds; products and seconds are those of all rows of a
        matrix together. Rows of `compare` end with the numbers of the pair, `first` against `second`, each beside its
        error.

        Raises SpectraError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            told = "pandas is not installed; install it with: pip install 'loss-spectra[pandas]'"
            raise SpectraError(told) from error
        return pandas.DataFrame(list(self.rows()))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of `to_dataframe`."""
        problem = {name: getattr(self.problem, name, None) for name in ("checkpoint", "step", "seed")}
        if self.pairs is not None:
            for pair in self.pairs:
                yield {"command": self.command, **problem, **pair.row()}
            return
        for entry in self.results:
            cost = {name: getattr(entry, name) for name in ("converged", "products", "seconds")}
            for row in entry.rows():
                yield {"command": self.command, **problem, "curvature": entry.curvature, **row, **cost}

    @classmethod
    def of(cls, tree: Mapping[str, Any], path: Path | str = "", argument: str = "RESULT") -> Record:
        """Read what was JSON; it may lack keys, see `Stored`. Raises SpectraError, which names argument and path."""
        command, entries = tree["command"], []
        begin, again = f"{argument} {path}: ", f"run spectra {command} again"
        for entry in tree["results"]:
            if not (isinstance(entry, dict) and isinstance(entry.get("curvature"), str)):
                text = f"is no result that spectra {command} writes: an entry names no curvature; {again}"
                raise SpectraError(begin + text)
            try:
                entries.append(decode(RESULTS[command], entry, "results"))
            except WrongType as wrong:
                text = f"{entry['curvature']} is without {wrong.key} that can be used (not {wrong.wanted}); {again}"
                raise SpectraError(begin + text) from wrong
        others = {slot.key: slot for slot in layout(cls) if slot.key and slot.key in tree and slot.key != "results"}
        try:
            found = {slot.name: decode(slot.kind, tree[key], key) for key, slot in others.items()}
        except WrongType as wrong:
            text = f"is without {wrong.key} that can be used (not {wrong.wanted}); {again}"
            raise SpectraError(begin + text) from wrong
        return cls.known(**found, results=entries)


def load(path: Path, commands: Sequence[str] = tuple(RESULTS), argument: str = "RESULT") -> tuple[Path, Record]:
    """A saved record and its file, without the arrays that stand in the NPZ file alone; see `files.read`.

    Raises SpectraError.
    """
    path, tree = read(path, commands, argument)
    return path, Record.of(tree, path, argument)


def load_result(path: Path | str) -> Record:
    """Read the result of a command.

    Args:
        path: a file such as `run/eig.json`, or a directory, of which the first result there is is taken: eig.json,
            trace.json, density.json, compare.json, layers.json, landscape.json, step.json, inspect.json.

    Returns:
        the record, with `command`, `problem`, `results` (an entry for each matrix: `EigResult`, `TraceResult`, ...) and
        `arrays`. Eigenvectors are in the entries of `eig`, where they were saved.

    Raises SpectraError: nothing there, no result, of a newer version, or one that lacks something.
    """
    path, record = load(Path(path), argument="result")
    for entry in record.results:
        for key in entry.missing():
            raise SpectraError(f"result {path}: lacks '{key}'; run spectra {record.command} again")
    arrays = read_arrays(path.with_suffix(".npz")) or {}
    return record.changed(results=[entry.with_arrays(arrays) for entry in record.results])
