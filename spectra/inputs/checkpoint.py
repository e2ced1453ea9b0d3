"""`--checkpoint`: weights from a file that nobody vouches for, into a model, all of them or none.

Nothing in the file is run: torch reads it with `weights_only=True`. What usually lies beside the weights
(hyper-parameters, paths, NumPy numbers) is not rebuilt at all: an inert stand-in takes its place.
"""

import difflib
import hashlib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectra.errors import SpectraError, describe
from spectra.inputs.spec import input_error

OPTION, KEY_OPTION = "--checkpoint", "--checkpoint-key"
PREFIXES = ("module.", "_orig_mod.")
RESAVE = 'torch.save(model.state_dict(), "weights.pt")'
SHOWN = 5  # names of a kind in one message


class Ignored:
    """Stands in for whatever lies beside the weights, and does nothing with what it is given."""

    def __new__(cls, *_args: Any) -> "Ignored":
        return object.__new__(cls)

    def __init__(self, *_args: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


def _plain_dict(*_factory: Any) -> dict:
    return {}


# The real classes would be less safe: a forged state of numpy.dtype, for one, can make bytes into pointers.
PATHS = ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
ARRAYS = ("multiarray.scalar", "multiarray._reconstruct")
BESIDE_WEIGHTS = [
    "argparse.Namespace",
    *(f"builtins.{name}" for name in ("list", "dict", "int", "float", "str", "bool")),  # of a defaultdict
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in PATHS),  # _local: Python 3.13
    *(f"{module}.{name}" for module in ("numpy.core", "numpy._core") for name in ARRAYS),  # _core: NumPy 2
    "numpy.dtype",
    "numpy.ndarray",
]
STAND_INS = [(_plain_dict, "collections.defaultdict"), *((Ignored, name) for name in BESIDE_WEIGHTS)]


def load_checkpoint(model: nn.Module, path: str | Path, key: str | None = None) -> dict[str, Any]:
    """Load the weights in `path` into `model`, in place and strictly, or leave it unchanged and raise.

    Args:
        key: dotted key of the state dict in the file, where several would do.

    Returns:
        `path` as given, `key` that was used (None for a bare state dict), `sha256` of the file, and the
        number of `tensors` in the state dict.

    Raises:
        SpectraError: the file cannot be read, holds code, holds no state dict or several, differs from the
            model in keys or shapes, or holds values that are not finite.
    """
    content = _read(path)
    key, state = _choose(content, model, path, key)
    state = _without_prefixes(state, model.state_dict().keys())
    _load(model, state, path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    tensors = sum(isinstance(value, Tensor) for value in state.values())
    return {"path": str(path), "key": key, "sha256": digest, "tensors": tensors}


def _read(path: str | Path) -> Any:
    """The content of the file: for torch files a pickle of tensors, for safetensors a dict."""
    file = Path(path)
    if not file.is_file():
        kind = "it is a folder; name the file in it" if file.is_dir() else "no such file; check the path"
        raise input_error(OPTION, path, kind)
    try:
        if file.stat().st_size == 0:
            raise input_error(OPTION, path, "the file is empty; copy or save it again")
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(STAND_INS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except SpectraError:
        raise
    except OSError as error:
        raise input_error(OPTION, path, f"{describe(error)}; check the path and the rights") from error
    except Exception as error:
        # From None: torch's own message advises to trust the file.
        raise input_error(OPTION, path, _unreadable(file, error)) from None


def _unreadable(file: Path, error: Exception) -> str:
    """Why torch or safetensors refused the file, in our own words."""
    with file.open("rb") as opened:
        head = opened.read(512)
    refused = f"which could run code, so it was not run; re-save its weights where it was made: {RESAVE}"
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds {found[1]}, {refused}"
    if "TorchScript" in str(error):
        return f"it is a TorchScript program, {refused}"
    if isinstance(error, pickle.UnpicklingError) and head.startswith((b"PK", b"\x80")):
        return f"it holds more than tensors that torch.save wrote, {refused}"
    if head.isascii() and "".join(head.decode().split()).isprintable():
        return f"it is a text file, no checkpoint; name a file that {RESAVE} wrote"
    return f"it is cut off, damaged, or no checkpoint; copy it again, or save it again with {RESAVE}"


def _is_state_dict(value: Any) -> bool:
    """Names to tensors, for the most part; `_extra_state` of some layers may be a mapping."""
    if not (isinstance(value, Mapping) and value and all(isinstance(name, str) for name in value)):
        return False
    nested = any(isinstance(v, Mapping) and not name.endswith("_extra_state") for name, v in value.items())
    tensors = sum(isinstance(v, Tensor) for v in value.values())
    return not nested and 2 * tensors > len(value)


def _candidates(content: Mapping, depth: int = 3) -> Iterator[tuple[str, Mapping]]:
    """State dicts below `content` with their dotted keys; optimizers hold tensors too, and are left out."""
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Mapping):
            continue
        if "optim" in name.lower() or "param_groups" in value:
            continue
        if _is_state_dict(value):
            yield name, value
        elif depth > 1:
            yield from ((f"{name}.{rest}", state) for rest, state in _candidates(value, depth - 1))


def _choose(content: Any, model: nn.Module, path: str | Path, key: str | None) -> tuple[str | None, Mapping]:
    """The state dict in `content`, and its dotted key."""
    if not isinstance(content, Mapping):
        text = f"it holds an object of type {type(content).__name__}, no state dict; save one with {RESAVE}"
        raise input_error(OPTION, path, text)
    if _is_state_dict(content):
        if key is not None:
            raise input_error(KEY_OPTION, key, f"{path} is a bare state dict; leave {KEY_OPTION} out")
        return None, content
    candidates = dict(_candidates(content))
    names = ", ".join(candidates)
    if not candidates:
        holds = _some([f"{name} ({type(value).__name__})" for name, value in content.items()]) or "nothing"
        raise input_error(OPTION, path, f"no state dict in it, it holds {holds}; save one with {RESAVE}")
    if key is not None:
        if key not in candidates:
            raise input_error(KEY_OPTION, key, f"no state dict of that key in {path}; there is {names}")
        return key, candidates[key]
    if len(candidates) == 1:
        return next(iter(candidates.items()))
    wanted = model.state_dict().keys()
    fitting = [(k, s) for k, s in candidates.items() if _without_prefixes(s, wanted).keys() == wanted]
    if len(fitting) == 1:
        return fitting[0]
    raise input_error(OPTION, path, f"several state dicts in it: {names}; choose one with {KEY_OPTION}")


def _without_prefixes(state: Mapping[str, Any], wanted: Any) -> dict[str, Any]:
    """Names without what DataParallel and torch.compile put before them, unless the model has it too."""

    def bare(name: str) -> str:
        while name not in wanted and name.startswith(PREFIXES):
            name = name.partition(".")[2]
        return name

    renamed = {bare(name): value for name, value in state.items()}
    return renamed if len(renamed) == len(state) else dict(state)


def _load(model: nn.Module, state: dict[str, Any], path: str | Path) -> None:
    """Load all of `state` into `model`, or raise and leave the model as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    if text := _try_loading(model, state, before):
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if name in before:
                    value.copy_(before[name])
        raise input_error(OPTION, path, text)


def _try_loading(model: nn.Module, state: dict[str, Any], before: dict[str, Tensor]) -> str | None:
    """What is wrong after loading, or None. Torch decides: hooks of a layer may rename old keys."""
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except Exception as error:
        missing = [name for name in before if name not in state]
        unexpected = [name for name in state if name not in before]
        text = _differences(before, state, missing, unexpected) or f"loading it failed with {describe(error)}"
        return f"{text}; check --model and its options"
    tied = _tied(model, state)
    missing = [name for name in missing if name not in tied]
    if missing or unexpected:
        return f"{_differences(before, state, missing, unexpected)}; check --model and its options"
    for name, value in model.state_dict().items():
        if name in before and not _as_finite(value, before[name]):
            return f"{name} holds values that are not finite; take a checkpoint from before the run diverged"
    for one, two in tied.items():
        if one in state and not torch.equal(state[one], state[two]):
            return f"{one} and {two} differ in it, but are one tensor in the model; check --model"
    return None


def _as_finite(loaded: Tensor, built: Tensor) -> bool:
    """Whether `loaded` is finite wherever `built` is: a buffer may hold -inf by design (causal masks)."""
    return not loaded.is_floating_point() or bool((loaded.isfinite() | ~built.isfinite()).all())


def _tied(model: nn.Module, state: Mapping[str, Any]) -> dict[str, str]:
    """Names in the model whose tensor has another name in `state` (safetensors keeps one), to that name."""
    named = model.state_dict(keep_vars=True)
    stored = {id(tensor): name for name, tensor in named.items() if name in state}
    return {name: stored[id(t)] for name, t in named.items() if stored.get(id(t), name) != name}


def _differences(
    wanted: Mapping[str, Tensor], state: Mapping[str, Any], missing: list[str], unexpected: list[str]
) -> str:
    """The keys and shapes that differ, nearest names first."""
    pairs = _nearest(missing, unexpected)
    lost = [f"{name} (the checkpoint has {pairs[name]})" for name in pairs]
    lost += [name for name in missing if name not in pairs]
    extra = [name for name in unexpected if name not in pairs.values()]
    shapes = [
        f"{name} is {_shape(tensor)} in the model, {_shape(state[name])} in the checkpoint"
        for name, tensor in wanted.items()
        if name in state and _shape(tensor) != _shape(state[name])
    ]
    parts = [
        f"missing {_some(lost)}" if lost else "",
        f"unexpected {_some(extra)}" if extra else "",
        _some(shapes),
    ]
    return "; ".join(part for part in parts if part)


def _nearest(missing: list[str], unexpected: list[str], limit: int = 60) -> dict[str, str]:
    """Pairs of names that look alike, the closest first; of `limit` names only, since all pairs are tried."""
    scored = []
    for name in missing[:limit]:
        matcher = difflib.SequenceMatcher(b=name)
        for other in unexpected[:limit]:
            matcher.set_seq1(other)
            if matcher.quick_ratio() > 0.6 and (ratio := matcher.ratio()) > 0.6:
                scored.append((ratio, name, other))
    pairs: dict[str, str] = {}
    for _, name, other in sorted(scored, key=lambda s: -s[0]):
        if name not in pairs and other not in pairs.values():
            pairs[name] = other
    return pairs


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
