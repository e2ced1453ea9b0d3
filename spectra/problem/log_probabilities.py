"""Losses of log-probabilities, in which they are linear: negative log-likelihood and Kullback-Leibler divergence.

Their second derivative with respect to the output is zero, and so is the GGN; the Fisher matrix has diag(p) in output
space. The output is assumed to be normalised, as `log_softmax` returns it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spectra.devices import device_of_vectors, in_float64
from spectra.problem.labels import LabelLoss


@dataclass(frozen=True)
class LogProbabilityLoss(LabelLoss):
    """A loss that is linear in log p."""

    linear = True

    def expected(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The expectation E[r r'] u = p u, where r = -e_y."""
        return rows.exp() * vectors

    def draw(self, rows: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        """Draw r (E, C) = -e_y for labels y of probability p."""
        cumulative = in_float64(rows).exp().cumsum(dim=1)
        target = uniform(0)[:, None] * cumulative[:, -1:]
        label = torch.searchsorted(cumulative.contiguous(), target, right=True).clamp(max=rows.shape[1] - 1)
        return torch.zeros_like(rows).scatter(1, label.to(rows.device), -1.0)


@dataclass(frozen=True)
class NegativeLogLikelihood(LogProbabilityLoss):
    """`torch.nn.NLLLoss`: minus the log-probability of the label."""

    name = "nll"

    def values(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The weighted negative log-likelihoods (E, 1)."""
        if targets.is_floating_point():
            weights = self._label_weights(rows, targets)
            return -(weights * rows).where(weights != 0, 0).sum(dim=1, keepdim=True)
        scales = self.scales(rows, targets)
        return -(scales * rows.gather(1, self._labels(targets)[:, None])).where(scales != 0, 0)


@dataclass(frozen=True)
class KullbackLeibler(LogProbabilityLoss):
    """`torch.nn.KLDivLoss`: the divergence of the output's distribution from that of the targets.

    An example is a distribution along dimension 1, or along the last with `class_dim` -1. The mean is over all entries,
    as in PyTorch; with the reduction "batchmean" it is over the examples of the data. With `log_target` the targets are
    log-probabilities.
    """

    log_target: bool = False

    name = "kl_div"

    def check(self, rows: Tensor, targets: Tensor) -> None:
        """Raise SpectraError if a target is not a probability."""
        if not self.log_target:
            super().check(rows, targets)

    def values(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The divergences (E, 1)."""
        labels = self._flat(targets, rows.shape[1]).to(rows.dtype)
        values = F.kl_div(rows, labels, reduction="none", log_target=self.log_target)
        return values.sum(dim=1, keepdim=True)

    def weight(self, targets: Tensor) -> float:
        """The length of the targets for the reduction "batchmean", otherwise the number of their entries."""
        return len(targets) if self.reduction == "batchmean" else targets.numel()

    def value_weights(self, targets: Tensor) -> Tensor:
        """The weight of each value in the mean, (E, 1)."""
        count = self.examples(targets)
        place = device_of_vectors(targets.device)
        return torch.full((count, 1), self.weight(targets) / count, dtype=torch.float64, device=place)

    def scales(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The sum of each target distribution, (E, 1)."""
        labels = self._flat(targets, rows.shape[1]).to(rows.dtype)
        return (labels.exp() if self.log_target else labels).sum(dim=1, keepdim=True)

    def hits(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Whether the most probable class is that of the target: booleans (E,)."""
        return rows.argmax(dim=1) == self._flat(targets, rows.shape[1]).argmax(dim=1)
