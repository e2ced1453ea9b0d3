"""Boltzmann machines for tests, and their likelihood by brute force: every state in a Python list, autograd alone."""

import itertools

import torch
from torch import Tensor

from spectra.systems.boltzmann import BoltzmannMachine
from spectra.systems.restricted import RestrictedBoltzmannMachine

LOW = {"binary": 0, "spin": -1}


def draw(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def machine(m: int = 5, biased: bool = True, seed: int = 0, device: str = "cpu", **options) -> BoltzmannMachine:
    upper = draw(m, m, seed=seed).triu(1)
    biases = draw(m, seed=seed + 1).to(device) if biased else None
    return BoltzmannMachine((upper + upper.T).to(device), biases, **options)


def restricted(visible: int = 5, hidden: int = 3, seed: int = 0, device: str = "cpu", **options):
    parts = draw(visible, hidden, seed=seed), draw(visible, seed=seed + 1), draw(hidden, seed=seed + 2)
    return RestrictedBoltzmannMachine(*(part.to(device) for part in parts), **options)


def examples(count: int, units: int, low: int = 0, seed: int = 5) -> Tensor:
    return low + (1 - low) * torch.randint(2, (count, units), generator=torch.Generator().manual_seed(seed))


def states(m: int, low: int) -> Tensor:
    return torch.tensor(list(itertools.product([low, 1], repeat=m)), dtype=torch.float64)


def log_probabilities(of: BoltzmannMachine, parameters: Tensor) -> Tensor:
    """log p of all `states`, as a function of the parameters: biases, then w_ij for i < j."""
    m = len(of.weights)
    biases, weights = parameters.split([len(parameters) - m * (m - 1) // 2, m * (m - 1) // 2])
    energies = []
    for state in states(m, LOW[of.units]):
        pairs = itertools.combinations(range(m), 2)
        energy = sum(w * state[i] * state[j] for w, (i, j) in zip(weights, pairs, strict=True))
        energies.append(energy + sum(b * s for b, s in zip(biases, state, strict=False)))
    sign = 1 if of.energy_sign == "plus" else -1
    return torch.log_softmax(-sign * torch.stack(energies) / of.temperature, 0)


def loss(of: BoltzmannMachine, data: Tensor, parameters: Tensor) -> Tensor:
    """The mean negative log likelihood of visible states, as a function of the parameters."""
    logs, every = log_probabilities(of, parameters), states(len(of.weights), LOW[of.units])
    seen = [logs[(every[:, : data.shape[1]] == row).all(1)].logsumexp(0) for row in data]
    return -torch.stack(seen).mean()


def dense(operator) -> Tensor:
    """The matrix of an operator, by products with the identity, on the CPU."""
    return (operator @ torch.eye(len(operator.point), dtype=operator.dtype, device=operator.device)).cpu()
