"""A context for the loaders of other packages in which torch.load never runs code from a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's own switch


@contextmanager
def weights_only() -> Iterator[None]:
    """Make torch.load use `weights_only=True` inside this context, whatever its caller passes.

    Lightning passes False up to version 2.5, and later for URLs.
    """
    before = os.environ.get(FORCED)
    os.environ[FORCED] = "1"
    try:
        yield
    finally:
        os.environ.pop(FORCED)
        if before is not None:
            os.environ[FORCED] = before
