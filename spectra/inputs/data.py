"""`--data`: a name becomes tensors, decoded once and kept, the same at every product."""

import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, IterableDataset, default_collate

from spectra.errors import describe
from spectra.inputs.chance import seeded
from spectra.inputs.spec import call, check_options, input_error, parse_spec, resolve, suggest

OPTION = "--data"
NPZ = "save arrays of numbers with numpy.savez(file, x=x, y=y)"
READ_TWICE = 8  # examples read a second time, to catch augmentation


@dataclass(frozen=True)
class Data:
    """Examples decoded once and kept, in the order of the data set.

    Attributes:
        inputs: a tensor, or a tuple or dict of them, each (N, ...); integers are int64, floats as they came.
        targets: (N, ...); integers are int64, floats as they came.
        indices: (N,) int64, the index of each example in the data set as the user named it.
    """

    inputs: Any
    targets: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.targets)


def load_data(spec: str, samples: int | None, seed: int) -> Data:
    """The examples that `spec` names, or a seeded choice of `samples` of them without replacement.

    Args:
        spec: `digits`, `file.npz` (arrays x and y), `torchvision:NAME?root=...`, `path/to/file.py:callable`
            or `package.module:callable`, returning a data set of (x, y) items or two tensors x and y.

    Raises:
        SpectraError: no such data, fewer than `samples`, items that cannot be stacked or read or that differ
            when read twice, or values that are not finite.
    """
    name, options = parse_spec(spec, OPTION)
    with seeded(seed):
        source = _source(name, options)
        if pair := _as_pair(source, name):
            indices = _choose(_pair_size(pair, name), samples, seed, name)
            inputs, targets = tree_map(lambda tensor: tensor[indices], pair)
        else:
            indices = _choose(_size(source, name), samples, seed, name)
            inputs, targets = _read(source, indices, name)
    data = Data(tree_map(_widened, inputs), tree_map(_widened, targets), indices)
    _check(data, name)
    return data


def _source(name: str, options: dict[str, Any]) -> Any:
    """What the name stands for: a pair (x, y) or a data set."""
    if name.startswith("torchvision:"):
        return _torchvision(name, options)
    if name.endswith(".npz") or name == "digits":
        read: Callable[[], Any] = _digits if name == "digits" else lambda: _npz(name)
        check_options(read, name, options, OPTION)
        return read()
    if ":" in name or name.endswith(".py"):
        return call(resolve(name, OPTION), name, options, OPTION)
    forms = "digits, a file.npz, torchvision:NAME, path/to/file.py:callable or package.module:callable"
    raise input_error(OPTION, name, f"it names no data; write {forms}")


def _digits() -> tuple[Tensor, Tensor]:
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as arrays:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    return images[:, None].float() / 16, labels


def _npz(name: str) -> tuple[np.ndarray, np.ndarray]:
    if not Path(name).is_file():
        raise input_error(OPTION, name, "there is no such file; check the path")
    try:
        with np.load(name, allow_pickle=False) as arrays:
            x, y, names = arrays.get("x"), arrays.get("y"), ", ".join(arrays) or "nothing"
    except Exception as error:
        came = type(error).__name__  # NumPy's own message speaks of pickles even where the file is a text
        raise input_error(OPTION, name, f"it is no npz file of arrays of numbers ({came}); {NPZ}") from error
    if x is None or y is None:
        raise input_error(OPTION, name, f"it needs arrays x and y and holds {names}; {NPZ}")
    return x, y


def _torchvision(name: str, options: dict[str, Any]) -> Any:
    from torchvision import datasets, transforms

    short = name.removeprefix("torchvision:")
    known = {key for key in datasets.__all__ if inspect.isclass(getattr(datasets, key))} - {"VisionDataset"}
    if short not in known:
        raise input_error(OPTION, name, f"torchvision has no data set {short!r}; {suggest(short, known)}")
    make = getattr(datasets, short)
    parameters = inspect.signature(make).parameters
    if "transform" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        options = {"transform": transforms.ToTensor(), **options}
    check_options(make, name, options, OPTION)
    try:
        return make(**options)
    except Exception as error:
        hint = "give its folder as root=, and download=true where it can be fetched"
        raise input_error(OPTION, name, f"opening it failed with {describe(error)}; {hint}") from error


def _as_pair(source: Any, name: str) -> tuple[Any, Tensor] | None:
    """The tensors x and y that `source` consists of, or None where it is a data set of items."""
    if not (isinstance(source, tuple | list) and len(source) == 2):
        return None
    if not all(isinstance(leaf, Tensor | np.ndarray) for leaf in [*tree_leaves(source[0]), source[1]]):
        return None
    try:
        return tree_map(_tensor, _plain(source[0])), _tensor(source[1])
    except TypeError as error:
        raise input_error(OPTION, name, f"x and y have to be arrays of numbers: {describe(error)}") from error


def _tensor(array: Tensor | np.ndarray) -> Tensor:
    if isinstance(array, np.ndarray):
        array = array.astype(array.dtype.newbyteorder("="))  # a copy of its own, in the one order torch reads
    return torch.as_tensor(array).detach().cpu()


def _pair_size(pair: tuple[Any, Tensor], name: str) -> int:
    shapes = [tuple(leaf.shape) for leaf in tree_leaves(pair)]
    if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
        text = f"x and y need one and the same length, they have shapes {', '.join(map(str, shapes))}"
        raise input_error(OPTION, name, f"{text}; give one y for each x")
    return shapes[0][0]


def _size(source: Any, name: str) -> int:
    """The number of items of a data set with `__getitem__` and `__len__`."""
    came = type(source).__name__
    if isinstance(source, DataLoader):
        raise input_error(OPTION, name, "it gave a DataLoader, which may shuffle; return its data set itself")
    if isinstance(source, IterableDataset):
        raise input_error(OPTION, name, f"it gave an IterableDataset ({came}); return a list of its items")
    if isinstance(source, Mapping) or not hasattr(source, "__getitem__"):
        text = f"it gave an object of type {came}; return a data set of (x, y) items or two tensors x and y"
        raise input_error(OPTION, name, text)
    try:
        return len(source)
    except Exception as error:
        text = f"the length of its {came} is unknown ({describe(error)}); give it __len__, or return a list"
        raise input_error(OPTION, name, text) from error


def _choose(size: int, samples: int | None, seed: int, name: str) -> Tensor:
    """(N,) ascending indices, all of them or a seeded choice."""
    if size == 0:
        raise input_error(OPTION, name, "it is empty; name data with at least one example")
    if samples is None:
        return torch.arange(size)
    if not 1 <= samples <= size:
        raise input_error("--samples", samples, f"{name} has {size} examples; choose from 1 to {size}")
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(size, generator=generator)[:samples].sort().values


def _read(dataset: Any, indices: Tensor, name: str) -> tuple[Any, Any]:
    """Decode the items of these indices once, the first few of them twice, and stack them."""
    chosen = indices.tolist()
    head = [_item(dataset, index, name) for index in chosen[:READ_TWICE]]
    again = [_item(dataset, index, name) for index in chosen[:READ_TWICE]]
    for index, one, two in zip(chosen, head, again, strict=False):
        if not _same(one, two):
            text = f"example {index} came out different when it was read twice; switch random augmentation off"
            raise input_error(OPTION, name, text)
    items = head + [_item(dataset, index, name) for index in chosen[READ_TWICE:]]
    try:
        return _plain(default_collate([x for x, _ in items])), _plain(default_collate([y for _, y in items]))
    except Exception as error:
        raise input_error(OPTION, name, _unstackable(items, chosen, error)) from error


def _item(dataset: Any, index: int, name: str) -> tuple[Any, Any]:
    try:
        item = dataset[index]
        if isinstance(item, tuple | list) and len(item) == 2:
            return _plain(item[0]), _plain(item[1])
    except Exception as error:
        raise input_error(OPTION, name, f"reading example {index} failed with {describe(error)}") from error
    came = f"{type(item).__name__}"
    if isinstance(item, Mapping):
        came += f" of {', '.join(map(str, item))}"
    elif isinstance(item, tuple | list):
        came += f" of length {len(item)}"
    raise input_error(OPTION, name, f"example {index} is a {came}; every item has to be a pair (x, y)")


def _plain(tree: Any) -> Any:
    """Mappings as dicts, sequences as tuples, lists of numbers as tensors (torch takes them apart)."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    if _is_numbers(tree):
        return torch.tensor(tree)
    if isinstance(tree, tuple | list):
        return tuple(_plain(value) for value in tree)
    return tree.detach().cpu() if isinstance(tree, Tensor) else tree


def _is_numbers(value: Any) -> bool:
    """Whether this is a list of numbers, or of lists of numbers."""
    if not isinstance(value, tuple | list) or len(value) == 0:
        return False
    return all(isinstance(entry, numbers.Number) or _is_numbers(entry) for entry in value)


def _same(one: Any, two: Any) -> bool:
    ones, twos = tree_leaves(one), tree_leaves(two)
    return len(ones) == len(twos) and all(_same_leaf(a, b) for a, b in zip(ones, twos, strict=True))


def _same_leaf(one: Any, two: Any) -> bool:
    if not isinstance(one, Tensor | np.ndarray | numbers.Number):
        return True  # such as a PIL image: refused when stacked
    a, b = torch.as_tensor(one), torch.as_tensor(two)
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _unstackable(items: Sequence[tuple[Any, Any]], chosen: Sequence[int], error: Exception) -> str:
    first = _shapes(items[0])
    for index, item in zip(chosen, items, strict=True):
        if (shapes := _shapes(item)) != first:
            a, b = (" and ".join(map(str, s)) for s in (first, shapes))
            text = f"example {chosen[0]} has x and y of shape {a}, example {index} of {b}"
            return f"{text}; give every example one shape"
    return f"the examples cannot be stacked ({describe(error)}); give x and y as tensors, arrays or numbers"


def _shapes(item: tuple[Any, Any]) -> list[tuple[int, ...]]:
    return [tuple(getattr(leaf, "shape", ())) for leaf in tree_leaves(item)]


def _widened(leaf: Any) -> Any:
    """Integers as int64, which labels and token ids have to be; all else as it is."""
    if not isinstance(leaf, Tensor) or leaf.is_floating_point() or leaf.is_complex() or leaf.dtype == torch.bool:
        return leaf
    return leaf.long()


def _check(data: Data, name: str) -> None:
    """Raise a SpectraError unless all are finite tensors, y a single one."""
    if not isinstance(data.targets, Tensor):
        came = type(data.targets).__name__
        raise input_error(OPTION, name, f"y is a {came} for each example; give one tensor or number as y")
    for what, tree in (("x", data.inputs), ("y", data.targets)):
        for leaf in tree_leaves(tree):
            if not isinstance(leaf, Tensor):
                text = f"{what} holds a {type(leaf).__name__}; give tensors, arrays or numbers"
                raise input_error(OPTION, name, text)
            finite = leaf.isfinite().flatten(1).all(1) if leaf.dim() > 1 else leaf.isfinite()
            if not finite.all():
                index = int(data.indices[~finite][0])
                raise input_error(OPTION, name, f"{what} of example {index} is not finite; leave it out or mend it")
