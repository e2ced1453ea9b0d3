"""Relaxation: solve z = f(z) by iterating f, plainly or with Anderson acceleration.

    |z - z*| <= |f(z) - z| / (1 - q)   for a map f that contracts by q < 1

The first dimension of z counts examples. Each is iterated until its own residual is small, and then kept, so that its
result does not depend on the other examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.arguments import require_choice, require_integer, require_number, wrong

Map = Callable[[Tensor], Tensor]
PLAIN, ANDERSON = "relaxation", "anderson"
ROUNDING = 32  # times eps: the smallest tolerance, because f itself is rounded
DEPTH = 5  # earlier steps that Anderson acceleration combines
OBSERVED = 5  # last steps of an example; the contraction is their geometric mean


@dataclass(frozen=True)
class Relaxation:
    """The settings of a fixed-point iteration.

    Args:
        tolerance: the residual |f(z) - z| of an example that is small enough, relative to the larger of |f(z)| now
            and at the start; never below 32 times the rounding of the dtype.
        iterations: the largest number of steps.
        method: "relaxation", which repeats z <- f(z), or "anderson", which combines the last steps so that the
            residual is least (Anderson 1965; Walker and Ni 2011).
    """

    tolerance: float = 1e-10
    iterations: int = 1000
    method: str = PLAIN

    def __post_init__(self):
        require_number("tolerance", self.tolerance, finite=True)
        if not 0 < self.tolerance < 1:
            raise wrong("tolerance", self.tolerance, "a number between 0 and 1")
        require_integer("iterations", self.iterations)
        require_choice("method", self.method, METHODS)

    def tolerance_in(self, dtype: torch.dtype) -> float:
        """The tolerance for this dtype."""
        return max(self.tolerance, ROUNDING * torch.finfo(dtype).eps)


@dataclass(frozen=True)
class Relaxed:
    """The result of a relaxation."""

    state: Tensor
    iterations: int  # largest number of steps of an example
    residual: float  # the largest |f(z) - z| of an example, relative to |f(z)| as above; nan where it overflowed
    contraction: float  # the largest |f(z) - f(z')| / |z - z'| of an example over its last steps; 0 without steps
    unsolved: int  # number of examples with a residual above the tolerance

    @property
    def distance(self) -> float:
        """An estimate of |z - z*|, in the unit of `residual`: a bound, if f contracts as much as observed."""
        return self.residual / (1 - self.contraction) if self.contraction < 1 else math.inf


def relax(function: Map, start: Tensor, settings: Relaxation) -> Relaxed:
    """Solve z = f(z) from a start, until the residual of each example meets the tolerance or the iterations end.

    Args:
        function: the map f, of a tensor (examples, ...) that returns one of that shape.
        start: the tensor (examples, ...) to start from.
        settings: tolerance, iterations and method.

    Returns:
        The state with its residual as measured, converged or not: see `unsolved`.
    """
    with torch.no_grad():
        return _relax(function, start, settings)


def _relax(function: Map, start: Tensor, settings: Relaxation) -> Relaxed:
    tolerance, step = settings.tolerance_in(start.dtype), METHODS[settings.method]()
    state, observed, first, iteration = start, Contraction(), None, 0
    while True:
        image = function(state)
        residuals, sizes = norms(image - state), norms(image)
        first = sizes if first is None else first
        sizes = torch.maximum(first, sizes)
        moving = ~((residuals <= tolerance * sizes) & sizes.isfinite())  # nan moves, too
        observed.add(state, image, moving)
        largest = residuals.where(moving, 0).max().item() if len(start) else 0.0
        if largest == 0 or not math.isfinite(largest) or iteration == settings.iterations:
            break
        state = torch.where(by_example(moving, state), step(state, image), state)
        iteration += 1
    relative = (residuals / sizes).where(residuals.ne(0), 0)
    residual = relative.max().item() if len(start) else 0.0
    return Relaxed(state, iteration, residual, observed.largest(), int(moving.sum().item()))


def plain() -> Callable[[Tensor, Tensor], Tensor]:
    """The step z <- f(z)."""
    return lambda state, image: image


class Anderson:
    """The step z <- f(z) - G c, where c makes |r - R c| least, for each example.

    The columns of G and R are the last changes of f(z) and of r = f(z) - z (Walker and Ni 2011, section 2).
    """

    def __init__(self):
        self.last: tuple[Tensor, Tensor] | None = None
        self.changes: list[tuple[Tensor, Tensor]] = []

    def __call__(self, state: Tensor, image: Tensor) -> Tensor:
        residual, image = rows(image - state), rows(image)
        if self.last is not None:
            self.changes = [*self.changes[1 - DEPTH :], (residual - self.last[0], image - self.last[1])]
        self.last = residual, image
        if not self.changes:
            return image.view_as(state)
        of_residuals, of_images = (torch.stack(changes, dim=1) for changes in zip(*self.changes, strict=True))
        lengths = norms(of_residuals.flatten(0, 1)).view(*of_residuals.shape[:2], 1)
        lengths = lengths.where(lengths > 0, 1)
        weights = weights_of(of_residuals / lengths, residual) / lengths
        return (image - (weights.mT @ of_images)[:, 0]).view_as(state)


def weights_of(changes: Tensor, residual: Tensor) -> Tensor:
    """The weights (b, m, 1) with which changes (b, m, d), of length 1, come nearest to a residual (b, d).

    They solve normal equations. Rounding in these may slow the iteration, but does not harm the result, because its
    residual is measured.
    """
    kind = torch.promote_types(changes.dtype, torch.float32)  # solvers need single precision at least
    ridge = 10 * torch.finfo(changes.dtype).eps * torch.eye(changes.shape[1], dtype=kind, device=changes.device)
    gram, right = (changes @ changes.mT).to(kind), (changes @ residual[:, :, None]).to(kind)
    return torch.linalg.solve(gram + ridge, right).to(changes.dtype)


METHODS: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {PLAIN: plain, ANDERSON: Anderson}


class Contraction:
    """The ratios |f(z) - f(z')| / |z - z'| of successive states, by example."""

    def __init__(self):
        self.last: tuple[Tensor, Tensor, Tensor] | None = None
        self.ratios: list[Tensor] = []  # of each step (examples,)
        self.moved: list[Tensor] = []  # which examples took it

    def add(self, state: Tensor, image: Tensor, moving: Tensor) -> None:
        """Add a state, its image, and which examples continue from there."""
        if self.last is not None:
            before, its_image, moved = self.last
            self.ratios.append(norms(image - its_image) / norms(state - before))
            self.moved.append(moved)
        self.last = state, image, moving

    def largest(self) -> float:
        """The largest geometric mean of the ratios of an example's last steps; 0 where none took a step."""
        if not self.ratios or not len(self.ratios[0]):
            return 0.0
        ratios, moved = torch.stack(self.ratios), torch.stack(self.moved)
        steps_from_end = moved.flip(0).cumsum(dim=0).flip(0)
        means = ratios.log().where(moved & (steps_from_end <= OBSERVED), math.nan).nanmean(dim=0).exp()
        return means.nan_to_num(nan=0.0).max().item()


def rows(tensor: Tensor) -> Tensor:
    """A tensor (examples, ...) as rows (examples, numbers)."""
    return tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]


def norms(tensor: Tensor) -> Tensor:
    """The norm of each example (examples,).

    Entries are divided by the largest one first: squares may underflow or overflow in single precision, and a residual
    that is rounded to zero would end a relaxation.
    """
    entries = rows(tensor)
    largest = entries.abs().amax(dim=1, keepdim=True)
    scale = largest.where(largest > 0, 1)
    return scale[:, 0] * torch.linalg.vector_norm(entries / scale, dim=1)


def by_example(values: Tensor, tensor: Tensor) -> Tensor:
    """Reshape values (examples,) so that they broadcast with a tensor (examples, ...)."""
    return values.view(-1, *[1] * (tensor.ndim - 1))
