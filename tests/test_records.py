"""Records: what is written is read again, what is missing is named, what is of a wrong type is refused in one line."""

import ast
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ends, misfits

import spectra
from spectra.records import schema
from spectra.records.eig import EigResult
from spectra.records.fields import MissingKey
from spectra.records.problem import ProblemRecord
from spectra.records.record import Record, load
from spectra.records.sweep import Evolution, Row

COST = {"converged": True, "products": 25, "seconds": 0.4, "setup_seconds": 0.1}
PROBLEM = ProblemRecord.known(
    parameters=6, parameters_in_all=6, model="nets.py:build", data="digits", checkpoint="a.pt", seed=3, versions={}
)
DEMONSTRATION = sorted((Path(__file__).parents[1] / "results" / "demo").glob("*.json"))


def eig(**changes):
    values, residuals, estimates = np.array([4.0, -1.5]), np.array([1e-5, 0.2]), np.array([1e-9, 0.1])
    numbers = {"values": values, "residuals": residuals, "error_estimates": estimates, "complete": True}
    return EigResult(**COST | {"curvature": "hessian", "method": "lanczos"} | numbers | changes)


def saved(directory, *entries):
    record = Record(command="eig", problem=PROBLEM, results=list(entries))
    record.save(directory)
    return record


def test_a_record_is_read_as_it_was_written(tmp_path):
    vectors = np.eye(2, 6, dtype=np.float32)
    record = saved(tmp_path, eig(vectors=vectors), eig(curvature="ggn"))
    found = spectra.load_result(tmp_path)
    assert (found.command, found.problem.model, len(found.results)) == ("eig", "nets.py:build", 2)
    assert found.to_json() == record.to_json()
    assert float(found.results[0].values[0]) == 4.0
    np.testing.assert_array_equal(found.results[0].vectors, vectors)
    assert found.results[1].vectors is None
    assert (
        found.arrays.keys()
        == record.arrays.keys()
        == {
            *(f"{what}_{name}" for what in ("eigenvalues", "residuals") for name in ("hessian", "ggn")),
            "eigenvectors_hessian",
        }
    )


def test_vectors_are_in_the_arrays_alone(tmp_path):
    saved(tmp_path, eig(vectors=np.eye(2, 6)))
    assert "vectors" not in (tmp_path / "eig.json").read_text()


def test_what_is_not_finite_is_null_and_comes_back_as_nan(tmp_path):
    saved(tmp_path, eig(values=np.array([math.inf, math.nan]), seconds=math.nan))
    tree = json.loads((tmp_path / "eig.json").read_text())["results"][0]
    assert (tree["eigenvalues"], tree["seconds"]) == ([None, None], None)
    (entry,) = spectra.load_result(tmp_path / "eig.json").results
    assert np.isnan(entry.values).all()
    assert math.isnan(entry.seconds)


def edited(tmp_path, edit):
    saved(tmp_path, eig())
    tree = json.loads((tmp_path / "eig.json").read_text())
    edit(tree)
    (tmp_path / "eig.json").write_text(json.dumps(tree))


def test_keys_that_are_not_known_are_left_alone(tmp_path):
    edited(
        tmp_path, lambda tree: (tree.update(later=[1]), tree["problem"].update(x={}), tree["results"][0].update(y=2))
    )
    assert spectra.load_result(tmp_path).results[0].products == 25


def test_optional_keys_have_their_default(tmp_path):
    edited(tmp_path, lambda tree: [tree["results"][0].pop(key) for key in ("noise", "derivative_check", "path")])
    entry = spectra.load_result(tmp_path).results[0]
    assert (entry.noise, entry.derivative_check, entry.path, entry.projected_out) == (None, None, "", 0)


def test_a_key_that_is_missing_is_named(tmp_path):
    edited(tmp_path, lambda tree: tree["results"][0].pop("residuals"))
    with pytest.raises(spectra.SpectraError, match=r"eig.json: lacks 'residuals'; run spectra eig again"):
        spectra.load_result(tmp_path)
    _, record = load(tmp_path)  # of which what is there can be used
    assert record.results[0].values[0] == 4.0
    with pytest.raises(MissingKey, match="residuals"):
        _ = record.results[0].residuals


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eigenvalues", "4"),
        ("eigenvalues", [["4"]]),
        ("eigenvalues", ["4"]),
        ("eigenvalues", [True]),
        ("eigenvalues", [10**400]),
        ("eigenvalues", None),
        ("products", 2.5),
        ("products", True),
        ("seconds", 10**400),
        ("seconds", "long"),
        ("converged", 1),
        ("method", None),
        ("derivative_check", []),
        ("derivative_check", {"gradients": "many"}),
    ],
)
def test_a_wrong_type_is_refused_in_one_line(key, value, tmp_path):
    edited(tmp_path, lambda tree: tree["results"][0].update({key: value}))
    message = r"^result .*eig.json: .* of hessian must be .*; run spectra eig again"
    with pytest.raises(spectra.SpectraError, match=message) as told:
        spectra.load_result(tmp_path)
    assert "\n" not in str(told.value)


def test_a_field_that_there_is_not_cannot_be_made():
    with pytest.raises(TypeError, match="seeed"):
        ProblemRecord.known(seeed=3)


def test_a_short_repr_shows_numbers_with_their_errors_and_cost():
    assert repr(eig()) == "EigResult(hessian: 4 ± 1e-05, -1.5 ± 0.2, lanczos; 25 products in 0.4 s)"
    assert "not converged" in repr(eig(converged=False))
    loss = {"curvature": None, "seed": None, "quantity": "loss", "index": None, "value": 1 / 3}
    rows = tuple(Row(checkpoint="a", step=step, **loss) for step in range(1000))
    assert len(repr(Evolution(axis="epoch", rows=rows))) < 200
    assert "value=0.333333" in repr(rows[0])


def test_a_dataframe_has_a_row_for_each_eigenvalue(tmp_path):
    pytest.importorskip("pandas")
    frame = saved(tmp_path, eig(), eig(curvature="ggn")).to_dataframe()
    assert frame["eigenvalue"].tolist() == [4.0, -1.5] * 2
    assert frame["curvature"].tolist() == ["hessian"] * 2 + ["ggn"] * 2
    assert frame["index"].tolist() == [1, 2] * 2
    assert frame["checkpoint"].unique().tolist() == ["a.pt"]


def test_without_pandas_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(spectra.SpectraError, match=r"^pandas is not installed; .*: pip install pandas$"):
        saved(tmp_path, eig()).to_dataframe()


def test_records_load_nothing_heavy():
    names = [f"spectra.records.{path.stem}" for path in Path(spectra.__file__).parent.glob("records/*.py")]
    script = f"import sys, {', '.join(names)}; print({{'torch', 'rich', 'matplotlib', 'pandas'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# The JSON Schema, which `conftest.py` holds against every record that a test writes


def test_the_schema_in_the_repository_is_that_of_the_types():
    assert schema.FILE.read_text() == schema.text(), "make it anew: python -m spectra.records.schema"
    pytest.importorskip("jsonschema").Draft202012Validator.check_schema(schema.schema())
    assert {"eig", "trace", "density", "compare", "layers", "landscape", "inspect"} < schema.schema()["$defs"].keys()


@pytest.mark.parametrize("path", DEMONSTRATION, ids=lambda path: path.name)
def test_results_of_the_demonstration_fit_the_schema(path):
    tree = json.loads(path.read_text())
    for entry in tree["results"]:
        entry.setdefault("derivative_check", None)  # they are older than it
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(json.loads(schema.FILE.read_text())).validate(ends(tree))
    assert Record.of(tree).to_dict().keys() == tree.keys()


def test_what_does_not_fit_the_schema_is_seen():
    pytest.importorskip("jsonschema")
    tree = json.loads(Record(command="eig", problem=PROBLEM, results=[eig()]).to_json())
    assert misfits(tree) == []
    for edit, place in (
        (lambda entry: entry.update(products="many"), "$.results[0].products"),
        (lambda entry: entry.update(later=1), "$.results[0]"),
        (lambda entry: entry.pop("converged"), "$.results[0]"),
        (lambda entry: entry.update(eigenvalues=[["x"]]), "$.results[0].eigenvalues[0]"),
    ):
        edit((changed := json.loads(json.dumps(tree)))["results"][0])
        assert [wrong.partition(":")[0] for wrong in misfits(changed)] == [place]


ROWS = {
    "eig": ("eigenvalue", lambda record: sum(len(entry.values) for entry in record.results)),
    "trace": ("trace", lambda record: len(record.results)),
    "density": ("weight", lambda record: sum(entry.nodes.size for entry in record.results)),
    "layers": ("share", lambda record: sum(len(entry.blocks) for entry in record.results)),
    "landscape": (
        "prediction",
        lambda record: sum(part.loss.size for entry in record.results for part in (*entry.lines, *entry.planes)),
    ),
}


@pytest.mark.parametrize("command", ROWS)
def test_a_dataframe_has_a_row_for_each_number(command):
    pytest.importorskip("pandas")
    record = spectra.load_result(Path(__file__).parents[1] / "results" / "demo" / f"{command}.json")
    column, count = ROWS[command]
    frame = record.to_dataframe()
    assert len(frame) == count(record) > 0
    assert frame[column].notna().all()
    assert set(frame["curvature"]) == {entry.curvature for entry in record.results}
    assert {"command", "checkpoint", "seed", "converged", "products", "seconds"} <= {*frame.columns}


def test_a_dataframe_of_a_comparison_has_a_row_for_each_pair():
    pytest.importorskip("pandas")
    record = spectra.load_result(Path(__file__).parents[1] / "results" / "compare")
    frame = record.to_dataframe()
    assert len(frame) == len(record.pairs) > 0
    assert frame["distance"].tolist() == [pair.distance.value for pair in record.pairs]
    assert frame["overlap"].between(0, 1).all()


def test_tables_need_records_alone():
    texts = ("spectra.quoting", "spectra.wording", "spectra.spectrum.estimates")
    for path in (Path(spectra.__file__).parent / "tables").glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        own = [node.module for node in nodes if node.module.startswith("spectra.")]
        assert all(name.startswith((*texts, "spectra.records.", "spectra.tables.")) for name in own), path
