"""Directions that training gives: the gradient, the optimizer's step, ways to other checkpoints, and a trajectory."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from spectra.errors import SpectraError
from spectra.memory import memory_share
from spectra.optimizer.files import optimizer_in
from spectra.problem.problem import Problem
from spectra.quoting import quoted
from spectra.records.directions import OTHER, PATH
from spectra.steps.directions import (
    CHECKPOINT,
    GRADIENT,
    UPDATE,
    gradient_direction,
    momentum_direction,
    update_direction,
)
from spectra.surfaces.directions import COMPONENT, TRAINED, Direction, components
from spectra.surfaces.elsewhere import Elsewhere, elsewhere
from spectra.surfaces.plane import Trajectory
from spectra.surfaces.trajectory import nearest_plane
from spectra.sweeps.checkpoints import training_steps
from spectra.sweeps.plan import checkpoints_of, natural
from spectra.vectors import norm
from spectra.wording import counted, short_paths

FEWEST = 2  # checkpoints of a trajectory


@dataclass(frozen=True)
class Given:
    """Directions by name, the trajectories behind those that are components, and what a reader has to know of them."""

    directions: dict[str, Direction] = field(default_factory=dict)
    paths: dict[tuple[str, ...], Trajectory] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Giver:
    """What makes directions of training, for a problem that stands at a checkpoint.

    Attributes:
        gradient: (n,), of the mean loss, weight decay included.
        checkpoint: the file that the problem's weights are from, in which an optimizer's state may be; None: none.
        key: as `checkpoint_key`.
        optimizer: an optimizer, its state, or a file with that, options as ?name=AdamW behind it; None: the checkpoint.
        model: the model that the optimizer knows, of which the problem's may be a copy; None: the problem's.
        watch: is called before each checkpoint that is read.
    """

    problem: Problem
    gradient: Tensor
    checkpoint: str | None
    key: str | None
    optimizer: Any
    watch: Callable[[], None] = lambda: None
    model: nn.Module | None = None

    def __call__(self, names: Iterable[str]) -> Given:
        """The directions of these names, as they are typed; others are left out. Raises SpectraError."""
        given, names = Given(), list(dict.fromkeys(names))
        globs = [name for name in names if name.startswith(PATH)]
        for name in names:
            if name in TRAINED:
                given.directions[name] = self.trained(name)
            elif name.startswith(OTHER):
                self.watch()
                given.directions[name], notes = self.way(name.removeprefix(OTHER))
                given.notes.extend(notes)
            elif name.startswith(PATH):
                both = components(globs, name)
                found, path, notes = self.trajectory(name.removeprefix(PATH), both)
                given.directions.update(zip(both, found, strict=True))
                given.paths[tuple(both)] = path
                given.notes.extend(notes)
        return given

    def trained(self, name: str) -> Direction:
        """The direction of the gradient, the optimizer's next step, or its momentum."""
        if name == GRADIENT:
            return Direction(name, name, "computed", gradient_direction(self.gradient).vector)
        held = optimizer_in(self.optimizer, self.checkpoint)
        if held is None:
            text = f"{name} needs the state of an optimizer; name its file, or a `checkpoint` that holds it"
            raise SpectraError(f"`optimizer`: {text}")
        how = held.optimizer, held.name, self.model
        if name == UPDATE:
            found = update_direction(self.problem, self.gradient, *how)
        else:
            found = momentum_direction(self.problem, *how)
        return Direction(name, name, held.source, found.vector)

    def read(self, path: str, option: str) -> Elsewhere:
        """Another checkpoint, of which `option` is the beginning in messages."""
        return elsewhere(self.problem, path, self.key, option)

    def way(self, path: str) -> tuple[Direction, list[str]]:
        """The way to another checkpoint, with notes on what goes and what stays. Raises SpectraError."""
        there = self.read(path, f"`along` {OTHER}")
        step = there.step(self.problem)
        if not norm(step):
            raise SpectraError(
                f"`along` {OTHER}{quoted(path)}: its parameters are those of this checkpoint, so there is no way "
                "between; name another"
            )
        stay, buffers = there.staying(self.problem), there.buffers(self.problem)
        told = f"{OTHER}{path}"
        if stay:
            some = ", ".join(stay[:3]) + (", ..." if len(stay) > 3 else "")
            text = f"{counted(len(stay), 'parameter')} that differ are frozen or not chosen ({some})"
            kept = f"{text}; they and all buffers stay as they are here, so t = 1 is not that checkpoint itself"
            return Direction(told, CHECKPOINT, path, step), [f"{told}: {kept}"]
        notes = []
        if buffers:
            notes.append(
                f"{told}: {counted(len(buffers), 'buffer')} differ, as running statistics of BatchNorm do, and are "
                "interpolated with the parameters, so that t = 1 is that checkpoint. Between they are not those of the "
                "network there, which may raise the barrier; slope and curvature are of the parameters alone"
            )
        return Direction(told, CHECKPOINT, path, step, buffers=buffers), notes

    def trajectory(self, pattern: str, names: Sequence[str]) -> tuple[list[Direction], Trajectory, list[str]]:
        """The components of the checkpoints that match a pattern, and their places. Raises SpectraError."""
        option = f"`along` {PATH}{quoted(pattern)}"
        labels = matching(pattern)
        counts, steps = training_steps({name: Path(path) for name, path in labels.items()})
        order = sorted(labels, key=lambda name: steps[name])
        read = partial(self.other, [labels[name] for name in order])

        def row(i: int) -> Tensor:
            self.watch()
            return read(i).step(self.problem)

        first, vector = read(0), self.problem.size * self.problem.leaves[0].element_size()
        held = memory_share(self.problem.device) // max(vector, 1) - 3  # beside the two directions and one row
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
            notes.append(f"{PATH}{pattern}: parameters that are frozen or not chosen stay as they are here")
        if first.buffers(self.problem):
            notes.append(f"{PATH}{pattern}: in the plane buffers, as running statistics of BatchNorm, are those here")
        return made, path, notes

    def other(self, paths: Sequence[str], i: int) -> Elsewhere:
        """The checkpoint of this place in a trajectory."""
        return self.read(paths[i], f"`along` {PATH}: ")


def is_given(name: str) -> bool:
    """Whether a name, as it is typed, is of a direction that training gives."""
    return name in TRAINED or name.startswith((OTHER, PATH))


def matching(pattern: str) -> dict[str, str]:
    """The checkpoints that match a pattern, by a short name, in natural order. Raises SpectraError below two."""
    found = {os.path.normpath(path) for path in glob.glob(pattern, recursive=True)}
    paths = sorted(checkpoints_of(found, Path()), key=natural)
    option = f"`along` {PATH}{quoted(pattern)}"
    if not paths:
        raise SpectraError(f"{option}: matches no checkpoint; check the pattern, and put it in quotes for the shell")
    if len(paths) < FEWEST:
        alone = f"matches {quoted(paths[0])} alone; a plane needs two checkpoints, or name {OTHER}PATH"
        raise SpectraError(f"{option}: {alone}")
    return {name: path for path, name in short_paths(paths).items()}


def refuse_missing(names: Iterable[str]) -> None:
    """Raise SpectraError for a checkpoint that is not there, and for a pattern that matches too few."""
    for name in names:
        if name.startswith(OTHER) and not os.path.exists(path := name.removeprefix(OTHER)):
            raise SpectraError(f"`along` {OTHER}{quoted(path)}: no such file; check the path")
        if name.startswith(PATH):
            matching(name.removeprefix(PATH))


def files_of(names: Iterable[str]) -> list[str]:
    """The checkpoints that these names of directions are made of."""
    found: list[str] = []
    for name in names:
        if name.startswith(OTHER):
            found.append(name.removeprefix(OTHER))
        if name.startswith(PATH):
            found.extend(matching(name.removeprefix(PATH)).values())
    return found
