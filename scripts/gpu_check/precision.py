"""Products of lower precision: their stated noise beside the error found, the gain, and eigenvalues against ieee."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import spectra
from scripts.benchmarks.problems import SHORT, build
from scripts.benchmarks.tools import MANY
from scripts.gpu_check.timing import Missing, milliseconds, offers
from spectra.curvature.operator import Curvature


def rows(device: torch.device, numbers: dict) -> Iterator[str]:
    if not offers(Curvature.__init__, "precision"):
        raise Missing("precision")
    yield f"{'':<16}{'ms':>8}{'gain':>6}{'error':>7}{'noise':>7}{'eig off by':>11}{'products':>9}{'ieee':>5}{'done':>5}"
    for name in ("mlp", "gpt", "resnet20") if device.type == "cuda" else ("digits",):
        case = build(name, device)
        vector = torch.randn(case.size, generator=torch.Generator().manual_seed(0)).to(case.parameters[0])
        exact, unit, values = None, None, None
        for precision in ("ieee", "tf32", "bf16"):
            try:
                operator = Curvature(case.problem(), "hessian", products=MANY, precision=precision)
                product = operator @ vector
            except spectra.SpectraError as error:
                yield f"{SHORT[name] + ' ' + precision:<16}{str(error)[:60]}"
                continue
            taken = milliseconds(partial(operator.__matmul__, vector), most=50)
            pairs = spectra.eig(case.problem(), k=2, precision=precision)
            if exact is None:
                exact, unit, values = product, taken, torch.as_tensor(pairs.values)
            error = ((product - exact).norm() / exact.norm()).item()
            off = (torch.as_tensor(pairs.values) - values).abs().max().item() / abs(float(values[0]))
            noise, polished = getattr(pairs, "noise", None), getattr(pairs, "ieee_products", None) or 0
            numbers[f"{name} {precision}"] = {"ms": taken, "error": error, "noise": noise, "eigenvalues off by": off}
            stated = "" if noise is None else f"{float(noise):.0e}"
            yield (
                f"{SHORT[name] + ' ' + precision:<16}{taken:>8.2f}{unit / taken:>6.2f}{error:>7.0e}{stated:>7}"
                f"{off:>11.0e}{pairs.products:>9}{polished:>5}{'yes' if pairs.converged else 'NO':>5}"
            )
