"""The study of recordings runs, on a shorter training, and its table and findings are of one kind."""

import csv
import json

from scripts import watch_study as study


def test_the_study(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "STEPS", 40)
    monkeypatch.setattr(study, "EVERY", 10)
    monkeypatch.setattr(study, "WATCHED", 100)
    monkeypatch.setattr(study, "PARTS", {"later": (10, 40)})
    threads = study.torch.get_num_threads()
    try:
        study.main(tmp_path)
    finally:
        study.torch.set_num_threads(threads)
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png", "made.json", "recordings.csv"}
    rows = list(csv.DictReader((tmp_path / "recordings.csv").read_text().splitlines()))
    facts = json.loads((tmp_path / "made.json").read_text())
    assert facts == json.loads(capsys.readouterr().out)
    assert [int(row["step"]) for row in rows] == [0, 10, 20, 30, 40]
    assert facts["all"]["products"] == sum(int(row["warm_products"]) for row in rows)
    assert facts["later"]["recordings"] == 4
    assert rows[0]["warm_products"] == rows[0]["fresh_products"]
    assert rows[0]["difference"] == "0.0"
