"""The loss `output`: the model's own scalar output, such as an energy of positions, or one of several outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from spectra.errors import SpectraError
from spectra.problem.losses import CustomLoss
from spectra.wording import counted


def itself(output: Any, _targets: Any) -> Any:
    """Return the output."""
    return output


@dataclass(frozen=True)
class OutputLoss(CustomLoss):
    """The model's output as the loss, one number per example; targets are ignored, and may be missing.

    If the model returns several numbers per example, `index` selects one, from 0.
    """

    function: Callable[[Any, Any], Any] = itself
    name: str = "output"
    index: int | None = None

    linear: ClassVar[bool] = True  # its second derivative by the output is zero

    def rows(self, output: Tensor, targets: Any) -> Tensor:
        """The number of each example (b,). Raises SpectraError as `called` does."""
        return self.called(output, targets)

    def total(self, rows: Any, targets: Any, count: int | None = None) -> Tensor:
        """The sum of the numbers."""
        return rows.sum()

    def called(self, output: Any, targets: Any) -> Any:
        """The number of each example (b,). Raises SpectraError if the output is not one number per example."""
        if not isinstance(output, Tensor):
            raise SpectraError(
                f"`loss` output: the model returned a {type(output).__name__}, not a tensor; select one with `output`"
            )
        if output.ndim == 0:
            raise SpectraError(
                "`loss` output: the model returned one number for all examples; return one per example, shape (b,)"
            )
        values = self.function(output, targets).reshape(len(output), -1)
        width = values.shape[1]
        if self.index is None and width > 1:
            raise SpectraError(
                f"`loss` output: the model returns {counted(width, 'number')} per example; select one, e.g. "
                f"output?index={width - 1}"
            )
        if self.index is not None and self.index >= width:
            raise SpectraError(
                f"`loss` output?index={self.index}: the model returns {counted(width, 'number')} per example; "
                f"indices go from 0 to {width - 1}"
            )
        return values[:, self.index or 0]
