"""One and two ranks of one thread: time and bytes moved of a product, time and basis of a Lanczos step, of a rank.

Run by torchrun's environment (`python -m scripts.benchmarks.scaling PROBLEM`), it is one rank of them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benchmarks.problems import Case, build

RANKS = (1, 2)
MATRIX = "hessian"
STEPS = 10  # of Lanczos
SENT = Path("/sys/class/net/lo/statistics/tx_bytes")  # by all ranks of this machine, and whatever else talks to itself


def measure(case: Case, full: bool) -> dict[str, Any]:
    return {str(count): run(case.name, count, 10 if full else 4) for count in RANKS}


def run(problem: str, count: int, rounds: int) -> dict[str, Any]:
    """What rank 0 of so many has measured, or the last line of its error."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    command = [sys.executable, "-m", "scripts.benchmarks.scaling", problem, str(rounds)]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    (first, *_), errors = zip(*[rank.communicate() for rank in ranks], strict=True)
    found, lines = (first.strip().splitlines() or [""])[-1], "".join(errors).strip().splitlines()
    return json.loads(found) if found.startswith("{") else {"error_message": (lines or ["nothing told"])[-1]}


def one_rank(problem: str, rounds: int) -> dict[str, Any]:
    import torch

    from spectra.cluster import ranks
    from spectra.cluster.distributed import distributed, join
    from spectra.curvature.operator import Curvature
    from spectra.krylov.lanczos import begin
    from spectra.operator import random_vectors
    from spectra.problem.problem import Processes
    from spectra.vectors import local

    cpu = torch.device("cpu")
    shared = join(cpu) if ranks.world() > 1 else Processes()
    case = build(problem, cpu)
    matrix = Curvature(replace(case.problem(), processes=shared), MATRIX, products=1000)
    operator = distributed(matrix)
    (start,) = random_vectors(operator, 1, torch.Generator().manual_seed(0))

    def product() -> None:
        operator @ start

    def timed(call) -> float:
        shared.least(0)  # all begin together
        begun = time.perf_counter()
        call()
        shared.least(0)
        return time.perf_counter() - begun

    product()
    products = [timed(product) for _ in range(2 * rounds)]
    state = begin(operator, start, rows=STEPS + 1)
    steps = [timed(lambda: state.extend(operator)) for _ in range(STEPS)]
    moved = min(sent(product, shared) for _ in range(rounds)) if shared.count > 1 else 0  # others can only add
    n, size = matrix.shape[0], matrix.dtype.itemsize
    ranks.finish()
    return {
        "examples": case.examples,
        "parameters": n,
        "path": matrix.path,
        "product_seconds": products,
        "step_seconds": steps,
        "basis_bytes": local(state.basis).nbytes,
        "basis_vectors": state.size,
        "moved_bytes": moved / shared.count,
        "moved_bytes_on_paper": 2 * n * size * (shared.count - 1) / shared.count,
    }


def sent(call, shared) -> float:
    """Bytes that a call sends, of all ranks together, and the little by which they wait for each other."""
    if not SENT.exists():
        return float("nan")
    shared.least(0)
    before = int(SENT.read_text())
    call()
    shared.least(0)
    return int(SENT.read_text()) - before


def rows(found: dict[str, Any]) -> list[str]:
    """The rows of a table, one for a number of ranks."""
    alone = median(found["1"]["product_seconds"])
    lines = []
    for count, one in found.items():
        if "error_message" in one:
            lines.append(f"| {count} | {one['error_message']} | | | | |")
            continue
        product, step, mib = median(one["product_seconds"]), median(one["step_seconds"]), 2**20
        basis = f"{one['basis_bytes'] / one['basis_vectors'] / mib:.3f}"
        moved = f"{one['moved_bytes'] / mib:.3f}, {one['moved_bytes_on_paper'] / mib:.3f}" if count != "1" else "0, 0"
        lines.append(f"| {count} | {product:.4f} | {alone / product:.2f} | {step:.4f} | {basis} | {moved} |")
    return lines


HEAD = [
    "| ranks of one thread | s a product | times as fast | s a Lanczos step | basis of a rank, MiB a vector |"
    " moved by a rank a product, and on paper, MiB |",
    "| --- | --- | --- | --- | --- | --- |",
]

if __name__ == "__main__":
    print(json.dumps(one_rank(sys.argv[1], int(sys.argv[2]))), flush=True)
    os._exit(0)  # threads that talk to other ranks may not be heard out
