"""The record of the problem that a result belongs to: model, checkpoint, data, loss and settings.

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
    """The parameters of one module, without those of its submodules."""

    name: str  # empty for the model itself
    type: str
    parameters: int  # tied ones count where they appear first
    trainable: int
    chosen: int  # by --params, of the trainable ones
    tied: list[str]  # names of parameters of earlier layers that are used here again


@stored
class CheckpointMatch(Stored):
    """The comparison of the names in a checkpoint with those in the model."""

    path: str
    key: str | None  # of the state dict in the file; None: the file is the state dict
    prefix: str | None  # of names in the file that the model lacks
    added: str | None = None  # prefix of names in the model that the file lacks
    sha256: str | None = None  # of the file
    tensors: int
    ignored: list[str]  # names in the file that the model lacks
    dtypes: list[str]
    adapter: str | None = None  # type of a PEFT adapter, such as LORA; None: full weights
    adapter_parameters: int | None = None


@stored
class OperatorRecord(Stored):
    """A matrix given by the user with `--operator`."""

    spec: str  # as on the command line, or the type of an object
    name: str  # in results
    kind: str  # dense, sparse, or the type of the object that multiplies
    size: int  # n of (n, n)
    entries: int | None  # stored entries; None: only products are known
    dtype: str
    sha256: str | None  # of the file that holds it or its code

    def described(self) -> str:
        """The matrix in words: `400 x 400, sparse, 1,920 entries stored, float64`."""
        stored = f", {counted(self.entries or 0, 'entry', 'entries')} stored" if self.kind == "sparse" else ""
        return f"{self.size:,} x {self.size:,}, {self.kind}{stored}, {self.dtype}"


@stored
class ProblemRecord(Stored):
    """The problem of a result: model, checkpoint, data, loss and settings. Its fields depend on the command.

    Make one by `ProblemRecord.known(...)`. A result of `operators` has no model, data or loss.
    """

    ALWAYS: ClassVar = ("parameters", "seed", "versions")
    EITHER: ClassVar = (("parameters_in_all", "model", "data", "checkpoint"), ("operator", "operators"))

    operator: str  # specs as on the command line, separated by commas
    operators: list[OperatorRecord] | None = None
    parameters: int  # chosen by `params`; n of an operator
    shapes: dict[str, list[int]] | None = None  # of the chosen parameters, by name
    parameters_in_all: int | None = None
    wrt: str | None = None  # parameters or inputs: what the loss is differentiated with respect to
    input_size: int | None = None  # entries of one input, with `wrt` inputs
    examples: int  # that the loss is a mean over
    step: int | None = None  # of the training loop that recorded it
    model: str  # specs, as on the command line
    data: str | None
    loss: str
    loss_part: str | None = None  # of a loss of several parts; None: their sum
    checkpoint: str | None
    checkpoint_key: str | None = None
    transform: str | None
    output: str | None = None
    samples: int | None = None
    batch_size: int
    memory: int | None = None  # bytes that products may take
    recompute_activations: bool | None = None  # as requested; `path` of a result says what was done
    params: list[str] | None = None  # globs
    mc_samples: int | None = None
    weight_decay: float | None = None
    precondition: PreconditionRecord | None = None  # None: no preconditioner
    device: str | None = None
    dtype: str | None = None
    seed: int
    max_products: int | None = None  # these five from a training loop; otherwise in `options`
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
    notes: list[str] | None = None  # what to know when reading the numbers
    versions: dict[str, str] | None = None
    layers: list[LayerRecord]  # these three from `inspect`
    checkpoint_match: CheckpointMatch | None
    gradient_norm: float
    options: dict[str, Any] | None = None  # of the command line, as parsed

    def __repr__(self) -> str:
        """The main fields that the record has."""
        if self.operators:
            matrices = ", ".join(f"{one.spec} ({one.described()})" for one in self.operators)
            return f"ProblemRecord(operator {matrices})"
        of = " of ".join(str(n) for name in ("parameters", "parameters_in_all") if (n := self.get(name)) is not None)
        main = {"model": f"{self.get('model')} ({of} parameters)"}
        main |= {name: self.get(name) for name in ("checkpoint", "data", "examples", "loss", "dtype")}
        return f"ProblemRecord({', '.join(f'{name} {value}' for name, value in main.items() if value is not None)})"

    def get(self, name: str) -> Any:
        """A field, or None if the record lacks it."""
        return getattr(self, name, None)

    @property
    def model_holds_weights(self) -> bool:
        """Whether the model is a file or folder that holds its weights, so that they do not depend on the seed."""
        name, _, query = str(self.get("model")).partition("?")
        options = [part.partition("=")[0] for part in query.split("&")]
        of_file = ":" not in name and not name.endswith(".py") and bool(PurePath(name).suffix)
        return of_file or (name.startswith("transformers:") and "path" in options)

    def option(self, name: str) -> Any:
        """The value of an option of the command; None if it is not known."""
        return self.options[name] if self.options and name in self.options else self.get(name)
