"""What is measured: every pair of matrices at every step of every run, as rows of tables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import torch

from scripts.fisher_is_hessian import law
from scripts.fisher_is_hessian.distances import pairs, point
from scripts.fisher_is_hessian.matrices import dense_matrices
from scripts.fisher_is_hessian.tables import Row, write
from scripts.fisher_is_hessian.tasks import LABELS, LOSSES, Sizes, make_network, make_task, training


def over_training(sizes: Sizes, loss: str, labels: str, seed: int) -> Iterator[tuple[list[Row], Row]]:
    """At each of the steps: rows of pairs, and the row of the point."""
    task = make_task(loss, labels, sizes, seed)
    network = make_network(sizes.width, seed)
    for step in training(network, task, sizes.steps[-1]):
        if step not in sizes.steps:
            continue
        row = {"loss": loss, "labels": labels, "seed": seed, "step": step}
        generator = torch.Generator().manual_seed(seed)
        matrices = dense_matrices(network, task, sizes.batch, generator)
        yield [{**row, **found} for found in pairs(matrices)], {**row, **point(network, task, matrices)}


def measure(sizes: Sizes, seeds: Iterable[int], out: Path) -> None:
    """Writes distances.csv and points.csv of training, and teacher.csv of the teachers' own parameters."""
    distances, points, teachers = [], [], []
    for loss, labels, seed in product(LOSSES, LABELS, seeds):
        start = time.perf_counter()
        for rows, row in over_training(sizes, loss, labels, seed):
            distances += rows
            points.append(row)
        print(f"{loss}, {labels}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    for loss, seed in product(LOSSES, seeds):
        teachers += law.rows(loss, sizes, seed)
    for name, rows in (("distances", distances), ("points", points), ("teacher", teachers)):
        write(out / f"{name}.csv", rows)
