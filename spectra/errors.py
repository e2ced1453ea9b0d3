"""Exceptions with messages for the user."""

from textwrap import shorten

from spectra.quoting import LINE, foreign, quoted


class SpectraError(Exception):
    """An error that the user can correct: a wrong argument, unreadable data, or a model that cannot be differentiated.

    The message is one line. It names the argument in backticks, as in Python, then what came and what to do. The
    command line prints the message with the names of its options instead, and exits with status 2.

    Args:
        message: the one-line message.
    """

    def __init__(self, message: str = ""):
        super().__init__(quoted(message, LINE))


class ArgumentError(SpectraError, ValueError):
    """A wrong argument of a Python call; the message names it, what came, and what is allowed."""


class OutOfMemory(SpectraError):
    """Memory has run out; the message names the argument that reduces its use."""


def describe(error: BaseException) -> str:
    """The type and first line of an exception, shortened to 200 characters: `ValueError: width must be positive`."""
    text = str(error) if isinstance(error, SpectraError) else foreign(error)
    lines = text.strip().splitlines()
    return f"{type(error).__name__}: {shorten(lines[0], 200, placeholder=' ...')}" if lines else type(error).__name__
