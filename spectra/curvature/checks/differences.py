"""Judge a derivative by central differences: it is right, it is wrong, or they are inconclusive.

    (f(x + h v) - f(x - h v)) / 2h  ->  f'(x) v        as h -> 0, where f is smooth

The error of a difference is due to curvature and kinks where the step is too long, and to rounding where it is too
short. So several steps are tried. A derivative that agrees with any of them is right, since vectors do not agree by
chance. It is wrong only where two neighbouring steps agree with each other and not with it. Otherwise the differences
are inconclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from spectra.devices import in_float64

# Relative to the size of what is moved. The first is right for smooth functions. The next two cross fewer kinks: a step
# crosses about a fraction `step` of all rectifiers. The last are for functions that compute in single precision inside.
STEPS = {
    torch.float64: (1e-6, 1e-8, 1e-10, 1e-4, 1e-3),
    torch.float32: (3e-3, 3e-4, 3e-2),
}
FINE = 1e-8  # a step up to which a smooth function hardly changes
TOLERANCE = {torch.float64: 1e-2, torch.float32: 5e-2}  # of a part; wrong derivatives are off by much more
NEGLIGIBLE = {torch.float64: 1e-6, torch.float32: 1e-2}  # of the whole: a smaller part is not looked at
ROUNDING = 100  # the error of f, in units of rounding
JUMP = 1e-5  # relative change of f over a fine step from which it is a jump, for which no step is right

Parts = Sequence[Tensor]


@dataclass(frozen=True)
class Verdict:
    """The verdict of finite differences on a derivative; each of its parts is judged."""

    wrong: bool
    unclear: int  # the number of parts for which differences are inconclusive
    error: float  # of all parts together, relative to the larger of derivative and difference
    derivative: float  # norm of the derivative
    difference: float  # norm of the difference nearest to it

    @property
    def agrees(self) -> bool:
        """Whether every part agrees."""
        return not (self.wrong or self.unclear)


@dataclass(frozen=True)
class Difference:
    """A central difference at one step."""

    step: float
    parts: Parts
    sizes: Tensor  # norms of its parts
    off: Tensor  # norms of its deviation from the derivative
    bend: Tensor  # norms of forward minus backward difference
    floor: float  # norm of its rounding error


def judge(derivative: Parts, function: Callable[[float], Parts]) -> Verdict:
    """Compare f'(x) v, in parts, with central differences of `function(h)` = f(x + h v), in the same parts."""
    dtype, own = derivative[0].dtype, norms(derivative)
    here: Parts | None = None  # f(x), once a part disagrees
    agreed = torch.zeros(len(derivative), dtype=torch.bool)
    found: list[Difference] = []
    for step in STEPS[dtype]:
        ahead, behind = function(step), function(-step)
        parts = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
        off = norms([d - p for d, p in zip(parts, derivative, strict=True)]).nan_to_num(torch.inf)
        sizes = norms(parts)
        floor = ROUNDING * torch.finfo(dtype).eps / STEPS[dtype][0] * norms(ahead).norm().item()
        larger = torch.maximum(own.where(own.isfinite(), 0), sizes)
        agreed |= off <= TOLERANCE[dtype] * larger + NEGLIGIBLE[dtype] * larger.norm() + floor
        if here is None and not agreed.all():
            here = function(0.0)
        bend = norms([(a + b - 2 * c) / step for a, b, c in zip(ahead, behind, here or ahead, strict=True)])
        found.append(Difference(step, parts, sizes, off, bend, floor))
        if agreed.all() or (step <= FINE and here is not None and jumps(ahead, here, ~agreed)):
            break
    wrong = ~agreed & contradicted(found, TOLERANCE[dtype])
    nearest = min(found, key=lambda difference: difference.off.norm())
    size = max(own.norm().nan_to_num(0, posinf=0).item(), nearest.sizes.norm().item(), nearest.floor)
    return Verdict(
        wrong=bool(wrong.any()),
        unclear=int((~agreed & ~wrong).sum()),
        error=nearest.off.norm().item() / size if size else 0.0,
        derivative=own.norm().item(),
        difference=nearest.sizes.norm().item(),
    )


def jumps(ahead: Parts, here: Parts, among: Tensor) -> bool:
    """Whether each of these parts jumps between the point and a fine step beside it."""
    change = norms([a - c for a, c in zip(ahead, here, strict=True)])
    return bool((change > JUMP * norms(here))[among].all())


def contradicted(found: Sequence[Difference], tolerance: float) -> Tensor:
    """The parts for which two neighbouring steps agree with each other ten times better than with the derivative.

    The forward and backward differences have to agree too: at a kink in the point itself they are two derivatives, and
    the central difference is their mean.
    """
    result = torch.zeros(len(found[0].parts), dtype=torch.bool)
    for one, other in pairwise(sorted(found, key=lambda difference: difference.step)):
        spread = norms([a - b for a, b in zip(one.parts, other.parts, strict=True)])
        apart = torch.minimum(one.off, other.off)
        smooth = torch.minimum(one.bend, other.bend) <= 0.1 * apart
        result |= (10 * spread <= apart) & (spread <= tolerance * one.sizes) & smooth
    return result


def norms(parts: Parts) -> Tensor:
    """The norms of the parts, in float64 on the CPU."""
    return torch.stack([in_float64(part).norm() for part in parts]).cpu()
