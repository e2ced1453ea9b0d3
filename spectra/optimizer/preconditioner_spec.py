"""Preconditioners as a user names or passes them, and the record of each.

    optimizer                       the state of the optimizer in the checkpoint itself
    checkpoint-500/, optimizer.pt   a state elsewhere; ?name=AdamW is torch's class, ?key=optimizer_states.0 its key
    P.npz, P.safetensors            a diagonal P: one positive array per parameter, under its name
    file.py:name                    an object, or a function that returns it (?key=value): an optimizer or its state, a
                                    mapping of such arrays, a vector P (n,), or an operator (n, n) of P^-1/2

Files of arrays and of states are read without running any code in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from spectra.errors import SpectraError
from spectra.inputs.checkpoint_folder import sha256
from spectra.inputs.code_origin import is_code, is_path, place_of
from spectra.inputs.operators import builds
from spectra.inputs.python_objects import GIVEN
from spectra.inputs.spec import call, input_error, parse_spec, resolve, unreadable_reason
from spectra.optimizer.diagonals import SUFFIXES, from_arrays, from_operator, from_vector, read_diagonal
from spectra.optimizer.files import IN_A_FOLDER, OPTIONS, read_state
from spectra.optimizer.parameter_state import refusal
from spectra.optimizer.preconditioner import Preconditioner, preconditioner
from spectra.optimizer.state_dict import is_optimizer_state
from spectra.quoting import quoted
from spectra.records.precondition import PreconditionRecord

OPTION = "`precondition`"
IN_THE_CHECKPOINT = "optimizer"  # the name for the state in the checkpoint
FORMS = (
    "an optimizer or its state, a mapping from names of parameters to P, a vector (n,) of P, or an operator (n, n) "
    "that multiplies by P^-1/2"
)


@dataclass(frozen=True)
class PreconditionerSpec:
    """A preconditioner that is named in one of the forms above, or passed as an object.

    Attributes:
        value: a name, a path, or an object, which may be a `Preconditioner`.
        checkpoint: the file of the model's weights, which contains the state that `optimizer` names.
    """

    value: Any
    checkpoint: str | Path | None = None

    @property
    def named(self) -> bool:
        """Whether it is a name or a path, not an object."""
        return isinstance(self.value, str | os.PathLike)

    @property
    def spec(self) -> str:
        """The name in a record: the name given, or the type of an object."""
        if self.named:
            return os.fspath(self.value)
        kind = self.value.optimizer if isinstance(self.value, Preconditioner) else None
        return f"{kind or type(self.value).__name__} {GIVEN}"

    def refuse(self) -> None:
        """Raise SpectraError for errors that do not depend on the model: an unknown option, or a missing file."""
        if not self.named:
            return
        name, options = parse_spec(self.spec, OPTION)
        if is_code(name):
            return
        known = () if name.endswith(SUFFIXES) else OPTIONS
        if unknown := sorted(options.keys() - set(known)):
            more = f"available: {', '.join(known)}" if known else "it takes none"
            raise input_error(OPTION, self.spec, f"it has no option {unknown[0]}; {more}")
        if name == IN_THE_CHECKPOINT:
            if self.checkpoint is None:
                text = "there is no `checkpoint` to read it from; give one, or name the file that holds the state"
                raise input_error(OPTION, self.spec, text)
        elif not Path(name).exists():
            absent = f"no such file; give {IN_THE_CHECKPOINT} (in the checkpoint), a file or folder, or file.py:name"
            raise input_error(OPTION, self.spec, unreadable_reason(name, absent))

    def load(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter]
    ) -> tuple[Preconditioner, PreconditionRecord]:
        """Load the preconditioner for these parameters of a model, with its record. Raises SpectraError."""
        self.refuse()
        with errors_about(self.spec):
            found, digest = self._named(model, parameters) if self.named else (self.value, None)
            if not isinstance(found, Preconditioner):
                found = from_object(found, model, parameters)
        return found, PreconditionRecord.of(self.spec, found, digest)

    def _named(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> tuple[Any, str | None]:
        """The preconditioner or object that is named, and the SHA-256 of its file."""
        name, options = parse_spec(self.spec, OPTION)
        if is_code(name):
            value = resolve(name, OPTION)
            if options or builds(value):
                value = call(value, name, options, OPTION)
            place = place_of(name)
            return value, sha256(Path(place)) if is_path(place) else None
        if name.endswith(SUFFIXES):
            arrays, digest = read_diagonal(Path(name))
            return from_arrays(arrays, model, parameters), digest
        path = Path(self.checkpoint if name == IN_THE_CHECKPOINT and self.checkpoint is not None else name)
        try:
            state, digest = read_state(path, options.get("key"))
        except SpectraError as error:
            beside = path.with_name(IN_A_FOLDER[0])
            if name != IN_THE_CHECKPOINT or path == beside or not beside.is_file():
                raise
            raise SpectraError(f"{error}; or name {beside}, if it belongs to these weights") from error
        return preconditioner(state, model, parameters, name=options.get("name")), digest


def from_object(value: Any, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Preconditioner:
    """The preconditioner that an object describes. Raises SpectraError if it is of another type."""
    optimizer = isinstance(value, Optimizer) or isinstance(getattr(value, "optimizer", None), Optimizer)
    if optimizer or is_optimizer_state(value):
        return preconditioner(value, model, parameters)
    if isinstance(value, Mapping):
        return from_arrays(value, model, parameters)
    function = callable(value) and not isinstance(value, nn.Module)
    if isinstance(value, str) or not (hasattr(value, "shape") or function or isinstance(value, tuple)):
        raise refusal(f"expected {FORMS}, got {type(value).__name__}")
    size = sum(p.numel() for p in parameters.values())
    if getattr(value, "ndim", None) == 1:
        return from_vector(value, size)
    return from_operator(value, size)


@contextmanager
def errors_about(spec: str) -> Iterator[None]:
    """A context in which errors about `optimizer` are replaced by errors about what was typed or passed."""
    try:
        yield
    except SpectraError as error:
        text = str(error)
        if not text.startswith("`optimizer`"):
            raise
        rest, path = text.removeprefix("`optimizer`").lstrip(": "), quoted(spec.partition("?")[0])
        rest = rest.removeprefix(f"{path}: ").removeprefix(f"{path} ")
        raise SpectraError(f"{OPTION} {quoted(spec)}: {rest}") from error
