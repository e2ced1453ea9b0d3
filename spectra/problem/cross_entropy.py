"""The cross-entropy loss: softmax over classes, with class weights, ignored targets, smoothing and soft targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.devices import in_float64
from spectra.problem.labels import LabelLoss
from spectra.problem.logits import gaps_to, others, softmax, top_class
from spectra.wording import outline


@dataclass(frozen=True)
class CrossEntropy(LabelLoss):
    """Cross entropy of logits, as `torch.nn.CrossEntropyLoss` computes it.

    Attributes:
        class_weights: a weight for each class (C,); `weight` in PyTorch.
        ignore_index: targets of this value are left out.
        label_smoothing: the share of the uniform distribution in the labels, from 0 to 1.
        class_dim: the dimension of the output that holds classes, 1 or -1 (the last). None: the one that fits the
            shape of the targets; integer targets that fit both are refused.
        reduction: mean or sum.
        shift: whether labels (b, T) are the input tokens, which `load_problem` and commands shift to the next tokens
            when they read data; batches of a `Problem` are not shifted.
    """

    shift: bool = False

    name = "cross_entropy"
    natural = True

    __repr__ = outline

    def values(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The weighted cross entropies (E, 1), without cancellation where the model is certain."""
        # sum_c a_c (log sum exp z - z_c), a_c the weight of label c, in terms of gaps to the largest logit: both sums
        # are over the other classes alone, so that no derivative by the largest is a difference of near equals.
        top, scales = top_class(rows), self.scales(rows, targets)[:, 0]
        gaps = gaps_to(rows, top)
        values = scales * others(gaps, top).sum(dim=1).log1p()
        if self._one_label(targets):
            labels = self._labels(targets)
            values = values - scales.where(labels != top[:, 0], 0) * gaps.gather(1, labels[:, None])[:, 0]
        else:
            values = values - (self._label_weights(rows, targets).scatter(1, top, 0) * gaps).sum(dim=1)
        return values.where(scales != 0, 0)[:, None]

    def expected(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The expectation E[r r'] u over labels of probability p, where r = p - e_y."""
        # r = p - e_c with probability p_c: the sum over c of p_c r (r'u), written out with a_c = (p - e_c)'u.
        found = softmax(rows)
        p, a = found.probabilities, found.centred(vectors)
        return p * (p * a).sum(dim=1, keepdim=True) - p * a

    def draw(self, rows: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        """Draw r (E, C) = p - e_y for labels y of probability p."""
        found = softmax(rows)
        cumulative = in_float64(found.probabilities).cumsum(dim=1)
        target = uniform(0)[:, None] * cumulative[:, -1:]
        label = torch.searchsorted(cumulative.contiguous(), target, right=True).clamp(max=rows.shape[1] - 1)
        return found.less_label(label.to(rows.device))
