"""How much memory a product takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from spectra.memory import Ledger


class Meter(TorchDispatchMode):
    """Weighs what is computed inside: `bytes` alive now and at the `peak`, and the `history` after each operation."""

    def __init__(self, besides: Iterable[Tensor] = ()):
        super().__init__()
        self.history: list[int] = []
        self._ledger = Ledger()
        self._besides = {tensor.untyped_storage().data_ptr() for tensor in besides}

    @property
    def bytes(self) -> int:
        return self._ledger.bytes

    @property
    def peak(self) -> int:
        return self._ledger.peak

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for made in pytree.tree_leaves(result):
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in self._besides:
                self._ledger.enter(made)
        self.history.append(self.bytes)
        return result


class Saved:
    """A tensor that a graph has saved for backward; it lives as long as the graph does.

    Detached: the output of a node would hold that node, which holds what is saved, and never be freed.
    """

    def __init__(self, tensor: Tensor):
        self.tensor, self.version = tensor.detach(), tensor._version

    def unpack(self) -> Tensor:
        if self.tensor._version != self.version:  # with hooks, autograd leaves this check to them
            raise RuntimeError("a tensor needed for the derivative has been changed in place since it was computed")
        return self.tensor


@contextmanager
def count_kept_bytes(besides: Iterable[Tensor] = ()) -> Iterator[Callable[[], int]]:
    """`kept()`: bytes of the storages that graphs made inside, and alive still, save besides these tensors."""
    saved: WeakSet[Saved] = WeakSet()
    known = {tensor.untyped_storage().data_ptr() for tensor in besides}

    def pack(tensor: Tensor) -> Saved:
        saved.add(own := Saved(tensor))
        return own

    def kept() -> int:
        storages = [own.tensor.untyped_storage() for own in saved]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        return sum(size for address, size in sizes.items() if address not in known)

    with torch.autograd.graph.saved_tensors_hooks(pack, Saved.unpack):
        yield kept


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
