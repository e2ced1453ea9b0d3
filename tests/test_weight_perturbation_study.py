"""The study of weight perturbation runs, on a smaller network, and its closed forms hold there."""

import csv

import pytest

from scripts import weight_perturbation as study


def test_the_study(tmp_path, monkeypatch, capsys):
    budgets = {"BUDGETS": [600], "SIZES": [0.1], "AT_EACH_SIZE": 300, "FOR_Z": (200,), "FOR_EACH_PART": 601}
    for name, value in {"WIDTH": 1, "SAMPLES": 20, **budgets}.items():
        monkeypatch.setattr(study, name, value)
    threads = study.torch.get_num_threads()
    try:
        study.main(tmp_path)
    finally:
        study.torch.set_num_threads(threads)
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png", "made.json", "second-order.csv", "table.csv"}
    points = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert len(points) == 8 + 4
    for point in points:
        assert float(point["standard_error"]) == pytest.approx(float(point["expected"]), rel=0.25), point["curve"]
        assert float(point["error"]) == pytest.approx(float(point["standard_error"]), rel=0.25), point["curve"]
    rows = list(csv.DictReader((tmp_path / "second-order.csv").read_text().splitlines()))
    for row in rows:
        expected, measured = (float(row[f"{kind} variance ratio"]) for kind in ("expected", "measured"))
        assert measured == pytest.approx(expected, rel=0.15), row["taken off"]
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
