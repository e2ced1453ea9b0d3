"""Check the options in a sweep's plan as their commands check them on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from spectra.cli.config import converted, option_name, options_of
from spectra.cli.config import recorded as recorded_options
from spectra.cli.terminal import note
from spectra.commands import cli_command, of_sweeps
from spectra.errors import SpectraError

COMMANDS = {name: cli_command(name) for name in of_sweeps()}


def checked_plan(path: Path):
    """Read a plan and check its options. Raises SpectraError."""
    from spectra.sweeps.plan import read_plan

    plan = read_plan(path)
    for text in plan.notes:
        note(text)
    for name, options in plan.options.items():
        check(path, COMMANDS[name], options)
    try:
        tasks = [
            replace(task, recorded={name: recorded(name, line) for name, line in task.commands}) for task in plan.tasks
        ]
    except click.UsageError as error:
        raise SpectraError(f"PLAN {path}: {error.format_message().rstrip('.')}") from error
    return replace(plan, tasks=tuple(tasks))


def check(path: Path, command: click.Command, options: Mapping[str, Any]) -> None:
    """Raise SpectraError for an unknown option, an invalid value, or a required option that is missing."""
    with click.Context(command, info_name=command.name) as context:
        known, given = options_of(context), set()
        for key, value in options.items():
            name = option_name(context, f"PLAN {path}", key)
            converted(known[name], value, context, f"PLAN {path}: {key}")
            given.add(name)
        if missing := sorted(name for name, option in known.items() if option.required and name not in given):
            way_out = f"add it to [problem], with a value as for --{missing[0]}"
            raise SpectraError(f"PLAN {path}: {missing[0]} is missing; {way_out}; see 'spectra {command.name} --help'")


def recorded(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The options that the result of a command line will list. Raises click.UsageError."""
    return recorded_options(COMMANDS[name].make_context(name, list(arguments)))
