"""Options of named losses (`huber?delta=0.5`): parse them from text, and write them back as text for records."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from spectra.inputs.spec import input_error, suggest
from spectra.problem.losses import Loss, name_of
from spectra.quoting import quoted

OPTION = "`loss`"
# Fields with another name as options, and inherited fields that are not options.
TYPED_AS = {"class_weights": "weight", "element_weights": "weight"}
NO_OPTIONS = {
    "nll": {"label_smoothing"},
    "kl_div": {"class_weights", "ignore_index", "label_smoothing"},
    "soft_margin": {"element_weights", "pos_weight"},
    "output": {"reduction"},
}


@dataclass(frozen=True)
class Kind:
    """The valid values of an option: a test, a description for messages, and a conversion."""

    fits: Callable[[Any], bool]
    wanted: str
    converted: Callable[[Any], Any] = lambda value: value


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def numbers(value: Any) -> list[Any]:
    """One number or several, as a list."""
    return list(value) if isinstance(value, tuple | list) else [value]


def are_weights(value: Any) -> bool:
    """Whether a value is one or more numbers >= 0, not all of them 0."""
    return all(is_number(w) and w >= 0 for w in numbers(value)) and sum(numbers(value)) > 0


def as_tensor(value: Any) -> Tensor:
    """Convert one number or several to a float64 tensor (C,)."""
    return torch.tensor(numbers(value), dtype=torch.float64)


def as_reduction(value: Any) -> str:
    """Convert a reduction of PyTorch to ours: `none` becomes `mean`."""
    return "mean" if value in (None, "none") else value  # parse_spec reads the word none as None


FLAG = Kind(lambda value: type(value) is bool, "true or false")
ABOVE_ZERO = Kind(lambda value: is_number(value) and value > 0, "a number above 0", float)
KINDS = {
    "label_smoothing": Kind(lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1", float),
    "index": Kind(lambda value: type(value) is int and value >= 0, "the number of an output, from 0"),
    "ignore_index": Kind(lambda value: type(value) is int and abs(value) < 2**63, "an integer"),
    "class_dim": Kind(
        lambda value: value is None or (type(value) is int and value in (1, -1)),
        "1, as in PyTorch, or -1, the last dimension",
    ),
    "class_weights": Kind(
        lambda value: value is None or (isinstance(value, tuple | list) and are_weights(value)),
        "one number >= 0 for each class, such as weight=1,0.5,2",
        lambda value: None if value is None else as_tensor(value),
    ),
    "element_weights": Kind(are_weights, "one number >= 0 for each output, such as weight=1,0.5,2", as_tensor),
    "pos_weight": Kind(are_weights, "one number >= 0 for each output, such as pos_weight=2,1", as_tensor),
    "delta": ABOVE_ZERO,
    "beta": ABOVE_ZERO,
    "eps": ABOVE_ZERO,
    "log_input": FLAG,
    "shift": FLAG,
    "log_target": FLAG,
    "full": FLAG,
    "reduction": Kind(lambda value: value in (None, "none", "mean", "sum"), "mean, sum, or none, which is the mean"),
    "batch reduction": Kind(
        lambda value: value in (None, "none", "mean", "sum", "batchmean"), "mean, batchmean, sum, or none (the mean)"
    ),
}


def option_names(kind: type[Loss]) -> dict[str, str]:
    """Map the options of a loss to its fields."""
    hidden = NO_OPTIONS.get(getattr(kind, "name", ""), set())
    fields = [field.name for field in dataclasses.fields(cast(Any, kind))]
    names = [name for name in fields if name in KINDS and name not in hidden]
    return {TYPED_AS.get(name, name): name for name in names}


def read_options(kind: type[Loss], spec: str, options: dict[str, Any]) -> dict[str, Any]:
    """Convert typed options to the fields of a loss. Raises SpectraError for an unknown option or a wrong value."""
    known = option_names(kind)
    found = {}
    for option, value in options.items():
        if option not in known:
            raise input_error(OPTION, spec, f"this loss has no option {quoted(option)}; {suggest(option, known)}")
        field = known[option]
        batchwise = field == "reduction" and getattr(kind, "name", "") == "kl_div"
        wanted = KINDS["batch reduction" if batchwise else field]
        if not wanted.fits(value):
            raise input_error(OPTION, spec, f"{option} is {value!r}; give {wanted.wanted}")
        found[field] = as_reduction(value) if field == "reduction" else wanted.converted(value)
    return found


def loss_name(loss: Loss) -> str:
    """Write a loss as on the command line, with its options; a user's loss has its own name."""
    name = name_of(loss)
    if not hasattr(loss, "value_weights"):
        return name
    written = {}
    for option, field in option_names(type(loss)).items():
        value = getattr(loss, field)
        default = 1 if option == "class_dim" else getattr(type(loss), field)
        if value is not None and (isinstance(value, Tensor) or value != default):
            written[option] = as_text(value)
    query = "&".join(f"{option}={text}" for option, text in written.items())
    return f"{name}?{query}" if query else name


def as_text(value: Any) -> str:
    """Write an option's value as it would be typed."""
    if isinstance(value, Tensor) and value.ndim > 1:  # cannot be typed
        return f"({' x '.join(map(str, value.shape))} numbers)"
    if isinstance(value, Tensor):
        return ",".join(map(repr, value.flatten().tolist()))
    return str(value).lower() if isinstance(value, bool) else str(value)
