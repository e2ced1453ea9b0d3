"""python -m scripts.benchmarks [--only PART ...] [--problem NAME ...]: measure, save, and make tables and figure."""

from __future__ import annotations

import argparse
import gc
import time
import traceback
import warnings
from importlib import import_module
from pathlib import Path

import torch

from scripts.benchmarks import quick, record, tools
from scripts.benchmarks.problems import PROBLEMS, build

PARTS = {  # of which problems
    "products": [name for name in PROBLEMS if name not in quick.LARGE],  # of which are a GPU's
    "eig": ["digits", "resnet20"],
    "trace": ["digits"],
    "density": ["digits"],
    "gram": ["mlp", "digits"],
    "layers": ["digits", "resnet20", "vit"],
    "memory": ["resnet20"],
    "scaling": ["mlp", "resnet20"],
    "quick": list(quick.PROBLEMS),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bash scripts/bench", description="spectra and its peers, side by side")
    usual = [part for part in PARTS if part != "quick"]
    parser.add_argument("--only", nargs="+", choices=PARTS, default=usual, metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--problem", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), metavar="NAME", help=", ".join(PROBLEMS)
    )
    parser.add_argument(
        "--full", action="store_true", help="more rounds and matrices; eig of ResNet-20 on all examples"
    )
    parser.add_argument("--quick", action="store_true", help="the part quick alone: few rounds, 2 minutes on a GPU")
    parser.add_argument("--compile", action="store_true", help="in the part quick, compiled gradients and products too")
    parser.add_argument("--tables", action="store_true", help="measure nothing: tables and figure of what is there")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), metavar="DIR")
    options = parser.parse_args()
    if options.quick:
        options.only = ["quick"]
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "benchmarks.json"
    if not options.tables:
        measure(options, kept)
    from scripts.benchmarks import figure, tables, targets

    everything = record.read(kept)
    if options.quick:
        (options.out / "quick.md").write_text(tables.quick_page(everything))
        return
    (options.out / "benchmarks.md").write_text(tables.page(everything))
    figure.save(everything, options.out / "benchmarks.png")
    print(targets.head(everything))


def measure(options: argparse.Namespace, kept: Path) -> None:
    warnings.simplefilter("ignore")  # PyHessian's graph of gradients, and what peers call that is deprecated
    device = torch.device(options.device)
    for part in options.only:
        for problem in (name for name in PARTS[part] if name in options.problem):
            start = time.perf_counter()
            try:
                how = {"compiled": options.compile} if part == "quick" else {}
                part_of = import_module(f"scripts.benchmarks.{part}")
                result = part_of.measure(build(problem, device), options.full, **how)
            except Exception:  # the other parts are still worth their time
                traceback.print_exc()
                continue
            taken = time.perf_counter() - start
            record.add(kept, part, problem, result, record.made(device, taken))
            print(f"{part} {problem}: {taken:.0f} s", flush=True)
            if part == "quick":
                print("\n".join(quick.lines(problem, result)), flush=True)
            tools.release()
            gc.collect()


main()
