"""Treat SIGTERM and SIGUSR1, with which a cluster ends a job, like Ctrl-C, so that a command saves its state.

Ctrl-C of a sweep, which ends several commands at once, is handled in `spectra.sweeps.local`.
"""

from __future__ import annotations

import signal

INTERRUPTED = 130
TERMINATED = 143
# Slurm ends a job with SIGTERM; before the time limit it sends the signal that the job has requested.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))  # Windows: one
_received: list[type[KeyboardInterrupt]] = []


class Terminated(KeyboardInterrupt):
    """Raised in the main thread by a signal of `ENDING`."""


def end_by_signals() -> None:
    """Let SIGTERM and SIGUSR1 raise Terminated, as Ctrl-C raises KeyboardInterrupt unless it is ignored."""
    for number in ENDING:
        signal.signal(number, _end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, _frame: object) -> None:
    _received.append(Terminated if number in ENDING else KeyboardInterrupt)
    raise _received[0]


def received() -> bool:
    """Whether the main thread has received such a signal."""
    return bool(_received)


def raise_received() -> None:
    """Raise the exception of a signal again, in case it was raised in a callback that discards exceptions."""
    if _received:
        raise _received[0]


def ignore_signals() -> None:
    """Ignore signals from now on: the answer is complete, and the rest must not be interrupted."""
    for number in (*ENDING, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
