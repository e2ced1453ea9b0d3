"""One Hessian and one GGN product in a few rounds, everything at one precision: minutes on a GPU, where it is made for.

The unit is a gradient at the precision and determinism of our products (IEEE float32, deterministic algorithms), run
eagerly and as one CUDA graph; peers run under the same settings. Our product as one CUDA graph is what launches cost.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from scripts.benchmarks.problems import SHORT, Case
from scripts.benchmarks.reference import reference
from scripts.benchmarks.timing import alternate, ratio
from scripts.benchmarks.tools import SPECTRA, TOOLS, attempt, first_line, flat, gradient, release
from spectra.curvature.engine.differentiation import switched

PROBLEMS = ("mlp", "digits", "gpt", "vit", "resnet20", "resnet50")
MATRICES = ("hessian", "ggn")
BUDGET = 3.0  # seconds of alternation a matrix
MOST = 12  # rounds
SMALL = 5_000_000  # parameters, up to which errors are measured against float64
GRADIENT, GRAPH, DEFAULT = "gradient", "gradient, graph", "gradient, PyTorch's defaults"
OURS_GRAPH = "spectra, graph"
TIMED = (GRADIENT, GRAPH, SPECTRA, OURS_GRAPH)
PEERS = tuple(name for name in TOOLS if name != SPECTRA)
HEAD = ["ms", "gradient", "graph", "ours", "graph", "ours/g", "peer/o", "error", "set-up"]
WIDTHS = (-18, 9, 8, 8, 8, 7, 7, 7, 7)


def measure(case: Case, full: bool) -> dict[str, Any]:
    with precision():
        return {matrix: measure_matrix(case, matrix) for matrix in MATRICES}


@contextmanager
def precision(exact: bool = True) -> Iterator[None]:
    """That of our products, or PyTorch's own defaults: TF32 in convolutions, and any algorithm."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    wanted = [(cudnn, "deterministic", exact), (cudnn, "benchmark", False), (matmul, "fp32_precision", "ieee")]
    with switched([*wanted, (cudnn.conv, "fp32_precision", "ieee" if exact else "tf32")]):
        yield


def measure_matrix(case: Case, matrix: str) -> dict[str, Any]:
    vector = torch.randn(case.size, generator=torch.Generator().manual_seed(0)).to(case.parameters[0])
    attempts = {name: made for name in TOOLS if (made := attempt(name, case, matrix, vector))}
    running = {name: made.product for name, made in attempts.items() if made.product}
    calls: dict[str, Callable[[], Any]] = {name: partial(product, vector) for name, product in running.items()}
    calls |= {GRADIENT: partial(gradient, case), DEFAULT: partial(default_gradient, case)}
    failed = {name: made.error for name, made in attempts.items() if made.error}
    differing = {}
    if vector.is_cuda:
        for name, of in ((GRAPH, GRADIENT), (OURS_GRAPH, SPECTRA)):
            try:
                calls[name] = captured(calls[of])
                differing[name] = (calls[name]() - calls[of]()).abs().max().item()
            except Exception as error:  # what can't be captured is measured eagerly alone
                calls.pop(name, None)
                failed[name] = first_line(error)
    times = alternate(calls, BUDGET, most=MOST)
    exact = reference(case, matrix, vector) if case.size <= SMALL else None
    found = {
        "times_of_ours": {name: ratio(times[name], times[SPECTRA]) for name in times if SPECTRA in times},
        "relative_errors": {} if exact is None else {name: error_of(calls[name](), exact) for name in running},
        "setup_seconds": {name: made.setup_seconds for name, made in attempts.items()},
        "math_attention_by_hand": [name for name, made in attempts.items() if made.helped],
        "errors": failed,
        "differences_of_graphs": differing,
        "seconds": times,
    }
    if SPECTRA in running:
        ours = running[SPECTRA].__self__
        found |= {"path": ours.path, "kept_bytes": ours.kept_bytes}
    del attempts, running, calls
    free(vector)
    return found


def default_gradient(case: Case) -> Tensor:
    with precision(exact=False):
        return gradient(case)


def error_of(product: Any, exact: Tensor) -> float:
    return ((flat(product).double() - exact).norm() / exact.norm()).item()


def captured(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The call as one CUDA graph, after a few that make what it needs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def free(vector: Tensor) -> None:
    release()
    gc.collect()
    if vector.is_cuda:
        torch.cuda.empty_cache()


def row(problem: str, matrix: str, found: dict[str, Any]) -> list[str]:
    """The columns of HEAD: medians, and ratios round by round, of what ran eagerly."""
    times = found["seconds"]
    milliseconds = [f"{1e3 * median(times[name]):.2f}" if name in times else "" for name in TIMED]
    cost = ratio(times[SPECTRA], times[GRADIENT])["median"] if SPECTRA in times else None
    peers = [found["times_of_ours"][name]["median"] for name in PEERS if name in found["times_of_ours"]]
    error, setup = found["relative_errors"].get(SPECTRA), found["setup_seconds"].get(SPECTRA)
    rest = ((cost, ".2f"), (min(peers, default=None), ".2f"), (error, ".0e"), (setup, ".1f"))
    numbers = ["" if value is None else f"{value:{form}}" for value, form in rest]
    return [f"{SHORT[problem]} {matrix}", *milliseconds, *numbers]


def lines(problem: str, result: dict[str, Any]) -> Iterator[str]:
    """Rows for a terminal, under their head."""
    for cells in (HEAD, *(row(problem, matrix, found) for matrix, found in result.items())):
        yield "".join(
            f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)
        )
