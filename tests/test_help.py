"""Help texts: whole sentences, options under headings, and examples that can be typed; and the shell's completion."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from spectra.cli import spectra
from spectra.cli.layout import HEADINGS, OPTIONS, by_heading

BY_NAME = {"": spectra, **spectra.commands, **{f"sweep {n}": c for n, c in spectra.commands["sweep"].commands.items()}}
COMPLETION = (Path(__file__).parent.parent / "docs/completion.md").read_text()
GROUPS = ["Analyse", "Compare", "Run many", "Show"]
SENTENCE = re.compile(r"[A-Z][^.]* [^.]*\.")  # several words


def help_of(name: str) -> str:
    context = click.Context(spectra, info_name="spectra", **spectra.context_settings)
    for part in name.split():
        context = click.Context(context.command.commands[part], info_name=part, parent=context, terminal_width=80)
    context.terminal_width = 80
    return context.get_help()


def typed(command: click.Command) -> list[str]:
    """The examples of a command, each on a line of its own."""
    return re.sub(r" \\\n +", " ", "\n".join(command.examples)).splitlines()


def parse(words: list[str], name: str) -> None:
    """Read a command line as the program does, which is of the command of this name or of one in it."""
    assert words[0] == "spectra"
    found = next(one for one in sorted(BY_NAME, key=len, reverse=True) if words[1:][: len(one.split())] == one.split())
    assert found.startswith(name)
    BY_NAME[found].make_context(found, words[1 + len(found.split()) :])


def options(command: click.Command) -> list[click.Option]:
    return [option for option in command.params if isinstance(option, click.Option)]


OPTIONS_OF_ALL = [(name, option) for name, command in BY_NAME.items() for option in options(command)]


def test_commands_are_listed_in_groups_with_whole_sentences():
    text = help_of("")
    assert re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE) == [*GROUPS, OPTIONS, "Examples"]
    for name, command in spectra.commands.items():
        assert f"  {name} " in text
        assert command.get_short_help_str(100) in text, f"{name}: too long for its line"


@pytest.mark.parametrize("name", BY_NAME)
def test_help_begins_with_a_sentence_and_ends_with_two_examples_that_can_be_typed(name):
    command = BY_NAME[name]
    assert SENTENCE.fullmatch(command.help.splitlines()[0])
    examples = typed(command)
    assert len(examples) == 2
    for words in map(shlex.split, examples):
        parse(words, name)
    text = help_of(name)
    assert text.endswith("".join(f"\n  {line}" for line in "\n".join(command.examples).splitlines()))
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", BY_NAME)
def test_every_option_stands_under_one_heading(name):
    command = BY_NAME[name]
    context = click.Context(command)
    found = by_heading(command, context)
    listed = [option for some in found.values() for option in some]
    assert sorted(map(id, listed)) == sorted(map(id, {*options(command), command.get_help_option(context)}))
    assert [*found] == ([OPTIONS] if len(listed) < 10 else [heading for heading in HEADINGS if heading in found])
    text = help_of(name)
    places = [text.index(f"\n{heading}:\n") for heading in found]
    assert places == sorted(places)


def test_every_name_under_a_heading_is_an_option():
    known = {option.name for _, option in OPTIONS_OF_ALL}
    assert {name for names in HEADINGS.values() for name in names} <= known


@pytest.mark.parametrize("name", BY_NAME)
def test_the_help_of_an_option_is_whole_sentences(name):
    for option in options(BY_NAME[name]):
        text = option.help.partition("  [default")[0]
        assert re.match(r"[A-Z][a-z-]*\b", text), option.name
        assert text.endswith("."), option.name


@pytest.mark.parametrize(
    ("shell", "words", "found"),
    [
        ("bash", "spectra ei", {"eig"}),
        ("zsh", "spectra sweep ", {"run", "status", "collect"}),
        ("fish", "spectra eig --curv", {"--curvature"}),
        ("bash", "spectra eig --curvature fisher-", {"fisher-mc", "fisher-empirical", "fisher-batch"}),
        ("zsh", "spectra eig --model nets", {"file", "nets"}),  # the shell itself completes paths
    ],
)
def test_completion_of_commands_options_and_choices(shell, words, found):
    """As click's scripts ask for it: without loading what is slow."""
    done = complete(shell, words)
    assert found <= set(re.split(r"[\n,\t]", done.stdout))
    loaded = {name.split(".")[0] for name in re.findall(r"\|\s+([\w.]+)$", done.stderr, re.MULTILINE)}
    assert "click" in loaded
    assert not loaded & {"torch", "numpy", "matplotlib", "rich"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_documented_lines_of_completion(shell):
    line = next(line for line in COMPLETION.splitlines() if f"{shell}_source" in line)
    assert line in {
        f'eval "$(_SPECTRA_COMPLETE={shell}_source spectra)"',
        "_SPECTRA_COMPLETE=fish_source spectra | source",
    }
    done = subprocess.run(
        [sys.executable, "-m", "spectra"],
        env=os.environ | {"_SPECTRA_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"_SPECTRA_COMPLETE={shell}_complete" in done.stdout


def complete(shell: str, words: str) -> subprocess.CompletedProcess:
    """What the shell gets to complete the last of these words."""
    last = len(words.split(" ")) - 1
    environment = {
        "_SPECTRA_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": words.split(" ")[-1] if shell == "fish" else str(last),
    }
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "spectra"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
