"""Lightning's data modules as data: the loader of their training data."""

from __future__ import annotations

from typing import Any

from spectra.errors import describe
from spectra.inputs.spec import WHERE, input_error

OPTION = "`data`"


def training_loader(source: Any, name: str) -> Any:
    """The loader of the training data of one of Lightning's data modules; any other object as it is.

    Raises SpectraError where the module fails to make it.
    """
    if not any(kind.__name__ == "LightningDataModule" for kind in type(source).__mro__):  # Lightning is slow to import
        return source
    try:
        source.prepare_data()
        source.setup("fit")
        return source.train_dataloader()
    except Exception as error:
        text = f"its training data cannot be had ({describe(error)}); {WHERE}"
        raise input_error(OPTION, name, text) from error
