"""The JSON that `plot` and `report` print about the file that they wrote."""

from __future__ import annotations

from spectra.records.fields import Stored, stored
from spectra.records.files import SCHEMA, to_json


@stored
class PlotRecord(Stored):
    """A figure, and the results that it shows."""

    schema: int = SCHEMA
    command: str = "plot"
    figure: str  # path
    results: list[str]  # paths

    def to_json(self) -> str:
        """Strict JSON in one line."""
        return to_json(self.to_dict())


@stored
class ReportRecord(Stored):
    """A page, and the results that it shows."""

    schema: int = SCHEMA
    command: str = "report"
    page: str  # path
    results: list[str]  # paths

    def to_json(self) -> str:
        """Strict JSON in one line."""
        return to_json(self.to_dict())
