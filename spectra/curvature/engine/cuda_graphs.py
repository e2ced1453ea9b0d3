"""Products as CUDA graphs: a fixed sequence of kernels, launched at once, since launching takes most of the time.

Captured(apply, example, graphs)(v) = apply(v), bit for bit
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from spectra.errors import describe

WORTH_A_GRAPH = 10  # products: a capture takes five
VECTORS = 2  # vectors that a graph holds for a column: the argument and the product
WARM_UP = 3  # calls before the capture, in which libraries choose algorithms and allocate workspaces

Run = Callable[[Tensor], Tensor]


def graphs_for(device: torch.device, products: int) -> Graphs | None:
    """The graphs of a matrix for this number of products; None where they do not pay, or the device has none."""
    return Graphs(device) if device.type == "cuda" and products >= WORTH_A_GRAPH else None


class Graphs:
    """The CUDA graphs of one matrix. They share the memory of what they compute, so they run one after the other."""

    def __init__(self, device: torch.device):
        self.device = device
        self.why: str | None = None  # why a capture failed; no other is tried after that
        self._stream: Any = None
        self._pool: Any = None

    def captured(self, apply: Run, example: Tensor) -> Run:
        """Capture the function for arguments like the example; return the function itself where that fails (`why`)."""
        if self.why is None:
            try:
                return Captured(apply, example, self)
            except Exception as error:  # of any kind: the function then runs as it is
                self.why = describe(error)
        return apply

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Work on the stream of the captures inside this context, in order with the work around it.

        A backward pass runs on the stream of its forward pass, so that one to be captured must be built here.
        """
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(self.device), torch.cuda.graph_pool_handle()
        main = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(main)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            main.wait_stream(self._stream)

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record a function: return a function that replays it, and the tensor that then holds the result.

        Raises RuntimeError where the function does something that a graph cannot do, such as waiting for the device.
        """
        with self.beside():
            for _ in range(WARM_UP):
                compute()
        main = torch.cuda.current_stream(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on: those that load data pin memory, which would end a capture in another mode.
            mode = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
            with torch.cuda.graph(graph, **mode):
                result = compute()
        except BaseException:
            torch.cuda.set_stream(main)  # where a capture has failed, its end fails too, and leaves its own stream
            self._clear_away()
            raise
        return graph.replay, result

    def _clear_away(self) -> None:
        """Undo what PyTorch leaves behind when the end of a capture fails.

        All that the stream allocates would go to the memory of graphs from then on, which is never freed. The device's
        random generator would refuse to run, and other graphs to be replayed, until another capture ends.
        """
        main, device = torch.cuda.current_stream(self.device), torch.cuda.current_device()
        with suppress(Exception):  # the first raises where the end has not failed
            torch._C._cuda_endAllocateToPool(device, self._pool)
            torch._C._cuda_releasePool(device, self._pool)
        try:
            with (
                suppress(Exception),
                torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self._stream, capture_error_mode="thread_local"),
            ):
                torch.zeros(1, device=self.device)
        finally:
            torch.cuda.set_stream(main)


class Retained:
    """The product of a batch whose autograd graph is kept: its backward pass as a CUDA graph.

    Args:
        make: a function that makes the product.
        graphs: the graphs of the matrix.
    """

    def __init__(self, make: Callable[[], Callable[..., Tensor]], graphs: Graphs):
        with graphs.beside():
            self.apply = make()
        self.graphs = graphs
        self.run: Run | None = None

    @property
    def captured(self) -> bool:
        """Whether the product runs as a CUDA graph."""
        return isinstance(self.run, Captured)

    def is_captured(self, columns: int) -> bool:
        """Whether a product with this number of columns runs entirely as CUDA graphs."""
        return self.captured

    def __call__(self, vector: Tensor, leaves: slice | None = None) -> Tensor:
        """The product with a vector (n,), or of the diagonal block of some leaves with a vector (n_l,)."""
        if leaves is not None:
            return self.apply(vector, leaves)
        if self.run is None:
            self.run = self.graphs.captured(self.apply, vector.contiguous())
        return self.run(vector)


class Captured:
    """One graph of a function of a vector (n,) or of rows (k, n), which may read nothing else that changes.

    Raises RuntimeError where the function cannot be captured, or its graph gives other bits. If the function's own bits
    differ from call to call, as with sums by atomic operations, results are compared up to rounding instead.
    """

    def __init__(self, apply: Run, example: Tensor, graphs: Graphs):
        self.apply = apply  # holds the tensors that the graph reads, which it does not hold itself
        self.argument = example.clone()
        wanted, again = (apply(self.argument).clone() for _ in range(2))
        agree = same_bits if same_bits(wanted, again) else same_numbers
        self.replay, self.result = graphs.record(lambda: apply(self.argument))
        for _ in range(2):  # the second call must not see what the first has left
            if not agree(self(example), wanted):
                raise RuntimeError("a CUDA graph of the product gives another result")

    def __call__(self, argument: Tensor) -> Tensor:
        self.argument.copy_(argument)
        self.replay()
        return self.result.clone()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, with nan in the same places."""
    return torch.equal(one.nan_to_num(), other.nan_to_num()) and torch.equal(one.isnan(), other.isnan())


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal to half their digits."""
    return bool((one - other).norm() <= torch.finfo(one.dtype).eps ** 0.5 * other.norm())
