"""Compile the second half of a product by Inductor, the compiler behind `torch.compile`.

Parameters are inputs of the compiled code, so that all points of one network share what Inductor caches on disk.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from spectra.errors import describe
from spectra.memory import out_of_memory

# Measured on an H200: Inductor took 30 s for a GPT of 1,550 operations and 39 s for a ResNet-20 of 1,100, which then
# took 1 / 1.6 of the time in a CUDA graph.
COMPILING = 0.03  # seconds an operation
SAVED = 1 - 1 / 1.6  # of a product's time


class Uncompilable(RuntimeError):
    """A graph cannot be compiled here; the message says why."""


def pays(graph: GraphModule, seconds: float, products: int) -> bool:
    """Whether compilation saves more time than it takes, over this number of products of `seconds` each."""
    return products * seconds * SAVED > COMPILING * len(graph.graph.nodes)


def compiled(module: GraphModule, arguments: Sequence[Tensor]) -> Callable[..., Tensor]:
    """Compile a plain graph of one result for arguments with these shapes and strides, and check it on them.

    A call with other strides costs a copy. Raises Uncompilable.
    """
    layouts = [x.stride() for x in arguments]

    def call(*arguments: Tensor) -> Tensor:
        given = [laid_out(x, stride) for x, stride in zip(arguments, layouts, strict=True)]
        return function(*constants, *given)

    try:
        with quiet(), torch.no_grad():
            graph, constants = without_constants(module)
            function = compiled_graph(graph, [*constants, *arguments])
            found, wanted = call(*arguments), module(*arguments)  # some of it is compiled in the first call
    except Exception as error:
        if out_of_memory(error):
            raise
        raise Uncompilable(describe(error)) from error
    if not (found - wanted).norm() <= torch.finfo(found.dtype).eps ** 0.5 * wanted.norm():
        raise Uncompilable("the compiled product differs from the plain one")
    return call


def compiled_graph(graph: GraphModule, arguments: Sequence[Tensor]) -> Callable[..., Tensor]:
    """Compile a graph for arguments like these."""
    from torch._inductor import compile, config  # which takes seconds
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # Without a ShapeEnv nothing is cached on disk.
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes: list[Any] = [mode.from_tensor(x.detach(), static_shapes=True) for x in arguments]
    # Kernels chosen by timing would round differently from run to run.
    options = {"deterministic": True} if hasattr(config, "deterministic") else {}
    return cast(Callable[..., Tensor], compile(graph, fakes, options=options))


def without_constants(module: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """A graph whose parameters and other constants are its first inputs, and those constants."""
    from spectra.curvature.engine.graphs import constant

    graph = Graph()
    constants: list[Tensor] = []
    copies: dict[Node, Node] = {}
    for node in module.graph.find_nodes(op="get_attr"):
        constants.append(constant(module, node.target).detach())
        copies[node] = graph.placeholder(f"constant_{len(constants)}")
    for node in module.graph.nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return GraphModule({}, graph), constants


def laid_out(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The tensor with these strides."""
    return x if x.stride() == stride else torch.empty_strided(x.shape, stride, dtype=x.dtype, device=x.device).copy_(x)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence logging and the many warnings of PyTorch's compiler inside this context."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
