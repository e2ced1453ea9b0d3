"""The GGN of cross entropy as a sum of class, cross-class and within-class parts, and their shares of its eigenvalues.

For example i of class c, delta_icc' = J_i'(e_c' - p_i) is minus the gradient for label c', and with weights
w_icc' = s_i p_ic' / W the GGN is the sum of w_icc' delta_icc' delta_icc'' (Papyan 2020, *Traces of class/cross-class
structure pervade deep learning spectra*). With the weighted means delta_cc' over the examples of a class, and delta_c
over c' != c, the GGN is the sum of three levels, each positive semi-definite:

    class   sum_c  w_c delta_c delta_c' + w_cc delta_cc delta_cc'      w_c = sum of w_cc' over c' != c
    cross   sum_c sum_{c' != c}  w_cc' (delta_cc' - delta_c)(delta_cc' - delta_c)'
    within  sum_c sum_c' sum_i  w_icc' (delta_icc' - delta_cc')(delta_icc' - delta_cc')'

Papyan treats the terms c' = c separately. Their means belong to the first level: for each example
sum_c' p_c' (e_c' - p) = 0, so w_cc delta_cc = -w_c delta_c, and this level is
sum_c (1 + w_cc / w_c) w_cc delta_cc delta_cc'.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from spectra.curvature.definition import label_scales
from spectra.curvature.engine.batches import own_batches
from spectra.curvature.engine.differentiation import explained, gradient, twice_differentiable
from spectra.curvature.factor.gram import Factor
from spectra.curvature.factor.inner_products import add_gram
from spectra.devices import device_of_vectors
from spectra.errors import SpectraError
from spectra.krylov.results import Eigenpairs
from spectra.memory import memory_share
from spectra.problem.batch import Batch
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.logits import softmax
from spectra.problem.problem import Problem
from spectra.vectors import full_tensor


@dataclass(frozen=True)
class ClassMeans:
    """The vectors sqrt(w_cc') delta_cc' for all classes c and labels c'; their outer products sum to class + cross."""

    rows: Tensor  # (C, C, n)
    weights: Tensor  # (C, C), w_cc', float64; those of a class sum to its share of the examples
    products: int  # spent: a pass J'u over the data is half a product

    @property
    def class_scales(self) -> Tensor:
        """The factors (C,) sqrt(1 + w_cc / w_c) from rows c' = c to the first level; zero where a class is absent."""
        own = self.weights.diagonal()
        others = (self.weights - own.diag()).sum(dim=1)  # subtracting before summing loses no digits if p_cc is near 1
        return torch.where(others > 0, (others + own) / others, 0).sqrt()


@dataclass(frozen=True)
class ClassStructure:
    """The shares of the three levels in the trace and in leading eigenvalues of the GGN, without weight decay."""

    trace: float
    class_trace: float
    cross_trace: float
    class_eigenvalues: Tensor  # (C,) falling, of the first level alone
    mean_eigenvalues: Tensor  # (C^2,) falling, of class + cross: the j-th is no larger than the GGN's
    eigenvalues: Tensor  # (k,) of the GGN, as given
    attribution: Tensor  # (k, 3): the shares of class, cross and within in each u'Gu
    overlaps: Tensor  # (k, 2): |P u|^2 in the span of all delta_c and of all delta_cc'; by chance C/n, C (C - 1)/n
    products: int

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_eigenvalues)

    @property
    def within_trace(self) -> float:
        """The part of the trace that lies within classes and pairs of classes."""
        return self.trace - self.class_trace - self.cross_trace


def class_structure(problem: Problem, pairs: Eigenpairs, trace: float | None = None) -> ClassStructure:
    """Compute the shares of the three levels in the trace and in the leading eigenpairs `pairs` (k) of the GGN.

    `trace` is the trace without weight decay; None: it is computed exactly. This costs (C - 1) / 2 products if each
    example has one label, C (C - 1) / 2 if it has several, and the exact trace. Raises SpectraError if the loss is not
    cross entropy with integer labels, or C^2 vectors do not fit memory.
    """
    means = class_means(problem)
    products = means.products
    if trace is None:
        factor = Factor(problem, "ggn")
        trace = factor.trace()
        products += factor.products
    rows = means.rows.flatten(0, 1)
    classes, scales = len(means.rows), means.class_scales
    own = slice(0, None, classes + 1)  # the rows c' = c
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    add_gram(gram, rows)
    gram, along = gram.cpu(), (full_tensor(pairs.vectors).to(rows) @ rows.T).cpu().double()
    class_gram = scales[:, None] * gram[own, own] * scales
    values = pairs.values - problem.weight_decay
    class_parts = (scales * along[:, own]).square().sum(dim=1) / values
    mean_parts = along.square().sum(dim=1) / values
    class_trace = class_gram.trace().item()
    inside = partial(share_inside, rounding=torch.finfo(rows.dtype).eps)
    return ClassStructure(
        trace=trace,
        class_trace=class_trace,
        cross_trace=gram.trace().item() - class_trace,
        class_eigenvalues=torch.linalg.eigvalsh(class_gram).flip(0),
        mean_eigenvalues=torch.linalg.eigvalsh(gram).flip(0),
        eigenvalues=values,
        attribution=torch.stack([class_parts, mean_parts - class_parts, 1 - mean_parts], dim=1),
        overlaps=torch.stack([inside(gram[own, own], along[:, own]), inside(gram, along)], dim=1),
        products=products,
    )


def class_means(problem: Problem) -> ClassMeans:
    """Compute all cross-class means, C^2 vectors; for cost and errors see `class_structure`."""
    classes = class_count(problem)
    if classes is None:
        raise SpectraError(
            "`loss`: class means need cross entropy with integer labels; choose `loss` cross_entropy, and store labels "
            "as integers"
        )
    needed, room = classes**2 * problem.size * problem.dtype.itemsize, memory_share(problem.device)
    if needed > room:
        raise SpectraError(
            f"`params`: {classes**2:,} cross-class means of {problem.size:,} numbers take {needed / 2**30:.1f} GiB, "
            f"and {room / 2**30:.1f} GiB are available; choose fewer parameters"
        )
    place = device_of_vectors(problem.device)
    sums = torch.zeros(classes, classes, problem.size, dtype=problem.dtype, device=place)
    weights = torch.zeros(classes, classes, dtype=torch.float64, device=place)
    with twice_differentiable(problem.model), explained():
        for batch in own_batches(problem):
            for part, labels in by_class(problem, batch):
                add_sums(problem, part, labels, sums, weights)
    sums, weights = problem.processes.total(sums), problem.processes.total(weights)
    several = any(problem.labels(batch).ndim > 1 for batch in problem.batches)
    passes = (classes - 1) * (classes if several else 1)
    return ClassMeans(with_own_label(sums, weights), weights.cpu(), -(-passes // 2))


def class_count(problem: Problem) -> int | None:
    """The number of classes C, from the output for one batch; None if the loss is not cross entropy with labels."""
    first = problem.batches[0]
    if not isinstance(problem.loss, CrossEntropy) or problem.labels(first).is_floating_point():
        return None
    with twice_differentiable(problem.model), torch.no_grad():
        return problem.rows(first).shape[1]


def by_class(problem: Problem, batch: Batch) -> Iterator[tuple[Batch, list[int]]]:
    """Yield parts of a batch with their labels: one part per label if examples have one label, else the whole batch."""
    own = problem.labels(batch)
    labels = own.unique().tolist()
    if own.ndim > 1:
        yield batch, labels
        return
    for label in labels:
        yield batch.part((own == label).nonzero().flatten()), [label]


def add_sums(problem: Problem, batch: Batch, labels: list[int], sums: Tensor, weights: Tensor) -> None:
    """Add a batch's sums over i of w_icc' delta_icc' for c' != c to `sums`, and of all w_icc' to `weights`."""
    loss, targets = problem.loss, problem.labels(batch)
    assert isinstance(loss, CrossEntropy)  # as `class_count` has seen
    counted = [label for label in labels if label != loss.ignore_index]
    if not counted:
        return
    rows = problem.rows(batch)
    problem.check(rows, batch)
    found = softmax(rows.detach())
    p = found.probabilities
    w = label_scales(problem, batch, rows.detach()) / problem.weight * p
    own = targets.flatten()
    for c in counted:
        of_class = (own == c)[:, None]
        weights[c] += w.where(of_class, 0).sum(dim=0).to(weights.device)
        for label in range(p.shape[1]):
            if label == c:
                continue
            away = -found.less_label(torch.full_like(own[:, None], label, dtype=torch.int64))
            slope = (w[:, label, None] * away).where(of_class, 0)
            sums[c, label] += problem.vector(gradient(rows, problem.leaves, slope)).to(sums.device)


def with_own_label(sums: Tensor, weights: Tensor) -> Tensor:
    """Compute sqrt(w_cc') delta_cc' from the sums w_cc' delta_cc' for c' != c; over all labels the sums add to zero."""
    for c, of_class in enumerate(sums):
        of_class[c] = -of_class.sum(dim=0)
    scales = torch.where(weights > 0, weights.rsqrt(), 0)
    return sums.mul_(scales.to(sums)[:, :, None])


def share_inside(gram: Tensor, along: Tensor, rounding: float) -> Tensor:
    """The share |P u|^2 (k,) of unit vectors u in the span of rows R, from R R' (m, m) and u'R' (k, m)."""
    lengths = gram.diagonal().sqrt()
    held = lengths > 0
    lengths = lengths[held]
    values, basis = torch.linalg.eigh(gram[held][:, held] / lengths[:, None] / lengths)
    kept = values > len(values) * rounding  # rows have norm 1: smaller values may be rounding
    return ((along[:, held] / lengths) @ basis[:, kept]).square().div(values[kept]).sum(dim=1)
