"""Read folders in which the package `datasets` of Hugging Face has saved a data set (`save_to_disk`).

They hold Arrow tables and JSON, and reading these runs no code. Columns become the model's arguments by their names.
Columns that the model does not take (texts, identifiers) are dropped, as in the Trainer of transformers.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from spectra.errors import describe
from spectra.files import WRITTEN_BY_US, open_regular, read_bounded, refuse_special
from spectra.inputs.items import OTHER_TARGETS, TARGETS, WEIGHTS, ItemRequirements
from spectra.inputs.sources import NamedData
from spectra.inputs.spec import input_error, suggest

OPTION = "`data`"
ONE, SEVERAL = "state.json", "dataset_dict.json"  # the file that marks a folder of one data set, or of several
INSTALL = "the package datasets is not installed; install it with: pip install datasets"
PADDING = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "labels": -100, "loss_mask": 0, "weights": 0}


def is_saved(name: str) -> bool:
    """Whether a name is a folder that the package `datasets` has saved."""
    return any(os.path.isfile(os.path.join(name, file)) for file in (ONE, SEVERAL))


def saved(name: str, options: dict[str, Any], wanted: ItemRequirements) -> NamedData:
    """Open the data set in a folder; the option `split` chooses one of several.

    Raises SpectraError where the package is missing, the folder is damaged, or it has no such split.
    """
    if unknown := [key for key in options if key != "split"]:
        raise input_error(OPTION, name, f"it has no option {unknown[0]}; its only option is split")
    try:
        import datasets
    except ImportError as error:
        raise input_error(OPTION, name, f"it is a data set of Hugging Face; {INSTALL}") from error
    folder = name
    if os.path.isfile(os.path.join(name, SEVERAL)):
        folder = os.path.join(name, chosen_split(name, options.get("split")))
    elif "split" in options:
        raise input_error(OPTION, f"{name}?split={options['split']}", "it holds one data set; leave split out")
    try:
        refuse_other_files(folder)
        with quiet(datasets):
            table = datasets.Dataset.load_from_disk(folder).with_format(None)
            for column, feature in table.features.items():
                if isinstance(feature, datasets.Image):  # a path in it may point anywhere, and is not opened here
                    table = table.cast_column(column, datasets.Image(decode=False))
    except Exception as error:
        text = f"it cannot be read ({describe(error)}); save it again with save_to_disk"
        raise input_error(OPTION, name, text) from error
    columns = taken_columns(table, name, wanted)
    found = Columns(table, name, columns, wanted)
    dropped = [column for column in table.column_names if column not in columns]
    notes = [f"unused columns: {', '.join(dropped)}"] if dropped else []
    if found.widths:
        notes.append("rows of tokens are padded to the longest: input_ids and masks with 0, labels with -100")
    images = found.single is not None and isinstance(table.features[found.single], datasets.Image)
    return NamedData(found, tuple(notes), images)


def refuse_other_files(folder: str) -> None:
    """Raise ValueError or OSError unless the tables of a data set are regular files in its folder."""
    state = json.loads(read_bounded(os.path.join(folder, ONE), WRITTEN_BY_US))
    for file in state["_data_files"]:
        if os.path.basename(file["filename"]) != file["filename"]:
            raise ValueError("it names files in another folder")
        refuse_special(os.path.join(folder, file["filename"]))


def chosen_split(name: str, split: Any) -> str:
    """Return the folder of a split. Raises SpectraError where it does not exist, or none is named."""
    there = sorted(entry for entry in os.listdir(name) if os.path.isfile(os.path.join(name, entry, ONE)))
    if split is None:
        names = " or ".join(f"{name}?split={one}" for one in there[:3]) or "save it again, with save_to_disk"
        raise input_error(OPTION, name, f"it holds several data sets; write {names}")
    if split not in there:
        raise input_error(OPTION, f"{name}?split={split}", f"there is no such split; {suggest(str(split), there)}")
    return str(split)


def taken_columns(table: Any, name: str, wanted: ItemRequirements) -> list[str]:
    """Return the columns that the loss and the model take. Raises SpectraError where the model takes none of them."""
    columns, takes = list(table.column_names), wanted.takes
    if wanted.whole and not wanted.forwards:  # a loss of (model, batch) may use any of them
        return columns
    numbers = [column for column in columns if not is_text(table.features[column])]
    targets = [column for column in (*TARGETS, *OTHER_TARGETS, *WEIGHTS) if column in numbers]
    known = [column for column in numbers if column in takes.names or column in targets]
    inputs = [column for column in known if column in takes.names and column not in targets]
    if not inputs:  # a single input under another name, or a model that takes any name
        inputs = [column for column in numbers if column not in targets]
        if not takes.others and len(inputs) != 1:
            text = f"it has columns {', '.join(columns)}, but the model takes {', '.join(takes.names)}"
            raise input_error(OPTION, name, f"{text}; rename them with rename_column, and save it again")
        known = [*inputs, *targets]
    return [column for column in columns if column in known]


def is_text(feature: Any) -> bool:
    """Whether a column holds strings, alone or in lists."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return getattr(feature, "dtype", None) in ("string", "large_string", "binary")


class Columns:
    """The rows of a saved data set as mappings from column to value.

    Tokens are padded to the longest row, with an attention mask if the model takes one. A single input under a name
    that the model does not take is called x, so that it becomes the first argument.
    """

    def __init__(self, table: Any, name: str, columns: Sequence[str], wanted: ItemRequirements):
        self.table = table.select_columns(list(columns))
        self.widths = padded_widths(self.table, name)
        self.masks = (
            "input_ids" in self.widths and "attention_mask" not in columns and "attention_mask" in wanted.takes.names
        )
        inputs = [column for column in columns if column not in (*TARGETS, *OTHER_TARGETS, *WEIGHTS)]
        self.single = (
            inputs[0] if len(inputs) == 1 and not wanted.whole and inputs[0] not in wanted.takes.names else None
        )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {column: value_of(value) for column, value in self.table[index].items()}
        if self.masks:
            row["attention_mask"] = padded([1] * len(row["input_ids"]), self.widths["input_ids"], 0)
        for column, width in self.widths.items():
            row[column] = padded(row[column], width, PADDING[column])
        return {"x" if column == self.single else column: value for column, value in row.items()}


def padded(values: list[Any], width: int, padding: int) -> list[Any]:
    """Pad a row to `width`."""
    return [*values, *[padding] * (width - len(values))]


def padded_widths(table: Any, name: str) -> dict[str, int]:
    """Return the length of the longest row for each column with rows of different lengths.

    Raises SpectraError where such a column does not hold tokens.
    """
    found = {}
    for column in table.column_names:
        if not hasattr(table.features[column], "feature"):
            continue
        lengths = [len(row) if row.is_valid else 0 for chunk in table.data.column(column).chunks for row in chunk]
        least, most = min(lengths, default=0), max(lengths, default=0)
        if least == most:
            continue
        if column not in PADDING:
            text = f"its column {column} has rows of different lengths ({least} to {most})"
            raise input_error(OPTION, name, f"{text}; pad or cut them to one length with map, and save it again")
        found[column] = most
    return found


def value_of(value: Any) -> Any:
    """Return a value of a column, and an encoded image as a PIL image."""
    if not (isinstance(value, dict) and value.keys() == {"bytes", "path"}):
        return value
    from PIL import Image

    if value["bytes"] is not None:
        return Image.open(io.BytesIO(value["bytes"])).convert("RGB")
    with open_regular(value["path"]) as file:
        return Image.open(file).convert("RGB")


@contextmanager
def quiet(package: Any):
    """Disable the progress bars of the package inside this context."""
    shown = package.is_progress_bar_enabled()
    package.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            package.enable_progress_bars()
