"""python -m scripts.gpu_check [OUT]: run the parts one after the other, and print a table that fits a terminal.

A part is a module: it prints its rows to standard output, everything else to standard error. It ends when its time is
over, at the latest when the budget of all is but for what later parts need at least; those run whatever became of it.
The figures are one part, so that PyTorch is loaded once for all; each can be named by itself.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import torch

from scripts.benchmarks import record
from scripts.gpu_check.figures import FIGURES

ROOT = Path(__file__).parents[2]
BUDGET = 530.0  # seconds
GRACE = 12.0  # seconds between the interrupt and the end of a part
LEAST = 15.0  # seconds, below which a part is not started


@dataclass(frozen=True)
class Part:
    module: str
    limit: float  # seconds
    what: str = ""
    least: float = 0.0  # seconds, which earlier parts leave to it
    arguments: tuple[str, ...] = ()
    rehearsed: tuple[str, ...] = ()  # arguments on the CPU


QUICK = ("--quick", "--problem")
PARTS = {  # by value; the tests last: they take what the others have left
    "figures": Part("scripts.gpu_check.figures", 200),
    "products": Part(
        "scripts.benchmarks", 110, "products of spectra and peers, small problems", 0,
        (*QUICK, "mlp", "digits", "gpt", "vit", "resnet20"), rehearsed=(*QUICK, "digits"),
    ),
    "large": Part("scripts.gpu_check.figures", 252, FIGURES["large"].what, 0, ("large",), rehearsed=("large",)),
    "commands": Part("scripts.gpu_check.commands", 95, "commands in float64 against the CPU", 40),
    "ranks": Part("scripts.gpu_check.ranks", 70, "torchrun with NCCL against one process", 45),
    "products-large": Part(
        "scripts.benchmarks", 200, "products of ResNet-50, GPT-2 and ViT-B", 0,
        (*QUICK, "resnet50", "gpt2", "vitb"), rehearsed=(*QUICK, "digits"),
    ),
    "products-compiled": Part(
        "scripts.benchmarks", 300, "GPT's products, all compiled too", 0,
        ("--compile", *QUICK, "gpt"), rehearsed=(*QUICK, "digits"),
    ),
    "convolutions": Part("scripts.gpu_check.convolutions", 80, "where the time of ResNet-20's products goes"),
    "tests": Part("scripts.gpu_check.tests", BUDGET, "the tests, by a seed as many as there is time for", 130),
}  # fmt: skip
TOGETHER = tuple(name for name in FIGURES if name not in PARTS)  # figures that one process measures
USUAL = ("columns", "tasks", "set-up", "random", "precision", "products", "commands", "ranks", "tests")


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
    names = [*TOGETHER, *(name for name in PARTS if name != "figures")]
    parser.add_argument("--only", nargs="+", choices=names, default=USUAL, metavar="PART", help=", ".join(names))
    parser.add_argument("--list", action="store_true", help="the parts, with their limits in seconds")
    parser.add_argument("--seed", type=int, default=0, help="chooses the tests that come first")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="default: %(default).0f")
    options = parser.parse_args()
    start = time.monotonic()
    if options.list:
        print("\n".join(listed()))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check: torch finds no CUDA device here; --device cpu rehearses", file=sys.stderr)
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
        waiting = parts_of(options.only)
        while waiting:
            name = next(iter(waiting))
            part, figures = PARTS[name], waiting.pop(name)
            own = part.rehearsed if options.device == "cpu" else part.arguments
            arguments = [*figures, *own, "--device", options.device, "--out", str(options.out)]
            left = options.budget - (time.monotonic() - start) - sum(PARTS[later].least for later in waiting)
            limit = min(part.limit, left)
            page.show(f"\n--- {name} " + "-" * (75 - len(name)))
            if part.module.endswith(("figures", "tests")):
                arguments += ["--seconds", f"{limit - GRACE:.0f}"]
            if name == "tests":
                arguments += ["--seed", str(options.seed)]
            ran.append(run(name, limit, arguments, environment, page, log))
            page.show(f"    {ran[-1].line}")
            made["seconds"] = time.monotonic() - start
            text = json.dumps({"made": made, "parts": [asdict(one) for one in ran]}, indent=1)
            (options.out / "check.json").write_text(text + "\n")
    page.show("\n" + "; ".join(f"{one.part} {one.status}" for one in ran) + f": {made['seconds']:.0f} s in all")
    return int(any(one.status != "ok" for one in ran))


def parts_of(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The parts that these names are of, in their order, with their own arguments: figures are arguments of one."""
    figures = tuple(name for name in names if name in TOGETHER)
    parts = {"figures": figures} if figures else {}
    return parts | {name: () for name in PARTS if name in names}


def listed() -> list[str]:
    """A line for each part; a star where it runs unless others are named."""
    everything = [(name, FIGURES[name]) for name in TOGETHER] + [*PARTS.items()][1:]
    lines = (f"{name:<18}{part.limit:>3.0f} s  {part.what}" for name, part in everything)
    return [("* " if name in USUAL else "  ") + line for (name, _), line in zip(everything, lines, strict=True)]


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
            [sys.executable, "-m", part.module, *arguments],
            cwd=ROOT,
            env=environment | ({"OMP_NUM_THREADS": "1"} if name == "tests" else {}),
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
