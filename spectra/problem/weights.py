"""Weighted targets: a mapping with keys `labels` and `weights` in place of the labels, for any built-in loss.

A target of weight w counts w times, as with class weights: L = sum w_i l_i / sum w_i. Weights have the shape of the
labels, or lack its last dimensions: one per example, token or output. A target of weight 0 is not an example.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from spectra.devices import in_float64
from spectra.errors import SpectraError

LABELS, WEIGHTS = "labels", "weights"


@runtime_checkable
class Weighable(Protocol):
    """The interface of a loss whose targets may have weights."""

    def values(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The values whose sum is the loss: (E, K), or (E, 1)."""
        ...

    def value_weights(self, targets: Tensor) -> Tensor:
        """The weight of each value in the mean, of their shape."""
        ...

    def target_shape(self, targets: Tensor) -> torch.Size:
        """The shape of the targets, which are as many as the values."""
        ...

    def counted(self, targets: Tensor) -> Tensor:
        """Booleans (E,) that say which rows are examples."""
        ...


def weighable(loss: Any) -> Weighable:
    """Cast a loss to `Weighable`; call it only after `weights_of` has found weights."""
    return cast(Weighable, loss)


def labels_of(loss: Any, targets: Any) -> Any:
    """The targets without their weights; targets of a user's loss are returned unchanged.

    Raises SpectraError if the targets of a built-in loss are not one tensor.
    """
    if not isinstance(loss, Weighable):
        return targets
    found = targets[LABELS] if has_labels(targets) else targets
    if not isinstance(found, Tensor):
        came = "none" if targets is None else f"a {type(targets).__name__}"
        if isinstance(targets, Mapping):
            came += f" with keys {', '.join(map(str, targets))}"
        name = getattr(loss, "name", type(loss).__name__)
        raise SpectraError(
            f"`loss` {name}: expected targets as one tensor, or a mapping with keys labels and weights, got {came}; "
            "for other targets write a loss function (output, target)"
        )
    return found


def has_labels(targets: Any) -> bool:
    """Whether targets are labels with or without weights."""
    return isinstance(targets, Mapping) and LABELS in targets and set(targets) <= {LABELS, WEIGHTS}


def weights_of(loss: Any, targets: Any) -> Tensor | None:
    """The weights of the values of a built-in loss, in float64 and in the shape of the values; None if there are none.

    Raises SpectraError if they do not fit the labels.
    """
    if not (isinstance(loss, Weighable) and has_labels(targets) and WEIGHTS in targets):
        return None
    labels, weights = labels_of(loss, targets), targets[WEIGHTS]
    shape = loss.target_shape(labels)
    if tuple(weights.shape) != tuple(shape[: weights.ndim]):
        raise SpectraError(
            f"`data`: weights of shape {tuple(weights.shape)} do not fit labels of shape {tuple(labels.shape)}; give "
            "one number per example, or one per target"
        )
    spread = in_float64(weights).reshape(*weights.shape, *(1 for _ in shape[weights.ndim :])).expand(shape)
    return spread.reshape(loss.value_weights(labels).shape)
