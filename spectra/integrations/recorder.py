"""What callbacks of different trainers share: a `spectra.watch` that is made when training begins."""

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
from spectra.inputs.given import device_and_dtype, unwrapped
from spectra.inputs.items import plain
from spectra.integrations.examples import some_batches
from spectra.problem.model_loss import returned_loss
from spectra.problem.undisturbed import undisturbed
from spectra.training.trackers import Tracker, tracker
from spectra.training.watch import Watch, stepped


class Recorder:
    """Record by `spectra.watch` at the steps of a trainer that `every` divides, each step once.

    Every process makes the watch, so that what cannot work fails in all of them; the first alone records, while the
    others go on and wait for it where they next need it.
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
        """Choose the examples and make the watch, of the trainer's loss where the user has given none.

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
        """Record before the first step; with no word leave it out where the optimizer of P has no state yet."""
        assert self.watch is not None
        if self.precondition and not stepped(self.watch.optimizer):
            self.last = step
        self.at(step)

    def at(self, step: int) -> None:
        """Record, where this step is one of those asked for and has not been seen yet."""
        if self.watch is not None and step != self.last:
            self.last = step
            self.watch(step)


def only(optimizers: Sequence[Any]) -> Any:
    """The one optimizer of a trainer, without what a package puts around it. Raises SpectraError."""
    if len(optimizers) != 1:
        raise SpectraError(
            f"`precondition`: the trainer has {len(optimizers)} optimizers; watch what each trains by a call of "
            "spectra.watch, with its `optimizer`"
        )
    return getattr(optimizers[0], "optimizer", optimizers[0])


class Collectives(TorchDispatchMode):
    """Refuse what processes do together, inside this context."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "c10d" in func.namespace:
            raise SpectraError(
                f"`loss`: it communicates with other processes ({func._opname.strip('_')}), but only the first "
                "records; "
                'give a `loss` that does not, or "model"'
            )
        return func(*args, **kwargs or {})


def refuse_collectives(model: nn.Module, loss: Any, batch: Any) -> None:
    """Raise SpectraError where the loss of a batch asks several processes to work together: one alone would hang."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return
    batch = cast_tensors(plain(batch), *device_and_dtype(unwrapped(model)))
    try:
        with undisturbed(model), Collectives():
            (returned_loss if loss == "model" else loss)(model, batch)
    except Exception as error:
        if isinstance(error, SpectraError):
            raise  # of anything else the watch will tell
