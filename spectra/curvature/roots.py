"""M = S'S in output space, for every matrix of the form J'M J: F = S J is then a factor of it, A = F'F.

A row of S concerns the D outputs at one position of one unit. Units are the examples of a batch, or the batch itself
for fisher-batch; positions are those of a sequence whose targets are examples. A function of ROOTS gives all rows of S
on a batch as a tensor (units, s, positions, D).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spectra.curvature.engine.differentiation import Apply, gradient
from spectra.curvature.output_space import output_gradient
from spectra.curvature.random_labels import uniforms
from spectra.errors import SpectraError
from spectra.problem.losses import CustomLoss
from spectra.problem.problem import Batch, Problem


@dataclass(frozen=True)
class Part:
    """The rows of S that one batch has; those that are zero are left out."""

    batch: Batch
    roots: Tensor  # (units, s, positions, D)

    @cached_property
    def kept(self) -> Tensor:
        """Which rows are not zero, (units, s, positions), in the order that they have in F."""
        return (self.roots != 0).any(dim=3)

    @cached_property
    def size(self) -> int:
        return int(self.kept.sum())

    @cached_property
    def kinds(self) -> list[list[int]]:
        """The (i, position) that some unit has a row for: one pass J'u over the batch gives the rows of one kind."""
        return self.kept.any(dim=0).nonzero().tolist()

    def of_kind(self, i: int, position: int) -> Tensor:
        """The sum of the rows of S of one kind, as many numbers as the model's rows."""
        rows = torch.zeros_like(self.roots[:, i])
        rows[:, position] = self.roots[:, i, position]
        return rows

    def times(self, rows: Tensor) -> Tensor:
        """S u, (size,), for the model's rows u."""
        return (self.roots * rows.reshape(len(self.roots), 1, self.roots.shape[2], -1)).sum(dim=3)[self.kept]

    def transposed_times(self, weights: Tensor) -> Tensor:
        """S'w for weights (size,), of as many numbers as the model's rows."""
        full = self.roots.new_zeros(self.kept.shape)
        full[self.kept] = weights.to(full)
        return (full[..., None] * self.roots).sum(dim=1)

    def units(self) -> Iterator[Part]:
        """Each unit that has rows by itself, in order."""
        whole, count = self.batch, len(self.roots)
        singles = [whole] if count == 1 else [whole.part(slice(unit, unit + 1)) for unit in range(count)]
        units = (Part(single, roots[None]) for single, roots in zip(singles, self.roots, strict=True))
        return (unit for unit in units if unit.size)


def ggn(problem: Problem, batch: Batch, rows: Tensor) -> Tensor:
    """M = d2 l / df2, by autograd in output space."""
    leaf, slope = output_gradient(problem, batch, rows, create_graph=True)

    def middle(vectors: Tensor) -> Tensor:
        return gradient(slope, (leaf,), vectors)[0] / problem.weight

    values, vectors = decomposed(middle, leaf.detach())
    if isinstance(problem.loss, CustomLoss):  # ours are convex and take each example by itself
        refuse_tied_examples(middle, values, vectors, leaf.detach(), problem.loss.name)
        refuse_indefinite(values, problem.dtype, problem.loss.name)
    return by_example(root(values, vectors, problem.dtype), batch)


def fisher(problem: Problem, batch: Batch, rows: Tensor) -> Tensor:
    """M = s E_{y~p}[r r'], r = d(-log p(y|f)) / df."""
    scales = problem.loss.scales(rows, batch.targets) / problem.weight
    blocks = decomposed(lambda vectors: scales * problem.loss.expected(rows, vectors), rows)
    return by_example(root(*blocks, problem.dtype), batch)


def fisher_mc(problem: Problem, batch: Batch, rows: Tensor) -> Tensor:
    """M = s r r' for the labels drawn, one row for each."""
    scales = problem.loss.scales(rows, batch.targets) / (problem.weight * problem.mc_samples)
    draws = [
        problem.loss.draw(rows, uniforms(problem.seed, batch.indices, len(rows), sample))
        for sample in range(problem.mc_samples)
    ]
    return by_example(scales.sqrt() * torch.stack(draws), batch)


def fisher_empirical(problem: Problem, batch: Batch, rows: Tensor) -> Tensor:
    """M = g g' with g = d l / df for the data's labels."""
    scale = problem.examples**0.5 / problem.weight
    return by_example(scale * output_gradient(problem, batch, rows)[1][None], batch)


def fisher_batch(problem: Problem, batch: Batch, rows: Tensor) -> Tensor:
    """(|b| / N) G G', G the mean gradient of the batch: one row for all of it."""
    count = problem.loss.examples(batch.targets)
    scale = (problem.examples / count) ** 0.5 / problem.weight if count else 0.0
    return scale * output_gradient(problem, batch, rows)[1].reshape(1, 1, 1, -1)


ROOTS = {
    "ggn": ggn,
    "fisher": fisher,
    "fisher-mc": fisher_mc,
    "fisher-empirical": fisher_empirical,
    "gradient-covariance": fisher_empirical,
    "fisher-batch": fisher_batch,
}


def most_rows(problem: Problem, name: str, rows: Tensor) -> int:
    """How many rows S has for one of the model's, at most; for fisher-batch, for the batch."""
    outputs = rows[0].numel()
    return {"ggn": outputs, "fisher": outputs, "fisher-mc": problem.mc_samples}.get(name, 1)


def by_example(roots: Tensor, batch: Batch) -> Tensor:
    """(s, *rows.shape), with len(batch) * positions rows, as (units, s, positions, D)."""
    positions = roots.shape[1] // len(batch)
    return roots.reshape(len(roots), len(batch), positions, -1).transpose(0, 1)


def decomposed(middle: Apply, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (E, D), rising, and eigenvectors (E, D, D) of M's blocks, one a row, in float64."""
    basis = torch.eye(rows[0].numel()).to(rows)
    columns = [middle(unit.view_as(rows[0]).expand_as(rows)).reshape(len(rows), -1) for unit in basis]
    blocks = torch.stack(columns, dim=2).double()
    return torch.linalg.eigh((blocks + blocks.mT) / 2)


def root(values: Tensor, vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows sqrt(lambda) v', (D, E, D): those of an eigenvalue that rounding alone has made are zero."""
    rounding = values.shape[1] * torch.finfo(dtype).eps * values.amax(dim=1, keepdim=True)
    kept = values.where(values > rounding, 0)
    return (kept.sqrt()[:, None, :] * vectors).permute(2, 0, 1).to(dtype)


def refuse_indefinite(values: Tensor, dtype: torch.dtype, name: str) -> None:
    if values.min() < -(torch.finfo(dtype).eps ** 0.5) * values.abs().max():
        raise SpectraError(
            f"`method` gram: `loss` {name} is not convex in the model's output (its curvature goes down to "
            f"{values.min():.2g}), so its ggn has no Gram matrix; choose another method"
        )


def refuse_tied_examples(middle: Apply, values: Tensor, vectors: Tensor, rows: Tensor, name: str) -> None:
    """Raise SpectraError where M is more than its blocks: where the loss of one example depends on another."""
    drawn = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = middle(drawn.to(rows)).double().reshape(*values.shape, 1)
    blocks = vectors @ (values[:, :, None] * (vectors.mT @ drawn.to(vectors).reshape(*values.shape, 1)))
    if (whole - blocks).norm() > torch.finfo(rows.dtype).eps ** 0.5 * whole.norm():
        raise SpectraError(
            f"`method` gram: `loss` {name} ties examples of a batch together, so its ggn has no Gram matrix; "
            "return one value for each example, or choose another method"
        )
