"""The Poisson loss of counts, and random counts from uniform numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spectra.devices import in_float64
from spectra.errors import ArgumentError, SpectraError
from spectra.problem.losses import Elementwise, columns, like

HALVINGS = 54  # of an interval of counts, which are exact up to 2^53


@dataclass(frozen=True)
class PoissonLoss(Elementwise):
    """`torch.nn.PoissonNLLLoss`: -log p of Poisson counts, divided by the number of outputs.

    Outputs are logarithms of rates; if `log_input` is False, they are rates, to which `eps` is added. `full` adds
    Stirling's approximation of log y!, a constant.
    """

    log_input: bool = True
    full: bool = False
    eps: float = 1e-8
    reduction: str = "mean"

    name = "poisson_nll"

    def __post_init__(self):
        if not 0 <= self.eps < math.inf:
            raise ArgumentError(f"`eps` {self.eps!r}: give a number of 0 or more")

    def check(self, rows: Tensor, targets: Tensor) -> None:
        """Raise SpectraError if a target is negative, or an output is not a valid rate."""
        if (targets < 0).any():
            raise SpectraError("`data`: targets of poisson_nll must be counts of 0 or more, and some are negative")
        if not self.log_input and (rows + self.eps <= 0).any():
            raise SpectraError(
                "`loss` poisson_nll: with log_input=false the outputs must be positive rates, and some are not; return "
                "their logarithms (log_input=true), or end the model in a softplus"
            )

    def values(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The losses of the outputs, (E, K)."""
        return F.poisson_nll_loss(
            rows, like(rows, targets), log_input=self.log_input, full=self.full, eps=self.eps, reduction="none"
        )

    def expected(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The expectation E[r r'] u: rate u, or u / rate."""
        rates = self._rates(rows)
        return rates * vectors if self.log_input else vectors / rates

    def draw(self, rows: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        """Draw r (E, K): rate - y, or 1 - y / rate, for counts y."""
        rates = self._rates(rows)
        counts = poisson_counts(in_float64(rates), columns(uniform, rows.shape[1])).to(rows)
        return rates - counts if self.log_input else 1 - counts / rates

    def _rates(self, rows: Tensor) -> Tensor:
        return rows.exp() if self.log_input else rows + self.eps


def poisson_counts(rates: Tensor, uniforms: Tensor) -> Tensor:
    """The smallest counts y with P(Y <= y) >= u, by bisection."""
    low = torch.full_like(rates, -1.0)
    high = (rates + 40 * rates.sqrt() + 60).ceil()  # beyond every u in float64
    for _ in range(HALVINGS):
        middle = ((low + high) / 2).floor()
        # P(Y <= y) = Q(y + 1, rate), the regularised upper incomplete gamma function.
        above = (middle >= 0) & (torch.special.gammaincc(middle.clamp(min=0) + 1, rates) >= uniforms)
        low, high = low.where(above, middle), middle.where(above, high)
    return high
