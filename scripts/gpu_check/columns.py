"""Sixteen columns together against sixteen products, and the product as it comes against one by autograd itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from scripts.benchmarks.problems import SHORT, build
from scripts.benchmarks.tools import MANY
from scripts.gpu_check.timing import milliseconds
from spectra.curvature.operator import Curvature

WIDTH = 16
TARGETS = {"mlp": 4, "digits": 6, "gpt": 2, "vit": 2}


def rows(device: torch.device, numbers: dict) -> Iterator[str]:
    yield f"{'ms a product':<18}{'alone':>8}{'of 16':>8}{'gain':>6}{'aim':>5}{'apart':>7}{'twice':>7}{'eager':>7}"
    for name, target in TARGETS.items() if device.type == "cuda" else [("digits", 6)]:
        case = build(name, device)
        for matrix in ("hessian", "ggn"):
            operator = Curvature(case.problem(), matrix, products=MANY)
            generator = torch.Generator().manual_seed(0)
            vectors = torch.randn(case.size, WIDTH, generator=generator).to(case.parameters[0])
            vector = vectors[:, 0].contiguous()
            alone, together = operator @ vector, operator @ vectors
            apart = ((together[:, 0] - alone).norm() / alone.norm()).item()
            again = torch.equal(operator @ vector, alone) and torch.equal(operator @ vectors, together)
            plain = Curvature(case.problem(), matrix, products=0, check=False) @ vector
            eager = ((plain - alone).norm() / alone.norm()).item()
            one = milliseconds(partial(operator.__matmul__, vector))
            each = milliseconds(partial(operator.__matmul__, vectors)) / WIDTH
            numbers[f"{name} {matrix}"] = {
                "ms alone": one, "ms of 16": each, "columns and single products differ by": apart,
                "twice the same": again, "autograd's differs by": eager, "path": operator.path,
                "choices": dict(getattr(getattr(operator, "choices", None), "made", {})),
            }  # fmt: skip
            same = "same" if again else "DIFFERS"
            yield (
                f"{SHORT[name] + ' ' + matrix:<18}{one:>8.3f}{each:>8.3f}{one / each:>6.1f}{target:>5}{apart:>7.0e}"
                f"{same:>7}{eager:>7.0e}"
            )
        yield f"  {operator.path}"
