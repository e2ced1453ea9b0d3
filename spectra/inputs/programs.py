"""Load models that torch.export (`file.pt2`) or TorchScript has saved as programs.

Both are code. They are recognised by the content of the file, and run only if the user names the file as `model`.
"""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from typing import Any

import torch
from torch import nn

from spectra.errors import describe
from spectra.files import open_regular
from spectra.inputs.foreign_formats import EXPORTED
from spectra.inputs.spec import input_error, unreadable_reason

OPTION = "`model`"
FORM = "a program of torch.export (file.pt2) or TorchScript"
NONE = f"it does not hold a program; name {FORM}, or file.py:name"
WEIGHTS = "it holds weights, not a program; give it as `checkpoint`, and name the architecture as `model`"
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")  # of weights


def make(name: str, options: dict[str, Any]) -> nn.Module:
    """Load the module, with its weights, from a file of torch.export or TorchScript.

    Raises:
        SpectraError: no such file, the file holds no program or cannot be loaded, or options are given.
    """
    try:
        with open_regular(name) as file:
            load = _loader(_names(file))
            if load is None:
                raise input_error(OPTION, name, WEIGHTS if name.endswith(SUFFIXES) else NONE)
            if options:
                raise input_error(OPTION, name, "a saved program takes no options; leave out what follows '?'")
            file.seek(0)
            try:
                with silenced():
                    return load(file)
            except Exception as error:
                text = f"loading it failed with {describe(error)}; save it again, with this version of torch"
                raise input_error(OPTION, name, text) from error
    except FileNotFoundError:
        raise input_error(OPTION, name, f"{unreadable_reason(name, 'there is no such file')}; check the path") from None
    except OSError as error:
        raise input_error(OPTION, name, f"{error.strerror or describe(error)}; check the path") from error


@contextmanager
def silenced() -> Iterator[None]:
    """Suppress warnings inside this context, such as the deprecation of TorchScript, and those of torch.export."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def _names(file: BufferedReader) -> Sequence[str]:
    """Return the names of the files in a zip archive; none for any other file."""
    try:
        return zipfile.ZipFile(file).namelist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError):
        return ()


def _loader(names: Sequence[str]) -> Callable[[Any], nn.Module] | None:
    """Choose the function that loads a program from the names in its archive; None where it is not a program."""
    if any(name.endswith(EXPORTED) for name in names):
        return _exported
    if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
        return partial(torch.jit.load, map_location="cpu")
    return None


def _exported(file: BufferedReader) -> nn.Module:
    program = torch.export.load(file)  # pyright: ignore[reportArgumentType]
    return program.module()
