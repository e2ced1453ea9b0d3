"""The base class of losses of class labels: rows, class weights, ignored targets, soft targets, and smoothing."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spectra.devices import in_float64
from spectra.errors import ArgumentError, SpectraError
from spectra.problem.losses import RESHAPE, mismatch
from spectra.wording import counted


@dataclass(frozen=True)
class LabelLoss:
    """A loss of class labels, integers or probabilities: each target is an example.

    Classes are along dimension 1, or along the last if the shape of the targets requires it. `class_dim` (1 or -1)
    decides; without it, integer targets that fit both are refused.
    """

    class_weights: Tensor | None = None  # (C,)
    ignore_index: int = -100
    label_smoothing: float = 0.0
    class_dim: int | None = None
    reduction: str = "mean"

    name: ClassVar[str]
    linear: ClassVar[bool] = False  # whether the second derivative in the output is zero
    convex: ClassVar[bool] = True  # in the output
    natural: ClassVar[bool] = False  # whether the output is p's natural parameter, so that ggn equals fisher

    def __post_init__(self):
        if not 0 <= self.label_smoothing <= 1:
            raise ArgumentError(f"`label_smoothing` {self.label_smoothing!r}: give a number from 0 to 1")
        if self.class_dim not in (None, 1, -1):
            raise SpectraError(f"`loss` {self.name}: class_dim is {self.class_dim!r}; give 1 (PyTorch's) or -1")

    def rows(self, output: Tensor, targets: Tensor) -> Tensor:
        """The output as rows (E, C), one per target.

        Raises SpectraError if the shapes do not fit, or fit in two ways.
        """
        soft = targets.is_floating_point()
        if output.ndim < 2:
            raise SpectraError(
                f"`loss` {self.name}: the output of shape {tuple(output.shape)} has no dimension of classes; "
                "return (batch, classes) from the model"
            )
        if soft and output.shape != targets.shape:
            if self._class_dims(output, targets):
                raise mismatch(self.name, output, targets, "the labels are floating-point; store them as integers")
            raise mismatch(self.name, output, targets)
        if soft and self.ignore_index >= 0:
            raise SpectraError(
                f"`loss` {self.name}: ignore_index is {self.ignore_index}, but the targets are probabilities; omit it"
            )
        dims = [self._soft_dim] if soft else self._class_dims(output, targets)
        if not dims:
            last = self.class_dim is not None and targets.shape == output.shape[:-1]
            way_out = f"the last dimension holds the classes: give `loss` {self.name}?class_dim=-1, or move it to 1"
            raise mismatch(self.name, output, targets, way_out if last else self._reshaped(output, targets))
        if len(dims) > 1:
            raise SpectraError(
                f"`loss` {self.name}: classes may be dimension 1 or the last of the output {tuple(output.shape)}; "
                f"give {self.name}?class_dim=1 (PyTorch's choice) or ?class_dim=-1"
            )
        rows = output.movedim(dims[0], -1).flatten(0, -2)
        if self.class_weights is not None and len(self.class_weights) != rows.shape[1]:
            raise SpectraError(
                f"`loss` {self.name}: weight has {counted(len(self.class_weights), 'number')} for "
                f"{counted(rows.shape[1], 'class', 'classes')}; give one for each"
            )
        return rows

    def _reshaped(self, output: Tensor, targets: Tensor) -> str:
        """How to bring integer targets of another shape into that of labels."""
        if targets.shape == output.shape:
            return "labels are integers: give the index of each class, y.argmax(1), or probabilities, y.float()"
        if targets.ndim == output.ndim and targets.shape[-1] == 1 and self._class_dims(output, targets[..., 0]):
            return "labels have no such last dimension: give y[..., 0]"
        return RESHAPE

    def check(self, rows: Tensor, targets: Tensor) -> None:
        """Raise SpectraError if a label is out of range, or a soft target is below 0."""
        if targets.is_floating_point():
            if (targets < 0).any():
                raise SpectraError(
                    f"`loss` {self.name}: the targets are floating-point, but not probabilities (some are negative); "
                    "store class labels as integers, or use `loss` mse"
                )
            return
        classes = rows.shape[1]
        wrong = (targets != self.ignore_index) & ((targets < 0) | (targets >= classes))
        if wrong.any():
            label = int(targets[wrong][0])
            way_out = "give the model more outputs, or ignore such targets with ?ignore_index="
            if label < 0:
                way_out = f"count classes from 0, or ignore such targets with ?ignore_index={label}"
            raise SpectraError(
                f"`data`: label {label} is out of range for {classes} classes (0 to {classes - 1}); {way_out}"
            )

    def total(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The sum of the losses of all targets."""
        return self.values(rows, targets).sum()

    @abstractmethod
    def values(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The loss of each target times its class weight, (E, 1)."""

    def weight(self, targets: Tensor) -> float:
        """The sum of the class weights of the targets that count, or their number."""
        # PyTorch's mean over soft targets does not divide by class weights.
        if targets.is_floating_point() or self.class_weights is None:
            return self.examples(targets)
        kept = targets[targets != self.ignore_index]
        if kept.numel() and kept.max() >= len(self.class_weights):
            raise SpectraError(
                f"`loss` {self.name}: weight has {len(self.class_weights)} numbers, but the data have label "
                f"{kept.max().item()}; give one number for each class"
            )
        return self.class_weights.cpu().double()[kept.long().cpu()].sum().item()

    def examples(self, targets: Tensor) -> int:
        """The number of targets that are not ignored."""
        if targets.is_floating_point():
            return targets.numel() // targets.shape[self._soft_dim]
        return int((targets != self.ignore_index).sum())

    def value_weights(self, targets: Tensor) -> Tensor:
        """The weight of each value in the mean, (E, 1): its class weight, or zero if the target is ignored."""
        kept = self.counted(targets)
        if targets.is_floating_point() or self.class_weights is None:
            return in_float64(kept)[:, None]
        weights = in_float64(self.class_weights.to(targets.device)[self._labels(targets)])
        return weights.where(kept.to(weights.device), 0)[:, None]

    def target_shape(self, targets: Tensor) -> torch.Size:
        """The shape of the targets, without the dimension of classes of soft targets."""
        if targets.is_floating_point():
            return targets.movedim(self._soft_dim, -1).shape[:-1]
        return targets.shape

    def counted(self, targets: Tensor) -> Tensor:
        """Booleans (E,) that say which targets are examples: those that are not ignored."""
        if targets.is_floating_point():
            return torch.ones(self.examples(targets), dtype=torch.bool, device=targets.device)
        return targets.reshape(-1) != self.ignore_index

    def hits(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Whether the largest logit is that of the label, for targets that are not ignored: booleans (counted,)."""
        targets = self._flat(targets, rows.shape[1])
        if targets.is_floating_point():
            return rows.argmax(dim=1) == targets.argmax(dim=1)
        kept = targets != self.ignore_index
        return rows.argmax(dim=1)[kept] == targets[kept]

    def scales(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The class weight of each target (E, 1), or zero if it is ignored."""
        if not self._one_label(targets):
            return self._label_weights(rows, targets).sum(dim=1, keepdim=True)
        own = self._class_weights(rows)[self._labels(targets)]
        return own.where(targets.reshape(-1) != self.ignore_index, 0)[:, None]

    @property
    def _soft_dim(self) -> int:
        return self.class_dim or 1  # soft targets have the shape of the output, which does not tell

    def _class_dims(self, output: Tensor, targets: Tensor) -> list[int]:
        """The dimensions of the output that may be the classes, given targets that are labels."""
        # Sequences that the model has flattened: (b T, C) for targets (b, T).
        joined = tuple(output.shape[:-1]) == (targets.numel(),) != (len(targets),)
        fits = {1: targets.shape == (output.shape[0], *output.shape[2:])}
        fits[output.ndim - 1] = targets.shape == output.shape[:-1] or joined
        return [dim for dim in fits if fits[dim] and self.class_dim in (None, dim, dim - output.ndim)]

    def _flat(self, targets: Tensor, classes: int) -> Tensor:
        if targets.is_floating_point():
            return targets.movedim(self._soft_dim, -1).reshape(-1, classes)
        return targets.reshape(-1).long()  # smaller integers are refused by PyTorch, and bytes index as a mask

    def _one_label(self, targets: Tensor) -> bool:
        """Whether each target is one class label, without smoothing."""
        return not targets.is_floating_point() and not self.label_smoothing

    def _labels(self, targets: Tensor) -> Tensor:
        """The labels as integers (E,), or 0 for ignored targets."""
        labels = targets.reshape(-1).long()
        return labels.where(labels != self.ignore_index, 0)

    def _label_weights(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The weight of each class as a label of each example, smoothing mixed in; zero for ignored targets."""
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
