"""Walk the graph that autograd has recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor
from torch.autograd.graph import Node


def nodes_behind(tensors: Iterable[Tensor]) -> Iterator[Node]:
    """Yield each node of the graph that leads to these tensors once."""
    nodes = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        yield node
        new = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= new
        nodes.extend(new)


def leaf_of(node: Node | None) -> Tensor | None:
    """The leaf tensor whose gradient a node of the graph accumulates; None for other nodes."""
    return getattr(node, "variable", None)


def names_behind(tensors: Iterable[Tensor]) -> Iterator[str]:
    """Yield the names of the nodes that lead to these tensors, including those inside recomputed functions."""
    for node in nodes_behind(tensors):
        yield node.name()
        yield from getattr(node, "names", ())
