"""The command lines that make a result again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spectra.cli.config import plain, recorded
from spectra.commands import cli_command, with_results
from spectra.inputs.origin import RUN, is_strange
from spectra.records.record import Record

COMMANDS = {name: cli_command(name) for name in with_results()}


def ways(path: Path, record: Record) -> list[list[str]]:
    """The command lines that make a result again: its options, where they are understood alike, and --config.

    There is neither for a result that lists no options, as those of `spectra.watch`, or options that are refused now,
    or a preconditioner that has no name.
    """
    command, asked = COMMANDS[record.command], record.problem.options
    if record.problem.get("precondition") and isinstance(asked, dict) and not asked.get("precondition"):
        return []
    if not isinstance(asked, dict) or understood(command, words_of(command, asked)) is None:
        return []
    named = [(name, text) for name in RUN for text in as_list(asked.get(name))]
    code = [(name, text) for name, text in named if isinstance(text, str) and is_strange(text, name)]
    typed_again = [word for name, text in code for word in (f"--{name.replace('_', '-')}", text)]
    by_file = ["spectra", command.name, "--config", str(path), *typed_again]  # a file may not name code for its reader
    return [line for line in (command_line(record), by_file) if line]


def as_list(value: Any) -> list[Any]:
    """The values of an option that may be repeatable."""
    return value if isinstance(value, list) else [value]


def command_line(record: Record) -> list[str]:
    """The words of `spectra eig --model ...`, with the options that are not as they are by default.

    None of them where the record lists no options, or such that this spectra would not understand alike.
    """
    command, asked = COMMANDS[record.command], record.problem.options
    if asked is None:
        return []
    words = words_of(command, asked)
    return ["spectra", command.name, *words] if understood(command, words) == asked else []


def words_of(command: click.Command, asked: dict[str, Any]) -> list[str]:
    """The options in `asked` as they are typed, without those that have their defaults."""
    options = [option for option in command.params if isinstance(option, click.Option) and option.name in asked]
    return [word for option in options for word in typed(option, asked[str(option.name)])]


def typed(option: click.Option, value: Any) -> list[str]:
    """An option as it is typed; nothing where it has its default."""
    if value is None or value == plain(option.default):
        return []
    name = max(option.opts, key=len)
    if option.is_flag:
        return [name] if value else option.secondary_opts[:1]  # of --this/--no-this
    if option.multiple:
        return [word for item in as_list(value) for word in (name, str(item))]
    return [name, ",".join(map(str, value)) if isinstance(value, list) else str(value)]


def understood(command: click.Command, words: list[str]) -> dict[str, Any] | None:
    """The options that the command reads from these words, as a record lists them."""
    try:
        with command.make_context(command.name, list(words)) as context:
            return recorded(context)
    except click.ClickException:
        return None
