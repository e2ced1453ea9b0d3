"""The memory of a device and its host, the shares that products and a basis may take, and the memory of tensors."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from spectra.cgroup import group_memory
from spectra.errors import OutOfMemory, describe

SHARE = 0.25  # of all memory, and at most half of the free: once for products, and once for a basis
HOST_SHARE, HOST_FREE = 0.75, 0.9  # of the host's memory, and of what is free there, for the basis of a device
UNKNOWN = 8 * 2**30  # bytes, assumed for a system that does not report its memory
_SETTLED: ContextVar[int | None] = ContextVar("settled", default=None)
_BASIS: ContextVar[tuple[str, int | None]] = ContextVar("basis", default=("auto", None))


@contextmanager
def fixed_memory_share(share: int) -> Iterator[None]:
    """Fix the value of `memory_share` inside this context, so that a repeated run decides alike."""
    token = _SETTLED.set(share)
    try:
        yield
    finally:
        _SETTLED.reset(token)


@contextmanager
def collecting_new_objects() -> Iterator[None]:
    """Make Python's garbage collector skip the objects that exist already, inside this context.

    PyTorch alone has a million, which cost half a second per collection, and tracing sets off collections.
    """
    if gc.get_freeze_count():  # other code has frozen objects, which unfreezing would release
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def memory_share(device: torch.device) -> int:
    """The bytes that a computation may take: a quarter of the memory of the process, at most half of what is free.

    It is a quarter of all memory, and not of what is free, so that two runs decide alike.
    """
    if (settled := _SETTLED.get()) is not None:
        return settled
    total, free = memory_of(device)
    return int(min(SHARE * total, free / 2))


def memory_of(device: torch.device) -> tuple[float, float]:
    """The bytes of a device's memory that this process may use: in total, and free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return total, total - torch.mps.driver_allocated_memory()
    total, free = (min(pair) for pair in zip(machine_memory(), group_memory(), strict=True))
    return total, free


@contextmanager
def fixed_basis_place(place: str, share: int | None = None) -> Iterator[None]:
    """Fix inside this context where a basis is stored (`device`, `host` or `auto`), and its bytes on the host."""
    token = _BASIS.set((place, share))
    try:
        yield
    finally:
        _BASIS.reset(token)


def basis_place() -> str:
    """Where a basis is stored: `device`, `host`, or by default `auto`."""
    return _BASIS.get()[0]


def host_share() -> int:
    """The bytes of host memory that the basis of a device may take.

    They are most of the host's memory, since such a process keeps little else there. Processes that torchrun has
    started on one host share them.
    """
    if (settled := _BASIS.get()[1]) is not None:
        return settled
    total, free = memory_of(torch.device("cpu"))
    return int(min(HOST_SHARE * total, HOST_FREE * free)) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def products_share(device: torch.device) -> int:
    """The bytes that products may take, including the share of a basis where that is stored on the host."""
    basis_on_host = basis_place() == "host" and device.type != "cpu"
    return memory_share(device) * (2 if basis_on_host else 1)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch, NumPy, Python or the system says that memory has run out."""
    signs = ("allocate memory", "out of memory", "not enough memory", "bad_alloc", "ALLOC_FAILED")
    says_so = isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    return says_so or isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM


@contextmanager
def explain_out_of_memory(argument: str, way_out: str) -> Iterator[None]:
    """Raise OutOfMemory with this argument and way out where memory runs out inside this context.

    The error is recognised even where another one was raised from it.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        if (cause := out_of_memory_cause(error)) is None:
            raise
        raise OutOfMemory(f"{argument}: out of memory ({describe(cause)}); {way_out}") from error


def out_of_memory_cause(error: BaseException | None) -> BaseException | None:
    """The out-of-memory error among an error and its causes; None where there is none."""
    while error is not None and not out_of_memory(error):
        error = error.__cause__ or error.__context__
    return error


def machine_memory() -> tuple[int, int]:
    """The bytes of the machine's memory: in total, and available without swapping where the system reports that."""
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if table.exists() else ()
    total = physical_memory()
    return total, next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), total)


def physical_memory() -> int:
    """The bytes of the machine's memory; `UNKNOWN` where the system does not report them."""
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if sys.platform == "win32":
        kibibytes = ctypes.c_ulonglong()
        with suppress(AttributeError, OSError):
            if ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kibibytes)):
                return 1024 * kibibytes.value
    return UNKNOWN


def storages(tensor: Tensor) -> Iterator[UntypedStorage]:
    """Yield the storages of a tensor: those of its parts if it is sparse or nested, and none of a zero tensor."""
    if is_traceable_wrapper_subclass(tensor):
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    elif tensor.layout is torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    else:
        with suppress(RuntimeError):  # zero tensors, and layouts of other libraries, have no storage
            if tensor.untyped_storage().data_ptr():
                yield tensor.untyped_storage()
        return
    for part in parts:
        yield from storages(part)


class MemoryTracker:
    """A count of the bytes of the entered tensors that are alive, and its peak.

    Views of one storage count once; tensors in `besides` and their views do not count.
    """

    def __init__(self, besides: Iterable[Tensor] = ()):
        self.bytes = self.peak = 0
        self._known: dict[int, weakref.ref | None] = {
            storage.data_ptr(): None for tensor in besides for storage in storages(tensor)
        }

    def enter(self, tensor: Tensor) -> None:
        """Count a tensor until it is freed."""
        for storage in storages(tensor):
            address, size = storage.data_ptr(), storage.nbytes()
            if size and address not in self._known:
                self._known[address] = weakref.ref(storage, partial(self._leave, address, size))
                self.bytes += size
                self.peak = max(self.peak, self.bytes)

    def _leave(self, address: int, size: int, _: weakref.ref) -> None:
        del self._known[address]
        self.bytes -= size
