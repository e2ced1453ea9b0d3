"""python -m scripts.gpu_check [OUT]: run the parts one after the other, and print a table that fits a terminal.

A part is a module: it prints its rows to standard output, everything else to standard error. It ends when its time is
over, at the latest with the budget of all, and the parts after it run whatever became of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import torch

from scripts.benchmarks import record

ROOT = Path(__file__).parents[2]
BUDGET = 530.0  # seconds
GRACE = 12.0  # seconds between the interrupt and the end of a part
LEAST = 15.0  # seconds, below which a part is not started


@dataclass(frozen=True)
class Part:
    module: str
    limit: float  # seconds
    arguments: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


PARTS = {  # the tests last: they may take what the others have left
    "convolutions": Part("scripts.gpu_check.convolutions", 80),
    "products": Part("scripts.benchmarks", 170, ("--quick",)),
    "commands": Part("scripts.gpu_check.commands", 90),
    "ranks": Part("scripts.gpu_check.ranks", 90),
    "tests": Part("scripts.gpu_check.tests", BUDGET, variables=(("OMP_NUM_THREADS", "1"),)),
}


@dataclass(frozen=True)
class Ran:
    part: str
    status: str  # ok, failed, cut, or not started
    seconds: float
    limit: float
    rows: list[str]

    @property
    def line(self) -> str:
        return f"{self.part}: {self.status}, {self.seconds:.0f} s of {self.limit:.0f}"


class Page:
    """What is printed, kept in a file line by line."""

    def __init__(self, path: Path):
        self.path = path
        path.write_text("")

    def show(self, line: str) -> None:
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpu-check", description="spectra on a CUDA machine")
    parser.add_argument("out", type=Path, nargs="?", default=Path("results/gpu"), metavar="OUT", help="folder")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="default: %(default).0f")
    options = parser.parse_args()
    start = time.monotonic()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA device here; --device cpu rehearses", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    page, log = Page(options.out / "check.txt"), options.out / "log.txt"
    log.write_text("")
    made = record.made(torch.device(options.device), 0.0) | {"command": f"scripts/gpu-check {' '.join(sys.argv[1:])}"}
    for line in heading(made):
        page.show(line)
    ran = []
    with tempfile.TemporaryDirectory() as commands:
        environment = surroundings(Path(commands))
        for name in options.only:
            left = options.budget - (time.monotonic() - start)
            page.show(f"\n--- {name} " + "-" * (75 - len(name)))
            limit, arguments = min(PARTS[name].limit, left), ["--device", options.device, "--out", str(options.out)]
            ran.append(run(name, limit, arguments, environment, page, log))
            page.show(f"    {ran[-1].line}")
            made["seconds"] = time.monotonic() - start
            text = json.dumps({"made": made, "parts": [asdict(one) for one in ran]}, indent=1)
            (options.out / "check.json").write_text(text + "\n")
    page.show("\n" + "; ".join(f"{one.part} {one.status}" for one in ran) + f": {made['seconds']:.0f} s in all")
    return int(any(one.status != "ok" for one in ran))


def heading(made: dict) -> list[str]:
    cuda = made.get("cuda") or {}
    card = f"{cuda['devices']} x {made['device']}, CUDA {cuda['version']}, cuDNN {cuda['cudnn']}" if cuda else "CPU"
    versions = ", ".join(f"{name} {made['versions'][name]}" for name in ("torch", "torchvision", "numpy", "scipy"))
    state = " with changes" if made["dirty"] else ""
    return [
        f"{card}; {made['cores']} cores",
        f"Python {made['python']}, {versions}",
        f"commit {made['commit'] or 'unknown'}{state}, {made['date']}",
    ]


def surroundings(commands: Path) -> dict[str, str]:
    """The environment of the parts: modules and a command `spectra` are found, though nothing is installed."""
    command = commands / "spectra"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m spectra "$@"\n')
    command.chmod(0o755)
    modules = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    path = os.pathsep.join([os.environ["PATH"], str(commands)])
    return {**os.environ, "PYTHONPATH": modules, "PATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "80"}


def run(name: str, limit: float, arguments: list[str], environment: dict[str, str], page: Page, log: Path) -> Ran:
    """One part in processes of its own, of which none is left when its time is over."""
    if limit < LEAST:
        return Ran(name, "not started", 0.0, max(limit, 0.0), [])
    part, start, rows = PARTS[name], time.monotonic(), []
    with log.open("a") as errors:
        print(f"\n===== {name}", file=errors, flush=True)
        process = subprocess.Popen(
            [sys.executable, "-m", part.module, *part.arguments, *arguments],
            cwd=ROOT,
            env=environment | dict(part.variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        reader = threading.Thread(target=copy, args=(process.stdout, page, rows), daemon=True)
        reader.start()
        status = ended(process, limit)
        reader.join(5)
    return Ran(name, status, time.monotonic() - start, limit, rows)


def ended(process: subprocess.Popen, limit: float) -> str:
    """Interrupt it, then kill it and all that it has started, where it takes longer."""
    status = "cut"
    try:
        status = "ok" if process.wait(limit - GRACE) == 0 else f"failed (status {process.returncode})"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return status


def copy(lines: IO[str], page: Page, rows: list[str]) -> None:
    with lines:
        for line in lines:
            rows.append(line.rstrip())
            page.show(rows[-1])


if __name__ == "__main__":
    sys.exit(main())
