"""Command lines of which one thing is broken, with harmless options around it, in any order and either spelling."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from bad_files import WEIGHTS, misspelled, nonsense, text, words
from hypothesis import strategies as st

from spectra.cli import spectra
from spectra.curvature.matrices import MATRICES


@dataclass(frozen=True)
class Wrong:
    """A command line, the files that it takes beside those of GOOD, and what the error has to speak of."""

    line: list[str]
    names: Sequence[str] = ()
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def options(command: str) -> dict[str, click.Option]:
    """The options of a command, as they are typed."""
    found = [option for option in spectra.commands[command].params if isinstance(option, click.Option)]
    return {max(option.opts, key=len): option for option in found}


PROBLEM = [command for command in spectra.commands if "--data" in options(command)]
ALL = [command for command in spectra.commands if command != "sweep"]  # which takes a plan: tests/test_sweep.py
VALID = {
    **{
        # One eigenvalue: more than the rows that --params leaves are refused before data are read.
        command: {"--model": "user.py:linear", "--data": "points.npz"}
        | ({"-k": "1"} if "-k" in options(command) else {})
        for command in PROBLEM
    },
    "plot": {"RESULT": "out/eig.json", "--out": "figure.png"},
    "report": {"RESULT": "out/eig.json", "--out": "report.html"},
    "demo": {},
}
HARMLESS = {
    "--checkpoint": st.sampled_from(WEIGHTS),
    "--samples": st.integers(2, 11),
    "--batch-size": st.integers(1, 2**63 - 1),
    "--memory": st.sampled_from(["0", "1GiB", "100 MB", "4000000000", "1.5gib"]),
    "--params": st.lists(st.sampled_from(["*", "weight", "*bias"]), min_size=1, max_size=2),
    "--curvature": st.lists(st.sampled_from(list(MATRICES)), min_size=2, max_size=3, unique=True),
    "--mc-samples": st.integers(1, 3),
    "--device": st.sampled_from(["auto", "cpu"]),
    "--dtype": st.sampled_from(["float32", "float64"]),
    "--seed": st.integers(0, 2**63 - 1),
    "--max-products": st.integers(1, 2**63 - 1),
    "--out": st.sampled_from(["out", "new", "new/deeper", "folder"]),
    "--config": st.just("options.toml"),
    "--json": st.none(),
    "-k": st.integers(1, 15),
    "--which": st.sampled_from(["LM", "LA", "SA", "BE"]),
    "--tol": st.floats(1e-3, 1e300),
    "--rtol": st.floats(0.1, 1e300),
    "--probes": st.integers(2, 4),
    "--steps": st.integers(2, 5),
    "--by": st.sampled_from(["layer", "module", "channel"]),
    "--sort": st.sampled_from(["order", "trace", "mean", "eigenvalue", "mass", "sensitivity"]),
    "--density": st.none(),
    "--log": st.none(),
    "--damping": st.floats(1e-3, 1e300),
    "--along": st.lists(st.sampled_from(["1", "2", "lowest"]), min_size=1, max_size=2),
    "--radius": st.floats(1e-3, 1e6),
    "--points": st.integers(1, 4).map(lambda half: 2 * half + 1),
    "--save-every": st.floats(1e-3, 1e300),
    "--save-vectors": st.none(),
    "--title": st.text("abc "),
    "--width": st.floats(4, 12),
}
OF_THE_MODEL = ("--params", "--checkpoint")  # would be wrong first with another model
OF_THE_RUN = ("--curvature", "--max-products", "-k", "--which", "--probes")  # may be wrong after loading


@st.composite
def broken(
    draw: st.DrawFn,
    changes: Mapping[str, Any],
    commands: Sequence[str] = PROBLEM,
    names: Sequence[str] | None = None,
    files: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
    last: Sequence[str] = (),
) -> Wrong:
    """A valid line of one of the commands, but for changes.

    Args:
        changes: option -> a value, several, None (a flag) or ... (left out), or a strategy of these.
        names: what the error speaks of; by default the options that were changed.
        files: path -> bytes, or a strategy of them.
        without: harmless options that would not be so here.
        last: what ends the line.
    """
    command = draw(st.sampled_from(commands))
    changes = {name: drawn(draw, value) for name, value in changes.items()}
    fit = (options(command).keys() & HARMLESS.keys()) - {*changes, *VALID[command], *without}
    if command == "plot":
        fit -= {"--curvature"}  # which names results there
    around = draw(st.lists(st.sampled_from(sorted(fit)), max_size=3, unique=True)) if fit else []
    typed = VALID[command] | {name: draw(HARMLESS[name]) for name in around} | changes
    words = [word for name, value in typed.items() if value is not ... for word in spelled(draw, name, value)]
    line = [command, *(part for word in draw(st.permutations(words)) for part in word), *last]
    return Wrong(
        line, [*changes] if names is None else names, {path: drawn(draw, c) for path, c in (files or {}).items()}
    )


def drawn(draw: st.DrawFn, value: Any) -> Any:
    return draw(value) if isinstance(value, st.SearchStrategy) else value


def spelled(draw: st.DrawFn, name: str, value: Any) -> list[list[str]]:
    """`--x value` or `--x=value`, as often as there are values; a flag; an argument that has no name."""
    if value is None:
        return [[name]]
    values = [str(item) for item in (value if isinstance(value, list) else [value])]
    if name == "RESULT":
        return [[item] for item in values]
    joined = name.startswith("--") and draw(st.booleans())
    return [[f"{name}={item}"] if joined else [name, item] for item in values]


# Options by what they take

Keep = Callable[[str, click.Option], bool]


def numeric(_name: str, option: click.Option) -> bool:
    return option.type.name in ("integer", "integer range", "number", "float range", "inches")


def integer(_name: str, option: click.Option) -> bool:
    return option.type.name in ("integer", "integer range")


def above_zero(name: str, option: click.Option) -> bool:
    return numeric(name, option) and name not in ("--seed", "--weight-decay")


def choice(_name: str, option: click.Option) -> bool:
    return option.type.name == "choice"


def required(_name: str, option: click.Option) -> bool:
    return option.required


def valued(_name: str, option: click.Option) -> bool:
    return not option.is_flag


def never_empty(name: str, option: click.Option) -> bool:
    return valued(name, option) and name not in ("--out", "--title")


def one(keep: Keep, commands: Iterable[str] = ALL) -> st.SearchStrategy[tuple[str, str]]:
    """A command and one of its options that `keep`s."""
    return st.sampled_from([(c, name) for c in commands for name, option in options(c).items() if keep(name, option)])


def mistyped(keep: Keep, value: Any, commands: Iterable[str] = ALL) -> st.SearchStrategy[Wrong]:
    """An option that `keep`s with a wrong value."""
    return one(keep, commands).flatmap(lambda pair: broken({pair[1]: value}, [pair[0]]))


@st.composite
def unknown_option(draw: st.DrawFn) -> Wrong:
    """An option with a letter doubled, left out or replaced."""
    command, name = draw(one(lambda name, _option: name.startswith("--")))
    wrong = draw(misspelled(name[2:], [known[2:] for known in options(command)]))
    return draw(broken({f"--{wrong}": None}, [command]))


# Kinds


@dataclass(frozen=True)
class Kind:
    wrong: st.SearchStrategy[Wrong]
    statuses: Sequence[int] = (2,)
    share: int = 1


def kind(
    changes: Mapping[str, Any], commands: Sequence[str] = PROBLEM, *names: str, statuses=(2,), share=1, **more: Any
):
    """The kind whose lines have these changes; see `broken`."""
    return Kind(broken(changes, commands, names or None, **more), statuses, share)


def each(option: str, values: Iterable[str], **more: Any) -> dict[str, Kind]:
    return {f"{option} {value}": kind({option: value}, **more) for value in values}


def ways(option: str, ways: Iterable[str], function: str, *names: str, **more: Any) -> dict[str, Kind]:
    """A kind for each way in which `function` of the user's file goes wrong."""
    return {
        f"{option} {way}": kind({option: f"user.py:{function}?kind={way}"}, PROBLEM, *names, **more) for way in ways
    }


def holding(option: str, files: Mapping[str, Any], commands: Sequence[str] = PROBLEM, *names: str, **more: Any):
    """A kind for each file that an option names, wrong for what it holds."""
    return {
        f"{option} {path}": kind({option: path}, commands, *names, files={path: content}, **more)
        for path, content in files.items()
    }


ERRORS = [
    "ValueError",
    "RuntimeError",
    "KeyError",
    "StopIteration",
    "OSError",
    "BrokenPipeError",
    "EOFError",
    "SystemExit",
]
SYNTAX = ["", "x", "=1", "1=2", "a b=3", "&", "a=1&a=2", "a=1&&b=2"]


def failing(function: str) -> st.SearchStrategy[str]:
    """The name of a function of the user's file that raises an error of any type, with any text."""
    return st.builds(f"user.py:{function}?error={{}}&text={{}}".format, st.sampled_from(ERRORS), text)


def spec(option: str, good: str) -> dict[str, Kind]:
    """What can be wrong with a name, whatever it names."""
    wrong = {
        "of wrong syntax": st.sampled_from(SYNTAX).map(f"{good}?{{}}".format),
        "of words": words,
        "of no file": nonsense.map("{}.py:linear".format),
        "of a folder": "folder:linear",
        "of a text": "folder/notes.txt:linear",
        "without a name": "user.py",
        "of no such name": misspelled("linear").map("user.py:{}".format),
        "of no module": nonsense.map("{}.module:linear".format),
        "of no callable": "user.py:NUMBER",
        "of an unknown keyword": nonsense.map(f"{good}?{{}}=1".format),
        "that fails": failing("fails"),
    }
    return {f"{option} {name}": kind({option: value}) for name, value in wrong.items()}
