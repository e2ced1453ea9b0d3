"""Error of Hessian products by finite differences against the step, for two networks on digits.

    python -m scripts.finite_differences              measure, and write results/finite-differences
    python -m scripts.finite_differences --page       write figure and page again, from the table of the last run

Both networks are 64-32-32-10, one with tanh and one with ReLU, trained as in `spectra demo`. The error |H v by
differences - H v| / |H v| is measured for random v and for the leading eigenvector, with both forms, in float32 and
float64.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import textwrap
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
from spectra.curvature.finite_differences import ORDERS, SHARPNESS, FiniteDifferences, best_step
from spectra.curvature.operator import Curvature
from spectra.operator import random_vectors
from spectra.plots.style import COLOURS, STYLE, save_figure

OUT = Path("results/finite-differences")
STEPS = tuple(10 ** (exponent / 4) for exponent in range(-48, 1))  # R from 1e-12 to 1
VECTORS = 9  # random ones; their median counts
TRUNCATION = (1e-5, 1e-3)  # in float64: the range of R in which slopes of truncation are measured
ROUNDING = {"float64": (1e-12, 1e-10), "float32": (1e-7, 3e-6)}
KINKED = (3e-5, 0.1)  # where ReLU's error is that of kinks
ALONG = ("random", "leading eigenvector")
Row = dict[str, Any]


def network(activation: type[nn.Module]) -> nn.Module:
    """64-32-32-10 with this activation: 3,466 parameters."""
    parts = [nn.Linear(64, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 10)]
    return nn.Sequential(nn.Flatten(), *parts)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"tanh": lambda: network(nn.Tanh), "ReLU": lambda: network(nn.ReLU)}


def trained(build: Callable[[], nn.Module], epochs: int = 30) -> nn.Module:
    """SGD with momentum on the cross entropy of all digits."""
    with torch.random.fork_rng(devices=[]):
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
                "s": sharpness(exact, ORDERS[form]) if smooth else None,
                "best R": best["step"],
                "error there": best["error"],
                "default R": default,
                "error at the default": near["error"],
                "kinks crossed there": near["kinks"],
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
        made.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8.5, numpoints=1)
        return made


def look(form: str, dtype: str) -> dict[str, Any]:
    """The look of a curve: colour, thickness and marker for the form, dashes for the dtype."""
    central = form == "central"
    return {
        "color": COLOURS[0 if central else 4],
        "linestyle": "solid" if dtype == "float64" else (0, (4, 1.5)),
        "linewidth": 1.2 if central else 2.4,
        "marker": "o" if central else "s",
        "zorder": 3 if central else 2,
    }


def draw_errors(axes: Axes, rows: Sequence[Row], name: str, along: str) -> None:
    """Draw the error of each form and dtype against the step, with a marker at the default step."""
    for form in ("central", "forward"):
        for dtype in ("float64", "float32"):
            curve = pick(rows, network=name, dtype=dtype, form=form, along=along)
            x, y = ([r[what] for r in curve] for what in ("step", "error"))
            default = best_step(form, getattr(torch, dtype))
            here = float(np.exp(np.interp(math.log(default), np.log(x), np.log(y))))
            style = look(form, dtype)
            axes.loglog(x, y, label=f"{form}, {dtype}", markevery=[], **style)
            axes.loglog([default], [here], **style | {"zorder": 5}, markersize=6, markeredgecolor="black", mew=0.7)
    axes.set_ylim(1e-12, 30)
    axes.set_xlim(1e-12, 1)


def guides(axes: Axes) -> None:
    """Lines of the slopes that theory has."""
    style: dict[str, Any] = {"color": "0.45", "linewidth": 0.8, "zorder": 1}
    for x, y, power, text, at in (
        ((1e-4, 1e-1), 3e-10, 2, "$R^2$", (7e-3, 1e-8)),
        ((1e-7, 1e-4), 1e-8, 1, "$R$", (4e-6, 1e-7)),
        ((1e-12, 1e-8), 3e-6, -1, "$1/R$", (2e-11, 1e-8)),
    ):
        axes.loglog(x, [y, y * (x[1] / x[0]) ** power], **style)
        axes.text(*at, text, fontsize=8, color="0.35")


def draw_kinks(axes: Axes, rows: Sequence[Row]) -> None:
    """The kinks that lie between the ends of a difference, in float64; none is not drawn."""
    for form in ("central", "forward"):
        curve = [r for r in pick(rows, network="ReLU", dtype="float64", form=form, along=ALONG[0]) if r["kinks"]]
        axes.loglog([r["step"] for r in curve], [r["kinks"] for r in curve], markevery=[], **look(form, "float64"))
    axes.set_title("ReLU, random $v$: kinks crossed (median)", fontsize=9)
    axes.set_ylabel("sign changes (units × examples)")


# The page

COLUMNS = ("network", "dtype", "form", "along", "truncation slope", "rounding slope", "s", "best R", "error there")
COLUMNS += ("default R", "error at the default", "kinks crossed there")


def page(found: Sequence[Row], rows: Sequence[Row], how: Row) -> str:
    """What was found, in words, with its numbers."""
    smooth = [f for f in found if f["network"] == "tanh"]
    paragraphs = [
        "# How far off are products by finite differences?",
        "The exact product H v (Pearlmutter 1994) can be replaced by forward differences of gradients, "
        "(g(w + r v) - g(w)) / r, or by central ones, (g(w + r v) - g(w - r v)) / 2r. This study measures the error of "
        "both, on two trained networks (64-32-32-10, 3,466 parameters, 1,797 digits, cross entropy), over twelve "
        "orders of magnitude of the step R = |r v| / |w|.",
        "![Error against the step](errors.png)",
        f"*Median over {VECTORS} random v, and the leading eigenvector. Markers: the defaults of `--products "
        "finite-difference` and `forward-difference`. Grey: slopes predicted by theory. Lower right: the number of "
        "pairs of a unit and an example with a kink between the two points of the difference, in float64.*",
        "## Findings",
        *map(str.strip, (smooth_errors(smooth), sharpnesses(smooth), kinks(found, rows), single(found, rows))),
        "## The numbers",
        table([COLUMNS, ["---"] * len(COLUMNS), *map(cells, found)]),
        f"Slopes are fitted between R = {TRUNCATION[0]:.0e} and {TRUNCATION[1]:.0e} (truncation, in float64), and "
        f"between {ROUNDING['float64'][0]:.0e} and {ROUNDING['float64'][1]:.0e} in float64 or "
        f"{ROUNDING['float32'][0]:.0e} and {ROUNDING['float32'][1]:.0e} in float32 (rounding). s is that of the "
        "truncation error (s R)^p. All errors are in [`errors.csv`](errors.csv). The reference is the exact product in "
        "float64 at the same weights.",
        f"Made by `python -m scripts.finite_differences` in {how['seconds']:.0f} s on {how['machine']} "
        f"({how['threads']} thread), Python {how['python']}, torch {how['versions']['torch']}, commit "
        f"{how['commit'][:12]}{' with changes' if how['dirty'] else ''}, {how['date']}.",
    ]
    return "\n\n".join(text if "|" in text[:2] else fill(text) for text in paragraphs) + "\n"


def smooth_errors(smooth: Sequence[Row]) -> str:
    """On the network without kinks."""
    slopes = {form: [f["truncation slope"] for f in smooth if f["form"] == form] for form in ORDERS}
    least = {
        (dtype, form): finding(smooth, dtype=dtype, form=form, along=ALONG[0])["error there"]
        for dtype in ("float32", "float64")
        for form in ORDERS
    }
    return (
        "1. **Without kinks, the error agrees with theory.** The truncation error is proportional to R to the power "
        f"{span(slopes['forward'])} (forward) and {span(slopes['central'])} (central), and the rounding error to the "
        f"power {span([f['rounding slope'] for f in smooth if f['dtype'] == 'float64'])} in float64. (In float32 it "
        "saturates, because a displacement below half a unit in the last place is lost.) The smallest error of a "
        f"random product is {least['float32', 'central']:.0e} (central) and {least['float32', 'forward']:.0e} "
        f"(forward) in float32, and {least['float64', 'central']:.0e} and {least['float64', 'forward']:.0e} in "
        "float64: close to eps^(2/3) and eps^(1/2)."
    )


def sharpnesses(smooth: Sequence[Row]) -> str:
    """On the truncation along random vectors and eigenvectors."""
    sharp = {along: [f["s"] for f in smooth if f["along"] == along] for along in ALONG}
    random, leading = (finding(smooth, dtype="float32", form="central", along=along) for along in ALONG)
    return (
        "2. **The best step depends on the vector.** The relative truncation error is (s R)^p, with s "
        f"{span(sharp[ALONG[0]], '.2g')} for random vectors and {span(sharp[ALONG[1]], '.2g')} for the leading "
        "eigenvector, along which the curvature is largest and changes fastest. The default uses s = "
        f"{SHARPNESS}. With the default step of the central form in float32, the error is "
        f"{leading['error at the default']:.0e} for the leading eigenvector (best: {leading['error there']:.0e} at R = "
        f"{leading['best R']:.0e}), and {random['error at the default']:.0e} for a random vector (best: "
        f"{random['error there']:.0e} at R = {random['best R']:.0e})."
    )


def kinks(found: Sequence[Row], rows: Sequence[Row]) -> str:
    """On the network of ReLU."""
    curve = pick(rows, network="ReLU", dtype="float64", form="central", along=ALONG[0])
    inside = [r for r in curve if KINKED[0] <= r["step"] <= KINKED[1]]
    without = max(r["step"] for r in curve if not r["kinks"])
    least, most = (end(r["error"] for r in inside) for end in (min, max))
    few, many = inside[0], inside[-1]
    default = finding(found, network="ReLU", dtype="float64", form="central", along=ALONG[0])
    return (
        f"3. **With kinks, a smaller step does not lower the error.** With ReLU it is {least:.2g} to {most:.2g} at "
        f"every R from {KINKED[0]:g} to {KINKED[1]:g}, even in float64. The difference crosses {few['kinks']:.0f} "
        f"kinks at the smallest of these R and {many['kinks']:,.0f} at the largest. Each kink adds a jump of the "
        "gradient divided by r, and the number of kinks is proportional to r, so their contribution is constant. It is "
        "the curvature of the kinks themselves, which the exact product does not contain. If no kink is crossed (in "
        f"the median up to R = {without:.0e}), the error is that of a smooth network: "
        f"{default['error at the default']:.0e} with the default step in float64."
    )


def single(found: Sequence[Row], rows: Sequence[Row]) -> str:
    """On ReLU in float32."""
    random, leading = (finding(found, network="ReLU", dtype="float32", form="central", along=along) for along in ALONG)
    return (
        "4. **With ReLU in float32, no step is good.** With the default step, a random vector crosses "
        f"{random['kinks crossed there']:.0f} kinks and has a relative error of {random['error at the default']:.2g}; "
        f"the leading eigenvector crosses {leading['kinks crossed there']:.0f} and has an error of "
        f"{leading['error at the default']:.2g}. The smallest error is {random['error there']:.0e} at R = "
        f"{random['best R']:.0e}, between kinks and rounding. The command measures these errors, includes them in "
        "residuals and standard errors, and refuses products with an error above one half. Use float64, or exact "
        "products, which kinks do not disturb."
    )


def cells(f: Row) -> list[str]:
    """A row of the table on the page."""
    texts = [f[name] for name in COLUMNS[:4]]
    slopes = ["-" if f[name] is None else f"{f[name]:.2f}" for name in COLUMNS[4:6]]
    sharp = "-" if f["s"] is None else f"{f['s']:.2g}"
    return [*texts, *slopes, sharp, *(f"{f[name]:.1e}" for name in COLUMNS[7:11]), f"{f[COLUMNS[11]]:.0f}"]


def table(lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def finding(found: Sequence[Row], **wanted: Any) -> Row:
    """The first finding with these values."""
    return next(f for f in found if all(f[k] == v for k, v in wanted.items()))


def span(values: Sequence[float], form: str = ".2f") -> str:
    """`1.00`, or `1.00 to 1.01`."""
    ends = [f"{end(values):{form}}" for end in (min, max)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def fill(text: str) -> str:
    """The text in lines of at most 120 characters; what goes on in an item is indented."""
    item = text[:1].isdigit()
    return textwrap.fill(text, 120, subsequent_indent="   " * item, break_long_words=False, break_on_hyphens=False)


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
