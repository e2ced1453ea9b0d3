"""The gradient and a Hessian product on digits from values of the loss, compared with those by differentiation.

All weights of the last layer of the demonstration network are perturbed at random. The table has the standard error of
each estimate, its true error, and the error predicted by the closed form for a quadratic loss.

    python scripts/examples/weight_perturbation.py
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

import spectra


class Row(NamedTuple):
    """One estimate; errors are relative to the length of the true vector."""

    quantity: str
    form: str
    evaluations: int
    standard_error: float
    error: float
    expected: float  # sqrt((n - 1) / m) for m perturbations


def main(evaluations: int = 4000, samples: int = 200) -> list[Row]:
    """Print and return the errors of the gradient and of H v for the leading eigenvector v, in both forms."""
    problem = spectra.load_problem(
        model="spectra.demo:mlp", data="digits", samples=samples, params=["5.*"], dtype="float64"
    ).problem
    hessian = spectra.Curvature(problem, "hessian")
    vector = spectra.eigenpairs(hessian, k=1).vectors[0]
    gradient, product = spectra.mean_gradient(problem), hessian @ vector
    print(f"{problem.size} parameters; errors relative to the true vector\n")
    print(f"{'':<9}{'form':<9}{'evaluations':>11}  {'standard error':>14}  {'error':>6}  {'sqrt((n-1)/m)':>13}")
    rows = []
    for form in ("central", "forward"):
        settings = {"evaluations": evaluations, "form": form}
        estimates = {
            "gradient": (spectra.gradient_from_losses(problem, **settings), gradient),
            "H v": (spectra.product_from_losses(problem, vector, **settings), product),
        }
        rows += [row(name, form, *pair) for name, pair in estimates.items()]
    return rows


def row(quantity: str, form: str, estimate: spectra.VectorEstimate, true: Tensor) -> Row:
    """One line of the table, printed."""
    size = true.norm().item()
    error, expected = (estimate.value - true).norm().item(), math.sqrt((len(true) - 1) / estimate.perturbations)
    made = Row(quantity, form, estimate.evaluations, estimate.standard_error / size, error / size, expected)
    print(f"{quantity:<9}{form:<9}{made[2]:>11,}  {made[3]:>14.3f}  {made[4]:>6.3f}  {made[5]:>13.3f}")
    return made


if __name__ == "__main__":
    main()
