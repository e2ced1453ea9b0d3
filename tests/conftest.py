"""`pytest --networks N`: how many random networks test_random_networks.py makes."""

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
