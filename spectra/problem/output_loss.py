"""The model's own scalar output in the place of a loss: an energy of positions, or one of the outputs by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from spectra.errors import SpectraError
from spectra.problem.losses import CustomLoss
from spectra.wording import counted


def itself(output: Any, _targets: Any) -> Any:
    """The output."""
    return output


@dataclass(frozen=True)
class OutputLoss(CustomLoss):
    """The model's output, one number for each example. Data may have no targets, and none is looked at.

    Of a model that returns several numbers for an example, `index` names one, from 0.
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
        """The number of each example (b,). Raises SpectraError where the output is none, or several."""
        if not isinstance(output, Tensor):
            raise SpectraError(
                f"`loss` output: the model returned a {type(output).__name__}, not a tensor; name one by `output`"
            )
        if output.ndim == 0:
            raise SpectraError(
                "`loss` output: the model returned one number for all examples; let it return one for each, (b,)"
            )
        values = self.function(output, targets).reshape(len(output), -1)
        width = values.shape[1]
        if self.index is None and width > 1:
            raise SpectraError(
                f"`loss` output: the model returns {counted(width, 'number')} for an example; name one of them, as "
                f"output?index={width - 1}"
            )
        if self.index is not None and self.index >= width:
            raise SpectraError(
                f"`loss` output?index={self.index}: the model returns {counted(width, 'number')} for an example; "
                f"indices go from 0 to {width - 1}"
            )
        return values[:, self.index or 0]
