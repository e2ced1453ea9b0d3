"""Laplace's evidence against weight decay on digits: it chooses a weight decay from the training data alone.

With a prior N(0, I / alpha) of the n parameters and N examples of mean loss L = -log p, Laplace's approximation of the
log evidence around the minimum theta of N L + alpha |theta|^2 / 2 is

    -N L - alpha |theta|^2 / 2 + (n / 2) log alpha - log det(N G + alpha I) / 2

with G the GGN of L (MacKay 1992, *A practical Bayesian framework for backpropagation networks*; Immer et al. 2021,
*Scalable marginal likelihood estimation for model selection in deep learning*). Here weight decay X is the loss
L + X |theta|^2 / 2, so alpha = N X, and n log N cancels in the last two terms (`log_evidence`).

    python scripts/examples/evidence.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import spectra
from spectra.inputs.data import digits

DECAYS = tuple(10**power for power in (-5.0, -4.5, -4.0, -3.5, -3.0, -2.5, -2.0, -1.5))


class Row(NamedTuple):
    """One weight decay, with what training with it led to; errors are standard errors but for the quadrature's."""

    decay: float
    loss: float
    evidence: float
    evidence_error: float  # over probes
    quadrature_error: float  # of the evidence
    effective: float  # parameters that the data determine
    effective_error: float  # over probes, plus that of the quadrature
    held_out: float  # mean loss of the examples that are left out
    held_out_error: float  # over examples


def main(
    samples: int = 300,
    width: int = 8,
    decays: Sequence[float] = DECAYS,
    steps: int = 40,
    probes: int = 40,
) -> list[Row]:
    """Train a network of one hidden layer with each weight decay; print and return its evidence and held-out loss."""
    images, labels = digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order].double(), labels[order]
    data, held_out = (images[:samples], labels[:samples]), (images[samples:], labels[samples:])
    print(f"{'decay':>8} {'loss':>8} {'log evidence':>14} {'quadr. ±':>9} {'effective':>12} {'held-out loss':>18}")
    rows = []
    for decay in decays:
        rows.append(row_of(trained(width, data, decay), data, held_out, decay, steps, probes))
        print(line(rows[-1]))
    return rows


def trained(width: int, data: tuple[Tensor, Tensor], decay: float) -> nn.Module:
    """The network at a minimum of the mean loss and weight decay, always from the same start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10)).double()
    optimizer = torch.optim.LBFGS(
        network.parameters(), max_iter=5000, tolerance_grad=1e-6, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(network(data[0]), data[1]) + decay / 2 * square(network)
        loss.backward()
        return loss

    optimizer.step(objective)
    return network


def square(network: nn.Module) -> Tensor:
    """The sum of the squares of all parameters."""
    return sum(p.square().sum() for p in network.parameters())


def row_of(
    network: nn.Module,
    data: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    decay: float,
    steps: int,
    probes: int,
) -> Row:
    """What is told of one network."""
    found = spectra.density(
        network, nn.CrossEntropyLoss(), data, curvature="ggn", steps=steps, probes=probes, damping=decay
    )
    determinant = spectra.log_determinant(found.measure(), decay, semidefinite=True)
    with torch.no_grad():
        loss = cross_entropy(network(data[0]), data[1]).item()
        others = cross_entropy(network(held_out[0]), held_out[1], reduction="none")
        regularised = loss + decay / 2 * square(network).item()
    return Row(
        decay,
        loss,
        log_evidence(regularised, len(data[1]), decay, found.dimension, determinant.value),
        determinant.standard_error / 2,
        determinant.quadrature_error / 2,
        found.effective_dimension.value,
        found.effective_dimension.standard_error + found.effective_dimension.quadrature_error,
        others.mean().item(),
        others.std().item() / len(others) ** 0.5,
    )


def log_evidence(regularised: float, examples: int, decay: float, parameters: int, log_determinant: float) -> float:
    """Laplace's log evidence from the mean loss with weight decay, and log det(G + decay I)."""
    return -examples * regularised + (parameters * math.log(decay) - log_determinant) / 2


def line(row: Row) -> str:
    """A line of the table."""
    return (
        f"{row.decay:8.1e} {row.loss:8.4f} {row.evidence:8.1f} ± {row.evidence_error:3.1f} {row.quadrature_error:9.0e} "
        f"{row.effective:6.1f} ± {row.effective_error:3.1f} {row.held_out:9.4f} ± {row.held_out_error:6.4f}"
    )


if __name__ == "__main__":
    main()
