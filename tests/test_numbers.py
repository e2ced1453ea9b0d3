"""Numbers of any length, wherever one is given: a line that names the option, never an error of Python's."""

import click
import pytest

from spectra.cli import run, spectra
from spectra.cli.compare import Sizes
from spectra.cli.options import Count, Positive, Seed, Size
from spectra.sweeps.plan_run import minutes
from spectra.wording import counted

PROBLEM = ["--model", "spectra.demo:mlp", "--data", "digits"]
NUMBERS = (click.IntRange, Positive, Seed, Size, Sizes)
OPTIONS = [
    (command.name, max(option.opts, key=len))
    for command in spectra.commands.values()
    for option in command.params
    if isinstance(option.type, NUMBERS) or option.type.name == "integer"
]
LONG = {"400 digits": "9" * 400, "5,000 digits": "9" * 5000, "not finite": "1e999", "nan": "nan"}


def refused(capsys, *arguments) -> str:
    """The one line on standard error."""
    capsys.readouterr()
    assert run(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "Error" not in err
    assert "set_int_max_str_digits" not in err
    assert len(err) < 700
    return err


def test_there_are_such_options():
    assert len(OPTIONS) > 50
    assert {"-k", "--seed", "--memory", "--rtol", "--subsample", "--points"} <= {option for _, option in OPTIONS}
    assert not any(
        isinstance(option.type, click.IntRange) and not isinstance(option.type, Count)
        for command in spectra.commands.values()
        for option in command.params
    )


@pytest.mark.parametrize("number", LONG)
def test_every_option_refuses_numbers_beyond_all_bounds(number, capsys):
    for command, option in OPTIONS:
        problem = PROBLEM if "--model" in spectra.commands[command].params[0].opts else ["x"]
        line = refused(capsys, command, *problem, option, LONG[number])
        assert f"'{option}'" in line
    assert "'--along'" in refused(capsys, "landscape", *PROBLEM, "--along", LONG[number])


@pytest.mark.parametrize(
    "number", ["9" * 20, "9" * 400, "9" * 5000, "0x" + "9" * 5000, "[1, {a = 0x" + "9" * 17 + "}]"]
)
@pytest.mark.parametrize("where", ["k = {}", "tol = {}", "memory = {}", "model = {}", "[trace]\nrtol = {}"])
def test_toml_holds_integers_of_64_bits(number, where, capsys, tmp_path):
    """As TOML has it: what cannot be represented is an error."""
    (tmp_path / "c.toml").write_text(where.format(number))
    line = refused(capsys, "eig", *PROBLEM, "--config", str(tmp_path / "c.toml"))
    assert "64 bits" in line
    (tmp_path / "plan.toml").write_text(f"[collect]\nlearning_rate = {number}\n[eig]\n")
    for command in ("run", "status", "collect"):
        assert "64 bits" in refused(capsys, "sweep", command, str(tmp_path / "plan.toml"))


def test_a_time_of_slurms_has_few_digits():
    assert minutes("2-12:00:00") == 3600
    assert minutes("9" * 5000 + ":00:00") is None


def test_labels_are_drawn_as_often_as_their_keys_count(capsys):
    assert "'--mc-samples'" in refused(capsys, "eig", *PROBLEM, "--mc-samples", str(2**23))


@pytest.mark.parametrize("spec", ["cross_entropy?ignore_index={}", "cross_entropy?label_smoothing={}"])
@pytest.mark.parametrize("number", LONG)
def test_options_of_names(spec, number, capsys):
    assert "--loss" in refused(capsys, "eig", *PROBLEM, "--loss", spec.format(LONG[number]))


def test_counts_have_their_noun():
    assert counted(1, "probe") == "1 probe"
    assert counted(0, "probe") == "0 probes"
    assert counted(3466, "parameter") == "3,466 parameters"
    assert counted(2, "matrix", "matrices") == "2 matrices"
