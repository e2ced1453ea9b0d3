"""One Hessian and one GGN product in a few rounds, everything at one precision: minutes on a GPU, where it is made for.

The unit is a gradient at the precision and determinism of our products (IEEE float32, deterministic algorithms): run
eagerly, as one CUDA graph, and with `compiled` by torch.compile too. Peers run under the same settings, as their
documentation shows them, and with `compiled` once more under torch.compile, where that takes them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from statistics import median
from typing import Any

import torch
from torch import Tensor

from scripts.benchmarks.problems import SHORT, Case
from scripts.benchmarks.reference import reference
from scripts.benchmarks.timing import alternate, ratio
from scripts.benchmarks.tools import MANY, SPECTRA, TOOLS, attempt, first_line, flat, gradient, release
from spectra.curvature.engine.differentiation import switched
from spectra.curvature.operator import Curvature

LARGE = ("resnet50", "gpt2", "vitb")  # too large for a CPU
PROBLEMS = ("mlp", "digits", "gpt", "vit", "resnet20", *LARGE)
MATRICES = ("hessian", "ggn")
BUDGET = 3.0  # seconds of alternation a matrix
MOST = 12  # rounds
SMALL = 5_000_000  # parameters, up to which errors are measured against float64, else against our own product
RIGHT = 1e-2  # relative: a product that is further off is not the matrix's
GRADIENT, DEFAULT = "gradient", "gradient, PyTorch's defaults"
GRAPH, COMPILED = "gradient, graph", "gradient, compiled"
OURS_GRAPH, OURS_COMPILED = "spectra, graph", "spectra, compiled"
TIMED = (GRADIENT, GRAPH, COMPILED, SPECTRA, OURS_COMPILED)
PEERS = tuple(name for name in TOOLS if name != SPECTRA)
HEAD = ["ms: gradient, ours", "eager", "graph", "comp.", "ours", "comp.", "o/g", "peer/o", "error", "set-up"]
WIDTHS = (-18, 7, 7, 7, 7, 7, 6, 7, 7, 7)


def measure(case: Case, full: bool, compiled: bool = False) -> dict[str, Any]:
    with precision():
        return {matrix: measure_matrix(case, matrix, compiled) for matrix in MATRICES}


@contextmanager
def precision(exact: bool = True) -> Iterator[None]:
    """That of our products, or PyTorch's own defaults: TF32 in convolutions, and any algorithm."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    wanted = [(cudnn, "deterministic", exact), (cudnn, "benchmark", False), (matmul, "fp32_precision", "ieee")]
    with switched([*wanted, (cudnn.conv, "fp32_precision", "ieee" if exact else "tf32")]):
        yield


def measure_matrix(case: Case, matrix: str, compiled: bool) -> dict[str, Any]:
    vector = torch.randn(case.size, generator=torch.Generator().manual_seed(0)).to(case.parameters[0])
    attempts = {name: made for name in TOOLS if (made := attempt(name, case, matrix, vector))}
    running = {name: made.product for name, made in attempts.items() if made.product}
    products: dict[str, Callable[[], Any]] = {name: partial(product, vector) for name, product in running.items()}
    calls = products | {GRADIENT: partial(gradient, case), DEFAULT: partial(default_gradient, case)}
    failed = {name: made.error for name, made in attempts.items() if made.error}
    setup = {name: made.setup_seconds for name, made in attempts.items()}
    differing = {}
    ours = running[SPECTRA].__self__ if SPECTRA in running else None
    if compiled:
        for name, call in (compiled_calls(case, matrix, vector, running)).items():
            try:
                start = time.perf_counter()
                calls[name] = call()
                flat(calls[name]())
                setup[name] = time.perf_counter() - start
                products |= {} if name == COMPILED else {name: calls[name]}
            except Exception as error:  # what can't be compiled is measured as it is alone
                calls.pop(name, None)
                failed[name] = first_line(error)
    if vector.is_cuda:
        graphs = {GRAPH: GRADIENT} | ({OURS_GRAPH: SPECTRA} if ours and "graph" not in ours.path else {})
        for name, of in graphs.items():
            try:
                calls[name] = captured(calls[of])
                differing[name] = (calls[name]() - calls[of]()).abs().max().item()
            except Exception as error:  # what can't be captured is measured eagerly alone
                calls.pop(name, None)
                failed[name] = first_line(error)
    times = alternate(calls, BUDGET, most=MOST)
    exact = reference(case, matrix, vector) if case.size <= SMALL else None
    if exact is None and SPECTRA in products:
        exact = flat(products[SPECTRA]()).double()
    found = {
        "times_of_ours": {name: ratio(times[name], times[SPECTRA]) for name in times if SPECTRA in times},
        "relative_errors": {} if exact is None else {name: error_of(call(), exact) for name, call in products.items()},
        "errors_against": "float64" if case.size <= SMALL else "spectra",
        "setup_seconds": setup,
        "math_attention_by_hand": [name for name, made in attempts.items() if made.helped],
        "errors": failed,
        "differences_of_graphs": differing,
        "seconds": times,
    }
    if ours:
        found |= {"path": ours.path, "kept_bytes": ours.kept_bytes}
    del attempts, running, calls, products, ours
    free(vector)
    return found


def compiled_calls(
    case: Case, matrix: str, vector: Tensor, running: dict[str, Any]
) -> dict[str, Callable[[], Callable[[], Any]]]:
    """By name, what makes a call compiled: of the gradient, of ours by its own option, of peers by torch.compile."""
    made = {COMPILED: lambda: partial(gradient, compiled_model(case))}
    if "compile" in signature(Curvature).parameters:
        made[OURS_COMPILED] = lambda: partial(compiled_product(case, matrix).__matmul__, vector)
    for name in PEERS:
        if name in running:
            made[f"{name}, compiled"] = lambda name=name: partial(torch.compile(running[name]), vector)
    return made


def compiled_model(case: Case) -> Case:
    copied = case.copy()
    copied.model.compile()
    return copied


def compiled_product(case: Case, matrix: str) -> Curvature:
    operator = Curvature(case.problem(), matrix, products=MANY, compile=True)
    operator.prepare()
    return operator


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


def fastest(found: dict[str, Any], names: tuple[str, ...]) -> float | None:
    """The median time of the fastest of these, in seconds; None where none ran."""
    return min((median(found["seconds"][name]) for name in names if name in found["seconds"]), default=None)


def peers(found: dict[str, Any], compiled: bool) -> tuple[str, ...]:
    """The peers that gave the right number, as they come, or compiled too."""
    named = (*PEERS, *(f"{name}, compiled" for name in PEERS)) if compiled else PEERS
    return tuple(name for name in named if found["relative_errors"].get(name, 0.0) <= RIGHT)


def ours(found: dict[str, Any]) -> float | None:
    """The time of our product at its fastest, in seconds."""
    return fastest(found, (SPECTRA, OURS_COMPILED))


def over_ours(found: dict[str, Any], compiled: bool = True) -> float | None:
    """The time of the fastest peer that gave the right number over that of ours; of eager ones, over ours as it is."""
    theirs, own = fastest(found, peers(found, compiled)), ours(found) if compiled else fastest(found, (SPECTRA,))
    return theirs / own if theirs and own else None


def in_gradients(found: dict[str, Any]) -> float | None:
    """Our product in compiled gradients; where none was compiled, in those of a CUDA graph, or eager ones."""
    unit = next((name for name in (COMPILED, GRAPH, GRADIENT) if name in found["seconds"]), None)
    own = ours(found)
    return own / median(found["seconds"][unit]) if own and unit else None


def row(problem: str, matrix: str, found: dict[str, Any]) -> list[str]:
    """The columns of HEAD: medians, and their ratios."""
    milliseconds = [three_digits(fastest(found, (name,))) for name in TIMED]
    error, setup = found["relative_errors"].get(SPECTRA), found["setup_seconds"].get(SPECTRA)
    if found.get("errors_against") == "spectra":
        error = None
    rest = ((in_gradients(found), ".2f"), (over_ours(found), ".2f"), (error, ".0e"), (setup, ".1f"))
    numbers = ["" if value is None else f"{value:{form}}" for value, form in rest]
    return [f"{SHORT[problem]} {matrix}", *milliseconds, *numbers]


def three_digits(seconds: float | None) -> str:
    """Milliseconds, to three digits."""
    if seconds is None:
        return ""
    ms = 1e3 * seconds
    return f"{ms:.{max(0, 2 - len(str(int(ms))) + 1)}f}" if ms < 100 else f"{ms:.0f}"


def lines(problem: str, result: dict[str, Any]) -> Iterator[str]:
    """Rows for a terminal, under their head."""
    for cells in (HEAD, *(row(problem, matrix, found) for matrix, found in result.items())):
        yield "".join(
            f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)
        )
