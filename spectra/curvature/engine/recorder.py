"""Record the operations of PyTorch that a function calls, as a graph of ATen calls.

It works like `torch.fx.experimental.proxy_tensor.make_fx` with real tensors, but in a twentieth of the time, since it
keeps only the calls and the shapes of their results.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, autograd_would_have_decomposed

from spectra.curvature.engine.graphs import add_call, bare
from spectra.curvature.engine.zero_tensors import is_zero_tensor, with_memory

aten = torch.ops.aten
DISPATCH = "__torch_dispatch__"


class ValuesRead(RuntimeError):
    """Python code reads values of a tensor, which may differ at another call."""


def record(function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[nn.Module, Graph]:
    """Call a function, and return the graph of its operations, with a module that holds the graph's constants.

    The graph has a placeholder for each leaf of the arguments, in their order. Tensors that the function takes from
    elsewhere, such as parameters, are constants. Raises ValuesRead where Python code in the function reads values that
    depend on the arguments, and any error of the function.
    """
    values, structure = pytree.tree_flatten(tuple(arguments))
    values = distinct(values)
    recorder = Recorder(values)
    try:
        with without_cached_casts(), recorder:
            result = function(*pytree.tree_unflatten(values, structure))
    except Exception as error:
        if recorder.values_read:  # the model may have raised another error from it
            raise ValuesRead(recorder.values_read) from error
        raise
    if recorder.values_read:  # or the model caught it, and did something else
        raise ValuesRead(recorder.values_read)
    recorder.graph.output(recorder.recorded(result))
    return recorder.constants, recorder.graph


class Recorder(TorchDispatchMode):
    """A context in which operations run and are recorded.

    The `meta` of each node has a tensor of its result's shape and type, without memory, as `val`; that of an input has
    its device too. PyTorch's fake tensors have a device, but take twenty times as long.
    """

    records = True  # for `spectra.problem.recomputation`, which may not import this module

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would make the first use import torch.compile, which takes a second

    def __init__(self, inputs: Sequence[Any]):
        super().__init__()
        self.graph, self.constants = Graph(), nn.Module()
        self.values_read: str | None = None  # the message, once a call has read values
        self._nodes: dict[int, tuple[Node, weakref.ref]] = {}  # of the tensors that are alive, by their identity
        self._varying: set[Node] = set()  # nodes with values that depend on the inputs, or are random
        self._written: dict[int, torch.UntypedStorage] = {}  # storages to which varying values were written
        for i, value in enumerate(inputs):
            node = self.graph.placeholder(f"input_{i}")
            self._varying.add(node)
            self._track(value, node)
            if isinstance(value, Tensor):
                node.meta["device"] = value.device

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        given = [*tensors_in(arguments), *tensors_in(keywords.values())]
        if not all(is_plain(type(tensor)) for tensor in given):
            return NotImplemented  # a wrapper: the operations on its parts follow
        if any(map(is_zero_tensor, given)):
            with self:
                arguments, keywords = with_memory(arguments, keywords)
                return function(*arguments, **keywords)
        if is_composite(function) and autograd_would_have_decomposed(function, given):
            with self:
                return function.decompose(*arguments, **keywords)
        varies = torch.Tag.nondeterministic_seeded in function.tags or any(map(self._varies, given))
        if varies and torch.Tag.data_dependent_output in function.tags:
            self.values_read = f"its code reads values of a tensor that depends on the data, by {function}"
            raise ValuesRead(self.values_read)
        if function is aten.lift_fresh.default:  # a new torch.tensor(...), which may be written to later
            function = aten.lift_fresh_copy.default

        arguments_of_node = tuple(map(self.recorded, arguments))
        keywords_of_node = {name: self.recorded(value) for name, value in keywords.items()}
        if varies and function._schema.is_mutable:
            self._note_written(given)
        result = function(*arguments, **keywords)
        node = add_call(self.graph, function, arguments_of_node, keywords_of_node)
        if function is aten._to_copy.default and result.device != given[0].device:
            node.meta["moves"] = True  # from one device to another
        if varies:
            self._varying.add(node)
        self._track(result, node)
        return result

    def node(self, tensor: Tensor) -> Node:
        """The node that has made a tensor; a node for a constant where no recorded operation has."""
        found, _ = self._nodes.get(id(tensor), (None, None))
        if found is None:
            name = f"constant_{len(self.constants._parameters) + len(self.constants._buffers)}"
            if isinstance(tensor, nn.Parameter):
                self.constants.register_parameter(name, tensor)
            else:
                self.constants.register_buffer(name, tensor)
            found = self.graph.get_attr(name)
            self._track(tensor, found)
        return found

    def recorded(self, value: Any) -> Any:
        """An argument of a call as the graph holds it."""
        if isinstance(value, Tensor):
            return self.node(value)
        if isinstance(value, list | tuple):
            return type(value)([self.recorded(each) for each in value])
        return value

    def _track(self, result: Any, node: Node) -> None:
        """Assign a node to a result, and to each part of it."""
        if isinstance(result, Tensor):
            key, nodes = id(result), self._nodes
            nodes[key] = node, weakref.ref(result, lambda _: nodes.pop(key))
            node.meta["val"] = shape_of(result)
        elif isinstance(result, list | tuple):
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    taken = add_call(self.graph, operator.getitem, (node, i))
                    if node in self._varying:
                        self._varying.add(taken)
                    self._track(part, taken)
            node.meta["val"] = [shape_of(part) if isinstance(part, Tensor) else None for part in result]

    def _varies(self, tensor: Tensor) -> bool:
        written = self._written and tensor.layout is torch.strided and tensor.untyped_storage()._cdata in self._written
        return bool(written) or self.node(tensor) in self._varying

    def _note_written(self, given: Sequence[Tensor]) -> None:
        """Remember the storages that are written to, since other views of them may be taken for constants."""
        for tensor in given:
            if not self._varies(tensor) and tensor.layout is torch.strided:
                self._written[tensor.untyped_storage()._cdata] = tensor.untyped_storage()


@cache
def is_plain(kind: type) -> bool:
    """Whether a type of tensors has PyTorch's own operations."""
    return getattr(kind, DISPATCH) is getattr(Tensor, DISPATCH)


@cache
def is_composite(function: torch._ops.OpOverload) -> bool:
    """Whether an operation is made of others, which autograd calls in its place, but inference_mode does not."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd")


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors among arguments of a call, and in lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def shape_of(tensor: Tensor) -> Tensor | None:
    """A tensor of this shape, type and layout in memory, without memory; None for one that is sparse or nested."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return None
    return bare(tensor)


def distinct(values: Sequence[Any]) -> list[Any]:
    """Replace repeated tensors among the values by views, so that all tensors are distinct objects."""
    seen: set[int] = set()
    found = []
    for value in values:
        found.append(value.detach() if isinstance(value, Tensor) and id(value) in seen else value)
        seen.add(id(value))
    return found


@contextmanager
def without_cached_casts() -> Iterator[None]:
    """Switch off autocast's cache inside this context: a cast from before would be taken for a constant."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
