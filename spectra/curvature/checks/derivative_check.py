"""Compare one product of a matrix with finite differences, before any method starts.

A wrong second derivative may still be symmetric and repeatable. It comes from a backward that uses values outside the
graph, a fused kernel that keeps its gradient, or parameters that a cache or a checkpoint has detached. So products are
compared on a few examples and along one random direction v, by central differences (`differences`):

    hessian            H v  against  gradients at theta + h v and theta - h v
    J'M J              J v  against  outputs there, and M u against slopes of the loss at outputs f + h u and f - h u
    outer products     J v, and the slope of the loss along u against its values; for whole batches, the slope along v

The comparison is in float64 on a copy of the model if model and memory allow that, else on the model itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from spectra.curvature.checks.differences import STEPS, Verdict, judge
from spectra.curvature.checks.error_location import locate_error
from spectra.curvature.checks.perturbed import LocalProblem, copied, in_place, random_direction
from spectra.curvature.chunks import HeadJacobian
from spectra.curvature.definition import Derivative, loss_gradient
from spectra.curvature.engine.batches import joined, kind
from spectra.curvature.engine.differentiation import Jacobian, gradient
from spectra.curvature.engine.footprint import Footprint, elements
from spectra.curvature.engine.gradients import batch_gradient
from spectra.curvature.matrices import definition
from spectra.devices import in_float64
from spectra.errors import SpectraError, describe
from spectra.problem.autograd_graph import names_behind
from spectra.problem.batch import Batch
from spectra.problem.head import head_inputs, loss_of, rows_by_parts
from spectra.problem.problem import Problem
from spectra.wording import counted, dtype_name

EXAMPLES = 16  # the check costs 8 gradients of them, 16 with kinks at the point: as much as 4 of 64 examples
ROUNDED = 0.05  # the largest relative error of products in the problem's own dtype
PRODUCT = 3  # the time of a product, in gradients
VECTORS = 8  # vectors of all parameters in memory at once
AT_KINKS = "differences at the point contradict the derivative (due to many kinks at the point)"
KINKED = (  # beginnings of the names of autograd's nodes for functions with kinks
    *("Relu", "LeakyRelu", "Prelu", "Rrelu", "Threshold", "Hard", "Softshrink", "Abs", "Max", "Amax", "Min", "Amin"),
    *("Clamp", "Sort", "Topk", "Kthvalue", "Median", "Huber", "SmoothL1", "L1", "AdaptiveMax", "Cummax", "Cummin"),
)


@dataclass(frozen=True)
class DerivativeCheckResult:
    """The result of a comparison with finite differences: what was compared, and how well it agreed."""

    examples: int = 0
    dtype: str | None = None
    error: float | None = None  # of a product, relative to the larger of the two; None where nothing could be compared
    rounding: float | None = None  # relative difference between products in the problem's own dtype and in float64
    gradients: int = 0  # the cost, in gradients of these examples: a product counts for three
    not_checked: str | None = None  # why all or some parameters were not checked


def check_derivatives(problem: Problem, name: str, memory: int, costs: Footprint) -> DerivativeCheckResult:
    """Compare one product of a matrix with finite differences. Raises SpectraError where they contradict it.

    Args:
        problem: the model, loss and data.
        name: the matrix.
        memory: the bytes for copies and products; where they are too few, `not_checked` of the result says so.
        costs: the memory of the matrix's products.

    Returns:
        What was compared, and how well it agreed; kinks and rounding may leave the differences unreliable.
    """
    with warnings.catch_warnings(action="ignore"):
        return _check(problem, name, memory, costs)


def _check(problem: Problem, name: str, memory: int, costs: Footprint) -> DerivativeCheckResult:
    found = DerivativeCheckResult(not_checked="too little memory for a copy of the model and a product of an example")
    for way, dtype in ((copied, torch.float64), (in_place, problem.dtype)):
        if dtype not in STEPS or (batch := some_examples(problem, memory, costs, way is copied)) is None:
            continue
        try:
            with way(problem, batch) as local:
                verdicts = verdicts_of(local, name)
                if (wrong := contradiction(verdicts)) and not (way is copied and has_kinks(local)):
                    raise DerivativeMismatch(refusal(local, name, wrong))
                found = agreement(local, verdicts)
                rounding = rounding_error(problem, batch, local, name) if problem.dtype != local.problem.dtype else None
                if (wrong or found.not_checked) and way is copied:
                    found = compare_beside(local, name, found, wrong)
                return replace(found, rounding=rounding, gradients=local.gradients + PRODUCT * (rounding is not None))
        except DerivativeMismatch:
            raise
        except Exception as error:  # an error of the model itself will show in its products
            found = DerivativeCheckResult(
                len(batch), not_checked=f"the model can't be evaluated at other parameters ({describe(error)})"
            )
    return found


class DerivativeMismatch(SpectraError):
    """Finite differences contradict a derivative."""


def verdicts_of(local: LocalProblem, name: str) -> list[Verdict]:
    """The verdicts of all comparisons for the matrix."""
    return [compare() for compare in comparisons(local, name)]


def contradiction(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The first verdict by which a derivative is wrong; None where there is none."""
    return next((verdict for verdict in verdicts if verdict.wrong and math.isfinite(verdict.derivative)), None)


def compare_beside(
    local: LocalProblem, name: str, found: DerivativeCheckResult, wrong: Verdict | None
) -> DerivativeCheckResult:
    """Repeat the comparison beside the point, where few functions have a kink, if it was inconclusive at the point.

    Where many rectifiers are at their kink, as behind channels that are zero, differences at several steps may even
    agree with each other but not with the derivative (`wrong`). Raises DerivativeMismatch where the derivative is wrong
    beside the point too, or the comparison there is inconclusive.
    """
    local.step_aside()
    verdicts = verdicts_of(local, name)
    beside = agreement(local, verdicts)
    if off := contradiction(verdicts) or (wrong if beside.not_checked else None):
        raise DerivativeMismatch(refusal(local, name, off))
    if beside.not_checked:
        return found
    why = found.not_checked or AT_KINKS
    return replace(found, error=beside.error, not_checked=f"{why}; beside the point they agree")


def comparisons(local: LocalProblem, name: str) -> list[Callable[[], Verdict]]:
    """The comparisons for a matrix, one for each derivative that its product uses."""
    return [partial(COMPARISONS[derivative], local) for derivative in definition(name).derivatives]


def second_derivative(local: LocalProblem) -> Verdict:
    """Compare H v with differences of gradients, one part for each parameter tensor."""
    problem, batch = local.problem, local.batch
    local.gradients += PRODUCT
    local.product = product = definition("hessian").linearise(problem, batch)(problem.vector(local.direction))

    def gradients(step: float) -> Sequence[Tensor]:
        with local.moved(step):
            return problem.tensors(batch_gradient(problem, batch) / problem.weight)

    return judged(problem.tensors(product), gradients, local)


def jacobian(local: LocalProblem) -> Verdict:
    """Compare J v with differences of outputs; where logits are made in chunks, of the inputs of their layer."""
    problem, batch, head = local.problem, local.batch, local.problem.head
    local.gradients += PRODUCT
    direction = problem.vector(local.direction)
    if head is None:
        product = Jacobian(problem, batch).times(direction)
    else:
        found = HeadJacobian(problem, batch, head).times(direction)[0]
        product = torch.zeros_like(head_inputs(problem, batch, head)) if found is None else found

    def outputs(step: float) -> Sequence[Tensor]:
        with local.moved(step):
            return [(problem.rows(batch) if head is None else head_inputs(problem, batch, head)).detach()]

    return judged([product], outputs, local)


def slope(local: LocalProblem) -> Verdict:
    """Compare g'v with differences of the summed loss, g its gradient."""
    problem, batch = local.problem, local.batch
    local.gradients += 1
    along = batch_gradient(problem, batch) @ problem.vector(local.direction)

    def values(step: float) -> Sequence[Tensor]:
        with local.moved(step):
            return [loss_of(problem, batch).detach()]

    return judged([along], values, local)


def loss_curvature(local: LocalProblem) -> Verdict:
    """Compare M u with differences of slopes, M the second derivative of the loss by the outputs."""
    problem, (rows, batch) = local.problem, rows_of(local)
    leaf, first = loss_gradient(problem, batch, rows, create_graph=True)
    u = output_direction(leaf, local)
    product = gradient(first, (leaf,), u)[0]
    return judged([product], lambda step: [loss_gradient(problem, batch, leaf.detach() + step * u)[1]], local)


def loss_slope(local: LocalProblem) -> Verdict:
    """Compare the slope of the summed loss along u in output space with differences of its values."""
    problem, (rows, batch) = local.problem, rows_of(local)
    leaf, first = loss_gradient(problem, batch, rows)
    u = output_direction(leaf, local)
    return judged([(first * u).sum()], lambda step: [problem.total(leaf.detach() + step * u, batch)], local)


COMPARISONS: dict[Derivative, Callable[[LocalProblem], Verdict]] = {
    "hessian": second_derivative,
    "jacobian": jacobian,
    "loss hessian": loss_curvature,
    "loss gradient": loss_slope,
    "gradient": slope,
}


def output_direction(rows: Tensor, local: LocalProblem) -> Tensor:
    """A random u of the size of the outputs, or of size 1 where they are smaller."""
    (u,) = random_direction([rows], local.generator)
    return u / min(1.0, rows.detach().square().mean().sqrt().item() or 1.0)


def rows_of(local: LocalProblem) -> tuple[Tensor, Batch]:
    """The model's rows, detached, and the batch of their targets; of one chunk of tokens where logits are in chunks."""
    rows, batch = next(rows_by_parts(local.problem, local.batch))
    return rows.detach(), batch


def judged(derivative: Sequence[Tensor], function: Callable[[float], Sequence[Tensor]], local: LocalProblem) -> Verdict:
    """Judge a derivative by differences.

    In single precision a model with kinks is never judged wrong, since the long steps cross many kinks.
    """
    verdict = judge(derivative, function)
    if verdict.wrong and local.problem.dtype != torch.float64 and has_kinks(local):
        return replace(verdict, wrong=False, unclear=len(derivative))
    return verdict


def has_kinks(local: LocalProblem) -> bool:
    """Whether autograd's graph of the loss has functions with kinks."""
    problem, batch = local.problem, local.batch
    return any(name.startswith(KINKED) for name in names_behind([loss_of(problem, batch)]))


def agreement(local: LocalProblem, verdicts: Sequence[Verdict]) -> DerivativeCheckResult:
    """The result of comparisons that do not contradict the derivatives."""
    unclear, clear = sum(verdict.unclear for verdict in verdicts), [v for v in verdicts if not v.unclear]
    parts = f"{unclear} of {len(local.direction)} parameters" if len(verdicts) == 1 else "a part of the product"
    finite = all(math.isfinite(verdict.derivative) for verdict in verdicts)
    why = "differences at several steps disagree (due to kinks at the point)" if finite else "a product is not finite"
    return DerivativeCheckResult(
        examples=len(local.batch),
        dtype=dtype_name(local.problem.dtype),
        error=max((verdict.error for verdict in clear), default=None),
        not_checked=f"{why} for {parts}" if unclear else None if finite else why,
    )


def rounding_error(problem: Problem, batch: Batch, local: LocalProblem, name: str) -> float:
    """The relative difference between a product in the problem's own dtype and one in float64.

    Raises DerivativeMismatch where it is too large.
    """
    matrix = definition(name).linearise
    exact = local.product
    if exact is None:
        exact = matrix(local.problem, local.batch)(local.problem.vector(local.direction))
    direction = problem.vector(local.direction).to(problem.leaves[0])
    own = replace(problem, batches=[batch])
    found = in_float64(matrix(own, batch)(direction)).to(exact.device)

    size, off = exact.norm().item(), (found - exact).norm().item()
    dtype = dtype_name(problem.dtype)
    chance = off > ROUNDED * size and (in_float64(matrix(own, batch)(direction)) - found).norm() > 0.1 * off
    if off > ROUNDED * size and not chance and math.isfinite(off):  # `check_operator` reports chance
        raise DerivativeMismatch(
            f"`dtype` {dtype}: a product with {name} in {dtype} differs by {100 * off / (size or 1):.2g} % from one in "
            f"float64 (norms {found.norm():.4g} and {size:.4g} on {counted(len(batch), 'example')}), for instance "
            "because outputs saturate; use `dtype` float64"
        )
    return off / size if size else 0.0


def refusal(local: LocalProblem, name: str, verdict: Verdict) -> str:
    """The error message: how large the error of the derivative is, and where it may come from."""
    what = {"hessian": "gradients", "gradient": "the loss"}.get(definition(name).derivatives[0], "outputs and slopes")
    option, place = locate_error(local)
    return (
        f"{option}: autograd gives a wrong derivative: its norm along a random direction is {verdict.derivative:.4g}, "
        f"but finite differences of {what} give {verdict.difference:.4g} ({100 * verdict.error:.2g} % apart on "
        f"{counted(len(local.batch), 'example')}); {place}. Possible causes are values kept outside the graph, fused "
        "kernels, detach() and caches; use differentiable operations, or give `check=False`"
    )


def some_examples(problem: Problem, memory: int, costs: Footprint, copy: bool) -> Batch | None:
    """A batch of at most EXAMPLES examples from all over the data, as memory allows; None where it allows no example.

    Where the model takes only its own batches, the largest is returned.
    """
    scale, held = (torch.float64.itemsize / problem.dtype.itemsize, 8) if copy else (1, problem.dtype.itemsize)
    model = sum(t.numel() for t in (*problem.model.parameters(), *problem.model.buffers())) if copy else 0
    room = (memory - held * (model + VECTORS * problem.size)) / scale

    if not costs.scales:
        largest = max(problem.batches, key=len)
        return largest if costs.peak(elements(largest)) <= room else None

    each = max(elements(batch) / len(batch) for batch in problem.batches)
    for count in range(min(EXAMPLES, sum(map(len, problem.batches))), 0, -1):
        if costs.peak(each * count) <= room:
            return spread(problem.batches, count)
    return None


def spread(batches: Sequence[Batch], count: int) -> Batch:
    """The batch of `count` evenly spaced examples, without those of another shape than the first."""
    places = torch.linspace(0, sum(map(len, batches)) - 1, count).round().long().tolist()
    singles, start = [], 0
    for batch in batches:
        inside = [place - start for place in places if start <= place < start + len(batch)]
        singles += [batch.part(slice(place, place + 1)) for place in inside]
        start += len(batch)
    return joined([single for single in singles if kind(single) == kind(singles[0])])
