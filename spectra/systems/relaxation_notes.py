"""Notes for a result on how accurate relaxations are, and by how much that changes a product.

One product of the Hessian with a random vector, on a few examples, is compared with the same product in float64 at a
hundredth of the tolerance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, cast

import torch

from spectra.curvature.checks.derivative_check import EXAMPLES, spread
from spectra.curvature.checks.perturbed import copied, in_place
from spectra.curvature.matrices import definition
from spectra.devices import in_float64
from spectra.errors import SpectraError, describe
from spectra.problem.problem import Problem
from spectra.systems.relaxation import Relaxation
from spectra.wording import counted

TIGHTER = 100


class Relaxing(Protocol):
    """A module with relaxations: their settings, and their largest numbers so far."""

    relaxation: Relaxation
    relaxations: Any


def relaxation_note(module: Relaxing, problem: Problem) -> list[str]:
    """Describe the relaxations of a module of the problem's model, for a few of its examples.

    This takes two products of the Hessian. Raises SpectraError if a relaxation does not reach its tolerance.
    """
    few = replace(problem, batches=[spread(problem.batches, min(EXAMPLES, sum(map(len, problem.batches))))])
    name = next((name for name, own in problem.model.named_modules() if own is module), "")
    kept, settings = module.relaxations, module.relaxation
    module.relaxations = found = type(kept)()
    try:
        effect = effect_on_product(module, name, few)
    finally:
        module.relaxations = kept
    estimated = f"estimated distance from the fixed point {found.distance:.1g}"
    limit = estimated if found.contraction < 1 else "so the distance from the fixed point is unknown"
    return [
        f"fixed points of {name or 'the model'} by {settings.method}: at most {counted(found.iterations, 'step')} to "
        f"residuals of {settings.tolerance_in(problem.dtype):.1g}, contraction {found.contraction:.2f} per step, "
        f"{limit}; {effect} ({counted(len(few.batches[0]), 'example')})"
    ]


def effect_on_product(module: Relaxing, name: str, problem: Problem) -> str:
    """Describe the error of a product of the Hessian by the tolerance and the dtype.

    Raises SpectraError if a relaxation does not reach the tolerance.
    """
    (batch,), hessian, settings = problem.batches, definition("hessian").linearise, tightened(module.relaxation)
    tolerance = f"tolerance {settings.tolerance_in(torch.float64):.1g}"
    try:
        with in_place(problem, batch) as here:
            product = in_float64(hessian(problem, batch)(problem.vector(here.direction)))
        with copied(problem, batch) as local:
            cast(Relaxing, local.problem.model.get_submodule(name)).relaxation = settings
            vector = local.problem.vector([in_float64(part) for part in here.direction])
            try:
                exact = hessian(local.problem, local.batch)(vector)
            except SpectraError:  # of a tolerance that the user has not asked for
                return f"its effect on products is not measured: float64 does not reach {tolerance}"
    except SpectraError:
        raise
    except Exception as error:  # a model that cannot be copied, or has no second derivative
        return f"its effect on products is not measured ({describe(error)})"
    share = ((product - exact).norm() / exact.norm()).nan_to_num(0).item()
    return f"a product of the Hessian differs by {share:.1g} of its size from one in float64 with {tolerance}"


def tightened(settings: Relaxation) -> Relaxation:
    """The settings with a hundredth of the tolerance, and twice the iterations."""
    return replace(settings, tolerance=settings.tolerance / TIGHTER, iterations=2 * settings.iterations)
