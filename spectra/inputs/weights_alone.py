"""A context for loaders of other packages, in which torch.load runs nothing that is in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's own switch


@contextmanager
def weights_alone() -> Iterator[None]:
    """Make torch.load read weights alone, whatever its caller asks for.

    Lightning's loader asks for all, up to 2.5 and for addresses.
    """
    before = os.environ.get(FORCED)
    os.environ[FORCED] = "1"
    try:
        yield
    finally:
        os.environ.pop(FORCED)
        if before is not None:
            os.environ[FORCED] = before
