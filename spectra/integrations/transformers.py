"""`SpectraCallback` for the Trainer of transformers: record curvature during training, in files and in its log."""

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
    text = "the package transformers is not installed; install it with pip install transformers"
    raise ImportError(f"spectra.integrations.transformers: {text}") from error

AUTOCAST = "ConvertOutputsToFp32"  # accelerate's wrapper of a forward pass in mixed precision


class SpectraCallback(TrainerCallback):
    """Record top eigenvalues and the trace during training with the Trainer of transformers, at regular steps.

        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[SpectraCallback("runs/a", every=100)])

    The loss is that of training: the model's own, or the one that the Trainer computes (label smoothing,
    `compute_loss_func`, an overridden `compute_loss`), in eval mode and without autocast. The examples are chosen once
    from the training data, with `seed`, and go through the data collator. Steps are optimizer steps
    (`state.global_step`), and step 0 is before the first. Numbers go to `state.log_history` and to the services in
    `report_to`, as `spectra/hessian/eigenvalue_1` and so on, and files to `out` as with `spectra.watch`. Training is
    unchanged, bit for bit. With several processes, only the first records; the others wait for it at their next
    communication, within `ddp_timeout`.

    Args:
        out: the directory in which each recording makes its own.
        every: the number of optimizer steps from one recording to the next.
        examples: the number of training examples for recordings.
        loss: a loss as `spectra.watch` takes it, in place of the trainer's.
        data: the examples as `spectra.watch` takes them (`batches`), in place of those of the training data.
        log: a tracker as `spectra.watch` takes it, in place of the trainer's log.
        precondition: record the matrices preconditioned by the trainer's optimizer (`optimizer` of `spectra.watch`),
            and its threshold of stability; step 0 is then left out, since the optimizer has no state.
        options: further arguments of `spectra.watch`, such as products, k and curvature.

    Raises:
        SpectraError: at the start of training: no recording can work, such as with sharded parameters.
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
        with isolated(self.trainer):
            loader, log = more["train_dataloader"], partial(into_log, self.trainer)
            self.recorder.begin(more["model"], loss_of(self.trainer), loader, log, [more["optimizer"]])
            self.recorder.first(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert self.trainer is not None
        with isolated(self.trainer):
            self.recorder.at(state.global_step)


def calling_trainer() -> Trainer:
    """Find the Trainer on the call stack, since transformers does not pass it to callbacks. Raises SpectraError."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(found := frame.f_locals.get("self"), Trainer):
            return found
        frame = frame.f_back
    raise SpectraError("SpectraCallback: it was not called by a Trainer of transformers; pass it as callbacks=[...]")


def into_log(trainer: Trainer, values: dict[str, float], _step: int) -> None:
    """Log values with the Trainer's base class, since an overridden `log` may count its calls.

    The flag `should_log` is restored, so that the Trainer still logs its own values.
    """
    due = trainer.control.should_log
    Trainer.log(trainer, dict(values))
    trainer.control.should_log = due


def loss_of(trainer: Trainer) -> Any:
    """Return the loss of training: "model" for the model's own, else a function of (model, batch)."""
    changed = type(trainer).compute_loss is not Trainer.compute_loss
    if changed or trainer.compute_loss_func is not None or trainer.label_smoother is not None:
        return partial(computed_loss, trainer=trainer)
    return "model"


def computed_loss(model: nn.Module, batch: Any, trainer: Trainer) -> Any:
    """Compute the Trainer's loss of a batch."""
    return trainer.compute_loss(model, dict(batch))


@contextmanager
def isolated(trainer: Trainer) -> Iterator[None]:
    """Run the model's forward pass without autocast, and discard what a loss logs, inside this context."""
    assert isinstance(trainer.model, nn.Module)
    changes = [(vars(trainer), "log", ignored)]
    if forward := vars(trainer.model).get("forward"):
        changes.append((vars(trainer.model), "forward", without_autocast(forward, trainer.model)))
    before = [(held, name, held[name]) for held, name, _ in changes if name in held]
    try:
        for held, name, value in changes:
            held[name] = value
        yield
    finally:
        for held, name, _ in changes:
            held.pop(name, None)
        for held, name, value in before:
            held[name] = value


def without_autocast(forward: Any, model: nn.Module) -> Any:
    """Remove accelerate's autocast from a forward pass: it adds one layer at each call of `train`."""
    layers = [forward]
    while (inner := getattr(layers[-1], "__wrapped__", None)) is not None:
        layers.append(inner)
    outer = [place for place, layer in enumerate(layers) if type(layer).__name__ == AUTOCAST]
    if not outer:
        return forward
    plain = layers[outer[-1] + 2]  # the wrapper that casts outputs contains the one for autocast
    return MethodType(plain, model) if inspect.ismethod(forward) else plain
