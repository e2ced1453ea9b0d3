"""Divide what a data set or a loader gives into the model's inputs and the loss's targets.

An item is one example, or a batch of them. It is a pair (x, y), or a mapping that has y under one of the names in
TARGETS and x in the rest. A loss of (model, batch) gets the item as it is; a user's loss of (output, target) may have
targets that are several tensors, or none.
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
OTHER_TARGETS = ("targets", "target", "y")  # taken where there is none of those, and the model takes no such argument
WEIGHTS = ("weights", "loss_mask")  # of the targets, beside them


@dataclass(frozen=True)
class Arguments:
    """The arguments that a model's forward takes by name.

    Attributes: names: their names. needed: those without a default. others: whether it takes more, of any name.
    """

    names: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    others: bool = True


@dataclass(frozen=True)
class Wanted:
    """What the loss and the model take of an item, and so how it is divided.

    Attributes: whole: the item stays as it is, as a loss of (model, batch) takes it. trees: targets may be any tree of
    tensors, or absent, as for a user's loss of (output, target); else y is one tensor. takes: the arguments of the
    model's forward. model: the model's name as on the command line, whose folder may hold a tokenizer. forwards:
    whether whole items go to the model's forward, whose own loss is asked for. shift: where labels of tokens are
    those of the inputs and become those of the next tokens, the label that is ignored; else None.
    """

    whole: bool = False
    trees: bool = False
    takes: Arguments = Arguments()
    model: str | None = None
    forwards: bool = False
    shift: int | None = None


def wanted_by(loss: Loss, model: nn.Module | None = None, name: str | None = None) -> Wanted:
    """What a loss and a model of this name take of an item."""
    whole = isinstance(loss, BatchLoss)
    return Wanted(
        whole=whole,
        trees=isinstance(loss, CustomLoss),
        takes=Arguments() if model is None else arguments_of(model),
        model=name,
        forwards=isinstance(loss, ModelLoss) and not (model is not None and is_lightning(model)),
        shift=loss.ignore_index if isinstance(loss, CrossEntropy) and loss.shift else None,
    )


def arguments_of(model: nn.Module) -> Arguments:
    """The arguments of a model's forward; any, where it does not tell."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return Arguments()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = tuple(p.name for p in named if p.default is p.empty)
    return Arguments(tuple(p.name for p in named), needed, any(p.kind is p.VAR_KEYWORD for p in parameters))


class Undivided(ValueError):
    """An item has no targets where the loss takes them, or is of another form."""


def divided(item: Any, wanted: Wanted) -> tuple[Any, Any]:
    """The inputs and the targets of an item, as trees; targets are None where there are none.

    Raises Undivided.
    """
    tree = as_mapping(item)
    if wanted.whole:
        return plain(labelled(tree, wanted)), None
    if is_pair(tree):
        return plain(tree[0]), plain(tree[1])
    if isinstance(tree, Mapping):
        return divided_mapping(tree, wanted)
    if wanted.trees and isinstance(tree, tuple | list) and len(tree) == 1:
        return plain(tree[0]), None
    if wanted.trees and not isinstance(tree, tuple | list):
        return plain(tree), None
    raise Undivided


def is_pair(item: Any) -> bool:
    """Whether an item has the form (x, y)."""
    return isinstance(item, tuple | list) and len(item) == 2


def labelled(item: Any, wanted: Wanted) -> Any:
    """A pair (x, y) as the first argument and the labels of a model that is asked for its own loss; else the item."""
    takes = wanted.takes.names
    if not (wanted.forwards and is_pair(item) and TARGETS[0] in takes[1:]):
        return item
    return {takes[0]: item[0], TARGETS[0]: item[1]}


def divided_mapping(tree: Mapping[str, Any], wanted: Wanted) -> tuple[Any, Any]:
    """The inputs and targets of a mapping, which has targets under a name of TARGETS. Raises Undivided."""
    rest = {str(key): value for key, value in tree.items()}
    under = [key for key in TARGETS if key in rest]
    if not under:
        under = [key for key in OTHER_TARGETS if key in rest and key not in wanted.takes.names]
    if len(under) > 1 or (not under and not wanted.trees) or len(rest) == len(under):
        raise Undivided
    targets = plain(rest.pop(under[0])) if under else None
    weights = [key for key in WEIGHTS if key in rest and key not in wanted.takes.names]
    if under and weights and len(rest) > 1:
        targets = {"labels": targets, "weights": plain(rest.pop(weights[0]))}
    if list(rest) == ["x"] and "x" not in wanted.takes.names[1:]:
        return plain(rest["x"]), targets
    return plain(rest), targets


def pair_wanted() -> str:
    """The form of an item, for messages."""
    others = "; another form goes with a loss of (model, batch)"
    return f"a pair (x, y), or a mapping with y under {' or '.join(TARGETS)}{others}"


def described(item: Any) -> str:
    """The type of an item, with its names or its length."""
    came = type(item).__name__
    if isinstance(item, Mapping):
        return f"{came} of {', '.join(map(str, item))}"
    return f"{came} of length {len(item)}" if isinstance(item, tuple | list) else came


def as_mapping(item: Any) -> Any:
    """An item as it is; an object of a dataclass as a mapping of its fields."""
    if dataclasses.is_dataclass(item) and not isinstance(item, type | Mapping | tuple):
        return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return item


def plain(tree: Any) -> Any:
    """The tree with mappings as dicts, sequences as tuples, named or not, and lists of numbers as tensors (torch would
    take them apart).
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
    """Whether this is a list of numbers, or of lists of numbers of one length."""
    if not isinstance(value, tuple | list) or len(value) == 0:
        return False
    return all(isinstance(entry, numbers.Number) or is_numbers(entry) for entry in value)


def as_tensor(leaf: Any) -> Any:
    """An array of numbers as a tensor, anything else as it is."""
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        return torch.from_numpy(leaf.astype(leaf.dtype.newbyteorder("=")))  # a copy, in the one order torch reads
    return leaf


def refuse_other_names(inputs: Any, takes: Arguments, name: str) -> None:
    """Raise SpectraError where inputs that go to the model by name are not the arguments that it takes."""
    if not isinstance(inputs, Mapping):
        return
    known = ", ".join(takes.names) or "none by name"
    unknown = [key for key in inputs if key not in takes.names]
    if unknown and not takes.others:
        text = f"the model takes no {', '.join(map(str, unknown))} (it takes {known}); "
        way_out = "leave that out of the data, or give it one of these names"
        if len(takes.names) == 1:
            way_out = (
                "name the input x and the targets y; a model that takes a whole mapping needs a loss of (model, batch)"
            )
        raise input_error("`data`", name, text + way_out)
    if missing := [key for key in takes.needed if key not in inputs]:
        held = ", ".join(map(str, inputs))
        text = f"the model needs {', '.join(missing)}, and the data hold {held}"
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
    """Raise SpectraError where weights of targets go to a model of transformers, whose forward takes any name and whose
    own loss has no weights.
    """
    if not isinstance(inputs, Mapping):
        return
    if weights := [key for key in inputs if key in WEIGHTS and key not in takes.names]:
        text = f"the model's own loss takes no {', '.join(weights)}; leave that out of the data, or name a loss of the"
        raise input_error("`data`", name, f"{text} outputs, as cross_entropy?shift=true for a causal language model")
