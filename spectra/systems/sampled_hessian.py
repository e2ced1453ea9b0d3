"""The Hessian of a Boltzmann machine estimated from Gibbs samples: a fixed matrix with standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.systems.boltzmann_hessian import BoltzmannHessian
from spectra.systems.gibbs import Schedule, autocorrelation_time, drift
from spectra.systems.sampled_covariance import SampledCovariance
from spectra.wording import outline

ENOUGH = 10  # autocorrelation times that a burn-in should last
OUTWARDS = (
    "eigenvalues of an estimate are biased outwards, most where they lie close together, because their eigenvectors "
    "adapt to its noise; standard errors of u'Au are for a given u"
)
VARYING = 16  # chains; the error from their spread is known to a fifth
LARGEST_DRIFT = 5.0  # standard errors between the first and the second half of the chains


@dataclass
class SampledHessian(BoltzmannHessian):
    """An unbiased estimate of the Hessian from fixed samples; products use the samples without forming the matrix.

    Its eigenvalues are those of the estimate: they lie further apart than those of the true matrix, the more so the
    fewer the samples. The quadratic form u'Au of a vector u chosen beforehand is unbiased.
    """

    __repr__ = outline

    def product_with_error(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The product (n,) with a vector (n,), and the standard error of each entry by the spread of the chains.

        The error is nan if it is unknown, because fewer than 16 chains of the free phase (or, with less than 32 chains,
        fewer than half) have shown the rarer value of s_i s_j.
        """
        errors = [phase.with_error(vector)[1] for phase in self._sampled()]
        error = _root_of_squares(errors) / self.temperature**2
        return self @ vector, error.masked_fill(unreliable(self._sampled()[0]), math.nan)

    def standard_errors(self, vectors: Tensor) -> Tensor:
        """The standard errors (k,), in float64, of u'Au for the columns u of vectors (n, k), given u."""
        errors = [phase.quotient_errors(vectors) for phase in self._sampled()]
        return _root_of_squares(errors).double() / self.temperature**2

    def trace_error(self) -> float:
        """The standard error of the trace."""
        return math.hypot(*(phase.trace_error() for phase in self._sampled())) / self.temperature**2

    def _sampled(self) -> list[SampledCovariance]:
        return [phase for phase in (self.free, self.clamped) if isinstance(phase, SampledCovariance)]


def _root_of_squares(errors: list[Tensor]) -> Tensor:
    return sum(error.square() for error in errors).sqrt()  # pyright: ignore[reportAttributeAccessIssue]  (one at least)


def fewest_varying(chains: int) -> int:
    """The number of chains that must vary for an error from their spread."""
    return min(VARYING, chains // 2)


def unreliable(free: SampledCovariance) -> Tensor:
    """Which products s_i s_j (n,) vary in too few chains for an error from the spread of the chains."""
    return free.varying_chains() < fewest_varying(len(free.states))


def sampling_notes(free: SampledCovariance, couplings: Tensor, schedule: Schedule) -> list[str]:
    """Notes for a result on the samples of the free phase.

    The energy and the state of each unit are followed. The notes state the longest of their autocorrelation times, and
    any change from the first to the second half of the chains that chance does not explain.
    """
    states = free.states[:, 0].to(free.dtype)
    energies = ((states @ couplings) * states).sum(2, keepdim=True)
    followed = torch.cat([energies, states], dim=2)
    time = autocorrelation_time(followed).max().item()
    worth = schedule.chains * schedule.count / time
    apart = f", {schedule.thin} sweeps apart" if schedule.thin > 1 else ""
    notes = [
        OUTWARDS,
        f"from Gibbs samples: {schedule.chains} chains of {schedule.count:,}{apart} after {schedule.burn_in:,} sweeps; "
        f"longest autocorrelation time {time:.2g} samples, so worth about {worth:.2g} independent ones",
    ]
    if rare := int(unreliable(free).sum()):
        fewest = fewest_varying(schedule.chains)
        notes.append(
            f"for {rare:,} of {len(free.pairs):,} products s_i s_j, fewer than {fewest} chains show the rarer value: "
            "the errors of their rows are unknown"
        )
    if schedule.count >= 2 and (moved := drift(followed).max().item()) > LARGEST_DRIFT:
        notes.append(
            f"the chains still depend on their start (their means change by {moved:.1f} standard errors from the first "
            "half to the second): raise `burn_in`"
        )
    elif schedule.burn_in < ENOUGH * time * schedule.thin:
        notes.append(
            f"`burn_in` {schedule.burn_in:,} is less than {ENOUGH} autocorrelation times "
            f"({math.ceil(ENOUGH * time * schedule.thin):,} sweeps): raise it"
        )
    return notes
