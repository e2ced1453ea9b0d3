"""Products as CUDA graphs: a fixed sequence of kernels that is launched at once, where launching takes the time.

Captured(apply, example)(v) = apply(v), bit for bit
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # calls before the capture, in which libraries choose their algorithms and take their workspaces


class Captured:
    """A function of a vector on CUDA that reads nothing else that changes, as one graph.

    Graphs of one `pool` share the memory of what they compute on the way, so they must run one after the other.
    Raises RuntimeError where the function can't be captured, or where its graph gives other bits.
    """

    def __init__(self, apply: Callable[[Tensor], Tensor], example: Tensor, pool: tuple[int, int]):
        self.vector = example.clone()
        stream, main = torch.cuda.Stream(example.device), torch.cuda.current_stream(example.device)
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                wanted = apply(self.vector)
        main.wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may go on as they do: those that load data pin memory, which else would end the capture.
        with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.product = apply(self.vector)
        if not self(example).equal(wanted):
            raise RuntimeError("a CUDA graph of the product gives other bits")

    def __call__(self, vector: Tensor) -> Tensor:
        self.vector.copy_(vector)
        self.graph.replay()
        return self.product.clone()
