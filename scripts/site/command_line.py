"""A hook of the site: it fills reference/command-line.md with every command and its options, from their help."""

import inspect
from contextlib import contextmanager

import click

from spectra.cli import spectra

PAGE, MARK = "reference/command-line.md", "<!-- commands -->"


class Recorder(click.HelpFormatter):
    """The sections of a help text, each with its rows of a term and what it means."""

    def __init__(self):
        super().__init__(width=200)  # else what a command does is cut off
        self.sections: list[tuple[str, list[tuple[str, str]]]] = []

    @contextmanager
    def section(self, name):
        self.sections.append((name, []))
        yield

    def write_dl(self, rows, col_max=30, col_spacing=2):
        self.sections[-1][1].extend(rows)


def paragraphs(help_text: str) -> list[str]:
    """A help text in Markdown: what is not to be wrapped, as examples, is a block of code."""
    found = []
    for part in inspect.cleandoc(help_text).split("\n\n"):
        first, _, rest = part.partition("\n")
        if first.strip() == "\b":
            found.append(f"```text\n{rest}\n```")
        else:
            found.append(escaped(" ".join(part.split())))
    return found


def escaped(text: str) -> str:
    """Text that Markdown and HTML are to leave as it is."""
    for mark in "\\`*_[]|":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("&", "&amp;").replace("<", "&lt;")


def linked(term: str, path: str, commands: dict[str, click.Command]) -> str:
    """An option, or a command with a link to what is said of it."""
    code = f"<code>{escaped(term)}</code>"
    return f"[{code}](#{path.replace(' ', '-')}-{term})" if term in commands else code


def described(command: click.Command, path: str) -> list[str]:
    """The paragraphs of Markdown on a command and on the commands in it."""
    context = click.Context(command, info_name=path)
    recorder = Recorder()
    command.format_options(context, recorder)
    usage = " ".join(command.collect_usage_pieces(context))
    found = [f"## {path}", f"```text\n{path} {usage}\n```"]
    found += paragraphs(command.help or "") + paragraphs(command.epilog or "")
    inner = getattr(command, "commands", {})
    for name, rows in recorder.sections:
        lines = [f"| {linked(term, path, inner)} | {escaped(meaning)} |" for term, meaning in rows]
        found.append("\n".join([f"| {escaped(name)} | |", "| --- | --- |", *lines]))
    for name, one in inner.items():
        found += described(one, f"{path} {name}")
    return found


def on_page_markdown(markdown, page, config, files):
    if page.file.src_uri != PAGE:
        return markdown
    assert MARK in markdown
    return markdown.replace(MARK, "\n\n".join(described(spectra, "spectra")))
