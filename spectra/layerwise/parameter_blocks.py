"""Partition the chosen parameters into blocks: layers, the model's first branches, or output channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile, zip_longest

import torch
from torch import Tensor, nn

from spectra.curvature.leaf_blocks import LeafBlocks, leaf_slices
from spectra.errors import SpectraError
from spectra.krylov.block_diagonal import BlockDiagonal
from spectra.krylov.diagonal import Sums
from spectra.operator import SymmetricOperator, in_ieee, mesh_of
from spectra.optimizer.preconditioner import Preconditioner
from spectra.problem.problem import Problem
from spectra.vectors import shard_of, sum_shards
from spectra.wording import outline

BY = ("layer", "module", "channel")


@dataclass(frozen=True)
class ParameterBlock:
    """A block of parameters: their indices in a vector (n,), and the whole weights among them."""

    name: str
    index: Tensor  # (n_l,), rising
    weights: dict[str, tuple[slice, torch.Size]]  # with two dimensions or more: place in the block, and shape

    __repr__ = outline


def parameter_blocks(problem: Problem, by: str) -> list[ParameterBlock]:
    """A partition of the chosen parameters, in their order.

    A block holds, by `layer`, the parameters that one module owns directly; by `module`, those of one branch at the
    first level where the model branches; by `channel`, the weights and the bias of one output channel of a layer.
    """
    labels, ids = labelled(problem, by)
    order, sizes = ids.argsort(stable=True), torch.bincount(ids, minlength=len(labels))
    blocks = [ParameterBlock(name, index, {}) for name, index in zip(labels, order.split(sizes.tolist()), strict=True)]
    first = 0
    for name, p in non_empty(problem).items():
        own = blocks[int(ids[first])]
        if p.ndim > 1 and ids[first] == ids[first + p.numel() - 1]:
            start = int(torch.searchsorted(own.index, first))
            own.weights[name] = (slice(start, start + p.numel()), p.shape)
        first += p.numel()
    return blocks


def non_empty(problem: Problem) -> dict[str, nn.Parameter]:
    """The parameters that are not empty; a layer may have no outputs."""
    return {name: p for name, p in problem.parameters.items() if p.numel()}


def tied(problem: Problem) -> list[str]:
    """A sentence for each chosen parameter that has several names, since it is counted in one block only."""
    names: dict[int, list[str]] = {}
    for name, p in problem.model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    own = ((name, [other for other in names.get(id(p), []) if other != name]) for name, p in problem.parameters.items())
    return [
        f"{name} is the same parameter as {' and '.join(others)}, and is counted under the first name"
        for name, others in own
        if others
    ]


def labelled(problem: Problem, by: str) -> tuple[list[str], Tensor]:
    """The names of the blocks, and the index (n,) of the block of each parameter."""
    if by == "channel":
        return channels(problem)
    paths = {name: name.rpartition(".")[0] or name for name in non_empty(problem)}
    if by == "module":
        paths = first_branches(paths)
    labels = list(dict.fromkeys(paths.values()))
    ids = [torch.full((p.numel(),), labels.index(paths[name])) for name, p in non_empty(problem).items()]
    return labels, torch.cat(ids)


def first_branches(paths: dict[str, str]) -> dict[str, str]:
    """Each path, cut after the first part in which the paths differ."""
    parts = {name: path.split(".") for name, path in paths.items()}
    levels = zip_longest(*parts.values())
    common = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    return {name: ".".join(part[: common + 1]) for name, part in parts.items()}


def channels(problem: Problem) -> tuple[list[str], Tensor]:
    """Blocks by output channel; parameters of a layer with the same number of channels share blocks."""
    modules = dict(problem.model.named_modules())
    counts: dict[tuple[str, int], list[str]] = {}
    placed = {}
    for name, p in non_empty(problem).items():
        layer = name.rpartition(".")[0]
        own = channel_of(modules.get(layer), p)
        count = int(own.max()) + 1
        counts.setdefault((layer, count), []).append(name)
        placed[name] = ((layer, count), own)
    labels: list[str] = []
    starts = {}
    for (layer, count), names in counts.items():
        alone = layer and sum(other == layer for other, _ in counts) == 1
        starts[layer, count] = len(labels)
        labels += [f"{layer if alone else names[0]}[{i}]" for i in range(count)]
    return labels, torch.cat([starts[key] + own for key, own in placed.values()])


def channel_of(module: nn.Module | None, p: Tensor) -> Tensor:
    """The output channel of each entry: the first index, or for transposed convolutions the second within its group."""
    if not p.ndim:
        return torch.zeros(1, dtype=torch.int64)
    own = torch.arange(p.shape[0])
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and p.ndim > 1:
        group = own // (len(own) // module.groups)
        own = p.shape[1] * group[:, None] + torch.arange(p.shape[1])
    return own.view(*own.shape, *[1] * (p.ndim - own.ndim)).expand(p.shape).reshape(-1)


def root_of(preconditioner: Preconditioner | None) -> Tensor | None:
    """The diagonal of P^-1/2 (n,), or None without P. Raises SpectraError if P is not diagonal."""
    if preconditioner is None:
        return None
    if not preconditioner.diagonal:
        raise SpectraError("`precondition`: P^-1/2 is not diagonal, so it mixes layers; give a diagonal P, or use eig")
    return preconditioner.root


def block_sums(
    problem: Problem, blocks: Iterable[ParameterBlock], operator: SymmetricOperator, root: Tensor | None = None
) -> Sums:
    """A function from a diagonal d (n,) to (2 L,): the sums of d over L blocks, then the sums of d theta^2 / 2.

    The first are traces. The second are saliencies (LeCun, Denker, Solla 1990, *Optimal brain damage*): the rise of the
    loss if the parameters of the block were set to zero, for a diagonal matrix and a gradient of zero. For a
    preconditioned matrix R A R with R = diag(root), theta is divided by root, which gives the saliencies of A.
    """
    part = shard_of(mesh_of(operator), problem.size)
    ids = torch.empty(problem.size, dtype=torch.int64)
    count = 0
    for count, block in enumerate(blocks, start=1):
        ids[block.index] = count - 1
    ids = ids[part]
    theta = problem.parameter_vector()[part]
    theta = theta.cpu().double()
    halves = (theta if root is None else theta / root[part]).square() / 2

    def own(diagonal: Tensor) -> Tensor:
        entries = diagonal.cpu().double()  # on the CPU sums are reproducible
        sums = [torch.bincount(ids, weights, minlength=count) for weights in (entries, entries * halves)]
        return torch.cat(sums).to(diagonal.device)

    return lambda diagonal: sum_shards(own, diagonal).cpu()


def diagonal_blocks(
    operator: SymmetricOperator,
    blocks: Sequence[ParameterBlock],
    problem: Problem,
    name: str,
    memory: int | None = None,
) -> SymmetricOperator:
    """The block-diagonal matrix diag(A_11, ..., A_LL) of the matrix `name` of a problem, in ieee precision.

    If the blocks consist of whole parameters, it has products of its own within `memory` bytes, else it uses those of
    `operator`, the full matrix.
    """
    index = [block.index for block in blocks]
    if (leaves := leaf_slices(problem, index)) is not None:
        return LeafBlocks(problem, name, leaves, memory)
    return BlockDiagonal(in_ieee(operator), [some.to(operator.device) for some in index])
