"""The Fisher matrix: J'M J with M = s E_{y~p}[r r'], r = d(-log p(y|f)) / df, the expectation taken exactly."""

from __future__ import annotations

from torch import Tensor

from spectra.curvature.definition import Definition, distribution_of, label_scales, scaled
from spectra.curvature.engine.differentiation import Apply
from spectra.problem.batch import Batch
from spectra.problem.problem import Problem


class Fisher(Definition):
    """The exact Fisher matrix."""

    needs_distribution = True
    root_is_of_full_rank = True

    def middle(self, problem: Problem, batch: Batch, rows: Tensor) -> Apply:
        """M u = s E[r r'] u over W, the expectation over the model's own labels."""
        rows, expected = rows.detach(), distribution_of(problem, batch).expected
        scales = label_scales(problem, batch, rows) / problem.weight
        return lambda vectors: scaled(scales, expected(rows, vectors))
