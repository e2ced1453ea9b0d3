"""How far off are products by finite differences, and at which step? Two networks on digits, against exact products.

    python -m scripts.finite_differences              measures; writes results/finite-differences
    python -m scripts.finite_differences --page       writes figure and page again, from the table that is there

Both networks are 64-32-32-10, one of tanh and one of ReLU, trained as `spectra demo` trains. The error |H v by differences
- H v| / |H v| is measured for random v and for the leading eigenvector, by both forms, in float32 and float64.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.style
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import spectra
from scripts.benchmarks.record import git, installed, machine
from spectra.curvature.finite_differences import ORDERS, FiniteDifferences, best_step
from spectra.curvature.operator import Curvature
from spectra.operator import random_vectors
from spectra.plots.style import COLOURS, STYLE, save_figure

OUT = Path("results/finite-differences")
STEPS = tuple(10 ** (exponent / 4) for exponent in range(-48, 1))  # R from 1e-12 to 1
VECTORS = 9  # random ones; their median counts
TRUNCATION = (1e-4, 3e-3)  # in float64: the range of R in which slopes of truncation are measured
ROUNDING = {"float64": (1e-12, 1e-8), "float32": (1e-8, 1e-5)}
ALONG = ("random", "leading eigenvector")
Row = dict[str, Any]


def network(activation: type[nn.Module]) -> nn.Module:
    """64-32-32-10 with this activation: 3,466 parameters."""
    parts = [nn.Linear(64, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 10)]
    return nn.Sequential(nn.Flatten(), *parts)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"tanh": lambda: network(nn.Tanh), "ReLU": lambda: network(nn.ReLU)}


def trained(build: Callable[[], nn.Module], epochs: int = 30) -> nn.Module:
    """SGD with momentum on the cross entropy of all digits."""
    torch.manual_seed(0)
    model = build()
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), nn.CrossEntropyLoss()
    (batch,) = problem_of(model, torch.float32).batches
    for _ in range(epochs):
        for some in torch.randperm(len(batch)).split(128):
            optimizer.zero_grad()
            loss(model(batch.inputs[some]), batch.targets[some]).backward()
            optimizer.step()
    return model


def problem_of(model: nn.Module, dtype: torch.dtype, samples: int | None = None) -> spectra.Problem:
    """The cross entropy of digits at the model's parameters; in float64 of a copy."""
    settings = {"samples": samples, "batch_size": 1797, "dtype": str(dtype).removeprefix("torch."), "device": "cpu"}
    return spectra.load_problem(model=model, loss="cross_entropy", data="digits", **settings).problem


def measure(steps: Sequence[float] = STEPS, vectors: int = VECTORS, epochs: int = 30, samples: int | None = None):
    """Yield a row for each network, dtype, form, direction and step."""
    for name, build in NETWORKS.items():
        model = trained(build, epochs)
        exact = Curvature(problem_of(model, torch.float64, samples), "hessian")
        pairs = spectra.eigenpairs(exact, 1, tolerance=1e-6)
        for dtype in (torch.float64, torch.float32):
            problem = problem_of(model, dtype, samples)
            drawn = random_vectors(exact, vectors, torch.Generator().manual_seed(0))
            for along, rows in zip(ALONG, (drawn, pairs.vectors), strict=True):
                wanted = [exact @ row for row in rows]
                for form in ORDERS:
                    for step in steps:
                        matrix = FiniteDifferences(problem, form, step)
                        found = [(matrix @ row.to(dtype)).double() for row in rows]
                        errors = [((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]
                        kinks = [crossed(problem, row.to(dtype), matrix) for row in rows] if name == "ReLU" else [0]
                        yield {
                            "network": name,
                            "dtype": str(dtype).removeprefix("torch."),
                            "form": form,
                            "along": along,
                            "step": step,
                            "error": median(errors),
                            "least": min(errors),
                            "largest": max(errors),
                            "kinks": median(kinks),
                        }


def crossed(problem: spectra.Problem, vector: Tensor, matrix: FiniteDifferences) -> int:
    """The number of kinks between the ends of a difference: of units of examples whose input changes its sign."""
    far = matrix.length / vector.norm().item()
    own = [p.detach().clone() for p in problem.leaves]
    signs = []
    for step in (far, -far if matrix.form == "central" else 0.0):
        moved = [p + step * part for p, part in zip(own, problem.tensors(vector), strict=True)]
        names = [*dict(problem.model.named_parameters())]
        signs.append(torch.cat(inputs_of_units(problem, dict(zip(names, moved, strict=True)))) > 0)
    return int((signs[0] != signs[1]).sum())


def inputs_of_units(problem: spectra.Problem, parameters: dict[str, Tensor]) -> list[Tensor]:
    """What goes into the activations, for all examples, at these parameters."""
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten()))
        for module in problem.model
        if isinstance(module, nn.ReLU)
    ]
    with torch.no_grad():
        for batch in problem.batches:
            torch.func.functional_call(problem.model, parameters, (batch.inputs,))
    for hook in hooks:
        hook.remove()
    return seen


# What the table says


def pick(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows with these values, by rising step."""
    return sorted((r for r in rows if all(r[k] == v for k, v in wanted.items())), key=lambda r: r["step"])


def slope(rows: Sequence[Row], low: float, high: float) -> float:
    """The slope of log error against log step, by least squares between two steps."""
    some = [r for r in rows if low * 0.99 <= r["step"] <= high * 1.01]
    return float(np.polyfit(np.log([r["step"] for r in some]), np.log([r["error"] for r in some]), 1)[0])


def findings(rows: Sequence[Row]) -> list[Row]:
    """For each curve: slopes, best step and error, and the error at the default step (nearest in the table)."""
    found = []
    for key in dict.fromkeys((r["network"], r["dtype"], r["form"], r["along"]) for r in rows):
        name, dtype, form, along = key
        curve = pick(rows, network=name, dtype=dtype, form=form, along=along)
        best, default = min(curve, key=lambda r: r["error"]), best_step(form, getattr(torch, dtype))
        near = min(curve, key=lambda r: abs(math.log(r["step"] / default)))
        exact = pick(rows, network=name, dtype="float64", form=form, along=along)
        smooth = name == "tanh"
        found.append(
            {
                "network": name,
                "dtype": dtype,
                "form": form,
                "along": along,
                "truncation slope": slope(exact, *TRUNCATION) if smooth else None,
                "rounding slope": slope(curve, *ROUNDING[dtype]),
                "sharpness": sharpness(exact, ORDERS[form]) if smooth else None,
                "best step": best["step"],
                "error there": best["error"],
                "default step": default,
                "error at the default": near["error"],
                "kinks at the default": near["kinks"],
            }
        )
    return found


def sharpness(rows: Sequence[Row], order: int) -> float:
    """s of error = (s R)^p, at the middle of the range of truncation."""
    middle = math.sqrt(TRUNCATION[0] * TRUNCATION[1])
    near = min(rows, key=lambda r: abs(math.log(r["step"] / middle)))
    return near["error"] ** (1 / order) / near["step"]


# The figure


def figure(rows: Sequence[Row]) -> Figure:
    """Errors of both networks against the step, and the kinks that ReLU crosses."""
    with matplotlib.style.context(STYLE):
        made = Figure(figsize=(7.2, 6.2), layout="constrained")
        (random, leading), (relu, kinks) = made.subplots(2, 2, sharex=True)
        for axes, name, along, title in (
            (random, "tanh", ALONG[0], "tanh, random $v$"),
            (leading, "tanh", ALONG[1], "tanh, leading eigenvector"),
            (relu, "ReLU", ALONG[0], "ReLU, random $v$"),
        ):
            draw_errors(axes, rows, name, along)
            axes.set_title(title, fontsize=9)
        guides(random)
        draw_kinks(kinks, rows)
        random.set_ylabel(r"error $|\tilde{H}v - Hv|\,/\,|Hv|$")
        relu.set_ylabel(r"error $|\tilde{H}v - Hv|\,/\,|Hv|$")
        for axes in (relu, kinks):
            axes.set_xlabel(r"step $R = |rv|\,/\,|w|$")
        handles, labels = random.get_legend_handles_labels()
        made.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8.5)
        return made


def look(form: str, dtype: str) -> dict[str, Any]:
    """The look of a curve: colour for the form, dashes for the dtype."""
    return {
        "color": COLOURS[0 if form == "central" else 1],
        "linestyle": "solid" if dtype == "float64" else (0, (4, 1.5)),
        "linewidth": 1.6,
    }


def draw_errors(axes: Axes, rows: Sequence[Row], name: str, along: str) -> None:
    """The error of each form and dtype against the step, a dot at the default step."""
    for form in ("central", "forward"):
        for dtype in ("float64", "float32"):
            curve = pick(rows, network=name, dtype=dtype, form=form, along=along)
            x, y = ([r[what] for r in curve] for what in ("step", "error"))
            axes.loglog(x, y, label=f"{form}, {dtype}", **look(form, dtype))
            default = best_step(form, getattr(torch, dtype))
            here = float(np.exp(np.interp(math.log(default), np.log(x), np.log(y))))
            axes.loglog([default], [here], "o", color=look(form, dtype)["color"], markersize=5, zorder=5)
    axes.set_ylim(1e-12, 30)
    axes.set_xlim(1e-12, 1)


def guides(axes: Axes) -> None:
    """Lines of the slopes that theory has."""
    style: dict[str, Any] = {"color": "0.45", "linewidth": 0.8, "zorder": 1}
    for x, y, power, text, at in (
        ((1e-4, 1e-1), 3e-10, 2, "$R^2$", (7e-3, 1e-8)),
        ((1e-7, 1e-2), 3e-5, 1, "$R$", (1e-6, 1.5e-3)),
        ((1e-12, 1e-8), 3e-6, -1, "$1/R$", (2e-11, 1e-8)),
    ):
        axes.loglog(x, [y, y * (x[1] / x[0]) ** power], **style)
        axes.text(*at, text, fontsize=8, color="0.35")


def draw_kinks(axes: Axes, rows: Sequence[Row]) -> None:
    """The kinks that lie between the ends of a difference, in float64; none is not drawn."""
    for form in ("central", "forward"):
        curve = [r for r in pick(rows, network="ReLU", dtype="float64", form=form, along=ALONG[0]) if r["kinks"]]
        axes.loglog([r["step"] for r in curve], [r["kinks"] for r in curve], **look(form, "float64"))
    axes.set_title("ReLU: kinks crossed (median)", fontsize=9)
    axes.set_ylabel("units of examples that change sign")


# The page


def page(found: Sequence[Row], rows: Sequence[Row], how: Row) -> str:
    """What was found, in words, with its numbers."""

    def of(name: str, dtype: str, form: str, along: str = ALONG[0]) -> Row:
        return next(iter(pick_finding(found, network=name, dtype=dtype, form=form, along=along)))

    def worst(name: str, dtype: str, form: str) -> Row:
        return max(pick(rows, network=name, dtype=dtype, form=form, along=ALONG[0])[24:], key=lambda r: r["error"])

    smooth = [f for f in found if f["network"] == "tanh"]
    orders = {form: [f["truncation slope"] for f in smooth if f["form"] == form] for form in ORDERS}
    rounding = [f["rounding slope"] for f in smooth]
    sharp = {along: [f["sharpness"] for f in smooth if f["along"] == along] for along in ALONG}
    relu, quiet = of("ReLU", "float32", "central"), of("ReLU", "float64", "central")
    highest = worst("ReLU", "float64", "central")
    none = max(
        (
            r["step"]
            for r in pick(rows, network="ReLU", dtype="float64", form="central", along=ALONG[0])
            if not r["kinks"]
        ),
        default=0.0,
    )
    least = min(pick(rows, network="ReLU", dtype="float32", form="central", along=ALONG[0]), key=lambda r: r["error"])
    table = "\n".join(
        f"| {f['network']} | {f['dtype']} | {f['form']} | {f['along']} | {number(f['truncation slope'], '.2f')} | "
        f"{number(f['rounding slope'], '.2f')} | {f['best step']:.1e} | {f['error there']:.1e} | {f['default step']:.1e} | "
        f"{f['error at the default']:.1e} | {f['kinks at the default']:.0f} |"
        for f in found
    )
    return f"""# How far off are products by finite differences?

Pearlmutter's exact product H v took the place of differences of gradients, (g(w + r v) - g(w)) / r or the central
(g(w + r v) - g(w - r v)) / 2r. Here both are compared with the exact product, on two trained networks
(64-32-32-10, 3,466 parameters, 1,797 digits, cross entropy), over twelve decades of the step R = |r v| / |w|.

![Error against the step](errors.png)

*Median over {VECTORS} random v, and the leading eigenvector. Dots: the default of `--products finite-difference` and
`forward-difference`. Grey: the slopes that theory has. Below right: pairs of unit and example whose ReLU is passed.*

## What is found

1. **On the smooth network the error is what theory says.** Truncation grows with R to the power
   {span(orders["forward"], ".2f")} (forward) and {span(orders["central"], ".2f")} (central), rounding with the power
   {span(rounding, ".2f")}. The least error of a random product is {of("tanh", "float32", "central")["error there"]:.0e}
   (central) and {of("tanh", "float32", "forward")["error there"]:.0e} (forward) in float32, and
   {of("tanh", "float64", "central")["error there"]:.0e} and {of("tanh", "float64", "forward")["error there"]:.0e} in
   float64: eps^(2/3) and eps^(1/2), but for the factors below.
2. **One step does not suit all vectors.** The truncation of a product is (s R)^p of its size, with s
   {span(sharp[ALONG[0]], ".2g")} for random vectors and {span(sharp[ALONG[1]], ".2g")} for the leading eigenvector: the
   loss curves most, and its curvature changes fastest, along that. The default takes s = 20, so that leading eigenvectors
   come out: at the default step they are off by {of("tanh", "float32", "central", ALONG[1])["error at the default"]:.0e}
   (central, float32), and random vectors by {of("tanh", "float32", "central")["error at the default"]:.0e}.
3. **Kinks break this.** With ReLU the error of the central form in float64 does not fall as R falls: it rises to
   {highest["error"]:.2g} at R = {highest["step"]:.0e}, where {highest["kinks"]:.0f} kinks are crossed. Each adds a
   jump of the gradient, divided by r: jumps of random sign grow as the square root of their number, so the error goes as
   R^(-1/2) until no kink is left. None is crossed in the median up to R = {none:.0e}, and there the error is
   {quiet["error at the default"]:.0e}.
4. **In float32 ReLU leaves no good step.** The default ({relu["default step"]:.1e}) crosses
   {relu["kinks at the default"]:.0f} kinks and is off by {relu["error at the default"]:.2g} of the product's size; the best step is
   {least["step"]:.0e}, with an error of {least["error"]:.0e}, between kinks and rounding. The command measures this
   and refuses products that are off by more than half. Take float64, or exact products, which no kink disturbs.

## The numbers

| network | dtype | form | along | truncation slope | rounding slope | best R | error there | default R | error at the default | kinks crossed there |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{table}

Slopes are fitted between R = {TRUNCATION[0]:.0e} and {TRUNCATION[1]:.0e} (truncation, in float64), and between
{ROUNDING["float64"][0]:.0e} and {ROUNDING["float64"][1]:.0e} or {ROUNDING["float32"][0]:.0e} and {ROUNDING["float32"][1]:.0e} (rounding, in float64 or float32). All errors are in
[`errors.csv`](errors.csv). The reference is the exact product in float64; in float32 it is that of the same weights.

Made by `python -m scripts.finite_differences` in {how["seconds"]:.0f} s on {how["machine"]} ({how["threads"]} thread),
Python {how["python"]}, torch {how["versions"]["torch"]}, commit {how["commit"][:12]}{" with changes" if how["dirty"] else ""}, {how["date"]}.
"""


def pick_finding(found: Sequence[Row], **wanted: Any) -> list[Row]:
    """The findings with these values."""
    return [f for f in found if all(f[k] == v for k, v in wanted.items())]


def span(values: Sequence[float], form: str) -> str:
    """`1.00`, or `1.00 to 1.01`."""
    ends = [f"{min(values):{form}}", f"{max(values):{form}}"]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def number(value: float | None, form: str) -> str:
    """A number, or a dash for none."""
    return "-" if value is None else f"{value:{form}}"


def made(seconds: float) -> Row:
    """How and on what the table was made."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": seconds,
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in ("torch", "numpy")},
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", "spectra", "scripts")),
    }


def save(out: Path, rows: Sequence[Row], how: Row) -> None:
    """Write the figure and the page."""
    save_figure(figure(rows), out / "errors.png")
    found = findings(rows)
    (out / "findings.json").write_text(json.dumps({"made": how, "findings": found}, indent=1) + "\n")
    (out / "README.md").write_text(page(found, rows, how))


def read(path: Path) -> list[Row]:
    """The table, its numbers as numbers."""
    texts = ("network", "dtype", "form", "along")
    with path.open(newline="") as file:
        return [{k: v if k in texts else float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.finite_differences", description=__doc__)
    parser.add_argument("--page", action="store_true", help="measure nothing: figure and page of what is there")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: %(default)s")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "errors.csv"
    if options.page:
        how = json.loads((options.out / "findings.json").read_text())["made"]
    else:
        start = time.perf_counter()
        rows = list(measure())
        how = made(time.perf_counter() - start)
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    save(options.out, read(table), how)


if __name__ == "__main__":
    main()
