"""`pytest --networks N`: how many random networks test_random_networks.py makes."""

import math
import os

import pytest
from hypothesis import HealthCheck, settings


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
