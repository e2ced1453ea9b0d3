"""The ranks of one job, as torchrun starts them: the number of this one, and which of them reports a failure.

A rank that fails ends at once, and what started the ranks ends the others. Messages go through the store that the ranks
share, so that one clear message comes out: that of the rank that failed first, or of rank 0 where all fail alike. Where
the store is gone with rank 0, the first rank that is left reports. No torch is loaded here.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

from spectra.cluster.siblings import Siblings

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = 6.0  # seconds that a rank waits for the others to fail alike, or to leave
DYING = 2.0  # seconds in which a process that has been killed is still seen
DONE, LEFT, FIRST, SPEAKER = "done", "left", "first to fail", "speaker"
SILENT = "a rank died without an error message, probably killed for lack of memory; request more memory"

siblings = Siblings()
_store: Any = None  # torch.distributed.Store, once joined; a connection of its own, which no other wait holds up
_leaving = False  # nothing more that others do concerns this rank


def world() -> int:
    """The number of ranks."""
    return int(os.environ["WORLD_SIZE"]) if all(map(os.environ.get, ENVIRONMENT)) else 1


def rank() -> int:
    """The number of this rank."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def meet(store: Any) -> None:
    """Share a store with the other ranks from now on."""
    global _store
    _store = store


def met() -> bool:
    """Whether the ranks share a store."""
    return _store is not None


def leaving() -> bool:
    """Whether this rank is leaving, so that nothing that others do concerns it."""
    return _leaving


def finish() -> None:
    """Wait until rank 0 is done, since a rank that ends with a status of 1 has the others ended; rank 0 leaves last."""
    if _store is None:
        return
    while rank() and not _store.check([DONE]):
        time.sleep(0.02)
    leave()


def leave(lost: bool = False) -> None:
    """Leave without another message.

    Rank 0, with which the store goes, waits for the others, and so does a rank that reported a loss.
    """
    global _leaving
    _leaving = True
    end = time.monotonic() + PATIENCE
    if _store is None or lost:
        # Where ranks have not met, rank 0 has yet to speak, and torchrun ends it where another has ended.
        while siblings.living() & (set(range(world())) if lost else {0}) and time.monotonic() < end:
            time.sleep(0.05)
        return
    with suppress(Exception):  # the store has gone already
        if rank():
            _store.add(LEFT, 1)
            return
        _store.set(DONE, "")
        while _store.add(LEFT, 0) + len(siblings.gone()) < world() - 1 and time.monotonic() < end:
            time.sleep(0.02)


def first_to_fail() -> int | None:
    """The rank that has failed first, where one has said so."""
    with suppress(Exception):
        if _store is not None and _store.check([FIRST]):
            return int(_store.get(FIRST).decode().partition(" ")[0])
    return None


def done() -> bool:
    """Whether rank 0 has finished its work."""
    with suppress(Exception):
        return _store is not None and _store.check([DONE])
    return False


def first_alive() -> bool:
    """Whether this is the first rank that is left, as far as this machine tells."""
    end = time.monotonic() + DYING
    while rank() > min(siblings.living(), default=rank()):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def wording(message: str, lost: bool) -> str | None:
    """The message with which this rank reports its failure; None where another rank reports.

    Args:
        message: the error message.
        lost: whether the rank only misses another one.
    """
    if world() == 1:
        return message
    if _store is None:  # nobody has loaded anything: it is the command line, and the same for all
        return message if (first_alive() if lost else rank() == 0) else None
    try:
        return _wording(message, lost)
    except Exception:  # the store has gone, and who kept it with it
        return message if not lost or first_alive() else None


def _wording(message: str, lost: bool) -> str | None:
    own = f"{rank()} {message}"
    winner = _store.compare_set(FIRST, "", own).decode()
    _store.set(f"failed {rank()}", message)
    if winner.partition(" ")[2] != message or (rank() and winner != own):
        return None
    if rank() and told_by_first() == message:
        return None
    if _store.compare_set(SPEAKER, "", str(rank())).decode() != str(rank()):
        return None
    return f"rank {rank()}: {message}" if rank() and not lost else message


def told_by_first() -> str | None:
    """The message of rank 0, once it has failed too."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and 0 not in siblings.gone():
        if _store.check(["failed 0"]):
            return _store.get("failed 0").decode()
        time.sleep(0.02)
    return None


def missing_another(error: BaseException) -> bool:
    """Whether an error says no more than that another rank does not answer."""
    signs = ("closed by peer", "reset by peer", "Broken pipe", "gloo", "NCCL", "Timed out", "Connection refused")
    no_answer = type(error).__name__.startswith("Dist") or any(sign in str(error) for sign in signs)
    return isinstance(error, RuntimeError) and no_answer


def lost_one() -> bool:
    """Whether a rank has ended without a message; a rank that is ended for that then reports it."""
    return world() > 1 and first_to_fail() is None and not done() and bool(siblings.gone())


def not_started() -> str:
    """The message for ranks that belong on this machine and have never started."""
    missing = ", ".join(map(str, sorted(siblings.never_seen())))
    what = "it was killed at once, or never started; start all ranks together"
    return f"torchrun: rank {missing} of {world()} has no process on this machine; {what}"
