"""Residuals of the model's outputs against the labels, and the calibration of its confidence.

The matrices J'MJ differ only in M. For the Fisher matrix it is the expected square of dl/df over labels drawn from the
model, for the empirical Fisher matrix the square of dl/df for the labels of the data. So `observed` over `expected`,
the ratio of the traces of these two M, says whether the labels are distributed as the model predicts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectra.curvature.definition import distribution_of, label_scales, loss_gradient
from spectra.curvature.engine.differentiation import explained, twice_differentiable
from spectra.problem.batch import Batch
from spectra.problem.binary import BinaryCrossEntropy
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.logits import both_sigmoids, softmax
from spectra.problem.losses import MeanSquaredError
from spectra.problem.problem import Problem
from spectra.problem.weights import Weighable

BINS = 15  # of confidence (Guo, Pleiss, Sun, Weinberger 2017, On calibration of modern neural networks)


@dataclass(frozen=True)
class Residuals:
    """The means over all examples of residuals and of confidence; None for what the loss does not define."""

    gradient: float  # |dl/df|
    observed: float  # |dl/df|^2
    expected: float | None  # |dl/df|^2 over labels drawn from the model
    residual: float | None = None  # |p - y| or |f - y|, Euclidean
    deviation: float | None = None  # root mean square of |y - mean y|, for mse; compare it with `residual_rms`
    residual_rms: float | None = None  # root mean square of |f - y|, for mse
    missing: float | None = None  # 1 - p_y, p_y the probability of the label
    accuracy: float | None = None
    confidence: float | None = None  # probability of the most likely label
    calibration_error: float | None = None  # mean |confidence - accuracy| over bins of confidence

    @property
    def ratio(self) -> float | None:
        """The ratio of observed to expected |dl/df|^2: 1 if labels are distributed as the model predicts."""
        return self.observed / self.expected if self.expected else None


def residuals(problem: Problem) -> Residuals:
    """Compute the residuals by one forward pass over all data, in each process. Raises SpectraError if it fails."""
    sums: dict[str, Tensor] = {}
    with twice_differentiable(problem.model), explained():
        for batch in problem.batches:
            with torch.no_grad():
                rows = problem.rows(batch)
            for name, value in of_batch(problem, batch, rows).items():
                sums[name] = sums.get(name, 0) + value.cpu().double()
    return Residuals(**averaged(sums))


def of_batch(problem: Problem, batch: Batch, rows: Tensor) -> dict[str, Tensor]:
    """The sums over a batch's examples."""
    loss, share = problem.loss, problem.examples / problem.weight
    slope = loss_gradient(problem, batch, rows)[1].flatten(1) * share
    kept, labels = problem.counted(rows, batch), problem.labels(batch)
    sums = {"examples": kept.sum(), "gradient": slope.norm(dim=1).sum(), "observed": slope.square().sum()}
    if not isinstance(loss, Weighable):
        return sums
    scales = label_scales(problem, batch, rows) * share
    if isinstance(loss, MeanSquaredError):
        f, y = rows[kept], labels.reshape(rows.shape).to(rows.dtype)[kept]
        off = (f - y).square().sum(dim=1)
        sums |= {"residual": off.sqrt().sum(), "square": off.sum(), "y": y.sum(dim=0), "y_square": y.square().sum()}
    if not isinstance(loss, CrossEntropy | BinaryCrossEntropy):  # E[r r'] is diagonal
        diagonal = distribution_of(problem, batch).expected(rows, torch.ones_like(rows))
        return sums | {"expected": (scales * diagonal).sum()}
    p, rest, y = probabilities(loss, rows, labels)
    off = p * (1 - y) - rest * y  # p - y, for y of 0 and 1 without a difference of near equals
    sums |= {"expected": (scales * p * rest).sum(), "residual": off[kept].norm(dim=1).sum()}
    if isinstance(loss, BinaryCrossEntropy):  # each output is a choice between two
        p, rest, y = (torch.stack(x, dim=-1).flatten(0, 1) for x in ((p, rest), (rest, p), (y, 1 - y)))
        kept = kept.repeat_interleave(rows.shape[1])
    return sums | bins(p[kept], rest[kept], y[kept])


def probabilities(
    loss: CrossEntropy | BinaryCrossEntropy, rows: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The probabilities p of the model, 1 - p, and the labels y, each (E, K); y is arbitrary for ignored targets."""
    if isinstance(loss, BinaryCrossEntropy):
        return *both_sigmoids(rows), loss.labels(rows, targets)
    found = softmax(rows)
    if targets.is_floating_point():
        return found.probabilities, found.complements, loss.rows(targets, targets).to(rows.dtype)
    labels = targets.reshape(-1).long()
    labels = labels.where(labels != loss.ignore_index, 0)
    y = torch.nn.functional.one_hot(labels, rows.shape[1]).to(rows.dtype)
    return found.probabilities, found.complements, y


def bins(p: Tensor, rest: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Sums over choices (E, K): their number, 1 - p_y, and in bins of confidence their number, confidence and hits."""
    confidence, chosen = p.max(dim=1)
    right = chosen == y.argmax(dim=1)
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    held = [
        torch.bincount(place.cpu(), x.cpu().double(), BINS) for x in (torch.ones_like(confidence), confidence, right)
    ]
    return {"choices": torch.tensor(len(p)), "missing": (rest * y).sum(), "bins": torch.stack(held)}


def averaged(totals: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of `Residuals`, from sums over all examples."""
    n = totals["examples"].item()
    means = {
        name: totals[name].item() / n for name in ("gradient", "observed", "expected", "residual") if name in totals
    }
    found: dict[str, Any] = {"expected": None} | means
    if "square" in totals:
        spread = totals["y_square"].item() / n - totals["y"].div(n).square().sum().item()
        found |= {"residual_rms": math.sqrt(totals["square"].item() / n), "deviation": math.sqrt(max(spread, 0.0))}
    if "bins" in totals:
        (_, confidence, right), choices = totals["bins"].view(3, BINS), totals["choices"].item()
        found |= {
            "missing": totals["missing"].item() / choices,
            "accuracy": right.sum().item() / choices,
            "confidence": confidence.sum().item() / choices,
            "calibration_error": (confidence - right).abs().sum().item() / choices,
        }
    return found
