"""Another checkpoint of a problem's network: its weights and statistics, beside those that the model holds."""

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
class Elsewhere:
    """The parameters and buffers of another checkpoint that differ from the model's own, by their names there."""

    path: str
    values: Mapping[str, Tensor]
    sha256: str | None

    def step(self, problem: Problem) -> Tensor:
        """theta' - theta (n,) of the chosen parameters, whole."""
        parts = [self.values.get(name, p.data) - p.data for name, p in problem.parameters.items()]
        step = problem.vector(parts)
        return step.to(device_of_vectors(step.device))

    def buffers(self, problem: Problem) -> dict[str, Tensor]:
        """The floating buffers that differ, as running statistics of BatchNorm do: their change by name."""
        own = dict(problem.model.named_buffers())
        return {n: v - own[n] for n, v in self.values.items() if n in own and v.is_floating_point()}

    def staying(self, problem: Problem) -> list[str]:
        """The names of parameters that differ, and are not chosen or are frozen."""
        named = dict(problem.model.named_parameters())
        return [name for name in self.values if name in named and name not in problem.parameters]


def elsewhere(problem: Problem, path: str, key: str | None, option: str) -> Elsewhere:
    """Read another checkpoint of the problem's network, whose model is left as it is.

    Args:
        key: as `checkpoint_key` for the model's own.
        option: the argument that names it, for messages.

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
            # What is loaded into the copies is no change of the model's own, which matrices would take it for.
            with _unsafe_preserve_version_counter(tuple(own.values())), standing(own, copies):
                sha256 = load_checkpoint(problem.model, path, key)["sha256"]
                values = {name: tensor.data for name, tensor in own.items()}
    except SpectraError as error:
        raise SpectraError(str(error).replace(f"{OPTION} {quoted(path)}", f"{option}{quoted(path)}", 1)) from error
    return Elsewhere(path, {n: v for n, v in values.items() if not torch.equal(v, own[n].data)}, sha256)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model by name, tied ones once."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@contextmanager
def standing(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """The tensors of a model hold these values, by name, inside this context; then their own again."""
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
    """Buffers, as running statistics of BatchNorm, that go with the way to other checkpoints.

    At z of the coordinates they are b + sum_i z_i (b_i - b), so that at each checkpoint they are its own. Beyond the
    checkpoints they stay as they are at the nearest point between, since variances would become negative.
    """

    own: Mapping[str, Tensor]  # of the model
    changes: tuple[Mapping[str, Tensor], ...]  # one for each coordinate; empty where a direction leads to no checkpoint

    def __bool__(self) -> bool:
        return any(self.changes)

    @contextmanager
    def at(self, z: Iterable[float]) -> Iterator[None]:
        """The buffers are those of the coordinates z inside this context."""
        shares = [max(0.0, float(x)) if change else 0.0 for x, change in zip(z, self.changes, strict=True)]
        most, values = max(1.0, sum(shares)), {}
        for share, change in zip(shares, self.changes, strict=True):
            for name, by in change.items():
                values[name] = values.get(name, self.own[name].data) + share / most * by
        with standing(self.own, values):
            yield
