"""Whose code runs: what is typed does; what a result or a TOML file names does where they may name it, or by --trust."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from spectra.errors import SpectraError
from spectra.quoting import quoted

TRUSTED, NAMED_BY = "spectra.trusted", "spectra.named by"  # in context.meta; the latter: --config, and whether a result
WAY_OUT = "type {} yourself, or allow it by --trust"


def remember(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    """Keep in the context whether --trust was given."""
    context.meta[TRUSTED] = value


TRUST = click.option("--trust", is_flag=True, is_eager=True, expose_value=False, callback=remember, help="Run any code that --config names, wherever it lies.")  # fmt: skip
TRUST_PLAN = click.option("--trust", is_flag=True, help="Run any code that the plan names, wherever it lies.")


def vouched(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """The value of an option that names code, as it is, or values of a repeatable one.

    Raises SpectraError where a file names what it may not.
    """
    if isinstance(value, tuple):
        return tuple(vouched(context, parameter, one) for one in value)
    if value is None or context.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT_MAP:
        return value
    path, a_result = context.meta[NAMED_BY]
    if context.meta.get(TRUSTED):
        return value
    from spectra.inputs.origin import comes_with_packages, lies_beside

    option = max(parameter.opts, key=len)
    if a_result and not comes_with_packages(parameter.name, value):
        text = "which would run as code, and a result is data"
    elif not a_result and not lies_beside(value, path.parent, Path.cwd(), parameter.name):
        text = "which would run as code, and lies neither beside that file nor in an installed package"
    else:
        return value
    raise SpectraError(f"--config {quoted(path)}: names {option} {quoted(value)}, {text}; {WAY_OUT.format(option)}")


def refuse_elsewhere(path: Path, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise SpectraError where a plan names code of Python itself, or what does not lie beside it.

    Args:
        options: of each command.
    """
    from spectra.inputs.origin import RUN, is_code, is_standard, lies_beside

    folder = Path(path).absolute().parent
    for own in options.values():
        for key, value in own.items():
            if key.replace("-", "_") not in RUN or not isinstance(value, str) or not is_code(value, key):
                continue
            if is_standard(value):
                text = "comes with Python itself and makes nothing of this kind; name a function of yours"
            elif not lies_beside(value, folder, folder, key):
                text = "lies neither beside the plan nor in an installed package; move it there, or allow it by --trust"
            else:
                continue
            raise SpectraError(f"PLAN {quoted(path)}: {key} = {quoted(value)} {text}")
