"""The ranks of one job, as torchrun starts them: which this is, and which of them speaks where the job fails.

A rank that fails ends at once, and what started the ranks ends the others. What any of them has to say goes through
the store that they share, so that one clear message comes out: that of the rank that failed first, or of rank 0 where
all fail alike. No torch is loaded here.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = 10.0  # seconds that a rank waits for the others to fail alike, or to leave
DONE, LEFT, FIRST, SPEAKER = "done", "left", "first to fail", "speaker"
SILENT = "a rank has ended without a word, as one that the system kills for its memory does; give the job more of it"

_store: Any = None  # torch.distributed.Store, once joined


def world() -> int:
    """How many ranks there are."""
    return int(os.environ["WORLD_SIZE"]) if all(map(os.environ.get, ENVIRONMENT)) else 1


def rank() -> int:
    return int(os.environ["RANK"]) if world() > 1 else 0


def meet(store: Any) -> None:
    """From now on the ranks share a store."""
    global _store
    _store = store


def finish() -> None:
    """Wait until rank 0 is done, since one that ends with a status of 1 has the others ended; it leaves as the last."""
    if _store is None:
        return
    while rank() and not _store.check([DONE]):
        time.sleep(0.02)
    leave()


def leave() -> None:
    """Nothing more to say; rank 0, with which the store goes, waits for the others."""
    if _store is None:
        return
    with suppress(Exception):  # the store has gone already
        if rank():
            _store.add(LEFT, 1)
            return
        _store.set(DONE, "")
        end = time.monotonic() + PATIENCE
        while _store.add(LEFT, 0) < world() - 1 and time.monotonic() < end:
            time.sleep(0.02)


def wording(message: str, lost: bool) -> str | None:
    """What this rank is to say of its failure: nothing where another speaks. `lost`: it only misses another rank."""
    message = SILENT if lost else message
    if world() == 1:
        return message
    if _store is None:  # nobody has loaded anything: it is the command line, and the same for all
        return message if rank() == 0 else None
    try:
        return _wording(message)
    except Exception:  # the store has gone, and who kept it with it
        return None if lost else message


def _wording(message: str) -> str | None:
    own = f"{rank()} {message}"
    winner = _store.compare_set(FIRST, "", own).decode()
    _store.set(f"failed {rank()}", message)
    if winner.partition(" ")[2] != message or (rank() and winner != own):
        return None
    if rank():
        with suppress(Exception):  # waited in vain
            _store.wait(["failed 0"], timedelta(seconds=PATIENCE))
            if _store.get("failed 0").decode() == message:
                return None
    if _store.compare_set(SPEAKER, "", str(rank())).decode() != str(rank()):
        return None
    return f"rank {rank()}: {message}" if rank() and message != SILENT else message


def missing_another(error: BaseException) -> bool:
    """Whether an error only tells that another rank does not answer."""
    signs = ("closed by peer", "reset by peer", "Broken pipe", "gloo", "NCCL", "Timed out", "Connection refused")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
