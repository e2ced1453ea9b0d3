"""Refuse a user's loss that is random, ties examples together, or has no second derivative.

All checks are made in output space, on rows that the model has made once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectra.curvature.definition import Definition
from spectra.curvature.engine.differentiation import gradient
from spectra.errors import SpectraError, describe
from spectra.memory import out_of_memory
from spectra.problem.losses import CustomLoss
from spectra.problem.problem import Batch, Problem
from spectra.problem.side_effects import draws, generators_restored, reseed

DRAWS = 16  # of a loss that draws: a rare chance may leave two values alike
SPREAD = 64  # examples, from all over the data, that are split in two ways
FEW = 8  # examples on which a second derivative is tried


def refuse_unfit_loss(problem: Problem, matrix: Definition) -> None:
    """Raise SpectraError where the loss is a user's and changes from call to call, depends on batches, or lacks L_i."""
    if not isinstance(problem.loss, CustomLoss) or not problem.batches:
        return
    rows, targets = rows_of(problem, problem.batches[0])
    refuse_chance(problem.loss, rows, targets)
    if len(problem.batches) > 1:
        refuse_tied_examples(problem.loss, rows, targets)
        refuse_tied_examples(problem.loss, *spread_examples(problem))
    if matrix.takes_loss_hessian and (why := no_second_derivative(problem.loss, rows, targets)):
        raise SpectraError(
            f"`loss` {problem.loss.name}: has no second derivative ({why}); ask for `curvature` fisher-empirical, "
            "which needs none, or write the loss with operations that can be differentiated twice"
        )


def rows_of(problem: Problem, batch: Batch) -> tuple[Tensor, Tensor]:
    """The model's rows and targets for a batch, without a graph."""
    with torch.no_grad():
        return problem.loss.rows(problem.output(batch), batch.targets), batch.targets


def refuse_chance(loss: CustomLoss, rows: Tensor, targets: Tensor) -> None:
    """Raise SpectraError where another state of the global generators, or another call, gives another value."""

    def value(seed: int) -> tuple[float, bool]:
        with generators_restored(), torch.no_grad():
            reseed(seed)
            before = draws()
            return loss.total(rows, targets).item(), draws() != before

    first, drew = value(0)
    rounding = 0.0 if drew else 100 * torch.finfo(rows.dtype).eps * abs(first)
    for seed in range(1, DRAWS if drew else 2):
        again, _ = value(seed)
        if abs(again - first) > rounding:
            raise SpectraError(
                f"`loss` {loss.name}: its value changes from call to call ({first / len(rows):.6g}, then "
                f"{again / len(rows):.6g}): dropout, random pairs or other chance in it do this; take that out, or "
                "draw it once, beside the data"
            )


def refuse_tied_examples(loss: CustomLoss, rows: Tensor, targets: Tensor) -> None:
    """Raise SpectraError where the loss of some examples is not the sum of that of their parts, split in two ways."""
    count = len(rows)
    order = torch.arange(count, device=rows.device)
    ways = [(order[: count // 2], order[count // 2 :]), (order[::2], order[1::2])] if count > 1 else []
    with torch.no_grad():
        for parts in ways:
            whole = loss.total(rows, targets).item()
            try:
                split = [loss.total(rows[part], targets[part]).item() for part in parts]
            except SpectraError:  # it fails on so few
                continue
            allowed = torch.finfo(torch.float32).eps ** 0.5 * sum(map(abs, split))
            if not abs(whole - sum(split)) <= allowed:
                raise SpectraError(
                    f"`loss` {loss.name}: its value for a batch ({whole / count:.6g}) is not the mean of its parts' "
                    f"({sum(split) / count:.6g}), so it would depend on the batches (means over a mask or with "
                    "weights, ignored targets, sums, and comparisons between examples do this); return one value for "
                    "each example, or give a `batch_size` that takes all in one, and the `memory` for it"
                )


def spread_examples(problem: Problem) -> tuple[Tensor, Tensor]:
    """Rows and targets of some examples from all over the data, of those whose shapes agree with the first's."""
    total = sum(map(len, problem.batches))
    wanted = set(torch.linspace(0, total - 1, min(SPREAD, total)).long().tolist())
    found, first = [], 0
    for batch in problem.batches:
        inside = [i - first for i in range(first, first + len(batch)) if i in wanted]
        first += len(batch)
        if inside:
            found.append(some_rows(problem, batch, inside))
    rows, targets = zip(*found, strict=True)
    shapes = [(x.shape[1:], y.shape[1:]) for x, y in found]
    same = [i for i, shape in enumerate(shapes) if shape == shapes[0]]
    return torch.cat([rows[i] for i in same]), torch.cat([targets[i] for i in same])


def some_rows(problem: Problem, batch: Batch, inside: list[int]) -> tuple[Tensor, Tensor]:
    """Rows and targets of these examples of a batch; of all where the model takes whole batches alone."""
    if len(inside) == len(batch):
        return rows_of(problem, batch)
    try:
        return rows_of(problem, batch.part(torch.tensor(inside, device=batch.indices.device)))
    except (SpectraError, RuntimeError, TypeError, IndexError):
        rows, targets = rows_of(problem, batch)
        return rows[inside], targets[inside]


def no_second_derivative(loss: CustomLoss, rows: Tensor, targets: Tensor) -> str | None:
    """The reason why the loss cannot be differentiated twice by its rows; None where it can."""
    try:
        twice(loss, rows[:FEW], targets[:FEW])
    except SpectraError:  # it may take whole batches alone
        try:
            twice(loss, rows, targets)
        except RuntimeError as error:
            return unless_out_of_memory(error)
    except RuntimeError as error:
        return unless_out_of_memory(error)
    return None


def unless_out_of_memory(error: RuntimeError) -> str:
    """The description of an error; one that tells of memory is raised again."""
    if out_of_memory(error):
        raise error
    return describe(error)


def twice(loss: CustomLoss, rows: Tensor, targets: Tensor) -> Tensor:
    """A product with the second derivative of the loss by its rows."""
    with torch.enable_grad():
        leaf = rows.detach().requires_grad_()
        slope = gradient(loss.total(leaf, targets), (leaf,), create_graph=True)[0]
        return gradient(slope, (leaf,), torch.ones_like(leaf))[0]
