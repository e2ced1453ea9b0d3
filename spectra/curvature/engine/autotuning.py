"""Time several ways to compute something, choose the fastest, and remember the choice.

    choices.choose("layout", {"plain": plain, "channels last": other}, device, of=fingerprint) -> "plain"

Ways may round differently, so a choice is used again wherever numbers have to come out the same: later in the process,
in another run of the same command (from the cache on disk), and when a run is resumed (from its state).
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch

from spectra import __version__
from spectra import cache as disk

REPEATS = 5  # timed calls of each way, after one that warms up; fewer where they take long
ENOUGH = 0.1  # seconds, after which a way is not called again
MARGIN = 0.9  # of the first way's time, which another way has to fall below to be chosen
KIND = "choices"  # the kind of entries in the cache on disk

_decided: dict[str, str] = {}  # by this process


class Autotuner:
    """The timed decisions of one matrix, by name in `made`. A decision that is there already is not measured again.

    Args:
        kept: decisions of an unfinished run of the same command, by key; new ones are written to it.
        clock: a function that returns seconds.
    """

    def __init__(self, kept: MutableMapping[str, str] | None = None, clock: Callable[[], float] = time.perf_counter):
        self.made: dict[str, str] = {}
        self._kept = {} if kept is None else kept
        self._clock = clock

    def choose(
        self, name: str, ways: Mapping[str, Callable[[], Any]], device: torch.device, of: str | None = None
    ) -> str:
        """The name of the fastest way. The first one is kept unless another takes less than 0.9 of its time.

        Args:
            name: the name of the decision in `made` and in records.
            ways: functions that compute the same, by name.
            device: where they run.
            of: the `fingerprint` of what they compute; without one, only `made` remembers the decision.
        """

        def fastest() -> str:
            times = {way: self.seconds(call, device) for way, call in ways.items()}
            first, best = next(iter(times)), min(times, key=times.__getitem__)
            return best if times[best] < MARGIN * times[first] else first

        return self.decide(name, fastest, [*ways], device, of)

    def decide(
        self, name: str, measure: Callable[[], str], ways: Sequence[str], device: torch.device, of: str | None = None
    ) -> str:
        """Return the way that `measure()` names, and remember it as `choose` does."""
        if (made := self.made.get(name, "")) in ways:
            return made
        return self._decide(name, measure, lambda way: way in ways, ways, device, of)

    def cost(
        self,
        name: str,
        call: Callable[[], Any],
        unit: Callable[[], Any],
        device: torch.device,
        of: str,
    ) -> float:
        """The time of one call in units of another, to two digits, measured once for each `of`, as in `choose`.

        Both must have been called before, so that they are warm.
        """

        def measured() -> str:
            times = (self.seconds(each, device, warm=True) for each in (call, unit))
            return f"{next(times) / max(next(times), 1e-9):.2g}"

        return float(self._decide(name, measured, is_positive, ["cost"], device, of))

    def note(self, name: str, of: str, text: str) -> None:
        """Save a text under a name and fingerprint, for the run that resumes this one."""
        key = fingerprint(name, of)
        if self._kept.get(key) != text:
            self._kept[key] = text

    def noted(self, name: str, of: str) -> str:
        """The text that `note` has saved in the run that is resumed; empty where there is none."""
        return self._kept.get(fingerprint(name, of), "")

    def seconds(self, call: Callable[[], Any], device: torch.device, warm: bool = False) -> float:
        """The median time of a call, after one that warms up, unless it is warm."""
        times: list[float] = []
        if not warm:
            call()
        while len(times) < REPEATS and (len(times) < 1 or sum(times) < ENOUGH):
            synchronize(device)
            start = self._clock()
            call()
            synchronize(device)
            times.append(self._clock() - start)
        return median(times)

    def _decide(
        self,
        name: str,
        measure: Callable[[], str],
        is_valid: Callable[[str], bool],
        ways: Iterable[str],
        device: torch.device,
        of: str | None,
    ) -> str:
        if of is None:
            self.made[name] = measure()
            return self.made[name]

        key = fingerprint(name, *ways, of, *machine(device))
        earlier = (self._kept.get(key, ""), _decided.get(key, ""), of_others(key))
        decided = next(filter(is_valid, earlier), None)
        if decided is None:
            decided = measure()
            others = of_others(key)  # another process may have measured meanwhile, and uses its decision
            decided = others if is_valid(others) else decided
        self._remember(key, decided)
        self.made[name] = decided
        return decided

    def _remember(self, key: str, decided: str) -> None:
        if self._kept.get(key) != decided:
            self._kept[key] = decided
        if _decided.get(key) != decided:
            _decided[key] = decided
        if of_others(key) != decided:
            disk.write(KIND, key, decided.encode())


def of_others(key: str) -> str:
    """The decision in the cache on disk, of any process; empty where there is none."""
    return (disk.read(KIND, key) or b"").decode(errors="replace")


def is_positive(text: str) -> bool:
    """Whether a text is a positive number."""
    try:
        return float(text) > 0
    except ValueError:
        return False


def fingerprint(*parts: object) -> str:
    """A digest of all that a decision depends on; parts are compared by their text."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()


def machine(device: torch.device) -> tuple[str, ...]:
    """The hardware and software on which times depend."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return device.type, name, str(torch.get_num_threads()), torch.__version__, __version__


@cache
def processor() -> str:
    """The name of this machine's processor, or of its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith("model name")), platform.processor() or platform.machine())


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
