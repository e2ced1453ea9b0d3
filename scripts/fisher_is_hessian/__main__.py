"""Trains, measures, checks, and writes tables, figures and the page; `--page` writes the last two again."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks.record import git, installed, machine
from scripts.fisher_is_hessian import check, page, run
from scripts.fisher_is_hessian.tasks import Sizes

SEEDS = range(3)
OUT = Path("results/when-fisher-is-hessian")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/when-fisher-is-hessian", description=__doc__)
    parser.add_argument("--page", action="store_true", help="measure nothing: figures and page of what is there")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: %(default)s")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "record.json"
    if not options.page:
        start, spent = time.perf_counter(), time.process_time()
        run.measure(Sizes(), SEEDS, options.out)
        checks = check.measure(Sizes())
        how = made(time.perf_counter() - start, time.process_time() - spent)
        kept.write_text(json.dumps({"made": how, "checks": checks}, indent=1) + "\n")
    page.save(options.out, json.loads(kept.read_text()))


def made(seconds: float, cpu_seconds: float) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in ("torch", "numpy")},
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", "spectra", "scripts")),
    }


main()
