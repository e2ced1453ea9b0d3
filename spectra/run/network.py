"""A network with its loss and data as the subject of a run."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from spectra.cluster.distributed import distributed
from spectra.cluster.replicated import Replicated
from spectra.curvature.engine.footprint import tensors
from spectra.curvature.factor.tangent_kernel import TangentKernelOperator
from spectra.curvature.matrices import KERNELS
from spectra.curvature.operator import Curvature
from spectra.inputs.problem import Loaded
from spectra.operator import SymmetricOperator, mesh_of
from spectra.optimizer.preconditioner import Preconditioner, second_decay
from spectra.optimizer.preconditioner_spec import PreconditionerSpec
from spectra.problem.eval_mode import temporary_eval_mode
from spectra.problem.input_problem import InputProblem
from spectra.problem.problem import Problem, Processes
from spectra.records.problem import ProblemRecord
from spectra.resume.journal import as_bytes
from spectra.run.basis import ShardedSpace
from spectra.run.loading import device_of, load, processes_of, refuse_lower_precision
from spectra.run.request import Request
from spectra.spectrum.classes import class_count


class Network:
    """A network with its loss and data."""

    computes = "a part of the model"

    def __init__(self, request: Request):
        self.request, self.names = request, tuple(dict.fromkeys(request.curvature))
        self.record: ProblemRecord
        self.initial_notes: tuple[str, ...] = ()
        self.loaded: Loaded
        self.preconditioner: Preconditioner | None = None  # once loaded, if one is requested

    @property
    def problem(self) -> Problem:
        """The problem, once loaded."""
        return self.loaded.problem

    def device(self) -> torch.device:
        return device_of(self.request)

    def refuse_early(self, device: torch.device) -> None:
        refuse_lower_precision(self.request, device)

    def processes(self, device: torch.device) -> Processes:
        return processes_of(self.request, device)

    def preserved(self) -> AbstractContextManager[Any]:
        """A context in which the caller's model is in eval mode; its state is restored on leaving."""
        model = self._own_model()
        return temporary_eval_mode(model) if isinstance(model, nn.Module) else nullcontext()

    def _own_model(self) -> Any:
        """The model that the caller gave, or its name."""
        given = self.request.problem
        return given.model if isinstance(given, Problem) else self.request.named["model"]

    @property
    def trained_model(self) -> nn.Module:
        """The model that the caller's optimizer knows: the caller's own, since the problem may hold a copy."""
        own = self._own_model()
        return own if isinstance(own, nn.Module) else self.problem.model

    def load(self, processes: Processes, begins: Callable[[str], None]) -> None:
        self.loaded, names = load(self.request, processes, begins)
        self.names, self.record, self.initial_notes = (
            tuple(dict.fromkeys(names)),
            self.loaded.record,
            self.loaded.data_notes,
        )
        if given := self.request.preconditioner:
            begins("the preconditioner")
            self._load_preconditioner(given)

    def _load_preconditioner(self, given: PreconditionerSpec) -> None:
        self.preconditioner, record = given.load(self.problem.model, self.problem.parameters)
        self.record = self.record.changed(precondition=record)
        if self.problem.weight_decay and self.preconditioner.decay is not None:
            raise second_decay(self.problem.weight_decay, "the optimizer of `precondition`")

    @property
    def space(self) -> ShardedSpace:
        return ShardedSpace(self.problem)

    @property
    def classes(self) -> int | None:
        return class_count(self.problem)

    def fingerprint(self) -> dict[str, Any]:
        record = self.record
        found = {
            "mean loss": record.loss_value,  # detects changed code
            "checkpoint_sha256": record.checkpoint_sha256,
            "data_checksum": checksum_of(data_of(self.problem)),
        }
        if isinstance(self._own_model(), nn.Module):
            found["parameters_checksum"] = checksum_of(state_of(self.problem.model))
            found["labels_seed"] = self.problem.seed
        if self.preconditioner:
            held = (self.preconditioner.root, self.preconditioner.decay)
            found["preconditioner_checksum"] = checksum_of(part for part in held if isinstance(part, Tensor))
        return found

    def matrix(self, session: Any, name: str, products: int, memory: int | None, precision: str | None) -> Any:
        if name in KERNELS:
            return TangentKernelOperator(self.problem, memory, self.request.check)
        return session.matrix(self.problem, name, products, memory, precision)

    def distributed(self, matrix: Any) -> SymmetricOperator:
        if not isinstance(matrix, Curvature):
            return matrix  # a kernel, which each process computes whole
        return self.preconditioned(distributed(matrix))

    def preconditioned(self, operator: SymmetricOperator, of_loss: bool | None = None) -> SymmetricOperator:
        """The operator with the preconditioner applied; the operator itself if there is no preconditioner."""
        if (found := self.preconditioner) is None:
            return operator
        if not found.diagonal and (mesh := mesh_of(operator)) is not None:
            found = replace(found, root=Replicated(found.root, mesh, operator.device))
        return found.around(operator, of_loss)


def data_of(problem: Problem) -> Iterator[Tensor]:
    """Yield the tensors of the data: those of batches, and the inputs of an InputProblem."""
    yield from (tensor for batch in problem.batches for tensor in tensors(batch))
    if isinstance(problem, InputProblem):
        yield problem.leaves[0]


def state_of(model: nn.Module) -> list[Tensor]:
    """The parameters and buffers of a module, in dtypes that NumPy supports."""
    found = [*model.parameters(), *model.buffers()]
    return [tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in found]


def checksum_of(found: Iterable[Tensor]) -> int:
    """A checksum of all these tensors."""
    total = 0
    for tensor in found:
        total = zlib.crc32(as_bytes(tensor).data, total)
    return total
