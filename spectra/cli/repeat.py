"""Command lines that repeat a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spectra.cli.config import plain, recorded
from spectra.commands import cli_command, with_results
from spectra.inputs.code_origin import RUN, is_third_party
from spectra.records.record import Record

COMMANDS = {name: cli_command(name) for name in with_results()}


def repeat_commands(path: Path, record: Record) -> list[list[str]]:
    """The command lines that repeat a result: one with its options, if they still mean the same, and one with --config.

    There is none for a result without options, as `spectra.watch` writes, with options that are refused now, or with a
    preconditioner given in Python.
    """
    command, options = COMMANDS[record.command], record.problem.options
    if record.problem.get("precondition") and isinstance(options, dict) and not options.get("precondition"):
        return []
    if not isinstance(options, dict) or parsed_options(command, words_of(command, options)) is None:
        return []
    named = [(name, text) for name in RUN for text in as_list(options.get(name))]
    code = [(name, text) for name, text in named if isinstance(text, str) and is_third_party(text, name)]
    typed_again = [word for name, text in code for word in (f"--{name.replace('_', '-')}", text)]
    by_file = ["spectra", command.name, "--config", str(path), *typed_again]  # a file may not name code
    return [line for line in (command_line(record), by_file) if line]


def as_list(value: Any) -> list[Any]:
    """The values of an option, repeatable or not, as a list."""
    return value if isinstance(value, list) else [value]


def command_line(record: Record) -> list[str]:
    """The words of `spectra eig --model ...`, with the options that differ from their defaults.

    Empty if the record lists no options, or options that this version of spectra reads differently.
    """
    command, options = COMMANDS[record.command], record.problem.options
    if options is None:
        return []
    words = words_of(command, options)
    return ["spectra", command.name, *words] if parsed_options(command, words) == options else []


def words_of(command: click.Command, values: dict[str, Any]) -> list[str]:
    """The words that set the options in `asked`, without those that have their defaults."""
    options = [option for option in command.params if isinstance(option, click.Option) and option.name in values]
    return [word for option in options for word in typed(option, values[str(option.name)])]


def typed(option: click.Option, value: Any) -> list[str]:
    """The words that set an option to a value; none for its default."""
    if value is None or value == plain(option.default):
        return []
    name = max(option.opts, key=len)
    if option.is_flag:
        return [name] if value else option.secondary_opts[:1]  # of --this/--no-this
    if option.multiple:
        return [word for item in as_list(value) for word in (name, str(item))]
    return [name, ",".join(map(str, value)) if isinstance(value, list) else str(value)]


def parsed_options(command: click.Command, words: list[str]) -> dict[str, Any] | None:
    """The options that the command reads from these words, as a record lists them; None if it refuses them."""
    try:
        with command.make_context(command.name, list(words)) as context:
            return recorded(context)
    except click.ClickException:
        return None
