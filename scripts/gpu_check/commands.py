"""Commands end to end in float64, on the device against the CPU: the same numbers, but for rounding."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmarks.tools import first_line
from spectra.cli import run
from spectra.spectrum.curves import wasserstein

FILE = Path(__file__).parent / "networks.py"
PROBLEMS = {
    "digits": "--model spectra.demo:mlp --data digits --samples 300",
    "convolution": f"--model {FILE}:convolution --data {FILE}:images",
    "transformer": f"--model {FILE}:Transformer --data {FILE}:tokens --loss cross_entropy?class_dim=-1",
}
COMMANDS = {
    "eig": "-k 3 --tol 1e-8 --curvature hessian --curvature fisher-mc --curvature gradient-covariance",
    "trace": "--method hutchinson --probes 8 --curvature hessian --curvature fisher-empirical",
    "density": "--steps 10 --probes 2 --curvature hessian --curvature fisher",
    "layers": "-k 1 --method hutchinson --rtol 1 --curvature hessian",
    "compare": "-k 2 --steps 6 --probes 2 --curvature hessian --curvature ggn",
    "landscape": "--along 1 --along random --points 5 --tol 1e-8 --curvature hessian",
    "step": "-k 3 --tol 1e-8 --curvature hessian --no-noise --ascent-steps 0",
}
TOLERANCE = 1e-6  # relative to the largest number of a kind; what the tolerances above leave is less
HEAD = f"{'command':<10} {'network':<12} {'deviation':>10} {'of':<15} {'device s':>9} {'CPU s':>7}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--out")  # what is to say fits the table
    options = parser.parse_args()
    table = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    good = True
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        good &= process(options.device, table)
        print(HEAD, file=table)
        for problem, named in PROBLEMS.items():
            for command, settings in COMMANDS.items():
                line = f"{command} {named} {settings} --dtype float64 --json"
                good &= compared(command, problem, line, options.device, table)
    table.close()
    return int(not good)


def process(device: str, table) -> bool:
    """A command as a user calls it: one JSON object, and nothing on standard error."""
    place = "cuda:0" if device == "cuda" else device  # by number, so that no note tells of other cards
    line = f"eig {PROBLEMS['digits']} -k 3 --curvature ggn --device {place} --json"
    done = subprocess.run([sys.executable, "-m", "spectra", *line.split()], capture_output=True, text=True)
    good = done.returncode == 0 and not done.stderr and "results" in json.loads(done.stdout)
    told = "exits 0 and says nothing else" if good else f"status {done.returncode}: {done.stderr.strip()[-300:]}"
    print(f"spectra eig --json as a process: {told}", file=table)
    return good


def compared(command: str, problem: str, line: str, device: str, table) -> bool:
    """Print a row, and whether all agrees. On the CPU alone another batch size rounds otherwise."""
    try:
        found, seconds = answer(f"{line} --device {device}" + (" --batch-size 37" if device == "cpu" else ""))
        expected, reference_seconds = answer(f"{line} --device cpu")
        worst, what = max(deviations(command, found, expected))
    except Exception as error:  # the other rows are still worth their time
        traceback.print_exc()
        print(f"{command:<10} {problem:<12} {first_line(error)[:56]}", file=table)
        return False
    verdict = "" if worst <= TOLERANCE else "  DIFFERS"
    print(
        f"{command:<10} {problem:<12} {worst:>10.0e} {what:<15} {seconds:>9.1f} {reference_seconds:>7.1f}{verdict}",
        file=table,
    )
    return worst <= TOLERANCE


def answer(line: str) -> tuple[dict[str, Any], float]:
    """What the command prints, run in this process, and how long it took."""
    start, printed = time.perf_counter(), os.dup(1)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), 1)
        try:
            status = run(line.split())
            sys.stdout.flush()
        finally:
            os.dup2(printed, 1)
            os.close(printed)
        file.seek(0)
        text = file.read()
    if status not in (0, 1):
        raise RuntimeError(f"status {status}; see log.txt")
    return json.loads(text), time.perf_counter() - start


def deviations(command: str, found: dict[str, Any], expected: dict[str, Any]) -> Iterator[tuple[float, str]]:
    """Of each kind of number, the largest difference over the largest number."""
    for what, ours, theirs in pairs_of_numbers(command, found, expected):
        a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
        yield float(np.abs(a - b).max() / np.abs(b).max()), what


def pairs_of_numbers(command: str, found: dict, expected: dict) -> Iterator[tuple[str, Any, Any]]:
    if command == "compare":
        pairs = zip(found["pairs"], expected["pairs"], strict=True)
        yield from (("distance", a["distance"]["value"], b["distance"]["value"]) for a, b in pairs)
    if command == "step":
        for what in ("best", "critical"):
            yield f"{what} step", *([d[what]["step"] for d in x["point"]["directions"]] for x in (found, expected))
    for a, b in zip(found["results"], expected["results"], strict=True):
        if command in ("eig", "compare"):
            yield "eigenvalues", a["eigenvalues"], b["eigenvalues"]
        elif command == "trace":
            yield "trace", a["trace"], b["trace"]
        elif command == "density":
            distance = wasserstein(*(np.array(x[key]) for x in (a, b) for key in ("nodes", "weights")))
            largest = np.abs(b["nodes"]).max()
            yield "distribution", largest + distance, largest
        elif command == "layers":
            yield "traces", *([block["trace"] for block in x["blocks"]] for x in (a, b))
            yield "eigenvalues", *([block["eigenvalues"][0] for block in x["blocks"]] for x in (a, b))
        elif command == "step":
            for what in ("curvature", "within"):
                yield what, *([one[what] for one in x["along"]] for x in (a, b))
            yield "share", *([one["share"] for one in x["along"]] for x in (a, b))
        else:
            for one, other in zip(a["lines"], b["lines"], strict=True):
                yield f"loss, {one['along']}", one["loss"], other["loss"]


if __name__ == "__main__":
    raise SystemExit(main())
