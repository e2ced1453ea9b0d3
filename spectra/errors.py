"""The one exception that a user is meant to read."""


class SpectraError(Exception):
    """An input that the user can put right.

    Its message is one line: the argument, what came, and the way out. The command line prints it
    and ends with status 2; library code may catch it like any exception.
    """


def describe(error: BaseException) -> str:
    """Type and first line of an exception: `ValueError: width must be positive`."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
