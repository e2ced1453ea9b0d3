"""The table and the figure of the study, from the results of `spectra sweep run plan.toml` and plain.toml.

python figure.py       # table.csv, evolution.png and evolution.pdf; prints what README.md states
"""

from dataclasses import replace
from pathlib import Path

import matplotlib.style
import numpy as np
import train

from spectra import evolution_of
from spectra.plots.evolution import times_rate
from spectra.plots.style import COLOURS, STYLE, Figure, save_figure
from spectra.records.sweep import Evolution, Row

HERE = Path(__file__).parent
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
    rows = [replace(row, checkpoint=f"{name}/{row.checkpoint}") for name, run in runs.items() for row in run.rows]
    table = replace(runs["adam-0.01"], rows=tuple(rows), notes=())
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
    """A panel for each optimizer: the learning rate times two eigenvalues, and the threshold."""
    figure = Figure(figsize=(6.5, 3.7), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True)
    for axes, (name, run) in zip(panels.flat, runs.items(), strict=True):
        limit = times_rate(run).select("threshold")
        for index, width, alpha in ((2, 0.9, 0.6), (1, 1.6, 1.0)):
            rows = leading(run, index)
            axes.plot(
                *points(rows),
                color=COLOURS[0],
                linewidth=width,
                alpha=alpha,
                marker="o" if index == 1 else "",
                markersize=2.4,
            )
        axes.plot(*points(limit), color="black", linestyle=(0, (4, 3)), linewidth=1.0)
        top = 1.25 * max(row.value for row in limit if row.value is not None)
        axes.set_ylim(0, max(top, 1.05 * max(row.value for row in leading(run) if row.value is not None)))
        axes.set_title(f"{TITLES[name]}, η = {train.RUNS[name][1]['lr']:g}", fontsize=7.5, loc="left")
        axes.tick_params(labelsize=7)
    figure.supxlabel("training step", fontsize=9)
    figure.supylabel("η λ of the preconditioned Hessian", fontsize=9)
    return figure


def points(rows: list[Row]) -> tuple[list, list]:
    return [row.step for row in rows], [row.value for row in rows]


def line(name: str, run: Evolution) -> str:
    """A line of the table in README.md: the settled value, its threshold, and the plain Hessian in the end."""
    settled = np.array([row.value for row in leading(run) if row.step >= SETTLED])
    errors = [row.error for row in leading(run) if row.step >= SETTLED and row.error is not None]
    limit = [row.value for row in times_rate(run).select("threshold") if row.step >= SETTLED and row.value is not None]
    share = np.array([row.value for row in run.select("over_threshold", index=1) if row.step >= SETTLED])
    plain = evolution_of(HERE / "runs-plain" / name).select("eigenvalue", index=1)[-1]
    cells = (
        TITLES[name],
        f"{train.RUNS[name][1]['lr']:g}",
        f"{limit[0]:.3g} to {limit[-1]:.3g}",
        f"{settled.mean():.2f} ({settled.min():.2f} to {settled.max():.2f})",
        f"{share.mean():.2f} ± {share.std(ddof=1):.2f}",
        f"{plain.value:.1f}",
        f"largest residuals {max(errors):.0e} and {plain.error:.0e}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
