"""The `data` option: load examples from their name as tensors, decoded once and kept, the same at every product."""

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from spectra.errors import describe
from spectra.files import open_regular
from spectra.inputs.batches import Batches, Collate, loaded
from spectra.inputs.chance import seeded
from spectra.inputs.data_module import training_loader
from spectra.inputs.examples import Data, read
from spectra.inputs.graphs import are_graphs, read_graphs
from spectra.inputs.items import Wanted
from spectra.inputs.registers import DATA
from spectra.inputs.safetensors_file import read_safetensors
from spectra.inputs.sources import Source, forms, is_place, source_of
from spectra.inputs.spec import call, check_options, input_error, neighbour, parse_spec, resolve, suggest, told_missing
from spectra.inputs.transform import TO_TENSOR, Transform
from spectra.problem.problem import Batch
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
    wanted: Wanted | None = None,
    batch_size: int | None = None,
) -> Data | Batches:
    """The examples that `spec` names, or a seeded choice of `samples` of them without replacement.

    Args:
        spec: `digits`; `file.npz` or `file.safetensors` (x and y); `torchvision:NAME?root=...`; a folder that holds
            a folder of images for each class; `path/to/file.py:callable`, `package.module:callable` or a name that an
            installed package adds (`spectra.data`), returning two tensors x and y or a data set. Its items are pairs
            (x, y), or mappings as transformers takes them: y under `labels` or `label`, the rest x. Labels of tokens
            are those of the outputs, already shifted.
        transform: what is done to the x of every example; one that nobody named, to torchvision's images alone.
        wanted: what the loss takes of an item; by default a pair (x, y) of which y is one tensor.
        batch_size: the size of batches that are made while reading; None for what the data give.

    Raises:
        SpectraError: no such data, fewer than `samples`, items that cannot be stacked, transformed or read or that
            differ when read twice, or values that are not finite.
    """
    name, options = parse_spec(spec, OPTION)
    used = transform if transform.typed or _holds_images(name) else None
    wanted = wanted or Wanted()
    with seeded(seed):
        source = training_loader(_source(name, options), name)
        if are_graphs(source):
            if used:
                text = "it has graphs, to which no transform is applied here; give it to the data set, as transform="
                raise input_error("`transform`", used.name, text)
            return graph_data(source, samples, seed, name, wanted)
        if is_loader(source):
            if used:
                raise input_error(
                    "`transform`", used.name, f"goes with examples, and {name} gives batches; apply it there"
                )
            return loaded(source, samples, seed, batch_size, wanted, name)
        return read(source, samples, seed, used, name, wanted, collate_of(name, source), batch_size)


def is_loader(source: Any) -> bool:
    """Whether an object gives batches: a DataLoader, a generator, or a list of `Batch`."""
    if isinstance(source, DataLoader | Iterator):
        return True
    if isinstance(source, list):
        return bool(source) and all(isinstance(batch, Batch) for batch in source)
    single = isinstance(source, IterableDataset | Mapping) or hasattr(source, "__getitem__")
    return isinstance(source, Iterable) and not single


def collate_of(name: str, source: Any) -> Collate | None:
    """The user's function that makes batches: `collate_fn` of the data set, or of the file that holds it."""
    own = getattr(source, "collate_fn", None)
    if own is None and is_place(name):
        own = neighbour(name, "collate_fn")
    return own if callable(own) else None


def graph_data(source: Any, samples: int | None, seed: int, name: str, wanted: Wanted) -> Data:
    """The examples of a graph or of a collection of graphs. Raises SpectraError."""
    batch = read_graphs(source, samples, seed, name)
    return Data(batch.inputs, None if wanted.whole else batch.targets, batch.indices)


def _holds_images(name: str) -> bool:
    return name.startswith(TORCHVISION) or _is_folder(name)


def _is_folder(name: str) -> bool:
    return name not in DATA.own and os.path.isdir(name)


def _source(name: str, options: dict[str, Any]) -> Any:
    """The pair (x, y) or the data set that a name stands for."""
    if source := source_of(SOURCES, name):
        return source.make(name, options)
    near = f"there is no such folder in {Path(name).parent.absolute()}; " if "/" in name else ""
    raise input_error(OPTION, name, f"it names no data; {near}write {forms(SOURCES)}")


def _of_register(name: str, options: dict[str, Any]) -> Any:
    DATA.warn_of_clash(name, OPTION)
    return call(DATA.load(name, OPTION), name, options, OPTION)


def _of_place(name: str, options: dict[str, Any]) -> Any:
    return call(resolve(name, OPTION), name, options, OPTION)


def _images(name: str, options: dict[str, Any]) -> Any:
    if DATA.is_added(name):
        text = (
            f"{OPTION} {quoted(name)}: it is the folder here; the data of the package {DATA[name].package} are not used"
        )
        warnings.warn(text, NameClash, stacklevel=2)
    return _torchvision(name, {"root": name, "loader": _image, **options}, "ImageFolder")


def _image(path: str) -> Any:
    """An image of a folder, as torchvision opens it, but from no pipe or device."""
    from PIL import Image

    with open_regular(path) as file:
        return Image.open(file).convert("RGB")


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 handwritten digits that come with spectra: images (N, 1, 8, 8) in [0, 1] and labels (N,)."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as arrays:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    return images[:, None].float() / 16, labels


def _npz(name: str) -> dict[str, np.ndarray | None]:
    with open_regular(name) as file, np.load(file, allow_pickle=False) as arrays:  # np.load leaves a bad file open
        return {key: arrays[key] if key in PAIR else None for key in arrays}


def _safetensors(name: str) -> dict[str, Tensor]:
    with open_regular(name) as file:
        return read_safetensors(file)[0]


READERS: dict[str, tuple[Callable[[str], dict[str, Any]], str]] = {
    ".npz": (_npz, "save arrays of numbers with numpy.savez(file, x=x, y=y)"),
    ".safetensors": (_safetensors, 'save tensors with safetensors.torch.save_file({"x": x, "y": y}, file)'),
}


def _arrays(name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """x and y in a file of named arrays."""
    check_options(digits, name, options, OPTION)  # as digits, it takes none
    if not os.path.isfile(name):
        raise input_error(OPTION, name, f"{told_missing(name, 'there is no such file')}; check the path")
    load, way_out = READERS[Path(name).suffix]
    try:
        arrays = load(name)
    except Exception as error:
        came = type(error).__name__  # NumPy's own message speaks of pickles even where the file is a text
        text = f"it is damaged, or no {Path(name).suffix[1:]} file of numbers ({came}); {way_out}"
        raise input_error(OPTION, name, text) from error
    if not arrays.keys() >= set(PAIR):
        names = ", ".join(arrays) or "nothing"
        raise input_error(OPTION, name, f"it needs arrays x and y and holds {names}; {way_out}")
    return arrays["x"], arrays["y"]


def _torchvision(name: str, options: dict[str, Any], short: str | None = None) -> Any:
    """torchvision's data set `short`, without a transform: that comes later, for all kinds of data alike."""
    from torchvision import datasets

    short = short or name.removeprefix(TORCHVISION)
    known = {key for key in datasets.__all__ if inspect.isclass(getattr(datasets, key))} - {"VisionDataset"}
    if short not in known:
        raise input_error(OPTION, name, f"torchvision has no data set {short!r}; {suggest(short, known)}")
    for key in options:
        if key.endswith(("transform", "transforms")):
            text = f"it takes no {key} here; name what is done to each x as `transform` file.py:name"
            raise input_error(OPTION, name, text)
    make = getattr(datasets, short)
    check_options(make, name, options, OPTION)
    try:
        made = make(**options)
    except Exception as error:
        hint = "give its folder as root=, and download=true where it can be fetched"
        if short == "ImageFolder":
            hint = f"the folder named has to hold {CLASSES}"
        raise input_error(OPTION, name, f"opening it failed with {describe(error)}; {hint}") from error
    if short == "ImageFolder" and SPLITS.issuperset(made.classes):
        text = f"its folders are {', '.join(made.classes)}, no classes; name the one that holds {CLASSES}"
        raise input_error(OPTION, name, text)
    return made


SOURCES = (
    Source("digits", DATA.own.__contains__, _of_register),
    Source("a file.npz or file.safetensors", lambda name: Path(name).suffix in READERS, _arrays),
    Source("torchvision:NAME", lambda name: name.startswith(TORCHVISION), _torchvision),
    Source("a folder of images", _is_folder, _images),
    Source("file.py:name", is_place, _of_place),
    Source("a name that an installed package adds", DATA.__contains__, _of_register),
)
