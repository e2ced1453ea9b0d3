"""Divide the items of a data set or loader into inputs of the model and targets of the loss.

An item is one example or a batch. It is a pair (x, y), or a mapping with y under one of the names in TARGETS and x in
the other entries. A loss of (model, batch) gets the whole item. For a user's loss of (output, target), targets may be
several tensors, or missing.
"""

from __future__ import annotations

import dataclasses
import inspect
import numbers
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spectra.inputs.spec import input_error
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.losses import CustomLoss, Loss
from spectra.problem.model_loss import ModelLoss, is_lightning
from spectra.problem.outputs import tuple_like

TARGETS = ("labels", "label")  # what transformers calls the targets in an item that is a mapping
OTHER_TARGETS = ("targets", "target", "y")  # used if TARGETS are missing, and the model has no argument of this name
WEIGHTS = ("weights", "loss_mask")  # names of the weights of targets


@dataclass(frozen=True)
class Arguments:
    """The named arguments of a model's forward."""

    names: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()  # those without a default
    others: bool = True  # whether it takes further arguments of any name


@dataclass(frozen=True)
class ItemRequirements:
    """What the loss and the model need of an item, which decides how it is divided into inputs and targets."""

    whole: bool = False  # the item is not divided, for a loss of (model, batch)
    trees: bool = False  # targets may be any tree of tensors, or missing, for a user's loss; else y is one tensor
    takes: Arguments = Arguments()  # of the model's forward
    model: str | None = None  # the model's name as typed; its folder may hold a tokenizer
    forwards: bool = False  # whole items go to the model's forward, which returns the loss
    shift: int | None = None  # the ignored label, if labels of tokens are to be shifted by one place; else None


def item_requirements(loss: Loss, model: nn.Module | None = None, name: str | None = None) -> ItemRequirements:
    """Return what a loss and a model need of an item; `name` is the model's name as typed."""
    whole = isinstance(loss, BatchLoss)
    return ItemRequirements(
        whole=whole,
        trees=isinstance(loss, CustomLoss),
        takes=Arguments() if model is None else arguments_of(model),
        model=name,
        forwards=isinstance(loss, ModelLoss) and not (model is not None and is_lightning(model)),
        shift=loss.ignore_index if isinstance(loss, CrossEntropy) and loss.shift else None,
    )


def arguments_of(model: nn.Module) -> Arguments:
    """Return the named arguments of a model's forward; any are allowed where it cannot be inspected."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return Arguments()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = tuple(p.name for p in named if p.default is p.empty)
    return Arguments(tuple(p.name for p in named), needed, any(p.kind is p.VAR_KEYWORD for p in parameters))


class CannotSplit(ValueError):
    """An item has another form, or lacks the targets that the loss needs."""


def split_item(item: Any, wanted: ItemRequirements) -> tuple[Any, Any]:
    """Divide an item into the trees of inputs and targets; targets are None where there are none.

    Raises CannotSplit.
    """
    tree = as_mapping(item)
    if wanted.whole:
        return plain(labelled(tree, wanted)), None
    if is_pair(tree):
        return plain(tree[0]), plain(tree[1])
    if isinstance(tree, Mapping):
        return split_mapping(tree, wanted)
    if wanted.trees and isinstance(tree, tuple | list) and len(tree) == 1:
        return plain(tree[0]), None
    if wanted.trees and not isinstance(tree, tuple | list):
        return plain(tree), None
    raise CannotSplit


def is_pair(item: Any) -> bool:
    """Whether an item has the form (x, y)."""
    return isinstance(item, tuple | list) and len(item) == 2


def labelled(item: Any, wanted: ItemRequirements) -> Any:
    """A pair (x, y) as the first argument and the labels of a model that is asked for its own loss; else the item."""
    takes = wanted.takes.names
    if not (wanted.forwards and is_pair(item) and TARGETS[0] in takes[1:]):
        return item
    return {takes[0]: item[0], TARGETS[0]: item[1]}


def split_mapping(tree: Mapping[str, Any], wanted: ItemRequirements) -> tuple[Any, Any]:
    """Divide a mapping, which has targets under a name of TARGETS, into inputs and targets. Raises CannotSplit."""
    rest = {str(key): value for key, value in tree.items()}
    under = [key for key in TARGETS if key in rest]
    if not under:
        under = [key for key in OTHER_TARGETS if key in rest and key not in wanted.takes.names]
    if len(under) > 1 or (not under and not wanted.trees) or len(rest) == len(under):
        raise CannotSplit
    targets = plain(rest.pop(under[0])) if under else None
    weights = [key for key in WEIGHTS if key in rest and key not in wanted.takes.names]
    if under and weights and len(rest) > 1:
        targets = {"labels": targets, "weights": plain(rest.pop(weights[0]))}
    if list(rest) == ["x"] and "x" not in wanted.takes.names[1:]:
        return plain(rest["x"]), targets
    return plain(rest), targets


def pair_wanted() -> str:
    """Describe the form of an item, for messages."""
    others = "; any other form needs a loss of (model, batch)"
    return f"a pair (x, y), or a mapping with y under {' or '.join(TARGETS)}{others}"


def describe_item(item: Any) -> str:
    """Describe an item for a message: its type, and its keys or its length."""
    came = type(item).__name__
    if isinstance(item, Mapping):
        return f"{came} of {', '.join(map(str, item))}"
    return f"{came} of length {len(item)}" if isinstance(item, tuple | list) else came


def as_mapping(item: Any) -> Any:
    """Convert an object of a dataclass to a mapping of its fields; return anything else unchanged."""
    if dataclasses.is_dataclass(item) and not isinstance(item, type | Mapping | tuple):
        return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return item


def plain(tree: Any) -> Any:
    """Convert mappings in a tree to dicts, sequences to (named) tuples, and lists of numbers to tensors.

    Without that, torch's pytree would split a list of numbers into its entries.
    """
    tree = as_mapping(tree)
    if isinstance(tree, Mapping):
        return {key: plain(value) for key, value in tree.items()}
    if is_numbers(tree):
        with suppress(ValueError):  # rows of different lengths
            return torch.tensor(tree)
    if isinstance(tree, tuple | list):
        return tuple_like(tree, map(plain, tree))
    return tree.detach().cpu() if isinstance(tree, Tensor) else tree


def is_numbers(value: Any) -> bool:
    """Whether a value is a list of numbers, perhaps nested."""
    if not isinstance(value, tuple | list) or len(value) == 0:
        return False
    return all(isinstance(entry, numbers.Number) or is_numbers(entry) for entry in value)


def as_tensor(leaf: Any) -> Any:
    """Convert an array of numbers to a tensor; return anything else unchanged."""
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        return torch.from_numpy(leaf.astype(leaf.dtype.newbyteorder("=")))  # a copy in native order, as torch needs
    return leaf


def refuse_other_names(inputs: Any, takes: Arguments, name: str) -> None:
    """Raise SpectraError where named inputs do not match the arguments of the model."""
    if not isinstance(inputs, Mapping):
        return
    known = ", ".join(takes.names) or "none by name"
    unknown = [key for key in inputs if key not in takes.names]
    if unknown and not takes.others:
        text = f"the model has no argument {', '.join(map(str, unknown))} (it takes {known}); "
        way_out = "leave that out of the data, or give it one of these names"
        if len(takes.names) == 1:
            way_out = (
                "name the input x and the targets y; a model that takes a whole mapping needs a loss of (model, batch)"
            )
        raise input_error("`data`", name, text + way_out)
    if missing := [key for key in takes.needed if key not in inputs]:
        held = ", ".join(map(str, inputs))
        text = f"the model needs {', '.join(missing)}, but the data hold {held}"
        raise input_error("`data`", name, f"{text}; name them as the model's arguments ({known})")


def unnamed_arguments(inputs: Any, takes: Arguments) -> list[str]:
    """A note on inputs that a model takes as `**kwargs` and may ignore, as those of transformers do; none where there
    are no such inputs.
    """
    names = (
        [str(key) for key in inputs if key not in takes.names] if isinstance(inputs, Mapping) and takes.names else []
    )
    if not names:
        return []
    return [
        f"the model's forward has no argument {', '.join(names)}, and may ignore it: it has {', '.join(takes.names)}"
    ]


def refuse_weights(inputs: Any, takes: Arguments, name: str) -> None:
    """Raise SpectraError where the data have weights of targets and a model of transformers computes the loss.

    Its forward accepts any name, but its own loss would ignore the weights.
    """
    if not isinstance(inputs, Mapping):
        return
    if weights := [key for key in inputs if key in WEIGHTS and key not in takes.names]:
        text = f"the model's own loss ignores {', '.join(weights)}; leave that out of the data, or name a loss of the"
        raise input_error(
            "`data`", name, f"{text} outputs, such as cross_entropy?shift=true for a causal language model"
        )
