"""What is kept: one JSON file, written whole as each part of each problem ends, with what it was measured on."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from spectra.atomic import write_atomically
from spectra.records.files import finite

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "PyHessian", "curvlinops-for-pytorch", "hessian-eigenthings")
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS")


def read(path: Path) -> dict[str, Any]:
    """{part: {problem: {"result": ..., "made": ...}}}"""
    return json.loads(path.read_text()) if path.exists() else {}


def result(everything: dict[str, Any], part: str, problem: str) -> dict[str, Any] | None:
    return everything.get(part, {}).get(problem, {}).get("result")


def product(everything: dict[str, Any], problem: str, matrix: str) -> dict[str, Any]:
    """What was measured of one product; empty where it was not."""
    return (result(everything, "products", problem) or {}).get(matrix, {})


def add(path: Path, part: str, problem: str, found: dict[str, Any], made: dict[str, Any]) -> None:
    everything = read(path)
    everything.setdefault(part, {})[problem] = {"made": made, "result": found}
    text = json.dumps(finite(everything), indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def made(device: torch.device, seconds: float) -> dict[str, Any]:
    """How, when, on what and from what sources a result was made."""
    return {
        "command": "bash scripts/bench " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": cuda() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
        "commit": os.environ.get("SPECTRA_COMMIT") or git("rev-parse", "HEAD"),  # a copy may come without .git
        "dirty": bool(git("status", "--porcelain", "--", "spectra", "scripts")),
    }


def cuda() -> dict[str, Any]:
    return {
        "devices": torch.cuda.device_count(),
        "memory": torch.cuda.get_device_properties(0).total_memory,
        "version": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git(*arguments: str) -> str:
    """What git prints; nothing where there is no git, or no repository."""
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()
