"""Influence of training examples on a held-out loss, compared with leaving each out and training again, on digits.

The weights theta minimise (1/N) sum_i l_i + X |theta|^2 / 2. Without example i they move by (H + X I)^-1 g_i / N, to
first order, and the held-out loss changes by

    g_test' (H + X I)^-1 g_i / N             H the Hessian of the mean loss, g_i the gradient of l_i

(Cook and Weisberg 1982; the influence of Koh and Liang 2017 has the opposite sign). One inverse product is enough for
all examples. If outputs are linear in the weights, with Jacobian J_i, the move with the leverage of i is

    A_i (I - L_i J_i A_i / N)^-1 r_i / N     A_i = (H + X I)^-1 J_i', r_i and L_i the derivatives of l_i by its output

by Sherman, Morrison and Woodbury: exact for squares (ridge regression), one Newton step without i for others.

    python scripts/examples/influence.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils import vector_to_parameters

import spectra
from spectra.inputs.data import digits

CLASSES, PIXELS = 10, 64
TOLERANCE = 1e-12  # of solutions and of training: what differs is then the method


class Row(NamedTuple):
    """How well one prediction of the changes of the held-out loss agrees with leaving out and training again."""

    regression: str
    prediction: str
    correlation: float
    slope: float  # of predicted on true changes, through the origin
    error: float  # the largest, over the largest change
    products: int  # of the Hessian, for all examples that are left out


@dataclass(frozen=True)
class Regression:
    """A regression linear in its weights (C, 65), those of a bias last: its loss, derivatives and training.

    Of outputs f (N, C) and targets y (N, C), `loss` gives the values (N,), `slopes` (N, C) and `curvatures` (N, C, C).
    """

    name: str
    targets: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    slopes: Callable[[Tensor, Tensor], Tensor]
    curvatures: Callable[[Tensor], Tensor]
    problem_loss: spectra.MeanSquaredError | spectra.CrossEntropy

    def train(self, x: Tensor, y: Tensor, kept: Tensor, decay: float, start: Tensor) -> Tensor:
        """The weights that minimise the loss, each example times its entry of `kept` (N,), by Newton's method.

        Leaving one out keeps the factor 1 / N of the rest. Nothing here is shared with the predictions.
        """
        weights, count = start, len(x)
        for _ in range(50):
            f = x @ weights.T
            gradient = (kept[:, None] * self.slopes(f, y)).T @ x / count + decay * weights
            if gradient.norm() <= TOLERANCE:
                return weights
            bends = (kept[:, None, None] * self.curvatures(f)).flatten(1)
            blocks = (bends.T @ (x[:, :, None] * x[:, None]).flatten(1)).view(*2 * (f.shape[1],), *2 * (x.shape[1],))
            hessian = blocks.transpose(1, 2).reshape(weights.numel(), -1) / count
            hessian.diagonal().add_(decay)
            weights = weights - torch.linalg.solve(hessian, gradient.flatten()).view_as(weights)
        raise RuntimeError(f"Newton's method has left a gradient of {gradient.norm():.1e}")


RIDGE = Regression(
    "ridge",
    lambda labels: labels[:, None].double(),
    lambda f, y: (f - y).square().sum(dim=1),
    lambda f, y: 2 * (f - y),
    lambda f: 2 * torch.ones(len(f), 1, 1, dtype=f.dtype),
    spectra.MeanSquaredError(),
)
LOGISTIC = Regression(
    "logistic",
    lambda labels: one_hot(labels, CLASSES).double(),
    lambda f, y: -(y * f.log_softmax(1)).sum(dim=1),
    lambda f, y: f.softmax(1) - y,
    lambda f: torch.diag_embed(p := f.softmax(1)) - p[:, :, None] * p[:, None],
    spectra.CrossEntropy(),
)


def vector(weights: Tensor) -> Tensor:
    """Weights (..., C, 65) as the vectors (..., n) of a linear layer: its matrix, and then its bias."""
    return torch.cat([weights[..., :-1].flatten(-2), weights[..., -1]], dim=-1)


def matrix(vector: Tensor) -> Tensor:
    """The weights (C, 65) that lie in the vector (n,) of a linear layer."""
    count = len(vector) // (PIXELS + 1)
    return torch.cat([vector[:-count].view(count, PIXELS), vector[-count:, None]], dim=1)


@dataclass(frozen=True)
class Digits:
    """Digits to train on and digits held out, each with an entry of 1 for the bias."""

    x: Tensor
    labels: Tensor
    x_test: Tensor
    labels_test: Tensor

    @classmethod
    def drawn(cls, samples: int, held_out: int) -> Digits:
        """Some digits, in a random order that is always the same."""
        images, labels = digits()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        x = torch.cat([images.flatten(1).double(), torch.ones(len(labels), 1, dtype=torch.float64)], dim=1)[order]
        labels, end = labels[order].long(), samples + held_out
        return cls(x[:samples], labels[:samples], x[samples:end], labels[samples:end])


@dataclass(frozen=True)
class Trained:
    """A regression at the minimum for some training examples, and its Hessian there, without weight decay."""

    regression: Regression
    x: Tensor
    y: Tensor
    weights: Tensor
    decay: float
    hessian: spectra.Curvature

    @classmethod
    def on(cls, regression: Regression, data: Digits, decay: float) -> Trained:
        """The regression after training on all digits that are there for it."""
        x, y = data.x, regression.targets(data.labels)
        start = torch.zeros(y.shape[1], x.shape[1], dtype=x.dtype)
        weights = regression.train(x, y, torch.ones(len(x), dtype=x.dtype), decay, start)
        network = nn.Linear(PIXELS, len(weights), dtype=torch.float64)
        vector_to_parameters(vector(weights), network.parameters())
        targets = y if regression is RIDGE else data.labels
        batches = spectra.cut_batches(x[:, :PIXELS], targets, torch.arange(len(x)), size=len(x))
        problem = spectra.Problem(network, regression.problem_loss, batches)
        return cls(regression, x, y, weights, decay, spectra.Curvature(problem, "hessian"))

    def reweighted(self, i: int, weight: float = 0.0) -> Tensor:
        """The weights after training again with another weight of example i than 1: 0 leaves it out."""
        kept = torch.ones(len(self.x), dtype=self.x.dtype)
        kept[i] = weight
        return self.regression.train(self.x, self.y, kept, self.decay, self.weights)

    def first_order(self, slope: Tensor, damping: float) -> tuple[Tensor, int]:
        """The change of a loss of gradient `slope` (C, 65) without each of the examples (N,), and products."""
        solution = spectra.solve(self.hessian, vector(slope), damping=damping, tolerance=TOLERANCE)
        slopes = self.regression.slopes(self.x @ self.weights.T, self.y)
        return vector(slopes[:, :, None] * self.x[:, None]) @ solution.x / len(self.x), solution.products

    def with_leverage(self, chosen: Tensor) -> tuple[list[Tensor], int]:
        """The moves (C, 65) of the weights without each of some examples, and products."""
        outputs, eye = self.x @ self.weights.T, torch.eye(len(self.weights), dtype=self.x.dtype)
        slopes, curvatures = self.regression.slopes(outputs, self.y), self.regression.curvatures(outputs)
        moves, products = [], 0
        for i in chosen.tolist():
            jacobian = vector(eye[:, :, None] * self.x[i])  # (C, n)
            solution = spectra.solve(self.hessian, jacobian.T, damping=self.decay, tolerance=TOLERANCE)
            leverage = curvatures[i] @ jacobian @ solution.x / len(self.x)
            moves.append(matrix(solution.x @ torch.linalg.solve(eye - leverage, slopes[i]) / len(self.x)))
            products += solution.products
        return moves, products


def main(samples: int = 200, left_out: int = 40, decay: float = 0.01, held_out: int = 500) -> list[Row]:
    """Print and return the agreement of each prediction, for ridge and for logistic regression."""
    data = Digits.drawn(samples, held_out)
    print(f"{'':<9} {'prediction':<22}{'correlation':>11}  {'slope':>6}  {'error':>7}  {'products':>8}")
    return [row for regression in (RIDGE, LOGISTIC) for row in rows_of(regression, data, left_out, decay)]


def rows_of(regression: Regression, data: Digits, left_out: int, decay: float) -> list[Row]:
    """The rows of one regression."""
    predictions, true = predicted_and_true(regression, data, left_out, decay)
    return [row(regression.name, name, *pair, true) for name, pair in predictions.items()]


def predicted_and_true(
    regression: Regression, data: Digits, left_out: int, decay: float
) -> tuple[dict[str, tuple[Tensor, int]], Tensor]:
    """The changes of the held-out loss by each prediction, with its products, and by training again.

    Half of the examples left out are those of most influence, half are random.
    """
    fit, x_test, y_test = Trained.on(regression, data, decay), data.x_test, regression.targets(data.labels_test)

    def change(weights: Tensor) -> float:
        """The change of the held-out loss from the trained weights to others."""
        before, after = (regression.loss(x_test @ w.T, y_test).mean().item() for w in (fit.weights, weights))
        return after - before

    slope = regression.slopes(x_test @ fit.weights.T, y_test).T @ x_test / len(y_test)
    changes, products = fit.first_order(slope, decay)
    damped, damped_products = fit.first_order(slope, 10 * decay)
    chosen = most_and_random(changes, left_out)
    moves, more_products = fit.with_leverage(chosen)
    predictions = {
        "first order": (changes[chosen], products),
        "the same, damping x 10": (damped[chosen], damped_products),
        "with leverage": (numbers([change(fit.weights + move) for move in moves]), more_products),
    }
    return predictions, numbers([change(fit.reweighted(i)) for i in chosen.tolist()])


def most_and_random(influence: Tensor, count: int) -> Tensor:
    """The indices of the examples of most influence, half of `count`, and of random others."""
    order = influence.abs().argsort(descending=True)
    rest = order[count // 2 :]
    drawn = torch.randperm(len(rest), generator=torch.Generator().manual_seed(1))[: count - count // 2]
    return torch.cat([order[: count // 2], rest[drawn]])


def numbers(values: list[float]) -> Tensor:
    """Numbers as a vector in float64."""
    return torch.tensor(values, dtype=torch.float64)


def row(regression: str, prediction: str, predicted: Tensor, products: int, true: Tensor) -> Row:
    """One line of the table, printed."""
    made = Row(
        regression,
        prediction,
        torch.corrcoef(torch.stack([predicted, true]))[0, 1].item(),
        (predicted @ true / (true @ true)).item(),
        ((predicted - true).abs().max() / true.abs().max()).item(),
        products,
    )
    print(f"{made[0]:<9} {made[1]:<22}{made[2]:>11.6f}  {made[3]:>6.3f}  {made[4]:>7.1e}  {made[5]:>8,}")
    return made


if __name__ == "__main__":
    main()
