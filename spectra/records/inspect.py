"""The result of `spectra inspect` for one matrix: forecasts of what the commands cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spectra.records.entry import Entry, cost_of
from spectra.records.fields import Stored, stored


@stored
class CommandCost(Stored):
    """The forecast of what one command costs on one matrix."""

    command: str
    method: str  # gram: exact
    products: int
    seconds: float
    bytes: int  # of the device at its peak, besides model and data
    at_least: bool  # whether it may be far more
    host_bytes: int | None = None  # of the host, where the basis of a GPU lies there; else 0
    largest_parameters: int | None = None  # of which memory holds the smallest basis; null where there is none


@stored
class InspectResult(Entry):
    """The forecasts for one matrix, and what the pilot run for them took."""

    seconds_per_product: float
    estimates: list[CommandCost]

    @classmethod
    def of(cls, measurement: Any) -> InspectResult:
        """Make the record of a measurement whose answer is an `Outlook`."""
        found = measurement.answer
        estimates = [CommandCost(**vars(estimate)) for estimate in found.estimates]
        return cls(seconds_per_product=found.seconds_per_product, estimates=estimates, **cost_of(measurement))

    def summary(self) -> str:
        return ", ".join(f"{cost.command} by {cost.method}: {cost.products} products" for cost in self.estimates)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a forecast, whose numbers begin with `expected`."""
        for cost in self.estimates:
            expected = {"expected_products": cost.products, "expected_seconds": cost.seconds}
            yield {
                "of": cost.command,
                "method": cost.method,
                **expected,
                "bytes": cost.bytes,
                "at_least": cost.at_least,
            }
