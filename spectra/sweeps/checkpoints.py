"""The training step of each checkpoint, and how the weights move between checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectra.errors import SpectraError
from spectra.inputs.checkpoint import read_parameters
from spectra.inputs.checkpoint_file import read_entries
from spectra.inputs.checkpoint_folder import training_state
from spectra.records.sweep import Number, Row
from spectra.spectrum.subspaces import cosine
from spectra.sweeps.rows import ResultEntry

ENTRIES = {"step": "training step", "global_step": "training step", "iteration": "training step", "epoch": "epoch"}
PLACES = "checkpoint"  # the axis if steps are positions in the order


def training_steps(checkpoints: Mapping[str, Path | None]) -> tuple[str, dict[str, Number]]:
    """The step of each named checkpoint, and what these numbers count: `training step`, `epoch` or `checkpoint`.

    Steps come from the first of these sources that all checkpoints have, with distinct values: an entry `step`,
    `global_step`, `iteration` or `epoch` in the file, or in the `trainer_state.json` of a folder; the last number in
    the name; the position in the order, from 0.
    """
    held = {name: _entries(path) if path else {} for name, path in checkpoints.items()}
    for entry, meaning in ENTRIES.items():
        steps = {name: entries[entry] for name, entries in held.items() if entry in entries}
        if len(set(steps.values())) == len(checkpoints):
            return meaning, steps
    numbers = {name: found[-1] for name in checkpoints if (found := re.findall(r"(\D*)(\d+)", name))}
    if len({int(digits) for _, digits in numbers.values()}) == len(checkpoints):
        epochs = all("epoch" in word.lower() for word, _ in numbers.values())
        meaning = "epoch" if epochs else "training step"
        return meaning, {name: int(digits) for name, (_, digits) in numbers.items()}
    return PLACES, {name: place for place, name in enumerate(checkpoints)}


def _entries(path: Path) -> dict[str, Number]:
    """The entries of a checkpoint that count steps; empty if it cannot be read, or holds only tensors."""
    if path.suffix in (".safetensors", ".json"):
        return {}
    try:
        content = training_state(path) if path.is_dir() else read_entries(path)
    except SpectraError:
        return {}
    found = {name: content[name] for name in ENTRIES if name in content} if isinstance(content, Mapping) else {}
    numbers = {name: v.item() if isinstance(v, torch.Tensor) and v.numel() == 1 else v for name, v in found.items()}
    return {name: v for name, v in numbers.items() if isinstance(v, Number) and not isinstance(v, bool)}


class Trajectory:
    """The parameters (n,), float64, of one checkpoint after another, in the order of eigenvectors; None if unreadable.

    Names and shapes are those that the result lists: no model is built, since a result may name any code.

    Args:
        note: called with the reason why a checkpoint cannot be read.
    """

    def __init__(self, note: Callable[[str], Any]):
        self.note = note

    def __call__(self, found: ResultEntry) -> np.ndarray | None:
        shapes = found.problem.shapes
        if found.checkpoint is None or not isinstance(shapes, Mapping):
            return None
        try:
            held = read_parameters(found.checkpoint, shapes, found.problem.option("checkpoint_key"))
        except (SpectraError, TypeError) as error:  # TypeError: not a mapping of shapes
            self.note(f"no steps between checkpoints: {error}")
            return None
        return torch.cat([tensor.detach().flatten().to(torch.float64) for tensor in held.values()]).numpy()


def update_rows(series: Sequence[ResultEntry], weights: Callable[[ResultEntry], np.ndarray | None]) -> Iterator[Row]:
    """Rows with the cosine between the steps to and from each checkpoint: whether training keeps its direction."""
    before = step = at = None
    for found in series:
        here = weights(found)
        following = here - before if here is not None and before is not None else None
        if step is not None and following is not None and at is not None:
            yield Row(at.label, at.step, None, None, "update_cosine", None, cosine(step, following))
        before, step, at = here, following, found
