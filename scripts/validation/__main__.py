"""Compares our numbers with published ones and closed forms: prints the table and writes results/validation/."""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks.record import git, machine
from scripts.validation.gallery import TITLES, save, text
from scripts.validation.row import Row

OUT = Path("results/validation")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/validate", description=__doc__)
    only = "one group alone, printed and not written; repeatable: " + ", ".join(TITLES)
    parser.add_argument("--only", action="append", choices=list(TITLES), metavar="NAME", help=only)
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: %(default)s")
    options = parser.parse_args()
    start, rows = time.perf_counter(), {}
    for name in options.only or TITLES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows[name] = measured(name)
    print(text(rows))
    if not options.only:
        save(rows, how(time.perf_counter() - start), options.out)


def measured(name: str) -> list[Row]:
    """The rows of one group."""
    return list(import_module(f"scripts.validation.{name}").rows())


def how(seconds: float) -> dict[str, Any]:
    """How the gallery was made."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": seconds,
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "commit": git("rev-parse", "--short", "HEAD"),
    }


if __name__ == "__main__":
    main()
