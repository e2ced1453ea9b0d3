"""Checks of the arguments of public functions; an error names the argument, what came, and what is allowed.

No torch is loaded here, so that a command can refuse an argument before PyTorch is loaded.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING, SupportsIndex

from spectra.errors import ArgumentError
from spectra.quoting import quoted

if TYPE_CHECKING:
    import torch

LARGEST_SEED = 2**63 - 1


def require_integer(name: str, value: object, least: int = 1, most: int | None = None, optional: bool = False) -> None:
    """Raise ArgumentError unless `value` is an integer from `least` to `most`, or None where it is `optional`."""
    if optional and value is None:
        return
    allowed = f"an integer from {least:,} to {most:,}" if most is not None else f"an integer of {least:,} or more"
    number = as_integer(value)
    if number is None or number < least or (most is not None and number > most):
        raise wrong(name, value, allowed)


def as_integer(value: object) -> int | None:
    """Convert a value that Python accepts as an index to an int; return None for any other, bool included."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:  # for instance a tensor of floats
        return None


def require_boolean(name: str, value: object, optional: bool = False) -> None:
    """Raise ArgumentError unless `value` is True or False, or None where it is `optional`."""
    if not (isinstance(value, bool) or (optional and value is None)):
        raise wrong(name, value, "True, False or None" if optional else "True or False")


def require_number(
    name: str, value: object, least: float = 0.0, finite: bool = False, above: float | None = None
) -> None:
    """Raise ArgumentError unless `value` is a real number, not nan, of at least `least`, or greater than `above`."""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer with hundreds of digits
        number = math.nan
    enough = number >= least if above is None else number > above
    if not enough or (finite and not math.isfinite(number)):
        kind = "a finite number" if finite else "a number"
        bound = f" > {above:g}" if above is not None else "" if least == -math.inf else f" >= {least:g}"
        raise wrong(name, value, kind + bound)


def require_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ArgumentError unless `value` is one of the `choices`."""
    choices = list(choices)
    if value not in choices:
        raise wrong(name, value, f"one of {', '.join(choices)}")


def chosen_generator(seed: int, generator: torch.Generator | None) -> torch.Generator:
    """Return `generator`, or a new CPU generator seeded with `seed` where it is None. Raises ArgumentError."""
    import torch

    if generator is None:
        require_integer("seed", seed, 0, LARGEST_SEED)
        return torch.Generator().manual_seed(seed)
    if not isinstance(generator, torch.Generator):
        raise wrong("generator", type(generator), "a torch.Generator, or a `seed` instead")
    if generator.device.type != "cpu":
        raise ArgumentError(
            f"`generator`: expected a generator on the CPU, got one on {generator.device}; one on the CPU draws the "
            "same numbers for every device"
        )
    return generator


def wrong(name: str, came: object, allowed: str) -> ArgumentError:
    """Return the error for a wrong argument: its name, the value or the type that came, and what is allowed."""
    if isinstance(came, type):
        return ArgumentError(f"`{name}`: expected {allowed}, got {'None' if came is type(None) else came.__name__}")
    shown = repr(came) if isinstance(came, str) else came
    return ArgumentError(f"`{name}` {quoted(shown, 60)}: expected {allowed}")
