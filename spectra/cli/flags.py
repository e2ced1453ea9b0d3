"""Names of arguments in messages of the library, as the command line's user gives them: `weight_decay`, --weight-decay."""

from __future__ import annotations

import re

import click

OPTIONS = {"tolerance": "tol", "labels": "label", "output_key": "output", "check=False": "no_check"}  # by other names


def with_flags(text: str, command: click.Command) -> str:
    """`text` with each argument in backticks that is an option of the command, or of one in its group, by its flag."""
    flags = flags_of(command)
    return re.sub(r"(?<![\w/.])`(\w+(?:=\w+)?)`(?![\w/.])", lambda found: flags.get(found[1], found[0]), text)


def flags_of(command: click.Command) -> dict[str, str]:
    """The flag of each argument: of the command's own options, and of those of the commands in a group."""
    flags = {p.name: max(p.opts, key=len) for p in command.params if isinstance(p, click.Option)}
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            flags |= flags_of(inner)
    return flags | {argument: flags[option] for argument, option in OPTIONS.items() if option in flags}
