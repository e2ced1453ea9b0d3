"""A pretend device on the CPU: its tensors cannot meet those of the host but in copies, and their bytes are counted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from spectra.memory import MemoryTracker

DEVICE = torch.device("meta")  # a kind of device that torch lets others stand for
COPIES = {torch.ops.aten.copy_.default}
PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__}
MIXED = {*COPIES, torch.ops.aten.index.Tensor}  # by rows whose numbers are on the host


class DeviceTensor(Tensor):
    """A tensor on the pretend device: a tensor on the CPU that is not to be looked at."""

    @staticmethod
    def __new__(cls, held: Tensor):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return Tensor._make_wrapper_subclass(cls, held.shape, device=DEVICE, **layout)

    def __init__(self, held: Tensor):
        self.held = held

    def __repr__(self):
        return f"DeviceTensor({tuple(self.shape)})"

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        if function in PRODUCTS:  # whose steps change the shape of a tensor in place, which a wrapper cannot follow
            if not all(isinstance(x, DeviceTensor) for x in arguments):
                raise RuntimeError(f"{function}: expected all tensors to be on the same device")
            return PretendDevice.wrapped(function(*(x.held for x in arguments)))
        if function is Tensor.tolist:
            return arguments[0].held.tolist()
        with torch._C.DisableTorchFunctionSubclass():
            return function(*arguments, **(keywords or {}))

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        keywords = dict(keywords or {})
        tensors = [x for x in pytree.tree_leaves((arguments, keywords)) if isinstance(x, Tensor)]
        strangers = [x for x in tensors if not isinstance(x, DeviceTensor) and x.ndim]
        if strangers and function not in MIXED:
            raise RuntimeError(f"{function}: expected all tensors to be on the same device")
        place = keywords.pop("device", None)
        first = arguments[0] if isinstance(arguments[0], Tensor) else None
        plain, options = pytree.tree_map(inside, (arguments, keywords))
        made = function(*plain, **options)
        if place is not None and torch.device(place).type == "cpu":
            return made.clone() if made is first else made
        if function in COPIES or (first is not None and not isinstance(first, DeviceTensor)):
            return first
        if isinstance(first, DeviceTensor) and made is first.held:
            return first
        return pytree.tree_map(lambda x: PretendDevice.wrapped(x) if isinstance(x, Tensor) else x, made)


def inside(value):
    """What a tensor on the pretend device stands for; anything else is returned as it is."""
    return value.held if isinstance(value, DeviceTensor) else value


class PretendDevice(TorchDispatchMode):
    """A context in which tensors can be made on the pretend device; `peak` bytes of them were alive at once."""

    current: PretendDevice | None = None

    def __init__(self):
        super().__init__()
        self.ledger = MemoryTracker()

    @property
    def peak(self) -> int:
        """The largest number of bytes of the device's tensors that were alive at once."""
        return self.ledger.peak

    def __enter__(self):
        PretendDevice.current = self
        return super().__enter__()

    def __exit__(self, *error):
        PretendDevice.current = None
        return super().__exit__(*error)

    @staticmethod
    def wrapped(held: Tensor) -> DeviceTensor:
        assert PretendDevice.current is not None
        PretendDevice.current.ledger.enter(held)
        return DeviceTensor(held)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = dict(keywords or {})
        place = keywords.get("device")
        if place is not None and torch.device(place).type == DEVICE.type:
            made = function(*pytree.tree_map(inside, arguments), **{**keywords, "device": "cpu"})
            return self.wrapped(made.clone())
        return function(*arguments, **keywords)


class OnDevice:
    """A matrix on the pretend device."""

    def __init__(self, matrix: Tensor):
        self.matrix, self.products = matrix, 0
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, DEVICE

    def __matmul__(self, vectors: Tensor) -> Tensor:
        assert isinstance(vectors, DeviceTensor)
        self.products += 1 if vectors.ndim == 1 else vectors.shape[1]
        return PretendDevice.wrapped(self.matrix @ vectors.held)
