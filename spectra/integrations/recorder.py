"""The common part of the callbacks: a recorder that makes a `spectra.watch` when training begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from spectra.arguments import require_boolean, require_integer
from spectra.errors import SpectraError
from spectra.inputs.devices import cast_tensors
from spectra.inputs.items import plain
from spectra.inputs.python_objects import device_and_dtype, unwrapped
from spectra.integrations.examples import some_batches
from spectra.problem.eval_mode import temporary_eval_mode
from spectra.problem.model_loss import returned_loss
from spectra.training.trackers import Tracker, tracker
from spectra.training.watch import Watch, stepped


class Recorder:
    """Record with `spectra.watch` at the steps of a trainer that are multiples of `every`, once at each.

    All processes make the watch, so that an error stops all of them. Only the first records; the others continue, and
    wait for it at their next communication.
    """

    def __init__(
        self,
        out: str | Path,
        every: int,
        examples: int,
        loss: Any,
        data: Any,
        log: Any,
        precondition: bool,
        options: dict[str, Any],
    ):
        require_integer("every", every)
        require_integer("examples", examples)
        require_boolean("precondition", precondition)
        self.out, self.every, self.examples = out, every, examples
        self.loss, self.data, self.precondition, self.options = loss, data, precondition, options
        self.log = None if log is None else tracker(log)
        self.watch: Watch | None = None
        self.last: int | None = None  # the step of the last call

    def begin(self, model: nn.Module, loss: Any, loader: Any, log: Tracker, optimizers: Sequence[Any]) -> None:
        """Choose the examples and make the watch; `loss` and `log` are the trainer's, used where the user gave none.

        Raises SpectraError where no recording can work.
        """
        batches, options = self.data, dict(self.options)
        if batches is None:
            batches = some_batches(loader, self.examples, self.options.get("seed", 0))
            if self.loss is None:
                refuse_collectives(model, loss, batches[0])
            batches = iter(batches)
        if self.precondition:
            options["optimizer"] = only(optimizers)
        loss = loss if self.loss is None else self.loss
        self.watch = Watch(model, loss, batches, self.out, every=self.every, log=self.log or log, **options)
        self.last = None

    def first(self, step: int) -> None:
        """Record before the first step, unless the preconditioner needs an optimizer state that does not exist yet."""
        assert self.watch is not None
        if self.precondition and not stepped(self.watch.optimizer):
            self.last = step
        self.at(step)

    def at(self, step: int) -> None:
        """Record at this step, unless it is the step of the last call."""
        if self.watch is not None and step != self.last:
            self.last = step
            self.watch(step)


def only(optimizers: Sequence[Any]) -> Any:
    """Return the only optimizer of a trainer, without wrappers. Raises SpectraError where there is not exactly one."""
    if len(optimizers) != 1:
        raise SpectraError(
            f"`precondition`: the trainer has {len(optimizers)} optimizers, but it needs one; use spectra.watch with "
            "`optimizer` for each of them"
        )
    return getattr(optimizers[0], "optimizer", optimizers[0])


class Collectives(TorchDispatchMode):
    """Raise SpectraError for collective operations of torch.distributed inside this context."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "c10d" in func.namespace:
            raise SpectraError(
                f"`loss`: it communicates with other processes ({func._opname.strip('_')}), but only the first "
                'process records; give a `loss` that does not communicate, or "model"'
            )
        return func(*args, **kwargs or {})


def refuse_collectives(model: nn.Module, loss: Any, batch: Any) -> None:
    """Raise SpectraError where the loss of a batch needs other processes, since only one records and would hang."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return
    batch = cast_tensors(plain(batch), *device_and_dtype(unwrapped(model)))
    try:
        with temporary_eval_mode(model), Collectives():
            (returned_loss if loss == "model" else loss)(model, batch)
    except Exception as error:
        if isinstance(error, SpectraError):
            raise  # the watch reports any other error
