"""Compute sigmoid and softmax without cancellation, even if the model is certain.

Where p is near 1, rounding loses 1 - p, and with it the gradients p - y and the curvature p (1 - p) of every example
that is fitted well. So no number near 1 is subtracted from 1 here: a sigmoid is computed from exp(-|x|), and a softmax
from the gaps between the largest logit and the others,

    p_top = 1 / (1 + S),  p_j = exp(z_j - z_top) / (1 + S),  S = sum of exp(z_j - z_top) over j != top,

which keeps p, 1 - p and their derivatives by autograd to a few roundings of each, down to denormal numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def distance_from_zero(logits: Tensor) -> Tensor:
    """|x|, with derivative 1 at zero; the second derivative of torch.abs is not an ordinary tensor."""
    return logits * torch.where(logits < 0, -1, 1).to(logits.dtype)


def both_sigmoids(logits: Tensor) -> tuple[Tensor, Tensor]:
    """sigma(x) and 1 - sigma(x) = sigma(-x), each to a few roundings."""
    small = distance_from_zero(logits).neg().exp()
    large, small = 1 / (1 + small), small / (1 + small)
    below = logits < 0
    return small.where(below, large), large.where(below, small)


def top_class(logits: Tensor) -> Tensor:
    """The class of the largest logit of each row (E, C), the first of equals: (E, 1)."""
    return logits.detach().argmax(dim=1, keepdim=True)


def gaps_to(logits: Tensor, top: Tensor) -> Tensor:
    """z_j - z_top (E, C); only the small tensor is negated, in every derivative too."""
    return logits + logits.gather(1, top).neg()


def others(gaps: Tensor, top: Tensor) -> Tensor:
    """exp(z_j - z_top) of gaps (E, C), and zero where j is the top class itself."""
    return (gaps + torch.zeros_like(gaps).scatter(1, top, -math.inf)).exp()


@dataclass(frozen=True)
class Softmax:
    """The probabilities of the classes, and the complement 1 - p of each."""

    top: Tensor  # (E, 1): the class of the largest
    probabilities: Tensor  # (E, C)
    complements: Tensor  # (E, C): 1 - p

    def less_label(self, labels: Tensor) -> Tensor:
        """p - e_y of labels y (E, 1): (E, C)."""
        return self.probabilities.scatter(1, labels, -self.complements.gather(1, labels))

    def centred(self, vectors: Tensor) -> Tensor:
        """(p - e_c)'u of all classes c, for each row u of (E, C): the mean of u under p less its entries."""
        u = gaps_to(vectors, self.top)  # a constant subtracted changes nothing; zero where p may be 1
        return (self.probabilities * u).sum(dim=1, keepdim=True) - u


def softmax(logits: Tensor) -> Softmax:
    """The softmax of each row of logits (E, C), without cancellation."""
    top = top_class(logits)
    beside = others(gaps_to(logits, top), top)
    total = beside.sum(dim=1, keepdim=True)
    beside = beside / (1 + total)
    probabilities = beside.scatter(1, top, 1 / (1 + total))
    return Softmax(top, probabilities, (1 - beside).scatter(1, top, total / (1 + total)))
