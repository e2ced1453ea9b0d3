"""Load a matrix or operator that a user names or gives in place of a network.

    matrix.npy                      a dense matrix, which stays in its file
    matrix.npz                      a dense matrix (?key=NAME of several arrays), or a SciPy sparse one
    matrix.mtx, matrix.mtx.gz       Matrix Market
    file.py:name, package.module:name
                                    anything that `as_operator` takes, or a function that returns it (?key=value)

Pickles are never read.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectra.entries import refuse_entries
from spectra.errors import ArgumentError, SpectraError, describe
from spectra.files import open_regular
from spectra.given_operator import ProductOperator, as_operator, size_of
from spectra.inputs.checkpoint_folder import sha256
from spectra.inputs.code_origin import is_code, is_path, place_of
from spectra.inputs.devices import named_dtype
from spectra.inputs.python_objects import GIVEN
from spectra.inputs.spec import call, input_error, parse_spec, resolve, signature_of, suggest, unreadable_reason
from spectra.memory import explain_out_of_memory
from spectra.quoting import quoted
from spectra.records.problem import OperatorRecord
from spectra.wording import dtype_name

OPTION = "`operator`"
LONGEST = 24  # characters of a name, so that a table has room for numbers
SPARSE = {"format", "shape", "data"}  # arrays in a file of scipy.sparse.save_npz
ONE = "name a file.npy, .npz or .mtx, or file.py:name or package.module:name"


@dataclass(frozen=True)
class GivenOperator:
    """An operator ready for matrix-vector products, and its record."""

    operator: Any  # a SymmetricOperator
    record: OperatorRecord
    notes: list[str]
    seconds: float  # to read and check it

    @property
    def name(self) -> str:
        """Its name in results."""
        return self.record.name


@dataclass(frozen=True)
class Operators:
    """The operators of a request, in place of a problem.

    Attributes:
        given: names, as on the command line, or objects that `as_operator` takes.
        device: the device for matrices that are given by their entries; None: that of a tensor, else auto.
        dtype: float32 or float64, for products with entries; None: the dtype of the entries.
        seed: the seed of random vectors.
    """

    given: tuple[Any, ...]
    device: str | torch.device | None = None
    dtype: str | torch.dtype | None = None
    seed: int = 0

    def load(self) -> list[GivenOperator]:
        """Load all operators, with distinct names and one dtype. Raises SpectraError."""
        dtype = None if self.dtype is None else named_dtype(self.dtype)
        found = [load_operator(one, dtype) for one in self.given]
        if len({one.operator.dtype for one in found}) > 1:  # all are multiplied by the same vectors
            found = [load_operator(one, torch.float64) for one in self.given]
        return with_distinct_names(found)


def with_distinct_names(found: Sequence[GivenOperator]) -> list[GivenOperator]:
    """Append numbers to equal names of operators, except to the first of them."""
    taken: dict[str, int] = {}
    kept = []
    for one in found:
        taken[one.name] = count = taken.get(one.name, 0) + 1
        record = one.record.changed(name=f"{one.name} ({count})") if count > 1 else one.record
        kept.append(GivenOperator(one.operator, record, one.notes, one.seconds))
    return kept


def load_operator(given: Any, dtype: torch.dtype | None = None) -> GivenOperator:
    """Load one operator from its name, or convert a given object. Raises SpectraError."""
    start = time.perf_counter()
    spec = quoted(given) if isinstance(given, str) else f"{type(given).__name__} {GIVEN}"
    with explain_out_of_memory(f"{OPTION} {spec}", "use a smaller matrix, or a function that multiplies by it"):
        value, name, digest = found_at(given) if isinstance(given, str) else (given, type(given).__name__, None)
        notes: list[str] = []
        with errors_about(spec):
            operator = as_operator(value, symmetric=False, tell=notes.append)
            if isinstance(operator, Tensor):
                refuse_entries(operator, "operator", single=False)
            operator = as_operator(operator, dtype=dtype, symmetric=False, tell=notes.append)
    own = getattr(value, "name", None)
    own_notes = getattr(value, "notes", None)
    record = OperatorRecord(
        spec=spec,
        name=quoted(own if isinstance(own, str) and own else name, LONGEST),
        kind=kind_of(operator),
        size=operator.shape[0],
        entries=stored_entries(operator),
        dtype=dtype_name(operator.dtype),
        sha256=digest,
    )
    notes += [str(note) for note in own_notes] if isinstance(own_notes, list | tuple) else []
    return GivenOperator(operator, record, notes, time.perf_counter() - start)


@contextmanager
def errors_about(spec: str):
    """Add the name of the operator to errors about `operator` inside this context."""
    try:
        yield
    except ArgumentError as error:
        text = str(error).removeprefix(OPTION).lstrip(": ")
        raise SpectraError(f"{OPTION} {spec}: {text}") from error


def kind_of(operator: Any) -> str:
    """Describe the kind of an operator in a few words."""
    if isinstance(operator, Tensor):
        return "dense" if operator.layout is torch.strided else "sparse"
    return operator.what if isinstance(operator, ProductOperator) else type(operator).__name__


def stored_entries(operator: Any) -> int | None:
    """Return the number of stored entries; None for an operator without entries."""
    if not isinstance(operator, Tensor):
        return None
    return operator.numel() if operator.layout is torch.strided else operator.values().numel()


def found_at(spec: str) -> tuple[Any, str, str | None]:
    """Load the object with a name, and return it with its name in results and the SHA-256 of its file."""
    name, options = parse_spec(spec, OPTION)
    if is_code(name):
        return named_object(name, options)
    suffix = next((one for one in READERS if name.lower().endswith(one)), None)
    if suffix is None:
        raise input_error(OPTION, spec, f"it is not a known kind of matrix; {ONE}")
    reader = READERS[suffix]
    if reader is not read_npz and options:
        raise input_error(OPTION, spec, f"it takes no options; write {name}")
    path = Path(name)
    try:
        with open_regular(path):  # refuses a pipe or a missing file before a library opens it
            pass
        found = reader(path, spec, options)
        digest = sha256(path)
    except SpectraError:
        raise
    except OSError as error:
        text = (
            unreadable_reason(path, "there is no such file") if isinstance(error, FileNotFoundError) else error.strerror
        )
        raise input_error(OPTION, spec, f"{text or describe(error)}; check the path") from error
    return found, path.name[: -len(suffix)] or path.name, digest


def named_object(name: str, options: dict[str, Any]) -> tuple[Any, str, str | None]:
    """Import `file.py:name` or `package.module:name`, and call it if it is a function without a size.

    Returns the object, its name in results, and the SHA-256 of its file, None for a module.
    """
    value = resolve(name, OPTION)
    if options or builds(value):
        if not options and wants_vector(value):
            text = "it is a function of a vector without a size; add a line NAME.size = n after its definition"
            raise input_error(OPTION, name, text)
        value = call(value, name, options, OPTION)
    place = place_of(name)
    digest = sha256(Path(place)) if is_path(place) else None
    return value, name.rpartition(":")[2], digest


def builds(value: Any) -> bool:
    """Whether a value is a function or class that returns an operator, and is not an operator itself."""
    return inspect.isclass(value) or (callable(value) and size_of(value) is None and not hasattr(value, "shape"))


def wants_vector(value: Any) -> bool:
    """Whether a function has a required argument, as a function that multiplies a vector has."""
    parameters = getattr(signature_of(value), "parameters", {}).values()
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def read_npy(path: Path, spec: str, _options: dict[str, Any]) -> np.ndarray:
    """Map the array of a .npy file into memory, so that pages are read when products use them."""
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:
        raise damaged(spec, ".npy", "numpy.save(file, A)", error) from error


def read_npz(path: Path, spec: str, options: dict[str, Any]) -> Any:
    """Read the matrix of a .npz file: of scipy.sparse.save_npz, or its only array, or the array named by `key`."""
    if unknown := options.keys() - {"key"}:
        raise input_error(OPTION, spec, f"it has no option {min(unknown)}; write {path}?key=NAME")
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            names = list(arrays)
            if set(names) >= SPARSE:
                return read_sparse(path)
            key = str(options["key"]) if "key" in options else names[0] if len(names) == 1 else ""
            if key in names:
                return arrays[key]
    except OSError:
        raise
    except Exception as error:
        way_out = "numpy.savez(file, A=A) or scipy.sparse.save_npz(file, A)"
        raise damaged(spec, ".npz", way_out, error) from error
    if "key" in options:
        raise input_error(OPTION, spec, f"it has no array {quoted(options['key'], 40)}; {suggest(key, names)}")
    held = ", ".join(quoted(one, 40) for one in names[:5]) or "nothing"
    raise input_error(OPTION, spec, f"it holds {held}; name one of its arrays, as {path}?key=NAME")


def read_sparse(path: Path) -> Any:
    """Read a matrix of scipy.sparse.save_npz, and check its indices, which load_npz does not."""
    from scipy import sparse

    matrix = sparse.load_npz(path)
    if hasattr(matrix, "check_format"):
        matrix.check_format(full_check=True)
    return matrix


def read_matrix_market(path: Path, spec: str, _options: dict[str, Any]) -> Any:
    """Read the matrix of a Matrix Market file, dense or sparse."""
    from scipy.io import mmread

    try:
        return mmread(path)
    except OSError:
        raise
    except Exception as error:
        raise damaged(spec, "Matrix Market", "scipy.io.mmwrite(file, A)", error) from error


READERS: dict[str, Callable[[Path, str, dict[str, Any]], Any]] = {  # by the end of a file's name
    ".npy": read_npy,
    ".npz": read_npz,
    ".mtx": read_matrix_market,
    ".mtx.gz": read_matrix_market,
    ".mtx.bz2": read_matrix_market,
}


def damaged(spec: str, kind: str, way_out: str, error: Exception) -> SpectraError:
    """Make the error for a file with another content; NumPy's own message would suggest to allow pickles."""
    pickled = any(sign in str(error).lower() for sign in ("pickle", "object"))
    why = "it holds Python objects, which are never unpickled, or it is" if pickled else "it is damaged, or"
    text = f"{why} not a {kind} file of numbers ({type(error).__name__}); save numbers with {way_out}"
    return input_error(OPTION, spec, text)
