"""Boltzmann machines (Ackley, Hinton, Sejnowski 1985): likelihood, and its gradient and Hessian in the weights.

A state s of the units has the probability exp(-E(s)/T) / Z, with E = sum over i < j of w_ij s_i s_j, as in Pearlmutter
(1994). With p_ij = <s_i s_j> and D = sum over i < j of v_ij s_i s_j, the derivative of p_ij along v is

    R{p_ij} = (p_ij <D> - <s_i s_j D>) / T.

A bias is the weight between its unit and one that is always on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from spectra.arguments import chosen_generator, require_choice, require_integer, require_number
from spectra.errors import ArgumentError
from spectra.systems.boltzmann_hessian import BoltzmannHessian
from spectra.systems.enumeration import Enumeration, enumerate_states
from spectra.systems.gibbs import FEWEST_CHAINS, Schedule, gibbs, random_states
from spectra.systems.pair_features import Pairs, all_pairs, with_always_on
from spectra.systems.sampled_covariance import SampledCovariance
from spectra.systems.sampled_hessian import SampledHessian, sampling_notes
from spectra.wording import outline

SIGNS = {"plus": 1, "minus": -1}  # of the energy
LOWS = {"binary": 0, "spin": -1}  # the lower of a unit's two states; the other is 1
CHAINS, COUNT, BURN_IN = 64, 200, 200
CLAMPED_CHAINS = 16


@dataclass(frozen=True, eq=False)
class BoltzmannMachine:
    """A Boltzmann machine of m fully connected units, of which the last may be hidden, with its exact Hessian.

    The parameters (n,) are the biases, if any, and then the weights w_ij for i < j, row by row. Exact averages
    enumerate all states, for up to 22 units; `sampled_hessian` uses Gibbs samples instead.

    Attributes:
        weights: the weights (m, m), symmetric with a zero diagonal, in a floating-point type.
        biases: the biases (m,), which add b_i s_i to the energy; None: a machine without biases.
        hidden: the number of hidden units, which are the last ones.
        temperature: the temperature T of p = exp(-E/T) / Z.
        energy_sign: plus for E = + sum of w_ij s_i s_j, as in Pearlmutter (1994), or the more usual minus.
        units: binary for states 0 and 1, or spin for -1 and 1.

    Raises:
        ArgumentError: an argument has a wrong shape, type or value.
    """

    weights: Tensor
    biases: Tensor | None = None
    hidden: int = 0
    temperature: float = 1.0
    energy_sign: str = "plus"
    units: str = "binary"

    __repr__ = outline

    def __post_init__(self):
        require_weights(self.weights)
        m = len(self.weights)
        if self.weights.shape != (m, m):
            raise ArgumentError(f"`weights` of shape {tuple(self.weights.shape)}: give a symmetric matrix (m, m)")
        if not torch.equal(self.weights, self.weights.T):
            raise ArgumentError("`weights`: the matrix is not symmetric; give (W + W.T) / 2")
        if self.weights.diagonal().any():
            raise ArgumentError("`weights`: the diagonal is not zero; give the terms of single units as `biases`")
        if self.biases is not None:
            require_like("biases", self.biases, (m,), self.weights)
        require_integer("hidden", self.hidden, 0, m - 1)
        require_temperature(self.temperature)
        require_choice("energy_sign", self.energy_sign, SIGNS)
        require_choice("units", self.units, LOWS)

    @property
    def visible(self) -> int:
        """The number of visible units, which are the first ones."""
        return len(self.weights) - self.hidden

    @cached_property
    def pairs(self) -> Pairs:
        """The pair of units that each parameter connects; for a bias, one of them is unit 0, which is always on."""
        return all_pairs(len(self.weights) + self._always_on, self.weights.device)

    @cached_property
    def parameters(self) -> Tensor:
        """The parameters (n,): biases, where there are any, then w_ij for i < j, row by row."""
        first, second = torch.triu_indices(len(self.weights), len(self.weights), 1, device=self.weights.device)
        own = self.weights[first, second]
        return own if self.biases is None else torch.cat([self.biases, own])

    def at(self, parameters: Tensor) -> BoltzmannMachine:
        """Make a machine with other parameters (n,), in the order of `parameters`."""
        require_like("parameters", parameters, self.parameters.shape, self.weights)
        m = len(self.weights)
        biases, own = parameters.clone().split([m * self._always_on, m * (m - 1) // 2])
        upper = all_pairs(m, own.device).matrices(own[:, None])[0]
        return replace(self, weights=upper + upper.T, biases=biases if self._always_on else None)

    def correlations(self) -> Tensor:
        """Compute the means <s_i s_j> (n,) over all states, in the order of the parameters; for a bias, <s_i>."""
        return self._free.means()

    def correlation_derivative(self, direction: Tensor) -> Tensor:
        """Compute the derivative (n,) of `correlations` as the parameters move along a direction (n,).

        It is R{p_ij} in Pearlmutter (1994).
        """
        require_like("direction", direction, self.parameters.shape, self.weights)
        return self._factor * self._free.times(direction[:, None])[:, 0]

    def negative_log_likelihood(self, data: Tensor) -> Tensor:
        """Compute the mean of -log p over the visible states `data` (N, visible)."""
        return self._free.log_sums.squeeze() - self._clamped(data).log_sums.mean()

    def gradient(self, data: Tensor) -> Tensor:
        """Compute the gradient (n,) of the mean negative log-likelihood of the visible states `data` (N, visible).

        It is the clamped minus the free means of s_i s_j, over T; with energy_sign minus, the free minus the clamped
        means.
        """
        return self._factor * (self._free.means() - self._clamped(data).means())

    def hessian(self, data: Tensor | None = None) -> BoltzmannHessian:
        """Compute the exact Hessian of the mean negative log-likelihood, by enumeration of all states.

        Args:
            data: visible states (N, visible); not needed without hidden units, where the Hessian does not depend on
                them.

        Returns:
            The Hessian (n, n), as an operator.

        Raises:
            SpectraError: there are too many states.
        """
        clamped = self._clamped(data) if self.hidden else None
        return BoltzmannHessian(self._free, clamped, self.temperature, self.parameters)

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
        """Draw states (chains, count, m) of all units by Gibbs sampling, as int8.

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
        return self._sample_free(schedule, chosen_generator(seed, generator))[..., self._always_on :]

    def sampled_hessian(
        self,
        data: Tensor | None = None,
        *,
        chains: int = CHAINS,
        count: int = COUNT,
        burn_in: int = BURN_IN,
        thin: int = 1,
        clamped_chains: int = CLAMPED_CHAINS,
        clamped_count: int | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
    ) -> SampledHessian:
        """Estimate the Hessian of the mean negative log-likelihood from Gibbs samples, with standard errors.

        Args:
            data: visible states (N, visible); not needed without hidden units.
            chains: the number of independent chains of the free phase.
            count: the number of samples of each chain.
            burn_in: the sweeps over all units before the first sample.
            thin: the sweeps from one sample to the next.
            clamped_chains: the number of chains of the hidden units for each example.
            clamped_count: the number of samples of each of these chains; None: enough to make the clamped phase as
                large as the free one.
            seed: the seed of the random numbers, used where no `generator` is given.
            generator: a torch.Generator on the CPU, used instead of the seed.

        Returns:
            The estimate (n, n), as an operator.
        """
        schedule = Schedule(chains, count, burn_in, thin)
        require_integer("clamped_chains", clamped_chains, FEWEST_CHAINS)
        require_integer("clamped_count", clamped_count, optional=True)
        generator = chosen_generator(seed, generator)
        states = self._states_of(data) if self.hidden else None
        dtype = self.weights.dtype
        free = SampledCovariance(self.pairs, self._sample_free(schedule, generator)[:, None], dtype)
        notes = sampling_notes(free, self._couplings, schedule)
        if states is None:
            return SampledHessian(free, None, self.temperature, self.parameters, notes)
        wanted = -(-chains * count // (clamped_chains * len(states))) if clamped_count is None else clamped_count
        other = Schedule(clamped_chains, wanted, burn_in, thin)
        clamped = SampledCovariance(self.pairs, self._sample_clamped(states, other, generator), dtype)
        return SampledHessian(free, clamped, self.temperature, self.parameters, notes)

    def _sample_free(self, schedule: Schedule, generator: torch.Generator) -> Tensor:
        """States (chains, count, units), with the unit that is always on."""
        start = random_states(schedule.chains, len(self.weights), self._low, generator)
        return self._gibbs(start, len(self.weights), schedule, generator)

    def _sample_clamped(self, visible: Tensor, schedule: Schedule, generator: torch.Generator) -> Tensor:
        """States (chains, N, count, units), with the unit that is always on, for visible states (N, visible)."""
        rows = schedule.chains * len(visible)
        hidden = random_states(rows, self.hidden, self._low, generator)
        start = torch.cat([visible.cpu().repeat(schedule.chains, 1), hidden], dim=1)
        return self._gibbs(start, self.hidden, schedule, generator).unflatten(0, (schedule.chains, len(visible)))

    def _gibbs(self, start: Tensor, moving: int, schedule: Schedule, generator: torch.Generator) -> Tensor:
        """Sample the last `moving` units one by one, starting from states (chains, m)."""
        states = with_always_on(start) if self._always_on else start
        units = torch.arange(self.pairs.units, device=self.weights.device)[-moving:]
        return gibbs(self._couplings, states.to(units.device), units.split(1), self._low, schedule, generator)

    @cached_property
    def _couplings(self) -> Tensor:
        """J (units, units), symmetric."""
        upper = self.pairs.matrices(self._factor * self.parameters[:, None])[0]
        return upper + upper.T

    @property
    def _always_on(self) -> int:
        return int(self.biases is not None)

    @property
    def _low(self) -> int:
        return LOWS[self.units]

    @property
    def _factor(self) -> float:
        """The derivative of J with respect to w, where log p = sum of J_ij s_i s_j - log Z."""
        return -SIGNS[self.energy_sign] / self.temperature

    @cached_property
    def _free(self) -> Enumeration:
        fixed = torch.ones(1, self._always_on, dtype=torch.int8, device=self.weights.device)
        return enumerate_states(self.pairs, self._factor * self.parameters, fixed, len(self.weights), self._low)

    def _states_of(self, data: Tensor | None) -> Tensor:
        if data is None:
            raise ArgumentError(
                "`data` None: a machine with hidden units needs visible states; give a tensor (N, visible)"
            )
        return visible_states(data, self.visible, self._low, self.weights.device)

    def _clamped(self, data: Tensor | None) -> Enumeration:
        states = self._states_of(data)
        fixed = with_always_on(states) if self._always_on else states
        return enumerate_states(self.pairs, self._factor * self.parameters, fixed, self.hidden, self._low)


def visible_states(data: Tensor, visible: int, low: int, device: torch.device) -> Tensor:
    """Convert data (N, visible) to int8 on the machine's device. Raises ArgumentError if it is not of valid states."""
    if not isinstance(data, Tensor) or data.ndim != 2 or data.shape[1] != visible or not len(data):
        came = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise ArgumentError(f"`data` {came}: give a tensor (N, {visible}), with one visible state per row")
    if not ((data == low) | (data == 1)).all():
        raise ArgumentError(f"`data`: it has values other than {low} and 1; binarise it, or choose other `units`")
    return data.to(device, torch.int8)


def require_weights(weights: Tensor) -> None:
    """Raise ArgumentError if weights are not a matrix of finite floating-point numbers."""
    if not isinstance(weights, Tensor) or weights.ndim != 2 or not weights.numel() or not weights.is_floating_point():
        given = isinstance(weights, Tensor)
        came = f"of shape {tuple(weights.shape)} and {weights.dtype}" if given else f"of type {type(weights).__name__}"
        raise ArgumentError(f"`weights` {came}: give a matrix of real floating-point numbers")
    if not weights.isfinite().all():
        raise ArgumentError("`weights`: not all numbers are finite; give finite ones")


def require_like(name: str, given: Tensor, shape: tuple[int, ...], weights: Tensor) -> None:
    """Raise ArgumentError if a tensor is not of this shape, finite, and of the weights' dtype and device."""
    if not isinstance(given, Tensor) or given.shape != shape:
        came = f"of shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"of type {type(given).__name__}"
        raise ArgumentError(f"`{name}` {came}: give a tensor of shape {tuple(shape)}")
    if (given.dtype, given.device) != (weights.dtype, weights.device):
        raise ArgumentError(
            f"`{name}` of {given.dtype} on {given.device}: give it in {weights.dtype} on {weights.device}, like the "
            "weights"
        )
    if not given.isfinite().all():
        raise ArgumentError(f"`{name}`: not all numbers are finite; give finite ones")


def require_temperature(temperature: float) -> None:
    """Raise ArgumentError if the temperature is not a positive number."""
    require_number("temperature", temperature, finite=True, above=0.0)
    if not math.isfinite(1 / temperature**2):
        raise ArgumentError(f"`temperature` {temperature}: 1 / temperature^2 overflows; give a larger one")
