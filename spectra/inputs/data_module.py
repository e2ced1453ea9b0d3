"""Take the training loader of a LightningDataModule that is given as data."""

from __future__ import annotations

from typing import Any

from spectra.errors import describe
from spectra.inputs.spec import WHERE, input_error

OPTION = "`data`"


def training_loader(source: Any, name: str) -> Any:
    """Return the training loader of a LightningDataModule, and any other object unchanged.

    Raises SpectraError where the data module fails.
    """
    if not any(kind.__name__ == "LightningDataModule" for kind in type(source).__mro__):  # Lightning is slow to import
        return source
    try:
        source.prepare_data()
        source.setup("fit")
        return source.train_dataloader()
    except Exception as error:
        text = f"its training data cannot be loaded ({describe(error)}); {WHERE}"
        raise input_error(OPTION, name, text) from error
