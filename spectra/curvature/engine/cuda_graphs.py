"""Products as CUDA graphs: a fixed sequence of kernels that is launched at once, where launching takes the time.

Captured(apply, example, graphs)(v) = apply(v), bit for bit
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from spectra.errors import describe

WORTH_A_GRAPH = 10  # products: a capture takes five
WARM_UP = 3  # calls before the capture, in which libraries choose their algorithms and take their workspaces

Run = Callable[[Tensor], Tensor]


class Graphs:
    """The CUDA graphs of one matrix. They share the memory of what they compute, so they run one after the other."""

    def __init__(self, device: torch.device):
        self.device = device
        self.why: str | None = None  # one could not be captured, after which none is
        self.pool: Any = None
        self.stream: Any = None

    def captured(self, apply: Run, example: Tensor) -> Run:
        """The function as a graph for arguments like the example; itself where it cannot be captured, see `why`."""
        if self.why is None:
            try:
                return Captured(apply, example, self)
            except Exception as error:  # of any kind: what cannot be captured runs as it is
                self.why = describe(error)
        return apply

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record what a function computes: returns what computes it anew, and the tensor that then holds the result.

        Raises RuntimeError where the function does what no graph can, as waiting for the device.
        """
        main = torch.cuda.current_stream(self.device)
        if self.stream is None:
            self.stream, self.pool = torch.cuda.Stream(self.device), torch.cuda.graph_pool_handle()
        self.stream.wait_stream(main)
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                compute()
        main.wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on as they do: those that load data pin memory, which else would end the capture.
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                result = compute()
        except BaseException:
            with suppress(Exception):  # else what this stream allocates would go to the graph's memory ever after
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self.pool)
            raise
        return graph.replay, result


class Captured:
    """A function of a vector (n,) or of rows (k, n) that reads nothing else that changes, as one graph.

    Raises RuntimeError where the function cannot be captured, or where its graph gives other bits.
    """

    def __init__(self, apply: Run, example: Tensor, graphs: Graphs):
        self.apply = apply  # holds the tensors that the graph reads, which it does not hold itself
        self.argument = example.clone()
        wanted = apply(self.argument).clone()
        self.replay, self.result = graphs.record(lambda: apply(self.argument))
        for _ in range(2):  # the second time it reads what the first has left
            if not same_bits(self(example), wanted):
                raise RuntimeError("a CUDA graph of the product gives other bits")

    def __call__(self, argument: Tensor) -> Tensor:
        self.argument.copy_(argument)
        self.replay()
        return self.result.clone()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, where they are numbers, and not numbers in the same places."""
    return torch.equal(one.nan_to_num(), other.nan_to_num()) and torch.equal(one.isnan(), other.isnan())
