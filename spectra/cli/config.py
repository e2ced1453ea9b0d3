"""--config: options from a TOML file, or those of an earlier result; the command line overrides them.

data = "digits"
curvature = ["hessian", "ggn"]
[eig]                                # for this command alone
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

REPEATED = "spectra.repeated"  # in context.meta: the file of a result, and its problem
# What an auto option came to be: a repeated run takes that, so that its numbers are the same.
SETTLED = ("batch_size", "device")
# What belongs to a network, and is neither given nor recorded beside --operator.
OF_NETWORKS = (
    *("model", "checkpoint", "checkpoint_key", "data", "transform", "output", "loss", "loss_part", "samples"),
    *("batch_size", "memory", "recompute_activations", "params", "mc_samples", "weight_decay", "curvature", "wrt"),
    *("no_check", "precision", "products", "difference_step", "compile", "precondition", "held_out", "subsample"),
)
NOT_RECORDED = ("out", "as_json", "save_vectors", "save_every")  # where the answer goes, not what it is
LARGEST = 10**300  # what float64 holds
SAME_LOSS = 1e-3  # relative: far above float32's rounding on any device


def read_config(context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    """Make the options in a file the defaults of this command. Raises SpectraError."""
    if path is None:
        return
    if path.suffix == ".toml":
        named = from_toml(context, path)
        context.meta[NAMED_BY] = path, False
    elif path.suffix == ".json" or path.is_dir():
        named = from_result(context, path)
        context.meta[NAMED_BY] = context.meta[REPEATED][0], True
    else:
        raise SpectraError(f"--config {path}: is neither .toml nor .json; name a TOML file, or the JSON of a result")
    options = options_of(context)
    context.default_map = {}
    for key, value in named.items():
        name = option_name(context, f"--config {path}", key)
        context.default_map[name] = converted(options[name], value, context, f"--config {path}: {key}")


def from_toml(context: click.Context, path: Path) -> dict[str, Any]:
    """Options at the top level, and those in the table named as the command is."""
    try:
        content = read_toml(path)
    except OSError as error:
        raise SpectraError(f"--config {path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:  # of TOML, or of UTF-8
        raise SpectraError(f"--config {path}: is not valid TOML ({error}); correct it there") from error
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    if unknown := tables.keys() - set(known_commands(context)):
        name = min(unknown)
        raise SpectraError(f"--config {path}: [{name}] is no command; there is {', '.join(known_commands(context))}")
    shared = {key: value for key, value in content.items() if key not in tables}
    own = tables.get(str(context.command.name), {})
    return {**shared, **own}


def known_commands(context: click.Context) -> list[str]:
    """The names of all commands, as far as the context knows them."""
    group = context.parent and context.parent.command
    return sorted(group.commands) if isinstance(group, click.Group) else [str(context.command.name)]


def option_name(context: click.Context, where: str, key: str) -> str:
    """The parameter that a key stands for: as it is typed on the command line, with - or _. Raises SpectraError."""
    for name, option in options_of(context).items():
        spelled = {name, *(text.lstrip("-") for text in option.opts)}
        if key in spelled or key.replace("_", "-") in spelled:
            return name
    from spectra.inputs.spec import suggest

    known = sorted(max(option.opts, key=len).lstrip("-") for option in options_of(context).values())
    raise SpectraError(f"{where}: spectra {context.command.name} has no option {key}; {suggest(key, known)}")


def options_of(context: click.Context) -> dict[str, click.Option]:
    """The options that a file may set, by their names as parameters."""
    apart = ("config", "trust", "help")
    return {str(p.name): p for p in context.command.params if isinstance(p, click.Option) and p.name not in apart}


def from_result(context: click.Context, path: Path) -> dict[str, Any]:
    """The options of a result; of another command's, those that name the problem. Raises SpectraError."""
    from spectra.records.record import load

    own = str(context.command.name)
    path, record = load(path, [own, *known_commands(context)], "--config")
    problem = vars(record.problem)  # the fields that there are, by name
    options = problem.get("options")
    if options is None:
        raise SpectraError(f"--config {path}: does not list its options; make the result anew")
    context.meta[REPEATED] = path, problem
    asked = {name: value for name, value in options.items() if name not in NOT_RECORDED}  # by hand it may say --out
    options = asked | {name: problem[name] for name in SETTLED if name in problem}
    if record.command != own:
        options = {name: value for name, value in options.items() if name in problem or name == "curvature"}
        if isinstance(options.get("checkpoint"), list):  # of landscape: others take the first
            options["checkpoint"] = problem.get("checkpoint")
    same = not problem.get("precondition") or "precondition" in options_of(context)  # matrix as that of the command
    if record.command == "eig" and options.get("wrt", "parameters") == "parameters" and same:
        options["deflate"] = options["eigenvectors"] = str(path)  # of those commands that take one of them
    known = options_of(context)
    return {name: value for name, value in options.items() if name in known and value is not None}


def refuse_changed(context: click.Context, now) -> None:
    """Raise SpectraError where a repeated result's checkpoint, model, data or loss are no longer what they were.

    What the command line overrides is not compared.
    """
    if REPEATED not in context.meta:
        return
    path, then = context.meta[REPEATED]
    from spectra.inputs.origin import RUN

    for before, after in zip(then.get("operators") or (), now.operators or (), strict=False):
        if "operator" not in typed_names(context) and before.sha256 != after.sha256:
            raise SpectraError(
                f"--config {path}: {after.spec} has changed since that result (its SHA-256 was {before.sha256}, is "
                f"{after.sha256}); restore it, or name it by --operator to take it as it is"
            )
    if now.operators:
        return
    typed = {name for name in then if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    overridden = typed - {name for name in RUN if plain(context.params.get(name)) == then.get(name)}
    before, after = then.get("checkpoint_sha256"), now.checkpoint_sha256
    if before != after and "checkpoint" not in typed:
        raise SpectraError(
            f"--config {path}: {now.checkpoint} has changed since that result (its SHA-256 was {before}, is {after}); "
            "restore it, or name it by --checkpoint to take it as it is"
        )
    before, after = then.get("precondition"), now.get("precondition")
    if before and "precondition" in context.params and "precondition" not in typed:
        if after is None:
            text = f"P was {quoted(before.spec)}, which has no name here; name it by --precondition"
            raise SpectraError(f"--config {path}: {text}")
        if before.get("sha256") != after.sha256:
            raise SpectraError(
                f"--config {path}: {quoted(after.spec)} of --precondition has changed since that result (its SHA-256 was "
                f"{before.get('sha256')}, is {after.sha256}); restore it, or name it by --precondition to take it as it is"
            )
    before, after = then.get("loss_value"), now.loss_value
    if not overridden and isinstance(before, float) and abs(after - before) > SAME_LOSS * abs(before):
        raise SpectraError(
            f"--config {path}: the mean loss is {after:.6g} and was {before:.6g} in that result, so the model's code, the data "
            "or the loss have changed since; restore them, or give the options anew without --config"
        )


def typed_names(context: click.Context) -> set[str]:
    """The parameters that were given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is ParameterSource.COMMANDLINE}


def recorded(context: click.Context) -> dict[str, Any]:
    """The options that say what is to be computed, as a record lists them: those of networks, or of operators."""
    named = context.params.get("operator")
    apart = {*NOT_RECORDED, *(OF_NETWORKS if named else ("operator",))}
    options = {name: plain(value) for name, value in context.params.items() if name not in apart}
    if named and context.get_parameter_source("dtype") is ParameterSource.DEFAULT:
        options["dtype"] = None  # it keeps its own
    return options


def plain(value: Any) -> Any:
    """An option's value as JSON has it."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def as_json(value: Any) -> str:
    """The value as JSON has it, for a message."""
    try:
        return json.dumps(value, default=str)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits, which only TOML can hold
        return "a number of thousands of digits"


def converted(option: click.Option, value: Any, context: click.Context, where: str) -> Any:
    """The value as the command line would have read it. Raises SpectraError."""
    came, wayout = f"{where} = {as_json(value)}", f"see 'spectra {context.command.name} --help'"
    if option.is_flag:
        if not isinstance(value, bool):
            raise SpectraError(f"{came} is neither true nor false; {wayout}")
        return value
    values = value if isinstance(value, list) and (option.multiple or option.type.name == "sizes") else [value]
    if not all(isinstance(v, (str, int, float)) and not isinstance(v, bool) for v in values):
        raise SpectraError(f"{came} is no text or number{', or list of them' if option.multiple else ''}; {wayout}")
    if any(isinstance(v, int) and abs(v) >= LARGEST for v in values):
        raise SpectraError(f"{quoted(came)} is beyond all bounds; {wayout}")
    texts = [str(v) for v in values]
    if isinstance(value, list) and not option.multiple:
        texts = [",".join(texts)]
    if any("\0" in text for text in texts):
        raise SpectraError(f"{came} holds a null character, which no option takes; {wayout}")
    try:
        option.type_cast_value(context, texts if option.multiple else texts[0])
    except click.BadParameter as error:
        raise SpectraError(f"{came}: {error.message.rstrip('.')}; {wayout}") from error
    return texts if option.multiple else texts[0]
