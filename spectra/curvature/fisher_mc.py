"""The Fisher matrix by sampled labels: J'M J with M = s r r', the mean over `mc_samples` labels drawn from p.

The labels are keyed on the seed and the example's index: it is one fixed matrix, however the data are split.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spectra.curvature.definition import Definition, distribution_of, label_scales
from spectra.curvature.engine.differentiation import Apply
from spectra.curvature.keyed_uniforms import uniforms
from spectra.curvature.roots import by_example
from spectra.problem.batch import Batch
from spectra.problem.problem import Problem
from spectra.problem.tokens import Tokens


class SampledFisher(Definition):
    """The Fisher matrix by labels drawn from the model's own distribution."""

    needs_distribution = True
    draws_labels = True

    def middle(self, problem: Problem, batch: Batch, rows: Tensor) -> Apply:
        """M u = s r (r'u), summed over the drawn labels."""
        roots = sampled(problem, batch, rows.detach())

        def middle(vectors: Tensor) -> Tensor:
            flat = vectors.flatten(1)
            return torch.stack([r * (r * flat).sum(dim=1, keepdim=True) for r in roots]).sum(dim=0).view_as(vectors)

        return middle

    def root(self, problem: Problem, batch: Batch, rows: Tensor) -> Tensor:
        """One row sqrt(s) r for each drawn label."""
        return by_example(torch.stack(sampled(problem, batch, rows)), batch)

    def most_root_rows(self, problem: Problem, rows: Tensor) -> int:
        """One row for each drawn label."""
        return problem.mc_samples


def sampled(problem: Problem, batch: Batch, rows: Tensor) -> list[Tensor]:
    """For each sample sqrt(s) r (E, K), with r = d(-log p) / df and s divided by W and the number of samples."""
    loss = distribution_of(problem, batch)
    scales = label_scales(problem, batch, rows) / (problem.weight * problem.mc_samples)
    return [
        scales.sqrt() * loss.draw(rows, drawn(problem.seed, batch, len(rows), sample)).flatten(1)
        for sample in range(problem.mc_samples)
    ]


def drawn(seed: int, batch: Batch, rows: int, sample: int) -> Callable[[int], Tensor]:
    """The uniform random numbers of a batch's rows; a chunk of tokens gets the same ones as in the whole batch."""
    if not isinstance(batch, Tokens):
        return uniforms(seed, batch.indices, rows, sample)
    every, shared = uniforms(seed, batch.whole.indices, batch.count, sample), batch.shared

    def uniform(draw: int) -> Tensor:
        if (sample, draw) not in shared:
            shared[sample, draw] = every(draw)
        return shared[sample, draw][batch.cut]

    return uniform
