"""The table and the figure of the study, from the results of `spectra sweep run plan.toml` and plain.toml.

python figure.py       # table.csv, evolution.png and evolution.pdf; prints what README.md states
"""

from dataclasses import replace
from pathlib import Path

import matplotlib.style
import numpy as np
import train
from matplotlib.ticker import MaxNLocator

from spectra import evolution_of
from spectra.plots.evolution import LIMIT, times_rate
from spectra.plots.style import COLOURS, STYLE, Figure, save_figure
from spectra.records.sweep import Evolution, Row

HERE = Path(__file__).parent
KEPT = ("loss", "eigenvalue", "learning_rate", "threshold", "over_threshold")  # quantities
SETTLED = 4000  # the step from which on a training is taken to have settled
TITLES = {
    "gradient-descent": "gradient descent",
    "heavy-ball-0.5": "heavy ball, b = 0.5",
    "heavy-ball-0.9": "heavy ball, b = 0.9",
    "nesterov-0.9": "Nesterov, b = 0.9",
    "rmsprop-0.001": "RMSProp",
    "adam-0.0003": "Adam",
    "adam-0.01": "Adam",
    "nadam-0.001": "NAdam",
}


def main() -> None:
    runs = {name: evolution_of(HERE / "runs" / name) for name in train.RUNS}
    rows = [replace(row, checkpoint=f"{name}/step-{row.step}") for name, run in runs.items() for row in run.rows]
    table = replace(runs["adam-0.01"], rows=tuple(row for row in rows if row.quantity in KEPT), notes=())
    (HERE / "table.csv").write_text(table.to_csv())
    with matplotlib.style.context(STYLE):
        figure = draw(runs)
        for kind in ("png", "pdf"):
            with (HERE / f"evolution.{kind}").open("wb") as file:
                save_figure(figure, file, kind)
    for name, run in runs.items():
        print(line(name, run))


def leading(run: Evolution, index: int = 1) -> list[Row]:
    """The rows of an eigenvalue times the learning rate, over steps."""
    return times_rate(run).select("eigenvalue", index=index)


def draw(runs: dict[str, Evolution]) -> Figure:
    """A panel for each optimizer: the learning rate times two eigenvalues, the threshold, and the plain sharpness."""
    figure = Figure(figsize=(6.5, 4.1), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True)
    for axes, (name, run) in zip(panels.flat, runs.items(), strict=True):
        limit = times_rate(run).select("threshold")
        axes.plot(*points(leading(run)), color=COLOURS[0], linewidth=1.6, marker="o", markersize=2.4, label="largest")
        axes.plot(*points(leading(run, 2)), color=COLOURS[1], linewidth=0.9, label="second")
        axes.plot(*points(limit), **LIMIT, label="threshold of the optimizer")
        axes.set_ylim(0, 1.3 * max(row.value for row in limit if row.value is not None))
        axes.set_title(f"{TITLES[name]}\nη = {train.RUNS[name][1]['lr']:g}", fontsize=8, loc="left")
        told = f"sharpness\n{plain(name).value:.0f} in the end"
        axes.text(0.97, 0.05, told, transform=axes.transAxes, ha="right", fontsize=7, color="0.25")
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelsize=7)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.supxlabel("training step", fontsize=9)
    figure.supylabel("η × eigenvalue of $P^{-1/2}HP^{-1/2}$", fontsize=9)
    return figure


def plain(name: str) -> Row:
    """The largest eigenvalue of the Hessian itself at the end of a training."""
    return evolution_of(HERE / "runs-plain" / name).select("eigenvalue", index=1)[-1]


def points(rows: list[Row]) -> tuple[list, list]:
    return [row.step for row in rows], [row.value for row in rows]


def line(name: str, run: Evolution) -> str:
    """A line of the table in README.md: the settled value, its threshold, and the plain Hessian in the end."""
    settled = np.array([row.value for row in leading(run) if row.step >= SETTLED])
    errors = [row.error for row in leading(run) if row.step >= SETTLED and row.error is not None]
    limit = [row.value for row in times_rate(run).select("threshold") if row.step >= SETTLED and row.value is not None]
    share = np.array([row.value for row in run.select("over_threshold", index=1) if row.step >= SETTLED])
    cells = (
        TITLES[name],
        f"{train.RUNS[name][1]['lr']:g}",
        " to ".join(dict.fromkeys(f"{end:.3g}" for end in (limit[0], limit[-1]))),
        f"{settled.mean():.2f} ({settled.min():.2f} to {settled.max():.2f})",
        f"{share.mean():.3f} ± {share.std(ddof=1):.3f}",
        f"{plain(name).value:.1f}",
        f"largest residuals {max(errors):.0e} and {plain(name).error:.0e}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
