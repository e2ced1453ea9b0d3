"""The Gaussian loss with a variance that the model learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectra.errors import ArgumentError, SpectraError
from spectra.problem.losses import RESHAPE, Elementwise, like, mismatch, normal_numbers

VARIANCES = ("var", "variance")


@dataclass(frozen=True)
class GaussianLoss(Elementwise):
    """`torch.nn.GaussianNLLLoss`: -log p of a Gaussian, for a model that returns the pair (mean, variance).

    The pair is a tuple, or a mapping with the variance under `var` or `variance`. The mean has the shape of the
    targets; the variance has that shape, or its last dimension is 1 or missing. Variances are clamped to at least
    `eps`, which derivatives ignore, as in PyTorch. `full` adds log(2 pi) / 2.
    """

    full: bool = False
    eps: float = 1e-6
    reduction: str = "mean"

    name = "gaussian_nll"
    convex = False
    several_outputs: ClassVar[bool] = True  # it takes more than one tensor of the model

    def __post_init__(self):
        if not 0 < self.eps < math.inf:
            raise ArgumentError(f"`eps` {self.eps!r}: give a number above 0")

    def rows(self, output: Any, targets: Tensor) -> Tensor:
        """Means and variances side by side, (E, 2K). Raises SpectraError if they do not fit the targets."""
        mean, variance = pair(output)
        if mean.shape != targets.shape:
            raise mismatch(self.name, mean, targets)
        if variance.ndim == mean.ndim - 1:
            variance = variance[..., None]
        if variance.ndim != mean.ndim or variance.shape[:-1] != mean.shape[:-1]:
            raise mismatch(f"{self.name} (variance)", variance, targets)
        if variance.shape[-1] not in (1, mean.shape[-1]):
            raise mismatch(f"{self.name} (variance)", variance, targets, RESHAPE)
        halves = (mean, variance.expand_as(mean))
        return torch.cat([half.reshape(len(mean), -1) for half in halves], dim=1)

    def check(self, rows: Tensor, targets: Tensor) -> None:
        """Raise SpectraError if a variance is negative."""
        if (rows.chunk(2, dim=1)[1] < 0).any():
            raise SpectraError(
                "`loss` gaussian_nll: the model returns negative variances; apply exp or softplus to that output"
            )

    def values(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The losses of the targets, (E, K)."""
        mean, variance = self._halves(rows)
        values = 0.5 * (variance.log() + (mean - like(mean, targets)) ** 2 / variance)
        return values + 0.5 * math.log(2 * math.pi) if self.full else values

    def expected(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The expectation E[r r'] u: u / v of the means, u / (2 v^2) of the variances v."""
        variance = self._halves(rows)[1]
        u, w = vectors.chunk(2, dim=1)
        return torch.cat([u / variance, w / (2 * variance**2)], dim=1)

    def draw(self, rows: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        """Draw r (E, 2K), the slopes by mean and variance for targets of that Gaussian."""
        variance = self._halves(rows)[1]
        z = normal_numbers(uniform, variance.shape[1]).to(rows)
        return torch.cat([-z / variance.sqrt(), (1 - z**2) / (2 * variance)], dim=1)

    def _halves(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = rows.chunk(2, dim=1)
        return mean, variance + (variance.clamp(min=self.eps) - variance).detach()


def pair(output: Any) -> tuple[Tensor, Tensor]:
    """The mean and the variance of an output. Raises SpectraError if it is not such a pair."""
    if isinstance(output, Mapping) and len(output) == 2 and len(found := [k for k in VARIANCES if k in output]) == 1:
        mean = next(value for key, value in output.items() if key != found[0])
        output = (mean, output[found[0]])
    if isinstance(output, tuple | list) and len(output) == 2 and all(isinstance(part, Tensor) for part in output):
        return output[0], output[1]
    raise SpectraError(
        f"`loss` gaussian_nll: the model's output is of type {type(output).__name__}; return (mean, variance), or a "
        "mapping of two entries with the variance under var"
    )
