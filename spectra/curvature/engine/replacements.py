"""Replace functions of PyTorch that lack a second derivative, or have a wrong or slow one, by forms with a good one.

`replacements()` names each as (owner, name, form); `differentiation.twice_differentiable` puts the forms in their
places.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from spectra.curvature.engine.convolutions import CONVOLUTIONS
from spectra.curvature.engine.flex_attention import attention
from spectra.errors import SpectraError

WEIGHT_NORM = import_module("torch.nn.utils.weight_norm")  # as an attribute of its package it is the function
EMBEDDING, EMBEDDING_BAG, SPARSE_COO_TENSOR = torch.embedding, torch.embedding_bag, torch.sparse_coo_tensor
VIEW_AS_COMPLEX, REGISTER = torch.view_as_complex, Tensor.register_hook


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v|, the norm over all dimensions but `dim` (Salimans and Kingma 2016), as `torch._weight_norm`."""
    return g * v / torch.norm_except_dim(v, 2, dim)


def hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    """A form of `torch.nn.functional.hardsigmoid` that can be differentiated twice."""
    return nn.functional.relu6(x + 3) / 6


def embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Tensor:
    """A form of `torch.embedding` with the loss's own derivative: dense, and not divided by how often a row is read."""
    return EMBEDDING(weight, indices, padding_idx)


def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A form of `torch.embedding_bag` made of `embedding`s: the sum (mode 0), mean (1) or maximum (2) over each bag."""
    settings = (include_last_offset, padding_idx)
    with torch.no_grad():
        _, of_bag, sizes, most = EMBEDDING_BAG(
            weight, indices, offsets, False, mode, False, per_sample_weights, *settings
        )
    if mode == 2:
        read = weight.gather(0, most.long())
        return torch.where(sizes[:, None] > 0, read, torch.zeros_like(read)), of_bag, sizes, most
    bags = len(offsets) - include_last_offset
    bag = torch.searchsorted(offsets[:bags].contiguous(), torch.arange(len(indices)).to(offsets), right=True) - 1
    shares = torch.ones_like(indices, dtype=weight.dtype) if per_sample_weights is None else per_sample_weights
    if padding_idx is not None:
        shares = shares * (indices != padding_idx % len(weight))
    summed = weight.new_zeros(bags, weight.shape[1]).index_add(0, bag, shares[:, None] * EMBEDDING(weight, indices))
    return (summed / sizes[:, None].clamp(min=1) if mode else summed), of_bag, sizes, most


def embedding_renorm_(weight: Tensor, indices: Tensor, max_norm: float, norm_type: float = 2.0) -> Tensor:
    """Check that `torch.embedding_renorm_`, which this replaces, would not change the weights.

    Raises SpectraError where the norm of a row is larger than `max_norm`.
    """
    lengths = weight.detach().norm(norm_type, dim=1)
    if (longest := lengths.max().item()) > max_norm * (1 + 10 * torch.finfo(weight.dtype).eps):
        raise SpectraError(
            f"`model`: an embedding of shape {tuple(weight.shape)} changes its weights in every forward pass, since "
            f"rows have norms up to {longest:.4g} and max_norm is {max_norm:g}; first set its weights to "
            f"torch.renorm(weight, {norm_type:g}, 0, {max_norm:g})"
        )
    return weight


def view_as_complex(x: Tensor) -> Tensor:
    """A form of `torch.view_as_complex` whose second derivative gets a tensor with an even storage offset."""
    if not x.requires_grad:
        return VIEW_AS_COMPLEX(x)
    x = x.view_as(x)  # so that the hook ends with this view
    REGISTER(x, lambda slope: slope * 1)
    return VIEW_AS_COMPLEX(x)


class SparseTensor(torch.autograd.Function):
    """The sparse tensor `make(values)` of `values` at `indices`.

    PyTorch's own derivative by the values has no graph, so it cannot be differentiated again.
    """

    @staticmethod
    def forward(ctx, values: Tensor, indices: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Make the sparse tensor."""
        ctx.indices, ctx.dtype = tuple(indices), values.dtype
        return make(values)

    @staticmethod
    def backward(ctx, *slopes: Tensor):
        """The derivative by the values."""
        (slope,) = slopes
        dense = slope.to_dense() if slope.is_sparse else slope
        return dense[ctx.indices].to(ctx.dtype), None, None


def sparse_coo_tensor(indices: Any, values: Any = None, *arguments, requires_grad: bool = False, **keywords) -> Tensor:
    """A form of `torch.sparse_coo_tensor` that can be differentiated twice by its values."""
    if not (isinstance(values, Tensor) and values.requires_grad):
        return SPARSE_COO_TENSOR(indices, values, *arguments, requires_grad=requires_grad, **keywords)
    indices = torch.as_tensor(indices)
    return SparseTensor.apply(values, indices, lambda v: SPARSE_COO_TENSOR(indices, v, *arguments, **keywords))


class Checkpoint:
    """Non-reentrant checkpointing, in place of `torch.utils.checkpoint.CheckpointFunction`.

    Reentrant checkpointing does not support autograd.grad, and has no graph where its inputs are those of the model.
    """

    @staticmethod
    def apply(function: Callable, preserve: bool, *arguments):
        """Run a function now, and again in the backward pass."""
        return checkpoint.checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=preserve)


def grouped_mm(
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """A form of `torch._grouped_mm`, made of one product for each group, for any dtype.

    Groups are ranges that end at `offs`: of the rows of a 2D `a` with a 3D `b`, of the columns of a 2D `b` with a 3D
    `a`, or of the dimension that two matrices share. What lies beyond the last range is 0.
    """
    if offs is None:
        product = a @ b
    else:
        ends = offs.tolist()
        ranges = [slice(*pair) for pair in zip([0, *ends], ends, strict=False)]
        if a.ndim == b.ndim == 2:
            product = torch.stack([a[:, own] @ b[own] for own in ranges])
        elif a.ndim == 2:
            parts = [a[own] @ matrix for own, matrix in zip(ranges, b, strict=True)]
            product = torch.cat([*parts, a.new_zeros(len(a) - ends[-1], b.shape[2])])
        else:
            parts = [matrix @ b[:, own] for own, matrix in zip(ranges, a, strict=True)]
            product = torch.cat([*parts, b.new_zeros(a.shape[1], b.shape[1] - ends[-1])], dim=1)
    product = product if bias is None else product + bias
    return product if out_dtype is None else product.to(out_dtype)


def replacements() -> list[tuple[object, str, Any]]:
    """The functions to replace, each as (owner, name, form)."""
    found = list(REPLACED)
    if flex := sys.modules.get("torch.nn.attention.flex_attention"):  # loaded if the model uses it
        found += [
            (flex, "flex_attention_hop", attention),
            (flex, "_validate_device", lambda *_: None),  # on a CPU the kernels have no derivative at all
            (flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True),  # otherwise it is compiled
        ]
    return [each for each in found if hasattr(each[0], each[1])]  # some are not in every version of PyTorch


REPLACED = [
    (torch, "_weight_norm", weight_norm),
    (WEIGHT_NORM, "_weight_norm", weight_norm),
    (nn.functional, "hardsigmoid", hardsigmoid),
    (torch, "embedding", embedding),
    (torch, "embedding_bag", embedding_bag),
    (torch, "embedding_renorm_", embedding_renorm_),
    (torch, "sparse_coo_tensor", sparse_coo_tensor),
    (checkpoint, "CheckpointFunction", Checkpoint),
    (torch, "view_as_complex", view_as_complex),
    (torch, "_grouped_mm", grouped_mm),
    *CONVOLUTIONS,
]
