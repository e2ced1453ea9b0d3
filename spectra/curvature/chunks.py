"""Products J'M J with logits made in chunks of tokens, so that memory never holds more than one chunk of them.

Logits are z = h W' + b, with h the hidden state of each token. So J = (dz/dh) J_h + (dz/dW) J_W + (dz/db) J_b, and the
large factors dz/d. are applied chunk by chunk; their transposes too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spectra.curvature.engine.differentiation import Apply, combined_gradient
from spectra.problem.autograd_graph import leaf_of, nodes_behind
from spectra.problem.batch import Batch
from spectra.problem.head import head_inputs, tokens_of
from spectra.problem.problem import Problem
from spectra.problem.recomputation import after
from spectra.problem.tokens import Head


class HeadJacobian:
    """The Jacobians of a head's input, weight and bias by the parameters on one batch, linearised once.

    The derivative of one that depends on no chosen parameter is None.
    """

    def __init__(self, problem: Problem, batch: Batch, head: Head):
        self.problem, layer = problem, head.layer(problem.model)
        self.values = (head_inputs(problem, batch, head), layer.weight, layer.bias)
        chosen = {id(p) for p in problem.leaves}
        self.used = [value is not None and depends(value, chosen) for value in self.values]
        self.outputs = [value.view_as(value) for value in self._used(self.values)]
        self.dummies = [torch.zeros_like(output, requires_grad=True) for output in self.outputs]
        self.parts = torch.autograd.grad(
            self.outputs,
            problem.leaves,
            self.dummies,
            retain_graph=True,
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

    def times(self, vector: Tensor, leaves: slice | None = None) -> list[Tensor | None]:
        """The derivatives of input, weight and bias in the direction of a vector (n,), or (n_l,) for some leaves."""
        parts = self.parts[leaves or slice(None)]
        found = iter(combined_gradient(parts, self.dummies, self.problem.tensors(vector, leaves or slice(None))))
        return [next(found) if used else None for used in self.used]

    def transposed_times(self, slopes: Sequence[Tensor | None], leaves: slice | None = None) -> Tensor:
        """The transpose of `times`, (n,) or (n_l,)."""
        inputs = self.problem.leaves[leaves or slice(None)]
        return self.problem.vector(combined_gradient(self.outputs, inputs, self._used(slopes)))

    def _used(self, values: Sequence[Tensor | None]) -> list[Tensor]:
        return [value for value, used in zip(values, self.used, strict=True) if used and value is not None]


def depends(tensor: Tensor, chosen: set[int]) -> bool:
    """Whether a tensor is a leaf with one of these ids, or computed from one."""
    return id(tensor) in chosen or any(id(leaf_of(node)) in chosen for node in nodes_behind([tensor]))


def linearised_by_chunks(
    middle: Callable[[Problem, Batch, Tensor], Apply], problem: Problem, batch: Batch, head: Head
) -> Apply:
    """The batch's term v -> J'M(J v) of a matrix, where `middle(problem, tokens, logits)` is M on some tokens."""
    jacobian = HeadJacobian(problem, batch, head)
    hidden, weight, bias = (None if value is None else value.detach() for value in jacobian.values)
    assert hidden is not None
    assert weight is not None

    def apply(vector: Tensor, leaves: slice | None = None) -> Tensor:
        by_hidden, by_weight, by_bias = jacobian.times(vector, leaves)
        late = next(x for x in (by_hidden, by_weight, by_bias) if x is not None)
        slopes, for_weight, for_bias = [], None, None
        for part in tokens_of(problem, batch, head, len(hidden)):
            some = after(hidden[part.cut], late)
            along = moved(some, weight, by_hidden if by_hidden is None else by_hidden[part.cut], by_weight, by_bias)
            slope = middle(problem, part, F.linear(some, weight, bias))(along)
            if by_hidden is not None:
                slopes.append(slope @ weight)
            if by_weight is not None:
                for_weight = slope.T @ some if for_weight is None else torch.addmm(for_weight, slope.T, some)
            if by_bias is not None:
                for_bias = slope.sum(dim=0) if for_bias is None else for_bias + slope.sum(dim=0)
        return jacobian.transposed_times([torch.cat(slopes) if slopes else None, for_weight, for_bias], leaves)

    return apply


def moved(
    hidden: Tensor, weight: Tensor, by_hidden: Tensor | None, by_weight: Tensor | None, by_bias: Tensor | None
) -> Tensor:
    """The derivative of h W' + b in the direction of derivatives of h, W and b."""
    total = hidden.new_zeros(len(hidden), len(weight))
    if by_hidden is not None:
        total = torch.addmm(total, by_hidden, weight.T)
    if by_weight is not None:
        total = torch.addmm(total, hidden, by_weight.T)
    return total if by_bias is None else total + by_bias
