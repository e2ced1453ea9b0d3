"""The test suite in parallel, on CUDA where there is some; failures are written as they come, should the run be cut."""

from __future__ import annotations

import argparse
import os
import signal
from collections import Counter
from pathlib import Path
from typing import IO

import pytest

MOST_WORKERS = 14
MOST_NAMES = 40  # of failed tests, that are printed
MOST_TEXT = 2500  # characters of a failure, from its end


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


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device")  # the tests take what there is
    parser.add_argument("--out", type=Path, required=True)
    options, rest = parser.parse_known_args()
    table = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    failures = Failures(options.out.resolve() / "failures.txt")

    def interrupted(*_) -> None:
        failures.show(table)
        os._exit(1)  # pytest would first wait for its workers

    signal.signal(signal.SIGINT, interrupted)
    workers = max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 1))
    # pytest-benchmark warns that it is idle beside xdist, and warnings are errors.
    arguments = ["-n", str(workers), "-p", "no:benchmark", "-p", "no:cacheprovider", "-q", "--durations", "15", *rest]
    print(f"{workers} workers", file=table, flush=True)
    status = pytest.main(arguments, plugins=[failures])
    failures.show(table)
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main())
