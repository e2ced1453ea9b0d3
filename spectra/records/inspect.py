"""The result of `spectra inspect` for one matrix: forecasts of the cost of commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spectra.records.entry import Entry, cost_of
from spectra.records.fields import Stored, stored


@stored
class CommandCost(Stored):
    """The forecast cost of one command on one matrix."""

    command: str
    method: str  # gram: exact
    products: int
    seconds: float
    bytes: int  # of the device at its peak, besides model and data
    at_least: bool  # whether it may be far more
    host_bytes: int | None = None  # on the host, if the basis of a GPU run is there; else 0
    largest_parameters: int | None = None  # with the smallest basis in memory; None: no basis


@stored
class InspectResult(Entry):
    """Forecasts of the cost of commands on one matrix, and the cost of the pilot run."""

    seconds_per_product: float
    estimates: list[CommandCost]

    @classmethod
    def of(cls, measurement: Any) -> InspectResult:
        """Make the record of a measurement of `Forecasts`."""
        found = measurement.answer
        estimates = [CommandCost(**vars(estimate)) for estimate in found.estimates]
        return cls(seconds_per_product=found.seconds_per_product, estimates=estimates, **cost_of(measurement))

    def summary(self) -> str:
        return ", ".join(f"{cost.command} by {cost.method}: {cost.products} products" for cost in self.estimates)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Iterate over forecasts, as dictionaries; keys of expected numbers begin with `expected`."""
        for cost in self.estimates:
            expected = {"expected_products": cost.products, "expected_seconds": cost.seconds}
            yield {
                "of": cost.command,
                "method": cost.method,
                **expected,
                "bytes": cost.bytes,
                "at_least": cost.at_least,
            }
