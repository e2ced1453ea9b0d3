"""--loss: a name and its options -> a Loss."""

from __future__ import annotations

from functools import partial

import torch

from spectra.curvature.losses import BinaryCrossEntropy, CrossEntropy, CustomLoss, Loss, MeanSquaredError
from spectra.inputs.spec import input_error, parse_spec, resolve, suggest

NAMES = ("cross_entropy", "mse", "bce_with_logits")


def build_loss(spec: str) -> Loss:
    """`cross_entropy?label_smoothing=0.1&ignore_index=-1&weight=1,2,3`, `mse`, `bce_with_logits`, or a function's name.

    A function takes (output, target) and returns values of the examples or the batch's mean. Raises SpectraError.
    """
    name, options = parse_spec(spec, "--loss")
    if ":" in name:
        function = resolve(name, "--loss")
        if not callable(function):
            raise input_error("--loss", name, "is not callable; name a function of (output, target)")
        return CustomLoss(partial(function, **options) if options else function, name)
    if name == "cross_entropy":
        return cross_entropy(spec, **options)
    if name not in NAMES:
        raise input_error("--loss", name, f"is no loss; {suggest(name, NAMES)}, or name your own as file.py:function")
    if options:
        raise input_error("--loss", spec, f"{name} takes no options; leave out ?{next(iter(options))}=")
    return MeanSquaredError() if name == "mse" else BinaryCrossEntropy()


def cross_entropy(spec: str, label_smoothing=0.0, ignore_index=-100, weight=None, **unknown) -> CrossEntropy:
    if unknown:
        known = ("label_smoothing", "ignore_index", "weight")
        raise input_error("--loss", spec, f"has no option {next(iter(unknown))}; {suggest(next(iter(unknown)), known)}")
    if not is_number(label_smoothing) or not 0 <= label_smoothing <= 1:
        raise input_error("--loss", spec, f"label_smoothing is {label_smoothing!r}; give a number from 0 to 1")
    if not isinstance(ignore_index, int):
        raise input_error("--loss", spec, f"ignore_index is {ignore_index!r}; give an integer")
    if weight is not None:
        valid = isinstance(weight, (tuple, list)) and all(is_number(w) and w >= 0 for w in weight) and sum(weight) > 0
        if not valid:
            raise input_error("--loss", spec, f"weight is {weight!r}; give one number >= 0 a class, as weight=1,0.5,2")
        weight = torch.tensor(weight, dtype=torch.float64)
    return CrossEntropy(weight, ignore_index, float(label_smoothing))


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
