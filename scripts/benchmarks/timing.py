"""Alternating timings: every candidate once a round, so that what else the machine does meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from signal import ITIMER_REAL, SIGALRM, setitimer, signal
from statistics import median

import torch

LEAST = 0.02  # seconds a measurement, by repetition


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], repeats: int = 1) -> float:
    """The mean time of a call."""
    synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronise()
    return (time.perf_counter() - start) / repeats


def alternate(
    calls: Mapping[str, Callable[[], object]], budget: float, fewest: int = 3, most: int = 60
) -> dict[str, list[float]]:
    """Seconds of each call, once a round, for rounds of about `budget` seconds in all, after one that is not counted.

    A call follows one of its own, as in an iteration: the memory that others have given back is not its debt.
    Every other round goes backwards, so that none always follows the same neighbour. Where one round takes the
    budget, the first counts too; and a call that alone takes it is not repeated.
    """
    first = {name: seconds(call) for name, call in calls.items()}
    slow = sum(first.values()) > budget
    times = {name: [once] if slow else [] for name, once in first.items()}
    repeats = {name: max(1, round(LEAST / max(once, 1e-6))) for name, once in first.items() if once <= budget}
    each = sum(first[name] * repeats[name] for name in repeats)
    rounds = fewest - 1 if slow else min(most, max(fewest, int(budget / each)))
    for i in range(rounds):
        for name in list(repeats) if i % 2 else reversed(repeats):
            calls[name]()
            times[name].append(seconds(calls[name], repeats[name]))
    return times


def ratio(times: list[float], unit: list[float]) -> dict[str, float]:
    """The median of ratios round by round, and their least and largest."""
    ratios = [a / b for a, b in zip(times, unit, strict=False)]
    return {"median": median(ratios), "least": min(ratios), "largest": max(ratios)}


@contextmanager
def limited(limit: float) -> Iterator[None]:
    """Raises TimeoutError inside, once `limit` seconds have passed."""

    def stop(*_):
        raise TimeoutError(f"stopped after {limit:.0f} s")

    before = signal(SIGALRM, stop)
    setitimer(ITIMER_REAL, limit)
    try:
        yield
    finally:
        setitimer(ITIMER_REAL, 0)
        signal(SIGALRM, before)
