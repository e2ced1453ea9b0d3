"""Copy vectors between a CUDA device and the ordinary memory of its host, in both directions.

Two pinned buffers take turns: while one is transferred, all threads copy to or from the other. A plain copy of memory
that is not pinned waits for one thread of the driver. Pinning a whole basis would be no faster: it takes seconds for
each 10 GB, PyTorch rounds pinned memory up to a power of two, and the system cannot swap it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

BUFFER = 2**26  # bytes, which a fast connection carries in a millisecond or two


def copied(part: Tensor, device: torch.device) -> Tensor:
    """A copy of a plain tensor in the memory of a device."""
    made = torch.empty(part.shape, dtype=part.dtype, device=device)
    copy(made, part)
    return made


def copy(to: Tensor, part: Tensor) -> None:
    """Copy a plain tensor into another of the same shape, wherever they are."""
    places = {to.device.type, part.device.type}
    plain = to.is_contiguous() and part.is_contiguous() and to.dtype == part.dtype
    if places != {"cpu", "cuda"} or not plain or part.nbytes <= BUFFER or to.is_pinned() or part.is_pinned():
        to.copy_(part)
    elif to.is_cuda:
        with torch.cuda.device(to.device):
            transfer_buffers(to.device).up(to.view(-1), part.view(-1))
    else:
        with torch.cuda.device(part.device):
            transfer_buffers(part.device).down(to.view(-1), part.view(-1))


class ChunkCopy(NamedTuple):
    """One turn of a buffer: the piece on the host, that on the device, the buffer between them, and its event."""

    host: Tensor
    device: Tensor
    buffer: Tensor
    event: Any

    def arrive(self) -> None:
        """Wait for the buffer to be filled from the device, and empty it."""
        self.event.synchronize()
        self.host.copy_(self.buffer)


class TransferBuffers:
    """Two buffers between a host and a device, each with an event that marks the end of its last transfer."""

    def __init__(self, event: Callable[[], Any] = torch.cuda.Event, pinned: bool = True, size: int = BUFFER):
        how = {"dtype": torch.uint8, "device": "cpu", "pin_memory": pinned}  # whatever device is torch's default
        self.buffers = [torch.empty(size, **how) for _ in range(2)]
        self.events = [event() for _ in range(2)]
        self._lock = Lock()

    def down(self, host: Tensor, device: Tensor) -> None:
        """Copy a vector (n,) from the device to the host, and wait for it."""
        with self._lock:
            before = None
            for turn in self._turns(host, device):
                turn.buffer.copy_(turn.device, non_blocking=True)
                turn.event.record()
                if before:
                    before.arrive()
                before = turn
            if before:
                before.arrive()

    def up(self, device: Tensor, host: Tensor) -> None:
        """Copy a vector (n,) from the host to the device, on the device's current stream."""
        with self._lock:
            for turn in self._turns(host, device):
                turn.event.synchronize()
                turn.buffer.copy_(turn.host)
                turn.device.copy_(turn.buffer, non_blocking=True)
                turn.event.record()

    def _turns(self, host: Tensor, device: Tensor) -> Iterator[ChunkCopy]:
        buffers = [buffer.view(host.dtype) for buffer in self.buffers]
        pieces = zip(host.split(len(buffers[0])), device.split(len(buffers[0])), strict=True)
        for i, (ours, theirs) in enumerate(pieces):
            yield ChunkCopy(ours, theirs, buffers[i % 2][: len(ours)], self.events[i % 2])


@cache
def transfer_buffers(device: torch.device) -> TransferBuffers:
    """The lane between the host and this device, made once."""
    return TransferBuffers()
