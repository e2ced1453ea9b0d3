"""The record in a file of results: a command, its problem, and its results."""

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

RESULTS: dict[str, type[Entry]] = {  # by command, the type of an entry for one matrix
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
    """The metadata of a field that only these commands write, and that is left out if it is None."""
    return written(omitted=lambda record: getattr(record, name) is None, of=commands)


@stored
class Record(Stored):
    """The saved result of a command: one JSON file, and its arrays in an NPZ file beside it.

    Attributes:
        schema: the version of the file format.
        command: the command, such as eig.
        problem: the problem that was analysed: model, loss, data and settings.
        results: one entry for each matrix, such as `EigResult`.
        pairs: the distances of each pair of matrices (compare only).
        causes: the reasons why matrices differ (compare only).
        held_out: the data held out for comparison (compare only).
        subsample: the eigenvalues on fewer examples (compare only).
        class_structure: the share of the leading eigenvalues that class means explain (compare only).
        point: the numbers that do not depend on the matrix (step only).
        figures: the paths of the figures, for commands that list them.
    """

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
    figures: list[str] | None = field(default=None, metadata=given("figures", "compare", "layers", "landscape", "step"))

    def __repr__(self) -> str:
        return "\n".join([f"spectra {self.command}:", *(f"  {entry!r}" for entry in self.results)])

    def _repr_html_(self) -> str:
        return "\n".join(entry._repr_html_() for entry in self.results)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by their names in the NPZ file, such as `eigenvalues_hessian`."""
        return {name: array for entry in self.results for name, array in entry.arrays().items()}

    def to_json(self) -> str:
        """Return the record as strict JSON in one line; numbers that are not finite become null."""
        return to_json(self.to_dict())

    def save(self, directory: Path) -> None:
        """Write `<command>.json`, and `<command>.npz` if there are arrays; each file is replaced atomically.

        Args:
            directory: the directory.
        """
        save(directory, self.command, self.to_json(), self.arrays)

    def to_dataframe(self) -> pandas.DataFrame:
        """Return the numbers as a pandas DataFrame, for statistics and plots.

        There is one row for each eigenvalue (eig), trace (trace), node of a probe (density), pair of matrices
        (compare), block of parameters (layers), point of a line or plane (landscape), direction (step), or estimate of
        cost (inspect). The first columns say what the row belongs to: command, checkpoint, step, seed, curvature. The
        last columns are converged, products and seconds; products and seconds are totals over all rows of a matrix.
        Rows of compare end with the numbers of the pair, `first` against `second`, each followed by its error.

        Raises:
            SpectraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            text = "pandas is not installed; install it with: pip install pandas"
            raise SpectraError(text) from error
        return pandas.DataFrame(list(self.rows()))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Iterate over the rows of `to_dataframe`, as dictionaries."""
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
        """Make a record from the content of a JSON file; keys that an older version did not write may be missing.

        Args:
            tree: the content.
            path: the path of the file, for error messages.
            argument: the name of the argument, for error messages.

        Raises:
            SpectraError: the content is not a result that this version can read.
        """
        command, entries = tree["command"], []
        begin, again = f"{argument} {path}: ", f"run spectra {command} again"
        for entry in tree["results"]:
            if not (isinstance(entry, dict) and isinstance(entry.get("curvature"), str)):
                text = f"is not a result of spectra {command}: an entry has no curvature; {again}"
                raise SpectraError(begin + text)
            try:
                entries.append(decode(RESULTS[command], entry, "results"))
            except WrongType as wrong:
                text = f"{wrong.key} of {entry['curvature']} must be {wrong.expected}; {again}"
                raise SpectraError(begin + text) from wrong
        others = {slot.key: slot for slot in layout(cls) if slot.key and slot.key in tree and slot.key != "results"}
        try:
            found = {slot.name: decode(slot.kind, tree[key], key) for key, slot in others.items()}
        except WrongType as wrong:
            text = f"{wrong.key} must be {wrong.expected}; {again}"
            raise SpectraError(begin + text) from wrong
        return cls.known(**found, results=entries)


def load(path: Path, commands: Sequence[str] = tuple(RESULTS), argument: str = "RESULT") -> tuple[Path, Record]:
    """Read a saved record, without the arrays that are only in the NPZ file; return its file and the record.

    Raises SpectraError as `files.read` does.
    """
    path, tree = read(path, commands, argument)
    return path, Record.of(tree, path, argument)


def load_result(path: Path | str) -> Record:
    """Read the result that a command, or a call with `out`, saved.

    Args:
        path: a file such as `run/eig.json`, or a directory, where the first of these files is read: eig.json,
            trace.json, density.json, compare.json, layers.json, landscape.json, step.json, inspect.json.

    Returns:
        The `Record`, with `command`, `problem`, `results` (one entry for each matrix: `EigResult`, `TraceResult`, ...)
        and `arrays`. Entries of eig have eigenvectors, if these were saved.

    Raises:
        SpectraError: there is no such file, or it is not a result, is incomplete, or is from a newer version.
    """
    path, record = load(Path(path), argument="result")
    for entry in record.results:
        for key in entry.missing():
            raise SpectraError(f"result {path}: lacks '{key}'; run spectra {record.command} again")
    arrays = read_arrays(path.with_suffix(".npz")) or {}
    return record.changed(results=[entry.with_arrays(arrays) for entry in record.results])
