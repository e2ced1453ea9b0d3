"""`SpectraCallback` for the Trainer of transformers: curvature recorded while it trains, in files and in its log."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

from torch import nn

from spectra.errors import SpectraError
from spectra.integrations.recorder import Recorder
from spectra.problem.model_loss import ignored

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    told = 'the package transformers is not installed; install it with pip install "loss-spectra[transformers]"'
    raise ImportError(f"spectra.integrations.transformers: {told}") from error

AUTOCAST = "ConvertOutputsToFp32"  # what accelerate puts around a forward pass in mixed precision


class SpectraCallback(TrainerCallback):
    """Record top eigenvalues and the trace every so many steps of a Trainer of transformers.

        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[SpectraCallback("runs/a", every=100)])

    The loss is that of training: the model's own, or what the Trainer computes (label smoothing, `compute_loss_func`, a
    `compute_loss` of its own), in eval mode and without autocast. The examples are chosen once of the training data, by
    `seed`, and go through the data collator. A step is one of the optimizer (`state.global_step`), and step 0 is before
    the first. Numbers go into `state.log_history` and to whatever `report_to` names, as `spectra/hessian/eigenvalue_1`
    and so on, files into `out` as `spectra.watch` leaves them. Training is unchanged, bit for bit. Of several processes
    the first alone records; the others wait where they next need it, as long as `ddp_timeout` allows.

    Args:
        out: the directory in which each recording makes its own.
        every: the number of optimizer steps from one recording to the next.
        examples: the number of training examples that recordings are of.
        loss: a loss as `spectra.watch` takes it, in place of the trainer's.
        data: the examples as `spectra.watch` takes them (`batches`), in place of those of the training data.
        log: a tracker as `spectra.watch` takes it, in place of the trainer's log.
        precondition: whether matrices are what the trainer's optimizer meets (`optimizer` of `spectra.watch`), beside
            its threshold of stability; step 0 is left out then, where the optimizer has no state.
        options: further arguments of `spectra.watch`, as products, k and curvature.

    Raises:
        SpectraError: when training starts: no recording can work, as with sharded parameters.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        every: int,
        examples: int = 256,
        loss: Any = None,
        data: Any = None,
        log: Any = None,
        precondition: bool = False,
        **options: Any,
    ):
        self.recorder = Recorder(out, every, examples, loss, data, log, precondition, options)
        self.trainer: Trainer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self.trainer = calling_trainer()
        with aside(self.trainer):
            loader, log = more["train_dataloader"], partial(into_log, self.trainer)
            self.recorder.begin(more["model"], loss_of(self.trainer), loader, log, [more["optimizer"]])
            self.recorder.first(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert self.trainer is not None
        with aside(self.trainer):
            self.recorder.at(state.global_step)


def calling_trainer() -> Trainer:
    """The Trainer that has called: transformers gives callbacks everything but that."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(found := frame.f_locals.get("self"), Trainer):
            return found
        frame = frame.f_back
    raise SpectraError("SpectraCallback: no Trainer of transformers has called it; give it to one, as callbacks=[...]")


def into_log(trainer: Trainer, values: dict[str, float], _step: int) -> None:
    """Put values into the log, which the Trainer's own class sees to: an override may count what it is told.

    What the Trainer itself is about to log stays due.
    """
    due = trainer.control.should_log
    Trainer.log(trainer, dict(values))
    trainer.control.should_log = due


def loss_of(trainer: Trainer) -> Any:
    """The loss of training: the model's own, or else a function of (model, batch)."""
    changed = type(trainer).compute_loss is not Trainer.compute_loss
    if changed or trainer.compute_loss_func is not None or trainer.label_smoother is not None:
        return partial(computed_loss, trainer=trainer)
    return "model"


def computed_loss(model: nn.Module, batch: Any, trainer: Trainer) -> Any:
    """The loss that a Trainer computes of a batch."""
    return trainer.compute_loss(model, dict(batch))


@contextmanager
def aside(trainer: Trainer) -> Iterator[None]:
    """A context in which the model's forward pass is without autocast, and what a loss logs goes nowhere."""
    assert isinstance(trainer.model, nn.Module)
    changes = [(vars(trainer), "log", ignored)]
    if forward := vars(trainer.model).get("forward"):
        changes.append((vars(trainer.model), "forward", without_autocast(forward, trainer.model)))
    had = [(held, name, held[name]) for held, name, _ in changes if name in held]
    try:
        for held, name, value in changes:
            held[name] = value
        yield
    finally:
        for held, name, _ in changes:
            held.pop(name, None)
        for held, name, value in had:
            held[name] = value


def without_autocast(forward: Any, model: nn.Module) -> Any:
    """The forward pass that accelerate has put autocast around, once for each call of `train`; any other as it is."""
    layers = [forward]
    while (inner := getattr(layers[-1], "__wrapped__", None)) is not None:
        layers.append(inner)
    outer = [place for place, layer in enumerate(layers) if type(layer).__name__ == AUTOCAST]
    if not outer:
        return forward
    plain = layers[outer[-1] + 2]  # behind the one that casts outputs there is autocast
    return MethodType(plain, model) if inspect.ismethod(forward) else plain
