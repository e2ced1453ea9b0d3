"""The result of `spectra step`: the loss along each direction, and the curvature of each matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spectra.records.entry import Entry
from spectra.records.fields import Stored, Vector, stored
from spectra.records.noise import BallMaximum, Noise, NoiseScale, WorstCase
from spectra.wording import short_paths

WAY = "checkpoint "  # prefix of the names of ways to several checkpoints


@stored
class StepFound(Stored):
    """A step t to theta + t d; if there is none, all fields except `reason` are None."""

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
    cosine: float | None  # of the angle between d and -g; None if the gradient is zero
    best: StepFound  # to the lowest loss
    critical: StepFound  # to where the loss is again that at t = 0
    loss_at_one: float | None  # at t = 1, of an update or a way; None for others
    rounding: float  # standard deviation of one loss
    searched: float  # the upper end of the range of t that is searched
    evaluations: int  # forward passes over the data
    t: Vector  # (points,), rising from 0
    loss: Vector  # (points,)


@stored
class StepPoint(Stored):
    """The checkpoint, with numbers that do not depend on a matrix, such as the loss along each direction."""

    loss: float
    gradient_norm: float
    parameter_norm: float
    directions: list[StepDirection]
    left_out: list[str]  # directions that are left out, each with the reason
    evaluations: int  # forward passes over the data
    noise: Noise | None  # None: not requested, or not available
    without_noise: str | None  # why `noise` is None
    worst: list[WorstCase]  # one per ball

    def called(self) -> dict[str, str]:
        """The names of directions in tables and figures; paths of several checkpoints are shortened to what differs."""
        names = [d.name for d in self.directions]
        files = {name: name.removeprefix(WAY) for name in names if name.startswith(WAY)}
        short = short_paths(list(files.values()))
        return {name: f"to {short[files[name]]}" if name in files else name for name in names}


@stored
class LayerShare(Stored):
    """The share of one layer in a direction, and in the curvature along it."""

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
    best_step: float | None  # -g'd / d'Ad; None if the quadratic model has no minimum at t > 0
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
    """The curvature of one matrix along directions, with its noise scale and largest rises in balls."""

    of_the_loss: bool  # whether A is a curvature of the loss, so that -g'd / d'Ad is a step
    k: int  # eigenvectors for which shares are given
    parameters: int  # n: by chance the share in j eigenvectors is j / n
    eigenvalues: Vector  # (k + 1,) by falling magnitude; the last one gives the gap
    residuals: Vector
    complete: bool | None  # whether a search excludes missed eigenvalues; None: no search
    source: str | None  # of eigenvectors: the file of an earlier eig, or `computed`; None: none
    along: list[StepAlong]
    full_noise: NoiseScale | None  # tr(AC) / g'Ag; None: not requested, or not available
    without_full: str | None  # why `full_noise` is None
    balls: list[BallMaximum]  # of the quadratic model, one per ball

    def summary(self) -> str:
        return ", ".join(f"{one.direction} {one.sharpness:.4g}" for one in self.along)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Iterate over directions, as dictionaries."""
        for one in self.along:
            row = {name: getattr(one, name) for name in ("direction", "sharpness", "sharpness_error", "best_step")}
            last = {"share": None, "share_lower": None, "share_upper": None}
            if len(one.share):
                last = {name: float(getattr(one, name)[-1]) for name in last}
            yield row | last | {"chance": self.k / self.parameters if len(one.share) else None}
