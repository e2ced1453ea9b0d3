"""One product of each tool, in gradients of the same data, with its error; and the floor under ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from scripts.benchmarks import floor
from scripts.benchmarks.problems import Case
from scripts.benchmarks.reference import deviation, reference
from scripts.benchmarks.timing import alternate, ratio
from scripts.benchmarks.tools import SPECTRA, TOOLS, attempt, first_line, flat, gradient, release

MATRICES = ("hessian", "ggn")
MORE = ("fisher-mc", "fisher-empirical")
BUDGET = 12.0  # seconds of alternation a matrix


def measure(case: Case, full: bool) -> dict[str, Any]:
    if full:
        return {matrix: measure_matrix(case, matrix, 5 * BUDGET) for matrix in MATRICES + MORE}
    return {matrix: measure_matrix(case, matrix, BUDGET) for matrix in MATRICES}


def measure_matrix(case: Case, matrix: str, budget: float) -> dict[str, Any]:
    vector = torch.randn(case.size, generator=torch.Generator().manual_seed(0)).to(case.parameters[0])
    attempts = {name: made for name in TOOLS if (made := attempt(name, case, matrix, vector))}
    running = {name: made.product for name, made in attempts.items() if made.product}
    calls = {name: partial(product, vector) for name, product in running.items()}
    bottom, run = floor_of(case, matrix)
    times = alternate({"gradient": partial(gradient, case), **calls, **run}, budget)
    exact = reference(case, matrix, vector)
    tools = {
        name: {"error_message": made.error, "math_attention_by_hand": made.helped} for name, made in attempts.items()
    }
    for name, call in calls.items():
        tools[name] |= {
            "relative_error": ((flat(call()).double() - exact).norm() / exact.norm()).item(),
            "setup_seconds": attempts[name].setup_seconds,
            "gradients": ratio(times[name], times["gradient"]),
            "times_of_ours": ratio(times[name], times[SPECTRA]),
        }
    if run:
        bottom |= {"gradients": ratio(times["floor"], times["gradient"]), "ours": ratio(times[SPECTRA], times["floor"])}
    release()
    ours = running[SPECTRA].__self__
    return {
        "tools": tools,
        "floor": bottom,
        "deviation_of_the_reference": deviation(case, matrix, vector),
        "path": ours.path,
        "kept_bytes": ours.kept_bytes,
        "seconds": times,
    }


def floor_of(case: Case, matrix: str) -> tuple[dict[str, Any], dict[str, Callable[[], None]]]:
    """What is known of the floor, and the call to time, where the product can be traced."""
    known = {"multiplications": floor.required(case, matrix)}
    try:
        run = floor.floor(case, matrix)
    except Exception as error:
        return known | {"error_message": first_line(error)}, {}
    return known | {"multiplications_run": floor.multiplications(run)}, {"floor": run}
