"""`spectra report` as it is called: what it writes and prints, the one line for a wrong input, the lines it repeats."""

import json
import shlex
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from pages import LINES, Page

import spectra.cli
from spectra.cli.config import recorded as recorded_options
from spectra.cli.repeat import COMMANDS, command_line
from spectra.page.results import KINDS
from spectra.records.problem import ProblemRecord
from spectra.records.record import Record

PLACES = {"inspect": 25, "eig": 25, "trace": 25, "density": 10, "compare": 8}  # that are broken, of each record
BROKEN = list(PLACES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, results_of_commands):
    folder = copytree(results_of_commands, tmp_path_factory.mktemp("results") / "here")
    (folder / "all").rename(folder / "run")
    for path in (folder / "run").iterdir():
        if path.stem.partition("-")[0] not in BROKEN:
            path.unlink()
    (folder / "run/eig.json").rename(folder / "eig.json")
    (folder / "empty").mkdir()
    (folder / "a-directory.html").mkdir()
    return folder


@pytest.fixture(autouse=True)
def at_home(folder, monkeypatch):
    monkeypatch.chdir(folder)


def run(capsys, *arguments):
    """Status, standard output and standard error of `spectra report`."""
    capsys.readouterr()
    status = spectra.cli.run(["report", *map(str, arguments)])
    return status, *capsys.readouterr()


def refused(capsys, folder, *arguments) -> str:
    """The one line on standard error; nothing else is printed, and nothing written."""
    before = sorted(folder.rglob("*"))
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
    return err.removeprefix("spectra: ").strip()


# What it writes


def test_the_path_of_the_page_is_printed(capsys):
    assert run(capsys, "eig.json", "--out", "new/one.html") == (0, "new/one.html\n", "")
    assert [path.name for path in Path("new").iterdir()] == ["one.html"]


def test_json_names_the_page_and_all_results_in_it(capsys):
    status, out, _ = run(capsys, "eig.json", "run", "--out", "two.HTML", "--json")
    names = ["eig.json", *(f"run/{command}.json" for command in ("inspect", "trace", "density", "compare"))]
    assert (status, json.loads(out)) == (0, {"schema": 1, "command": "report", "page": "two.HTML", "results": names})


def test_a_page_is_replaced(capsys):
    Path("old.html").write_text("an old one")
    run(capsys, "eig.json", "--out", "old.html")
    assert Path("old.html").read_text().startswith("<!DOCTYPE html>")


def test_one_of_several_ranks_writes():
    assert "report" in spectra.cli.ALONE


# What is refused


FILES = {
    "empty.json": ("", "is not valid JSON, or is cut off"),
    "cut.json": ('{"schema": 1, "command": "eig", "resu', "is not valid JSON, or is cut off"),
    "list.json": ("[1, 2]", "is JSON, but not a result of spectra"),
    "newer.json": ('{"schema": 2, "command": "eig", "problem": {}, "results": []}', "upgrade spectra"),
    "other.json": ('{"schema": 1, "command": "sweep", "problem": {}, "results": []}', "a result of sweep"),
    "bare.json": ('{"schema": 1, "command": "eig", "problem": {}, "results": []}', "lacks 'model'"),
    "three.json": ('{"schema": 1, "command": "eig", "problem": {}, "results": [3]}', "is not a result of spectra eig"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_result_gets_one_line(name, capsys, folder):
    content, reason = FILES[name]
    Path(name).write_text(content)
    line = refused(capsys, folder, "eig.json", name, "--out", "a.html")
    assert line.startswith(f"RESULT {name}: ")
    assert reason in line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("", "Missing argument 'RESULT...'"),
        ("eig.json", "Missing option '--out'"),
        ("eig.json --out a.htm", "'--out': 'a.htm' does not end in .html; write a.html"),
        ("eig.json --out a", "'--out': 'a' does not end in .html; write a.html"),
        ("eig.json --out a-directory.html", "'--out': File 'a-directory.html' is a directory"),
        ("eig.json --out eig.json/a.html", "--out eig.json: cannot be written"),
        ("eig.json eig.json --out a.html", "RESULT eig.json: is given twice; give it once"),
        ("run run/trace.json --out a.html", "RESULT run/trace.json: is given twice; give it once"),
        ("run run/../run --out a.html", "is given twice; give it once"),
        ("empty --out a.html", "RESULT empty: the directory has none of inspect.json, eig.json, trace.json"),
        ("nothing --out a.html", "RESULT nothing: cannot be read (No such file or directory)"),
    ],
)
def test_a_wrong_argument_gets_one_line(arguments, line, capsys, folder):
    assert line in refused(capsys, folder, *shlex.split(arguments))


def places(value, path=()):
    """Every place in a record, those in lists of numbers once."""
    items = value.items() if isinstance(value, dict) else list(enumerate(value))[:2] if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(record, path, value):
    """A copy with something else at a place; `...` takes it away."""
    copy = json.loads(json.dumps(record))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copy


@pytest.mark.parametrize("command", BROKEN)
def test_a_record_of_which_something_is_broken_is_a_page_or_one_line(command, capsys, folder, monkeypatch):
    """Seeded: any place of a record taken away, or replaced by what does not belong there."""
    monkeypatch.setattr("spectra.page.figures.svg", lambda figure: b"<svg/>")  # drawn, but not written
    file = Path("eig.json" if command == "eig" else f"run/{command}.json")
    record, draw = json.loads(file.read_text()), np.random.default_rng(0)
    everywhere = list(places(record))
    Path("broken.json").touch()
    statuses = []
    for at in draw.choice(len(everywhere), size=PLACES[command], replace=False):
        for value in draw.permutation(np.array([..., None, "text", [], {}, -1, 1e308, [[None]]], dtype=object))[:2]:
            Path("broken.json").write_text(json.dumps(changed(record, everywhere[at], value)))
            Path("broken.html").unlink(missing_ok=True)
            status, out, err = run(capsys, "broken.json", "--out", "broken.html")
            assert status in (0, 2), err
            assert Path("broken.html").exists() == (status == 0)
            if status == 2:
                assert (out, err.count("\n")) == ("", 1)
                assert err.startswith("spectra: RESULT broken.json: ")
            else:
                Page(Path("broken.html").read_text(encoding="utf-8"))
            statuses.append(status)
    assert {0, 2} == set(statuses)


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("eig", ("problem", "loss_value")),
        ("eig", ("results", 0, "residuals")),
        ("trace", ("results", 0, "trace")),
        ("density", ("results", 0, "weights")),
        ("compare", ("pairs", 0, "overlaps")),
        ("inspect", ("problem", "layers")),
    ],
)
def test_what_is_missing_is_named(command, place, capsys, folder):
    file = Path("eig.json" if command == "eig" else f"run/{command}.json")
    Path("lacks.json").write_text(json.dumps(changed(json.loads(file.read_text()), place, ...)))
    line = f"RESULT lacks.json: lacks '{place[-1]}'; run spectra {command} again"
    assert refused(capsys, folder, "lacks.json", "--out", "a.html") == line


# How to repeat it


def asked(line: list[str]) -> dict:
    """The options of a command line, as a record lists them."""
    with COMMANDS[line[0]].make_context(line[0], line[1:]) as context:
        return recorded_options(context)


def recorded(command: str, options: dict | None) -> Record:
    return Record(command=command, problem=ProblemRecord.known(options=options), results=[])


REPEATED = [
    *(f"{command} {line}" for command, line in LINES.items()),
    "eig --model a.py:b --data digits",
    "eig --model 'a file.py:b?x=1&y=it'\"'\"'s' --data digits --checkpoint '$HOME/last one.pt' --checkpoint-key -k",
    "eig --model a.py:b --data digits -k 3 --which BE --tol 1e-9 --method dense --max-products 7",
    "trace --model a.py:b --data digits --probes 5 --deflate run/eig.json --memory 2GiB --seed 123456789012",
    "trace --model a.py:b --data digits --params '*.weight' --params 'head.*' --weight-decay 0.1 --mc-samples 4",
    "density --model a.py:b --data digits --log --steps 9 --damping 1e-5 --samples 100 --batch-size 10",
    "compare --model a.py:b --data digits --subsample 256,512,1024",
    "compare --model a.py:b --data digits --curvature ggn --curvature hessian",
    "layers --model a.py:b --data digits --by channel --sort trace -k 0 --eigenvectors run",
    "inspect --model a.py:b --rtol 0.5 --dtype float64 --device cpu --loss mse --output logits --transform t.py:f",
]


@pytest.mark.parametrize("line", REPEATED)
def test_a_command_line_repeats_the_options(line):
    options = asked(shlex.split(line))
    command = shlex.split(line)[0]
    found = command_line(recorded(command, options))
    assert found[:2] == ["spectra", command]
    assert asked(shlex.split(shlex.join(found[1:]))) == options


def test_defaults_are_not_repeated():
    options = asked(shlex.split("eig --data digits --model a.py:b --seed 0 -k 10 --curvature hessian"))
    assert command_line(recorded("eig", options)) == shlex.split("spectra eig --model a.py:b --data digits")
    for flag in ([], ["--no-noise"]):
        line = ["step", *flag, *shlex.split("--model a.py:b --data digits")]
        assert command_line(recorded("step", asked(line))) == ["spectra", *line]


@pytest.mark.parametrize(
    "change", [{"k": 0}, {"which": "XX"}, {"later": 1}, {"curvature": "ggn"}, {"model": None}, {"seed": "many"}]
)
def test_what_this_spectra_would_not_understand_alike_is_not_repeated(change):
    options = asked(shlex.split("eig --model a.py:b --data digits")) | change
    assert command_line(recorded("eig", options)) == []
    assert command_line(recorded("eig", None)) == []


def test_only_ways_that_this_spectra_takes_are_shown(capsys):
    """A result of spectra.watch lists no options, and one of a later spectra may list values that are refused."""
    record = json.loads(Path("eig.json").read_text())
    options = record["problem"]["options"]
    for changed_options, count in (
        (options, 2),
        ({**options, "later": 1}, 1),
        ({**options, "which": "XX"}, 0),
        (None, 0),
    ):
        problem = {**record["problem"], "options": changed_options}
        file = Path("other/eig.json")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({**record, "problem": problem}))
        run(capsys, str(file), "--out", "other.html")
        page = Page(Path("other.html").read_text(encoding="utf-8"))
        lines = [part.text for part in page.all("pre")]
        assert len(lines) == count
        assert ("How to repeat it" in page.text) == bool(count)
        for line in lines:
            assert spectra.cli.run([*shlex.split(line)[1:], "--json"]) == 0


def test_every_kind_of_result_has_its_command():
    assert COMMANDS.keys() == KINDS.keys()
    assert all(COMMANDS[name] is spectra.cli.spectra.commands[name] for name in COMMANDS)


def test_the_page_shows_both_ways(capsys):
    run(capsys, "eig.json", "--out", "ways.html")
    again, config = (part.text for part in Page(Path("ways.html").read_text(encoding="utf-8")).all("pre"))
    assert asked(shlex.split(again)[1:]) == json.loads(Path("eig.json").read_text())["problem"]["options"]
    assert config == "spectra eig --config eig.json --model nets.py:mlp"  # code that a result may not name by itself
    assert spectra.cli.run([*shlex.split(config)[1:], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["results"][0]["eigenvalues"] == json.loads(Path("eig.json").read_text())["results"][0]["eigenvalues"]
