"""The exceptions that a user is meant to read."""

from textwrap import shorten

from spectra.quoting import LINE, foreign, quoted


class SpectraError(Exception):
    """An error that the user can put right.

    Its message is one printable line: the argument, what came, and the way out. An argument is named as in Python, in
    backticks. The command line prints the message with its own options' names and ends with status 2; library code may
    catch it like any exception.
    """

    def __init__(self, message: str = ""):
        super().__init__(quoted(message, LINE))


class ArgumentError(SpectraError, ValueError):
    """A wrong argument of a Python call; the message names it, what came, and what is allowed."""


class OutOfMemory(SpectraError):
    """Memory has run out; the message names the argument that reduces its use."""


def describe(error: BaseException) -> str:
    """The type and first line of an exception, cut where it is long: `ValueError: width must be positive`."""
    text = str(error) if isinstance(error, SpectraError) else foreign(error)
    lines = text.strip().splitlines()
    return f"{type(error).__name__}: {shorten(lines[0], 200, placeholder=' ...')}" if lines else type(error).__name__
