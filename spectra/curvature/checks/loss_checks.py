"""Refuse a user's loss that is random, mixes examples, or has no second derivative.

All checks are made in output space, on rows that the model computes once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectra.curvature.definition import IS_ZERO, Definition, loss_gradient
from spectra.curvature.engine.batches import joined, kind
from spectra.curvature.engine.differentiation import explained, gradient, twice_differentiable
from spectra.errors import SpectraError, describe
from spectra.memory import out_of_memory
from spectra.problem.batch import Batch
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.huber import LinearTailLoss
from spectra.problem.losses import CustomLoss, name_of
from spectra.problem.problem import Problem
from spectra.problem.side_effects import generators_restored, global_generator_states, reseed
from spectra.random_numbers import normal_like

DRAWS = 16  # values of a loss that draws random numbers: a few may be equal by chance
SPREAD = 64  # examples, from all over the data, that are split in two ways
FEW = 8  # examples on which a second derivative is tried


def refuse_unfit_loss(problem: Problem, matrix: Definition) -> None:
    """Raise SpectraError where a user's loss is random, depends on the batches, or lacks derivatives of the matrix."""
    if not problem.batches:
        return
    if why := why_no_gradients(problem, matrix):
        raise SpectraError(f"`curvature` {matrix.name}: {why}")
    if not isinstance(problem.loss, CustomLoss):
        return
    batch = problem.batches[0]
    rows = rows_of(problem, batch)
    refuse_random_loss(problem, rows, batch)
    if "loss gradient" in matrix.derivatives and not matrix.depends_on_batches:
        refuse_compared_examples(problem, matrix.name, rows, batch)
    if len(problem.batches) > 1:
        refuse_tied_examples(problem, rows, batch)
        layout = problem.layout(batch)
        if layout is None or layout.by_example:
            refuse_tied_examples(problem, *spread_examples(problem))
    if matrix.takes_loss_hessian and (why := no_second_derivative(problem, rows, batch)):
        raise SpectraError(
            f"`loss` {name_of(problem.loss)}: has no second derivative ({why}); write the loss with operations that "
            "can be differentiated twice, or ask for `curvature` fisher-empirical, which needs only a first derivative"
        )


def why_zero(problem: Problem, matrix: Definition) -> str | None:
    """The reason why a matrix is zero on these data, with the way out; None where it is not zero.

    A loss that is linear in parts, such as Huber's, may be linear in the output at every target. Losses that curve
    everywhere are not tested, and a loss with a gradient of zero is accepted.
    """
    if "loss hessian" not in matrix.derivatives or not isinstance(problem.loss, CustomLoss | LinearTailLoss):
        return None
    with twice_differentiable(problem.model), explained():
        first = problem.batches[0]
        if no_second_derivative(problem, rows_of(problem, first), first):
            return None
        if all(is_flat(problem, batch) for batch in problem.batches) and any(
            loss_gradient(problem, batch, rows_of(problem, batch))[1].any() for batch in problem.batches
        ):
            return IS_ZERO.format(" at every target of these data", "")
    return None


def is_flat(problem: Problem, batch: Batch) -> bool:
    """Whether a random product with the second derivative of a batch's loss by its rows is exactly zero."""
    rows = rows_of(problem, batch)
    drawn = normal_like(rows, torch.Generator().manual_seed(0))
    return not loss_hessian_product(problem, rows, batch, drawn).any()


def why_no_gradients(problem: Problem, matrix: Definition) -> str | None:
    """The reason why single examples have no gradients, with the way out; None where they have, or none are needed.

    It is a loss of (model, batch) that returns one number for a batch, or an output with tensors that do not belong to
    single examples.
    """
    if "loss gradient" not in matrix.derivatives or (why := why_no_examples(problem)) is None:
        return None
    reason, way_out = why
    others = "hessian" if isinstance(problem.loss, BatchLoss) else "hessian or ggn"
    return f"{reason}; {way_out}, or ask for {others}"


def why_no_examples(problem: Problem) -> tuple[str, str] | None:
    """The reason why single examples have no gradients of their own, and the way out; None where they have."""
    if not isinstance(problem.loss, CustomLoss | BatchLoss) or not problem.batches:
        return None
    batch = problem.batches[0]
    if isinstance(problem.loss, BatchLoss):
        if len(rows_of(problem, batch)) == len(batch):
            return None
        reason = (
            f"{name_of(problem.loss)} returns one number for a batch, so its examples have no gradients of their own"
        )
        return reason, "return one value for each example"
    rows_of(problem, batch)
    layout = problem.layout(batch)
    if layout and not layout.by_example:
        reason = (
            "the first dimension of some tensors in the model's output is not the number of examples, so examples have "
            "no gradients of their own"
        )
        return reason, "leave such tensors out of the output"
    return None


def refuse_compared_examples(problem: Problem, name: str, rows: Tensor, batch: Batch) -> None:
    """Raise SpectraError where the loss compares the examples of a batch, so that none has a gradient of its own."""
    if not compares_examples(problem, rows, batch):
        return
    raise SpectraError(
        f"`curvature` {name}: `loss` {name_of(problem.loss)} compares the examples of a batch with each other, so they "
        "have no gradients of their own; ask for hessian, ggn or fisher-batch"
    )


def compares_examples(problem: Problem, rows: Tensor, batch: Batch) -> bool:
    """Whether the derivative of the loss by one half of the rows changes with the other half."""
    half = len(rows) // 2
    some = torch.zeros_like(rows)
    some[:half] = normal_like(some[:half], torch.Generator().manual_seed(0))
    try:
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_()
            slope = gradient(problem.total(leaf, batch), (leaf,), create_graph=True)[0]
            return bool(gradient(slope, (leaf,), some)[0][half:].any())
    except RuntimeError as error:  # without a second derivative it does not show
        unless_out_of_memory(error)
        return False


def takes_whole_batches(problem: Problem) -> bool:
    """Whether a user's loss depends on whole batches, as the first batch shows.

    A loss of (output, target) does so if it compares examples; one of (model, batch) if it returns one number for a
    batch, or if an example's value depends on the rest of the batch.
    """
    if not isinstance(problem.loss, BatchLoss | CustomLoss) or not problem.batches:
        return False
    with twice_differentiable(problem.model), explained():
        return ties_examples(problem, problem.batches[0])


def ties_examples(problem: Problem, batch: Batch) -> bool:
    """Whether a user's loss of a batch is not a sum over its examples."""
    whole, count = rows_of(problem, batch), len(batch)
    if isinstance(problem.loss, CustomLoss):
        return compares_examples(problem, whole, batch)
    if len(whole) != count:
        return True
    rounding = torch.finfo(whole.dtype).eps ** 0.5 * whole.abs().mean()
    for cut in (slice(None, count // 2), slice(count // 2, None)) if count > 1 else ():
        try:
            part = rows_of(problem, batch.part(cut))
        except (SpectraError, TypeError, IndexError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            return True
        if part.shape != whole[cut].shape or not (part - whole[cut]).abs().max() <= rounding:
            return True
    return False


def rows_of(problem: Problem, batch: Batch) -> Tensor:
    """The model's rows for a batch, without a graph."""
    with torch.no_grad():
        return problem.rows(batch).detach()


def refuse_random_loss(problem: Problem, rows: Tensor, batch: Batch) -> None:
    """Raise SpectraError where another state of the global generators, or another call, gives another value."""

    def value(seed: int) -> tuple[float, bool]:
        with generators_restored(), torch.no_grad():
            reseed(seed)
            before = global_generator_states()
            return problem.total(rows, batch).item(), global_generator_states() != before

    first, drew = value(0)
    rounding = 0.0 if drew else 100 * torch.finfo(rows.dtype).eps * abs(first)
    for seed in range(1, DRAWS if drew else 2):
        again, _ = value(seed)
        if abs(again - first) > rounding:
            raise SpectraError(
                f"`loss` {name_of(problem.loss)}: its value changes from call to call ({first / len(rows):.6g}, then "
                f"{again / len(rows):.6g}), as with dropout, random pairs or other random numbers; remove them, or "
                "draw them once, with the data"
            )


def refuse_tied_examples(problem: Problem, rows: Tensor, batch: Batch) -> None:
    """Raise SpectraError where the loss of some examples is not the sum over their halves, split in two ways."""
    count = len(batch)
    order = torch.arange(count, device=rows.device)
    ways = [(order[: count // 2], order[count // 2 :]), (order[::2], order[1::2])] if count > 1 else []
    with torch.no_grad():
        for parts in ways:
            whole = problem.total(rows, batch).item()
            try:
                split = [total_of(problem, rows, batch, part) for part in parts]
            except (SpectraError, TypeError, IndexError, RuntimeError) as error:  # it fails on so few examples
                if out_of_memory(error):
                    raise
                continue
            allowed = torch.finfo(torch.float32).eps ** 0.5 * sum(map(abs, split))
            if not abs(whole - sum(split)) <= allowed:
                raise SpectraError(
                    f"`loss` {name_of(problem.loss)}: its value for a batch ({whole / count:.6g}) is not the mean over "
                    f"its parts ({sum(split) / count:.6g}), so it depends on the batches (causes: means over a mask or "
                    "with weights, ignored targets, sums, comparisons between examples); return one value for each "
                    "example, set `batch_size` (and `memory`) so that all data are one batch, or write the loss as a "
                    "function of (model, batch), which gets the batches unchanged"
                )


def total_of(problem: Problem, rows: Tensor, batch: Batch, part: Tensor) -> float:
    """The summed loss of some examples; rows are recomputed where the batch does not have one row per example."""
    chosen = batch.part(part)
    return problem.total(rows[part] if len(rows) == len(batch) else rows_of(problem, chosen), chosen).item()


def spread_examples(problem: Problem) -> tuple[Tensor, Batch]:
    """Rows and the batch of some examples from all over the data, without those of another shape than the first."""
    total = sum(map(len, problem.batches))
    wanted = set(torch.linspace(0, total - 1, min(SPREAD, total)).long().tolist())
    found, first = [], 0
    for batch in problem.batches:
        inside = [i - first for i in range(first, first + len(batch)) if i in wanted]
        first += len(batch)
        if inside:
            found.append(some_rows(problem, batch, inside))
    shapes = [(rows.shape[1:], kind(batch)) for rows, batch in found]
    same = [i for i, shape in enumerate(shapes) if shape == shapes[0]]
    return torch.cat([found[i][0] for i in same]), joined([found[i][1] for i in same])


def some_rows(problem: Problem, batch: Batch, inside: list[int]) -> tuple[Tensor, Batch]:
    """Rows and the batch of these examples of a batch, computed from the whole batch if the model takes no part."""
    if len(inside) == len(batch):
        return rows_of(problem, batch), batch
    part = batch.part(torch.tensor(inside, device=batch.indices.device))
    try:
        return rows_of(problem, part), part
    except (SpectraError, RuntimeError, TypeError, IndexError):
        return rows_of(problem, batch)[inside], part


def no_second_derivative(problem: Problem, rows: Tensor, batch: Batch) -> str | None:
    """The reason why the loss cannot be differentiated twice by its rows; None where it can."""
    few = slice(FEW) if len(rows) == len(batch) else slice(None)
    try:
        loss_hessian_product(problem, rows[few], batch.part(few))
    except SpectraError:  # it may take whole batches only
        try:
            loss_hessian_product(problem, rows, batch)
        except RuntimeError as error:
            return unless_out_of_memory(error)
    except RuntimeError as error:
        return unless_out_of_memory(error)
    return None


def unless_out_of_memory(error: RuntimeError) -> str:
    """Describe an error; an out-of-memory error is raised again."""
    if out_of_memory(error):
        raise error
    return describe(error)


def loss_hessian_product(problem: Problem, rows: Tensor, batch: Batch, vector: Tensor | None = None) -> Tensor:
    """A product with the second derivative of the loss by its rows, with ones by default."""
    with torch.enable_grad():
        leaf = rows.detach().requires_grad_()
        slope = gradient(problem.total(leaf, batch), (leaf,), create_graph=True)[0]
        return gradient(slope, (leaf,), torch.ones_like(leaf) if vector is None else vector)[0]
