"""Trace the product of one batch as a graph, and cut it where it first depends on the vector.

    linearise(problem, batch)(v) = second(first(batch), v)

`first` runs once a batch, `second` once a product. One trace serves all batches of a shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.utils import _pytree as pytree

from spectra.curvature.engine.autotuning import Autotuner, fingerprint
from spectra.curvature.engine.differentiation import Apply, switched
from spectra.curvature.engine.layouts import choose_layout
from spectra.defaults import IEEE
from spectra.errors import describe
from spectra.memory import out_of_memory
from spectra.problem.batch import Batch
from spectra.problem.problem import Problem
from spectra.random_numbers import draw_keys, normal_rows

Linearise = Callable[[Problem, Batch], Apply]


class Untraceable(RuntimeError):
    """The product cannot be written as one graph; the message says why."""


class HoistedProduct:
    """The traced product of any batch of one shape: `apply(residuals(batch), vector)`.

    It is traced on the first of a problem's batches of that shape, and checked on the last against `linearise` itself,
    so that nothing of one batch or one vector is taken for a constant. Where something in the graph may depend on
    values of the data, such as the number of tokens that an expert gets, it is checked on every batch. Parameters are
    constants of the graph, so it is valid at this point only. Raises Untraceable.
    """

    def __init__(
        self,
        linearise: Linearise,
        problem: Problem,
        batches: Sequence[Batch],
        choices: Autotuner | None = None,
        precision: str = IEEE,
    ):
        # These import networkx, which takes a tenth of a second.
        from spectra.curvature.engine.execution import Execution
        from spectra.curvature.engine.graphs import nbytes, sizes_depend_on_values, split
        from spectra.curvature.engine.precision import LowerPrecision, multiplies

        try:
            known = memory_of(problem.model)
            with noticing_values() as read:
                constants, graph = trace(linearise, problem, batches[0])
            varies = read or sizes_depend_on_values(graph) or not memory_of(constants).keys() <= known.keys()
            checked = batches if varies else batches[-1:]
            self.first, self.second, kept = split(constants, graph)
            self.execution = Execution(self.second)
            shortened = precision != IEEE and multiplies(self.second)
            self.lower = LowerPrecision(self.second, precision) if shortened else None
            self.channels_last = problem.device.type == "cpu" and convolves(self.first)
            if choices and problem.device.type == "cuda" and convolves(self.first) and has_images(batches[0]):
                of = fingerprint(self.execution.fingerprint, problem.processes.rank)
                vector = torch.ones(problem.size, dtype=problem.dtype, device=problem.device)
                choose_layout(self, batches[0], vector, choices, of)
            made = sum(nbytes(node) for node in kept if node.op != "placeholder")
            pairs = zip(leaves(batches[0]), leaves(self._laid_out(batches[0])), strict=True)
            self.residual_bytes = made + sum(new.nbytes for old, new in pairs if new is not old)  # of one batch
            before = [(buffer, buffer.clone()) for buffer in constants.buffers()] if varies else []
            for batch in checked:
                self._check(linearise, problem, batch)
                if any(((now != then) & (then == then)).any() for now, then in before):
                    raise Untraceable("a tensor that the model keeps between calls depends on the data")
        except Exception as error:
            if out_of_memory(error) or isinstance(error, Untraceable):
                raise
            raise Untraceable(describe(error)) from error

    def residuals(self, batch: Batch) -> list[Tensor]:
        """The tensors of a batch that products need, including its own."""
        with torch.no_grad():
            return self.first(*leaves(self._laid_out(batch)))

    def apply(self, residuals: Sequence[Tensor], vector: Tensor) -> Tensor:
        """The batch's part of the product with a vector (n,)."""
        with torch.no_grad():
            return self.execution.graph(1)(*residuals, vector.contiguous())  # a strided column is slow

    def _laid_out(self, batch: Batch) -> Batch:
        return replace(batch, inputs=pytree.tree_map(channels_last, batch.inputs)) if self.channels_last else batch

    def _check(self, linearise: Linearise, problem: Problem, batch: Batch) -> None:
        keys = draw_keys(torch.Generator().manual_seed(problem.seed), 1)
        (vector,) = normal_rows(keys, slice(0, problem.size), problem.dtype, problem.device)
        batch = self._laid_out(batch)  # another layout rounds differently, and a ReLU may switch
        wanted, residuals = linearise(problem, batch)(vector), self.residuals(batch)
        for _ in range(2):  # the first product must leave the residuals as they are
            found = self.apply(residuals, vector)
            if not (found - wanted).norm() <= torch.finfo(problem.dtype).eps ** 0.5 * wanted.norm():
                raise Untraceable("the traced product differs from autograd's")


def trace(linearise: Linearise, problem: Problem, batch: Batch) -> tuple[nn.Module, Graph]:
    """Trace the batch's product as a plain graph of its tensors and a vector; also return a module of its constants."""
    from spectra.curvature.engine.graphs import Mutation, simplify
    from spectra.curvature.engine.recorder import ValuesRead, record
    from spectra.curvature.engine.rewrites import improve

    _ = problem.weight, problem.examples, problem.writes_inputs  # numbers of all data, computed before the trace

    def product(inputs, targets, indices, vector):
        return linearise(problem, Batch(inputs, targets, indices))(vector)

    vector = torch.zeros(problem.size, dtype=problem.dtype, device=problem.device)
    arguments = (batch.inputs, batch.targets, batch.indices, vector)
    try:
        with unfused(problem.model):
            constants, graph = record(product, arguments)
    except ValuesRead as error:
        raise Untraceable(str(error)) from error
    try:
        simplify(graph)
    except Mutation:  # rare: PyTorch's functionalize handles every view, but takes as long as the trace
        module = GraphModule(constants, graph)
        with torch.no_grad():
            constants, graph = record(torch.func.functionalize(module), pytree.tree_leaves(arguments))
        simplify(graph)
    improve(graph)
    return constants, graph


@contextmanager
def noticing_values() -> Iterator[list[str]]:
    """A list of the calls inside this context that read values of tensors, and that the recorder does not see."""
    read: list[str] = []

    def noticed(function):
        def call(*arguments, **keywords):
            read.append(function.__name__)
            return function(*arguments, **keywords)

        return call

    with switched([(owner, name, noticed(getattr(owner, name))) for owner, name in READING]):
        yield read


# Functions that pass values to Python, or use them as sizes.
READING = (
    *((Tensor, name) for name in ("tolist", "numpy", "storage", "tensor_split", "__repr__", "__format__")),
    *((torch, name) for name in ("tensor_split", "ctc_loss")),
)


def memory_of(module: nn.Module) -> dict[int, torch.UntypedStorage]:
    """The storages of a module's parameters and buffers, by their identity.

    A constant of a trace in another storage may have been made from the data unseen: by torch.tensor([x[0], x[1]]), in
    another thread or library, or by assignment to a buffer's `data`.
    """
    tensors = chain(module.parameters(), module.buffers())
    memory = (tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided)
    return {each._cdata: each for each in memory}


def convolves(module: GraphModule) -> bool:
    """Whether a graph has convolutions."""
    return bool(module.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution.default))


def channels_last(x):
    """Convert images to channels last; return any other value as it is."""
    return x.contiguous(memory_format=torch.channels_last) if is_images(x) else x


def is_images(x) -> bool:
    """Whether a value is a batch of images in floating-point numbers."""
    return isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point()


def has_images(batch: Batch) -> bool:
    """Whether images are among the inputs."""
    return any(map(is_images, pytree.tree_leaves(batch.inputs)))


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Switch off oneDNN's LSTM, which cannot be traced, inside this context."""
    mkldnn, lstm = torch.backends.mkldnn, any(isinstance(layer, nn.LSTM) for layer in model.modules())
    enabled, *_ = mkldnn.set_flags(_enabled=False if lstm else None)
    try:
        yield
    finally:
        mkldnn.set_flags(_enabled=enabled)


def leaves(batch: Batch) -> list:
    """The tensors and other values of a batch."""
    return pytree.tree_leaves((batch.inputs, batch.targets, batch.indices))


def shape_of(batch: Batch) -> tuple:
    """A key that is equal for batches that can use one trace."""
    values, structure = pytree.tree_flatten((batch.inputs, batch.targets, batch.indices))
    return structure, tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in values)
