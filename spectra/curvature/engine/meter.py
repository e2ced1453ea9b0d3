"""Measure the memory of a computation by watching each of its PyTorch operations."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from spectra.curvature.engine.zero_tensors import with_memory
from spectra.memory import MemoryTracker


class Meter(TorchDispatchMode):
    """A context that measures the bytes of tensors made inside it.

    `bytes` is the number alive now, `peak` the largest number so far, and `history` the number after each operation.
    Tensors in `besides` are not counted.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would make the first use import torch.compile, which takes a second

    def __init__(self, besides: Iterable[Tensor] = ()):
        super().__init__()
        self.history: list[int] = []
        self._ledger = MemoryTracker(besides)

    @property
    def bytes(self) -> int:
        """The number of bytes alive now."""
        return self._ledger.bytes

    @property
    def peak(self) -> int:
        """The largest number of bytes so far."""
        return self._ledger.peak

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        arguments, keywords = with_memory(arguments, keywords or {})
        result = function(*arguments, **keywords)
        for made in [result] if isinstance(result, Tensor) else pytree.tree_leaves(result):
            if isinstance(made, Tensor):
                self._ledger.enter(made)
        self.history.append(self.bytes)
        return result
