"""Read a plan of many runs, a TOML file with checkpoints, matrices, seeds and commands, and make its tasks.

    out = "runs"                   # default: a directory named as the plan
    [problem]                      # options of all commands; each combination of these three is a task:
    checkpoint = "checkpoints/*.pt"
    curvature = ["hessian", "ggn"]
    seed = [0, 1]
    [eig]                          # commands, in this order, with their own options
    k = 5
    [run]                          # where tasks run: spectra.sweeps.plan_run
    [collect]
    learning_rate = 0.05

Paths in a plan are relative to its own directory, in which its tasks run. Nothing is computed here.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from spectra.commands import of_sweeps
from spectra.inputs.checkpoint_folder import is_checkpoint
from spectra.quoting import quoted
from spectra.sweeps.plan_run import RunSettings, read_run
from spectra.sweeps.plan_tables import PlanFile, shown

COMMANDS = of_sweeps()
MULTIPLY = ("checkpoint", "curvature", "seed")
LONGEST_WORD, LONGEST_LINE = 2**17 - 1, 2**20  # bytes; Linux allows 128 KiB per word, 2 MiB with the environment
OURS = ("out", "json", "config")  # options that a sweep sets itself


@dataclass(frozen=True)
class Task:
    """The commands for one checkpoint, one matrix and one seed."""

    name: str  # "step-0100/hessian", also its directory under the plan's `out`
    checkpoint: Path | None  # absolute; None: the model as built
    curvature: str
    seed: int
    directory: Path  # absolute
    commands: tuple[tuple[str, tuple[str, ...]], ...]  # ("eig", ("--model", ...)): arguments as typed on a command line
    recorded: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    # ^ options that the results of each command will list, if the reader of the plan has parsed them


@dataclass(frozen=True)
class Plan:
    """A plan as read from its file: its tasks, and where and how they run."""

    path: Path  # absolute
    out: Path  # absolute
    tasks: tuple[Task, ...]
    run: RunSettings
    learning_rate: float | None
    commands: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]]  # of each command as in the file, without MULTIPLY
    notes: tuple[str, ...] = ()  # what was left out, and why

    @property
    def directory(self) -> Path:
        """The directory in which tasks run."""
        return self.path.parent

    @property
    def records(self) -> Path:
        """The directory of logs, locks and other files of the sweep itself."""
        return self.out / ".sweep"


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises SpectraError if the file is not valid TOML, has unknown tables or keys or no command, or a glob matches
    nothing.
    """
    file = PlanFile(path)
    file.refuse_unknown("", ("out", "problem", *COMMANDS, "run", "collect"))
    commands = tuple(name for name in file.content if name in COMMANDS)
    if not commands:
        raise file.error("has no command; add a table [eig], [trace] or [density], with options or empty")
    refuse_ours(file, ("problem", *commands))
    problem = file.table("problem")
    shared = {key: value for key, value in problem.items() if key not in MULTIPLY}
    options = {name: shared | file.table(name) for name in commands}
    out, notes = directory(file), []
    return Plan(
        path=file.path,
        out=out,
        tasks=tuple(make_tasks(file, out, options, notes.append)),
        run=read_run(file),
        learning_rate=learning_rate(file),
        commands=commands,
        options=options,
        notes=tuple(notes),
    )


def refuse_ours(file: PlanFile, tables: Sequence[str]) -> None:
    """Raise SpectraError if an option is set by the sweep, or makes tasks but is given for one command."""
    for table in tables:
        for key in file.table(table):
            if key in OURS:
                raise file.error(f"{key} is set by the sweep; remove it", table)
            if key in MULTIPLY and table != "problem":
                raise file.error(f"{key} must be the same for all commands; write it under [problem]", table)


def directory(file: PlanFile) -> Path:
    """The plan's output directory: its key `out`, by default named after the file. Raises SpectraError."""
    out = file.content.get("out", file.path.stem)
    if not (isinstance(out, str) and out.strip()):
        raise file.error(f"{shown('out', out)} is not a path; give a directory")
    path = Path(os.path.abspath(file.path.parent / out))
    if path == file.path:
        raise file.error(f"{shown('out', out)} is the plan itself; give a directory")
    return path


def learning_rate(file: PlanFile) -> float | None:
    """The learning rate in the table [collect], if there is one. Raises SpectraError."""
    file.refuse_unknown("collect", ("learning_rate",))
    rate = file.table("collect").get("learning_rate")
    number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
    if rate is not None and not (number and math.isfinite(rate) and rate > 0):
        raise file.error(f"{shown('learning_rate', rate)} is not valid; give a number above 0", "collect")
    return None if rate is None else float(rate)


def make_tasks(
    file: PlanFile, out: Path, options: Mapping[str, Mapping[str, Any]], note: Callable[[str], Any]
) -> Iterator[Task]:
    """The tasks of a plan: each checkpoint in natural order, with each matrix and seed; `note` gets those left out."""
    problem = file.table("problem")
    matrices = several(file, "curvature", problem.get("curvature", "hessian"), str)
    seeds = several(file, "seed", problem.get("seed", 0), int)
    checkpoints = find_checkpoints(file, problem["checkpoint"], note) if "checkpoint" in problem else {"": None}
    for (label, checkpoint), curvature, seed in product(checkpoints.items(), matrices, seeds):
        parts = (label, curvature, f"seed-{seed}" if len(seeds) > 1 else "")
        name = "/".join(part for part in parts if part)
        home = out / name
        multiplied = {
            **({"checkpoint": checkpoint} if checkpoint else {}),
            "curvature": curvature,
            "seed": seed,
            "out": relative(home, file.path.parent),
        }
        commands = tuple((command, tuple(typed({**own, **multiplied}))) for command, own in options.items())
        for command, line in commands:
            check_length(file, command, line)
        absolute = Path(os.path.abspath(file.path.parent / checkpoint)) if checkpoint else None
        yield Task(name, absolute, curvature, seed, home, commands)


def check_length(file: PlanFile, command: str, line: Sequence[str]) -> None:
    """Raise SpectraError if the command line is too long for the system."""
    sizes = [len(os.fsencode(word)) + 1 for word in line]
    if max(sizes, default=0) > LONGEST_WORD or sum(sizes) > LONGEST_LINE:
        longest = line[max(1, sizes.index(max(sizes))) - 1]  # the option before its value
        text = f"its options make a command line of {sum(sizes):,} bytes, most of them in {quoted(longest, 40)}"
        raise file.error(f"{text}; shorten that, or put it into a file that the model reads", command)


def several(file: PlanFile, key: str, value: Any, kind: type) -> list:
    """The values of a key that holds one or a list, each once. Raises SpectraError."""
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, kind) and not isinstance(v, bool) for v in values):
        wanted = "name" if kind is str else "whole number"
        raise file.error(f"{shown(key, value)} is not valid; give a {wanted} or a list of {wanted}s", "problem")
    return list(dict.fromkeys(values))


def find_checkpoints(file: PlanFile, patterns: Any, note: Callable[[str], Any]) -> dict[str, str]:
    """The checkpoints by label, in natural order. A label is the path without suffix, below what all share.

    A folder of weights is a checkpoint if no file in it matches. Files with names that are not valid UTF-8 are left
    out, since neither logs nor tables can show them.
    """
    found = set()
    for pattern in several(file, "checkpoint", patterns, str):
        matches = glob.glob(pattern, root_dir=file.path.parent, recursive=True)
        there = set(checkpoints_of({os.path.normpath(match) for match in matches}, file.path.parent))
        files = {path for path in there if is_utf8(path)}
        for path in sorted(there - files):
            note(f"PLAN {file.named}: {quoted(path)} is left out, since its name is not valid UTF-8; rename it")
        if not files:
            raise file.error(
                f"{shown('checkpoint', pattern)} matches no file in {file.path.parent}; correct the pattern", "problem"
            )
        found |= files
    paths = sorted(found, key=natural)
    parent = os.path.commonpath([os.path.dirname(os.path.abspath(file.path.parent / path)) for path in paths])
    names = [relative(Path(os.path.abspath(file.path.parent / path)), Path(parent)) for path in paths]
    folders = [(file.path.parent / path).is_dir() for path in paths]
    short = [name if folder else os.path.splitext(name)[0] for name, folder in zip(names, folders, strict=True)]
    return dict(zip(short if len(set(short)) == len(short) else names, paths, strict=True))


def checkpoints_of(paths: set[str], start: Path) -> Iterator[str]:
    """Yield the paths, relative to `start`, that are files, or folders of weights without a file among the paths."""
    files = {path for path in paths if (start / path).is_file()}
    yield from files
    above = {str(folder) for path in files for folder in Path(path).parents}
    yield from (path for path in paths - files - above if is_checkpoint(start / path))


def is_utf8(text: str) -> bool:
    """Whether the name of a file can be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def natural(text: str) -> list:
    """A sort key that puts step-2 before step-10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text)]


def relative(path: Path, parent: Path) -> str:
    """The path relative to `parent` if it is below it, so that a plan's directory can be moved."""
    return str(path.relative_to(parent)) if path.is_relative_to(parent) else str(path)


def typed(options: Mapping[str, Any]) -> Iterator[str]:
    """The options as words of a command line; a flag that is false is left out."""
    for key, value in options.items():
        option = f"-{key}" if len(key) == 1 else f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            yield from [option] * value
        else:
            for item in value if isinstance(value, list) else [value]:
                yield from (option, str(item))
