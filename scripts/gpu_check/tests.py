"""The tests in parallel, on CUDA where there is some, for as long as there is time; failures are written as they come.

Tests that a seed has chosen come first, about as many as there is time for, from all files; then the others.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
from collections import Counter
from pathlib import Path
from typing import IO

import pytest

MOST_WORKERS = 14
MOST_NAMES = 40  # of failed tests, that are printed
MOST_TEXT = 2500  # characters of a failure, from its end
STARTING, ALL = 45.0, 260.0  # seconds of 14 workers, for collecting and for running them all
SEED, SHARE = "SPECTRA_TEST_SEED", "SPECTRA_TEST_SHARE"


class Failures:
    """A plugin: counts outcomes, and appends each failure to a file."""

    def __init__(self, path: Path):
        self.path = path
        self.counts: Counter[str] = Counter()
        self.failed: list[str] = []
        path.write_text("")

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or not report.passed:
            self.counts[report.outcome] += 1
        if report.failed:
            self._write(f"{report.nodeid} [{report.when}]", report)

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self._write(f"{report.nodeid} [collection]", report)

    def show(self, table: IO[str]) -> None:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.counts.items()))
        print(counts or "no test ran", file=table)
        for name in self.failed[:MOST_NAMES]:
            print("  " + (name if len(name) < 78 else f"{name[:38]}...{name[-36:]}"), file=table)
        if len(self.failed) > MOST_NAMES:
            print(f"  and {len(self.failed) - MOST_NAMES} more in {self.path.name}", file=table)
        table.flush()

    def _write(self, what: str, report) -> None:
        self.failed.append(what)
        with self.path.open("a") as file:
            file.write(f"=== {what}\n{str(report.longrepr)[-MOST_TEXT:]}\n")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items) -> None:
    """In every worker alike, since this module is a plugin there: the tests that the seed has chosen come first."""
    if SEED in os.environ:
        items.sort(key=lambda item: not chosen(item.nodeid, os.environ[SEED], float(os.environ[SHARE])))


def chosen(name: str, seed: str, share: float) -> bool:
    """Whether a test is among a random share of all."""
    drawn = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=4).digest()
    return int.from_bytes(drawn) < share * 2**32


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device")  # the tests take what there is
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=STARTING + ALL)
    parser.add_argument("--seed", default="0")
    options, rest = parser.parse_known_args()
    table = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    failures = Failures(options.out.resolve() / "failures.txt")

    def interrupted(*_) -> None:
        print("not all: the time is over", file=table)
        failures.show(table)
        os._exit(1 if failures.failed else 0)  # pytest would first wait for its workers

    for sign in (signal.SIGINT, signal.SIGALRM):
        signal.signal(sign, interrupted)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, options.seconds - 2))
    workers = max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 1))
    share = min(1.0, max(0.02, (options.seconds - STARTING) / ALL * workers / MOST_WORKERS))
    os.environ |= {SEED: options.seed, SHARE: str(share)}
    # pytest-benchmark warns that it is idle beside xdist, and warnings are errors.
    arguments = ["-n", str(workers), "-p", "no:benchmark", "-p", "no:cacheprovider", "-p", __spec__.name]
    arguments += ["-q", "--durations", "15", *rest]
    print(f"{workers} workers; first a share of {share:.2f} by seed {options.seed}", file=table, flush=True)
    status = pytest.main(arguments, plugins=[failures])
    failures.show(table)
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main())
