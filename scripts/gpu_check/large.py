"""Three eigenvalues of a decoder of 1.3 billion parameters, its basis in the host's memory: time, and peak of the card.

On the CPU a small decoder stands for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import spectra
from scripts.benchmarks.models import language_model, texts
from scripts.gpu_check.timing import Missing, offers, seconds
from spectra.run.request import Request

CARD = 80e9  # bytes, of the card that it has to fit
WIDE = {"n_layer": 24, "n_embd": 2048, "n_head": 16}
SMALL = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 100, "bos_token_id": None, "eos_token_id": None}


def rows(device: torch.device, numbers: dict) -> Iterator[str]:
    if not offers(Request, "basis"):
        raise Missing("basis")
    cuda = device.type == "cuda"
    torch.manual_seed(0)
    with device:
        model = language_model(**(WIDE if cuda else SMALL)).eval()
    tokens, following = (x.to(device) for x in (texts(8, 512, 50257) if cuda else texts(8, 16, 100)))
    size = sum(p.numel() for p in model.parameters())
    yield f"{size / 1e9:.2f} billion parameters, {tokens.numel():,} tokens, --tol 1e-2, basis on the host"
    yield f"{'':<10}{'seconds':>8}{'set-up':>8}{'products':>9}{'done':>6}{'peak, GB':>10}  largest eigenvalue"
    loss = spectra.CrossEntropy(class_dim=-1)
    data = [(tokens[i : i + 2], following[i : i + 2]) for i in range(0, len(tokens), 2)]
    for matrix in ("ggn", "hessian"):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        found: list[Any] = []
        taken = seconds(partial(solved, found, model, loss, data, matrix))
        pairs, peak = found[0], torch.cuda.max_memory_allocated() if cuda else 0
        numbers[matrix] = {
            "seconds": taken, "set-up": pairs.setup_seconds, "products": pairs.products, "peak": peak,
            "values": [float(x) for x in pairs.values], "converged": pairs.converged, "path": pairs.path,
        }  # fmt: skip
        fits = "" if peak < CARD else "  MORE THAN 80"
        yield (
            f"{matrix:<10}{taken:>8.1f}{pairs.setup_seconds:>8.1f}{pairs.products:>9}"
            f"{'yes' if pairs.converged else 'NO':>6}{peak / 1e9:>10.1f}  {float(pairs.values[0]):.4g}{fits}"
        )
        yield f"  {pairs.path}"


def solved(found: list[Any], *named) -> None:
    *problem, matrix = named
    found.append(spectra.eig(*problem, curvature=matrix, k=3, tolerance=1e-2, basis="host"))
