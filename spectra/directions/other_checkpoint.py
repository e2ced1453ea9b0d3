"""Read another checkpoint of a problem's network, and put its weights and statistics into the model for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from spectra.devices import device_of_vectors
from spectra.errors import SpectraError
from spectra.inputs.checkpoint import load_checkpoint, read_parameters
from spectra.inputs.checkpoint_file import OPTION
from spectra.inputs.checkpoint_folder import adapter_of
from spectra.problem.problem import Problem
from spectra.quoting import quoted


@dataclass(frozen=True)
class OtherCheckpoint:
    """The parameters and buffers of another checkpoint that differ from those of the model, by their names."""

    path: str
    values: Mapping[str, Tensor]
    sha256: str | None

    def step(self, problem: Problem) -> Tensor:
        """The difference theta' - theta (n,) of the chosen parameters, whole on every process."""
        parts = [self.values.get(name, p.data) - p.data for name, p in problem.parameters.items()]
        step = problem.vector(parts)
        return step.to(device_of_vectors(step.device))

    def buffers(self, problem: Problem) -> dict[str, Tensor]:
        """The changes of floating-point buffers that differ, such as running statistics of BatchNorm, by name."""
        own = dict(problem.model.named_buffers())
        return {n: v - own[n] for n, v in self.values.items() if n in own and v.is_floating_point()}

    def staying(self, problem: Problem) -> list[str]:
        """The names of parameters that differ but are frozen or not chosen."""
        named = dict(problem.model.named_parameters())
        return [name for name in self.values if name in named and name not in problem.parameters]


def read_other_checkpoint(problem: Problem, path: str, key: str | None, option: str) -> OtherCheckpoint:
    """Read another checkpoint of the problem's network, without changing its model.

    Args:
        problem: the problem.
        path: the file of the other checkpoint.
        key: the entry of the file that holds the weights, as `checkpoint_key`.
        option: the argument that names the file, for messages.

    Raises:
        SpectraError: the file cannot be read, or does not fit the model.
    """
    own = tensors_of(problem.model)
    try:
        if adapter_of(Path(path)):
            shapes = {name: p.shape for name, p in problem.parameters.items()}
            found, sha256 = read_parameters(path, shapes, key), None
            values = {name: value.to(own[name]) for name, value in found.items()}
        else:
            copies = {name: tensor.data.clone() for name, tensor in own.items()}
            # Loading into the copies must not count as a change of the model's tensors, which matrices check.
            with _unsafe_preserve_version_counter(tuple(own.values())), set_to(own, copies):
                sha256 = load_checkpoint(problem.model, path, key)["sha256"]
                values = {name: tensor.data for name, tensor in own.items()}
    except SpectraError as error:
        raise SpectraError(str(error).replace(f"{OPTION} {quoted(path)}", f"{option}{quoted(path)}", 1)) from error
    return OtherCheckpoint(path, {n: v for n, v in values.items() if not torch.equal(v, own[n].data)}, sha256)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model by name; tied ones occur once."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@contextmanager
def set_to(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """A context in which the tensors of a model have these values, by name; afterwards they have their own again."""
    before = {name: own[name].data for name in values}
    try:
        for name, value in values.items():
            own[name].data = value
        yield
    finally:
        for name, value in before.items():
            own[name].data = value


@dataclass(frozen=True)
class Statistics:
    """Buffers, such as running statistics of BatchNorm, that are interpolated between checkpoints.

    At coordinates z they are b + sum_i z_i (b_i - b), so that each checkpoint has its own. Beyond the checkpoints they
    are those of the nearest point in between, since extrapolated variances could become negative.
    """

    own: Mapping[str, Tensor]  # of the model
    changes: tuple[Mapping[str, Tensor], ...]  # one for each coordinate; empty unless it leads to a checkpoint

    def __bool__(self) -> bool:
        return any(self.changes)

    @contextmanager
    def at(self, z: Iterable[float]) -> Iterator[None]:
        """A context in which the model has the buffers for coordinates z."""
        shares = [max(0.0, float(x)) if change else 0.0 for x, change in zip(z, self.changes, strict=True)]
        most, values = max(1.0, sum(shares)), {}
        for share, change in zip(shares, self.changes, strict=True):
            for name, by in change.items():
                values[name] = values.get(name, self.own[name].data) + share / most * by
        with set_to(self.own, values):
            yield
