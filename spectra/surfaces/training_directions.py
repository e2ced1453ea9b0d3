"""Make the directions of training: gradient, optimizer step, momentum, other checkpoints, and trajectories."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from spectra.directions.other_checkpoint import OtherCheckpoint, read_other_checkpoint
from spectra.directions.training import (
    CHECKPOINT,
    GRADIENT,
    UPDATE,
    gradient_direction,
    momentum_direction,
    update_direction,
)
from spectra.errors import SpectraError
from spectra.memory import memory_share
from spectra.optimizer.files import find_optimizer
from spectra.problem.problem import Problem
from spectra.quoting import quoted
from spectra.records.directions import OTHER, PATH
from spectra.surfaces.directions import COMPONENT, TRAINED, Direction, components
from spectra.surfaces.plane import Trajectory
from spectra.surfaces.trajectory import nearest_plane
from spectra.sweeps.checkpoints import training_steps
from spectra.sweeps.plan import checkpoints_of, natural
from spectra.vectors import norm
from spectra.wording import counted, short_paths

FEWEST = 2  # checkpoints of a trajectory, at least


@dataclass(frozen=True)
class TrainingDirections:
    """Directions of training by name, the trajectories of those that are components, and notes for the reader."""

    directions: dict[str, Direction] = field(default_factory=dict)
    paths: dict[tuple[str, ...], Trajectory] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingDirectionMaker:
    """A function from names to directions of training, for a problem at a checkpoint.

    Attributes:
        problem: the problem.
        gradient: the gradient (n,) of the mean loss with weight decay.
        checkpoint: the file with the problem's weights, which may hold the optimizer's state; None: none.
        key: the entry of checkpoint files that holds the weights, as `checkpoint_key`.
        optimizer: an optimizer, its state, or a file with it, with options such as ?name=AdamW; None: the checkpoint.
        watch: called before each checkpoint that is read.
        model: the optimizer's model, if the problem has a copy of it; None: the problem's.
    """

    problem: Problem
    gradient: Tensor
    checkpoint: str | None
    key: str | None
    optimizer: Any
    watch: Callable[[], None] = lambda: None
    model: nn.Module | None = None

    def __call__(self, names: Iterable[str]) -> TrainingDirections:
        """Make the directions of training among these names, as typed by the user. Raises SpectraError."""
        given, names = TrainingDirections(), list(dict.fromkeys(names))
        globs = [name for name in names if name.startswith(PATH)]
        for name in names:
            if name in TRAINED:
                given.directions[name] = self.optimizer_direction(name)
            elif name.startswith(OTHER):
                self.watch()
                given.directions[name], notes = self.checkpoint_direction(name.removeprefix(OTHER))
                given.notes.extend(notes)
            elif name.startswith(PATH):
                both = components(globs, name)
                found, path, notes = self.trajectory(name.removeprefix(PATH), both)
                given.directions.update(zip(both, found, strict=True))
                given.paths[tuple(both)] = path
                given.notes.extend(notes)
        return given

    def optimizer_direction(self, name: str) -> Direction:
        """The direction of the gradient, the optimizer's next step, or its momentum."""
        if name == GRADIENT:
            return Direction(name, name, "computed", gradient_direction(self.gradient).vector)
        held = find_optimizer(self.optimizer, self.checkpoint)
        if held is None:
            text = f"{name} needs the optimizer's state; name its file, or a `checkpoint` that holds it"
            raise SpectraError(f"`optimizer`: {text}")
        how = held.optimizer, held.name, self.model
        if name == UPDATE:
            found = update_direction(self.problem, self.gradient, *how)
        else:
            found = momentum_direction(self.problem, *how)
        return Direction(name, name, held.source, found.vector)

    def read_checkpoint(self, path: str, option: str) -> OtherCheckpoint:
        """Read another checkpoint; error messages begin with `option`."""
        return read_other_checkpoint(self.problem, path, self.key, option)

    def checkpoint_direction(self, path: str) -> tuple[Direction, list[str]]:
        """The direction to another checkpoint, with notes on tensors that stay unchanged. Raises SpectraError."""
        there = self.read_checkpoint(path, f"`along` {OTHER}")
        step = there.step(self.problem)
        if not norm(step):
            raise SpectraError(
                f"`along` {OTHER}{quoted(path)}: has the same parameters as this checkpoint, so it gives no direction; "
                "name another one"
            )
        stay, buffers = there.staying(self.problem), there.buffers(self.problem)
        told = f"{OTHER}{path}"
        if stay:
            some = ", ".join(stay[:3]) + (", ..." if len(stay) > 3 else "")
            text = f"{counted(len(stay), 'parameter')} that differ are frozen or not chosen ({some})"
            kept = f"{text}; they and all buffers keep their values from here, so t = 1 is not exactly that checkpoint"
            return Direction(told, CHECKPOINT, path, step), [f"{told}: {kept}"]
        notes = []
        if buffers:
            notes.append(
                f"{told}: {counted(len(buffers), 'buffer')} differ (e.g. running statistics of BatchNorm) and are "
                "interpolated with the parameters, so that t = 1 is that checkpoint. In between they are not the "
                "statistics of the network there, which may raise the barrier. Slope and curvature ignore them"
            )
        return Direction(told, CHECKPOINT, path, step, buffers=buffers), notes

    def trajectory(self, pattern: str, names: Sequence[str]) -> tuple[list[Direction], Trajectory, list[str]]:
        """The two principal components of the checkpoints that match a pattern, and the trajectory in their plane.

        Raises SpectraError.
        """
        option = f"`along` {PATH}{quoted(pattern)}"
        labels = matching(pattern)
        counts, steps = training_steps({name: Path(path) for name, path in labels.items()})
        order = sorted(labels, key=lambda name: steps[name])
        read = partial(self.other, [labels[name] for name in order])

        def row(i: int) -> Tensor:
            self.watch()
            return read(i).step(self.problem)

        first, vector = read(0), self.problem.size * self.problem.leaves[0].element_size()
        held = memory_share(self.problem.device) // max(vector, 1) - 3  # in addition to two directions and one row
        found = nearest_plane(row, len(order), held)
        if found is None:
            raise SpectraError(
                f"{option}: its {counted(len(order), 'checkpoint')} and this one lie on one line, so there is no "
                f"plane; name more, or {OTHER}PATH for the line"
            )
        places = (found.coordinates, found.distances, found.shares)
        path = Trajectory(pattern, counts, order, [float(steps[name]) for name in order], *places, read)
        both = zip(names, found.directions, strict=True)
        made = [Direction(name, COMPONENT, f"{PATH}{pattern}", d) for name, d in both]
        notes = []
        if first.staying(self.problem):
            notes.append(f"{PATH}{pattern}: parameters that are frozen or not chosen keep their values from here")
        if first.buffers(self.problem):
            notes.append(f"{PATH}{pattern}: in the plane, buffers (e.g. of BatchNorm) keep their values from here")
        return made, path, notes

    def other(self, paths: Sequence[str], i: int) -> OtherCheckpoint:
        """The checkpoint of this place in a trajectory."""
        return self.read_checkpoint(paths[i], f"`along` {PATH}: ")


def is_training_direction(name: str) -> bool:
    """Whether a name, as typed by the user, is that of a direction of training."""
    return name in TRAINED or name.startswith((OTHER, PATH))


def matching(pattern: str) -> dict[str, str]:
    """The checkpoints that match a pattern, by a short name, in natural order. Raises SpectraError below two."""
    found = {os.path.normpath(path) for path in glob.glob(pattern, recursive=True)}
    paths = sorted(checkpoints_of(found, Path()), key=natural)
    option = f"`along` {PATH}{quoted(pattern)}"
    if not paths:
        raise SpectraError(f"{option}: matches no checkpoint; check the pattern, and put it in quotes for the shell")
    if len(paths) < FEWEST:
        alone = f"matches only {quoted(paths[0])}, but a plane needs two checkpoints; for a line name {OTHER}PATH"
        raise SpectraError(f"{option}: {alone}")
    return {name: path for path, name in short_paths(paths).items()}


def refuse_missing(names: Iterable[str]) -> None:
    """Raise SpectraError for a checkpoint that does not exist, and for a pattern that matches too few."""
    for name in names:
        if name.startswith(OTHER) and not os.path.exists(path := name.removeprefix(OTHER)):
            raise SpectraError(f"`along` {OTHER}{quoted(path)}: no such file; check the path")
        if name.startswith(PATH):
            matching(name.removeprefix(PATH))


def files_of(names: Iterable[str]) -> list[str]:
    """The checkpoint files that these names of directions need."""
    found: list[str] = []
    for name in names:
        if name.startswith(OTHER):
            found.append(name.removeprefix(OTHER))
        if name.startswith(PATH):
            found.extend(matching(name.removeprefix(PATH)).values())
    return found
