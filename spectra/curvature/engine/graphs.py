"""Transform ATen graphs: into a plain form without mutation or repetition, and into two halves at the last input.

A graph is one that `recorder.record` has made; its placeholders are the constants and, last, the vector.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import networkx
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.node import map_arg

aten = torch.ops.aten

# Operations that cost little more than reading their inputs: recomputed in each product where that saves memory.
CHEAP = {
    *(aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.neg, aten.abs, aten.sign, aten.relu, aten.clone),
    *(aten.threshold_backward, aten.where, aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge, aten._to_copy),
    *(aten.logical_not, aten.logical_and, aten.bitwise_and, aten.bitwise_or, aten.bitwise_not, aten.masked_fill),
    *(aten.zeros, aten.zeros_like, aten.ones, aten.ones_like, aten.full, aten.full_like, aten.scalar_tensor),
}


class Mutation(RuntimeError):
    """A tensor is changed in place while another view of it is in use."""


def simplify(graph: Graph) -> None:
    """Remove mutation, aliases, repetition and dead code. Raises Mutation where mutation cannot be removed."""
    for node in graph.nodes:
        if node.target in (aten.alias.default, aten.detach.default):
            substitute(node, first_input(node))
        elif node.target is aten.t.default and first_input(node).target is aten.t.default:
            substitute(node, first_input(first_input(node)))
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default  # layouts may come to differ from those traced
            if value(node).shape == value(first_input(node)).shape:
                substitute(node, first_input(node))
        elif node.target is aten.permute.default and keeps_order(node):
            substitute(node, first_input(node))
    eliminate(graph)
    without_mutation(graph)
    without_repetition(graph)
    narrow_outputs(graph)
    eliminate(graph)


def keeps_order(node: Node) -> bool:
    """Whether a permutation of dimensions, which may be counted from the end, leaves each in its place."""
    dims: Any = node.args[1]
    return [dim % len(dims) for dim in dims] == [*range(len(dims))]


def sizes_depend_on_values(graph: Graph) -> bool:
    """Whether the size of some tensor depends on values, as in a selection by a mask; the graph fixes such sizes."""
    return any(
        torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())
        and (node.target is not aten.index.Tensor or any(value(i).dtype == torch.bool for i in node.args[1] if i))
        for node in graph.nodes
    )


def eliminate(graph: Graph) -> None:
    """Remove nodes whose results nobody reads."""
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or mutates(node))


def substitute(node: Node, other: Node) -> None:
    """Replace a node by another wherever it is read, and erase it."""
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def without_mutation(graph: Graph) -> None:
    """Replace each call x.op_() by y = op(x), and x by y from there on. Raises Mutation."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not mutates(node):
            continue
        changed, here = node.args[0] if node.args else None, place[node]
        if not isinstance(changed, Node):
            raise Mutation(f"{node.target} changes several tensors")
        others = [other for other in sharing(storage(changed)) if other is not changed and place[other] < here]
        if any(place[user] > here for other in others for user in other.users):
            raise Mutation(f"{node.target} changes a tensor while another view of it is in use")
        node.target = out_of_place(node.target)
        changed.replace_all_uses_with(node, lambda user, here=here: place[user] > here)


def out_of_place(target):
    """The operation `op` that belongs to `op_`, with the same arguments. Raises Mutation where there is none."""
    packet = getattr(aten, target._schema.name.removeprefix("aten::").removesuffix("_"), None)
    for name in packet.overloads() if packet else ():
        found = getattr(packet, name)
        if signature(found) == signature(target) and not found._schema.is_mutable:
            return found
    raise Mutation(f"{target} has no counterpart out of place")


def signature(target) -> list[tuple[str, str]]:
    """The names and types of an operation's arguments."""
    return [(argument.name, str(argument.type)) for argument in target._schema.arguments]


def without_repetition(graph: Graph) -> None:
    """Keep one node for all calls of one function with the same arguments."""
    seen = {}
    for node in graph.nodes:
        if node.op in ("call_function", "get_attr"):
            key = str((node.target, node.args, node.kwargs))  # names of nodes are unique
            first = seen.setdefault(key, node)
            if first is not node:
                substitute(node, first)


def narrow_outputs(graph: Graph) -> None:
    """Make backward operations compute only those outputs that are read."""
    for node in graph.nodes:
        found = schema(node)
        names = [argument.name for argument in found.arguments] if found else []
        if "output_mask" in names and len(node.args) > (at := names.index("output_mask")):
            used = {user.args[1] for user in node.users}
            node.update_arg(at, [wanted and i in used for i, wanted in enumerate(node.args[at])])


def schema(node: Node) -> torch.FunctionSchema | None:
    """The declaration of the operator that a node calls; None for other functions, inputs and outputs."""
    return getattr(node.target, "_schema", None)


def first_input(node: Node) -> Node:
    """The node that is the first argument of a call."""
    found = node.args[0]
    assert isinstance(found, Node)
    return found


def mutates(node: Node) -> bool:
    """Whether the call writes to one of its arguments."""
    found = schema(node)
    return found is not None and found.is_mutable


def is_view(node: Node) -> bool:
    """Whether the result may share its first argument's memory."""
    if node.target is operator.getitem:
        return is_view(first_input(node))
    found = schema(node)
    return found is not None and any(r.alias_info is not None for r in found.returns)


def storage(node: Node) -> Node:
    """The node that made the memory of a tensor."""
    while is_view(node):
        node = first_input(node)
    return node


def sharing(owner: Node) -> Iterator[Node]:
    """Yield the maker of some memory, and all views of it."""
    yield owner
    for user in owner.users:
        if is_view(user) and user.args[0] is owner:
            yield from sharing(user)


def constant(module: nn.Module, name: str) -> Tensor:
    """The constant of a module that a node of its graph names."""
    *path, last = name.split(".")
    return getattr(module.get_submodule(".".join(path)), last)


def find_value(argument: object) -> Tensor | None:
    """A tensor without memory, of the shape and type that a node's result had when it was traced.

    None where the argument is not a node, or the node did not make a single tensor.
    """
    found = argument.meta.get("val") if isinstance(argument, Node) else None
    return found if isinstance(found, Tensor) else None


def value(node: object) -> Tensor:
    """A node's tensor without memory, as `find_value` returns it. Raises ValueError where there is none."""
    found = find_value(node)
    if found is None:
        raise ValueError(f"expected a node that makes one tensor, got {node}")
    return found


def nbytes(node: Node) -> float:
    """The bytes of the tensor that a node makes; infinite where it does not make a single tensor."""
    found = find_value(node)
    return math.inf if found is None else found.numel() * found.element_size()


def transient_bytes(graph: Graph) -> int:
    """The largest number of bytes besides inputs that a graph holds, if it frees each value after its last use."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    freed: dict[int, float] = {}
    held = most = 0.0
    for node, i in place.items():
        if node.op == "call_function" and find_value(node) is not None and not shares_memory(node):
            last = max((place[user] for view in sharing(node) for user in view.users), default=i)
            held += nbytes(node)
            freed[last] = freed.get(last, 0) + nbytes(node)
        most = max(most, held)
        held -= freed.pop(i, 0)
    return int(most)


def shares_memory(node: Node) -> bool:
    """Whether a call makes no memory of its own; a reshape may."""
    if node.target is not aten.reshape.default:
        return is_view(node)
    try:
        bare(value(first_input(node))).view(value(node).shape)
    except RuntimeError:
        return False
    return True


def bare(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, layout and type, without memory."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def split(constants: nn.Module, graph: Graph) -> tuple[GraphModule, GraphModule, list[Node]]:
    """Split a graph into first(*inputs) -> residuals and second(*residuals, vector) -> product.

    Also return the residuals' nodes. The module holds the graph's constants.
    """
    *inputs, vector = graph.find_nodes(op="placeholder")
    late = {vector}
    for node in graph.nodes:
        if not late.isdisjoint(node.all_input_nodes):
            late.add(node)
    kept = cheapest_cut(graph, late)
    (product,) = graph.output_node().all_input_nodes
    halves = (inputs, kept), ([*kept, vector], product)
    first, second = (extract(constants, graph, *half) for half in halves)
    return first, second, kept


def cheapest_cut(graph: Graph, late: set[Node]) -> list[Node]:
    """The values with the fewest bytes from which the late nodes follow by views and cheap operations.

    They are a minimum cut, as in torch's min_cut_rematerialization_partition between forward and backward.
    """
    flow = networkx.DiGraph()
    flow.add_nodes_from(("source", "sink"))
    candidates = worth_keeping(graph, late)
    for node in candidates:
        flow.add_edge((node, "made"), (node, "read"), capacity=nbytes(node))
        if not is_cheap(node):
            flow.add_edge("source", (node, "made"))  # no capacity means infinite capacity
        for user in node.users:
            if user in late or user.op == "output":
                flow.add_edge((node, "read"), "sink")
            elif user in candidates and is_cheap(user):
                flow.add_edge((node, "read"), (user, "made"))
    _, (above, _) = networkx.minimum_cut(flow, "source", "sink")
    kept = [node for node in candidates if (node, "made") in above and (node, "read") not in above]
    return kept + [node for node in graph.find_nodes(op="placeholder") if node not in late]


def worth_keeping(graph: Graph, late: set[Node]) -> dict[Node, None]:
    """The early nodes from which late ones follow by cheap operations, in order: only these can be in the cut."""
    wanted: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "call_function" and node not in late:
            readers = node.users
            if any(user in late or user.op == "output" or (user in wanted and is_cheap(user)) for user in readers):
                wanted.add(node)
    return {node: None for node in graph.nodes if node in wanted}


def is_cheap(node: Node) -> bool:
    """Whether a call costs little more than reading its inputs, and does not copy to another device."""
    if node.meta.get("moves"):
        return False
    return is_view(node) or node.target is operator.getitem or getattr(node.target, "overloadpacket", None) in CHEAP


def extract(constants: nn.Module, whole: Graph, inputs: Sequence[Node], results: Node | Sequence[Node]) -> GraphModule:
    """The function from the values of some nodes to those of others; its code is generated at the first call."""
    graph, copies = Graph(), {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = node.meta
    wanted, queue = set(inputs), [results] if isinstance(results, Node) else [*results]
    while queue:
        if (node := queue.pop()) not in wanted:
            wanted.add(node)
            queue.extend(node.all_input_nodes)
    for node in whole.nodes:
        if node in wanted and node not in copies:
            copies[node] = copied(node, graph, copies)
    graph.output(copies[results] if isinstance(results, Node) else [copies[node] for node in results])
    return _LazyGraphModule(constants, graph)


def duplicate(graph: Graph) -> Graph:
    """A copy of a graph."""
    new, copies = Graph(), {}
    for node in graph.nodes:
        if node.op == "output":
            new.output(map_arg(node.args[0], copies.__getitem__))
        else:
            copies[node] = copied(node, new, copies)
    return new


def copied(node: Node, graph: Graph, copies: dict[Node, Node]) -> Node:
    """Copy a node to another graph, like `graph.node_copy` but in a fraction of the time."""
    copy = graph.create_node(node.op, node.target)
    copy.args = map_arg(node.args, copies.__getitem__)
    if node.kwargs:
        copy.kwargs = map_arg(node.kwargs, copies.__getitem__)
    copy.meta = node.meta.copy()
    return copy


def add_call(graph: Graph, target: Callable, arguments: tuple, keywords: dict | None = None) -> Node:
    """Add a node that calls a function, like `graph.call_function` but faster.

    PyTorch's own searches the arguments for symbols, which do not occur here.
    """
    node = graph.create_node("call_function", target)
    node.args = arguments
    if keywords:
        node.kwargs = keywords
    return node
