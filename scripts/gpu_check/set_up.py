"""Set-up of large networks: the seconds until the first product, for the first matrix, the second, and once more."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from scripts.benchmarks.problems import SHORT, build
from scripts.benchmarks.tools import MANY
from scripts.gpu_check.timing import seconds
from spectra.curvature.operator import Curvature

TARGET = 2.0  # seconds
ORDER = (("hessian", "hessian"), ("ggn", "then ggn"), ("hessian", "hessian again"))


def rows(device: torch.device, numbers: dict) -> Iterator[str]:
    yield f"{'seconds (target ' + format(TARGET, 'g') + ')':<24}" + "".join(f"{what:>15}" for _, what in ORDER)
    for name in ("resnet50", "gpt2", "vitb") if device.type == "cuda" else ("digits",):
        case, taken = build(name, device), []
        for matrix, what in ORDER:
            operator = Curvature(case.problem(), matrix, products=MANY)
            taken.append(seconds(operator.prepare))
            numbers[f"{name}, {what}"] = {"seconds": taken[-1], "path": operator.path}
            del operator
        yield f"{SHORT[name]:<24}" + "".join(f"{one:>15.1f}" for one in taken)
        del case
        if device.type == "cuda":
            torch.cuda.empty_cache()
