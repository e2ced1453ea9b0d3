"""What a clock decides is decided once: for a process, for other processes, and for a run that is resumed."""

import random
from pathlib import Path

import pytest
import torch

from spectra.curvature.engine import autotuning as module
from spectra.curvature.engine.autotuning import Autotuner, fingerprint
from spectra.errors import SpectraError
from spectra.resume.decisions import Decisions

CPU = torch.device("cpu")
OF = fingerprint("a graph", (3, 4), torch.float32)


class Clock:
    """A clock that goes on where a way is called, by that way's seconds."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self) -> float:
        return self.now

    def way(self, name: str, *seconds: float):
        """A way whose calls take these seconds in turn, the last of them ever after."""
        left = [*seconds]

        def call():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def ways(clock, **seconds):
    return {name: clock.way(name, *(x if isinstance(x, tuple) else (x,))) for name, x in seconds.items()}


@pytest.fixture(autouse=True)
def nothing_decided(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_decided", {})
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        ({"a": 1.0, "b": 0.5}, "b"),
        ({"a": 1.0, "b": 0.95}, "a"),  # not worth it
        ({"a": 1.0, "b": 0.85, "c": 0.8}, "c"),
        ({"a": (9.0, 0.01), "b": 0.02}, "a"),  # the first call warms up
        ({"a": (0.0, 0.01, 0.05, 0.01, 0.01), "b": 0.02}, "a"),  # one call in between is late
    ],
)
def test_the_fastest_way_is_chosen(seconds, wanted):
    clock = Clock()
    choices = Autotuner(clock=clock)
    assert choices.choose("way", ways(clock, **seconds), CPU) == wanted
    assert choices.made == {"way": wanted}


def test_what_takes_long_is_called_twice_at_most():
    clock = Clock()
    Autotuner(clock=clock).choose("way", ways(clock, a=7.0, b=0.001), CPU)
    assert clock.calls.count("a") == 2
    assert clock.calls.count("b") == 1 + module.REPEATS


def test_what_was_made_beforehand_is_taken_without_measuring():
    clock = Clock()
    choices = Autotuner(clock=clock)
    choices.made["way"] = "a"
    assert choices.choose("way", ways(clock, a=2.0, b=1.0), CPU) == "a"
    assert not clock.calls
    choices.made["way"] = "one of another version"
    assert choices.choose("way", ways(clock, a=2.0, b=1.0), CPU) == "b"


def decided(clock, kept=None, of=OF, **seconds) -> str:
    return Autotuner(kept, clock).choose("way", ways(clock, **seconds), CPU, of)


def test_a_process_decides_once_with_and_without_a_disk(monkeypatch):
    for cache in ("", "given"):
        monkeypatch.setenv("SPECTRA_CACHE", cache and str(Path("cache").absolute()))
        clock = Clock()
        assert decided(clock, of=cache, a=2.0, b=1.0) == "b"
        clock.calls.clear()
        assert decided(clock, of=cache, a=1.0, b=2.0) == "b"
        assert not clock.calls
        assert decided(clock, of="another graph" + cache, a=1.0, b=2.0) == "a"


def test_another_process_decides_alike(monkeypatch):
    clock = Clock()
    assert decided(clock, a=2.0, b=1.0) == "b"
    module._decided.clear()
    clock.calls.clear()
    assert decided(clock, a=1.0, b=2.0) == "b"
    assert not clock.calls
    module._decided.clear()
    monkeypatch.setattr(torch, "__version__", "3.0")  # its kernels have other times
    assert decided(clock, a=1.0, b=2.0) == "a"


def test_a_resumed_run_decides_as_the_run_before(monkeypatch, tmp_path):
    told = []

    def state():
        return Decisions(tmp_path / "choices.json", told.append, told.append)

    clock = Clock()
    assert decided(clock, state(), a=2.0, b=1.0) == "b"
    module._decided.clear()
    monkeypatch.setenv("SPECTRA_CACHE", "")
    clock.calls.clear()
    assert decided(clock, state(), a=1.0, b=2.0) == "b"
    assert not clock.calls
    assert not told


def test_what_an_earlier_run_has_left_goes_into_the_state(tmp_path):
    """Else a resumed run would decide anew where the cache has lost it meanwhile."""
    clock, kept = Clock(), {}
    decided(clock, a=2.0, b=1.0)
    decided(clock, kept, a=1.0, b=2.0)
    assert [*kept.values()] == ["b"]


def test_costs_are_measured_once():
    clock, kept = Clock(), {}
    assert Autotuner(kept, clock).cost("16", clock.way("many", 3.14), clock.way("one", 1.0), CPU, OF) == 3.1
    clock.calls.clear()
    choices = Autotuner(kept, clock)
    assert choices.cost("16", clock.way("many", 9.0), clock.way("one", 1.0), CPU, OF) == 3.1
    assert not clock.calls
    assert choices.made == {"16": "3.1"}


@pytest.mark.parametrize("first", ["ieee", "tf32"])
def test_each_product_has_a_cost_of_its_own(first):
    """A resumed run may ask for that of the other first."""
    clock, costs = Clock(), {"ieee": 9.0, "tf32": 4.0}
    choices = Autotuner(clock=clock)
    for of in sorted(costs, key=lambda of: of != first):
        assert choices.cost("16", clock.way("many", costs[of]), clock.way("one", 1.0), CPU, of) == costs[of]


@pytest.mark.parametrize("draw", range(12))
def test_a_damaged_file_of_decisions_is_told_and_made_anew(draw, tmp_path):
    path, told = tmp_path / "choices.json", []
    Decisions(path, told.append, told.append).update({"a key": "b", "another": "c"})
    content = bytearray(path.read_bytes())
    place = random.Random(draw).randrange(len(content))
    content[place] ^= 1 + draw
    path.write_bytes(content[: place + 1] if draw % 2 else content)
    found = Decisions(path, told.append, told.append)
    assert len(told) == 1
    assert not found
    found["a key"] = "c"
    assert dict(Decisions(path, pytest.fail, pytest.fail)) == {"a key": "c"}


@pytest.mark.parametrize("content", ["[]", "null", '{"choices": {}}', '{"choices": 3, "checksum": 4}', "[" * 10**5])
def test_what_is_no_file_of_decisions_holds_none(content, tmp_path):
    told = []
    (tmp_path / "choices.json").write_text(content)
    assert not Decisions(tmp_path / "choices.json", told.append, told.append)
    assert len(told) == 1


def test_a_link_is_not_followed_and_a_full_disk_is_told_once(tmp_path):
    (tmp_path / "choices.json").symlink_to("elsewhere")
    with pytest.raises(SpectraError, match="a symbolic link"):
        Decisions(tmp_path / "choices.json", pytest.fail, pytest.fail)
    failed = []
    found = Decisions(tmp_path / "gone" / "choices.json", pytest.fail, failed.append)
    found["a"] = "b"
    found["b"] = "c"
    assert len(failed) == 1
    assert dict(found) == {"a": "b", "b": "c"}
    assert {path.name for path in tmp_path.iterdir()} == {"choices.json"}
