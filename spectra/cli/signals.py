"""Signals by which a machine ends a job: they end a command as Ctrl-C does, so that its state is brought to the disk.

Ctrl-C of a sweep, which ends several commands at once, is handled in `spectra.sweeps.local`.
"""

from __future__ import annotations

import signal

INTERRUPTED = 130
TERMINATED = 143
# Slurm ends a job by SIGTERM, and before its time limit sends the signal that was asked for.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))  # Windows: one
_received: list[type[KeyboardInterrupt]] = []


class Terminated(KeyboardInterrupt):
    """The exception that a signal of `ENDING` raises wherever it finds the program."""


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
    """Whether the main thread has had such a signal."""
    return bool(_received)


def raise_received() -> None:
    """Raise again what a signal raised in a callback, out of which Python lets no exception pass."""
    if _received:
        raise _received[0]


def ignore_signals() -> None:
    """Ignore signals from now on: the answer stands, and what little is left to do is not to be ended by one."""
    for number in (*ENDING, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
