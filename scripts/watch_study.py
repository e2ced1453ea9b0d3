"""Cost of a recording of `spectra.watch` during training, from the last recording and from random vectors.

Writes recordings.csv, made.json and figure.png into results/watch/; about two minutes on one core.

    python -m scripts.watch_study
"""

from __future__ import annotations

import csv
import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.style
import torch
from matplotlib.figure import Figure
from torch import nn

import spectra
from scripts.benchmarks.record import git, installed, machine
from spectra.demo import mlp
from spectra.inputs.data import digits
from spectra.plots.style import COLOURS, STYLE, save_figure
from spectra.training.watch import Recording

OUT = Path("results/watch")
STEPS, EVERY, K, WATCHED = 3000, 20, 5, 500
PARTS = {"first 200 steps": (1, 200), "200 to 2400": (201, 2400), "last 600 steps": (2401, STEPS)}
RATE, MOMENTUM, BATCH = 0.05, 0.9, 128


@dataclass(frozen=True)
class Row:
    """One recording from the last one beside one afresh, at the same step."""

    step: int
    loss: float
    rate: float
    warm_products: int
    fresh_products: int
    warm_seconds: float
    fresh_seconds: float
    searched: bool  # whether eigenvalues beside the listed ones were searched for
    complete: bool | None  # what that search has excluded
    fresh_complete: bool | None
    missed: int  # of the eigenvalues that the recording afresh lists, those that this one lacks
    largest: float
    smallest: float  # of the listed
    difference: float  # largest difference of the values over both residuals, where none is missed


def compare(warm: Recording, fresh: Recording, rate: float) -> Row:
    """The two recordings of a step as a row."""
    ours, theirs = warm.eigenpairs["hessian"], fresh.eigenpairs["hessian"]
    allowed = ours.residuals + theirs.residuals
    off = ((ours.values[:, None] - theirs.values).abs() / allowed).min(dim=0).values
    missed = int((off > 1).sum())
    return Row(
        step=warm.step,
        loss=warm.loss,
        rate=rate,
        warm_products=warm.products,
        fresh_products=fresh.products,
        warm_seconds=warm.seconds,
        fresh_seconds=fresh.seconds,
        searched=ours.complete is not None,
        complete=ours.complete,
        fresh_complete=theirs.complete,
        missed=missed,
        largest=theirs.values[0].item(),
        smallest=theirs.values[-1].item(),
        difference=float("nan") if missed else off.max().item(),
    )


def train(out: Path) -> list[Row]:
    """Train the network on the digits, its rate falling to zero as a cosine, and record in both ways."""
    images, labels = digits()
    x, y = images.flatten(1), labels
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    call = {"every": EVERY, "k": K, "trace": False, "products": 200}
    examples = (x[:WATCHED], y[:WATCHED])
    warm, fresh = (
        spectra.watch(model, spectra.CrossEntropy(), examples, out / name, warm=name == "warm", **call)
        for name in ("warm", "fresh")
    )
    rows = []
    for step in range(STEPS + 1):
        if (one := warm(step)) and (other := fresh(step)):
            rows.append(compare(one, other, float(schedule.get_last_lr()[0])))
        batch = torch.randint(len(x), (BATCH,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    return rows


def draw(rows: Sequence[Row], out: Path) -> None:
    """Draw the eigenvalues, and below them the products of each recording from a cold and from a warm start."""
    steps = [row.step for row in rows]
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(6.5, 4.4), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.4])
        top.plot(steps, [row.largest for row in rows], color=COLOURS[0], label="largest eigenvalue")
        top.plot(
            steps, [row.smallest for row in rows], color=COLOURS[2], linestyle=(0, (5, 2)), label="fifth eigenvalue"
        )
        top.set(ylabel="Hessian eigenvalue", ylim=(0, None))
        top.legend(frameon=False, fontsize=8)
        bottom.plot(
            steps,
            [row.fresh_products for row in rows],
            ".",
            color=COLOURS[1],
            ms=3,
            label="cold start, with search",
        )
        for searched, marker, label in (
            (True, "s", "warm start, with search"),
            (False, "o", "warm start alone"),
        ):
            some = [row for row in rows if row.searched == searched]
            look = {"color": COLOURS[0], "ms": 3, "mfc": COLOURS[0] if searched else "white", "linestyle": "none"}
            bottom.plot([r.step for r in some], [r.warm_products for r in some], marker, label=label, **look)
        bottom.set(xlabel="training step", ylabel="products per recording", ylim=(0, 45), xlim=(-20, STEPS + 20))
        bottom.legend(frameon=False, fontsize=8, ncols=1, loc="upper right")
        save_figure(figure, out)


def summary(rows: Sequence[Row]) -> dict:
    """What the recordings of some steps have cost, and what was missed in them."""
    cheap = [row.warm_products for row in rows if not row.searched]
    return {
        "steps": [rows[0].step, rows[-1].step],
        "recordings": len(rows),
        "products": sum(row.warm_products for row in rows),
        "products_afresh": sum(row.fresh_products for row in rows),
        "seconds": round(sum(row.warm_seconds for row in rows), 2),
        "seconds_afresh": round(sum(row.fresh_seconds for row in rows), 2),
        "searched": sum(row.searched for row in rows),
        "products_without_search": [min(cheap), max(cheap)] if cheap else None,
        "at_most_ten_without_search": sum(number <= 10 for number in cheap),
        "recordings_that_missed_an_eigenvalue": sum(row.missed > 0 for row in rows),
        "of_these_called_complete": sum(row.missed > 0 and bool(row.complete) for row in rows),
        "largest_difference_over_residuals": max(row.difference for row in rows if row.missed == 0),
    }


def main(out: Path = OUT) -> None:
    """Train, and write table, figure and how they were made."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        rows = train(Path(place))
    with (out / "recordings.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    facts = {
        "torch": installed("torch"),
        "python": platform.python_version(),
        "machine": machine(),
        "threads": 1,
        "commit": git("rev-parse", "--short", "HEAD"),
        "all": summary(rows),
    } | {name: summary([row for row in rows if low <= row.step <= high]) for name, (low, high) in PARTS.items()}
    (out / "made.json").write_text(json.dumps(facts, indent=1) + "\n")
    draw(rows, out / "figure.png")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
