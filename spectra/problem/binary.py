"""Losses of two labels: binary cross entropy of logits and of probabilities, and the soft margin."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.errors import SpectraError
from spectra.problem.logits import both_sigmoids, distance_from_zero
from spectra.problem.losses import Elementwise, columns, like

LOWEST = -100.0  # PyTorch's lower bound for the logarithm of a probability


@dataclass(frozen=True)
class BinaryLoss(Elementwise):
    """A loss of labels from 0 to 1, each -log p of a Bernoulli distribution times a weight.

    `element_weights` broadcast to the shape of an output without its first dimension.
    """

    element_weights: Tensor | None = None
    reduction: str = "mean"

    def rows(self, output: Tensor, targets: Tensor) -> Tensor:
        """The output as rows (E, K). Raises SpectraError if targets or weights have another shape."""
        rows = super().rows(output, targets)
        for key, weights in self._weights().items():
            self._spread(key, weights, targets)
        return rows

    def check(self, rows: Tensor, targets: Tensor) -> None:
        """Raise SpectraError if a target is below 0 or above 1."""
        if ((targets < 0) | (targets > 1)).any():
            raise SpectraError(f"`data`: targets of {self.name} must be in [0, 1], and some are not")

    def scales(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The weights of the outputs (E, K), or ones (E, 1) if there are none."""
        if self.element_weights is None:
            return super().scales(rows, targets)
        return self._spread("weight", self.element_weights, targets).to(rows)

    def _weights(self) -> dict[str, Tensor]:
        return {} if self.element_weights is None else {"weight": self.element_weights}

    def _spread(self, key: str, weights: Tensor, targets: Tensor) -> Tensor:
        """Weights as rows (E, K). Raises SpectraError if they do not broadcast, or differ between examples."""
        whole = weights.ndim == targets.ndim
        try:
            if whole and len(weights) != 1:
                raise ValueError("an entry for each example of a batch")
            return weights.to(targets.device).expand(targets.shape).reshape(len(targets), -1)
        except (RuntimeError, ValueError) as error:
            raise SpectraError(
                f"`loss` {self.name}: {key} of shape {tuple(weights.shape)} does not fit outputs of shape "
                f"{tuple(targets.shape[1:])}; give one number per output (to weight examples, give the targets as a "
                "mapping with keys labels and weights)"
            ) from error


@dataclass(frozen=True)
class BinaryCrossEntropy(BinaryLoss):
    """Binary cross entropy of logits, as `torch.nn.BCEWithLogitsLoss` computes it.

    As a likelihood, it is -log p of independent Bernoulli outputs, divided by their number.

    Attributes:
        element_weights: a weight for each output, which broadcasts to the output's shape without the batch dimension;
            `weight` in PyTorch.
        reduction: mean or sum.
        pos_weight: the factor of the loss of label 1, which broadcasts like `element_weights`.
    """

    pos_weight: Tensor | None = None

    name = "bce_with_logits"
    natural = True

    def values(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The binary cross entropies (E, K)."""
        # -log p is log(1 + exp(-|x|)) for the label that the sign predicts, and |x| more for the other.
        distance, labels = distance_from_zero(rows), self.labels(rows, targets)
        missed = labels.where(rows < 0, 1 - labels)
        if self.pos_weight is None:
            values = missed * distance + distance.neg().exp().log1p()
        else:
            ones = labels * self._spread("pos_weight", self.pos_weight, targets).to(rows)
            missed = ones.where(rows < 0, 1 - labels)
            values = missed * distance + (ones + (1 - labels)) * distance.neg().exp().log1p()
        return values if self.element_weights is None else super().scales(rows, targets) * values

    def labels(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The labels from 0 to 1, (E, K)."""
        return like(rows, targets)

    def scales(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The weights of the outputs times those of their labels (E, K), or ones (E, 1) if there are none."""
        scales = super().scales(rows, targets)
        if self.pos_weight is None:
            return scales
        labels = self.labels(rows, targets)
        return scales * (labels * self._spread("pos_weight", self.pos_weight, targets).to(rows) + (1 - labels))

    def hits(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Whether each output has the sign of its label: booleans (E K,)."""
        return ((rows > 0) == (self.labels(rows, targets) > 0.5)).flatten()

    def expected(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The expectation E[r r'] u = sigma (1 - sigma) u."""
        # r = sigma - y: (1 - sigma) sigma^2 where y = 0, sigma (1 - sigma)^2 where y = 1.
        sigma, rest = both_sigmoids(rows)
        return (rest * sigma**2 + sigma * rest**2) * vectors

    def draw(self, rows: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        """Draw r (E, K) = sigma - y for labels y of probability sigma."""
        sigma, rest = both_sigmoids(rows)
        numbers = columns(uniform, rows.shape[1])
        ones = (numbers < sigma).where(sigma < rest, 1 - numbers > rest)
        return torch.where(ones, -rest, sigma)

    def _weights(self) -> dict[str, Tensor]:
        return super()._weights() | ({} if self.pos_weight is None else {"pos_weight": self.pos_weight})


@dataclass(frozen=True)
class SoftMargin(BinaryCrossEntropy):
    """`torch.nn.SoftMarginLoss`: the binary cross entropy of logits for labels -1 and 1."""

    name = "soft_margin"

    def check(self, rows: Tensor, targets: Tensor) -> None:
        """Raise SpectraError if a target is neither -1 nor 1."""
        if (targets.abs() != 1).any():
            raise SpectraError("`data`: targets of soft_margin must be -1 or 1; for 0 and 1 use bce_with_logits")

    def labels(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The labels as 0 and 1, (E, K)."""
        return (like(rows, targets) + 1) / 2


@dataclass(frozen=True)
class ProbabilityCrossEntropy(BinaryLoss):
    """`torch.nn.BCELoss`: -log p of Bernoulli outputs given as probabilities, divided by their number.

    As in PyTorch, logarithms are clamped to at least -100, where their derivatives are zero.
    """

    name = "bce"

    def check(self, rows: Tensor, targets: Tensor) -> None:
        """Raise SpectraError if a target or an output is below 0 or above 1."""
        super().check(rows, targets)
        if ((rows < 0) | (rows > 1)).any():
            raise SpectraError(
                "`loss` bce: outputs of the model are outside [0, 1]; for logits use bce_with_logits, or end the "
                "model in a sigmoid"
            )

    def values(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The binary cross entropies (E, K)."""
        labels = like(rows, targets)
        values = -(labels * bounded_log(rows) + (1 - labels) * bounded_log(1 - rows))
        return values if self.element_weights is None else self.scales(rows, targets) * values

    def hits(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Whether each output is on the same side of 1/2 as its label: booleans (E K,)."""
        return ((rows > 0.5) == (like(rows, targets) > 0.5)).flatten()

    def expected(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The expectation E[r r'] u = u / (f (1 - f)), zero where the distribution is certain."""
        # r is -1/f with probability f, and 1/(1 - f) with probability 1 - f.
        spread = rows * (1 - rows)
        inside = spread > 0
        return torch.where(inside, 1 / spread.where(inside, 1), 0) * vectors

    def draw(self, rows: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        """Draw r (E, K), -1/f for labels 1 of probability f, and 1/(1 - f) for labels 0."""
        ones = columns(uniform, rows.shape[1]) < rows
        inside = (rows > 0) & (rows < 1)
        safe = rows.where(inside, 0.5)
        return torch.where(ones, -1 / safe, 1 / (1 - safe)).where(inside, 0)


def bounded_log(p: Tensor) -> Tensor:
    """log p, clamped to at least -100."""
    inside = p > math.exp(LOWEST)
    return p.where(inside, 1).log().where(inside, LOWEST)
