"""A restricted Boltzmann machine on binarised digits: curvature of its likelihood from Gibbs samples, and exact.

The machine is trained with its exact gradient. For some eigenvectors u of its exact Hessian A, the table compares u'Su,
with its standard error, with the eigenvalue u'Au. S is the estimate of A from samples.

    python scripts/examples/boltzmann.py
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import spectra
from spectra.inputs.data import digits


class Row(NamedTuple):
    """An eigenvalue of the exact Hessian, the estimate along its eigenvector, and the error in standard errors."""

    exact: float
    estimate: float
    standard_error: float

    @property
    def deviation(self) -> float:
        """How many standard errors the estimate is off."""
        return (self.estimate - self.exact) / self.standard_error


def main(hidden: int = 8, steps: int = 150, samples: int = 200) -> list[Row]:
    """Print and return the three largest and the three smallest eigenvalues with their estimates."""
    images = binary_digits()
    machine = train(images, hidden, steps)
    print(f"{len(machine.parameters)} weights; -log p is {machine.negative_log_likelihood(images):.2f} an image")
    exact = spectra.eigenpairs(machine.hessian(images), k=6, which="BE", tolerance=1e-6)
    sampled = machine.sampled_hessian(images, count=samples, thin=10, burn_in=1000)
    print("\n".join(sampled.notes), "\n")
    vectors = exact.vectors.T
    forms, errors = (vectors * (sampled @ vectors)).sum(0), sampled.standard_errors(vectors)
    rows = [Row(*numbers) for numbers in zip(exact.values.tolist(), forms.tolist(), errors.tolist(), strict=True)]
    print("eigenvalue    estimate  standard error   off by")
    for row in rows:
        print(f"{row.exact:>10.4f}  {row.estimate:>10.4f}  {row.standard_error:>14.4f}  {row.deviation:>4.1f} of it")
    return rows


def binary_digits() -> Tensor:
    """The 1,797 digits (N, 64), as 1 where a pixel is more than half dark and else 0."""
    return (digits()[0].flatten(1) > 0.5).to(torch.int8)


Progress = Callable[[int, spectra.RestrictedBoltzmannMachine, Tensor], None]


def train(
    images: Tensor, hidden: int, steps: int, seed: int = 0, progress: Progress | None = None
) -> spectra.RestrictedBoltzmannMachine:
    """Train a machine on all images at once by its exact gradient and Adam (Kingma, Ba 2015).

    The rate falls from 0.05 to 0 as a cosine.

    It begins with small random weights, and with the biases of independent pixels. `progress` is called with the step,
    the machine and its gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    on = (images.double().sum(0) + 0.5) / (len(images) + 1)
    machine = spectra.RestrictedBoltzmannMachine(
        0.01 * torch.randn(images.shape[1], hidden, generator=generator, dtype=torch.float64),
        visible_biases=torch.logit(on),
        hidden_biases=torch.zeros(hidden, dtype=torch.float64),
        energy_sign="minus",
    )
    parameters, mean, square = machine.parameters, torch.zeros(()), torch.zeros(())
    for step in range(steps):
        gradient = machine.gradient(images)
        if progress:
            progress(step, machine, gradient)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        scaled = mean / (1 - 0.9 ** (step + 1)) / (square / (1 - 0.999 ** (step + 1))).sqrt()
        parameters = parameters - 0.05 * (1 + math.cos(math.pi * step / steps)) / 2 * scaled
        machine = machine.at(parameters)
    return machine


if __name__ == "__main__":
    main()
