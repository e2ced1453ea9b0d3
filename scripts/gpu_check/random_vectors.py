"""Random vectors: the seconds of 10^8 entries on the device, and the same integers and signs as on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from scripts.gpu_check.timing import Missing, milliseconds

MANY, FEW = 10**8, 10**6
TARGET = 0.2  # seconds, of MANY normal numbers


def rows(device: torch.device, numbers: dict) -> Iterator[str]:
    try:
        from spectra import random_numbers as drawn
    except ImportError as error:
        raise Missing("spectra.random_numbers") from error
    cpu, keys = torch.device("cpu"), [3, 2**62 + 1]
    many = MANY if device.type == "cuda" else FEW
    for name, draw in (("normal numbers", drawn.normal_rows), ("signs", drawn.sign_rows)):
        taken = milliseconds(lambda draw=draw: draw(keys[:1], slice(0, many), torch.float32, device), most=3) / 1e3
        numbers[f"{name}, seconds"] = taken
        aim = f" (target {TARGET} s)" if many == MANY else ""
        yield f"{many:.0e} {name} in float32: {taken:.2f} s{aim}"
    for first in (0, 64 * 10**9):
        part = slice(first + 1, first + FEW)
        here, there = (drawn.sign_rows(keys, part, torch.float32, place).cpu() for place in (cpu, device))
        same = torch.equal(here, there)
        a, b = (drawn.normal_rows(keys, part, torch.float64, place).cpu() for place in (cpu, device))
        off = (a - b).abs().max().item()
        numbers[f"from {first}"] = {"signs equal": same, "normal numbers differ by": off}
        yield f"entries from {first:.0e}: signs {'equal' if same else 'DIFFER'}, normal numbers differ by {off:.0e}"
