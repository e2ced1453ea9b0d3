"""The layout of help texts: options under headings, commands in groups, and examples at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

METHOD, GENERAL, OPTIONS = "Method", "General", "Options"
HEADINGS = {  # parameter names under each heading; an option that is not listed comes under Method
    "Problem": (
        *("model", "checkpoint", "checkpoint_key", "optimizer", "to", "data", "held_out", "transform"),
        *("output", "loss", "loss_part", "weight_decay", "samples", "operator"),
    ),
    "Matrix": ("curvature", "by", "params", "mc_samples", "wrt", "precondition", "damping"),
    METHOD: (),
    "Device and memory": ("batch_size", "memory", "basis", "recompute_activations", "device", "dtype", "compile"),
    "Output": ("sort", "save_vectors", "log", "out", "save_every", "as_json"),
    GENERAL: ("config", "trust"),  # and --help, which click adds
}
SEVERAL = {  # where to go with several values of an option that takes one
    "checkpoint": "analyse many checkpoints by 'spectra sweep'",
    "loss_part": "compare parts by 'spectra compare'",
    "operator": "compare matrices by 'spectra compare'",
}
FEW = 10  # fewer options need no headings
TERM = 22  # columns; a longer flag gets its own line


def by_heading(command: click.Command, context: click.Context) -> dict[str, list[click.Option]]:
    """The options of a command by heading, in the order of the help text; under a single heading if they are few."""
    options = [one for one in command.get_params(context) if isinstance(one, click.Option) and not one.hidden]
    if len(options) < FEW:
        return {OPTIONS: options}
    found = {
        heading: [one for name in names for one in options if one.name == name] for heading, names in HEADINGS.items()
    }
    listed = [one for some in found.values() for one in some]
    for one in options:
        if one not in listed:
            found[METHOD if one in command.params else GENERAL].append(one)
    return {heading: some for heading, some in found.items() if some}


def refuse_twice(given: Sequence[click.Parameter], ctx: click.Context) -> None:
    """Raise UsageError where an option that other commands take several times is given twice to one that takes it once."""
    for option in dict.fromkeys(given):
        if (
            isinstance(option, click.Option)
            and option.name in SEVERAL
            and not option.multiple
            and given.count(option) > 1
        ):
            flag, times = max(option.opts, key=len), given.count(option)
            raise click.UsageError(f"{flag} is given {times} times; give it once, or {SEVERAL[option.name]}", ctx)


class Command(click.Command):
    """A command with options grouped under headings and examples at the end of its help.

    Args:
        examples: command lines as typed; a backslash continues a long one on the next line.
    """

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **settings: Any):
        self.examples = tuple(examples)
        if examples:
            settings["epilog"] = "\n  ".join(("\b\nExamples:", *examples))
        super().__init__(*arguments, **settings)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line. Raises UsageError if an option is given too often, of which click takes the last."""
        rest = super().parse_args(ctx, [*args])  # shows --help, if that is asked for
        if not ctx.resilient_parsing:
            refuse_twice(self.make_parser(ctx).parse_args(args=[*args])[2], ctx)
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in one section for each heading."""
        for heading, options in by_heading(self, ctx).items():
            with formatter.section(heading):
                formatter.write_dl([record for one in options if (record := one.get_help_record(ctx))], col_max=TERM)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as a section, which is not indented."""
        formatter.dedent()
        super().format_epilog(ctx, formatter)
        formatter.indent()


class Group(Command, click.Group):
    """A group of commands, which its help lists under headings.

    Args:
        headings: the heading of each command, by name; a command that is not listed comes under `Commands`.
    """

    def __init__(self, *arguments: Any, headings: dict[str, str] | None = None, **settings: Any):
        super().__init__(*arguments, **settings)
        self.headings = headings or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under their headings, and the options below them."""
        self.format_commands(ctx, formatter)
        Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with the first sentence of its help, in the order of their definition."""
        limit = formatter.width - 6 - max(map(len, self.commands))
        for heading in dict.fromkeys(self.headings.get(name, "Commands") for name in self.commands):
            named = [(n, c) for n, c in self.commands.items() if self.headings.get(n, "Commands") == heading]
            with formatter.section(heading):
                formatter.write_dl([(name, command.get_short_help_str(limit)) for name, command in named])
