"""Choose examples at random for the `samples` option."""

from __future__ import annotations

import torch
from torch import Tensor

from spectra.inputs.spec import input_error
from spectra.wording import counted


def chosen_indices(count: int, samples: int | None, seed: int, name: str) -> Tensor:
    """Return the ascending indices (N,) of `samples` of `count` examples, chosen with the seed; None chooses all.

    Raises SpectraError where there are no examples, or fewer than `samples`; `name` is that of the data in messages.
    """
    if count == 0:
        raise input_error("`data`", name, "it is empty; give at least one example")
    if samples is None:
        return torch.arange(count)
    if not 1 <= samples <= count:
        raise input_error("`samples`", samples, f"{name} has {counted(count, 'example')}; choose from 1 to {count}")
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:samples].sort().values
