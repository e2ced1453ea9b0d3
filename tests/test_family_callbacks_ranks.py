"""Callbacks in trainings of two processes: the first records, and the trainings of both are unchanged."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_ranks import LIMIT, free_port

PROGRAM = str(Path(__file__).with_name("callback_ranks.py"))
NEEDS = ("lightning", "transformers", "accelerate")


@pytest.mark.skipif(not all(map(importlib.util.find_spec, NEEDS)), reason=f"needs {', '.join(NEEDS)}")
def test_two_processes(tmp_path):
    line = [sys.executable, PROGRAM, str(tmp_path), str(free_port())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("lightning", "transformers"):
        steps = sorted(path.name for path in (tmp_path / name).iterdir())
        assert steps == ["step-000000", "step-000002", "step-000004"]
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").iterdir())
