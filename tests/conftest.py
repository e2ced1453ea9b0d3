"""Heavy sets of cases run sampled, and whole in scripts/test-all, which sets SPECTRA_TEST_ALL=1.

`--networks N` is the number of random networks in test_random_networks.py, and `--sample-seed S` chooses the cases that
run of each test with the mark `sampled(count)`. Records that tests write are held against their JSON Schema.
"""

import gc
import io
import json
import math
import os
import random
from collections import defaultdict
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
import torch
from demo_run import make_demo_run
from helpers import WHOLE
from hypothesis import HealthCheck, settings
from pages import LINES, make, make_files

try:
    from jsonschema import Draft202012Validator
except ImportError:  # as on the machine where tests run on a GPU, which has no registry
    Draft202012Validator = None

import spectra.records.drawn
import spectra.records.record
import spectra.records.schema
import spectra.records.sweep

ROOT = Path(__file__).parents[1]
gc.disable()  # while tests are collected, of which nothing is garbage: it would take a fifth of that time


def pytest_addoption(parser):
    most = 1000 if WHOLE else 25
    parser.addoption("--networks", type=int, default=most, metavar="N", help="random networks (default: %(default)s)")
    parser.addoption("--write-pages", action="store_true", help="put what commands print now into the pages of docs/")
    parser.addoption("--sample-seed", type=int, default=0, metavar="S", help="seed that chooses among sampled cases")


def pytest_configure(config):
    if torch.cuda.device_count() > 1:  # of which commands would tell on standard error
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    config.addinivalue_line("markers", "sampled(count): run so many of the cases, drawn by --sample-seed")
    settings.register_profile(
        "networks",
        max_examples=config.getoption("--networks"),
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("networks")


def pytest_collection_finish(session):
    gc.enable()


def pytest_collection_modifyitems(config, items):
    if WHOLE or any("::" in argument for argument in config.args):  # a test that is named runs whole
        return
    families, left_out = defaultdict(list), set()
    for item in items:
        if item.get_closest_marker("sampled"):
            families[item.nodeid.partition("[")[0]].append(item)
    for name, cases in families.items():
        count = min(cases[0].get_closest_marker("sampled").args[0], len(cases))
        chosen = random.Random(f"{config.getoption('--sample-seed')} {name}").sample(cases, count)
        left_out |= {*cases} - {*chosen}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_session(tmp_path_factory):
    """What other runs have left in the user's cache changes no test, and no test changes it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SPECTRA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def nothing_is_left_in_the_project():
    """No test writes into the directory of the project itself; hidden files there are those of tools."""
    before = set(os.listdir(ROOT))
    yield
    assert not [name for name in set(os.listdir(ROOT)) - before if not name.startswith((".", "__"))]


@pytest.fixture(scope="session")
def results_of_commands(tmp_path_factory):
    """A directory with the results of all commands on a small problem in `all`, and what each has printed as .txt."""
    folder = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_files()
        for command in LINES:
            with redirect_stdout(io.StringIO()) as printed:
                make(command, "all")
            Path(f"{command}.txt").write_text(printed.getvalue(), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory):
    """A directory after `scripts/demo`, which pages of documentation share; a page works on a copy."""
    place = tmp_path_factory.mktemp("demo")
    make_demo_run(place)
    return place


@pytest.fixture
def batches_as_given(monkeypatch):
    """Batches stay as they are, however small: sums over them are what is tested."""
    monkeypatch.setattr("spectra.curvature.engine.batches.SMALL", 0)


@pytest.fixture(autouse=True)
def nothing_told_of_slow_work(monkeypatch):
    """On a crowded machine every command may be one that takes long: what it tells then is tested by itself."""
    monkeypatch.setattr("spectra.cli.progress.LATE", math.inf)
    monkeypatch.setattr("spectra.cli.progress.IN_ANY_CASE", math.inf)


@pytest.fixture(autouse=True)
def records_fit_their_schema(monkeypatch):
    """Every record that a test writes or prints in its own process, keys that are not known to the schema included."""
    if not Draft202012Validator:
        yield
        return
    wrong, write = [], spectra.records.files.to_json

    def written(tree):
        text = write(tree)
        wrong.extend(misfits(json.loads(text)))
        return text

    for module in ("record", "drawn", "sweep"):
        monkeypatch.setattr(f"spectra.records.{module}.to_json", written)
    yield
    assert not wrong


def misfits(record):
    """What is wrong with a record by the strict schema of its command; of long lists the ends alone are looked at."""
    return [f"{error.json_path}: {error.message}" for error in validator(record["command"]).iter_errors(ends(record))]


@cache
def validator(command):
    whole = spectra.records.schema.schema(strict=True)
    return Draft202012Validator({"$ref": f"#/$defs/{command}", "$defs": whole["$defs"]})


def ends(tree):
    if isinstance(tree, dict):
        return {key: ends(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [ends(value) for value in (tree if len(tree) < 5 else [*tree[:2], *tree[-2:]])]
    return tree
