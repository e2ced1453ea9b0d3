"""Callbacks in trainings of two processes: the first records, and the trainings of both are unchanged."""

import warnings
from pathlib import Path

import pytest
from test_ranks import run_ranks

with warnings.catch_warnings(action="ignore"):
    for package in ("lightning", "transformers", "accelerate"):
        pytest.importorskip(package)

PROGRAM = str(Path(__file__).with_name("callback_ranks.py"))


def test_two_processes(tmp_path):
    done = run_ranks(2, PROGRAM, str(tmp_path), CUDA_VISIBLE_DEVICES="")
    for one in done:
        assert one.returncode == 0, one.stderr[-3000:]
        assert "as they were" in one.stdout
    for name in ("lightning", "transformers"):
        steps = sorted(path.name for path in (tmp_path / name).iterdir())
        assert steps == ["step-000000", "step-000002", "step-000004"]
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").iterdir())
