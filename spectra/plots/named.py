"""The results that a figure draws, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from spectra.errors import ArgumentError

T = TypeVar("T")


def named(results: Mapping[str, T] | Any, argument: str) -> Mapping[str, T]:
    """`results`. Raises ArgumentError where they are not given by name, or there are none."""
    if not isinstance(results, Mapping):
        raise ArgumentError(f"`{argument}` of type {type(results).__name__}: give results by name, as {{'a': result}}")
    if not results:
        raise ArgumentError(f"`{argument}` is empty: there is nothing to draw; give one result or more by name")
    return results
