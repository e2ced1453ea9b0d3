"""Match the names of tensors in a file with those of a model.

- A name in a file is a prefix and a name of the model, with parts that wrappers insert (DataParallel, torch.compile,
  FSDP, activation checkpoints) anywhere: `net._orig_mod.fc.weight` is `fc.weight` under the prefix `net._orig_mod.`.
- The prefix is the one under which most of the model's tensors are found.
- The file may also lack a prefix that most names of the model have: `fc.weight` in the file matches `net.fc.weight` of
  a model that wraps another one.
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any

from torch import Tensor, nn

from spectra.inputs.spec import SHORT
from spectra.quoting import quoted

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
SHOWN = 5  # names in one list of a message
TRIED = 60  # names of each side that are paired: the cost is quadratic


def some(names: list[str], most: int | None = SHORT) -> str:
    """Join the first names of a list for a message, each cut to `most` characters."""
    rest = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(quoted(name, most) for name in names[:SHOWN]) + rest


def is_state_dict(value: Any) -> bool:
    """Whether a mapping is mostly from names to tensors; the `_extra_state` of a layer may itself be a mapping."""
    if not (isinstance(value, Mapping) and value and all(isinstance(name, str) for name in value)):
        return False
    nested = any(isinstance(v, Mapping) and not name.endswith("_extra_state") for name, v in value.items())
    tensors = sum(isinstance(v, Tensor) for v in value.values())
    return not nested and 2 * tensors > len(value)


def state_dicts(content: Mapping, depth: int = 3) -> Iterator[tuple[str, Mapping]]:
    """Yield the state dicts nested in `content` with their dotted keys, except the states of optimizers."""
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Mapping):
            continue
        if "optim" in name.lower() or "param_groups" in value:
            continue
        if is_state_dict(value):
            yield name, value
        elif depth > 1:
            yield from ((f"{name}.{rest}", state) for rest, state in state_dicts(value, depth - 1))


@dataclass(frozen=True)
class Match:
    """One way to read a state dict as a model's: a prefix, and the name in the model for each name in the file.

    Names under the prefix that the model lacks are in `names` too, without prefix and wrappers.
    """

    key: str | None
    prefix: str
    names: dict[str, str]
    share: float  # of the model's tensors that are in the file; tied ones count once
    added: str = ""  # prefix that these names have in the model and lack in the file

    @property
    def where(self) -> str:
        """The key and prefix joined, as `checkpoint_key` takes them."""
        return ".".join(filter(None, (self.key, self.prefix.rstrip("."))))


def tensors_of(model: nn.Module) -> dict[str, int]:
    """Map the names in a model's state dict to the identity of their tensor; tied tensors share it."""
    named = model.state_dict(keep_vars=True)
    return {name: id(tensor) for name, tensor in named.items() if isinstance(tensor, Tensor)}


def bare(name: str) -> str:
    """Remove the parts that wrappers have inserted from a name."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


class ModelKeys:
    """The names of a model's state dict, indexed for the comparison with the state dicts of a file.

    Args:
        names: all names in the state dict.
        tensors: the identity of the tensor of each name that has to be in a file.
        paths: the paths of the model's modules.
    """

    def __init__(self, names: Iterable[str], tensors: Mapping[str, int], paths: Iterable[str]):
        self.names, self.tensors, self.paths = list(names), tensors, list(paths)
        self._plain = _distinct(self.names)
        self._own: dict[Callable, dict[str, dict[str, str]]] = {}

    @classmethod
    def of(cls, model: nn.Module) -> ModelKeys:
        """Index the names of a model's state dict."""
        # Old files lack the counters of BatchNorm.
        named = {name: tensor for name, tensor in tensors_of(model).items() if not name.endswith("num_batches_tracked")}
        return cls(model.state_dict(), named, [path for path, _ in model.named_modules()])

    def short(self, names: Collection[str]) -> Callable[[str], str]:
        """Return `bare`, or the identity where `bare` would make two names of the file or of the model equal."""
        return bare if self._plain and _distinct(names) else str

    def under(self, short: Callable[[str], str]) -> dict[str, dict[str, str]]:
        """Map each common prefix of the model's names to {shortened name without the prefix: name}.

        A prefix is common if more than half of the tensors lie under it (tied ones count once), so the prefixes are
        nested. The empty prefix comes first, then one of one part, and so on.
        """
        if short not in self._own:
            parts = {name: short(name).split(".") for name in self.names}
            below: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)
            for name, tensor in self.tensors.items():
                for cut in range(len(parts[name])):
                    below[tuple(parts[name][:cut])].add(tensor)
            every = max(len(set(self.tensors.values())), 1)
            starts = [start for start, tensors in below.items() if 2 * len(tensors) > every] or [()]
            self._own[short] = {
                ".".join(start): {".".join(p[len(start) :]): n for n, p in parts.items() if p[: len(start)] == [*start]}
                for start in sorted(starts, key=len)
            }
        return self._own[short]


def _distinct(names: Collection[str]) -> bool:
    return len({bare(name) for name in names}) == len(names)


def matches(key: str | None, names: Collection[str], wanted: ModelKeys) -> list[Match]:
    """Return the best ways to read the names in a file as the model's: several where prefixes are equally good.

    A prefix, removed or added, is used only if it matches more tensors than no prefix does, and more than half of the
    model's tensors.
    """
    short = wanted.short(names)
    ordered = sorted((short(name), place, name) for place, name in enumerate(names))
    ways = [_ways(key, names, ordered, wanted, short, added) for added in wanted.under(short)]
    best = max(ways, key=lambda found: found[0].share)
    return best if best[0].share > 0.5 else ways[0]


def _ways(
    key: str | None,
    names: Collection[str],
    ordered: list[tuple[str, int, str]],
    wanted: ModelKeys,
    short: Callable[[str], str],
    added: str,
) -> list[Match]:
    """Return the best ways to read the names in a file, with the prefix `added` put before all of them."""
    own = wanted.under(short)[added]
    under = _under_prefixes(names, own, short)
    tensors, all_of_them = wanted.tensors, max(len(set(wanted.tensors.values())), 1)
    share = {
        prefix: len({tensors.get(n) for n in known.values()} - {None}) / all_of_them for prefix, known in under.items()
    }
    most = max(share.values(), default=0.0)
    best = [prefix for prefix, part in share.items() if part == most]
    if "" in best or most <= 0.5:
        best = [""]

    def match(prefix: str) -> Match:
        written, start = _as_written(prefix, under[prefix], short), f"{prefix}." if prefix else ""
        inside = [name for name in _beginning(start, ordered) if name.startswith(written)]
        rest = {name: short(name).removeprefix(start) for name in inside}
        own_names = {name: own.get(rest[name], rest[name]) for name in inside}
        return Match(key, written or start, own_names, share.get(prefix, 0.0), f"{added}." if added else "")

    return [match(prefix) for prefix in best]


def _beginning(start: str, ordered: list[tuple[str, int, str]]) -> list[str]:
    """Return the names with a short form that begins with `start`, in the order of the file."""
    found = takewhile(lambda entry: entry[0].startswith(start), islice(ordered, bisect_left(ordered, (start,)), None))
    return [name for _, _, name in sorted(found, key=lambda entry: entry[1])]


def _under_prefixes(
    names: Iterable[str], own: Mapping[str, str], short: Callable[[str], str]
) -> defaultdict[str, dict[str, str]]:
    """Map each prefix (without wrappers) to {name in the file: name in the model}."""
    under: defaultdict[str, dict[str, str]] = defaultdict(dict)
    deepest = max((name.count(".") + 1 for name in own), default=0)
    for name in names:
        parts = short(name).split(".")
        for cut in range(max(len(parts) - deepest, 0), len(parts)):
            if (rest := ".".join(parts[cut:])) in own:
                under[".".join(parts[:cut])][name] = own[rest]
    return under


def _as_written(prefix: str, known: dict[str, str], short: Callable[[str], str]) -> str:
    """Return a prefix as the file has it, with wrappers, such as `net._orig_mod.`; the longest that all names share."""
    if not prefix and all(name == own for name, own in known.items()):
        return ""  # the model is wrapped as well
    parts = next(iter(known), "").split(".")[:-1]
    for cut in range(len(parts), 0, -1):
        written = "".join(f"{part}." for part in parts[:cut])
        if short(written.rstrip(".")) == prefix and all(name.startswith(written) for name in known):
            return written
    return ""


def versions(state: Mapping, match: Match, wanted: ModelKeys) -> dict[str, dict[str, int]] | None:
    """Return the versions of layers in torch's `_metadata`, under the model's names; None without `_metadata`.

    Nothing else is read from it: `assign_to_params_buffers`, for example, would let a file replace the model's tensors.
    """
    kept = getattr(state, "_metadata", None)
    if not isinstance(kept, Mapping):
        return None
    short = bare if any(name != own for name, own in match.names.items()) else str
    start, found = match.prefix.rstrip("."), {}
    for path, entry in kept.items():
        version = entry.get("version") if isinstance(entry, Mapping) else None
        if isinstance(path, str) and f"{path}.".startswith(match.prefix) and isinstance(version, int):
            found[f"{match.added}{short(path[len(start) :].lstrip('.'))}".rstrip(".")] = {"version": version}
    return {path: found[short(path)] for path in wanted.paths if short(path) in found}


def _other_outputs(wanted: Mapping[str, Tensor], state: Mapping[str, Any]) -> str:
    """What to say where all tensors that differ have another number of outputs, as of a head for other classes."""
    shared = [(tensor, state[name]) for name, tensor in wanted.items() if isinstance(state.get(name), Tensor)]
    heads = [(one.shape, other.shape) for one, other in shared if one.shape != other.shape]
    if not heads or any(not one or len(one) != len(other) or one[1:] != other[1:] for one, other in heads):
        return ""
    counts = {other[0] for _, other in heads}
    return f" (num_classes={counts.pop()}?)" if len(counts) == 1 else ""


def differences(
    wanted: Mapping[str, Tensor], state: Mapping[str, Any], missing: list[str], unexpected: list[str]
) -> str:
    """Describe the keys and shapes that differ; for a checkpoint of another model, list the names of both."""
    pairs = _nearest(missing, unexpected)
    if missing and unexpected and wanted.keys().isdisjoint(state) and not _renamed(pairs, missing, unexpected):
        return f"its names are not those of the model: it has {some(unexpected)}, but the model has {some(missing)}"
    lost = [f"{quoted(name, SHORT)} (the checkpoint has {quoted(pairs[name], SHORT)})" for name in pairs]
    lost += [quoted(name, SHORT) for name in missing if name not in pairs]
    extra = [name for name in unexpected if name not in pairs.values()]
    shapes = [
        f"{quoted(name, SHORT)} is {_shape(tensor)} in the model, {_shape(state[name])} in the checkpoint"
        for name, tensor in wanted.items()
        if name in state and _shape(tensor) != _shape(state[name])
    ]
    parts = [
        f"missing {some(lost, None)}" if lost else "",
        f"unexpected {some(extra)}" if extra else "",
        some(shapes, None) + _other_outputs(wanted, state),
    ]
    return "; ".join(part for part in parts if part)


def _renamed(pairs: Mapping[str, str], missing: list[str], unexpected: list[str]) -> bool:
    """Whether one renaming explains at least nine in ten differences between the names."""
    changes = Counter(_change(*pair) for pair in pairs.items())
    return 10 * max(changes.values(), default=0) >= 9 * min(max(len(missing), len(unexpected)), TRIED)


def _change(one: str, two: str) -> tuple[str, str]:
    """Return the parts in which two names differ: (fc, head) for net.fc.weight and net.head.weight."""
    a, b = one.split("."), two.split(".")
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    return ".".join(a), ".".join(b)


def _nearest(missing: list[str], unexpected: list[str]) -> dict[str, str]:
    """Pair the first missing names with similar unexpected ones, the most similar pair first."""
    scored = []
    for name in missing[:TRIED]:
        matcher = difflib.SequenceMatcher(b=name)
        for other in unexpected[:TRIED]:
            matcher.set_seq1(other)
            if matcher.quick_ratio() > 0.6 and (ratio := matcher.ratio()) > 0.6:
                scored.append((ratio, name, other))
    pairs: dict[str, str] = {}
    for _, name, other in sorted(scored, key=lambda s: -s[0]):
        if name not in pairs and other not in pairs.values():
            pairs[name] = other
    return pairs


def _shape(value: Any) -> str:
    if isinstance(value, Tensor) and value.is_nested:
        return "nested"
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"of type {type(value).__name__}"
