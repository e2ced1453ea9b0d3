"""Tell the reader of a result how exact relaxations are, and by how much that shifts a product.

One product of the Hessian with a random vector, on a few examples, is compared with the same product in float64 at a
hundredth of the tolerance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch

from spectra.curvature.checks.derivative_check import EXAMPLES, spread
from spectra.curvature.checks.perturbed import copied
from spectra.curvature.matrices import definition
from spectra.devices import in_float64
from spectra.errors import SpectraError, describe
from spectra.problem.problem import Problem
from spectra.systems.relaxation import Relaxation
from spectra.wording import counted

TIGHTER = 100


class Relaxing(Protocol):
    """A module that relaxes: its settings, and the largest figures of what it has relaxed."""

    relaxation: Relaxation
    relaxations: Any


def relaxation_note(module: Relaxing, problem: Problem) -> list[str]:
    """Lines on the relaxations of a module of the problem's model, as a few of its examples show them.

    Takes two products of the Hessian. Raises SpectraError where a relaxation does not reach its tolerance.
    """
    name = next((name for name, own in problem.model.named_modules() if own is module), "")
    batch = spread(problem.batches, min(EXAMPLES, sum(map(len, problem.batches))))
    linearise = definition("hessian").linearise
    product, kept = None, module.relaxations
    module.relaxations = type(kept)()
    try:
        try:
            with copied(problem, batch) as local:
                direction, own = local.direction, replace(problem, batches=[batch])
                vector = problem.vector([part.to(p) for part, p in zip(direction, problem.leaves, strict=True)])
                product = in_float64(linearise(own, batch)(vector))
                tighter = local.problem.model.get_submodule(name)
                settings = tighter.relaxation = tightened(module.relaxation)
                exact = linearise(local.problem, local.batch)(local.problem.vector(direction))
            shift = f"{((product - exact).norm() / exact.norm()).item():.1g}" if exact.norm() > 0 else "0"
            effect = (
                f"a product of the Hessian is off by {shift} of its size, measured against float64 and tolerance "
                f"{settings.tolerance_in(torch.float64):.1g}"
            )
        except SpectraError:
            raise
        except Exception as error:  # a model that cannot be copied, or has no second derivative
            effect = f"its effect on a product is not measured ({describe(error)})"
        found = module.relaxations
    finally:
        module.relaxations = kept
    return [
        f"fixed points of {name or 'the model'} by {module.relaxation.method}: at most "
        f"{counted(found.iterations, 'step')} to residuals of {module.relaxation.tolerance_in(problem.dtype):.1g}, "
        f"contraction {found.contraction:.2f} a step, so {found.distance:.1g} from the limit (an estimate); {effect} "
        f"({counted(len(batch), 'example')})"
    ]


def tightened(settings: Relaxation) -> Relaxation:
    """The settings with a hundredth of the tolerance, and twice the iterations."""
    return replace(settings, tolerance=settings.tolerance / TIGHTER, iterations=2 * settings.iterations)
