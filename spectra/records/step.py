"""The result of `spectra step`: what is found along each direction, and beside each matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spectra.records.entry import Entry
from spectra.records.fields import Stored, Vector, stored
from spectra.records.noise import BallMaximum, Noise, NoiseScale, WorstCase
from spectra.wording import short_paths

WAY = "checkpoint "  # what the names of ways to several checkpoints begin with


@stored
class StepFound(Stored):
    """A step t in theta + t d; None throughout where there is none, but for the reason."""

    step: float | None
    error: float | None
    loss: float | None
    reason: str | None


@stored
class StepDirection(Stored):
    """A direction d, and the loss along it."""

    name: str
    kind: str  # gradient, update, momentum, checkpoint
    unit: str  # what t = 1 is
    norm: float
    slope: float  # g'd
    slope_error: float | None  # by rounding; None: not known
    cosine: float | None  # of the angle between d and -g; None where the gradient is zero
    best: StepFound  # where the loss is lowest
    critical: StepFound  # where the loss is back where it was
    loss_at_one: float | None  # at t = 1, of an update or a way; None for others
    rounding: float  # standard deviation of one loss
    searched: float  # the largest t that would have been looked at
    evaluations: int  # forward passes over the data
    t: Vector  # (points,), rising from 0
    loss: Vector  # (points,)


@stored
class StepPoint(Stored):
    """The checkpoint, and what does not depend on a matrix: the loss along each direction."""

    loss: float
    gradient_norm: float
    parameter_norm: float
    directions: list[StepDirection]
    left_out: list[str]  # directions that there are not, each with the reason
    evaluations: int  # forward passes over the data
    noise: Noise | None  # None: not asked for, or there is none
    without_noise: str | None  # the reason why there is none
    worst: list[WorstCase]  # in balls, one an entry

    def called(self) -> dict[str, str]:
        """Directions by name, as tables and figures call them: ways to several checkpoints by what tells them apart."""
        names = [d.name for d in self.directions]
        files = {name: name.removeprefix(WAY) for name in names if name.startswith(WAY)}
        short = short_paths(list(files.values()))
        return {name: f"to {short[files[name]]}" if name in files else name for name in names}


@stored
class LayerShare(Stored):
    """One layer's part in a direction, and in the curvature along it."""

    name: str
    share: float  # |d_l|^2 / |d|^2
    part: float  # d_l'(A d)_l
    own: float | None  # d_l'A_ll d_l; None: not computed


@stored
class StepAlong(Stored):
    """The curvature of a matrix along a direction, and the share of the direction in its leading eigenvectors."""

    direction: str
    curvature: float  # d'Ad
    curvature_error: float  # by rounding
    sharpness: float  # d'Ad / |d|^2
    sharpness_error: float
    best_step: float | None  # -g'd / d'Ad, of the quadratic model; None where that has no minimum at t > 0
    best_step_error: float | None
    within: float | None  # sum of d_l'A_ll d_l over layers l; None: not computed
    between: float | None  # the rest of d'Ad
    split_error: float | None
    layers: list[LayerShare]
    share: Vector  # (k,), of d in the first j eigenvectors, j from 1 to k
    share_lower: Vector  # (k,), bounds by residuals and gaps
    share_upper: Vector


@stored
class StepResult(Entry):
    """What the directions meet of one matrix."""

    of_the_loss: bool  # A is a curvature of the loss, so that -g'd / d'Ad is a step
    k: int  # eigenvectors, of which shares are given
    parameters: int  # n: by chance the share in j eigenvectors is j / n
    eigenvalues: Vector  # (k + 1,) by falling magnitude; the last one tells the gap
    residuals: Vector
    complete: bool | None  # True: no eigenvalue was missed, with 99 %; None: not looked for
    source: str | None  # the file of an earlier eig, or `computed`; None: there are no eigenvectors
    along: list[StepAlong]
    full_noise: NoiseScale | None  # tr(AC) / g'Ag; None: not asked for, or there is none
    without_full: str | None  # the reason why there is none
    balls: list[BallMaximum]  # of the quadratic model, one an entry

    def summary(self) -> str:
        return ", ".join(f"{one.direction} {one.sharpness:.4g}" for one in self.along)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a direction."""
        for one in self.along:
            row = {name: getattr(one, name) for name in ("direction", "sharpness", "sharpness_error", "best_step")}
            last = {"share": None, "share_lower": None, "share_upper": None}
            if len(one.share):
                last = {name: float(getattr(one, name)[-1]) for name in last}
            yield row | last | {"chance": self.k / self.parameters if len(one.share) else None}
