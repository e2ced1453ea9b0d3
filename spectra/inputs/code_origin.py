"""Decide where the code behind a name comes from, and whether it may run.

- A name that the user types on the command line may run any code.
- A result file is data. Names in it run only if they belong to spectra, torchvision, transformers or timm, and make a
  network, a data set or a transform. Programs in files (torch.export, TorchScript) count as code. Names that other
  packages have added by entry points do not run, except those of matrices: they take no options, so the author of the
  result only chooses among installed code.
- A TOML file or a sweep's plan may name files in its own folder and installed packages.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import sysconfig
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from spectra.inputs.registers import MODELS, is_added

# Python's own modules make no network, and names such as os:system or builtins:exec would be dangerous.
STANDARD = sys.stdlib_module_names | {"__main__", "test", "pip", "setuptools", "pkg_resources"}
RUN = ("model", "data", "transform", "loss", "held_out", "operator", "precondition")  # options whose values name code
OURS = ("spectra.demo:mlp",)
PACKAGES = ("torchvision", "transformers", "timm")
PREFIXES = tuple(f"{package}:" for package in PACKAGES)


def is_code(spec: str, option: str = "") -> bool:
    """Whether a name stands for code: `file.py:name`, `package.module:name`, or a file given as a model (a program)."""
    name = spec.partition("?")[0]
    place, colon, _ = name.rpartition(":")
    return name.endswith(".py") or bool(colon and place) or (option == "model" and names_file(name))


def names_file(name: str) -> bool:
    """Whether the name of a model has the form of a file name."""
    return not (":" in name or name.endswith(".py") or name in MODELS)


def is_third_party(spec: str, option: str = "") -> bool:
    """Whether a name stands for code that belongs neither to spectra nor to a known package."""
    if any(is_added(one, spec) for one in RUN):
        return True
    name = spec.partition("?")[0]
    return is_code(spec, option) and name not in OURS and not name.startswith(PREFIXES)


def comes_with_packages(option: str, spec: str) -> bool:
    """Whether a name in a result file may be used: it stands for data, or for an object of a known package.

    Args:
        option: the option that the name is given to, one of RUN.
        spec: the name with its options.
    """
    name, _, query = spec.partition("?")
    if is_added(option, spec):
        return False
    text = option in ("data", "held_out") and name.startswith("text:")
    if not is_code(spec, option) or name in OURS or text:
        return True
    place, _, attribute = name.rpartition(":")
    package = place.partition(".")[0]
    if package not in PACKAGES or "trust_remote_code" in query:
        return False
    if option == "model":
        return place in PACKAGES or _is_network(package, place, attribute, query)
    if option in ("data", "held_out"):
        return place == "torchvision"
    return option == "transform" and place.startswith("torchvision.transforms")


def _is_network(package: str, place: str, attribute: str, query: str) -> bool:
    """Whether an attribute of a package is a class of networks, or a function in the package's list of models."""
    try:
        found = getattr(importlib.import_module(place), attribute)
    except Exception:
        return False
    if inspect.isclass(found):
        from torch import nn

        return issubclass(found, nn.Module)
    listed = {"torchvision": "torchvision.models:list_models", "timm": "timm:list_models"}
    if package not in listed or "{" in query or not getattr(found, "__module__", "").startswith(f"{package}.models"):
        return False  # mappings among the options of timm may name files to read
    module, _, names = listed[package].partition(":")
    return attribute in getattr(importlib.import_module(module), names)()


def is_inside_folder(spec: str, folder: Path, start: Path, option: str = "") -> bool:
    """Whether a name in a file of `folder` stands for a file in or below that folder, or for an installed package.

    Args:
        spec: the name with its options.
        folder: the folder of the file that contains the name.
        start: the working directory of the run, for relative paths, and for modules before the installed ones.
        option: the option that the name is given to.
    """
    if not is_code(spec, option):
        return True
    place = place_of(spec)
    if is_path(place) or (option == "model" and names_file(place)):
        return _inside(start / place, folder)
    top = place.partition(".")[0]
    if top in sys.modules or not (found := PathFinder.find_spec(top, [str(start)])):
        return True  # installed, or missing, which the import reports
    files = [found.origin] if found.origin else found.submodule_search_locations or ()
    return all(_inside(file, folder) for file in files)


def is_standard(spec: str) -> bool:
    """Whether the module or file of a name belongs to Python's standard library."""
    if not is_code(spec):
        return False
    place = place_of(spec)
    if not is_path(place):
        return place.partition(".")[0] in STANDARD
    file, library = Path(os.path.realpath(place)), Path(os.path.realpath(sysconfig.get_path("stdlib")))
    return file.is_relative_to(library) and "site-packages" not in file.relative_to(library).parts


def is_standard_object(found: Any) -> bool:
    """Whether a function, class or module belongs to the standard library, even if another module has imported it.

    A method belongs to it if its class does.
    """
    while isinstance(found, partial):
        found = found.func
    if inspect.ismodule(found):
        return found.__name__.partition(".")[0] in STANDARD
    if not (inspect.isroutine(found) or inspect.isclass(found)):
        return False
    owner = getattr(found, "__objclass__", None) or getattr(found, "__self__", None)  # of methods written in C
    if getattr(found, "__module__", None) is None and owner is not None:
        found = owner if inspect.isclass(owner) or inspect.ismodule(owner) else type(owner)
        return is_standard_object(found)
    return str(getattr(found, "__module__", None)).partition(".")[0] in STANDARD


def place_of(spec: str) -> str:
    """Return the `path/to/file.py` or `package.module` of `path/to/file.py:name?key=value`."""
    name = spec.partition("?")[0]
    return name.rpartition(":")[0] or name


def is_path(place: str) -> bool:
    """Whether the place of a name is a file, rather than a module."""
    return place.endswith(".py") or "/" in place or os.sep in place


def _inside(file: Path | str, folder: Path) -> bool:
    """Whether a file lies in or below a folder, after following links."""
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))
