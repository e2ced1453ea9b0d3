"""The ranks of one torchrun job: the number of this rank, and which rank reports a failure.

A rank that fails exits at once, and torchrun ends the others. The ranks exchange messages through a shared store, so
that one message is printed: that of the rank that failed first, or of rank 0 where all fail alike. Where the store is
gone with rank 0, the lowest rank that is left reports. No torch is loaded here.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

from spectra.cluster.local_ranks import LocalRanks

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = 6.0  # seconds that a rank waits for the others to fail in the same way, or to leave
DYING = 2.0  # seconds for which a killed process may still be seen
DONE, LEFT, FIRST, SPEAKER = "done", "left", "first to fail", "speaker"
SILENT = "a rank died without an error message, probably killed for lack of memory; request more memory"

siblings = LocalRanks()
_store: Any = None  # torch.distributed.Store, once joined; a separate connection, which no other wait blocks
_leaving = False  # whether this rank is done, and ignores the others


def world() -> int:
    """The number of ranks."""
    return int(os.environ["WORLD_SIZE"]) if all(map(os.environ.get, ENVIRONMENT)) else 1


def rank() -> int:
    """The number of this rank."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def meet(store: Any) -> None:
    """Set the store that this rank shares with the others."""
    global _store
    _store = store


def met() -> bool:
    """Whether the ranks share a store."""
    return _store is not None


def leaving() -> bool:
    """Whether this rank is done, and ignores the others."""
    return _leaving


def finish() -> None:
    """Wait until rank 0 is done, then leave: torchrun would end the others after an exit with status 1."""
    if _store is None:
        return
    while rank() and not _store.check([DONE]):
        time.sleep(0.02)
    leave()


def leave(lost: bool = False) -> None:
    """Leave without another message.

    Rank 0 waits for the others, since the store ends with it; so does a rank that has reported a lost one (`lost`).
    """
    global _leaving
    _leaving = True
    end = time.monotonic() + PATIENCE
    if _store is None or lost:
        # Before the ranks share a store, rank 0 has yet to report, and torchrun ends it once another exits.
        while siblings.living() & (set(range(world())) if lost else {0}) and time.monotonic() < end:
            time.sleep(0.05)
        return
    with suppress(Exception):  # the store is gone already
        if rank():
            _store.add(LEFT, 1)
            return
        _store.set(DONE, "")
        while _store.add(LEFT, 0) + len(siblings.gone()) < world() - 1 and time.monotonic() < end:
            time.sleep(0.02)


def first_to_fail() -> int | None:
    """The rank that failed first; None where none has reported a failure."""
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
    """Whether this is the lowest rank that is alive on this machine."""
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
        lost: whether the failure is only that another rank does not answer.
    """
    if world() == 1:
        return message
    if _store is None:  # nothing is loaded yet: an error in the command line, alike on all ranks
        return message if (first_alive() if lost else rank() == 0) else None
    try:
        return _wording(message, lost)
    except Exception:  # the store is gone, and rank 0 with it
        return message if not lost or first_alive() else None


def _wording(message: str, lost: bool) -> str | None:
    own = f"{rank()} {message}"
    winner = _store.compare_set(FIRST, "", own).decode()
    _store.set(f"failed {rank()}", message)
    if winner.partition(" ")[2] != message or (rank() and winner != own):
        return None
    if rank() and message_of_first() == message:
        return None
    if _store.compare_set(SPEAKER, "", str(rank())).decode() != str(rank()):
        return None
    return f"rank {rank()}: {message}" if rank() and not lost else message


def message_of_first() -> str | None:
    """The message of rank 0, once it has failed too."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and 0 not in siblings.gone():
        if _store.check(["failed 0"]):
            return _store.get("failed 0").decode()
        time.sleep(0.02)
    return None


def missing_another(error: BaseException) -> bool:
    """Whether an error only says that another rank does not answer."""
    signs = ("closed by peer", "reset by peer", "Broken pipe", "gloo", "NCCL", "Timed out", "Connection refused")
    no_answer = type(error).__name__.startswith("Dist") or any(sign in str(error) for sign in signs)
    return isinstance(error, RuntimeError) and no_answer


def lost_one() -> bool:
    """Whether a rank has died without a message; a rank that is ended because of it then reports that."""
    return world() > 1 and first_to_fail() is None and not done() and bool(siblings.gone())


def not_started() -> str:
    """The message for ranks that belong on this machine and have never started."""
    missing = ", ".join(map(str, sorted(siblings.never_seen())))
    return (
        f"torchrun: no process on this machine for rank {missing} of {world()}, which never started or was killed at "
        "once; start all ranks together"
    )
