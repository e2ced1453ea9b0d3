"""Collect notes on the model: hooks and autocast that are ignored, and parameters that no output depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from spectra.curvature.checks.loss_checks import takes_whole_batches
from spectra.curvature.engine.differentiation import explained, gradient, switched, twice_differentiable
from spectra.curvature.engine.used_parameters import unused_parameters
from spectra.problem.hooks import HookTable, hook_tables, watched
from spectra.problem.model_checks import fewest
from spectra.problem.problem import Problem
from spectra.problem.side_effects import modules
from spectra.wording import counted, dtype_name

SHOWN = 5  # names in a line


def model_notes(problem: Problem) -> list[str]:
    """Notes on hooks that change gradients, unused or detached parameters, and autocast, one line for each kind.

    Lines from modules with a method `spectra_notes(problem)` follow. Hooks cost one gradient of two examples;
    parameters that the first examples do not reach cost forward passes of up to a thousand.
    """
    if not problem.batches:
        return []
    around, places = active_autocast(problem), hook_tables(problem.model)
    with twice_differentiable(problem.model), explained():
        hooks, inside = observed(problem, places)
        missing = unused_parameters(problem)
        whole = takes_whole_batches(problem)
        own = [line for module in modules(problem.model) for line in notes_of(module, problem)]
    notes = []
    if whole:
        notes.append(
            "the loss takes whole batches, which are never split or merged: the numbers belong to "
            f"{counted(len(problem.batches), 'batch', 'batches')} of {max(map(len, problem.batches)):,} examples"
        )
    if hooks:
        notes.append(f"hooks that change gradients are ignored: {listed(hooks)}")
    if missing:
        size = sum(problem.parameters[name].numel() for name in missing)
        notes.append(
            f"unused or detached: {listed(missing)} ({counted(size, 'parameter')}; their rows of the matrix are zero)"
        )
    if around:
        notes.append(f"autocast to {around} around the call is ignored: products are in {dtype_name(problem.dtype)}")
    if inside:
        notes.append(f"the model's forward runs under autocast to {listed(inside)}: products are as exact as that type")
    return notes + own


def notes_of(module: nn.Module, problem: Problem) -> Sequence[str]:
    """The notes of a module with a method `spectra_notes`; none for other modules."""
    notes: Callable[[Problem], Sequence[str]] | None = getattr(module, "spectra_notes", None)
    return notes(problem) if notes else ()


def listed(names: Sequence[str]) -> str:
    """The first names, and the number of others, as text."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def active_autocast(problem: Problem) -> str | None:
    """The type to which autocast is active here, if any."""
    for kind in dict.fromkeys([problem.device.type, "cpu"]):
        if torch.is_autocast_enabled(kind):
            return dtype_name(torch.get_autocast_dtype(kind))
    return None


def observed(problem: Problem, places: Sequence[HookTable]) -> tuple[list[str], list[str]]:
    """The owners of hooks that change gradients, and the dtypes of autocast inside the model, found on two examples."""
    hooks: dict[str, None] = {}
    types: dict[str, None] = {}
    batch = fewest(problem)
    with watched(places, problem.model, hooks.setdefault) as owners:
        with autocasts(types.setdefault):
            rows = problem.rows(batch)
        if owners:
            try:
                gradient(problem.total(rows, batch), problem.leaves)
            except Exception:  # whatever a user's hook raises
                hooks.update(dict.fromkeys(owners))
    return [name for name in dict.fromkeys(owners) if name in hooks], list(types)


def autocast_inside(problem: Problem) -> str | None:
    """The dtypes to which autocast inside the model's forward casts, if any."""
    with twice_differentiable(problem.model), explained():
        _, types = observed(problem, ())
    return listed(types) if types else None


@contextmanager
def autocasts(report: Callable[[str], object]) -> Iterator[None]:
    """Call `report` with the dtype of each autocast that is entered inside this context."""
    entering = torch.autocast.__enter__

    def enter(context):
        entered = entering(context)
        if context._enabled:
            report(dtype_name(context.fast_dtype))
        return entered

    with switched([(torch.autocast, "__enter__", enter)]):
        yield
