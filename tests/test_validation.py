"""The gallery of published numbers: its rows agree, one that does not is kept, and its files hold what it prints."""

import csv
import json
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

import spectra
from scripts.validation import __main__ as program
from scripts.validation import deep_linear, gallery
from scripts.validation.row import Row

ROOT = Path(__file__).parent.parent
MADE = {"date": "2026-01-01", "seconds": 1.0, "machine": "one", "cores": 2, "torch": "2", "commit": "abc"}


def test_ranks_of_deep_linear_hessians():
    """The formula is that of one hidden layer, counted by hand too: 2qm - 2q^2 + q(d + K)."""
    assert deep_linear.expected_rank((6, 5, 3)) == 2 * 3 * 5 - 2 * 9 + 3 * 9
    rows = list(deep_linear.rows(((6, 5, 3), (5, 4, 6, 4, 3))))
    assert [row.found for row in rows] == [39, 72]
    assert all(row.agrees for row in rows)


def scaled(found):
    """Results with eigenvalues that are 5 % too large."""
    return [scaled(one) for one in found] if isinstance(found, list) else replace(found, values=1.05 * found.values)


@pytest.mark.parametrize("name", ["softmax", "empirical_fisher"])
def test_rows_disagree_if_eigenvalues_are_off(name, monkeypatch):
    eig, rows = spectra.eig, import_module(f"scripts.validation.{name}").rows
    monkeypatch.setattr(spectra, "eig", lambda *given, **settings: scaled(eig(*given, **settings)))
    assert [row.name for row in rows() if row.agrees and "mean" not in row.name] == []


def test_ranks_disagree_for_another_matrix(monkeypatch):
    monkeypatch.setattr(spectra, "eig", partial(spectra.eig, curvature="ggn"))
    assert not any(row.agrees for row in deep_linear.rows(((6, 5, 3), (5, 4, 6, 4, 3))))


@pytest.mark.sampled(0)
@pytest.mark.parametrize("name", gallery.TITLES)
def test_every_row_agrees(name):
    rows = list(import_module(f"scripts.validation.{name}").rows())
    assert rows
    assert [row.name for row in rows if not row.agrees] == []


def row(**changes) -> Row:
    return replace(Row("edge", "Someone 2000", 4.0, 4.1, 0.04, note="n = 10"), **changes)


@pytest.mark.parametrize(
    ("changes", "agrees"),
    [
        ({}, False),
        ({"error": 0.06}, True),
        ({"finite": 0.05}, True),
        ({"relation": ">"}, True),
        ({"relation": ">", "error": 0.06}, False),
        ({"relation": "<"}, False),
        ({"relation": "<", "found": 3.8}, True),
    ],
)
def test_what_agrees(changes, agrees):
    assert row(**changes).agrees is agrees


def test_files_hold_what_is_printed(tmp_path):
    rows = {"spiked": [row(), row(name="outlier", found=4.0, error=0.0)], "mup": [row(relation="<", found=1.0)]}
    shown = gallery.text(rows)
    assert "2 of 3 rows agree" in shown
    gallery.save(rows, MADE, tmp_path)
    listed = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [one["agrees"] for one in listed] == [False, True, True]
    with (tmp_path / "table.csv").open() as file:
        assert [line["name"] for line in csv.DictReader(file)] == ["edge", "outlier", "edge"]
    page = (tmp_path / "README.md").read_text()
    assert "2 of 3 rows agree" in page
    assert "| edge | 4 |  | 4.10 ± 0.04 | no |" in page
    assert (tmp_path / "validation.png").stat().st_size > 5000


def test_the_program_prints_one_group(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["validate", "--only", "deep_linear"])
    program.main()
    out, err = capsys.readouterr()
    assert "5 of 5 rows agree" in out
    assert err == "deep_linear ...\n"
    assert not any(tmp_path.iterdir())


def test_the_page_is_that_of_the_table():
    """What is kept in results/ has every group, and a row that does not agree has a reason."""
    listed = json.loads((ROOT / "results/validation/table.json").read_text())["rows"]
    assert {one["group"] for one in listed} == {*gallery.TITLES}
    page = (ROOT / "results/validation/README.md").read_text()
    assert all(one["name"] in page for one in listed)
