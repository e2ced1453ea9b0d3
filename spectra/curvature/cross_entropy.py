"""Cross entropy: softmax over classes, with class weights, ignored targets, smoothing and soft targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spectra.curvature.losses import mismatch
from spectra.errors import SpectraError


@dataclass(frozen=True)
class CrossEntropy:
    """`torch.nn.CrossEntropyLoss`: classes along dimension 1, or last where the targets' shape says so.

    `class_dim` (1 or -1) decides; without it, integer targets that both readings fit are refused.
    """

    class_weights: Tensor | None = None  # (C,)
    ignore_index: int = -100
    label_smoothing: float = 0.0
    class_dim: int | None = None

    def __post_init__(self):
        if self.class_dim not in (None, 1, -1):
            raise SpectraError(f"--loss cross_entropy: class_dim is {self.class_dim!r}; give 1 (PyTorch's) or -1")

    def rows(self, output: Tensor, targets: Tensor) -> Tensor:
        soft = targets.is_floating_point()
        if output.ndim < 2:
            raise SpectraError(
                f"--loss cross_entropy: the output of shape {tuple(output.shape)} has no dimension of classes; "
                "let the model return (batch, classes)"
            )
        if soft and output.shape != targets.shape:
            if self._class_dims(output, targets):
                raise mismatch("cross_entropy", output, targets, "labels are real numbers; store them as integers")
            raise mismatch("cross_entropy", output, targets)
        if soft and self.ignore_index >= 0:
            raise SpectraError(
                f"--loss cross_entropy: ignore_index is {self.ignore_index}, but targets are real; leave it out"
            )
        dims = [self._soft_dim] if soft else self._class_dims(output, targets)
        if not dims:
            raise mismatch("cross_entropy", output, targets)
        if len(dims) > 1:
            raise SpectraError(
                f"--loss cross_entropy: classes may be dimension 1 or the last of the output {tuple(output.shape)}; "
                "write cross_entropy?class_dim=1 (as PyTorch has it) or ?class_dim=-1"
            )
        rows = output.movedim(dims[0], -1).flatten(0, -2)
        if self.class_weights is not None and len(self.class_weights) != rows.shape[1]:
            raise SpectraError(
                f"--loss cross_entropy: weight has {len(self.class_weights)} numbers for {rows.shape[1]} classes; "
                "give one for each"
            )
        return rows

    def check(self, rows: Tensor, targets: Tensor) -> None:
        if targets.is_floating_point():
            if (targets < 0).any():
                raise SpectraError(
                    "--loss cross_entropy: the targets are real numbers, but not probabilities (some are below 0); "
                    "store class labels as integers, or use --loss mse"
                )
            return
        classes = rows.shape[1]
        wrong = (targets != self.ignore_index) & ((targets < 0) | (targets >= classes))
        if wrong.any():
            raise SpectraError(
                f"--data: label {targets[wrong][0].item()} is out of range for {classes} classes "
                f"(0 to {classes - 1}); give the model more outputs, or mark such targets with ?ignore_index="
            )

    def total(self, rows: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(
            rows,
            self._flat(targets, rows.shape[1]),
            weight=self._weights(rows),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )

    def weight(self, targets: Tensor) -> float:
        # PyTorch's mean over soft targets does not divide by class weights.
        if targets.is_floating_point() or self.class_weights is None:
            return self.examples(targets)
        kept = targets[targets != self.ignore_index]
        if kept.numel() and kept.max() >= len(self.class_weights):
            raise SpectraError(
                f"--loss cross_entropy: weight has {len(self.class_weights)} numbers, but the data have label "
                f"{kept.max().item()}; give one number for each class"
            )
        return self.class_weights.double().cpu()[kept.long().cpu()].sum().item()

    def examples(self, targets: Tensor) -> int:
        if targets.is_floating_point():
            return targets.numel() // targets.shape[self._soft_dim]
        return int((targets != self.ignore_index).sum())

    def hits(self, rows: Tensor, targets: Tensor) -> Tensor:
        targets = self._flat(targets, rows.shape[1])
        if targets.is_floating_point():
            return rows.argmax(dim=1) == targets.argmax(dim=1)
        kept = targets != self.ignore_index
        return rows.argmax(dim=1)[kept] == targets[kept]

    def scales(self, rows: Tensor, targets: Tensor) -> Tensor:
        targets = self._flat(targets, rows.shape[1])
        weights = self._weights(rows)
        if weights is None:
            weights = rows.new_ones(rows.shape[1])
        smooth = self.label_smoothing
        if targets.is_floating_point():
            labels = (1 - smooth) * targets + smooth / rows.shape[1]
            return labels.to(rows.dtype) @ weights[:, None]
        kept = targets != self.ignore_index
        own = weights[targets.where(kept, 0)]
        return ((1 - smooth) * own + smooth * weights.mean()).where(kept, 0)[:, None]

    def expected(self, rows: Tensor, vectors: Tensor) -> Tensor:
        # r = p - e_c with probability p_c: the sum over c of p_c r (r'u), written out with a_c = (p - e_c)'u.
        p = rows.softmax(dim=1)
        a = (p * vectors).sum(dim=1, keepdim=True) - vectors
        return p * (p * a).sum(dim=1, keepdim=True) - p * a

    def draw(self, rows: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        p = rows.softmax(dim=1)
        cumulative = p.double().cumsum(dim=1)
        target = uniform(0)[:, None] * cumulative[:, -1:]
        label = torch.searchsorted(cumulative.contiguous(), target, right=True).clamp(max=rows.shape[1] - 1)
        return p - torch.zeros_like(p).scatter(1, label, 1.0)

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

    def _weights(self, rows: Tensor) -> Tensor | None:
        return None if self.class_weights is None else self.class_weights.to(rows)
