"""Locate a wrong derivative: in the loss, or in the first module that is wrong on its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spectra.curvature.checks.differences import judge
from spectra.curvature.checks.notes import listed
from spectra.curvature.checks.perturbed import LocalProblem, random_direction
from spectra.curvature.displacement import displaced
from spectra.curvature.engine.differentiation import gradient
from spectra.curvature.engine.used_parameters import unused_parameters
from spectra.random_numbers import normal_like


@dataclass
class Call:
    """A module and the arguments of its first call."""

    name: str
    module: nn.Module
    arguments: tuple
    keywords: dict[str, Any]


def locate_error(local: LocalProblem) -> tuple[str, str]:
    """The argument that names the faulty part, and in words where the fault is."""
    problem, batch = local.problem, local.batch
    calls: list[Call] = []
    with recorded(problem.model, calls):
        rows = problem.rows(batch).detach()
    leaf = rows.requires_grad_()
    if wrong([leaf], lambda: [problem.total(leaf, batch)], local.generator):
        return f"`loss` {getattr(problem.loss, 'name', 'cross_entropy')}", "the fault is in the loss itself"
    for call in calls:
        if call.name and fails(call, local.generator):
            return "`model`", f"the first module where it is wrong is {type(call.module).__name__} '{call.name}'"
    missing = f"; unused or detached: {listed(names)}" if (names := unused_parameters(problem)) else ""
    return (
        "`model`",
        f"each module is right on its own, so look at forward() of {type(problem.model).__name__}{missing}",
    )


def recorded(model: nn.Module, calls: list[Call]) -> ExitStack:
    """A context in which each module's first call is added to `calls` when it returns, so submodules come first."""
    stack, seen = ExitStack(), set()
    for name, module in model.named_modules():

        def hook(module, arguments, keywords, output, name=name):
            if module not in seen:
                seen.add(module)
                calls.append(Call(name, module, *pytree.tree_map(cut_off, (arguments, keywords))))

        stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
    return stack


def cut_off(value: Any) -> Any:
    """A copy of a tensor outside the graph; anything else is returned as it is."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def fails(call: Call, generator: torch.Generator) -> bool:
    """Whether finite differences contradict a module's derivatives by its inputs and parameters."""
    inputs = [x.requires_grad_() for x in reals((call.arguments, call.keywords))]
    leaves = [*inputs, *(p for p in call.module.parameters() if p.requires_grad)]

    def outputs() -> list[Tensor]:
        return [*reals(call.module(*call.arguments, **call.keywords))]

    try:
        return wrong(leaves, outputs, generator)
    except Exception:  # it can't be called on its own
        return False


def reals(tree: Any) -> Iterator[Tensor]:
    """The floating-point tensors in a tree."""
    return (x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor) and x.is_floating_point())


def wrong(leaves: Sequence[Tensor], outputs, generator: torch.Generator) -> bool:
    """Whether differences contradict the first or the second derivative of a random combination of the outputs."""
    direction, weights = random_direction(leaves, generator), None

    def combined() -> Tensor:
        nonlocal weights
        made = outputs()
        if weights is None:
            weights = [normal_like(x, generator) for x in made]
        return total((x * weight).sum() for x, weight in zip(made, weights, strict=True))

    slopes = gradient(combined(), leaves, create_graph=True)
    along = total((g * v).sum() for g, v in zip(slopes, direction, strict=True))
    bend = gradient(along, leaves)

    def values(step: float) -> list[Tensor]:
        with displaced(leaves, direction, step):
            return [combined().detach()]

    def gradients(step: float) -> list[Tensor]:
        with displaced(leaves, direction, step):
            return [*gradient(combined(), leaves)]

    return judge([along.detach()], values).wrong or judge([b.detach() for b in bend], gradients).wrong


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    first, *others = terms
    return sum(others, first)
