"""Replace names of arguments in the library's messages by flags of the command line: `weight_decay` by --weight-decay."""

from __future__ import annotations

import re

import click

OPTIONS = {
    "tolerance": "tol",
    "labels": "label",
    "output_key": "output",
    "check=False": "no_check",
}  # where the names differ


def with_flags(text: str, command: click.Command) -> str:
    """Replace each argument in backticks by its flag, if the command or one in its group has such an option."""
    flags = flags_of(command)
    return re.sub(r"(?<![\w/.])`(\w+(?:=\w+)?)`(?![\w/.])", lambda found: flags.get(found[1], found[0]), text)


def flags_of(command: click.Command) -> dict[str, str]:
    """The flag of each parameter of a command, and of the commands in a group."""
    flags = {p.name: max(p.opts, key=len) for p in command.params if isinstance(p, click.Option)}
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            flags |= flags_of(inner)
    return flags | {argument: flags[option] for argument, option in OPTIONS.items() if option in flags}
