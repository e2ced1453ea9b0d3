"""Find the state of an optimizer in a checkpoint, without running any code in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from spectra.errors import SpectraError
from spectra.inputs.checkpoint_file import OPTION as CHECKPOINT
from spectra.inputs.checkpoint_file import WEIGHTS_ONLY, read_checkpoint
from spectra.inputs.foreign_formats import RESAVE
from spectra.inputs.spec import parse_spec
from spectra.inputs.state_dict import some
from spectra.optimizer.parameter_state import refusal
from spectra.optimizer.state_dict import is_optimizer_state
from spectra.quoting import quoted

SAVE = 'torch.save(optimizer.state_dict(), "optimizer.pt")'
IN_A_FOLDER = ("optimizer.pt", "optimizer.bin")  # of Hugging Face's Trainer, and of Accelerate
WITHOUT = f"is a folder without {' or '.join(IN_A_FOLDER)}; name the file that holds the state of the optimizer"
OPTIONS = ("name", "key")  # of a path: the name of torch's class, and the key of the state in the file


class OptimizerSource(NamedTuple):
    """An optimizer or its state, the name of torch's class if it was given, and the source."""

    optimizer: Any
    name: str | None
    source: str


def find_optimizer(given: Any, checkpoint: str | Path | None) -> OptimizerSource | None:
    """Find the given optimizer, or its saved state; None if there is neither.

    Args:
        given: an optimizer, its state, or the path of a state, optionally followed by `?name=AdamW` or
            `?key=optimizer`; None: the state in the checkpoint.
        checkpoint: the file of the model's weights.

    Raises:
        SpectraError: a file holds no state, or cannot be read, or the path has an unknown option.
    """
    if given is None:
        return None if checkpoint is None else OptimizerSource(read_optimizer(checkpoint), None, str(checkpoint))
    if not isinstance(given, str | os.PathLike):
        return OptimizerSource(given, None, type(given).__name__)
    path, options = parse_spec(os.fspath(given), "`optimizer`")
    if unknown := sorted(options.keys() - set(OPTIONS)):
        raise SpectraError(f"`optimizer` {given}: it has no option {unknown[0]}; available: {', '.join(OPTIONS)}")
    return OptimizerSource(read_optimizer(path, options.get("key")), options.get("name"), os.fspath(given))


def read_optimizer(path: str | Path, key: str | None = None) -> Mapping:
    """Read the state dict of an optimizer from a checkpoint file of torch, or from a folder of a transformers Trainer.

    The state may be the whole file, an entry of it, such as `optimizer`, or one of a list, such as Lightning's
    `optimizer_states`.

    Args:
        path: the file, or the folder that holds `optimizer.pt`.
        key: the entry, if there are several states: `optimizer`, or `optimizer_states.0`.

    Returns:
        The state dict, with `state` and `param_groups`.

    Raises:
        SpectraError: the file cannot be read, or holds no optimizer state, or several.
    """
    return read_state(path, key)[0]


def read_state(path: str | Path, key: str | None = None) -> tuple[Mapping, str]:
    """Read a state dict as `read_optimizer` does, and return it with the SHA-256 of the file."""
    file = Path(path)
    if file.is_dir():
        file = next((file / name for name in IN_A_FOLDER if (file / name).is_file()), file)
    shown = quoted(str(path))
    try:
        content, digest = read_checkpoint(file)
    except SpectraError as error:
        if file.is_dir():
            raise refusal(f"{shown} {WITHOUT}") from error
        text = str(error).replace(CHECKPOINT, "`optimizer`", 1).replace(WEIGHTS_ONLY, "save it again")
        raise SpectraError(text.replace(RESAVE, SAVE)) from error
    if key is None and is_optimizer_state(content):
        return content, digest
    every = dict(_states(content)) if isinstance(content, Mapping) else {}
    found = every if key is None else {where: state for where, state in every.items() if where == key}
    if len(found) == 1:
        return next(iter(found.values())), digest
    if not every and file.is_dir():
        raise refusal(f"{shown} {WITHOUT}")
    if not every:
        holds = some([str(entry) for entry in content]) if isinstance(content, Mapping) else type(content).__name__
        text = f"holds no optimizer state, only {holds or 'an empty dict'}; name a file saved with {SAVE}"
        raise refusal(f"{shown} {text}")
    raise refusal(
        f"{shown} holds the states {some(list(every))}; choose one by its key, e.g. {shown}?key={next(iter(every))}"
    )


def _states(content: Mapping, depth: int = 2) -> Iterator[tuple[str, Mapping]]:
    """Yield the states of optimizers in a mapping with their dotted keys."""
    for name, value in content.items():
        inner: Any = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        if is_optimizer_state(inner):
            yield str(name), inner
        elif isinstance(inner, Mapping) and depth > 1:
            yield from ((f"{name}.{rest}", state) for rest, state in _states(inner, depth - 1))
