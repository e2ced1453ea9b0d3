"""Locks on open files (flock), which are released when the process ends. Windows has no flock."""

from __future__ import annotations

import errno
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

AVAILABLE = fcntl is not None


def lock(file: IO, shared: bool = False) -> None:
    """Take the lock of an open file without waiting.

    Raises BlockingIOError where another process holds it, and OSError where the system or file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "this system does not support file locks")
    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
