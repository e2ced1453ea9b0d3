"""The cross-entropy loss: softmax over classes, with class weights, ignored targets, smoothing and soft targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.errors import ArgumentError, SpectraError
from spectra.problem.logits import gaps_to, others, softmax, top_class
from spectra.problem.losses import mismatch
from spectra.wording import counted


@dataclass(frozen=True)
class CrossEntropy:
    """The loss `torch.nn.CrossEntropyLoss`.

    Classes are along dimension 1, or along the last where the targets' shape says so. `class_dim` (1 or -1) decides;
    without it, integer targets that both readings fit are refused. `shift` is for labels (b, T) that are the tokens of
    the inputs: they become the next tokens when data are read; batches of a Problem are taken as they are.
    """

    class_weights: Tensor | None = None  # (C,)
    ignore_index: int = -100
    label_smoothing: float = 0.0
    class_dim: int | None = None
    shift: bool = False

    def __post_init__(self):
        if not 0 <= self.label_smoothing <= 1:
            raise ArgumentError(f"`label_smoothing` {self.label_smoothing!r}: give a number from 0 to 1")
        if self.class_dim not in (None, 1, -1):
            raise SpectraError(f"`loss` cross_entropy: class_dim is {self.class_dim!r}; give 1 (PyTorch's) or -1")

    def rows(self, output: Tensor, targets: Tensor) -> Tensor:
        """The output as rows (E, C), one a target.

        Raises SpectraError where the shapes do not fit, or fit in two ways.
        """
        soft = targets.is_floating_point()
        if output.ndim < 2:
            raise SpectraError(
                f"`loss` cross_entropy: the output of shape {tuple(output.shape)} has no dimension of classes; "
                "let the model return (batch, classes)"
            )
        if soft and output.shape != targets.shape:
            if self._class_dims(output, targets):
                raise mismatch("cross_entropy", output, targets, "labels are real numbers; store them as integers")
            raise mismatch("cross_entropy", output, targets)
        if soft and self.ignore_index >= 0:
            raise SpectraError(
                f"`loss` cross_entropy: ignore_index is {self.ignore_index}, but targets are real; leave it out"
            )
        dims = [self._soft_dim] if soft else self._class_dims(output, targets)
        if not dims:
            raise mismatch("cross_entropy", output, targets)
        if len(dims) > 1:
            raise SpectraError(
                f"`loss` cross_entropy: classes may be dimension 1 or the last of the output {tuple(output.shape)}; "
                "write cross_entropy?class_dim=1 (as PyTorch has it) or ?class_dim=-1"
            )
        rows = output.movedim(dims[0], -1).flatten(0, -2)
        if self.class_weights is not None and len(self.class_weights) != rows.shape[1]:
            raise SpectraError(
                f"`loss` cross_entropy: weight has {counted(len(self.class_weights), 'number')} for "
                f"{counted(rows.shape[1], 'class', 'classes')}; give one for each"
            )
        return rows

    def check(self, rows: Tensor, targets: Tensor) -> None:
        """Raise SpectraError where a label is out of range, or a soft target is below 0."""
        if targets.is_floating_point():
            if (targets < 0).any():
                raise SpectraError(
                    "`loss` cross_entropy: the targets are real numbers, but not probabilities (some are below 0); "
                    "store class labels as integers, or use `loss` mse"
                )
            return
        classes = rows.shape[1]
        wrong = (targets != self.ignore_index) & ((targets < 0) | (targets >= classes))
        if wrong.any():
            raise SpectraError(
                f"`data`: label {targets[wrong][0].item()} is out of range for {classes} classes "
                f"(0 to {classes - 1}); give the model more outputs, or mark such targets with ?ignore_index="
            )

    def total(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The sum of the weighted cross entropies, without cancellation where the model is certain."""
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
        return values.where(scales != 0, 0).sum()

    def weight(self, targets: Tensor) -> float:
        """The sum of the class weights of the targets that count, or their number."""
        # PyTorch's mean over soft targets does not divide by class weights.
        if targets.is_floating_point() or self.class_weights is None:
            return self.examples(targets)
        kept = targets[targets != self.ignore_index]
        if kept.numel() and kept.max() >= len(self.class_weights):
            raise SpectraError(
                f"`loss` cross_entropy: weight has {len(self.class_weights)} numbers, but the data have label "
                f"{kept.max().item()}; give one number for each class"
            )
        return self.class_weights.double().cpu()[kept.long().cpu()].sum().item()

    def examples(self, targets: Tensor) -> int:
        """The number of targets that are not ignored."""
        if targets.is_floating_point():
            return targets.numel() // targets.shape[self._soft_dim]
        return int((targets != self.ignore_index).sum())

    def hits(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Whether the largest logit is that of the label, for targets that are not ignored: booleans (counted,)."""
        targets = self._flat(targets, rows.shape[1])
        if targets.is_floating_point():
            return rows.argmax(dim=1) == targets.argmax(dim=1)
        kept = targets != self.ignore_index
        return rows.argmax(dim=1)[kept] == targets[kept]

    def scales(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The class weight of each target (E, 1), zero where it is ignored."""
        if not self._one_label(targets):
            return self._label_weights(rows, targets).sum(dim=1, keepdim=True)
        own = self._class_weights(rows)[self._labels(targets)]
        return own.where(targets.reshape(-1) != self.ignore_index, 0)[:, None]

    def expected(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The expectation E[r r'] u over labels of probability p, where r = p - e_y."""
        # r = p - e_c with probability p_c: the sum over c of p_c r (r'u), written out with a_c = (p - e_c)'u.
        found = softmax(rows)
        p, a = found.probabilities, found.centred(vectors)
        return p * (p * a).sum(dim=1, keepdim=True) - p * a

    def draw(self, rows: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        """Draw r (E, C) = p - e_y for labels y of probability p."""
        found = softmax(rows)
        cumulative = found.probabilities.double().cumsum(dim=1)
        target = uniform(0)[:, None] * cumulative[:, -1:]
        label = torch.searchsorted(cumulative.contiguous(), target, right=True).clamp(max=rows.shape[1] - 1)
        return found.less_label(label)

    @property
    def _soft_dim(self) -> int:
        return self.class_dim or 1  # the shape of soft targets, being the output's, can't tell

    def _class_dims(self, output: Tensor, targets: Tensor) -> list[int]:
        """The dimensions of the output that may be the classes, given targets that are labels."""
        # Sequences that the model has joined: (b T, C) for targets (b, T).
        joined = tuple(output.shape[:-1]) == (targets.numel(),) != (len(targets),)
        fits = {1: targets.shape == (output.shape[0], *output.shape[2:])}
        fits[output.ndim - 1] = targets.shape == output.shape[:-1] or joined
        return [dim for dim in fits if fits[dim] and self.class_dim in (None, dim, dim - output.ndim)]

    def _flat(self, targets: Tensor, classes: int) -> Tensor:
        if targets.is_floating_point():
            return targets.movedim(self._soft_dim, -1).reshape(-1, classes)
        return targets.reshape(-1).long()  # smaller integers are refused by PyTorch, and bytes index as a mask

    def _one_label(self, targets: Tensor) -> bool:
        """Whether each example has one label, and no other class any part of it."""
        return not targets.is_floating_point() and not self.label_smoothing

    def _labels(self, targets: Tensor) -> Tensor:
        """(E,) integers, 0 where a target is ignored."""
        labels = targets.reshape(-1).long()
        return labels.where(labels != self.ignore_index, 0)

    def _label_weights(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The weight of each class as a label of each example, smoothing mixed in; zeros where a target is ignored."""
        weights, smooth = self._class_weights(rows), self.label_smoothing
        labels = self._flat(targets, rows.shape[1])
        if not targets.is_floating_point():
            labels = torch.zeros_like(rows).scatter(1, self._labels(targets)[:, None], 1.0)
        mixed = weights * ((1 - smooth) * labels.to(rows.dtype) + smooth / rows.shape[1])
        if targets.is_floating_point():
            return mixed
        return mixed.where((targets.reshape(-1) != self.ignore_index)[:, None], 0)

    def _class_weights(self, rows: Tensor) -> Tensor:
        return rows.new_ones(rows.shape[1]) if self.class_weights is None else self.class_weights.to(rows)
