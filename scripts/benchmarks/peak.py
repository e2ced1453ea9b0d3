"""Run one thing in this process and print the high-water mark of its memory, as JSON on the last line of stderr.

python -m scripts.benchmarks.peak step EXAMPLES      one training step of ResNet-20
python -m scripts.benchmarks.peak spectra ...        the command line
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def step(examples: int) -> int:
    import torch

    from scripts.benchmarks import models

    model, (x, y) = models.resnet20(), models.images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[:examples]), y[:examples]).backward()
        optimizer.step()
    return 0


def high_water() -> int:
    """Bytes; `getrusage` would count what the parent had when it started us."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status")


def run(arguments: list[str]) -> int:
    if arguments[0] == "step":
        return step(int(arguments[1]))
    from spectra.cli import main

    try:
        main(arguments[1:])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


if __name__ == "__main__":
    status = run(sys.argv[1:])
    if status in (0, 1):  # 1: the products asked for were too few for all tolerances
        print(json.dumps({"peak_bytes": high_water()}), file=sys.stderr)
    sys.exit(status)
