"""Explain in sentences with numbers why the matrices of a problem differ.

Hessian - GGN       sum over examples and outputs of dl/df times the second derivative of f by the parameters
GGN - Fisher        zero, if the loss is -log p with the outputs as natural parameters
Fisher - empirical  labels drawn from the model, instead of the labels of the data
batch gradients     about g g' + covariance / b, whatever the empirical Fisher is
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from spectra.comparison.batch_products import BatchProducts
from spectra.comparison.comparison import Comparison
from spectra.comparison.pairs import Pair
from spectra.comparison.residuals import Residuals
from spectra.spectrum.estimates import Estimate
from spectra.wording import brief


@dataclass(frozen=True)
class Cause:
    """The reason for the difference of two matrices, as a sentence and the numbers in it."""

    between: tuple[str, str]
    sentence: str
    numbers: dict[str, Any]


def causes(
    comparison: Comparison, found: Residuals, gradient_square: float, batch: BatchProducts | None, natural: bool = True
) -> list[Cause]:
    """The known reasons for the differences of the compared matrices.

    Args:
        comparison: the comparison of the matrices.
        found: the residuals of the problem.
        gradient_square: |g|^2, with g the gradient of the mean loss.
        batch: the comparison with fisher-batch; None: left out.
        natural: whether outputs are natural parameters of the loss's distribution, so that ggn equals fisher.
    """
    return [*pair_causes(comparison, found, gradient_square, natural), *batch_causes(comparison, batch)]


def pair_causes(
    comparison: Comparison, found: Residuals, gradient_square: float, natural: bool = True
) -> Iterator[Cause]:
    """The reasons for the differences of hessian, ggn, fisher and fisher-empirical."""
    named = {(pair.first, pair.second): pair for pair in comparison.pairs}
    for (first, second), explain in (
        (("hessian", "ggn"), curvature_of_the_model),
        (("ggn", "fisher"), nothing if natural else curvature_of_the_loss),
        (("fisher", "fisher-empirical"), labels),
    ):
        pair = named.get((first, second)) or named.get((second, first))
        if pair:
            yield explain(pair, comparison, found, gradient_square)


def curvature_of_the_model(pair: Pair, comparison: Comparison, found: Residuals, gradient_square: float) -> Cause:
    """The reason for Hessian - GGN: the model's own curvature."""
    numbers = {"residuals": asdict(found), "gradient_norm": gradient_square**0.5, "distance": pair.distance}
    if pair.rounding:
        text = f"is rounding: the model is linear in these parameters, or dl/df is almost zero (now {size(found)})"
    else:
        part = share(pair.distance, comparison, pair.first)
        ends = (
            f", its eigenvalues from {pair.smallest.value:.2g} to {pair.largest.value:.2g}"
            if pair.smallest and pair.largest
            else ""
        )
        text = (
            f"is the model's own curvature, weighted by dl/df. Its norm is {part}, "
            f"its trace is {pair.trace_difference}{ends}. {size(found)}; gradient norm {gradient_square**0.5:.3g}"
        )
    return Cause((pair.first, pair.second), f"{pair.first} - {pair.second} {text}.", numbers)


def nothing(pair: Pair, comparison: Comparison, found: Residuals, gradient_square: float) -> Cause:
    """The reason for GGN - Fisher, which is zero up to rounding."""
    verdict = "which is rounding" if pair.rounding else "which is more than rounding: check the size of the outputs"
    seen = f"{pair.distance.value:.1e} of |{pair.first}|, {verdict}"
    if not math.isfinite(pair.distance.value):
        seen = share(pair.distance, comparison, pair.first)
    text = f"is zero by definition for this loss; found {seen}"
    return Cause((pair.first, pair.second), f"{pair.first} - {pair.second} {text}.", {"distance": pair.distance})


def curvature_of_the_loss(pair: Pair, comparison: Comparison, found: Residuals, gradient_square: float) -> Cause:
    """The reason for GGN - Fisher, if the loss's curvature depends on the labels."""
    text = (
        "is the curvature of the loss at the labels of the data, minus its expectation over labels drawn from the "
        f"model. Its norm is {share(pair.distance, comparison, pair.first)}"
    )
    return Cause((pair.first, pair.second), f"{pair.first} - {pair.second} {text}.", {"distance": pair.distance})


def labels(pair: Pair, comparison: Comparison, found: Residuals, gradient_square: float) -> Cause:
    """The reason for Fisher - empirical Fisher: the labels of the data differ from labels drawn from the model."""
    trace = traced(comparison, "fisher-empirical").value
    part = gradient_square / trace if trace else None
    numbers = {
        "residuals": asdict(found),
        "observed_over_expected": found.ratio,
        "gradient_square": gradient_square,
        "gradient_share": part,
        "distance": pair.distance,
        "scale": pair.scale,
        "scaled_distance": pair.scaled_distance,
    }
    seen = f"{found.observed:.3g} where the model expects 0"
    if found.ratio is not None:
        seen = f"{found.ratio:.3g} times what the model expects"
    text = (
        f"comes from the labels, which are drawn from the model or taken from the data: with those of the data, "
        f"|dl/df|^2 is {seen}{calibration(found)}. The distance is {share(pair.distance, comparison, pair.first)}"
    )
    if math.isfinite(pair.scaled_distance.value):
        text += f", and {percent(pair.scaled_distance)} at the best scale {pair.scale}"
    if part is not None:
        text += f"; the mean gradient contributes {100 * part:.2g} % of the trace of fisher-empirical"
    return Cause((pair.first, pair.second), f"{pair.first} - {pair.second} {text}.", numbers)


def batch_causes(comparison: Comparison, batch: BatchProducts | None) -> Iterator[Cause]:
    """The reason for the difference from fisher-batch, if it was compared."""
    if not batch:
        return
    b = f"{batch.batch_size:,}"
    predicted = f", with trace {batch.predicted_trace:.3g} for a random split" if batch.predicted_trace else ""
    for name, distance in list(batch.distances.items())[:1]:
        best = batch.scaled_distances[name]
        scaled = f", {percent(best)} at the best scale" if math.isfinite(best.value) else ""
        text = (
            f"{name} - fisher-batch: outer products of the gradients of batches of {b} are about g g' + covariance / "
            f"{b}{predicted}. Their trace is {batch.trace}, and that of {name} is {traced(comparison, name)}. "
            f"The distance is {share(distance, comparison, name)}{scaled}. "
            f"With one batch of all examples the trace is {batch.whole_trace:.3g}, the squared norm of the gradient."
        )
        yield Cause((name, "fisher-batch"), text, asdict(batch))


def traced(comparison: Comparison, name: str) -> Estimate:
    """The trace of a compared matrix, which is always estimated."""
    trace = comparison.summaries[name].trace
    assert trace is not None
    return trace


def size(found: Residuals) -> str:
    """The residuals in words."""
    if found.deviation is not None:
        return f"Root mean square of f - y {found.residual_rms:.3g}, of y about its mean {found.deviation:.3g}"
    if found.missing is None or found.accuracy is None:
        return f"Mean |dl/df| {found.gradient:.3g}"
    return f"Mean |p - y| {found.residual:.3g}, 1 - p_y {found.missing:.3g}, accuracy {100 * found.accuracy:.1f} %"


def calibration(found: Residuals) -> str:
    """The confidence and the calibration error in parentheses; empty if the loss has no probabilities."""
    if found.confidence is None or found.accuracy is None or found.calibration_error is None:
        return ""
    return (
        f" (confidence {100 * found.confidence:.1f} %, accuracy {100 * found.accuracy:.1f} %, calibration error "
        f"{100 * found.calibration_error:.1f} %, 1 - p_y {found.missing:.3g})"
    )


def share(distance: Estimate, comparison: Comparison, name: str) -> str:
    """A distance in percent of the norm of the matrix `name`, in words if that is zero or not finite."""
    if math.isfinite(distance.value):
        return f"{percent(distance)} of |{name}|"
    norm = comparison.summaries[name].norm
    zero = norm is not None and norm.value == 0
    return f"no share of |{name}|, which is zero" if zero else f"an unknown share of |{name}|"


def percent(estimate: Estimate) -> str:
    """An estimate in percent, with its error."""
    return f"{brief(100 * estimate.value, 100 * estimate.standard_error)} %"
