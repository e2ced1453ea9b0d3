"""The `data` option: load named examples once as tensors, so that every matrix-vector product uses the same data."""

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from spectra.errors import describe
from spectra.files import open_regular
from spectra.inputs.batches import Batches, Collate, collate_fn_of
from spectra.inputs.data_module import training_loader
from spectra.inputs.examples import Data, read
from spectra.inputs.graphs import are_graphs, read_graphs
from spectra.inputs.items import TARGETS, WEIGHTS, CannotSplit, ItemRequirements, split_item
from spectra.inputs.loaders import loaded
from spectra.inputs.registers import DATA
from spectra.inputs.safetensors_file import read_safetensors
from spectra.inputs.saved_datasets import is_saved, saved
from spectra.inputs.seeding import seeded
from spectra.inputs.sources import NamedData, Source, forms, is_place, source_of
from spectra.inputs.spec import (
    SHORT,
    call,
    check_options,
    input_error,
    parse_spec,
    resolve,
    sibling_attribute,
    suggest,
    unreadable_reason,
)
from spectra.inputs.text import TEXT, tokens
from spectra.inputs.transform import TO_TENSOR, Transform
from spectra.inputs.unknown_data import unknown
from spectra.problem.batch import Batch
from spectra.quoting import quoted
from spectra.register import NameClash

OPTION = "`data`"
TORCHVISION = "torchvision:"
PAIR = ("x", "y")
CLASSES = "a folder of images for each class"
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def load_data(
    spec: str,
    samples: int | None,
    seed: int,
    transform: Transform = TO_TENSOR,
    wanted: ItemRequirements | None = None,
    batch_size: int | None = None,
) -> Data | Batches:
    """Load the examples that `spec` names, or `samples` of them, chosen with the seed without replacement.

    Args:
        spec: `digits`; `file.npz` or `file.safetensors` (x and y, or arrays named as the model's arguments);
            `text:FILE?length=256`; `torchvision:NAME?root=...`; a folder that holds a folder of images for each class,
            or a data set of the package datasets; `path/to/file.py:callable`, `package.module:callable` or a name that
            an installed package adds (`spectra.data`), returning arrays of all examples, a data set, or batches. Items
            are pairs (x, y), or mappings as transformers takes them: y under `labels` or `label`, the rest x. Labels
            of tokens belong to the outputs at the same positions, so they are already shifted.
        samples: the number of examples; None for all.
        seed: the seed of the choice, and of random numbers while the data are read.
        transform: the transform of the x of every example; a default one applies to images of torchvision only.
        wanted: how an item is divided into inputs and targets; by default it is a pair (x, y) with one tensor y.
        batch_size: the size of batches that are made while reading; None for that of the data.

    Raises:
        SpectraError: no such data; fewer than `samples`; items that cannot be read, transformed or stacked, or change
            when they are read again; or values that are not finite.
    """
    name, options = parse_spec(spec, OPTION)
    used = transform if transform.typed or _holds_images(name) else None
    wanted = wanted or ItemRequirements()
    with seeded(seed):
        source = _source(name, options, wanted)
        made = source if isinstance(source, NamedData) else NamedData(source, ())
        source, used = training_loader(made.data, name), transform if made.holds_images else used
        if are_graphs(source):
            if transform.typed:
                text = "`transform` does not apply to graphs; give transform= to the data set itself"
                raise input_error(OPTION, name, text)
            return graph_data(source, samples, seed, name, wanted)
        if is_loader(source):
            if used:
                text = f"it applies to single examples, but {name} gives batches; apply it in the data's own code"
                raise input_error("`transform`", used.name, text)
            found = loaded(source, samples, seed, batch_size, wanted, name)
        else:
            found = read(source, samples, seed, used, name, wanted, collate_of(name, source), batch_size)
    return replace(found, notes=(*made.notes, *found.notes))


def is_loader(source: Any) -> bool:
    """Whether an object gives batches: a DataLoader, a generator, or a list of `Batch`."""
    if isinstance(source, DataLoader | Iterator):
        return True
    if isinstance(source, list):
        return bool(source) and all(isinstance(batch, Batch) for batch in source)
    single = isinstance(source, IterableDataset | Mapping) or hasattr(source, "__getitem__")
    return isinstance(source, Iterable) and not single


def collate_of(name: str, source: Any) -> Collate | None:
    """Return the user's `collate_fn`, an attribute of the data set or of its file; None where there is none."""
    own = collate_fn_of(source)
    if own is None and is_place(name):
        own = sibling_attribute(name, "collate_fn")
    return own if callable(own) else None


def graph_data(source: Any, samples: int | None, seed: int, name: str, wanted: ItemRequirements) -> Data:
    """Read the examples of a graph or of a collection of graphs. Raises SpectraError."""
    batch = read_graphs(source, samples, seed, name)
    return Data(batch.inputs, None if wanted.whole else batch.targets, batch.indices)


def _holds_images(name: str) -> bool:
    return name.startswith(TORCHVISION) or (_is_folder(name) and not is_saved(name))


def _is_folder(name: str) -> bool:
    return name not in DATA.own and os.path.isdir(name)


def _source(name: str, options: dict[str, Any], wanted: ItemRequirements) -> Any:
    """Make the arrays, the data set or the batches that a name stands for. Raises SpectraError."""
    if source := source_of(SOURCES, name):
        return source.make(name, options, wanted)
    if name.endswith((".tar", ".tar.gz", ".tgz")) or "{" in name:
        text = "streams of archives (webdataset) are not supported: the data must be finite and repeatable"
        raise input_error(OPTION, name, f"{text}; return a list of their examples from file.py:name")
    raise input_error(OPTION, name, unknown(name, forms(SOURCES)))


def _of_register(name: str, options: dict[str, Any], _wanted: ItemRequirements) -> Any:
    DATA.warn_of_clash(name, OPTION)
    return call(DATA.load(name, OPTION), name, options, OPTION)


def _of_place(name: str, options: dict[str, Any], _wanted: ItemRequirements) -> Any:
    return call(resolve(name, OPTION), name, options, OPTION)


def _images(name: str, options: dict[str, Any], wanted: ItemRequirements) -> Any:
    if DATA.is_added(name):
        text = (
            f"{OPTION} {quoted(name)}: it is the folder here; the data of the package {DATA[name].package} are not used"
        )
        warnings.warn(text, NameClash, stacklevel=2)
    return _torchvision(name, {"root": name, "loader": _image, **options}, wanted, "ImageFolder")


def _image(path: str) -> Any:
    """Open an image file as torchvision does, but refuse pipes and devices."""
    from PIL import Image

    with open_regular(path) as file:
        return Image.open(file).convert("RGB")


def digits() -> tuple[Tensor, Tensor]:
    """Return the 1,797 handwritten digits that come with spectra: images (N, 1, 8, 8) in [0, 1] and labels (N,)."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as arrays:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    return images[:, None].float() / 16, labels


def _npz(name: str, every: bool) -> tuple[dict[str, np.ndarray], list[str]]:
    with open_regular(name) as file, np.load(file, allow_pickle=False) as arrays:  # np.load leaves a bad file open
        taken, others = _taken(arrays, every)
        return {key: arrays[key] for key in taken}, others


def _safetensors(name: str, every: bool) -> tuple[dict[str, Tensor], list[str]]:
    with open_regular(name) as file:
        tensors = read_safetensors(file)[0]
    taken, others = _taken(tensors, every)
    return {key: tensors[key] for key in taken}, others


def _taken(names: Iterable[str], every: bool) -> tuple[list[str], list[str]]:
    """Divide the arrays of a file into used and unused ones.

    Used are x, y and their weights; all arrays are used if x or y is missing, or if `every` is true.
    """
    names = list(names)
    taken = [key for key in names if key in (*PAIR, *WEIGHTS)] if {*PAIR} <= {*names} and not every else names
    return taken, [key for key in names if key not in taken]


READERS: dict[str, tuple[Callable[[str, bool], tuple[dict[str, Any], list[str]]], str]] = {
    ".npz": (_npz, "save arrays of numbers with numpy.savez(file, x=x, y=y)"),
    ".safetensors": (_safetensors, 'save tensors with safetensors.torch.save_file({"x": x, "y": y}, file)'),
}


def _arrays(name: str, options: dict[str, Any], wanted: ItemRequirements) -> Any:
    """Read the arrays in a file: x and y, or arrays named as the model's arguments with labels among them."""
    check_options(digits, name, options, OPTION)  # it takes no options, like digits
    if not os.path.isfile(name):
        raise input_error(OPTION, name, f"{unreadable_reason(name, 'there is no such file')}; check the path")
    load, way_out = READERS[Path(name).suffix]
    try:
        arrays, others = load(name, wanted.whole and not wanted.forwards)  # a loss of (model, batch) may use any
    except Exception as error:
        came = type(error).__name__  # NumPy's own message mentions pickles even for a text file
        text = f"it is damaged, or not a {Path(name).suffix} file of numbers ({came}); {way_out}"
        raise input_error(OPTION, name, text) from error
    dropped = ", ".join(quoted(key, SHORT) for key in others)
    notes = (f"unused arrays: {dropped} (used are x, y and {' or '.join(WEIGHTS)})",) if others else ()
    if arrays.keys() == set(PAIR):
        return NamedData((arrays["x"], arrays["y"]), notes)
    try:
        split_item(arrays, wanted)
    except CannotSplit:
        names = ", ".join(quoted(key, SHORT) for key in arrays) or "nothing"
        named = f"or arrays named as the model's arguments and {' or '.join(TARGETS)}"
        text = f"it needs arrays x and y, {named}, but it holds {names}; {way_out}"
        raise input_error(OPTION, name, text) from None
    return NamedData(arrays["x"] if list(arrays) == ["x"] else arrays, notes)


def _torchvision(name: str, options: dict[str, Any], _wanted: ItemRequirements, short: str | None = None) -> Any:
    """Make a data set of torchvision, without its transform: `read` applies the transform, as for all data."""
    from torchvision import datasets

    short = short or name.removeprefix(TORCHVISION)
    known = {key for key in datasets.__all__ if inspect.isclass(getattr(datasets, key))} - {"VisionDataset"}
    if short not in known:
        raise input_error(OPTION, name, f"torchvision has no data set {short!r}; {suggest(short, known)}")
    for key in options:
        if key.endswith(("transform", "transforms")):
            text = f"{key} cannot be given here; name the function of each x as `transform` file.py:name"
            raise input_error(OPTION, name, text)
    make = getattr(datasets, short)
    check_options(make, name, options, OPTION)
    try:
        made = make(**options)
    except Exception as error:
        hint = "give its folder as root=, and download=true if it can be downloaded"
        if short == "ImageFolder":
            hint = f"the folder has to hold {CLASSES}"
        raise input_error(OPTION, name, f"opening it failed with {describe(error)}; {hint}") from error
    if short == "ImageFolder" and SPLITS.issuperset(made.classes):
        text = f"its folders {', '.join(made.classes)} are splits, not classes; name the one that holds {CLASSES}"
        raise input_error(OPTION, name, text)
    return made


SOURCES = (
    Source("digits", DATA.own.__contains__, _of_register),
    Source("text:FILE?length=256", lambda name: name.startswith(TEXT), tokens),
    Source("a file.npz, a file.safetensors", lambda name: Path(name).suffix in READERS, _arrays),
    Source("torchvision:NAME", lambda name: name.startswith(TORCHVISION), _torchvision),
    Source("a folder of Hugging Face datasets", is_saved, saved),
    Source("a folder of images", _is_folder, _images),
    Source("file.py:name", is_place, _of_place),
    Source("a name that an installed package adds", DATA.__contains__, _of_register),
)
