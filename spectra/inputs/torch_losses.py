"""Convert the losses of PyTorch to losses of ours, and call those that have no equivalent.

Modules and functions of torch.nn are recognised with their arguments, also functions with options bound by `partial`.
Other losses are called with all outputs of the model, then all targets, as separate arguments:

    nn.CTCLoss                  output (T, b, C); targets (labels, input_lengths, target_lengths)
    nn.TripletMarginLoss        outputs (anchor, positive, negative); no targets
    nn.CosineEmbeddingLoss      outputs (x1, x2); targets y

If the targets are a mapping, they are passed by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from spectra.errors import SpectraError
from spectra.problem.binary import BinaryCrossEntropy, ProbabilityCrossEntropy, SoftMargin
from spectra.problem.counts import PoissonLoss
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.gaussian import GaussianLoss
from spectra.problem.huber import AbsoluteError, Huber, SmoothL1
from spectra.problem.log_probabilities import KullbackLeibler, NegativeLogLikelihood
from spectra.problem.losses import CustomLoss, Loss, MeanSquaredError

MODULES: dict[type[nn.Module], Callable[..., Any]] = {
    nn.CrossEntropyLoss: lambda loss: CrossEntropy(
        copied(loss.weight), loss.ignore_index, loss.label_smoothing, class_dim=1, reduction=reduction(loss)
    ),
    nn.NLLLoss: lambda loss: NegativeLogLikelihood(
        copied(loss.weight), loss.ignore_index, class_dim=1, reduction=reduction(loss)
    ),
    nn.KLDivLoss: lambda loss: KullbackLeibler(
        log_target=loss.log_target, class_dim=1, reduction=reduction(loss, "batchmean")
    ),
    nn.BCEWithLogitsLoss: lambda loss: BinaryCrossEntropy(
        copied(loss.weight), pos_weight=copied(loss.pos_weight), reduction=reduction(loss)
    ),
    nn.BCELoss: lambda loss: ProbabilityCrossEntropy(copied(loss.weight), reduction=reduction(loss)),
    nn.SoftMarginLoss: lambda loss: SoftMargin(reduction=reduction(loss)),
    nn.MSELoss: lambda loss: MeanSquaredError(reduction(loss)),
    nn.L1Loss: lambda loss: AbsoluteError(reduction(loss)),
    nn.HuberLoss: lambda loss: Huber(loss.delta, reduction(loss)),
    nn.SmoothL1Loss: lambda loss: SmoothL1(loss.beta, reduction(loss)) if loss.beta else AbsoluteError(reduction(loss)),
    nn.PoissonNLLLoss: lambda loss: PoissonLoss(loss.log_input, loss.full, loss.eps, reduction(loss)),
    nn.GaussianNLLLoss: lambda loss: GaussianLoss(loss.full, loss.eps, reduction(loss)),
}
FUNCTIONS: dict[Callable[..., Any], type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.kl_div: nn.KLDivLoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.huber_loss: nn.HuberLoss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.gaussian_nll_loss: nn.GaussianNLLLoss,
}
FROM_TORCH = ("torch.nn.modules.loss", "torch.nn.functional")


def recognised(loss: Any) -> Loss | None:
    """Return the loss of ours that equals a loss of PyTorch; None where there is none."""
    function, options = (loss.func, loss.keywords) if isinstance(loss, partial) and not loss.args else (loss, {})
    try:
        module = FUNCTIONS[function](**options) if function in FUNCTIONS else loss
    except TypeError:  # the module lacks one of the arguments, or the function is not hashable
        return None
    make = MODULES.get(type(module))  # pyright: ignore[reportArgumentType]
    return make(module) if make else None


def copied(weight: Tensor | None) -> Tensor | None:
    """Copy weights to the CPU in float64, detached from autograd."""
    return None if weight is None else weight.detach().cpu().double()


def reduction(loss: Any, *others: str) -> str:
    """Convert the reduction of a loss of PyTorch to ours: `none` becomes `mean`."""
    return loss.reduction if loss.reduction in ("sum", *others) else "mean"


def is_torchs(loss: Any) -> bool:
    """Whether a loss is a module or function of PyTorch itself."""
    function = loss.func if isinstance(loss, partial) else loss
    kind = type(function) if isinstance(function, nn.Module) else function
    return getattr(kind, "__module__", None) in FROM_TORCH


@dataclass(frozen=True)
class UnpackedLoss:
    """A loss of PyTorch as a function (output, targets) that passes several outputs and targets as arguments."""

    loss: Callable[..., Any]

    def __call__(self, output: Any, targets: Any) -> Any:
        outputs = output.values() if isinstance(output, Mapping) else output
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        if isinstance(targets, Mapping):
            return self.loss(*outputs, **targets)
        targets = () if targets is None else targets if isinstance(targets, tuple | list) else (targets,)
        return self.loss(*outputs, *targets)

    @property
    def __self__(self) -> Any:
        """The loss itself, which may own tensors; like the `__self__` of a method."""
        return self.loss.func if isinstance(self.loss, partial) else self.loss


@dataclass(frozen=True)
class TimeFirstLoss(CustomLoss):
    """A loss of outputs (T, b, C), with the examples in the second dimension: `torch.nn.CTCLoss`."""

    def rows(self, output: Tensor, targets: Any) -> Tensor:
        """Transpose the output to (b, T, C). Raises SpectraError where it has another shape."""
        count = len(targets[0] if isinstance(targets, tuple | list) else next(iter(targets.values())))
        if output.ndim != 3 or output.shape[1] != count:
            raise SpectraError(
                f"`loss` {self.name}: it takes log-probabilities (time, batch, classes), but the output has shape "
                f"{tuple(output.shape)} for {count} examples; let the model return output.transpose(0, 1)"
            )
        return output.transpose(0, 1)

    def called(self, output: Tensor, targets: Any) -> Any:
        """Call the loss on rows (b, T, C). Raises SpectraError where it fails."""
        return super().called(output.transpose(0, 1), targets)


def others(loss: Callable[..., Any], name: str, how: str) -> CustomLoss:
    """Make a function of (output, targets) from a loss of PyTorch without an equivalent; `how` is its reduction."""
    function = loss.func if isinstance(loss, partial) else loss
    kind = TimeFirstLoss if isinstance(function, nn.CTCLoss) or function is F.ctc_loss else CustomLoss
    return kind(UnpackedLoss(loss), name, reduction=how)
