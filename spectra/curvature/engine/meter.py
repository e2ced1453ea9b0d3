"""Measure the memory that a computation takes, by watching every operation of PyTorch in it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from spectra.curvature.engine.zero_tensors import with_memory
from spectra.memory import Ledger


class Meter(TorchDispatchMode):
    """A context that measures the bytes of tensors made inside it.

    `bytes` are alive now, `peak` is the largest number so far, and `history` the number after each operation. Tensors
    `besides` are not counted.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first use imports torch.compile, for a second and more

    def __init__(self, besides: Iterable[Tensor] = ()):
        super().__init__()
        self.history: list[int] = []
        self._ledger = Ledger(besides)

    @property
    def bytes(self) -> int:
        """The bytes that are alive."""
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
