"""Parse names of objects, `file.py:name?key=value&key=value` or `package.module:name`, and import the objects.

    name, options = parse_spec("nets.py:build?width=8", "`model`")      # "nets.py:build", {"width": 8}
    model = call(resolve(name, "`model`"), name, options, "`model`")    # build(width=8)

Every failure is a SpectraError of one line: the option, what came, and the way out.
"""

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from spectra.errors import SpectraError, describe
from spectra.files import refuse_special
from spectra.inputs.code_origin import PACKAGES, is_path, is_standard, is_standard_object
from spectra.inputs.seeding import seeded
from spectra.quoting import quoted

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
PART_OF_PYTHON = "it belongs to Python's standard library, so it was not called; name a function or class of your own"
WHERE = "SPECTRA_TRACEBACK=1 shows where"
SHORT = 60  # characters of one name among several
WORDS = {"true": True, "false": False, "none": None}


def input_error(option: str, came: object, text: str) -> SpectraError:
    """Make the error `option came: text`; `came`, the value of the option, is quoted and shortened."""
    return SpectraError(f"{option} {quoted(came)}: {text}")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean a, b?` where known names are similar, else `choose from` with the first known names."""
    names = sorted(quoted(one, SHORT) for one in known)
    if near := difflib.get_close_matches(name, names, n=3):
        return f"did you mean {', '.join(near)}?"
    rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"choose from {', '.join(names[:10])}{rest}" if names else "there is nothing to choose from"


def parse_spec(text: str, option: str) -> tuple[str, dict[str, Any]]:
    """Split `NAME?key=value&key=value` into the name and its options: Python literals, else strings.

    Raises:
        SpectraError: `text` is not a string, the name is empty, or an option is not `key=value` or comes twice.
    """
    if not isinstance(text, str):
        came = "None" if text is None else type(text).__name__
        way_out = "objects of your own go into spectra.Problem"
        raise SpectraError(f"{option}: expected a name (a string), got {came}; {way_out}")
    name, mark, query = text.partition("?")
    if not name:
        raise input_error(
            option,
            repr(text),
            "the name before '?' is missing; write NAME?key=value" if mark else "it is empty; write a name",
        )
    options: dict[str, Any] = {}
    for part in query.split("&") if mark else ():
        key, equals, value = part.partition("=")
        if not (equals and key.isidentifier()):
            raise input_error(option, text, f"{part!r} is not key=value; write {name}?key=value&key=value")
        if key in options:
            raise input_error(option, text, f"the option {key} is given twice; give it once")
        options[key] = _literal(value)
    return name, options


def _literal(text: str) -> Any:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        with warnings.catch_warnings(action="ignore"):  # such as an invalid escape in a Windows path
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def resolve(name: str, option: str) -> Any:
    """Import the object `path/to/file.py:name` or `package.module:name`; `name` may have dots, as in `Net.build`.

    Raises:
        SpectraError: no such file, module or name, or the import fails.
    """
    place, colon, attribute = name.rpartition(":")
    if not (colon and place and all(attribute.split("."))):
        place = name.strip(":") if not (place and attribute) else place
        form = f"{place}:name" if is_path(place) else "path/to/file.py:name or package.module:name"
        raise input_error(option, name, f"the name of the object in it is missing; write {form}")
    if is_standard(name):
        raise input_error(option, name, PART_OF_PYTHON)
    with _importable(place), seeded(0):  # random numbers drawn on import do not shift later ones
        found = _load_file(place, name, option) if is_path(place) else _import(place, name, option)
        where = place
        for part in attribute.split("."):
            found = _attribute(found, part, where, name, option)
            where = f"{name.removesuffix(attribute)}{part}" if where == place else f"{where}.{part}"
    return found


def _attribute(owner: Any, part: str, where: str, name: str, option: str) -> Any:
    """Return the attribute for one part of a dotted name.

    Raises SpectraError where it is missing, belongs to the standard library, or is a `__x__` attribute of an object
    that is not a module, since such attributes lead to any object of Python.
    """
    try:
        found = getattr(owner, part)
    except AttributeError:
        names = getattr(owner, "__dict__", {})
        public = [k for k, v in names.items() if not (k.startswith("_") or inspect.ismodule(v))]
        raise input_error(option, name, f"{where} has no {part}; {suggest(part, public)}") from None
    if is_standard_object(found) or (part.startswith("__") and not inspect.ismodule(owner)):
        raise input_error(option, name, PART_OF_PYTHON)
    return found


def sibling_attribute(name: str, attribute: str) -> Any:
    """Return another attribute of the file or module that `name` was resolved from; None where it is missing."""
    place = name.rpartition(":")[0]
    module = sys.modules.get(_unique(Path(os.path.realpath(place))) if is_path(place) else place)
    return getattr(module, attribute, None)


def call(function: Any, name: str, options: dict[str, Any], option: str) -> Any:
    """Call `function(**options)`; `name` is what the user typed for it.

    Raises:
        SpectraError: it is not callable, does not take these options, or raises.
    """
    if not callable(function):
        came = type(function).__name__
        raise input_error(option, name, f"expected a callable, got {came}; name a function that returns it")
    check_options(function, name, options, option)
    place = name.rpartition(":")[0]  # empty for a registered name, of an installed package
    try:
        with _importable(place) if place else nullcontext():
            return function(**options)
    except (Exception, SystemExit) as error:
        raise input_error(option, name, f"calling it failed with {describe(error)}; {WHERE}") from error


def check_options(
    function: Callable[..., Any], name: str, options: dict[str, Any], option: str, positional: Sequence[str] = ()
) -> None:
    """Raise SpectraError where `function` does not take these options, or needs others.

    Args:
        function: the function.
        name: what the user typed for it.
        options: the keyword arguments.
        option: the option that names it.
        positional: names, for messages, of the arguments that it is called with first, such as output and target.
    """
    if (signature := signature_of(function)) is None:
        return
    try:
        signature.bind_partial(*positional)
    except TypeError as error:
        given = ", ".join(positional)
        text = f"it does not take ({given}): {error}; name a function of these arguments"
        raise input_error(option, name, text) from error
    try:
        signature.bind(*positional, **options)
    except TypeError as error:
        known = [p.name for p in list(signature.parameters.values())[len(positional) :] if p.kind in NAMED]
        way_out = f"write {name}?key=value&key=value; its options are {', '.join(known)}"
        raise input_error(option, name, f"{error}; {way_out if known else 'it takes no options'}") from error


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature of a function; None for a built-in without one.

    For a decorated class method, such as Lightning's `load_from_checkpoint`, the parameter `cls` is left out.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    first, *rest = signature.parameters.values() or (None,)
    bound = hasattr(function, "__wrapped__") and first is not None and first.name == "cls"
    return signature.replace(parameters=rest) if bound else signature


def unreadable_reason(path: Path | str, absent: str) -> str:
    """Return the reason why a path cannot be read as a file; `absent` where it does not exist."""
    try:
        refuse_special(path)
    except FileNotFoundError:
        return absent
    except OSError as error:
        return str(error.strerror)
    return absent


@contextmanager
def _importable(place: str) -> Iterator[None]:
    """Put the folder of a file, or the current directory for a module, first in `sys.path` inside this context.

    On success, this folder and those that the user's code has added stay at the end of `sys.path`, since a `forward`
    may import something later. After an error, `sys.path` is as before.
    """
    folder = Path(place).absolute().parent if is_path(place) else Path.cwd()
    after = before = list(sys.path)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
        after = [*before, *(folder for folder in dict.fromkeys(sys.path) if folder not in before)]
    finally:
        sys.path[:] = after


def _import(place: str, name: str, option: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            text = f"there is no module {error.name} here; write path/to/file.py:name or package.module:name"
            raise input_error(option, name, text + _prefix_hint(place)) from error
        raise input_error(option, name, f"importing {place} failed with {describe(error)}; {WHERE}") from error


def _prefix_hint(place: str) -> str:
    near = difflib.get_close_matches(place, PACKAGES, n=1)
    return f", or did you mean {near[0]}:NAME?" if near else ""


def _load_file(place: str, name: str, option: str) -> ModuleType:
    path = Path(os.path.realpath(place))
    if not path.is_file():
        kind = unreadable_reason(path, f"there is no such file in {path.parent}")
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")])
        hint = f"did you mean {near[0]}?" if near else "write path/to/file.py:name"
        raise input_error(option, name, f"{kind}; {hint}")
    if path.suffix != ".py":
        raise input_error(option, name, f"{place} is not a Python file; write path/to/file.py:name")
    unique = _unique(path)
    if unique in sys.modules:
        return sys.modules[unique]
    specification = importlib.util.spec_from_file_location(unique, path)
    assert specification
    assert specification.loader  # present for names that end in .py
    module = importlib.util.module_from_spec(specification)
    sys.modules[unique] = module  # before it runs: dataclasses and pickle look their module up
    try:
        specification.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[unique]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise input_error(option, name, f"importing {place} failed with {describe(error)}; {WHERE}") from error
    return module


def _unique(path: Path) -> str:
    """Return a module name that is unique to a file."""
    return f"spectra_user_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
