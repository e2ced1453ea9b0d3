"""A stand-in for a GPU: tensors that say they are on another device, npu:0, and hold their numbers on the CPU.

    python tests/stand_in.py [--without-float64] COMMAND ...       runs `spectra COMMAND ... --device cuda` on it

Operations that mix its tensors with the CPU's raise, as on a GPU, and without float64 so do those that make such
numbers, as on a Mac's. Derivatives work; tracing does not, so products are made by autograd itself.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
DEVICE = torch.device("privateuseone", 0)
NAMES = ("npu", "privateuseone")
COPIES = {aten._to_copy.default, aten.copy_.default, aten.copy.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
RESHAPING = {aten.squeeze_, aten.unsqueeze_, aten.t_, aten.transpose_, aten.as_strided_}  # in place
lacking: set[torch.dtype] = set()


class There(Tensor):
    """A tensor of the device; its numbers are in `raw`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> There:
        if raw.dtype in lacking:
            raise TypeError(f"{DEVICE} has no {raw.dtype}")
        shape = {"strides": raw.stride(), "storage_offset": raw.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, raw.size(), dtype=raw.dtype, device=DEVICE, **shape)
        made.raw = raw
        return made

    def __repr__(self) -> str:
        return f"There({self.raw})"

    def __getitem__(self, index: Any) -> Tensor:
        return Tensor.__getitem__(self, listed(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        Tensor.__setitem__(self, listed(index), value.to(DEVICE) if isinstance(value, Tensor) else value)

    def tolist(self) -> Any:
        return self.raw.detach().tolist()

    @property
    def data(self) -> There:
        return There(self.raw)

    @data.setter
    def data(self, value: There) -> None:
        self.raw = value.raw

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return dispatched(function, args, kwargs or {})


class Device(TorchDispatchMode):
    """What makes tensors on the device makes them `There`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if named(kwargs.get("device")) or any(isinstance(x, There) for x in pytree.tree_leaves((args, kwargs))):
            return dispatched(function, args, kwargs)
        return function(*args, **kwargs)


def named(device: Any) -> bool:
    return device is not None and torch.device(device).type in NAMES


def listed(index: Any) -> Any:
    """An index whose lists are tensors: PyTorch would make such of them on the device, past all that is here."""
    if isinstance(index, tuple):
        return tuple(map(listed, index))
    return torch.tensor(index) if isinstance(index, list) else index


def dispatched(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The result of an operation that has to do with the device."""
    leaves = pytree.tree_leaves((args, kwargs))
    there = [x for x in leaves if isinstance(x, There)]
    here = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, There) and x.ndim]
    if there and here and function not in COPIES and (function not in INDEXING or not isinstance(args[0], There)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu ({function})")
    if kwargs.get("generator") is not None and function not in COPIES:
        raise RuntimeError(f"Expected a '{DEVICE.type}' device type for generator but found 'cpu'")
    held = {id(x.raw): x for x in there}

    def raw(x: Any) -> Any:
        return x.raw if isinstance(x, There) else torch.device("cpu") if isinstance(x, torch.device) else x

    made = function(*pytree.tree_map(raw, args), **pytree.tree_map(raw, kwargs))
    if function.overloadpacket in RESHAPING:
        with torch._C._DisableTorchDispatch():
            function(*args, **kwargs)  # of the tensor that says it is there
        return args[0]
    if function is aten.copy_.default:
        return args[0]
    device = kwargs.get("device")
    if function is aten._local_scalar_dense.default or not (named(device) if device is not None else there):
        return made
    return pytree.tree_map(lambda x: made_there(x, held) if isinstance(x, Tensor) else x, made)


def made_there(raw: Tensor, held: dict[int, There]) -> There:
    """The tensor of the device with these numbers; that which already holds them, after operations in place."""
    return held[id(raw)] if id(raw) in held else There(raw)


class Backend:
    """What PyTorch asks of a device besides operations."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        answers = {"is_initialized": True, "is_available": True, "device_count": 1, "is_autocast_enabled": False}
        answers["get_rng_state"] = torch.get_rng_state()
        answers["get_amp_supported_dtype"] = [torch.bfloat16]
        return lambda *_, **__: answers.get(name, 0)


def install(without_float64: bool) -> None:
    """Make the device, and have it taken for `auto` and `cuda`, for as long as this process lives."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    from spectra import devices
    from spectra.inputs import devices as choice

    _setup_privateuseone_for_python_backend("npu", backend_module=Backend())
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    Device().__enter__()
    choose = choice.choose_device
    choice.choose_device = lambda name: DEVICE if str(name) in ("auto", "cuda") else choose(name)
    if without_float64:
        lacking.update({torch.float64, torch.complex128})
        devices.WITHOUT_FLOAT64 = choice.WITHOUT_FLOAT64 = frozenset(NAMES)


if __name__ == "__main__":
    from spectra.cli import run

    words = sys.argv[1:]
    without = words[0] == "--without-float64"
    install(without)
    sys.exit(run([*words[without:], "--device", "cuda"]))
