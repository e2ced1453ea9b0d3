"""Decide whose code a name stands for: that of known packages, of a file's neighbours, or any code at all.

A result is data: of the names in it only those run that come with spectra, torchvision, transformers or timm, and make
a network, a data set or a transform. A program in a file (torch.export, TorchScript) is code like any other. Names that
other packages have added by entry points do not run, but for those of matrices: they take no options, so that whoever
wrote the result chooses among installed code, and tells it nothing. A TOML file and a plan are programs of their
author: what they name lies beside them or is installed. Whoever types a name on the command line vouches for it.
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

# What comes with Python makes no network, and os:system, subprocess:run or builtins:exec do what nobody asked for.
STANDARD = sys.stdlib_module_names | {"__main__", "test", "pip", "setuptools", "pkg_resources"}
RUN = ("model", "data", "transform", "loss", "held_out", "operator", "precondition")  # options whose values name code
OURS = ("spectra.demo:mlp",)
PACKAGES = ("torchvision", "transformers", "timm")
PREFIXES = tuple(f"{package}:" for package in PACKAGES)  # of names that make a network of their own options and data


def is_code(spec: str, option: str = "") -> bool:
    """Whether a name has the form `file.py:name` or `package.module:name`, and is neither a file of numbers nor a
    folder. A file that is a model is a program.
    """
    name = spec.partition("?")[0]
    place, colon, _ = name.rpartition(":")
    return name.endswith(".py") or bool(colon and place) or (option == "model" and names_file(name))


def names_file(name: str) -> bool:
    """Whether the name of a model is that of a file, by its form."""
    return not (":" in name or name.endswith(".py") or name in MODELS)


def is_strange(spec: str, option: str = "") -> bool:
    """Whether it is code, and not by one of the names that spectra and known packages have for it."""
    if any(is_added(one, spec) for one in RUN):
        return True
    name = spec.partition("?")[0]
    return is_code(spec, option) and name not in OURS and not name.startswith(PREFIXES)


def comes_with_packages(option: str, spec: str) -> bool:
    """Whether a name in a result may run: it is data, or what the packages list as theirs.

    Args:
        option: the option that it is given to, of RUN.
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
    """Whether it is a class of networks, or a function in the package's own list of models."""
    try:
        found = getattr(importlib.import_module(place), attribute)
    except Exception:
        return False
    if inspect.isclass(found):
        from torch import nn

        return issubclass(found, nn.Module)
    listed = {"torchvision": "torchvision.models:list_models", "timm": "timm:list_models"}
    if package not in listed or "{" in query or not getattr(found, "__module__", "").startswith(f"{package}.models"):
        return False  # options of timm that are mappings name files to read
    module, _, names = listed[package].partition(":")
    return attribute in getattr(importlib.import_module(module), names)()


def lies_beside(spec: str, folder: Path, start: Path, option: str = "") -> bool:
    """Whether what a file in `folder` names is a file there or below, or in an installed package.

    Args:
        start: the directory in which it will run, from which relative paths are read and modules taken first.
        option: the option that it is given to.
    """
    if not is_code(spec, option):
        return True
    place = place_of(spec)
    if is_path(place) or (option == "model" and names_file(place)):
        return _inside(start / place, folder)
    top = place.partition(".")[0]
    if top in sys.modules or not (found := PathFinder.find_spec(top, [str(start)])):
        return True  # installed, or nowhere: who imports it says so
    files = [found.origin] if found.origin else found.submodule_search_locations or ()
    return all(_inside(file, folder) for file in files)


def is_standard(spec: str) -> bool:
    """Whether the module or file that a name stands in comes with Python."""
    if not is_code(spec):
        return False
    place = place_of(spec)
    if not is_path(place):
        return place.partition(".")[0] in STANDARD
    file, library = Path(os.path.realpath(place)), Path(os.path.realpath(sysconfig.get_path("stdlib")))
    return file.is_relative_to(library) and "site-packages" not in file.relative_to(library).parts


def made_standard(found: Any) -> bool:
    """Whether a function, class or module comes with Python, whoever has imported it: `system` in a file that imports
    os. A method comes with Python where its class does.
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
        return made_standard(found)
    return str(getattr(found, "__module__", None)).partition(".")[0] in STANDARD


def place_of(spec: str) -> str:
    """The `path/to/file.py` or `package.module` of `path/to/file.py:name?key=value`."""
    name = spec.partition("?")[0]
    return name.rpartition(":")[0] or name


def is_path(place: str) -> bool:
    """Whether the place of a name is a file, and not a module."""
    return place.endswith(".py") or "/" in place or os.sep in place


def _inside(file: Path | str, folder: Path) -> bool:
    """Whether a file lies in a folder, links followed."""
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))
