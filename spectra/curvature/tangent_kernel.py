"""The neural tangent kernel: Theta_ij = (1/C) sum over outputs c of <df_c(x_i), df_c(x_j)> (Jacot et al. 2018).

It is a matrix over examples, (N, N), and not over parameters. Its factor for each output is J_c (N, n). The matrix over
parameters from the same factors, (1/C) sum of J_c'J_c, is J'M J with M = I / C, which is what is defined here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.curvature.definition import Definition
from spectra.curvature.engine.differentiation import Apply
from spectra.problem.batch import Batch
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.losses import Loss
from spectra.problem.problem import Problem


@dataclass(frozen=True)
class TangentKernel(Definition):
    """The matrix J'J / C of all outputs, without the loss; its root is for the one output that `output` names."""

    output: int | None = None

    loss_power = 0

    def middle(self, problem: Problem, batch: Batch, rows: Tensor) -> Apply:
        """M u = u / C."""
        outputs = outputs_of(rows, batch)
        return lambda vectors: vectors / outputs

    def root(self, problem: Problem, batch: Batch, rows: Tensor) -> Tensor:
        """The one row for an example that takes its output."""
        assert self.output is not None
        width = rows[0].numel()
        roots = rows.new_zeros(len(batch), 1, len(rows) // len(batch), width)
        roots[:, 0, self.output // width, self.output % width] = 1
        return roots

    def most_root_rows(self, problem: Problem, rows: Tensor) -> int:
        """One row."""
        return 1

    def semidefinite(self, loss: Loss) -> bool:
        """True: the matrix is a sum of squares."""
        return True

    def unsuited(self, loss: Loss) -> str | None:
        """The reason why the kernel is not defined for a loss, with the way out; None where it is."""
        if isinstance(loss, BatchLoss):
            return (
                "a loss of (model, batch) hides the model's output; give a loss of (output, target), or `loss` output"
            )
        return None


def outputs_of(rows: Tensor, batch: Batch) -> int:
    """The number C of outputs of one example."""
    return torch.Size(rows.shape).numel() // len(batch)
