"""Memory on ResNet-20: kept between products, and at the peak of a process, against that of a training step."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from scripts.benchmarks.problems import Case
from spectra.curvature.operator import Curvature

MEMORY = "1GiB"
FILE = "scripts/benchmarks/models.py"
EIG = [
    *("eig", "--model", f"{FILE}:resnet20", "--data", f"{FILE}:images", "--batch-size", "128", "--memory", MEMORY),
    *("-k", "1", "--device", "cpu", "--json"),
]


def measure(case: Case, full: bool) -> dict[str, Any]:
    """Peaks are of processes on the CPU, their libraries included; `largest` is a training step on all examples."""
    hessian = Curvature(case.problem(), "hessian", products=1000)
    hessian.prepare()
    return {
        "examples": case.examples,
        "kept_bytes": hessian.kept_bytes,
        "path": hessian.path,
        "training_step": peak("step", "128"),
        "largest_training_step": peak("step", str(case.examples)),
        "eig": peak("spectra", *EIG),
    }


def peak(*arguments: str) -> dict[str, Any]:
    """The high-water mark of a process's resident memory, in bytes, or the last line of its error."""
    command = [sys.executable, "-m", "scripts.benchmarks.peak", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    last = (ended.stderr.strip().splitlines() or [""])[-1]
    return json.loads(last) if last.startswith("{") else {"error_message": last}
