"""Seed the global random generators for user code, and restore them afterwards."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from spectra.devices import generator_states, restore_generators


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Start the global generators of torch (of all devices), NumPy and `random` from `seed` inside this context.

    They are restored on leaving.
    """
    if torch.cuda.is_available():
        torch.cuda.init()
    states = generator_states()
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield
    finally:
        restore_generators(states)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
