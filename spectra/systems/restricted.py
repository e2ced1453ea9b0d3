"""Restricted Boltzmann machines: exact averages by enumerating the hidden units and summing over visible ones in closed
form.

Given the hidden states h, visible units are independent, with means x_i. Over visible states alone, D has the mean
sum of x_i y_i and v_i h_j D the mean (sum of x_k y_k) x_i h_j + x_i (1 - x_i) y_i h_j, with y = V h. Given the visible
states, hidden units are independent in the same way, so the clamped phase needs no enumeration.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import softplus

from spectra.arguments import chosen_generator, require_choice
from spectra.errors import SpectraError
from spectra.systems.boltzmann import (
    BURN_IN,
    CHAINS,
    COUNT,
    SIGNS,
    require_like,
    require_temperature,
    require_weights,
    visible_states,
)
from spectra.systems.boltzmann_hessian import BoltzmannHessian
from spectra.systems.enumeration import all_states
from spectra.systems.gibbs import Schedule, gibbs, random_states
from spectra.systems.pair_features import Pairs, slices, with_always_on
from spectra.systems.sampled_covariance import SampledCovariance
from spectra.systems.sampled_hessian import SampledHessian, sampling_notes
from spectra.wording import outline

LARGEST = 2**24  # hidden states times visible units


@dataclass(frozen=True, eq=False)
class RestrictedBoltzmannMachine:
    """A restricted Boltzmann machine of binary units (0 and 1) with biases, with its exact Hessian.

    Weights connect visible with hidden units only. The parameters (n,) are the hidden biases, and then for each visible
    unit its bias and its weights. Exact averages enumerate the hidden states: 65,536 for 16 hidden units.
    `sampled_hessian` uses Gibbs samples instead.

    Attributes:
        weights: the weights (visible, hidden), in a floating-point type.
        visible_biases: the biases b (visible,).
        hidden_biases: the biases c (hidden,).
        temperature: the temperature T of p = exp(-E/T) / Z.
        energy_sign: plus for E = + sum of w_ij v_i h_j + b_i v_i + c_j h_j, as in Pearlmutter (1994), or the more usual
            minus.

    Raises:
        ArgumentError: an argument has a wrong shape, type or value.
    """

    weights: Tensor
    visible_biases: Tensor
    hidden_biases: Tensor
    temperature: float = 1.0
    energy_sign: str = "plus"

    __repr__ = outline

    def __post_init__(self):
        require_weights(self.weights)
        require_like("visible_biases", self.visible_biases, self.weights.shape[:1], self.weights)
        require_like("hidden_biases", self.hidden_biases, self.weights.shape[1:], self.weights)
        require_temperature(self.temperature)
        require_choice("energy_sign", self.energy_sign, SIGNS)

    @cached_property
    def parameters(self) -> Tensor:
        """The parameters (n,): hidden biases, then for each visible unit its bias and its weights."""
        biases = self.hidden_biases.new_zeros(1), self.hidden_biases
        rows = torch.cat([self.visible_biases[:, None], self.weights], dim=1)
        return torch.cat([torch.cat(biases)[None], rows]).flatten()[1:]

    def at(self, parameters: Tensor) -> RestrictedBoltzmannMachine:
        """Make a machine with other parameters (n,), in the order of `parameters`."""
        require_like("parameters", parameters, self.parameters.shape, self.weights)
        matrix = as_matrices(parameters[:, None], *self.weights.shape)[0]
        return replace(self, weights=matrix[1:, 1:], visible_biases=matrix[1:, 0], hidden_biases=matrix[0, 1:])

    def correlations(self) -> Tensor:
        """Compute the means (n,) of h_j, v_i and v_i h_j over all states, in the order of the parameters."""
        return self._free.means.flatten()[1:]

    def log_partition(self) -> Tensor:
        """Compute the logarithm of the partition function Z, by enumeration of the hidden states."""
        return self._free.log_sum

    def negative_log_likelihood(self, data: Tensor) -> Tensor:
        """Compute the mean of -log p over the visible states `data` (N, visible)."""
        states = with_always_on(self._visible(data))
        hidden = softplus(states @ self._couplings[:, 1:]).sum(1)
        return self.log_partition() - (hidden + states @ self._couplings[:, 0]).mean()

    def gradient(self, data: Tensor) -> Tensor:
        """Compute the gradient (n,) of the mean negative log-likelihood of the visible states `data` (N, visible).

        It is the clamped minus the free means, over T; with energy_sign minus, the free minus the clamped means.
        """
        return self._factor * (self._free.means - self._clamped(data).means()).flatten()[1:]

    def hessian(self, data: Tensor) -> BoltzmannHessian:
        """Compute the exact Hessian of the mean negative log-likelihood, by enumeration of the hidden states.

        Args:
            data: visible states (N, visible).

        Returns:
            The Hessian (n, n), as an operator.

        Raises:
            SpectraError: there are too many hidden states to enumerate.
        """
        return BoltzmannHessian(self._free, self._clamped(data), self.temperature, self.parameters)

    def sample(
        self,
        *,
        chains: int = CHAINS,
        count: int = COUNT,
        burn_in: int = BURN_IN,
        thin: int = 1,
        seed: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw states (chains, count, visible + hidden) by Gibbs sampling, as int8.

        In each sweep all hidden units are drawn together, then all visible ones.

        Args:
            chains: the number of independent chains, which begin at random states.
            count: the number of samples of each chain.
            burn_in: the sweeps over all units before the first sample.
            thin: the sweeps from one sample to the next.
            seed: the seed of the random numbers, used where no `generator` is given.
            generator: a torch.Generator on the CPU, used instead of the seed.

        Returns:
            The states.
        """
        schedule = Schedule(chains, count, burn_in, thin)
        return self._sample_free(schedule, chosen_generator(seed, generator))[..., 1:]

    def sampled_hessian(
        self,
        data: Tensor,
        *,
        chains: int = CHAINS,
        count: int = COUNT,
        burn_in: int = BURN_IN,
        thin: int = 1,
        seed: int = 0,
        generator: torch.Generator | None = None,
    ) -> SampledHessian:
        """Estimate the Hessian of the mean negative log-likelihood from Gibbs samples, with standard errors.

        Only the free phase is sampled: given visible states, averages over hidden units are exact.

        Args:
            data: visible states (N, visible).
            chains: the number of independent chains, which begin at random states.
            count: the number of samples of each chain.
            burn_in: the sweeps over all units before the first sample.
            thin: the sweeps from one sample to the next.
            seed: the seed of the random numbers, used where no `generator` is given.
            generator: a torch.Generator on the CPU, used instead of the seed.

        Returns:
            The estimate (n, n), as an operator.
        """
        schedule = Schedule(chains, count, burn_in, thin)
        clamped = self._clamped(data)
        states = self._sample_free(schedule, chosen_generator(seed, generator))
        free = SampledCovariance(self._pairs, states[:, None], self.weights.dtype)
        notes = sampling_notes(free, self._full_couplings, schedule)
        return SampledHessian(free, clamped, self.temperature, self.parameters, notes)

    def _sample_free(self, schedule: Schedule, generator: torch.Generator) -> Tensor:
        """States (chains, count, 1 + visible + hidden)."""
        visible, hidden = self.weights.shape
        device = self.weights.device
        start = with_always_on(random_states(schedule.chains, visible + hidden, 0, generator)).to(device)
        blocks = torch.arange(1, 1 + visible + hidden, device=device).split([visible, hidden])
        return gibbs(self._full_couplings, start, blocks[::-1], 0, schedule, generator)

    @cached_property
    def _pairs(self) -> Pairs:
        """The pairs of units that parameters connect; units: always on, visible, hidden."""
        visible, hidden = self.weights.shape
        units = torch.arange(1 + visible + hidden, device=self.weights.device)
        columns = torch.cat([units[:1], units[1 + visible :]])
        first, second = torch.cartesian_prod(units[: 1 + visible], columns)[1:].T
        return Pairs(first, second, len(units))

    @cached_property
    def _full_couplings(self) -> Tensor:
        """J (units, units), symmetric, of all units in the order of `_pairs`."""
        made = self._pairs.matrices(self._factor * self.parameters[:, None])[0]
        return made + made.T

    @property
    def _factor(self) -> float:
        """The derivative of J with respect to w, where log p = sum of J_ij v_i h_j - log Z."""
        return -SIGNS[self.energy_sign] / self.temperature

    @cached_property
    def _couplings(self) -> Tensor:
        """J (1 + visible, 1 + hidden), with the biases in row and column 0."""
        return as_matrices(self._factor * self.parameters[:, None], *self.weights.shape)[0]

    def _visible(self, data: Tensor) -> Tensor:
        return visible_states(data, len(self.weights), 0, self.weights.device).to(self.weights.dtype)

    @cached_property
    def _free(self) -> FreePhase:
        return free_phase(self._couplings)

    def _clamped(self, data: Tensor) -> ClampedPhase:
        states = with_always_on(self._visible(data))
        return ClampedPhase(states, with_always_on(torch.sigmoid(states @ self._couplings[:, 1:])))


@dataclass(frozen=True)
class FreePhase:
    """All hidden states of a restricted machine, with the means of the visible units given each."""

    hidden: Tensor  # (m, 1 + hidden): with the unit that is always on
    visible: Tensor  # (m, 1 + visible): means
    probabilities: Tensor  # (m,)
    log_sum: Tensor  # log Z

    __repr__ = outline

    @cached_property
    def means(self) -> Tensor:
        """The means (1 + visible, 1 + hidden) of v_i h_j."""
        return (self.probabilities[:, None] * self.visible).T @ self.hidden

    def times(self, vectors: Tensor) -> Tensor:
        """The covariance of v_i h_j times vectors (n, k): <(D - <D>) v_i h_j>."""
        matrices = as_matrices(vectors, self.visible.shape[1] - 1, self.hidden.shape[1] - 1)
        centres = (matrices * self.means).sum((1, 2))
        total = torch.zeros_like(matrices)
        for part in self._parts(len(matrices)):
            h, x, p = self.hidden[part], self.visible[part], self.probabilities[part, None]
            y = h @ matrices.mT
            d = (x * y).sum(2) - centres[:, None]
            total += (p * (d[:, :, None] * x + x * (1 - x) * y)).mT @ h  # x (1 - x) of the unit that is always on is 0
        return total.flatten(1)[:, 1:].T.contiguous()

    def _parts(self, k: int) -> Iterator[slice]:
        return slices(len(self.hidden), k * self.visible.shape[1])


@dataclass(frozen=True)
class ClampedPhase:
    """Examples of visible states, with the means of the hidden units given each."""

    visible: Tensor  # (N, 1 + visible): with the unit that is always on
    hidden: Tensor  # (N, 1 + hidden): means

    __repr__ = outline

    def means(self) -> Tensor:
        """The means (1 + visible, 1 + hidden) of v_i h_j over hidden states and examples."""
        return self.visible.T @ self.hidden / len(self.visible)

    def times(self, vectors: Tensor) -> Tensor:
        """The mean over examples of the covariances of v_i h_j, times vectors (n, k)."""
        matrices = as_matrices(vectors, self.visible.shape[1] - 1, self.hidden.shape[1] - 1)
        total = torch.zeros_like(matrices)
        for part in slices(len(self.visible), len(matrices) * self.hidden.shape[1]):
            v, h = self.visible[part], self.hidden[part]
            total += v.T @ (h * (1 - h) * (v @ matrices))  # h (1 - h) of the unit that is always on is 0
        return total.flatten(1)[:, 1:].T / len(self.visible)


def free_phase(couplings: Tensor) -> FreePhase:
    """Enumerate the hidden states under J (1 + visible, 1 + hidden). Raises SpectraError if there are too many."""
    visible, hidden = couplings.shape[0] - 1, couplings.shape[1] - 1
    if visible * 2**hidden > LARGEST:
        raise SpectraError(
            f"{hidden} hidden units: {2**hidden:,} states, with {visible} visible units each, are too many to "
            "enumerate; use `sampled_hessian`, which estimates the Hessian from Gibbs samples"
        )
    states = with_always_on(all_states(hidden, 0, couplings.device)).to(couplings.dtype)
    inputs = states @ couplings[1:].T
    energies = softplus(inputs).sum(1) + states @ couplings[0]
    log_sum = energies.logsumexp(0)
    return FreePhase(states, with_always_on(inputs.sigmoid()), (energies - log_sum).exp(), log_sum)


def as_matrices(vectors: Tensor, visible: int, hidden: int) -> Tensor:
    """Vectors (n, k) as matrices (k, 1 + visible, 1 + hidden), with the biases in row and column 0."""
    padded = torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors])
    return padded.T.reshape(-1, 1 + visible, 1 + hidden)
