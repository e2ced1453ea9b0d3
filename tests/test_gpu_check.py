"""scripts/gpu-check keeps its budget and its findings, whatever its parts do."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from scripts.benchmarks import quick, tables
from scripts.gpu_check import __main__ as check
from scripts.gpu_check.tests import Failures

MODULES = {
    "good": "print('a row')",
    "bad": "import sys\nprint('before', flush=True)\nsys.exit('a reason')",
    # Deaf to the interrupt, with a child that would hold the pipe.
    "stuck": "import signal, subprocess, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "print('begun', flush=True)\nsubprocess.Popen(['sleep', '60'])\ntime.sleep(60)",
    "long": "import time\nprint('shown', flush=True)\ntime.sleep(60)",
}


@pytest.fixture
def checked(tmp_path, monkeypatch, capsys):
    def checked(*names: str, budget: float = 60, limit: float = 4) -> tuple[dict, list[str]]:
        for name in names:
            (tmp_path / f"part_{name}.py").write_text(MODULES[name])
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(check, "GRACE", 1.0)
        monkeypatch.setattr(check, "LEAST", 1.5)
        monkeypatch.setattr(check, "PARTS", {name: check.Part(f"part_{name}", limit) for name in names})
        out = tmp_path / "out"
        arguments = ["gpu-check", str(out), "--device", "cpu", "--budget", str(budget)]
        monkeypatch.setattr(sys, "argv", arguments)
        status = check.main()
        record = json.loads((out / "check.json").read_text())
        assert status == any(part["status"] != "ok" for part in record["parts"])
        assert (out / "check.txt").read_text() == capsys.readouterr().out
        return record, (out / "log.txt").read_text().splitlines()

    return checked


def test_a_part_that_fails_or_hangs_does_not_stop_the_others(checked):
    start = time.monotonic()
    record, log = checked("bad", "stuck", "long", "good")
    assert [part["status"] for part in record["parts"]] == ["failed (status 1)", "cut", "cut", "ok"]
    assert [part["rows"] for part in record["parts"]] == [["before"], ["begun"], ["shown"], ["a row"]]
    assert log[log.index("===== bad") + 1] == "a reason"
    assert time.monotonic() - start < 30


def test_no_part_begins_when_the_budget_is_spent(checked):
    record, _ = checked("long", "good", budget=4, limit=20)
    assert [part["status"] for part in record["parts"]] == ["cut", "not started"]
    assert record["made"]["seconds"] < 10


def test_the_commit_comes_from_outside_where_there_is_no_repository(monkeypatch, checked):
    monkeypatch.setenv("SPECTRA_COMMIT", "abc")
    assert checked("good")[0]["made"]["commit"] == "abc"


def test_the_command_is_found_though_nothing_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    environment = check.surroundings(tmp_path)
    done = subprocess.run(["sh", "-c", "spectra --version"], env=environment, capture_output=True, text=True, cwd="/")
    assert done.stdout.startswith("spectra, version")


def test_failures_are_written_as_they_come(tmp_path, capsys):
    failures = Failures(tmp_path / "failures.txt")
    outcomes = {"a": ("call", "passed"), "b": ("call", "failed"), "c": ("setup", "failed"), "d": ("setup", "skipped")}
    for name, (when, outcome) in outcomes.items():
        known = {"passed": outcome == "passed", "failed": outcome == "failed", "outcome": outcome}
        report = SimpleNamespace(nodeid=f"test_{name}", when=when, longrepr=f"reason {name}", **known)
        failures.pytest_runtest_logreport(report)
        assert ("=== test_b [call]\nreason b\n" in failures.path.read_text()) == (name >= "b")
    failures.show(sys.stdout)
    assert capsys.readouterr().out.splitlines() == [
        "2 failed, 1 passed, 1 skipped",
        "  test_b [call]",
        "  test_c [setup]",
    ]


def test_rows_of_products_fit_a_terminal():
    times = {name: [0.4, 0.2, 0.3] for name in (*quick.TIMED, *quick.PEERS)}
    ratios = {name: {"median": 1.25} for name in times}
    found = {"seconds": times, "times_of_ours": ratios, "relative_errors": {}, "setup_seconds": {"spectra": 11.1}}
    lines = list(quick.lines("resnet50", {"hessian": found, "ggn": found}))
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["ResNet-50", "hessian", *4 * ["300.00"], "1.00", "1.25", "11.1"]
    made = {"date": "", "seconds": 1, "load": 1, "commit": "abc", "dirty": False, "versions": {}, "environment": {}}
    made |= dict.fromkeys(("machine", "cores", "device", "threads", "python"), "x")
    page = tables.quick_page({"quick": {"resnet50": {"made": made, "result": {"hessian": found}}}})
    assert "| ResNet-50 hessian | 300.00 |" in page
