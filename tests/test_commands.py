"""The register of commands: what it names is there, and the rest of the program follows it."""

import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import click
import pytest

import spectra.cli
from spectra.commands import COMMANDS, cli_command, of_sweeps, with_results

MODULE = '''
import click

@click.command()
@click.option("--out")
def toy(out):
    """A toy."""

def parts(record):
    return []

def rows(found):
    return iter(())

def figures(record):
    return {}
'''
# What asks the register, each as an expression that is true where it knows the command.
FOLLOWS = [
    ("spectra.cli", "module.spectra.commands['toy'].help == 'A toy.'"),
    ("spectra.cli", "'toy' in module.ALONE"),
    ("spectra.cli.repeat", "module.COMMANDS['toy'].name == 'toy'"),
    ("spectra.cli.plan_options", "module.COMMANDS['toy'].name == 'toy'"),
    ("spectra.page.results", "module.KINDS['toy'] == ('Toys', 'toy_module:parts')"),
    ("spectra.page.figures", "module.CAPTIONS['toy'] == 'Toys in a box'"),
    ("spectra.plots.saved", "module.WHOLE['toy'] == 'toy_module:figures'"),
    ("spectra.sweeps.plan", "'toy' in module.COMMANDS"),
    ("spectra.sweeps.evolution", "module.ROWS['toy'].__name__ == 'rows'"),
]


@pytest.mark.parametrize("name", COMMANDS)
def test_what_the_register_names_is_there(name):
    command = COMMANDS[name]
    assert isinstance(cli_command(name), click.Command)
    assert cli_command(name).name == name
    for place in (command.tables, command.figures, command.rows):
        assert not place or callable(resolve_name(place))
    assert bool(command.tables) == bool(command.title)
    assert all(caption.startswith(name) for caption in command.captions)


def test_every_command_is_in_the_register():
    assert list(spectra.cli.spectra.commands) == list(COMMANDS)
    files = Path(spectra.cli.__file__).parent.glob("*.py")
    found = {path.stem: resolve_name(f"spectra.cli.{path.stem}") for path in files}
    defined = [name for name, module in found.items() if isinstance(getattr(module, name, None), click.Command)]
    assert sorted(defined) == sorted(COMMANDS)


def test_what_is_known_of_commands():
    assert with_results() == ["inspect", "eig", "trace", "density", "compare", "layers", "landscape", "step"]
    assert of_sweeps() == ("eig", "trace", "density")


def test_the_rest_follows_the_register(tmp_path):
    """A command is a file and an entry."""
    (tmp_path / "toy_module.py").write_text(MODULE)
    lines = [
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})",
        "from importlib import import_module",
        "from spectra.commands import COMMANDS, Command",
        "COMMANDS['toy'] = Command('toy_module:toy', spends_products=False, title='Toys', tables='toy_module:parts',",
        "    figures='toy_module:figures', captions={'toy': 'Toys in a box'}, rows='toy_module:rows')",
        *(f"module = import_module({name!r}); assert {known}, {name!r}" for name, known in FOLLOWS),
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
