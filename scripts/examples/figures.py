"""The figures of docs/pruning.md, influence.md, evidence.md and how-to/method-and-tolerance.md, in results/examples/.

python -m scripts.examples.figures        # three minutes
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import spectra
from scripts.examples import evidence, influence, pruning
from spectra.demo import train
from spectra.inputs.data import digits
from spectra.plots.style import COLOURS, DASHES, MARKERS, STYLE, save_figure

OUT = Path("results/examples")
TRACES = {"Hutchinson": spectra.hutchinson, "Hutch++": spectra.hutch_plus_plus, "XTrace": spectra.xtrace}

Errors = dict[str, list[tuple[int, float]]]  # of each method, by its products


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    with matplotlib.style.context(STYLE):
        save_figure(pruning_figure(pruning.main()), OUT / "pruning.png")
        save_figure(evidence_figure(evidence.main()), OUT / "evidence.png")
        data = influence.Digits.drawn(200, 500)
        cases = {one.name: changes(one, data) for one in (influence.RIDGE, influence.LOGISTIC)}
        save_figure(influence_figure(cases), OUT / "influence.png")
        save_figure(trace_figure(trace_errors()), OUT / "trace.png")


def changes(regression: influence.Regression, data: influence.Digits) -> tuple[dict[str, Tensor], Tensor]:
    """The changes of the held-out loss by each prediction, and by training again."""
    predictions, true = influence.predicted_and_true(regression, data, left_out=40, decay=0.01)
    return {name: values for name, (values, _) in predictions.items()}, true


def trace_errors(probes: Sequence[int] = (12, 24, 48, 96), seeds: int = 10, samples: int = 300) -> Errors:
    """Root mean square relative errors of the trace of the Hessian of the digits network."""
    images, labels = (array[:samples] for array in digits())
    *_, (_, network, _) = train(images, labels)
    batches = spectra.cut_batches(images, labels, torch.arange(len(labels)), size=len(labels))
    hessian = spectra.Curvature(spectra.Problem(network, spectra.CrossEntropy(), batches), "hessian")
    columns = torch.eye(hessian.shape[0]).split(64, dim=1)
    trace = sum((hessian @ part).mul(part).sum().item() for part in columns)
    found: Errors = {name: [] for name in TRACES}
    for name, method in TRACES.items():
        for count in probes:
            estimates = [method(hessian, probes=count, seed=seed) for seed in range(seeds)]
            errors = torch.tensor([one.value / trace - 1 for one in estimates])
            found[name].append((estimates[0].products, errors.square().mean().sqrt().item()))
    return found


def trace_figure(found: Errors) -> Figure:
    """Relative error of a trace against products, one curve a method."""
    figure = Figure(figsize=(4.2, 2.7), layout="constrained")
    axes = figure.subplots()
    for place, (name, errors) in enumerate(found.items()):
        products, values = zip(*errors, strict=True)
        axes.plot(
            products,
            values,
            color=COLOURS[place],
            linestyle=DASHES[place],
            marker=MARKERS[place],
            markersize=4,
            label=name,
        )
    axes.set(xscale="log", yscale="log", xlabel="products", ylabel="relative error of the trace")
    axes.set_xticks([20, 50, 100, 200], ["20", "50", "100", "200"])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False)
    return figure


def pruning_figure(rows: Sequence[pruning.Row]) -> Figure:
    """Accuracy against sparsity: one curve a method, without and with retraining."""
    figure, (alone, between) = panels("accuracy on held-out digits, %")
    for place, method in enumerate(pruning.METHODS):
        own = [row for row in rows if row.method == method]
        sparsity = [100 * row.sparsity for row in own]
        curve(alone, place, sparsity, [r.accuracy for r in own], [r.accuracy_error for r in own], method)
        curve(between, place, sparsity, [r.retrained for r in own], [r.retrained_error for r in own], method)
    alone.set(title="without retraining", xlabel="weights that are zero, %")
    between.set(title="with retraining after each step", xlabel="weights that are zero, %")
    alone.legend(frameon=False, loc="lower left")
    return figure


def evidence_figure(rows: Sequence[evidence.Row]) -> Figure:
    """Log evidence and held-out loss against weight decay."""
    figure, (left, right) = panels("log evidence", share=False)
    decays = [row.decay for row in rows]
    curve(left, 0, decays, [row.evidence for row in rows], [row.evidence_error for row in rows])
    curve(right, 1, decays, [row.held_out for row in rows], [row.held_out_error for row in rows])
    right.set(ylabel="loss on held-out digits")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="weight decay")
    return figure


def influence_figure(cases: dict[str, tuple[dict[str, Tensor], Tensor]]) -> Figure:
    """Predicted against true changes of the held-out loss, one panel a regression."""
    figure, axes = panels("predicted change of the held-out loss", share=False)
    for one, (name, (predictions, true)) in zip(axes, cases.items(), strict=True):
        one.axline((0, 0), slope=1, color="0.7", linewidth=0.8)
        for place, (kind, values) in enumerate(predictions.items()):
            one.plot(
                true, values, MARKERS[place], color=COLOURS[place], markersize=3.5, markerfacecolor="none", label=kind
            )
        one.set(title=f"{name} regression", xlabel="change after training again")
        one.locator_params(axis="x", nbins=5)
    axes[0].legend(frameon=False)
    return figure


def panels(label: str, share: bool = True) -> tuple[Figure, Sequence[Axes]]:
    """A figure with two panels side by side."""
    figure = Figure(figsize=(6.5, 2.7), layout="constrained")
    axes = figure.subplots(1, 2, sharey=share)
    axes[0].set_ylabel(label)
    return figure, axes


def curve(
    axes: Axes, place: int, x: Sequence[float], y: Sequence[float], errors: Sequence[float], label: str | None = None
) -> None:
    """A curve with error bars; its colour, dashes and marker follow from its place."""
    axes.errorbar(
        x,
        y,
        errors,
        color=COLOURS[place],
        linestyle=DASHES[place],
        marker=MARKERS[place],
        markersize=4,
        capsize=2,
        label=label,
    )


if __name__ == "__main__":
    main()
