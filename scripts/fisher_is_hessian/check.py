"""The same matrices as `spectra` has them: all columns by its products, and the distances that `compare` estimates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor, nn

import spectra
from scripts.fisher_is_hessian.distances import pair
from scripts.fisher_is_hessian.matrices import dense_matrices, order
from scripts.fisher_is_hessian.tables import Row
from scripts.fisher_is_hessian.tasks import Sizes, Task, make_network, make_task, training
from spectra.comparison.comparison import compare
from spectra.krylov.dense import dense_matrix

NAMES = {name: name for name in ("hessian", "ggn", "fisher", "fisher-empirical", "fisher-batch")}
NAMES["gradient-outer"] = "fisher-batch"  # of one batch that holds all examples
LOSSES = {"cross_entropy": spectra.CrossEntropy, "mse": spectra.MeanSquaredError}
WHOLE = (("cross_entropy", "random", 32), ("mse", "clean", 100))  # loss, labels, step
ESTIMATED = (("cross_entropy", "teacher", 1000), ("mse", "clean", 100))
COMPARED = ("hessian", "ggn", "fisher-empirical", "fisher-batch")
NUMBERS = {  # as `distances.pair` and as the comparison name them
    "distance": "distance",
    "distance_at_best_scale": "scaled_distance",
    "cosine": "cosine",
    "best_scale": "scale",
}


def measure(sizes: Sizes) -> dict[str, list[Row]]:
    """`whole`: the error of each matrix; `estimated`: numbers of pairs beside their estimates and standard errors."""
    whole, estimated = [], []
    for point in WHOLE:
        found = errors(*trained(sizes, *point), sizes.batch)
        whole += [{**described(point), "matrix": name, "error": error} for name, error in found.items()]
    for point in ESTIMATED:
        estimated += [{**described(point), **row} for row in estimates(*trained(sizes, *point), sizes.batch)]
    return {"whole": whole, "estimated": estimated}


def described(point: tuple[str, str, int]) -> Row:
    return dict(zip(("loss", "labels", "step"), point, strict=True))


def trained(sizes: Sizes, loss: str, labels: str, wanted: int) -> tuple[nn.Module, Task]:
    """The network of the first seed at a step."""
    task, network = make_task(loss, labels, sizes, 0), make_network(sizes.width, 0)
    next(step for step in training(network, task, sizes.steps[-1]) if step == wanted)
    return network, task


def operators(network: nn.Module, task: Task, batch: int) -> dict[str, spectra.Curvature]:
    """Every example by itself, inputs as often as they have labels, in the order of the batches of the first seed."""
    examples = order(task, torch.Generator().manual_seed(0))
    inputs = task.inputs[examples // task.labels.shape[1]]
    targets = task.labels.flatten(0, 1)[examples]
    if task.loss == "cross_entropy":
        targets = targets.argmax(dim=1)

    def problem(size: int) -> spectra.Problem:
        return spectra.Problem(network, LOSSES[task.loss](), spectra.cut_batches(inputs, targets, examples, size))

    sizes = {"fisher-batch": batch}
    return {name: spectra.Curvature(problem(sizes.get(name, task.examples)), of) for name, of in NAMES.items()}


def dense(network: nn.Module, task: Task, batch: int) -> Mapping[str, Tensor]:
    return dense_matrices(network, task, batch, torch.Generator().manual_seed(0))


def errors(network: nn.Module, task: Task, batch: int) -> dict[str, float]:
    """|A - B| / |A| of each matrix (A) and that which products of spectra give (B)."""
    matrices = dense(network, task, batch)
    found = {name: dense_matrix(operator) for name, operator in operators(network, task, batch).items()}
    return {name: pair(matrices[name], b)["distance"] for name, b in found.items()}


def estimates(network: nn.Module, task: Task, batch: int, probes: int = 16) -> list[Row]:
    """Of every pair of COMPARED and every number: exact, estimated by so many probes, standard error."""
    matrices = dense(network, task, batch)
    found = {name: operator for name, operator in operators(network, task, batch).items() if name in COMPARED}
    comparison = compare(found, steps=0, probes=probes, generator=torch.Generator().manual_seed(0))
    rows = []
    for a, b in combinations(COMPARED, 2):
        exact, estimated = pair(matrices[a], matrices[b]), comparison.pair(a, b)
        for name, theirs in NUMBERS.items():
            value, error = getattr(estimated, theirs)
            rows.append({"a": a, "b": b, "number": name, "exact": exact[name], "estimate": value, "error": error})
    return rows


def within(rows: list[Row], errors: float) -> float:
    """The share of estimates that lie within so many standard errors."""
    near = [math.isclose(row["exact"], row["estimate"], abs_tol=errors * row["error"], rel_tol=1e-9) for row in rows]
    return sum(near) / len(near)
