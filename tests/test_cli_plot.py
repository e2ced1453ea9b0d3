"""`spectra plot`: what it draws, writes and prints, and the one line that every wrong input gets."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_record, save

import spectra.cli
from spectra.krylov.results import SpectralMeasure
from spectra.plots import density_figure, save_figure
from spectra.plots.evolution import evolution_figure
from spectra.plots.names import default_labels
from spectra.plots.saved import saved_figure
from spectra.sweeps.evolution import evolution_of

NODES, WEIGHTS = [[4.0, -0.1, 0.2, 0.9], [4.0, 0.0, 0.3, 0.0]], [[0.01, 0.5, 0.4, 0.09], [0.01, 0.3, 0.69, 0.0]]
ENTRIES = {
    "density": {"nodes": NODES, "weights": WEIGHTS, "dimension": 100, "deflated": 1},
    "eig": {"eigenvalues": [4.0, -1.5, 0.9], "residuals": [1e-5, 0.2, 1e-3]},
    "trace": {"trace": 17.3, "standard_error": 0.2},
}


def keep(directory, command, curvatures=("hessian", "ggn"), **changes):
    """A saved result of `command` with the same answer for each of the curvatures."""
    directory.mkdir(exist_ok=True, parents=True)
    results = [{"curvature": name, **ENTRIES[command], **changes} for name in curvatures]
    save(directory, make_record(command, {"options": {"which": "LM"}}, results), {})
    return directory / f"{command}.json"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments):
    """Status, standard output and standard error of `spectra plot`."""
    status = spectra.cli.run(["plot", *map(str, arguments)])
    return status, *capsys.readouterr()


def refused(capsys, place, *arguments):
    """The one line on standard error; nothing else is printed, and nothing written."""
    before = sorted(place.rglob("*"))
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert sorted(place.rglob("*")) == before
    return err.removeprefix("spectra: ").strip()


def legend(figure):
    (found,) = (one for part in (figure, *figure.subfigs) for one in part.legends)
    return [text.get_text() for text in found.get_texts()]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("command", ENTRIES)
@pytest.mark.parametrize(("suffix", "starts"), [("png", b"\x89PNG"), ("PDF", b"%PDF"), ("svg", b"<?xml")])
def test_a_result_becomes_a_file_whose_path_is_printed(command, suffix, starts, place, capsys):
    keep(place / "run", command)
    out = f"figures/new.{suffix}"
    assert run(capsys, f"run/{command}.json", "--out", out) == (0, out + "\n", "")
    written = (place / out).read_bytes()
    assert written.startswith(starts)
    assert [p.name for p in (place / "figures").iterdir()] == [f"new.{suffix}"]


def test_json_names_the_figure_and_the_files_it_is_of(place, capsys):
    keep(place / "one", "eig"), keep(place / "two", "eig")
    status, out, _ = run(capsys, "one", "two/eig.json", "--out", "a.svg", "--json")
    record = {"schema": 1, "command": "plot", "figure": "a.svg", "results": ["one/eig.json", "two/eig.json"]}
    assert (status, json.loads(out)) == (0, record)


def test_of_a_directory_the_density_comes_first_then_the_eigenvalues(place):
    for command in ("trace", "eig", "density"):
        file = keep(place / "run", command)
        assert saved_figure([place / "run"])[1] == [file]


def test_a_density_is_drawn_as_the_density_command_draws_it(place, capsys):
    keep(place, "density", ["hessian"])
    measure = SpectralMeasure(torch.tensor(NODES), torch.tensor(WEIGHTS), 100, 1)
    save_figure(density_figure({"hessian": measure}, log=True), place / "expected.png")
    run(capsys, place, "--out", "found.png", "--log")
    assert (place / "found.png").read_bytes() == (place / "expected.png").read_bytes()


def test_the_same_results_give_the_same_bytes_and_replace_a_figure(place, capsys):
    keep(place, "eig")
    (place / "a.pdf").write_text("an old one")
    for name in ("a.pdf", "b.pdf"):
        run(capsys, place, "--out", name, "--title", "Twice", "--log")
    assert (place / "a.pdf").read_bytes() == (place / "b.pdf").read_bytes()


@pytest.mark.parametrize(
    ("curvatures", "options", "names"),
    [
        ([("hessian",)], {}, ["hessian"]),
        ([("hessian", "ggn")], {}, ["hessian", "ggn"]),
        ([("hessian",)], {"labels": ["mine"]}, ["mine"]),
        ([("hessian",)] * 2, {}, ["r0", "r1"]),
        ([("hessian",)] * 2, {"labels": ["start", "end"]}, ["start", "end"]),
        ([("hessian",), ("ggn",)], {}, ["r0, hessian", "r1, ggn"]),
        ([("hessian", "ggn")] * 2, {"curvatures": ["ggn"]}, ["r0", "r1"]),
        ([("hessian", "ggn"), ("ggn",)], {"curvatures": ["ggn", "hessian"]}, ["r0, hessian", "r0, ggn", "r1, ggn"]),
    ],
)
def test_curves_are_named_by_what_tells_them_apart(curvatures, options, names, place):
    paths = [keep(place / f"r{i}", "eig", some) for i, some in enumerate(curvatures)]
    assert legend(saved_figure(paths, **options)[0]) == names


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["runs/a/eig.json", "runs/b/eig.json"], ["a", "b"]),
        (["runs/a/x/eig.json", "runs/b/y/eig.json"], ["a/x", "b/y"]),
        (["a.json", "b.json"], ["a", "b"]),
        (["b/a/eig.json", "b/eig.json"], ["b/a", "b"]),
        (["r/a.json", "r/a.txt"], ["r/a.json", "r/a.txt"]),
        (["$1/eig.json", "语/eig.json"], [r"\$1", "?"]),
    ],
)
def test_labels_are_the_parts_of_paths_that_differ(paths, labels, place):
    assert default_labels([Path(path) for path in paths]) == labels


def test_the_width_is_that_of_the_page(place):
    keep(place, "trace")
    assert saved_figure([place], width=3.25)[0].get_figwidth() == 3.25


@pytest.mark.parametrize(
    ("which", "label"), [("LM", "rank by |λ|"), ("SA", "rank from the bottom"), ("new", "rank"), (None, "rank")]
)
def test_the_axis_says_what_was_asked_for(which, label, place):
    file = keep(place, "eig")
    file.write_text(file.read_text().replace('"LM"', json.dumps(which)))
    assert saved_figure([file])[0].axes[0].get_xlabel() == label


def test_numbers_are_drawn_as_they_were_saved(place):
    (axes,) = saved_figure([keep(place, "eig", ["hessian"])])[0].axes
    ((points, _, (bars,)),) = (container.lines for container in axes.containers)
    np.testing.assert_array_equal(points.get_data(), [[1, 2, 3], ENTRIES["eig"]["eigenvalues"]])
    np.testing.assert_allclose([np.ptp(bar[:, 1]) / 2 for bar in bars.get_segments()], ENTRIES["eig"]["residuals"])


FILES = {
    "empty.json": ("", "is not valid JSON, or is cut off"),
    "cut.json": ('{"schema": 1, "command": "eig", "resu', "is not valid JSON, or is cut off"),
    "picture.json": (b"\x89PNG\xff\xfe", "is not valid JSON, or is cut off"),
    "deep.json": ("[" * 100_000, "is not valid JSON, or is cut off"),
    "list.json": ("[1, 2]", "is JSON, but not a result of spectra"),
    "other.json": ('{"schema": "draft", "results": []}', "is JSON, but not a result of spectra"),
    "newer.json": ('{"schema": 2, "command": "eig", "problem": {}, "results": []}', "upgrade spectra"),
    "inspect.json": ('{"schema": 1, "command": "inspect", "problem": {}, "results": []}', "density, eig, trace"),
    "none.json": (
        '{"schema": 1, "command": "eig", "problem": {}, "results": []}',
        "has no results; run the command again",
    ),
    "nameless.json": ('{"schema": 1, "command": "eig", "problem": {}, "results": [3]}', "an entry has no curvature"),
    "absent.json": (None, "No such file"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_result_gets_one_line(name, place, capsys):
    text, reason = FILES[name]
    if text is not None:
        (place / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    line = refused(capsys, place, name, "--out", "a.png")
    assert line.startswith(f"RESULT {name}: ")
    assert reason in line


@pytest.mark.parametrize(
    ("command", "changes", "reason"),
    [
        ("density", {"nodes": None}, "nodes of ggn must be rows of numbers"),
        ("density", {"nodes": [[1.0, 2.0], [1.0]]}, "nodes of ggn must be rows of numbers of equal length"),
        ("density", {"nodes": [[1.0]]}, "weights of ggn: missing or unusable"),
        ("density", {"nodes": [[1.0, None, 1, 1]]}, "nodes of ggn: a number is not finite"),
        ("density", {"weights": np.negative(WEIGHTS).tolist()}, "weights of ggn: missing or unusable"),
        ("density", {"weights": (2 * np.array(WEIGHTS)).tolist()}, "weights of ggn: missing or unusable"),
        ("density", {"dimension": "many"}, "dimension of ggn must be a whole number"),
        ("density", {"dimension": 0}, "deflated of ggn: missing or unusable"),
        ("density", {"deflated": 5}, "deflated of ggn: missing or unusable"),
        ("density", {"deflated": 4}, "deflated of ggn: missing or unusable"),
        ("eig", {"eigenvalues": []}, "eigenvalues of ggn: missing or unusable"),
        ("eig", {"eigenvalues": [1.0, None, 2.0]}, "eigenvalues of ggn: a number is not finite"),
        ("eig", {"residuals": [1.0]}, "residuals of ggn: missing or unusable"),
        ("trace", {"trace": None}, "trace of ggn: a number is not finite"),
        ("trace", {"trace": [1.0]}, "trace of ggn must be a number"),
        ("trace", {"standard_error": float("inf")}, "standard_error of ggn: a number is not finite"),
    ],
)
def test_a_record_without_what_the_figure_needs_gets_one_line(command, changes, reason, place, capsys):
    file = keep(place / "run", command, ["ggn"], **changes)
    line = refused(capsys, place, "run", "--out", "a.png")
    assert line.startswith(f"RESULT {file.relative_to(place)}: {reason}")


def test_a_matrix_that_is_not_finite_spoils_a_figure_only_where_it_is_drawn(place, capsys):
    file = keep(place, "eig")
    file.write_text(file.read_text().replace("4.0", "null", 1))
    assert "hessian: a number is not finite" in refused(capsys, place, place, "--out", "a.png")
    assert run(capsys, place, "--out", "a.png", "--curvature", "ggn")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("", "Missing argument 'RESULT...'"),
        ("one", "Missing option '--out'"),
        ("one --out a.jpg", "'--out': 'a.jpg' does not end in .png, .pdf or .svg; write a.png"),
        ("one --out a", "'--out': 'a' does not end in .png, .pdf or .svg; write a.png"),
        ("one --out dir.png", "'--out': File 'dir.png' is a directory"),
        ("one --out one/eig.json/a.png", "--out one/eig.json: cannot be written"),
        ("one --out a.png --width 1", "'--width'"),
        ("one --out a.png --width nan", "'--width'"),
        ("one one/eig.json --out a.png", "RESULT one/eig.json: is given twice; give it once"),
        (
            "one other --out a.png",
            "RESULT other/trace.json: is a result of trace, but one/eig.json of eig; draw them in separate figures",
        ),
        ("dir.png --out a.png", "RESULT dir.png: the directory has none of density.json, eig.json, trace.json"),
        ("one --out a.png --curvature gnn", "--curvature gnn: no RESULT has this matrix; did you mean ggn?"),
        (
            "one two --out a.png --curvature hessian",
            "RESULT two/eig.json: has only ggn; leave it out, or select",
        ),
        ("one two --out a.png --label a", "--label a: 1 label for 2 RESULTs; give one for each"),
        ("one two --out a.png --label a --label a", "--label 'a': is repeated or empty"),
        ("one --out a.png --figure trace", "--figure trace: results of eig have one figure; leave --figure out"),
        ("one --out a.png --label ''", "--label '': is repeated or empty"),
        (
            r"one --out a.png --title '$\foo$'",
            r"--title $\foo$: the text between dollar signs is not valid",
        ),
        (
            "one --out a.png --label 语",
            r"--label 语: the font DejaVu Sans has no character '\u8bed'; use other",
        ),
    ],
)
def test_a_wrong_argument_gets_one_line(arguments, line, place, capsys):
    keep(place / "one", "eig"), keep(place / "two", "eig", ["ggn"]), keep(place / "other", "trace")
    (place / "dir.png").mkdir()
    words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", arguments)]
    assert line in refused(capsys, place, *words)


def test_more_curves_than_can_be_told_apart_are_refused(place, capsys):
    paths = [keep(place / f"r{i}", "eig") for i in range(8)]
    line = refused(capsys, place, *paths, "--out", "a.png")
    assert "16 curves are too many to tell apart; draw 14 at most, or select some by --curvature" in line
    assert run(capsys, *paths[:7], "--out", "a.png")[0] == 0


def test_mathematics_in_a_title_is_set(place):
    title = r"$\lambda_1$ of ResNet"
    figure, _ = saved_figure([keep(place, "eig")], title=title)
    assert figure.legends[0].get_title().get_text() == title


PAIR = {
    "first": "hessian",
    "second": "ggn",
    "distance": {"value": 0.2, "standard_error": 0.01},
    "scaled_distance": {"value": 0.1, "standard_error": None},
    "first_by_second": [4.0, 1.0],
    "overlaps": [{"j": 1, "overlap": 0.9, "error": 0.01, "told": True}],
}


def compared(directory, **changes):
    """A saved result of `compare`, with these changes of its first matrix."""
    directory.mkdir()
    numbers = ENTRIES["density"] | {"eigenvalues": [4.0, 1.0], "residuals": [0.1, 0.1]}
    results = [{"curvature": "hessian", **numbers, **changes}, {"curvature": "ggn", **numbers}]
    record = make_record("compare", {"parameters": 100, "options": {"k": 2}}, results) | {"pairs": [PAIR]}
    save(directory, record, {})
    return directory / "compare.json"


def test_a_comparison_is_drawn_as_it_stands(place, capsys):
    file = compared(place / "run")
    assert run(capsys, "run", "--out", "a.png") == (0, "a.png\n", "")
    figure, files = saved_figure([file])
    assert files == [file]
    assert legend(figure) == ["hessian", "ggn"]
    assert saved_figure([file], width=3.25, name="compare")[0].get_figwidth() == 3.25
    eigenvalues, overlaps, _, distances = figure.axes
    np.testing.assert_allclose(eigenvalues.containers[0].lines[0].get_ydata(), [4.0, 1.0])
    np.testing.assert_allclose(overlaps.lines[0].get_ydata(), [0.9])
    assert [text.get_text() for text in distances.get_yticklabels()] == ["hessian − ggn"]


@pytest.mark.parametrize(
    ("changes", "arguments", "line"),
    [
        ({}, "run run2", "RESULT run2/compare.json: a figure of compare shows one result; give one RESULT at a time"),
        ({}, "run --log", "--log: it has no effect on the figures of compare; leave it out"),
        ({}, "run --title a", "--title: it has no effect on the figures of compare"),
        (
            {},
            "run --figure compare-held-out",
            "--figure compare-held-out: run/compare.json has no such figure",
        ),
        ({}, "run --figure x", "--figure x: run/compare.json has no such figure; choose from compare"),
        ({}, "run --label a", "--label: it has no effect on the figures of compare"),
        ({}, "run --curvature ggn", "--curvature: it has no effect on the figures of compare"),
        ({"eigenvalues": [None, 1.0]}, "run", "RESULT run/compare.json: has no finite numbers to draw"),
        ({"residuals": [0.1]}, "run", "RESULT run/compare.json: is not a result of spectra compare (ValueError"),
        (
            {"nodes": [1.0]},
            "run",
            "RESULT run/compare.json: nodes of hessian must be rows of numbers",
        ),
        ({"weights": [[1.0]]}, "run", "nodes and weights differ in number"),
        ({"eigenvalues": {}}, "run", "RESULT run/compare.json: eigenvalues of hessian must be numbers; run"),
    ],
)
def test_what_is_wrong_with_a_comparison_gets_one_line(changes, arguments, line, place, capsys):
    compared(place / "run", **changes), compared(place / "run2")
    assert line in refused(capsys, place, *arguments.split(), "--out", "a.png")


def test_a_comparison_among_others_is_refused(place, capsys):
    keep(place / "one", "eig"), compared(place / "run")
    line = refused(capsys, place, "one", "run", "--out", "a.png")
    assert (
        line
        == "RESULT run/compare.json: is a result of compare, but one/eig.json of eig; draw them in separate figures"
    )


def test_the_steps_of_a_training_run_share_a_figure(place, capsys):
    for step in range(15):
        (folder := place / "watched" / f"step-{step:06}").mkdir(parents=True)
        entry = {"curvature": "hessian", **ENTRIES["eig"], "products": 9, "converged": True}
        save(folder, make_record("eig", {"options": {"which": "LM"}, "seed": 0, "loss_value": 2.0}, [entry]), {})
    assert run(capsys, "watched", "--out", "a.png")[:2] == (0, "a.png\n")
    one, many = (place / "a.png").read_bytes(), list(place.glob("watched/*"))
    save_figure(evolution_figure(evolution_of(place / "watched")), place / "b.png")
    assert one == (place / "b.png").read_bytes()
    assert "or name the directory of a training run" in refused(capsys, place, *many, "--out", "c.png")
    assert refused(capsys, place, "watched", "--log", "--out", "c.png").startswith("--log: it has no effect")
