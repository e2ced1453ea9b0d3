"""The time of a call on a device, for figures that are measured in a few seconds."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from statistics import median
from typing import Any

from scripts.benchmarks.timing import seconds

__all__ = ["Missing", "milliseconds", "offers", "seconds"]
ENOUGH = 0.5  # seconds a call is repeated for


class Missing(Exception):
    """This spectra has not what was to be measured."""


def milliseconds(call: Callable[[], object], most: int = 200) -> float:
    """The median of three means, in milliseconds, after calls that warm up."""
    call()
    once = seconds(call)
    repeats = max(1, min(most, int(ENOUGH / 3 / max(once, 1e-6))))
    return 1e3 * median(seconds(call, repeats) for _ in range(3))


def offers(function: Callable[..., Any], argument: str) -> bool:
    """Whether a function of spectra takes an argument of this name."""
    return argument in signature(function).parameters
