"""Commands over as many ranks as there are cards (NCCL; on the CPU two, gloo), against one process."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch

from scripts.benchmarks.tools import first_line
from scripts.gpu_check.commands import PROBLEMS, TOLERANCE, deviations

COMMANDS = {
    "eig": "-k 3 --tol 1e-8 --curvature hessian --curvature ggn",
    "trace": "--rtol 0.1 --curvature hessian",
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--out")  # what is to say fits the table
    options = parser.parse_args()
    count = torch.cuda.device_count() if options.device == "cuda" else 2
    launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "spectra"]
    print(f"{count} rank{'s' * (count > 1)}, {'NCCL' if options.device == 'cuda' else 'gloo'}", flush=True)
    good = True
    for command, settings in COMMANDS.items():
        line = f"{command} {PROBLEMS['transformer']} {settings} --dtype float64 --device {options.device} --json"
        try:
            expected, seconds = answer(["spectra", *line.split()])
            found, ranks_seconds = answer([*launch, *line.split()])
            worst, what = max(deviations(command, found, expected))
        except Exception as error:  # the other command is still worth its time
            print(f"{command:<8} {first_line(error)[:70]}", flush=True)
            good = False
            continue
        verdict = "" if worst <= TOLERANCE else "  DIFFERS"
        print(
            f"{command:<8} {worst:8.0e} {what:<12} {ranks_seconds:6.1f} s, one process {seconds:6.1f} s{verdict}",
            flush=True,
        )
        good &= worst <= TOLERANCE
    return int(not good)


def answer(command: list[str]) -> tuple[dict[str, Any], float]:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    print(done.stderr, file=sys.stderr, flush=True)
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout), time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main())
