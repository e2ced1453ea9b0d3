"""Losses that grow linearly with large errors: the absolute error, Huber's, and PyTorch's smooth L1.

Each is -log p of a distribution about the output, up to a constant. With r(y) = dl/df the slope, E[r r'] follows by
integration by parts: E[l'^2] = E[l''], the probability of an error in the quadratic part times the curvature there.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spectra.errors import ArgumentError
from spectra.problem.losses import Elementwise, columns, like


@dataclass(frozen=True)
class AbsoluteError(Elementwise):
    """`torch.nn.L1Loss`: -log p of a Laplace distribution of scale 1, divided by the number of outputs."""

    reduction: str = "mean"

    name = "l1"
    linear = True

    def values(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The absolute errors."""
        return F.l1_loss(rows, like(rows, targets), reduction="none")

    def expected(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The expectation E[r r'] u = u, as r is -1 or 1."""
        return vectors

    def draw(self, rows: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        """Draw r (E, K), -1 or 1."""
        return torch.where(columns(uniform, rows.shape[1]) < 0.5, -1.0, 1.0).to(rows)


class LinearTailLoss(Elementwise):
    """A loss that is c x^2 / 2 for errors x up to a width, and linear beyond."""

    @property
    @abstractmethod
    def width(self) -> float:
        """The largest error w of the quadratic part."""

    @property
    @abstractmethod
    def bend(self) -> float:
        """The curvature c of the quadratic part."""

    @property
    def inside(self) -> float:
        """The probability of an error in the quadratic part, under p."""
        # The integral of exp(-l): sqrt(2 pi / c) erf(w sqrt(c / 2)) inside, 2 exp(-c w^2 / 2) / (c w) in both tails.
        scaled = self.width * math.sqrt(self.bend / 2)
        middle = math.sqrt(math.pi) * math.erf(scaled)  # both divided by sqrt(2 / c)
        tails = math.exp(-(scaled**2)) / scaled
        return middle / (middle + tails)

    def expected(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The expectation E[r r'] u = c P(|x| <= width) u."""
        return self.bend * self.inside * vectors

    def draw(self, rows: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        """Draw r (E, K): -c w or c w in the tails, and c x for errors x of the quadratic part."""
        numbers = 2 * columns(uniform, rows.shape[1]) - 1  # the middle of (-1, 1) is the quadratic part
        scaled = self.width * math.sqrt(self.bend / 2)
        within = (numbers / self.inside).clamp(-1, 1)
        x = torch.erfinv(within * math.erf(scaled)) / scaled * self.width
        x = torch.where(numbers.abs() < self.inside, x, self.width * numbers.sign())
        return (self.bend * x.clamp(-self.width, self.width)).to(rows)


@dataclass(frozen=True)
class Huber(LinearTailLoss):
    """`torch.nn.HuberLoss`: -log p of Huber's distribution, divided by the number of outputs."""

    delta: float = 1.0
    reduction: str = "mean"

    name = "huber"

    def __post_init__(self):
        if not 0 < self.delta < math.inf:
            raise ArgumentError(f"`delta` {self.delta!r}: give a number above 0")

    @property
    def width(self) -> float:
        """The largest error of the quadratic part, delta."""
        return self.delta

    @property
    def bend(self) -> float:
        """The curvature of the quadratic part, 1."""
        return 1.0

    def values(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Huber's losses of the errors."""
        return F.huber_loss(rows, like(rows, targets), reduction="none", delta=self.delta)


@dataclass(frozen=True)
class SmoothL1(LinearTailLoss):
    """`torch.nn.SmoothL1Loss`: Huber's loss divided by beta, with slope 1 in the tails. `beta` is above 0."""

    beta: float = 1.0
    reduction: str = "mean"

    name = "smooth_l1"

    def __post_init__(self):
        if not 0 < self.beta < math.inf:
            raise ArgumentError(f"`beta` {self.beta!r}: give a number above 0; for 0 use l1")

    @property
    def width(self) -> float:
        """The largest error of the quadratic part, beta."""
        return self.beta

    @property
    def bend(self) -> float:
        """The curvature of the quadratic part, 1 / beta."""
        return 1 / self.beta

    def values(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The smooth absolute errors."""
        return F.smooth_l1_loss(rows, like(rows, targets), reduction="none", beta=self.beta)
