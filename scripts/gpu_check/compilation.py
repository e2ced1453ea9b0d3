"""torch.compile of the second half: the seconds that it takes, and its gain over the product as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from scripts.benchmarks.problems import SHORT, build
from scripts.benchmarks.tools import MANY
from scripts.gpu_check.timing import Missing, milliseconds, offers, seconds
from spectra.curvature.operator import Curvature


def rows(device: torch.device, numbers: dict) -> Iterator[str]:
    if not offers(Curvature.__init__, "compile"):
        raise Missing("compile")
    yield f"{'':<20}{'plain ms':>9}{'compiled':>9}{'gain':>6}{'apart':>7}{'seconds':>8}{'again':>7}"
    for name in ("gpt", "vit", "resnet20") if device.type == "cuda" else ("digits",):
        case = build(name, device)
        vector = torch.randn(case.size, generator=torch.Generator().manual_seed(0)).to(case.parameters[0])
        plain, compiled, once_more = (
            Curvature(case.problem(), "hessian", products=MANY, compile=wanted) for wanted in (False, True, True)
        )
        usual, taken, again = (seconds(one.prepare) for one in (plain, compiled, once_more))
        apart = ((compiled @ vector - plain @ vector).norm() / (plain @ vector).norm()).item()
        before, after = (milliseconds(partial(one.__matmul__, vector)) for one in (plain, compiled))
        numbers[name] = {
            "ms": before, "compiled, ms": after, "apart": apart, "seconds to compile": taken - usual,
            "seconds again": again - usual, "path": compiled.path,
        }  # fmt: skip
        yield (
            f"{SHORT[name] + ' hessian':<20}{before:>9.2f}{after:>9.2f}{before / after:>6.2f}{apart:>7.0e}"
            f"{taken - usual:>8.1f}{again - usual:>7.1f}"
        )
        yield f"  {compiled.path}"
