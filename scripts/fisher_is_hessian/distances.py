"""Numbers of two matrices, and of one point of training."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor, nn

from scripts.fisher_is_hessian.tasks import Task


def pair(a: Tensor, b: Tensor) -> dict[str, float]:
    """Frobenius: |A - B| / |A|, the c that is best for |A - c B|, that distance over |A|, and the cosine."""
    norm, other, inner = a.norm(), b.norm(), (a * b).sum()
    scale = inner / other**2
    return {
        "distance": ((a - b).norm() / norm).item(),
        "distance_at_best_scale": ((a - scale * b).norm() / norm).item(),
        "cosine": (inner / (norm * other)).item(),
        "best_scale": scale.item(),
    }


def pairs(matrices: Mapping[str, Tensor]) -> list[dict[str, float | str]]:
    """Of every two; the first is the one that distances are relative to."""
    return [{"a": a, "b": b, **pair(matrices[a], matrices[b])} for a, b in combinations(matrices, 2)]


@torch.no_grad()
def point(network: nn.Module, task: Task, matrices: Mapping[str, Tensor]) -> dict[str, float]:
    """Loss and residuals over all examples, the gradient, and norms and traces of the matrices."""
    outputs, labels = network(task.inputs)[:, None], task.labels
    spread = (labels - labels.mean(dim=1, keepdim=True)).square().mean() if task.loss == "mse" else 0
    residuals = outputs - labels if task.loss == "mse" else outputs.softmax(dim=2) - labels
    numbers = {
        "mean_loss": (task.mean_loss(outputs[:, 0]) + spread).item(),
        "rms_residual": residuals.square().mean().sqrt().item(),
        "accuracy": (outputs.argmax(dim=2) == labels.argmax(dim=2)).double().mean().item(),
        "gradient_norm": matrices["gradient-outer"].trace().sqrt().item(),
    }
    if task.loss == "cross_entropy":
        numbers["mean_one_minus_p"] = -(residuals * labels).sum(dim=2).mean().item()
    for name, matrix in matrices.items():
        numbers[f"norm {name}"] = matrix.norm().item()
        numbers[f"trace {name}"] = matrix.trace().item()
    return numbers
