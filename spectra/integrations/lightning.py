"""`SpectraCallback` for Lightning's Trainer: record curvature during training, in files and in its loggers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spectra.errors import SpectraError
from spectra.integrations.recorder import Recorder

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers.logger import DummyLogger
except ImportError as error:
    text = "the package lightning is not installed; install it with pip install lightning"
    raise ImportError(f"spectra.integrations.lightning: {text}") from error

COMPILED = ("forward", "training_step")  # methods that torch.compile replaces in a LightningModule


class SpectraCallback(Callback):
    """Record top eigenvalues and the trace during training with a Lightning Trainer, at regular steps.

        trainer = Trainer(callbacks=[SpectraCallback("runs/a", every=100, products=60)])

    The loss is that of `training_step` for a batch, in eval mode and without autocast. The examples are chosen once
    from the training data, with `seed`. Steps are optimizer steps (`trainer.global_step`), and step 0 is before the
    first. Numbers go to the trainer's loggers as `spectra/hessian/eigenvalue_1` and so on, and files to `out` as with
    `spectra.watch`. Training is unchanged, bit for bit. With several processes, only the first records; the others wait
    for it at their next communication, within the time limit of their process group.

    Args:
        out: the directory in which each recording makes its own.
        every: the number of optimizer steps from one recording to the next.
        examples: the number of training examples for recordings.
        loss: a loss as `spectra.watch` takes it, in place of `training_step`.
        data: the examples as `spectra.watch` takes them (`batches`), in place of those of the training loader.
        log: a tracker as `spectra.watch` takes it, in place of the trainer's loggers.
        precondition: record the matrices preconditioned by the trainer's optimizer (`optimizer` of `spectra.watch`),
            and its threshold of stability; step 0 is then left out, since the optimizer has no state.
        options: further arguments of `spectra.watch`, such as products, k and curvature.

    Raises:
        SpectraError: at the start of training: no recording can work, such as with manual optimization or sharded
            parameters.
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.recorder.loss is None and not pl_module.automatic_optimization:
            raise SpectraError("`loss`: training_step runs the optimizer (automatic_optimization is off); give `loss`")
        loggers = list(trainer.loggers)

        def log(values: dict[str, float], step: int) -> None:
            for logger in loggers:
                logger.log_metrics(values, step=step)

        with isolated(trainer, pl_module):
            self.recorder.begin(pl_module, "model", trainer.train_dataloader, log, trainer.optimizers)
            self.recorder.first(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with isolated(trainer, pl_module):
            self.recorder.at(trainer.global_step)


@contextmanager
def isolated(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Use the module's uncompiled functions, and discard what they log, inside this context."""
    loggers, own = trainer.loggers, vars(module)
    compiled = {name: own[name] for name in COMPILED if own.get("_compiler_ctx") and name in own}
    try:
        trainer.loggers = [DummyLogger() for _ in loggers]
        own.update({name: own["_compiler_ctx"][f"original_{name}"] for name in compiled})
        yield
    finally:
        trainer.loggers = loggers
        own.update(compiled)
