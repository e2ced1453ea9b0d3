"""`pytest --networks N`: how many random networks test_random_networks.py makes."""

import pytest
from hypothesis import HealthCheck, settings


def pytest_addoption(parser):
    parser.addoption("--networks", type=int, default=300, metavar="N", help="random networks (default: %(default)s)")


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
    monkeypatch.setattr("spectra.curvature.batches.SMALL", 0)
