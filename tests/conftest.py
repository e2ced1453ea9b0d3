"""`--networks N`: how many random networks test_random_networks.py makes; records that tests write fit their schema."""

import json
import math
import os
from functools import cache

import pytest
from hypothesis import HealthCheck, settings
from jsonschema import Draft202012Validator

import spectra.records.drawn
import spectra.records.record
import spectra.records.schema
import spectra.records.sweep


def pytest_addoption(parser):
    most = 1000 if os.environ.get("SPECTRA_TEST_ALL") == "1" else 120
    parser.addoption("--networks", type=int, default=most, metavar="N", help="random networks (default: %(default)s)")


def pytest_configure(config):
    settings.register_profile(
        "networks",
        max_examples=config.getoption("--networks"),
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("networks")


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
