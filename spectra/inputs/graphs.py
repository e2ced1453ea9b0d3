"""Use graphs of torch_geometric as examples: batches of its loaders, its data sets, and single graphs.

An example is a graph if there is one y for each graph, or a node if there is one y for each node. A batch of graphs can
be cut and joined. Nodes of a graph depend on each other, so a batch of nodes is never cut.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import ConcatDataset, Subset

from spectra.errors import SpectraError
from spectra.inputs.samples import chosen_indices
from spectra.inputs.seeding import seeded
from spectra.problem.batch import Batch
from spectra.problem.model_inputs import Structured
from spectra.wording import counted

GRAPHS, NODES = "graphs", "nodes"
TRAIN_MASK = "train_mask"  # torch_geometric's name for the mask of training nodes
READ_TWICE = 8  # graphs of a data set that are read a second time, to catch augmentation
FEWEST = 2  # required arguments of a model that is called with parts of a graph by name, not with the graph


@dataclass(frozen=True)
class Graphs(Structured):
    """A graph or batch of torch_geometric, with its kind of examples: graphs or nodes."""

    data: Any
    examples: str
    masked: bool = False  # whether only the nodes of `train_mask` are examples

    @property
    def divisible(self) -> bool:
        """Whether the examples are graphs, so that a batch can be cut."""
        return self.examples == GRAPHS

    def whole(self) -> Any:
        """Return the object of torch_geometric."""
        return self.data

    def call(self, model: nn.Module) -> Any:
        """Call the model with its named arguments, such as x, edge_index and batch, or with the whole object.

        If only masked nodes are examples, only their outputs are returned.
        """
        parts = self.parts(model)
        output = model(**parts) if parts else model(self.data)
        if not self.masked:
            return output
        mask = targets_of(self.data, "the batch")[TRAIN_MASK]
        return pytree.tree_map(lambda x: x[mask] if isinstance(x, Tensor) and x.shape[:1] == mask.shape else x, output)

    def parts(self, model: nn.Module) -> dict[str, Any]:
        """Return the parts of the graphs that `forward` takes by name; none where it takes the whole object."""
        try:
            arguments = inspect.signature(model.forward).parameters.values()
        except ValueError:  # such as for a TorchScript model
            return {}
        single = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        required = [a.name for a in arguments if a.default is a.empty and a.kind in single]
        found = {a.name: part for a in arguments if a.kind in single and (part := self.part_named(a.name)) is not None}
        named = len(required) >= FEWEST or required == ["x"]
        return found if named and all(name in found for name in required) else {}

    def part_named(self, name: str) -> Any:
        """Return the part of the graphs with a name, a tensor or a number; None where there is none."""
        if name == "batch" and "batch" not in self.data:
            return torch.zeros(
                self.data.num_nodes, dtype=torch.long, device=targets_of(self.data, "the batch").y.device
            )
        if name in self.data or name.endswith("_dict") or name in ("num_graphs", "num_nodes"):
            return getattr(self.data, name, None)
        return None

    def part(self, cut: slice | Tensor) -> Graphs:
        """Return some of the graphs. Raises SpectraError where examples are nodes."""
        if self.examples == NODES:
            raise SpectraError(
                "`data`: examples are nodes of one graph, which cannot be cut; leave out options that choose some of "
                "them, such as `samples`"
            )
        chosen = cut if isinstance(cut, slice) else cut.cpu()
        return collated(self.data.index_select(chosen), self.data)

    def kind(self) -> Any:
        """Return the names and dtypes of the graphs' tensors, which are equal for graphs that can be joined.

        For nodes, it is an object that equals nothing.
        """
        if self.examples == NODES:
            return object()
        return [(i, name, x.dtype) for i, name, x in tensors_of(self.data)]

    def joined(self, others: Sequence[Graphs]) -> Graphs:
        """Join these graphs and others to one batch. Raises SpectraError where examples are nodes."""
        if self.examples == NODES:
            raise SpectraError("`data`: examples are nodes of a graph, and batches of nodes cannot be joined")
        return collated([graph for each in (self, *others) for graph in each.data.to_data_list()], self.data)


@dataclass(frozen=True)
class Skeleton:
    """Graphs without their tensors, and the places of the tensors: (index of the store, name)."""

    data: Any
    examples: str
    masked: bool
    places: tuple[tuple[int, str], ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Skeleton) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((self.places, self.examples))

    def _key(self) -> tuple:
        numbers = {key: value for key, value in vars(self.data).items() if isinstance(value, int)}
        others = [repr(dict(store)) for store in self.data.stores]
        return type(self.data), self.examples, self.masked, self.places, numbers, others


def tensors_of(data: Any) -> list[tuple[int, str, Tensor]]:
    """List the tensors of an object of torch_geometric, each with the index of its store and its name."""
    return [(i, name, x) for i, store in enumerate(data.stores) for name, x in store.items() if isinstance(x, Tensor)]


def flattened(graphs: Graphs) -> tuple[list[Tensor], Skeleton]:
    """Separate graphs into their tensors and a skeleton."""
    bare = copy.copy(graphs.data)
    found = tensors_of(bare)
    for i, name, _ in found:
        del bare.stores[i][name]
    places = tuple((i, name) for i, name, _ in found)
    return [x for _, _, x in found], Skeleton(bare, graphs.examples, graphs.masked, places)


def restored(tensors: Iterable[Tensor], skeleton: Any) -> Graphs:
    """Put tensors back into a skeleton: the inverse of `flattened`."""
    data = copy.copy(skeleton.data)
    for (i, name), tensor in zip(skeleton.places, tensors, strict=True):
        data.stores[i][name] = tensor
    return Graphs(data, skeleton.examples, skeleton.masked)


pytree.register_pytree_node(Graphs, flattened, restored)


def is_graph(value: Any) -> bool:
    """Whether a value is a graph of torch_geometric, or a batch of them."""
    geometric = sys.modules.get("torch_geometric.data.data")  # imported already if there is a graph
    return geometric is not None and isinstance(value, geometric.BaseData)


def are_graphs(value: Any) -> bool:
    """Whether a value is a graph, or a data set or list of single graphs. Items of a data set are not read."""
    if isinstance(value, Subset | ConcatDataset):
        return are_graphs(value.dataset if isinstance(value, Subset) else value.datasets[0])
    if isinstance(value, list | tuple):
        return len(value) > 0 and is_graph(value[0]) and not hasattr(value[0], "num_graphs")
    geometric = sys.modules.get("torch_geometric.data.dataset")
    return is_graph(value) or (geometric is not None and isinstance(value, geometric.Dataset))


def read_graphs(source: Any, samples: int | None, seed: int, name: str) -> Batch:
    """Read the examples of a graph, or of a data set or list of graphs, or `samples` of them, chosen with the seed.

    Raises SpectraError.
    """
    if is_graph(source):
        batch = batch_of(source, 0, name)
        return batch if samples is None else batch.part(chosen_indices(len(batch), samples, seed, name))
    chosen = chosen_indices(len(source), samples, seed, name)
    with seeded(seed):
        graphs = [source[i] for i in chosen.tolist()]
        for i, graph in zip(chosen.tolist(), graphs[:READ_TWICE], strict=False):
            if not same(graph, source[i]):
                raise SpectraError(
                    f"`data`: graph {i} of {name} is different when it is read again; switch random augmentation off"
                )
        batch = batch_of(collated(graphs).data, 0, name)
    return replace(batch, indices=chosen) if batch.inputs.examples == GRAPHS else batch


def same(one: Any, two: Any) -> bool:
    """Whether two graphs have the same tensors."""
    (ones, skeleton), (twos, other) = flattened(Graphs(one, GRAPHS)), flattened(Graphs(two, GRAPHS))
    dense = [(x.to_dense(), y.to_dense()) for x, y in zip(ones, twos, strict=False)]
    return skeleton == other and all(x.shape == y.shape and bool((x == y).all()) for x, y in dense)


def batch_of(data: Any, first: int, what: str) -> Batch:
    """Make the batch of a graph or of a batch of graphs, with examples numbered from `first`. Raises SpectraError."""
    store = targets_of(data, what)
    refuse_not_finite(data, what)
    y, graphs, nodes = store.get("y"), getattr(data, "num_graphs", 1), store.num_nodes
    y = y if y is None or y.ndim else y[None]
    if y is None or len(y) == graphs:
        data = data if hasattr(data, "num_graphs") else collated([data]).data
        return Batch(Graphs(data, GRAPHS), y, torch.arange(first, first + graphs))
    if len(y) != nodes:
        raise SpectraError(
            f"`data`: {what} has y of shape {tuple(y.shape)} for {counted(graphs, 'graph')} of {counted(nodes, 'node')}"
            " in all; give one y for each graph (of shape (1, ...) in each) or for each node"
        )
    masked = isinstance(mask := store.get(TRAIN_MASK), Tensor) and mask.shape == (nodes,)
    y = y[mask] if masked else y
    return Batch(Graphs(data, NODES, masked), y, torch.arange(first, first + len(y)))


def targets_of(data: Any, what: str) -> Any:
    """Return the store of a graph that holds the targets: its only one, or in a heterogeneous graph that with y.

    Raises SpectraError where several kinds of nodes have y.
    """
    stores = [store for store in data.stores if "y" in store]
    if len(stores) > 1:
        kinds = ", ".join(str(store._key) for store in stores)
        raise SpectraError(f"`data`: {what} has y for several kinds of nodes ({kinds}); keep y for one kind")
    return stores[0] if stores else data.stores[0]


def refuse_not_finite(data: Any, what: str) -> None:
    """Raise SpectraError where a tensor of a graph holds numbers that are not finite."""
    for _, name, x in tensors_of(data):
        if x.is_floating_point() and not (x if x.layout is torch.strided else x.values()).isfinite().all():
            raise SpectraError(f"`data`: {name} of {what} is not finite; leave such graphs out, or correct them")


def collated(graphs: Sequence[Any], like: Any = None) -> Graphs:
    """Make one batch of graphs, with graphs as examples.

    Args:
        graphs: the graphs.
        like: a batch; if it has batch vectors of further keys, such as x_s_batch, the new batch gets them too.
    """
    from torch_geometric.data import Batch as GeometricBatch

    names = [] if like is None else like.keys()
    more = [name.removesuffix("_batch") for name in names if name.endswith("_batch")]
    made: Any = GeometricBatch.from_data_list(list(graphs), follow_batch=more)
    first = tensors_of(graphs[0])
    return Graphs(made.to(first[0][-1].device) if first else made, GRAPHS)  # PyG moves its new vectors to CUDA only


def graph_notes(model: nn.Module, batches: Sequence[Batch]) -> list[str]:
    """Return notes on how a model is called with graphs, and on nodes as examples."""
    found = [batch.inputs for batch in batches if isinstance(batch.inputs, Graphs)]
    if not found:
        return []
    notes = [f"the model is called with {', '.join(parts)} of the graphs"] if (parts := found[0].parts(model)) else []
    if found[0].examples == NODES:
        masked = f", only those of {TRAIN_MASK}" if found[0].masked else ""
        notes.append(f"examples are nodes of graphs{masked}; their batches are neither cut nor joined")
    return notes
