"""Match the states of an optimizer, which are saved by number, with the parameters of a model.

Torch numbers parameters in the order in which they were passed to the optimizer, group after group. This is the model's
order only for a single group of `model.parameters()`, or of those that require gradients. With several groups, or with
some parameters left out, all assignments are tried that keep the model's order within each group, as filters and the
parameters of a layer do, and in which all shapes fit. An assignment is accepted only if it is unique.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from spectra.optimizer.parameter_state import refusal
from spectra.quoting import foreign
from spectra.wording import counted

Shape = torch.Size | None  # None: unknown, for a parameter without state
Path = tuple  # a linked list of choices: (the path before, the group chosen); () is the empty one
MOST = 10_000  # partial assignments that are kept; with more, the shapes do not decide
WITH_NAMES = "save with names, as torch.optim.Adam(model.named_parameters()) does, or pass the optimizer itself"


def by_order(groups: Sequence[Sequence[Shape]], model: nn.Module) -> list[list[str]]:
    """Match the shapes in groups with the model's parameters, and return the names in the same form.

    Args:
        groups: the shapes of the states of each group, in its order.
        model: the model that was optimized; tied parameters count once.

    Raises:
        SpectraError: no assignment fits, or more than one does.
    """
    named = dict(model.named_parameters())
    trainable = {name: p for name, p in named.items() if p.requires_grad}
    count = sum(map(len, groups))
    if count > len(named):
        raise refusal(f"it has {counted(count, 'parameter')}, but the model has {len(named):,}; check `model`")
    for pool in (named, trainable):
        if len(pool) == count and (found := _assignments(groups, pool)):
            return _single(groups, found, list(pool))
    if count == len(named):
        raise _misfit(groups, named)
    if not (found := _assignments(groups, named)):
        raise refusal(
            f"the shapes of its {counted(count, 'parameter')} do not fit the model's {len(named):,} in any order; "
            f"check `model`, or {WITH_NAMES}"
        )
    return _single(groups, found, list(named))


def _single(groups: Sequence[Sequence[Shape]], found: list[list[int | None]], names: list[str]) -> list[list[str]]:
    """The names by groups, in the only assignment. Raises SpectraError if there are two."""
    if len(found) > 1:
        one, other = (_filled(groups, choices, names) for choices in found)
        places = [(g, i) for g, group in enumerate(groups) for i in range(len(group))]
        g, i = next((g, i) for g, i in places if one[g][i] != other[g][i])
        pair = f"{foreign(one[g][i])} or {foreign(other[g][i])}"
        number = sum(map(len, groups[:g])) + i
        raise refusal(f"its parameters are saved by number, and number {number} may be {pair}; {WITH_NAMES}")
    return _filled(groups, found[0], names)


def _filled(groups: Sequence[Sequence[Shape]], choices: list[int | None], names: list[str]) -> list[list[str]]:
    filled: list[list[str]] = [[] for _ in groups]
    for name, chosen in zip(names, choices, strict=True):
        if chosen is not None:
            filled[chosen].append(name)
    return filled


def _assignments(groups: Sequence[Sequence[Shape]], pool: Mapping[str, nn.Parameter]) -> list[list[int | None]]:
    """All assignments of groups to the parameters of the pool, None for a parameter in no group; at most two.

    Raises SpectraError if there are too many partial assignments.
    """
    spare = len(pool) - sum(map(len, groups))
    ways: dict[tuple[int, ...], list[Path]] = {(0,) * len(groups): [()]}  # entries taken of each group -> paths
    for seen, p in enumerate(pool.values()):
        after: dict[tuple[int, ...], list[Path]] = {}
        for taken, paths in ways.items():
            steps: list[tuple[int | None, tuple[int, ...]]] = [
                (g, (*taken[:g], taken[g] + 1, *taken[g + 1 :]))
                for g, group in enumerate(groups)
                if taken[g] < len(group) and group[taken[g]] in (None, p.shape)
            ]
            if seen - sum(taken) < spare:
                steps.append((None, taken))
            for chosen, place in steps:
                held = after.setdefault(place, [])
                held.extend((path, chosen) for path in paths[: 2 - len(held)])
        if len(after) > MOST:
            raise refusal(f"its parameters are saved by number, and their shapes fit in many ways; {WITH_NAMES}")
        ways = after
    return [_unlinked(path) for paths in ways.values() for path in paths]


def _unlinked(path: Path) -> list[int | None]:
    choices = []
    while path:
        path, chosen = path
        choices.append(chosen)
    return choices[::-1]


def _misfit(groups: Sequence[Sequence[Shape]], named: Mapping[str, nn.Parameter]) -> Exception:
    """The error for an optimizer of all parameters with shapes that do not fit."""
    if len(groups) == 1:
        for i, ((name, p), shape) in enumerate(zip(named.items(), groups[0], strict=True)):
            if shape not in (None, p.shape):
                shapes = f"{tuple(shape)}, but {foreign(name)} of the model has shape {tuple(p.shape)}"
                return refusal(f"its parameter number {i} has shape {shapes}; check `model`, or {WITH_NAMES}")
    return refusal(f"its shapes do not fit the model's parameters in any order; check `model`, or {WITH_NAMES}")
