"""Newton's method with conjugate gradients on digits, compared with gradient descent and L-BFGS.

A Newton step solves H p = -g. CG needs only products with the Hessian H. It stops when the step is accurate enough, or
at negative curvature (Steihaug 1983; Martens 2010, Hessian-free optimisation of networks). `trust-ncg` and `Newton-CG`
are SciPy's, with products from `spectra.to_scipy`. `damped` takes its steps from `spectra.solve`, with a damping that
is adapted to the success of steps (Levenberg, Marquardt).

    python scripts/examples/newton.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import spectra
from spectra.inputs.data import digits

DECAY = 1e-3  # weight decay, without which the loss of data that are fit exactly has no minimum


class Row(NamedTuple):
    """What one method took, and where it came to."""

    method: str
    iterations: int
    gradients: int  # evaluations of loss and gradient
    products: int
    loss: float  # with weight decay
    slope: float  # norm of its gradient


@dataclass
class Objective:
    """The mean loss with weight decay as a function of the weights (n,); it counts what is asked of it."""

    network: nn.Module
    images: Tensor
    labels: Tensor
    gradients: int = 0
    products: int = 0
    last: tuple[bytes, float] = (b"", math.inf)  # the weights of the last gradient, and its norm
    hessians: dict[bytes, spectra.SymmetricOperator] = field(default_factory=dict)  # the last one

    def problem_at(self, weights: Tensor) -> spectra.Problem:
        """The problem with these weights."""
        vector_to_parameters(weights, self.network.parameters())
        batches = spectra.cut_batches(self.images, self.labels, torch.arange(len(self.labels)), size=len(self.labels))
        return spectra.Problem(self.network, spectra.CrossEntropy(), batches, weight_decay=DECAY)

    def value_and_gradient(self, weights: Tensor) -> tuple[float, Tensor]:
        """The loss and its gradient (n,)."""
        self.gradients += 1
        vector_to_parameters(weights, self.network.parameters())
        loss = nn.functional.cross_entropy(self.network(self.images), self.labels)
        parts = torch.autograd.grad(loss, list(self.network.parameters()))
        decay = DECAY / 2 * weights.square().sum().item()
        gradient = parameters_to_vector(parts) + DECAY * weights
        self.last = weights.numpy().tobytes(), gradient.norm().item()
        return loss.item() + decay, gradient

    def hessian(self, weights: Tensor) -> spectra.SymmetricOperator:
        """The Hessian at these weights, which is kept until others are asked for."""
        place = weights.numpy().tobytes()
        if place not in self.hessians:
            self.hessians = {place: spectra.Curvature(self.problem_at(weights), "hessian", check=False, products=0)}
        return self.hessians[place]

    def for_scipy(self, weights: NDArray) -> tuple[float, NDArray]:
        """The loss and its gradient, for `scipy.optimize.minimize`."""
        value, gradient = self.value_and_gradient(torch.tensor(weights))
        return value, gradient.numpy()

    def product_for_scipy(self, weights: NDArray, vector: NDArray) -> NDArray:
        """The product of the Hessian with a vector, for `scipy.optimize.minimize`."""
        self.products += 1
        return spectra.to_scipy(self.hessian(torch.tensor(weights))).matvec(vector)


def by_scipy(objective: Objective, start: Tensor, method: str, slope: float, most: int) -> tuple[int, Tensor]:
    """SciPy's minimiser of this name."""
    options = {
        "L-BFGS-B": {"maxiter": most, "maxfun": 10 * most, "gtol": 0.0, "ftol": 0.0},
        "Newton-CG": {"maxiter": most, "xtol": 0.0},
        "trust-ncg": {"maxiter": most, "gtol": 0.0},
    }

    def small_enough(weights: NDArray) -> None:
        place, size = objective.last
        if place == weights.tobytes() and size <= slope:
            raise StopIteration

    found = minimize(
        objective.for_scipy,
        start.numpy(),
        jac=True,
        hessp=None if method == "L-BFGS-B" else objective.product_for_scipy,
        method=method,
        callback=small_enough,
        options=options[method],
    )
    return found.nit, torch.tensor(found.x)


def gradient_descent(objective: Objective, start: Tensor, slope: float, most: int) -> tuple[int, Tensor]:
    """Steepest descent, with steps that are halved until the loss falls enough (Armijo 1966) and doubled after."""
    weights, step = start, 1.0
    value, gradient = objective.value_and_gradient(weights)
    for iteration in range(most):
        if gradient.norm() <= slope:
            return iteration, weights
        while True:
            tried = weights - step * gradient
            lower, following = objective.value_and_gradient(tried)
            if lower <= value - 0.3 * step * gradient.square().sum().item():
                break
            step /= 2
        weights, value, gradient, step = tried, lower, following, 2 * step
    return most, weights


def damped_newton(objective: Objective, start: Tensor, slope: float, most: int) -> tuple[int, Tensor]:
    """Steps -(H + damping I)^-1 g by `spectra.solve`; where CG meets negative curvature, the step it has so far.

    The damping falls after steps that lower the loss as the quadratic model foretells, and rises after others
    (Marquardt 1963). CG goes the further, the smaller the gradient: convergence is then superlinear (Dembo, Eisenstat,
    Steihaug 1982).
    """
    weights, damping = start, 1.0
    value, gradient = objective.value_and_gradient(weights)
    for iteration in range(most):
        size = gradient.norm().item()
        if size <= slope:
            return iteration, weights
        hessian = objective.hessian(weights)
        found = spectra.solve(hessian, -gradient, damping=damping, method="cg", tolerance=min(0.5, math.sqrt(size)))
        step = found.x if found.x.any() else -gradient / damping  # as it is at negative curvature along g itself
        foretold = gradient @ step + step @ (hessian @ step) / 2 + damping * step.square().sum() / 2
        objective.products += found.products + 1
        lower, following = objective.value_and_gradient(weights + step)
        ratio = (lower - value) / min(foretold.item(), -1e-300)
        damping *= 0.25 if ratio > 0.75 else 4.0 if ratio < 0.25 else 1.0
        damping = max(damping, 1e-8) if math.isnan(found.least_damping) else max(damping, 1.5 * found.least_damping)
        if lower < value:
            weights, value, gradient = weights + step, lower, following
    return most, weights


def main(samples: int = 300, width: int = 8, slope: float = 1e-5, most: int = 2000) -> list[Row]:
    """Minimise by each method from the same start, until the gradient is `slope`; print and return the table."""
    images, labels = digits()
    images, labels = images[:samples].double(), labels[:samples]
    print(f"{'method':18} {'iterations':>10} {'gradients':>10} {'products':>9} {'loss':>12} {'|gradient|':>11}")
    rows = []
    for method in ("gradient descent", "L-BFGS-B", "Newton-CG", "trust-ncg", "damped"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10)).double()
        objective = Objective(network, images, labels)
        start = parameters_to_vector(network.parameters()).detach().clone()
        if method == "gradient descent":
            iterations, weights = gradient_descent(objective, start, slope, most)
        elif method == "damped":
            iterations, weights = damped_newton(objective, start, slope, most)
        else:
            iterations, weights = by_scipy(objective, start, method, slope, most)
        spent = objective.gradients
        value, gradient = objective.value_and_gradient(weights)
        rows.append(Row(method, iterations, spent, objective.products, value, gradient.norm().item()))
        print(line(rows[-1]))
    return rows


def line(row: Row) -> str:
    """A line of the table."""
    return (
        f"{row.method:18} {row.iterations:10,} {row.gradients:10,} {row.products:9,} {row.loss:12.8f} {row.slope:11.1e}"
    )


if __name__ == "__main__":
    main()
