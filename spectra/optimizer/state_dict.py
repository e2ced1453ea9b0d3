"""Read `optimizer.state_dict()`: the options and the state of each of the model's parameters.

States are saved by number (torch), by number beside names (optimizers of `model.named_parameters()`), or by name
(FSDP and torch.distributed.checkpoint, whose dicts may be flat: `state.fc.weight.exp_avg`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectra.inputs.state_dict import ModelKeys, matches
from spectra.optimizer.matching import by_order
from spectra.optimizer.parameter_state import ParameterState, refusal
from spectra.optimizer.rules import recognise
from spectra.quoting import foreign

STATE, GROUPS = "state", "param_groups"
SCALARS = {"step", "mu_product", "RMS"}  # names in a state whose tensors are not of the parameter's shape
# Names of Adafactor's averages over rows and over columns, and whether those over rows keep a dimension of 1.
FACTORS = (("row_var", "col_var", True), ("exp_avg_sq_row", "exp_avg_sq_col", False))


def is_optimizer_state(value: Any) -> bool:
    """Whether a value has the form of `optimizer.state_dict()`, flat or not."""
    if not isinstance(value, Mapping):
        return False
    flat = any(isinstance(key, str) and key.startswith(f"{GROUPS}.") for key in value)
    return flat or (isinstance(value.get(STATE), Mapping) and isinstance(value.get(GROUPS), list | tuple))


@dataclass(frozen=True)
class ParameterStates:
    """The options and state that an optimizer holds for each of its parameters, by name in the model."""

    kind: str  # the optimizer's name in RULES
    by_name: dict[str, ParameterState]
    matched: str | None  # how a saved state was matched with the model: names, or order; None: it was not saved


def read_parameter_states(state_dict: Mapping, model: nn.Module, name: str | None = None) -> ParameterStates:
    """Read the options and state that a saved optimizer holds for each of a model's parameters.

    Args:
        state_dict: what `optimizer.state_dict()` returned.
        model: the model whose parameters were optimized, built as in training.
        name: the name of torch's class, if it is known.

    Raises:
        SpectraError: it is not such a dict, its optimizer is not supported, or its states fit the model in no way or in
            several.
    """
    if not is_optimizer_state(state_dict):
        raise refusal("it holds no `state` and `param_groups`; give the dict that optimizer.state_dict() returned")
    state, groups = _parts(state_dict)
    rule = recognise(groups, state.values(), name)
    keys = [list(dict.fromkeys(group["params"])) for group in groups]
    if any(count > 1 for count in Counter(key for own in keys for key in own).values()):
        raise refusal("a parameter is in two of its groups; save it again")
    named = dict(model.named_parameters())
    written = _written(groups, keys)
    names = in_model(written, model) if written else _by_order(keys, state, model)
    found = {
        own: ParameterState(own, named[own].shape, group, state.get(key) or {}, named[own])
        for group, under, of_group in zip(groups, keys, names, strict=True)
        for key, own in zip(under, of_group, strict=True)
        if own in named
    }
    return ParameterStates(rule, found, "names" if written else "order")


def _parts(state_dict: Mapping) -> tuple[Mapping[Any, Mapping], Sequence[Mapping]]:
    """The states and the groups. Raises SpectraError if they are damaged."""
    state, groups = _unflattened(state_dict) if GROUPS not in state_dict else (state_dict[STATE], state_dict[GROUPS])
    whole = all(
        isinstance(group, Mapping)
        and isinstance(group.get("params"), list | tuple)
        and all(isinstance(key, int | str) for key in group["params"])
        for group in groups
    )
    if not (whole and groups and all(isinstance(held, Mapping) for held in state.values())):
        raise refusal("its param_groups or its state are damaged; save optimizer.state_dict() again")
    return state, groups


def _unflattened(flat: Mapping) -> tuple[dict[str, dict], list[dict]]:
    """The states and groups of a flat dict of torch.distributed.checkpoint, with one group per parameter."""
    parts: dict[str, dict[str, dict]] = {STATE: {}, GROUPS: {}}
    for key, value in flat.items():
        kind, _, rest = str(key).partition(".")
        own, _, option = rest.rpartition(".")
        if kind in parts and own:
            parts[kind].setdefault(own, {})[option] = value
    return parts[STATE], [options | {"params": [own]} for own, options in parts[GROUPS].items()]


def _written(groups: Sequence[Mapping], keys: list[list]) -> list[list[str]] | None:
    """The names of the parameters of each group in the file; None if it has only numbers."""
    if all(isinstance(key, str) for own in keys for key in own):
        return keys
    if not all("param_names" in group for group in groups):
        return None
    written = [list(dict.fromkeys(group["param_names"])) for group in groups]
    if [len(own) for own in written] != [len(own) for own in keys]:
        raise refusal("its param_names and params differ in number; save optimizer.state_dict() again")
    return written


def _by_order(keys: list[list], state: Mapping[Any, Mapping], model: nn.Module) -> list[list[str]]:
    """The names in the model of the parameters of each group, by their order and shapes."""
    return by_order([[_shape(state.get(key) or {}) for key in own] for own in keys], model)


def in_model(written: list[list[str]], model: nn.Module) -> list[list[str]]:
    """The model's names for the names in a file, whatever wrapper the model had when it was saved.

    Tied parameters have their first name. Raises SpectraError if several prefixes fit.
    """
    every = dict(model.named_parameters(remove_duplicate=False))
    first = {id(p): name for name, p in model.named_parameters()}
    wanted = ModelKeys(every, {name: id(p) for name, p in every.items()}, ())
    found = matches(None, [name for own in written for name in own], wanted)
    if len(found) > 1:
        starts = " or ".join(foreign(match.prefix) for match in found[:2])
        raise refusal(f"its names fit the model under several prefixes ({starts}); save the optimizer of one model")
    names = {name: first[id(every[own])] if own in every else own for name, own in found[0].names.items()}
    return [[names.get(name, name) for name in own] for own in written]


def _shape(state: Mapping[str, Any]) -> torch.Size | None:
    """The shape of the parameter that a state belongs to; None if no tensor shows it."""
    shapes = {key: v.shape for key, v in state.items() if key not in SCALARS and isinstance(v, Tensor)}
    for row, column, keeps in FACTORS:
        if row in shapes and column in shapes:
            return torch.Size([*(shapes[row][:-1] if keeps else shapes[row]), *shapes[column][-1:]])
    return next(iter(shapes.values()), None)
