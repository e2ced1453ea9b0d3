"""`SpectraCallback` for Lightning's Trainer: curvature recorded while it trains, in files and in its loggers."""

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
    told = 'the package lightning is not installed; install it with pip install "loss-spectra[lightning]"'
    raise ImportError(f"spectra.integrations.lightning: {told}") from error

COMPILED = ("forward", "training_step")  # of a module that torch.compile was called on


class SpectraCallback(Callback):
    """Record top eigenvalues and the trace every so many steps of a Lightning Trainer.

        trainer = Trainer(callbacks=[SpectraCallback("runs/a", every=100, products=60)])

    The loss is what `training_step` returns for a batch, in eval mode and without autocast; the examples are chosen
    once of the training loader's data set, by `seed`. A step is one of the optimizer (`trainer.global_step`), and step
    0 is before the first. Numbers go into the trainer's loggers as `spectra/hessian/eigenvalue_1` and so on, files into
    `out` as `spectra.watch` leaves them. Training is unchanged, bit for bit. Of several processes the first alone
    records; the others wait where they next need it, as long as the time limit of their process group allows.

    Args:
        out: the directory in which each recording makes its own.
        every: the number of optimizer steps from one recording to the next.
        examples: the number of training examples that recordings are of.
        loss: a loss as `spectra.watch` takes it, in place of `training_step`.
        data: the examples as `spectra.watch` takes them (`batches`), in place of those of the training loader.
        log: a tracker as `spectra.watch` takes it, in place of the trainer's loggers.
        precondition: whether matrices are what the trainer's optimizer meets (`optimizer` of `spectra.watch`), beside
            its threshold of stability; step 0 is left out then, where the optimizer has no state.
        options: further arguments of `spectra.watch`, as products, k and curvature.

    Raises:
        SpectraError: when training starts: no recording can work, as with manual optimization or sharded parameters.
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
            raise SpectraError("`loss`: training_step optimizes by itself (automatic_optimization is off); give a loss")
        loggers = list(trainer.loggers)

        def log(values: dict[str, float], step: int) -> None:
            for logger in loggers:
                logger.log_metrics(values, step=step)

        with aside(trainer, pl_module):
            self.recorder.begin(pl_module, "model", trainer.train_dataloader, log, trainer.optimizers)
            self.recorder.first(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with aside(trainer, pl_module):
            self.recorder.at(trainer.global_step)


@contextmanager
def aside(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """A context in which the module's own functions are not compiled, and what they log goes nowhere."""
    loggers, own = trainer.loggers, vars(module)
    compiled = {name: own[name] for name in COMPILED if own.get("_compiler_ctx") and name in own}
    try:
        trainer.loggers = [DummyLogger() for _ in loggers]
        own.update({name: own["_compiler_ctx"][f"original_{name}"] for name in compiled})
        yield
    finally:
        trainer.loggers = loggers
        own.update(compiled)
