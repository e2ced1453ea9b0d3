"""The Fisher matrix by sampled labels: J'M J with M = s r r', the mean over `mc_samples` labels drawn from p.

The labels are keyed on the seed and the example's index: it is one fixed matrix, however the data are split.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectra.curvature.definition import Definition, distribution_of
from spectra.curvature.engine.differentiation import Apply
from spectra.curvature.keyed_uniforms import uniforms
from spectra.curvature.roots import by_example
from spectra.problem.problem import Batch, Problem


class SampledFisher(Definition):
    """The Fisher matrix by labels drawn from the model's own distribution."""

    needs_distribution = True
    draws_labels = True

    def middle(self, problem: Problem, batch: Batch, rows: Tensor) -> Apply:
        """M u = s r (r'u), summed over the drawn labels."""
        scales, draws = sampled(problem, batch, rows.detach())
        return lambda vectors: scales * sum(r * (r * vectors).sum(dim=1, keepdim=True) for r in draws)

    def root(self, problem: Problem, batch: Batch, rows: Tensor) -> Tensor:
        """One row sqrt(s) r for each drawn label."""
        scales, draws = sampled(problem, batch, rows)
        return by_example(scales.sqrt() * torch.stack(draws), batch)

    def most_root_rows(self, problem: Problem, rows: Tensor) -> int:
        """One row for each drawn label."""
        return problem.mc_samples


def sampled(problem: Problem, batch: Batch, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Scales s (E, 1) or (E, K), divided by W and the number of samples, and for each sample r = d(-log p) / df
    (E, K).
    """
    loss = distribution_of(problem.loss)
    scales = loss.scales(rows, batch.targets) / (problem.weight * problem.mc_samples)
    draws = [
        loss.draw(rows, uniforms(problem.seed, batch.indices, len(rows), sample))
        for sample in range(problem.mc_samples)
    ]
    return scales, draws
