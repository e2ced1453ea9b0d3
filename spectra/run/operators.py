"""Operators given by the user as the subject of a run, in place of a network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from spectra.cluster import ranks
from spectra.cluster.replicated import Replicated
from spectra.defaults import IEEE, PRECISIONS
from spectra.devices import WITHOUT_FLOAT64, name_of_device
from spectra.entries import diagonal
from spectra.errors import SpectraError, describe
from spectra.inputs.description import versions
from spectra.inputs.devices import choose_device, recorded_device
from spectra.inputs.operators import GivenOperator, Operators
from spectra.memory import explain_out_of_memory, out_of_memory_cause
from spectra.operator import Shaped, SymmetricOperator, Wrapper
from spectra.problem.problem import Processes
from spectra.records.problem import ProblemRecord
from spectra.run.loading import checks_of, processes_of
from spectra.run.network import checksum_of
from spectra.run.request import Request


@dataclass
class GivenMatrix(Wrapper):
    """An operator given by the user, with the interface of `run.matrix_source.Matrix`."""

    given: GivenOperator

    semidefinite = False  # as far as is known
    derivative_check = None  # it is not a derivative

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name, self.setup_seconds = self.given.name, self.given.seconds

    @property
    def precision(self) -> str:
        """The precision of products of a `spectra.Curvature`; ieee for others."""
        found = getattr(self.operator, "precision", IEEE)
        return found if found in PRECISIONS else IEEE

    @property
    def subject(self) -> str:
        """The beginning of messages about its products."""
        return f"`operator` {self.given.record.spec}: the matrix"

    @property
    def path(self) -> str:
        """How products are computed."""
        kind = self.given.record.kind
        return f"{kind} matrix" if self.kept_bytes else f"products of {kind}"

    @property
    def kept_bytes(self) -> int:
        """The bytes of its entries."""
        return sum(part.nbytes for part in parts_of(self.given.operator))

    @property
    def peak_bytes(self) -> int:
        """The bytes of its entries."""
        return self.kept_bytes

    def prepare(self) -> None:
        """Do nothing: the operator is ready."""

    def diagonal_sum(self) -> float | None:
        """The sum of the diagonal; None if entries are not known."""
        matrix = self.given.operator
        return diagonal(matrix).double().sum().item() if isinstance(matrix, Tensor) else None

    def factor(self) -> Any:
        """Raise SpectraError: an operator has no factor."""
        raise SpectraError(
            "`method` gram: needs a factor of the matrix, which an operator does not have; choose another method"
        )

    def __matmul__(self, vectors: Tensor) -> Tensor:
        try:
            product = self.operator @ vectors
        except SpectraError:
            raise
        except Exception as error:
            if out_of_memory_cause(error):
                raise
            text = f"a product failed ({describe(error)}); fix its code (SPECTRA_TRACEBACK=1 shows where)"
            raise SpectraError(f"`operator` {self.given.record.spec}: {text}") from error
        if product.shape != vectors.shape:
            came = f"its product has shape {tuple(product.shape)} for vectors of shape {tuple(vectors.shape)}"
            raise SpectraError(f"`operator` {self.given.record.spec}: {came}; return the shape of the vectors")
        return product


def parts_of(operator: Any) -> tuple[Tensor, ...]:
    """The dense tensors that hold a matrix's entries; empty if only products are known."""
    if not isinstance(operator, Tensor):
        return ()
    if operator.layout is torch.strided:
        return (operator,)
    return operator.values(), operator.col_indices(), operator.crow_indices()


class GivenOperators:
    """Operators given by the user, all of one size."""

    computes = "it"
    classes = None

    def __init__(self, request: Request, operators: Operators):
        self.request, self.operators = request, operators
        self.names: tuple[str, ...] = ()
        self.record: ProblemRecord
        self.initial_notes: tuple[str, ...] = ()
        self._processes = Processes()
        self._matrices: dict[str, GivenMatrix] = {}

    @cached_property
    def found(self) -> list[GivenOperator]:
        """The operators, loaded and checked."""
        return self.operators.load()

    def device(self) -> torch.device:
        """The device of vectors: the requested one, if entries can be moved there, otherwise that of the operator."""
        own = {one.operator.device for one in self.found if not isinstance(one.operator, Tensor)}
        if len({device.type for device in own}) > 1:
            raise SpectraError("`operator`: the operators are on different devices; give operators on one device")
        if own:
            return own.pop()
        asked = self.operators.device
        if asked is None:
            return self.found[0].operator.device
        named = str(asked)
        if self.request.ranks and ranks.world() > 1 and ":" in named:
            raise SpectraError(f"`device` {named}: is one device for all of torchrun's ranks; give `device` cuda")
        device = choose_device(asked)
        return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device

    def refuse_early(self, device: torch.device) -> None:
        if self.request.precision != IEEE:
            came = self.request.precision
            raise SpectraError(f"`precision` {came}: is for networks only; omit it for an operator")

    def processes(self, device: torch.device) -> Processes:
        return processes_of(self.request, device)

    def preserved(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def load(self, processes: Processes, begins: Callable[[str], None]) -> None:
        begins("the matrix")
        self._processes = processes
        device, request = self.device(), self.request
        sizes = {one.name: one.operator.shape[0] for one in self.found}
        if len(set(sizes.values())) > 1:
            rows = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
            raise SpectraError(f"`operator`: the operators differ in size ({rows} rows); give operators of one size")
        for name, size in sizes.items():
            limit = request.max_products
            request.settings.refuse_size(size, None if limit is None else limit - checks_of(request))
            self._matrices[name] = self._placed(next(one for one in self.found if one.name == name), device)
        self.names = tuple(sizes)
        self.record = self._record(device)
        asked = str(self.operators.device or "auto").partition(":")[0]
        if asked not in ("auto", device.type):
            self.initial_notes = (f"{', '.join(self.names)}: products are computed on {device}, not on {asked}",)

    def _placed(self, given: GivenOperator, device: torch.device) -> GivenMatrix:
        """Move the matrix to the device; each of several processes takes its rows of entries."""
        operator, mesh = given.operator, getattr(self._processes, "mesh", None)
        with explain_out_of_memory("`device`", f"the matrix does not fit on {device}; use `device` cpu"):
            if mesh is not None:
                operator = Replicated(operator, mesh, device)
            elif isinstance(operator, Tensor):
                operator = operator.to(device)
        return GivenMatrix(operator, given)

    def _record(self, device: torch.device) -> ProblemRecord:
        records = [one.record for one in self.found]
        several = len(records) > 1
        notes = [f"{one.name}: {note}" if several else note for one in self.found for note in one.notes]
        return ProblemRecord.known(
            operator=", ".join(record.spec for record in records),
            operators=records,
            parameters=records[0].size,
            device=recorded_device(device, self.operators.device),
            device_name=name_of_device(device),
            dtype=records[0].dtype,
            seed=self.operators.seed,
            threads=torch.get_num_threads(),
            ranks=self._processes.count,
            notes=notes,
            versions=versions(),
        )

    @property
    def space(self) -> Shaped:
        return self.distributed(self._matrices[self.names[0]])

    def fingerprint(self) -> dict[str, Any]:
        """The hashes of files and the checksums of entries; for other operators the journal checks one product."""
        found = {}
        for one in self.found:
            about = one.record
            found[about.name] = {"spec": about.spec, "size": about.size, "dtype": about.dtype, "sha256": about.sha256}
            if isinstance(one.operator, Tensor):
                found[about.name]["checksum"] = checksum_of(parts_of(one.operator))
        return {"operators": found}

    def matrix(self, session: Any, name: str, products: int, memory: int | None, precision: str | None) -> GivenMatrix:
        return self._matrices[name]

    def distributed(self, matrix: GivenMatrix) -> SymmetricOperator:
        return matrix
