"""Whole tasks after loading: the density and ten eigenvalues of the digits network, two eigenvalues of GPT-2's GGN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import spectra
from scripts.benchmarks.problems import build
from scripts.gpu_check.timing import seconds


def rows(device: torch.device, numbers: dict) -> Iterator[str]:
    digits = build("digits", device).problem()
    yield f"{'':<46}{'whole':>6}{'set-up':>7}{'products':>9}{'aim':>7}"
    tasks = [
        ("digits, density, 10 probes of 80 steps", "0.4", lambda: spectra.density(digits, steps=80, probes=10)),
        ("digits, eig -k 10", "0.1", lambda: spectra.eig(digits, k=10)),
        ("digits, trace", "", lambda: spectra.trace(digits)),
    ]
    for name, target, task in tasks:
        yield from timed(name, target, task, numbers)
    if device.type == "cuda":
        language = build("gpt2", device).problem()
        task = lambda: spectra.eig(language, curvature="ggn", k=2)  # noqa: E731
        yield from timed("GPT-2 124M, eig -k 2 --curvature ggn", "5", task, numbers, times=1)


def timed(name: str, target: str, task: Callable[[], Any], numbers: dict, times: int = 2) -> Iterator[str]:
    """The first time, and again in the same process: what is loaded and decided once is then there."""
    for i in range(times):
        found: list[Any] = []
        whole = seconds(partial(kept, task, found))
        setup, products = found[-1].setup_seconds, found[-1].products
        again = ", again" if i else ""
        numbers[name + again] = {"seconds": whole, "set-up": setup, "products": products, "path": found[-1].path}
        aim = target if target and (i or times == 1) else ""
        yield f"{name + again:<46}{whole:>6.2f}{setup:>7.2f}{products:>9}{aim:>7}"


def kept(task: Callable[[], Any], found: list[Any]) -> None:
    found.append(task())
