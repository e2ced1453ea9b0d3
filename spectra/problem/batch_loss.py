"""A user's loss of (model, batch), which calls the model itself, any number of times and on any inputs.

The output of the model is not visible, so the values of the loss take its place: rows are values of the examples
(b, 1), or the loss of the whole batch (1, 1). The Hessian is that of their sum, and the empirical Fisher matrix is made
of the gradients of rows. If a loss returns one number for a batch, or values that depend on other examples, batches are
never split or merged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from spectra.errors import ArgumentError, SpectraError, describe
from spectra.memory import out_of_memory
from spectra.problem.losses import remedy, values_of
from spectra.quoting import quoted


@dataclass(frozen=True)
class BatchLoss:
    """A user's loss of (model, batch).

    Its function returns values of the examples (b, ...), or their mean over the batch (their sum, where `reduction` is
    "sum"), or a mapping of such parts: their sum is the loss, or `part` alone if it is given. The batch is what the
    data yield: a tensor, a tuple, or a mapping.
    """

    function: Callable[[nn.Module, Any], Any]
    name: str = "custom"
    part: str | None = None
    reduction: str = "mean"

    def __post_init__(self):
        if not callable(self.function):
            came = type(self.function).__name__
            raise ArgumentError(f"`function`: expected a function (model, batch) -> values, got {came}")

    def values(self, model: nn.Module, batch: Any, count: int) -> Tensor:
        """The losses of the examples (count, 1), or of the whole batch (1, 1).

        Raises SpectraError if the function fails or returns anything else.
        """
        try:
            found = self.function(model, batch)
        except Exception as error:
            if isinstance(error, SpectraError) or out_of_memory(error):
                raise
            way_out = remedy(error)
            if isinstance(error, AttributeError) and isinstance(batch, Mapping):
                way_out += "; its batch is a dict with keys " + ", ".join(quoted(key) for key in batch)
            text = f"fails on the data ({describe(error)}); {way_out} (SPECTRA_TRACEBACK=1 shows where)"
            raise SpectraError(f"`loss` {self.name}: {text}") from error
        values = values_of(found, count, self)
        if not values.requires_grad:
            raise SpectraError(
                f"`loss` {self.name}: its value does not depend on the model's parameters; remove detach(), "
                "no_grad() and item(), and call the model that it is given"
            )
        return values[:, None]

    def rows(self, output: Tensor, targets: Any) -> Tensor:
        """Return the values."""
        return output

    def check(self, rows: Tensor, targets: Any) -> None:
        """Accept all batches."""

    def total(self, rows: Tensor, targets: Any) -> Tensor:
        """The sum of the values."""
        return rows.sum()

    def weight(self, targets: Any) -> float:
        """Never called: batches have no targets, and their weight is their number of examples."""
        raise NotImplementedError

    def examples(self, targets: Any) -> int:
        """Never called: batches have no targets, and their weight is their number of examples."""
        raise NotImplementedError
