"""The record of a problem: which model, checkpoint, data and loss, and all that numbers depend on.

`spectra.inputs.problem` makes it.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, ClassVar

from spectra.records.fields import Stored, stored
from spectra.records.precondition import PreconditionRecord
from spectra.wording import counted


@stored
class LayerRecord(Stored):
    """The parameters that one module has itself, not those of the modules in it."""

    name: str  # empty for the model itself
    type: str
    parameters: int  # tied ones count where they appear first
    trainable: int
    chosen: int  # by --params, of the trainable ones
    tied: list[str]  # names of parameters of earlier layers that are used here again


@stored
class CheckpointMatch(Stored):
    """The names in a checkpoint against those of the model."""

    path: str
    key: str | None  # of the state dict in the file; None: it is the file
    prefix: str | None  # that the file's names have and the model's have not
    added: str | None = None  # that the model's names have and the file's have not
    sha256: str | None = None  # of the file
    tensors: int
    ignored: list[str]  # names in the file that the model has not
    dtypes: list[str]
    adapter: str | None = None  # kind of a PEFT adapter, as LORA; None: whole weights
    adapter_parameters: int | None = None


@stored
class OperatorRecord(Stored):
    """A matrix of the user's own, in place of those of a network."""

    spec: str  # as on the command line, or the type of an object
    name: str  # what results call it
    kind: str  # dense, sparse, or what multiplies
    size: int  # n of (n, n)
    entries: int | None  # that are stored; None: it is known by its products alone
    dtype: str
    sha256: str | None  # of the file that it was read from, or that its code is in

    def described(self) -> str:
        """The matrix in words: `400 x 400, sparse, 1,920 entries stored, float64`."""
        stored = f", {counted(self.entries or 0, 'entry', 'entries')} stored" if self.kind == "sparse" else ""
        return f"{self.size:,} x {self.size:,}, {self.kind}{stored}, {self.dtype}"


@stored
class ProblemRecord(Stored):
    """The problem of a result. Which fields it has depends on the command; make one by `ProblemRecord.known(...)`.

    Where the result is of operators (`operators`), there is no model, and nothing that belongs to one.
    """

    ALWAYS: ClassVar = ("parameters", "seed", "versions")
    EITHER: ClassVar = (("parameters_in_all", "model", "data", "checkpoint"), ("operator", "operators"))

    operator: str  # spec, as on the command line; of several, all with commas between them
    operators: list[OperatorRecord] | None = None
    parameters: int  # chosen by `params`; of an operator, n
    shapes: dict[str, list[int]] | None = None  # of the chosen parameters, by name
    parameters_in_all: int | None = None
    wrt: str | None = None  # what is differentiated by: parameters, or inputs
    input_size: int | None = None  # entries of one input, where that is differentiated by
    examples: int  # that the loss is a mean over
    step: int | None = None  # of the training loop that has recorded it
    model: str  # specs, as on the command line
    data: str | None
    loss: str
    loss_part: str | None = None  # of a loss that returns several; None: their sum
    checkpoint: str | None
    checkpoint_key: str | None = None
    transform: str | None
    output: str | None = None
    samples: int | None = None
    batch_size: int
    memory: int | None = None  # bytes that products may take
    recompute_activations: bool | None = None  # as asked; `path` of a result tells what was done
    params: list[str] | None = None  # globs
    mc_samples: int | None = None
    weight_decay: float | None = None
    precondition: PreconditionRecord | None = None  # None: the matrices are as they are named
    device: str | None = None
    dtype: str | None = None
    seed: int
    max_products: int | None = None  # these five where a training loop has recorded it; else they are in `options`
    k: int | None = None
    which: str | None = None
    tol: float | None = None
    rtol: float | None = None
    checkpoint_prefix: str | None = None
    checkpoint_added: str | None = None
    checkpoint_ignored: int | None = None
    checkpoint_sha256: str | None = None
    device_name: str | None = None
    threads: int | None = None
    ranks: int | None = None
    loss_value: float
    accuracy: float | None = None
    notes: list[str] | None = None  # what a reader of the numbers has to know
    versions: dict[str, str] | None = None
    layers: list[LayerRecord]  # these three of `inspect`
    checkpoint_match: CheckpointMatch | None
    gradient_norm: float
    options: dict[str, Any] | None = None  # of the command line, as they were understood

    def __repr__(self) -> str:
        """The main fields, as far as they are there: a file may hold any."""
        if self.operators:
            told = ", ".join(f"{one.spec} ({one.described()})" for one in self.operators)
            return f"ProblemRecord(operator {told})"
        of = " of ".join(str(n) for name in ("parameters", "parameters_in_all") if (n := self.get(name)) is not None)
        told = {"model": f"{self.get('model')} ({of} parameters)"}
        told |= {name: self.get(name) for name in ("checkpoint", "data", "examples", "loss", "dtype")}
        return f"ProblemRecord({', '.join(f'{name} {value}' for name, value in told.items() if value is not None)})"

    def get(self, name: str) -> Any:
        """A field, or None where the record does not tell."""
        return getattr(self, name, None)

    @property
    def model_holds_weights(self) -> bool:
        """Whether the name of the model is that of a file or folder from which its weights come, and no seed."""
        name, _, query = str(self.get("model")).partition("?")
        options = [part.partition("=")[0] for part in query.split("&")]
        of_file = ":" not in name and not name.endswith(".py") and bool(PurePath(name).suffix)
        return of_file or (name.startswith("transformers:") and "path" in options)

    def option(self, name: str) -> Any:
        """The value of an option of the command, None where that is not known."""
        return self.options[name] if self.options and name in self.options else self.get(name)
