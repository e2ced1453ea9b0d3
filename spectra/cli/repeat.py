"""The command line that makes a result again."""

from __future__ import annotations

from typing import Any

import click

from spectra.cli.compare import compare
from spectra.cli.config import NOT_RECORDED, plain
from spectra.cli.density import density
from spectra.cli.eig import eig
from spectra.cli.inspect import inspect
from spectra.cli.landscape import landscape
from spectra.cli.layers import layers
from spectra.cli.trace import trace

COMMANDS = {command.name: command for command in (eig, trace, density, inspect, compare, layers, landscape)}


def command_line(record) -> list[str]:
    """The words of `spectra eig --model ...`, with the options that are not as they are by default.

    None of them where the record lists no options, or such that this spectra would not understand alike.
    """
    command, asked = COMMANDS[record.command], record.problem.options
    if asked is None:
        return []
    words = [word for option in command.params if option.name in asked for word in typed(option, asked[option.name])]
    return ["spectra", command.name, *words] if understood(command, words) == asked else []


def typed(option: click.Parameter, value: Any) -> list[str]:
    """An option as it is typed; nothing where it has its default."""
    name = max(option.opts, key=len)
    if option.is_flag:
        return [name] if value else []
    if value is None or value == plain(option.default):
        return []
    if option.multiple:
        return [word for item in value for word in (name, str(item))]
    return [name, ",".join(map(str, value)) if isinstance(value, list) else str(value)]


def understood(command: click.Command, words: list[str]) -> dict[str, Any] | None:
    """What the command takes these words for, as a record lists it."""
    try:
        with command.make_context(command.name, list(words)) as context:
            return {name: plain(value) for name, value in context.params.items() if name not in NOT_RECORDED}
    except click.ClickException:
        return None
