"""The option --config: read options from a TOML file or an earlier result; the command line overrides them.

data = "digits"
curvature = ["hessian", "ggn"]
[eig]                                # options of this command only
k = 20
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from spectra.cli.trust import NAMED_BY
from spectra.errors import SpectraError
from spectra.files import read_toml
from spectra.quoting import quoted

REPEATED = "spectra.repeated"  # key in context.meta: the path and the problem of the result that --config names
# Options with automatic defaults: a repeated run uses the recorded choice, so that its numbers are the same.
SETTLED = ("batch_size", "device")
# Options of a network, which are neither allowed nor recorded together with --operator.
OF_NETWORKS = (
    *("model", "checkpoint", "checkpoint_key", "data", "transform", "output", "loss", "loss_part", "samples"),
    *("batch_size", "memory", "recompute_activations", "params", "mc_samples", "weight_decay", "curvature", "wrt"),
    *("no_check", "precision", "products", "difference_step", "compile", "precondition", "held_out", "subsample"),
)
NOT_RECORDED = ("out", "as_json", "save_vectors", "save_every")  # they say where results go, not what is computed
LARGEST = 10**300  # about the largest float64
SAME_LOSS = 1e-3  # relative: far above float32's rounding on any device


def read_config(context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    """Use the options in a file as defaults of this command. Raises SpectraError."""
    if path is None:
        return
    if path.suffix == ".toml":
        named = from_toml(context, path)
        context.meta[NAMED_BY] = path, False
    elif path.suffix == ".json" or path.is_dir():
        named = from_result(context, path)
        context.meta[NAMED_BY] = context.meta[REPEATED][0], True
    else:
        raise SpectraError(f"--config {path}: is neither .toml nor .json; name a TOML file or the JSON of a result")
    options = options_of(context)
    context.default_map = {}
    for key, value in named.items():
        name = option_name(context, f"--config {path}", key)
        context.default_map[name] = converted(options[name], value, context, f"--config {path}: {key}")


def from_toml(context: click.Context, path: Path) -> dict[str, Any]:
    """The options at the top level of the file and in the table of this command. Raises SpectraError."""
    try:
        content = read_toml(path)
    except OSError as error:
        raise SpectraError(f"--config {path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:  # of TOML, or of UTF-8
        raise SpectraError(f"--config {path}: is not valid TOML ({error}); correct the file") from error
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    if unknown := tables.keys() - set(known_commands(context)):
        name = min(unknown)
        commands = ", ".join(known_commands(context))
        raise SpectraError(f"--config {path}: [{name}] is not a command; available: {commands}")
    shared = {key: value for key, value in content.items() if key not in tables}
    own = tables.get(str(context.command.name), {})
    return {**shared, **own}


def known_commands(context: click.Context) -> list[str]:
    """The names of all commands of the program, or of this one if it runs outside the program."""
    group = context.parent and context.parent.command
    return sorted(group.commands) if isinstance(group, click.Group) else [str(context.command.name)]


def option_name(context: click.Context, where: str, key: str) -> str:
    """The name of the parameter that a key sets: a flag without its dashes, with - or _. Raises SpectraError."""
    for name, option in options_of(context).items():
        spelled = {name, *(text.lstrip("-") for text in option.opts)}
        if key in spelled or key.replace("_", "-") in spelled:
            return name
    from spectra.inputs.spec import suggest

    known = sorted(max(option.opts, key=len).lstrip("-") for option in options_of(context).values())
    raise SpectraError(f"{where}: spectra {context.command.name} has no option {key}; {suggest(key, known)}")


def options_of(context: click.Context) -> dict[str, click.Option]:
    """The options that a file may set, by parameter name."""
    apart = ("config", "trust", "help")
    return {str(p.name): p for p in context.command.params if isinstance(p, click.Option) and p.name not in apart}


def from_result(context: click.Context, path: Path) -> dict[str, Any]:
    """The options of a result; if another command made it, only those that name the problem. Raises SpectraError."""
    from spectra.records.record import RESULTS, load

    own = str(context.command.name)
    path, record = load(path, list(dict.fromkeys([own, *sorted(RESULTS)])), "--config")
    problem = vars(record.problem)
    options = problem.get("options")
    if options is None:
        raise SpectraError(
            f"--config {path}: the result does not list its options, as one of a call from Python; give the options on the command line"
        )
    context.meta[REPEATED] = path, problem
    values = {
        name: value for name, value in options.items() if name not in NOT_RECORDED
    }  # a hand-edited file may set --out
    options = values | {name: problem[name] for name in SETTLED if name in problem}
    if record.command != own:
        options = {name: value for name, value in options.items() if name in problem or name == "curvature"}
        if isinstance(options.get("checkpoint"), list):  # of landscape; other commands use the first
            options["checkpoint"] = problem.get("checkpoint")
    same = not problem.get("precondition") or "precondition" in options_of(context)  # the matrix
    if record.command == "eig" and options.get("wrt", "parameters") == "parameters" and same:
        options["deflate"] = options["eigenvectors"] = str(path)  # a command has at most one of the two
    known = options_of(context)
    return {name: value for name, value in options.items() if name in known and value is not None}


def refuse_changed(context: click.Context, now) -> None:
    """Raise SpectraError if checkpoint, model, data or loss have changed since the result that --config names.

    Options that the command line overrides are not compared.
    """
    if REPEATED not in context.meta:
        return
    path, then = context.meta[REPEATED]
    from spectra.inputs.code_origin import RUN

    for before, after in zip(then.get("operators") or (), now.operators or (), strict=False):
        if "operator" not in typed_names(context) and before.sha256 != after.sha256:
            raise SpectraError(
                f"--config {path}: {after.spec} has changed since that result (its SHA-256 was {before.sha256}, is "
                f"{after.sha256}); restore it, or give --operator to use it as it is now"
            )
    if now.operators:
        return
    typed = {name for name in then if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    overridden = typed - {name for name in RUN if plain(context.params.get(name)) == then.get(name)}
    before, after = then.get("checkpoint_sha256"), now.checkpoint_sha256
    if before != after and "checkpoint" not in typed:
        raise SpectraError(
            f"--config {path}: {now.checkpoint} has changed since that result (its SHA-256 was {before}, is {after}); "
            "restore it, or give --checkpoint to use it as it is now"
        )
    before, after = then.get("precondition"), now.get("precondition")
    if before and "precondition" in context.params and "precondition" not in typed:
        if after is None:
            text = f"the preconditioner was {quoted(before.spec)}, which a file cannot name; give --precondition"
            raise SpectraError(f"--config {path}: {text}")
        if before.get("sha256") != after.sha256:
            raise SpectraError(
                f"--config {path}: {quoted(after.spec)} of --precondition has changed since that result (its SHA-256 was "
                f"{before.get('sha256')}, is {after.sha256}); restore it, or give --precondition to use it as it is now"
            )
    before, after = then.get("loss_value"), now.loss_value
    if not overridden and isinstance(before, float) and abs(after - before) > SAME_LOSS * abs(before):
        raise SpectraError(
            f"--config {path}: the mean loss is {after:.6g} and was {before:.6g} in that result, so the model's code, the data "
            "or the loss have changed since; restore them, or give all options without --config"
        )


def typed_names(context: click.Context) -> set[str]:
    """The parameters that were given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is ParameterSource.COMMANDLINE}


def recorded(context: click.Context) -> dict[str, Any]:
    """The options that determine the result, as the record lists them."""
    named = context.params.get("operator")
    apart = {*NOT_RECORDED, *(OF_NETWORKS if named else ("operator",))}
    options = {name: plain(value) for name, value in context.params.items() if name not in apart}
    if named and context.get_parameter_source("dtype") is ParameterSource.DEFAULT:
        options["dtype"] = None  # the matrix keeps its own
    return options


def plain(value: Any) -> Any:
    """Convert the value of an option to types of JSON."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def as_json(value: Any) -> str:
    """The value as JSON text, for a message."""
    try:
        return json.dumps(value, default=str)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits, which only TOML can hold
        return "a number of thousands of digits"


def converted(option: click.Option, value: Any, context: click.Context, where: str) -> Any:
    """Convert a value from a file to the text that the command line would have. Raises SpectraError."""
    came, wayout = f"{where} = {as_json(value)}", f"see 'spectra {context.command.name} --help'"
    if option.is_flag:
        if not isinstance(value, bool):
            raise SpectraError(f"{came} is neither true nor false; {wayout}")
        return value
    values = value if isinstance(value, list) and (option.multiple or option.type.name == "sizes") else [value]
    if not all(isinstance(v, (str, int, float)) and not isinstance(v, bool) for v in values):
        kinds = "text, a number, or a list of them" if option.multiple else "text or a number"
        raise SpectraError(f"{came} is not {kinds}; {wayout}")
    if any(isinstance(v, int) and abs(v) >= LARGEST for v in values):
        raise SpectraError(f"{quoted(came)} is too large; {wayout}")
    texts = [str(v) for v in values]
    if isinstance(value, list) and not option.multiple:
        texts = [",".join(texts)]
    if any("\0" in text for text in texts):
        raise SpectraError(f"{came} contains a null character; {wayout}")
    try:
        option.type_cast_value(context, texts if option.multiple else texts[0])
    except click.BadParameter as error:
        raise SpectraError(f"{came}: {error.message.rstrip('.')}; {wayout}") from error
    return texts if option.multiple else texts[0]
