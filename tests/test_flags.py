"""Messages name an argument as the reader gives it: in Python its name in backticks, on the command line its flag."""

import ast
import re
from pathlib import Path

import click
import pytest

import spectra
from spectra.cli import run
from spectra.cli import spectra as commands
from spectra.cli.flags import flags_of, with_flags
from spectra.errors import SpectraError, describe
from spectra.quoting import quoted

PACKAGE = Path(spectra.__file__).parent
FOR_THE_COMMAND_LINE = ("cli", "commands.py", "page", "tables")  # what is made for those who type commands
ALLOWED = {  # whole strings: arguments of programs, command lines, and what stands in results since their first version
    "sweeps/cost.py": ["--json", "--curvature"],
    "sweeps/slurm.py": ["--noheader", "--array", "--format=%i %T", "--user="],
    "sweeps/eigenspaces.py": [": without saved eigenvectors (spectra eig --save-vectors) there are no overlaps"],
    "cluster/distributed.py": ["torchrun --nproc-per-node "],
    "run/loading.py": ["torchrun --nproc-per-node "],
    "inputs/transformers_model.py": [
        "models are not downloaded here: run `hf download {} --local-dir FOLDER`, and write {}?path=FOLDER"
    ],
}


def texts(source: str) -> list[str]:
    """The strings of a module, f-strings in their parts, without docstrings."""
    tree = ast.parse(source)
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.value for node in strings if id(node) not in alone]


def test_library_names_no_flag():
    found = []
    for file in PACKAGE.rglob("*.py"):
        place = file.relative_to(PACKAGE)
        if place.parts[0] not in FOR_THE_COMMAND_LINE:
            flagged = [text for text in texts(file.read_text("utf-8")) if re.search(r"(?<![\w-])--[a-z]", text)]
            found += [(str(place), text) for text in flagged if text not in ALLOWED.get(place.as_posix(), ())]
    assert not found


@click.command
@click.option("-k", "--rank")
@click.option("--weight-decay")
@click.option("--tol")
@click.option("--json", "as_json", is_flag=True)
@click.option("--no-check", is_flag=True)
def command():
    pass


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`weight_decay` 0.1: leave it out", "--weight-decay 0.1: leave it out"),
        ("raise `tolerance`, or give `check=False`", "raise --tol, or give --no-check"),
        ("`as_json`", "--json"),
        ("`rank` -1", "--rank -1"),
        ("`every` 0: `weight decay` and weight_decay stay", "`every` 0: `weight decay` and weight_decay stay"),
        ("`check=True` and `tolerance=1` are no options", "`check=True` and `tolerance=1` are no options"),
    ],
)
def test_options_by_their_flags(text, shown):
    assert with_flags(text, command) == shown
    assert with_flags(text, click.Group("all", {"one": command})) == shown


def test_every_option_has_one_flag():
    """An argument of one name is the same option in all commands, so that the group can speak for each."""
    everywhere = flags_of(commands)
    for one in commands.commands.values():
        assert flags_of(one).items() <= everywhere.items()
    assert everywhere["output_key"] == "--output"
    assert everywhere["k"] == "-k"


def test_names_of_others_are_not_taken_for_arguments():
    assert quoted("a `data` of mine, and `two words`") == "a 'data' of mine, and `two words`"
    assert describe(ValueError("give `model`, `check=False`")) == "ValueError: give 'model', 'check=False'"
    assert describe(SpectraError("`model`: none")) == "SpectraError: `model`: none"
    assert str(SpectraError("`model`: none")) == "`model`: none"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (["--params", "`data`"], "--params 'data': matches no parameter"),
        (["--output", "`model`"], "--output 'model': the model's output is one tensor"),
        (["--checkpoint", "`data`"], "--checkpoint 'data': no such file"),
        (["--checkpoint-key", "`data`"], "--checkpoint-key 'data': it needs a --checkpoint"),
        (["--data", "`data`"], "--data 'data': it is not known data"),
        (
            ["--out", "a/`model`"],
            "--out a/`model`: eig.json in it is a directory; move that away, or choose another --out",
        ),
    ],
)
def test_command_line_shows_what_came_as_it_came(line, shown, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("a/`model`/eig.json").mkdir(parents=True)
    assert run(["eig", "--model", "spectra.demo:mlp", "--data", "digits", "--samples", "9", *line]) == 2
    assert shown in capfd.readouterr().err
