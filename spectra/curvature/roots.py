"""Compute the root S of a matrix M = S'S in output space from the eigenvalues of M's blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from spectra.curvature.engine.differentiation import Apply
from spectra.devices import device_of_vectors, in_float64
from spectra.errors import SpectraError
from spectra.problem.batch import Batch
from spectra.random_numbers import normal_like


def by_example(roots: Tensor, batch: Batch) -> Tensor:
    """Rows (s, *rows.shape), with len(batch) * positions rows, rearranged to (units, s, positions, D).

    Raises SpectraError where the rows are not those of single examples.
    """
    positions = roots.shape[1] // len(batch)
    if not positions:
        text = "the first dimension of some tensors in the model's output is not the number of examples"
        raise SpectraError(f"`method` gram: {text}; choose another method, or leave such tensors out of the output")
    return roots.reshape(len(roots), len(batch), positions, -1).transpose(0, 1)


def decomposed(middle: Apply, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (E, D), rising, and eigenvectors (E, D, D) of M's blocks, one a row, in float64."""
    basis = torch.eye(rows[0].numel()).to(rows)
    columns = [middle(unit.view_as(rows[0]).expand_as(rows)).reshape(len(rows), -1) for unit in basis]
    blocks = in_float64(torch.stack(columns, dim=2))
    return torch.linalg.eigh((blocks + blocks.mT) / 2)


def root_of(values: Tensor, vectors: Tensor, like: Tensor) -> Tensor:
    """The root's rows sqrt(lambda) v' (D, E, D), with the dtype and device of `like`; zero where lambda is rounding."""
    rounding = values.shape[1] * torch.finfo(like.dtype).eps * values.amax(dim=1, keepdim=True)
    kept = values.where(values > rounding, 0)
    return (kept.sqrt()[:, None, :] * vectors).permute(2, 0, 1).to(like)


def refuse_indefinite(values: Tensor, dtype: torch.dtype, loss: str, matrix: str) -> None:
    """Raise SpectraError where a block of M has an eigenvalue below zero by more than rounding."""
    if values.min() < -(torch.finfo(dtype).eps ** 0.5) * values.abs().max():
        raise SpectraError(
            f"`method` gram: {loss} is not convex in the model's output (its curvature goes down to "
            f"{values.min():.2g}), so its {matrix} has no Gram matrix; choose another method"
        )


def refuse_tied_examples(middle: Apply, values: Tensor, vectors: Tensor, rows: Tensor, loss: str, matrix: str) -> None:
    """Raise SpectraError where M is more than its blocks: where the loss of one example depends on another."""
    there = rows.to(device_of_vectors(rows.device))
    drawn = normal_like(there, torch.Generator().manual_seed(0), torch.float64)
    whole = in_float64(middle(drawn.to(rows))).reshape(*values.shape, 1)
    blocks = vectors @ (values[:, :, None] * (vectors.mT @ drawn.to(vectors).reshape(*values.shape, 1)))
    if (whole - blocks).norm() > torch.finfo(rows.dtype).eps ** 0.5 * whole.norm():
        raise SpectraError(
            f"`method` gram: {loss} mixes the examples of a batch, so its {matrix} has no Gram matrix; "
            "return one value for each example, or choose another method"
        )
