"""Decide which code may run: code named on the command line, code that a file may name, and all code with --trust."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from spectra.errors import SpectraError
from spectra.quoting import quoted

# Keys in context.meta: whether --trust was given; the path of --config, and whether it is a result.
TRUSTED, NAMED_BY = "spectra.trusted", "spectra.named by"
WAY_OUT = "give {} on the command line, or allow it with --trust"


def remember(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    """Keep in the context whether --trust was given."""
    context.meta[TRUSTED] = value


TRUST = click.option("--trust", is_flag=True, is_eager=True, expose_value=False, callback=remember, help="Allow the file of --config to run any code that it names, wherever the code is.")  # fmt: skip
TRUST_PLAN = click.option(
    "--trust", is_flag=True, help="Allow the plan to run any code that it names, wherever the code is."
)


def trusted_value(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Return the value of an option that names code. Raises SpectraError if a file names code that it may not name."""
    if isinstance(value, tuple):
        return tuple(trusted_value(context, parameter, one) for one in value)
    if value is None or context.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT_MAP:
        return value
    path, a_result = context.meta[NAMED_BY]
    if context.meta.get(TRUSTED):
        return value
    from spectra.inputs.code_origin import comes_with_packages, is_inside_folder

    option = max(parameter.opts, key=len)
    if a_result and not comes_with_packages(parameter.name, value):
        text = "which would run as code, but a result may only hold data"
    elif not a_result and not is_inside_folder(value, path.parent, Path.cwd(), parameter.name):
        text = "which would run as code, but is neither beside that file nor in an installed package"
    else:
        return value
    raise SpectraError(f"--config {quoted(path)}: names {option} {quoted(value)}, {text}; {WAY_OUT.format(option)}")


def refuse_untrusted_plan(path: Path, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise SpectraError if a plan names code of Python's standard library, or code that is not beside the plan.

    Args:
        path: the path of the plan.
        options: the options of each command, by its name.
    """
    from spectra.inputs.code_origin import RUN, is_code, is_inside_folder, is_standard

    folder = Path(path).absolute().parent
    for own in options.values():
        for key, value in own.items():
            if key.replace("-", "_") not in RUN or not isinstance(value, str) or not is_code(value, key):
                continue
            if is_standard(value):
                text = "comes with Python itself and builds nothing of this kind; name a function of yours"
            elif not is_inside_folder(value, folder, folder, key):
                text = "is neither beside the plan nor in an installed package; move it there, or allow it with --trust"
            else:
                continue
            raise SpectraError(f"PLAN {quoted(path)}: {key} = {quoted(value)} {text}")
