"""Heavy sets of cases run sampled, and whole in scripts/test-all, which sets SPECTRA_TEST_ALL=1.

`--networks N` is the number of random networks in test_random_networks.py, and `--sample-seed S` chooses the cases that
run of each test with the mark `sampled(count)`.
"""

import math
import random
from collections import defaultdict

import pytest
from helpers import WHOLE
from hypothesis import HealthCheck, settings


def pytest_addoption(parser):
    most = 1000 if WHOLE else 120
    parser.addoption("--networks", type=int, default=most, metavar="N", help="random networks (default: %(default)s)")
    parser.addoption("--sample-seed", type=int, default=0, metavar="S", help="seed that chooses among sampled cases")


def pytest_configure(config):
    config.addinivalue_line("markers", "sampled(count): run so many of the cases, drawn by --sample-seed")
    settings.register_profile(
        "networks",
        max_examples=config.getoption("--networks"),
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("networks")


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


@pytest.fixture
def batches_as_given(monkeypatch):
    """Batches stay as they are, however small: sums over them are what is tested."""
    monkeypatch.setattr("spectra.curvature.engine.batches.SMALL", 0)


@pytest.fixture(autouse=True)
def nothing_told_of_slow_work(monkeypatch):
    """On a crowded machine every command may be one that takes long: what it tells then is tested by itself."""
    monkeypatch.setattr("spectra.cli.progress.LATE", math.inf)
    monkeypatch.setattr("spectra.cli.progress.IN_ANY_CASE", math.inf)
