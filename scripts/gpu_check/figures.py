"""The figures part by part, in one process: each is a file with `rows`, and has a time limit of its own.

A figure prints a table of a few lines. Where spectra lacks what is to be measured, its line says so; a figure that
fails or takes too long is cut, and the others follow.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

import torch

from scripts.benchmarks.timing import limited
from scripts.benchmarks.tools import first_line
from scripts.gpu_check.timing import Missing

Rows = Callable[[torch.device, dict], Iterator[str]]


@dataclass(frozen=True)
class Figure:
    module: str
    limit: float  # seconds
    what: str

    @property
    def rows(self) -> Rows:
        return import_module(f"scripts.gpu_check.{self.module}").rows


FIGURES = {  # by value
    "columns": Figure("columns", 60, "16 columns together; products twice, and by autograd"),
    "tasks": Figure("tasks", 50, "density and eig of the digits network, eig of GPT-2"),
    "set-up": Figure("set_up", 45, "set-up of ResNet-50, GPT-2 and ViT-B"),
    "large": Figure("large", 240, "eig -k 3 of a 1.3-billion decoder, basis on the host"),
    "random": Figure("random_vectors", 15, "10^8 random numbers; signs as on the CPU"),
    "precision": Figure("precision", 30, "tf32 and bf16: noise stated, error found, gain"),
    "compile": Figure("compilation", 150, "torch.compile of the second half: seconds and gain"),
}


@dataclass
class Found:
    figure: str
    status: str = "ok"
    seconds: float = 0.0
    rows: list[str] = field(default_factory=list)
    numbers: dict = field(default_factory=dict)  # for tables


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("names", nargs="*", default=list(FIGURES))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    device, start, found = torch.device(options.device), time.monotonic(), []
    kept = options.out / "figures.json"
    for name in options.names:
        found.append(measured(name, device, options.seconds - (time.monotonic() - start)))
        known = json.loads(kept.read_text()) if kept.exists() else {}
        kept.write_text(json.dumps(known | {name: asdict(found[-1])}, indent=1, default=str) + "\n")
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return int(any(one.status not in ("ok", "not there") for one in found))


def measured(name: str, device: torch.device, left: float) -> Found:
    """One figure, its rows printed as they come."""
    figure, found, start = FIGURES[name], Found(name), time.monotonic()
    print(f"{name}: {figure.what}", flush=True)
    limit = min(figure.limit, left)
    try:
        if limit < 5:
            raise TimeoutError("no time is left")
        with limited(limit):
            for row in figure.rows(device, found.numbers):
                found.rows.append(row)
                print(f"  {row}"[:80], flush=True)
    except Missing as error:
        found.status = "not there"
        print(f"  not in this spectra: {error}"[:80], flush=True)
    except TimeoutError as error:
        found.status = f"cut: {error}"
        print(f"  {found.status}"[:80], flush=True)
    except Exception as error:  # the other figures are still worth their time
        traceback.print_exc()
        found.status = f"failed: {first_line(error)}"
        print(f"  {found.status}"[:80], flush=True)
    found.seconds = time.monotonic() - start
    return found


if __name__ == "__main__":
    status = main()
    os._exit(status)  # whatever threads are left
