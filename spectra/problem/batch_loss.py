"""A user's loss of (model, batch): it calls the model by itself, as often and on what it likes.

There is no output of the model to see, so the loss's own values take its place: rows are values of the examples (b, 1),
or the loss of the whole batch (1, 1). The Hessian is that of their sum, and the empirical Fisher matrix is made of the
gradients of rows. A loss that gives one number for a batch, or whose values depend on the other examples, belongs to
the batches as they come: they are never split or merged.
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
    "sum"), or a mapping of such: the parts of a sum, of which `part` names one to take alone. The batch is what the
    data give: a tensor, a tuple, or a mapping.
    """

    function: Callable[[nn.Module, Any], Any]
    name: str = "custom"
    part: str | None = None
    reduction: str = "mean"

    def __post_init__(self):
        if not callable(self.function):
            came = type(self.function).__name__
            raise ArgumentError(f"`function` of type {came}: give a function (model, batch) -> values")

    def values(self, model: nn.Module, batch: Any, count: int) -> Tensor:
        """The losses of the examples (count, 1), or of the whole batch (1, 1).

        Raises SpectraError where the function fails or returns no such values.
        """
        try:
            found = self.function(model, batch)
        except Exception as error:
            if isinstance(error, SpectraError) or out_of_memory(error):
                raise
            way_out = remedy(error)
            if isinstance(error, AttributeError) and isinstance(batch, Mapping):
                way_out += "; its batch is a dict, of " + ", ".join(quoted(key) for key in batch)
            text = f"fails on the data ({describe(error)}); {way_out} (SPECTRA_TRACEBACK=1 shows where)"
            raise SpectraError(f"`loss` {self.name}: {text}") from error
        values = values_of(found, count, self)
        if not values.requires_grad:
            raise SpectraError(
                f"`loss` {self.name}: its value does not depend on the model's parameters; leave out detach(), "
                "no_grad(), item(), and call the model that it is given"
            )
        return values[:, None]

    def rows(self, output: Tensor, targets: Any) -> Tensor:
        """The values themselves."""
        return output

    def check(self, rows: Tensor, targets: Any) -> None:
        """Accept all batches."""

    def total(self, rows: Tensor, targets: Any) -> Tensor:
        """The sum of the values."""
        return rows.sum()

    def weight(self, targets: Any) -> float:
        """Never asked for: batches have no targets, and count by their examples."""
        raise NotImplementedError

    def examples(self, targets: Any) -> int:
        """Never asked for: batches have no targets, and count by their examples."""
        raise NotImplementedError
