"""The targets: every row that was to be measured, with its figures, met or missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from scripts.benchmarks.problems import SHORT
from scripts.benchmarks.record import product, result
from scripts.benchmarks.tools import CURVLINOPS, EIGENTHINGS, LOADER, ONE_BATCH, SPECTRA

Results = dict[str, Any]
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Row:
    what: str
    target: str
    figures: str
    met: bool | None  # None: not measured yet, or without a target

    def line(self) -> str:
        verdict = {True: "met", False: "**missed**", None: ""}[self.met]
        return f"| {self.what} | {self.target} | {self.figures} | {verdict} |"


def head(results: Results) -> str:
    """The table of targets."""
    rows = [row for make in ROWS for row in make(results)]
    lines = ["| what | target | measured | |", "| --- | --- | --- | --- |"]
    return "\n".join(lines + [row.line() for row in rows])


def limits(what: str, targets: dict[str, float], figure: Callable[[str], float | None], most: bool = True) -> Row:
    """A row of several problems, each with its own limit: at most, or at least."""
    found = {problem: figure(problem) for problem in targets}
    known = {problem: value for problem, value in found.items() if value is not None}
    good = all(value <= targets[problem] if most else value >= targets[problem] for problem, value in known.items())
    sign = "≤" if most else "≥"
    if len(set(targets.values())) == 1:
        target = f"{sign} {next(iter(targets.values())):g}"
    else:
        target = ", ".join(f"{SHORT[problem]} {sign} {value:g}" for problem, value in targets.items())
    figures = ", ".join(f"{SHORT[problem]} {value:.2f}" for problem, value in known.items())
    return Row(what, target, figures or "not measured", good if len(known) == len(targets) else None)


def product_rows(results: Results) -> Iterator[Row]:
    targets = {
        "hessian": ("Hessian", {"mlp": 1.5, "resnet20": 1.6, "vit": 1.8, "digits": 1.0}, 1.5),
        "ggn": ("GGN", {"mlp": 1.1, "resnet20": 1.1, "vit": 1.4}, 2.0),
    }
    for matrix, (name, most, least) in targets.items():

        def gradients(problem: str, matrix=matrix) -> float | None:
            found = product(results, problem, matrix)
            return found["tools"][SPECTRA]["gradients"]["median"] if found else None

        def over_floor(problem: str, matrix=matrix) -> float | None:
            floor = product(results, problem, matrix).get("floor", {})
            return floor["ours"]["median"] if "ours" in floor else None

        def over_ours(problem: str, matrix=matrix) -> float | None:
            return fastest_peer(product(results, problem, matrix))

        yield limits(f"one {name} product, in gradients", most, gradients)
        yield limits(f"{name} product over the floor", dict.fromkeys(most, 1.5), over_floor)
        yield limits(
            f"{name} product, time of the fastest peer over ours", dict.fromkeys(most, least), over_ours, False
        )


def fastest_peer(found: dict[str, Any]) -> float | None:
    """Its time over ours."""
    tools = found.get("tools", {}).items()
    return min((t["times_of_ours"]["median"] for n, t in tools if n != SPECTRA and "times_of_ours" in t), default=None)


def task_rows(results: Results) -> Iterator[Row]:
    rivals = {"PyHessian": ((ONE_BATCH, LOADER), 8), CURVLINOPS: ((CURVLINOPS,), 2), EIGENTHINGS: ((EIGENTHINGS,), 2)}
    for rival, (names, least) in rivals.items():

        def times(problem: str, names=names) -> float | None:
            tools = (result(results, "eig", problem) or {}).get("tools", {})
            taken = [median(tools[name]["seconds"]) for name in names if ended(tools.get(name, {"error_message": ""}))]
            return min(taken) / median(tools[SPECTRA]["seconds"]) if taken else None

        what = f"top 10 eigenpairs to 1e-3, time of {rival} over ours"
        yield limits(what, {"digits": least, "resnet20": least}, times, most=False)
    if found := result(results, "trace", "digits"):
        ours, theirs = found["xtrace"]["median_products"], found["hutchinson"]["median_products"]
        yield Row(
            "trace of the digits network to 1 %, in products", "≤ 1/10 of Hutchinson's",
            f"{ours:.0f} against {theirs:.0f}: 1/{theirs / ours:.1f}", 10 * ours <= theirs,
        )  # fmt: skip
    if found := result(results, "density", "digits"):
        what = "density of 10 probes of 80 steps, time of the fastest peer over ours"
        yield limits(what, {"digits": 1.5}, lambda _: fastest_peer(found), most=False)

    def exact(problem: str) -> float | None:
        found = result(results, "gram", problem)
        return found and found["gram_times_of_lanczos"]["median"]

    what = "exact empirical Fisher spectrum of 1,000 examples over 100 Lanczos steps"
    yield limits(what, {"mlp": 1.0, "digits": 1.0}, exact)


def ended(tool: dict[str, Any]) -> bool:
    """Whether the time is the task's, or a bound from below for one that was stopped."""
    return tool.get("error_message", "TimeoutError").startswith("TimeoutError")


def setup_rows(results: Results) -> Iterator[Row]:
    for matrix, name in (("hessian", "Hessian"), ("ggn", "GGN")):

        def share(problem: str, matrix=matrix) -> float | None:
            if not (found := product(results, problem, matrix)):
                return None
            setup = found["tools"][SPECTRA]["setup_seconds"]
            return setup / (setup + 100 * median(found["seconds"][SPECTRA]))

        yield limits(f"set-up, share of a run of 100 {name} products", {"resnet20": 0.2, "vit": 0.2}, share)
    if found := result(results, "memory", "resnet20"):
        kept = found["kept_bytes"] / found["examples"] / MIB
        yield Row("memory kept per example, ResNet-20, MiB", "≤ 3.5", f"{kept:.2f}", kept <= 3.5)
        ours, step = found["eig"], found["training_step"]
        if "peak_bytes" in ours:
            above = (ours["peak_bytes"] - step["peak_bytes"]) / GIB
            figures, met = f"{above:.2f}", above < 1
        else:
            figures, met = f"fails: {ours['error_message']}", False
        what = "peak memory with `--memory 1GiB`, ResNet-20, above a training step on 128 examples, GiB"
        yield Row(what, "< 1.0", figures, met)


ROWS = (product_rows, task_rows, setup_rows)
