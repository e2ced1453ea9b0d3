"""Trains the machine, measures, and writes numbers, a table and figures."""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.benchmarks.record import git, installed, machine
from scripts.boltzmann_study import figures
from scripts.boltzmann_study.measure import LEADING, measure

OUT = Path("results/boltzmann")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/boltzmann", description=__doc__)
    parser.add_argument("--figures", action="store_true", help="measure nothing: figures of what is there")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: %(default)s")
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    if not options.figures:
        start, spent = time.perf_counter(), time.process_time()
        numbers, arrays = measure()
        how = made(time.perf_counter() - start, time.process_time() - spent)
        (out / "numbers.json").write_text(json.dumps({"made": how, **numbers}, indent=1) + "\n")
        np.savez_compressed(out / "arrays.npz", **{name: array.numpy() for name, array in arrays.items()})
        table(numbers["sampled"], out / "eigenvalues.csv")
    with np.load(out / "arrays.npz") as held:
        arrays = {name: torch.from_numpy(held[name]) for name in held.files}
    figures.save_all(json.loads((out / "numbers.json").read_text()), arrays, out)


def table(rows: list[dict[str, Any]], path: Path) -> None:
    """Each eigenvalue, and what is found along its eigenvector by each number of samples."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["rank", "exact", "samples_per_chain", "form", "standard_error", "eigenvalue_of_estimate"])
        for row in rows:
            ranks = [*range(1, LEADING + 1), *range(-1, -LEADING // 2 - 1, -1)]
            columns = (row[name] for name in ("exact", "forms", "form_errors", "eigenvalues"))
            for rank, exact, form, error, own in zip(ranks, *columns, strict=True):
                writer.writerow([rank, f"{exact:.6g}", row["count"], f"{form:.6g}", f"{error:.2g}", f"{own:.6g}"])


def made(seconds: float, cpu_seconds: float) -> dict[str, Any]:
    return {
        "command": "scripts/boltzmann",
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds),
        "cpu_seconds": round(cpu_seconds),
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in ("torch", "numpy", "scipy")},
        "commit": git("rev-parse", "HEAD"),
    }


main()
