"""The page: the targets, and what each tool took, with its error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any

from scripts.benchmarks import gpu, quick, scaling
from scripts.benchmarks.problems import SHORT, TITLES
from scripts.benchmarks.record import product
from scripts.benchmarks.targets import head
from scripts.benchmarks.tools import SPECTRA

Results = dict[str, Any]
MATRICES = ("hessian", "ggn", "fisher-mc", "fisher-empirical")
INTRODUCTION = """All tools in one process, on the same model in eval mode, the same data and batches, in float32
with the same threads; they take turns, and a figure is the median over rounds of ratios within a round (in brackets:
the least and the largest). The unit is one gradient of the same data in plain PyTorch. Errors are relative, against
float64. Raw numbers: [benchmarks.json](benchmarks.json). Again: `bash scripts/bench`."""
TASKS = """Set-up included. Errors: the worst of the ten eigenvalues; of densities the Wasserstein distance to the true
spectrum over the largest |eigenvalue|; of traces the root mean square over seeds; of Gram spectra the norm, of Lanczos
the largest eigenvalue. hessian-eigenthings is given the fewest steps that reach 1e-3, or 50; PyHessian is
stopped after 10 times our time."""
RANKS = """Ranks share the examples: each multiplies its part, holds its part of every vector, and sends
2 n (ranks - 1) / ranks numbers a product (all-gather and reduce-scatter of n); measured on the loopback device, TCP
included."""
LAYERS = """Diagonal blocks of the Hessian, one a layer: the parameters that one module owns. Leading eigenvalues, all
to 1e-3 unless it says otherwise, set-up included; errors against float64 to 1e-8 hold what float32 loses. spectra
serves all layers from one graph; layer by layer it makes a matrix of each layer's parameters, and PyHessian (one batch,
at most 100 iterations) requires gradients of these alone. The tolerance of spectra bounds a residual, that of PyHessian
the change from one iteration to the next."""
TRACES = """Traces of all layers, from the same products of the whole matrix: root mean square error over seeds of the
worst layer, over the whole trace."""
BLOCKS = "A product of a block, the mean over layers; that of the whole matrix is hoisted."
QUICK = """Milliseconds of one gradient in plain PyTorch (eager, as one CUDA graph, compiled) and of one product of ours
(as it comes, compiled). o/g: our product in compiled gradients, else in those of a CUDA graph, else in eager ones.
peer/o: time of the fastest peer over ours. error: of ours, against float64. set-up: seconds. All in IEEE float32 by
deterministic algorithms, the peers too."""
BY_HAND = """¹ Fails as it comes; timed under `sdpa_kernel(SDPBackend.MATH)` and without the fast path of attention,
both set by hand around it."""


def page(results: Results) -> str:
    parts = [
        "# Benchmarks",
        INTRODUCTION,
        "## Targets",
        head(results),
        "![Cost of a product by problem and tool](benchmarks.png)",
        *(section for matrix in MATRICES for section in detail(results, matrix)),
        *tasks(results),
        *layers(results),
        *ranks(results),
        *failures(results),
        *gpu.section(gpu.read()),
        "## How this was made",
        *provenance(results),
    ]
    return "\n\n".join(parts) + "\n"


def quick_page(results: Results) -> str:
    """What few rounds have shown, of everything at one precision."""
    found = {problem: kept["result"] for problem, kept in results.get("quick", {}).items()}
    lines = (quick.row(problem, matrix, one) for problem, result in found.items() for matrix, one in result.items())
    parts = ["# Products, in a few rounds", QUICK, table(quick.HEAD, lines)]
    parts += ["## How this was made", *provenance({"quick": results.get("quick", {})})]
    return "\n\n".join(parts) + "\n"


def detail(results: Results, matrix: str) -> Iterator[str]:
    """Every tool on every problem: cost in gradients, times of ours, error."""
    lines = []
    for problem, title in TITLES.items():
        found = product(results, problem, matrix)
        if not found:
            continue
        lines.append(f"| **{title}** | | | | |")
        for name, tool in found["tools"].items():
            if "gradients" not in tool:
                lines.append(f"| {name} | fails | | | |")
                continue
            by_hand = " ¹" if tool["math_attention_by_hand"] else ""
            error = "own labels" if matrix == "fisher-mc" and name != SPECTRA else f"{tool['relative_error']:.0e}"
            cost, times = spread(tool["gradients"]), f"{tool['times_of_ours']['median']:.2f}"
            lines.append(f"| {name}{by_hand} | {cost} | {times} | {error} | {tool['setup_seconds']:.2f} |")
        floor = found["floor"]
        if "gradients" in floor:
            run = floor.get("multiplications_run", 0) / floor["multiplications"]
            lines.append(
                f"| the floor ({run:.2f} of the multiplications required) | {spread(floor['gradients'])} | | | |"
            )
        lines.append(f"| ours: {found['path']} | | | | |")
    if lines:
        yield f"## A product of `{matrix}`"
        yield "\n".join(
            ["| tool | gradients | times of ours | error | set-up, s |", "| --- | --- | --- | --- | --- |", *lines]
        )


def spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['largest']:.2f})"


def tasks(results: Results) -> Iterator[str]:
    lines = []
    for problem, kept in results.get("eig", {}).items():
        found = kept["result"]
        for name, tool in found["tools"].items():
            what = f"10 eigenvalues, {SHORT[problem]}, {found['examples']:,} examples"
            lines.append(task_line(what, name, tool, tool.get("relative_error")))
    for problem, kept in results.get("density", {}).items():
        for name, tool in kept["result"]["tools"].items():
            lines.append(task_line(f"density, {SHORT[problem]}", name, tool, tool.get("distance")))
    for problem, kept in results.get("trace", {}).items():
        for name in ("xtrace", "hutchinson"):
            found = kept["result"][name]
            numbers = {"seconds": found["seconds"], "products": found["median_products"]}
            lines.append(
                task_line(f"trace, {SHORT[problem]}", f"spectra, {name}", numbers, found["root_mean_square_error"])
            )
    for problem, kept in results.get("gram", {}).items():
        found = kept["result"]
        for name, error in (("gram", "relative_error"), ("lanczos", "relative_error_of_largest_by_lanczos")):
            numbers = {"seconds": found["seconds"][name]}
            lines.append(task_line(f"empirical Fisher, {SHORT[problem]}", f"spectra, {name}", numbers, found[error]))
    if lines:
        yield "## Whole tasks"
        yield TASKS
        yield "\n".join(["| task | tool | seconds | products | error |", "| --- | --- | --- | --- | --- |", *lines])


def task_line(what: str, name: str, tool: dict[str, Any], error: float | None) -> str:
    seconds, products = f"{median(tool['seconds']):.2f}", tool.get("products") or ""
    if "error_message" in tool:
        return f"| {what} | {name} | {seconds} | {products} | {cell(tool['error_message'])} |"
    return f"| {what} | {name} | {seconds} | {products} | {'' if error is None else f'{error:.0e}'} |"


def layers(results: Results) -> Iterator[str]:
    """Leading eigenvalues of diagonal blocks, their traces, and what their products cost."""
    found = {problem: kept["result"] for problem, kept in results.get("layers", {}).items()}
    if not found:
        return
    titles = {name: f"{SHORT[name]}, {len(one['layers'])} layers, {one['examples']:,}" for name, one in found.items()}
    head = ["problem, layers, examples", "tool", "seconds", "times of ours", "products", "worst error", "beyond 1e-3"]
    yield "## Layers"
    yield LAYERS
    yield table(head, (row for name, one in found.items() for row in layer_rows(titles[name], one)))
    for name, one in found.items():
        if "traces" in one:
            yield TRACES
            lines = one["traces"]["root_mean_square_errors"].items()
            head = [f"products, {SHORT[name]}", "xdiag", "hutchinson"]
            yield table(head, ([count, *(f"{error[way]:.0e}" for way in head[1:])] for count, error in lines))
    yield BLOCKS
    costs = ((titles[name], one["products"]) for name, one in found.items())
    lines = ([title, spread(cost["of_whole"]), spread(cost["gradients"])] for title, cost in costs)
    yield table(["problem, layers, examples", "products of the whole matrix", "gradients"], lines)


def layer_rows(what: str, found: dict[str, Any]) -> Iterator[list[str]]:
    for name, tool in found["tools"].items():
        by_hand = " ¹" if "as_it_comes" in tool else ""
        cells = [what, name + by_hand, f"{median(tool['seconds']):.2f}", spread(tool["times_of_ours"])]
        if "error_message" in tool:
            yield [*cells, "", cell(tool["error_message"]), ""]
        else:
            yield [*cells, str(tool["products"] or ""), f"{tool['relative_error']:.0e}", str(tool["beyond_tolerance"])]


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def ranks(results: Results) -> Iterator[str]:
    """One and several ranks."""
    if parts := results.get("scaling"):
        yield "## Many processes"
        yield RANKS
    else:
        return
    for problem, kept in parts.items():
        yield f"**{TITLES[problem]}**, Hessian"
        yield "\n".join([*scaling.HEAD, *scaling.rows(kept["result"])])


def failures(results: Results) -> Iterator[str]:
    lines = []
    for problem, kept in results.get("products", {}).items():
        for matrix, found in kept["result"].items():
            for name, tool in found["tools"].items():
                if tool["error_message"]:
                    mended = "runs under math attention" if tool["math_attention_by_hand"] else "fails"
                    lines.append(f"| {SHORT[problem]} | {matrix} | {name} | {cell(tool['error_message'])} | {mended} |")
    for problem, kept in results.get("layers", {}).items():
        for name, tool in kept["result"]["tools"].items():
            if error := tool.get("as_it_comes"):
                lines.append(f"| {SHORT[problem]} | hessian | {name} | {cell(error)} | runs under math attention |")
    if lines:
        yield "## Where tools fail as they come"
        yield "\n".join(["| problem | matrix | tool | error | |", "| --- | --- | --- | --- | --- |", *lines])
        yield BY_HAND


def cell(text: str) -> str:
    return text.replace("|", "\\|")[:140]


def provenance(results: Results) -> Iterator[str]:
    """One line for each part that was measured, and one for the machine and versions of each kind."""
    lines, settings = [], set()
    for part, problems in results.items():
        for problem, kept in problems.items():
            made = kept["made"]
            state = " with changes" if made["dirty"] else ""
            when = f"{made['date']} | {made['seconds']:.0f} | {made['load']:.1f}"
            lines.append(f"| {part} {problem} | {when} | {made['commit'][:9]}{state} |")
            versions = ", ".join(f"{name} {found}" for name, found in made["versions"].items())
            variables = "".join(f", {name}={value}" for name, value in made["environment"].items())
            settings.add(
                f"{made['machine']}, {made['cores']} cores, {made['device']}, {made['threads']} threads{variables}; "
                f"Python {made['python']}, {versions}"
            )
    yield "\n".join(sorted(settings))
    yield "\n".join(["| part | date | seconds | load | commit |", "| --- | --- | --- | --- | --- |", *lines])
