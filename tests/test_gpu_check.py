"""scripts/gpu-check keeps its budget and its findings, whatever its parts do."""

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest

from scripts.benchmarks import gpu, quick, tables
from scripts.gpu_check import __main__ as check
from scripts.gpu_check import figures
from scripts.gpu_check.figures import Figure
from scripts.gpu_check.tests import Failures, chosen
from scripts.gpu_check.timing import Missing

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
    def checked(*names: str, budget: float = 60, limit: float = 4, parts: dict | None = None) -> tuple[dict, list[str]]:
        for name in names:
            (tmp_path / f"part_{name}.py").write_text(MODULES[name])
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(check, "GRACE", 1.0)
        monkeypatch.setattr(check, "LEAST", 1.5)
        monkeypatch.setattr(check, "PARTS", parts or {name: check.Part(f"part_{name}", limit) for name in names})
        monkeypatch.setattr(check, "USUAL", names)
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


def test_later_parts_keep_what_they_need(checked, monkeypatch):
    """The first has 20 s but for the 16 that the second needs at least; the second has what the first left."""
    parts = {name: check.Part(f"part_{name}", 20, least=least) for name, least in (("long", 0.0), ("good", 16.0))}
    record, _ = checked("long", "good", budget=20, limit=20, parts=parts)
    assert [part["status"] for part in record["parts"]] == ["cut", "ok"]
    assert record["parts"][0]["limit"] < 4.1
    assert record["parts"][1]["limit"] > 14


def test_parts_have_files_and_figures_are_measured_together():
    for part in (*check.PARTS.values(), *check.FIGURES.values()):
        assert find_spec(part.module if "." in part.module else f"scripts.gpu_check.{part.module}")
    assert {*check.USUAL} <= {*check.TOGETHER, *check.PARTS}
    assert check.parts_of(["tests", "random", "columns"]) == {"figures": ("random", "columns"), "tests": ()}
    assert all(len(line) <= 80 for line in check.listed())
    needed = sum(part.least for name, part in check.PARTS.items() if name in check.USUAL)
    assert check.BUDGET - check.PARTS["figures"].limit - check.PARTS["products"].limit > needed


def test_a_seed_chooses_about_as_many_tests_as_asked_for():
    names = [f"tests/test_x.py::test_{i}" for i in range(2000)]
    first, second = ([name for name in names if chosen(name, seed, 0.3)] for seed in "01")
    assert 500 < len(first) < 700
    assert 500 < len(second) < 700
    assert 100 < len({*first} & {*second}) < 260
    assert not any(chosen(name, "0", 0.0) for name in names)
    assert all(chosen(name, "0", 1.0) for name in names)


def test_figures_that_fail_or_are_missing_do_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def slow(device, numbers):
        yield "begun"
        time.sleep(30)

    def missing(device, numbers):
        raise Missing("an option")
        yield

    def bad(device, numbers):
        numbers["known"] = 3
        raise ValueError("no")
        yield

    def good(device, numbers):
        yield "a row that is longer than a terminal is wide " * 3

    for name, rows in {"slow": slow, "missing": missing, "bad": bad, "good": good}.items():
        module = ModuleType(f"scripts.gpu_check.{name}")
        module.rows = rows
        monkeypatch.setitem(sys.modules, module.__name__, module)
    named = {name: Figure(name, 6, "something") for name in ("slow", "missing", "bad", "good")}
    monkeypatch.setattr(figures, "FIGURES", named)
    monkeypatch.setattr(sys, "argv", ["figures", "--device", "cpu", "--out", str(tmp_path), *named])
    assert figures.main() == 1
    found = json.loads((tmp_path / "figures.json").read_text())
    assert {name: one["status"].partition(":")[0] for name, one in found.items()} == {
        "slow": "cut", "missing": "not there", "bad": "failed", "good": "ok",
    }  # fmt: skip
    assert found["slow"]["rows"] == ["begun"]
    assert found["bad"]["numbers"] == {"known": 3}
    out = capsys.readouterr().out
    assert "  not in this spectra: an option\n" in out
    assert max(map(len, out.splitlines())) <= 80


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


def test_tables_say_where_no_gpu_was_lent(tmp_path):
    assert all(
        row.figures == gpu.NONE_LENT and row.met is None for make in gpu.ROWS for row in make(gpu.read(tmp_path))
    )


def test_tables_of_a_gpu(tmp_path):
    """Figures of the newest folder that has them; peers that are off are not compared with."""
    times = {"gradient": [1.0], "gradient, compiled": [0.5], "spectra": [1.0], "spectra, compiled": [0.8]}
    times |= {"curvlinops": [7.0], "curvlinops, compiled": [4.0], "hessian-eigenthings": [2.0]}
    errors = {"spectra": 1e-7, "curvlinops": 1e-6, "curvlinops, compiled": 1e-6, "hessian-eigenthings": 0.3}
    product = {
        "seconds": times,
        "relative_errors": errors,
        "setup_seconds": {"spectra": 1.0},
        "errors_against": "float64",
    }
    made = {"date": "2026-12-01T00", "device": "H100", "versions": {"torch": "2"}, "python": "3", "commit": "abc"}
    made |= {"cuda": {"devices": 1, "version": "13", "cudnn": 9}, "dirty": False}
    parts = [{"part": "commands", "status": "ok"}]
    for day, whole in (("2026-12-01", 0.7), ("2026-12-02", 0.3)):
        folder = tmp_path / day
        folder.mkdir()
        kept = {"quick": {"mlp": {"made": made, "result": {"hessian": product}}}}
        columns = {"mlp hessian": {"ms alone": 1.0, "ms of 16": 0.2, "twice the same": True}}
        tasks = {"digits, density, 10 probes of 80 steps, again": {"seconds": whole, "set-up": 0.1}}
        if day == "2026-12-02":
            kept, columns = {}, {}
        figures = {"columns": {"numbers": columns}, "tasks": {"numbers": tasks}}
        for name, content in {"benchmarks": kept, "figures": figures, "check": {"made": made, "parts": parts}}.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
    found = gpu.read(tmp_path)
    rows = {row.what: row for make in gpu.ROWS for row in make(found)}
    eager = rows["Hessian product, time of the fastest eager peer over ours"]
    assert "ResNet-20" not in eager.figures or eager.met is None
    assert quick.over_ours(product, compiled=False) == 7.0
    assert quick.over_ours(product) == 5.0
    assert quick.in_gradients(product) == 1.6
    assert rows["density of the digits network, 10 probes of 80 steps, whole, s"].figures == "0.30"
    assert rows["density of the digits network, 10 probes of 80 steps, whole, s"].met
    sixteen = rows["sixteen Hessian columns together: time of sixteen single products over it"]
    assert sixteen.figures == "MLP 5.00; no GPU was lent for digits, GPT, ViT"
    assert sixteen.met is None
    assert rows["products: in float64 those of the CPU to rounding; twice the same bits on one card"].met
    assert len(found.made) == 2
    assert any("| MLP hessian | 1000 |" in part for part in gpu.section(found))


def test_rows_of_products_fit_a_terminal():
    times = {name: [0.4, 0.2, 0.3] for name in (*quick.TIMED, *quick.PEERS)}
    ratios = {name: {"median": 1.25} for name in times}
    found = {"seconds": times, "times_of_ours": ratios, "relative_errors": {}, "setup_seconds": {"spectra": 11.1}}
    lines = list(quick.lines("resnet50", {"hessian": found, "ggn": found}))
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["ResNet-50", "hessian", *5 * ["300"], "1.00", "1.00", "11.1"]
    made = {"date": "", "seconds": 1, "load": 1, "commit": "abc", "dirty": False, "versions": {}, "environment": {}}
    made |= dict.fromkeys(("machine", "cores", "device", "threads", "python"), "x")
    page = tables.quick_page({"quick": {"resnet50": {"made": made, "result": {"hessian": found}}}})
    assert "| ResNet-50 hessian | 300 |" in page
