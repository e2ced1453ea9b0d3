"""Programs as models: what torch.export has saved (`file.pt2`), and archives of TorchScript.

Both are code, recognised by what is in the file, and run only where the user names one as `model`.
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
from spectra.inputs.spec import input_error, told_missing

OPTION = "`model`"
EXPORTED = ("serialized_exported_program.json", "archive_format", "models/model.json")
FORM = "a program of torch.export (file.pt2) or TorchScript"
NONE = f"it holds no program; name {FORM}, or file.py:name"
WEIGHTS = "it holds weights and no program; give it as `checkpoint`, and name the architecture as `model`"
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")  # of weights


def make(name: str, options: dict[str, Any]) -> nn.Module:
    """The module that a file of torch.export or TorchScript holds, with the weights in it.

    Raises:
        SpectraError: no such file, no program, one that cannot be loaded, or options, of which it takes none.
    """
    try:
        with open_regular(name) as file:
            load = _loader(_names(file))
            if load is None:
                raise input_error(OPTION, name, WEIGHTS if name.endswith(SUFFIXES) else NONE)
            if options:
                raise input_error(OPTION, name, "a finished program takes no options; leave out what follows '?'")
            file.seek(0)
            try:
                with unheard():
                    return load(file)
            except Exception as error:
                text = f"loading it failed with {describe(error)}; save it again, with this version of torch"
                raise input_error(OPTION, name, text) from error
    except FileNotFoundError:
        raise input_error(OPTION, name, f"{told_missing(name, 'there is no such file')}; check the path") from None
    except OSError as error:
        raise input_error(OPTION, name, f"{error.strerror or describe(error)}; check the path") from error


@contextmanager
def unheard() -> Iterator[None]:
    """A context without warnings: that TorchScript is deprecated, which symbols torch.export has not found again."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def _names(file: BufferedReader) -> Sequence[str]:
    """What an archive holds; nothing for another file."""
    try:
        return zipfile.ZipFile(file).namelist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError):
        return ()


def _loader(names: Sequence[str]) -> Callable[[Any], nn.Module] | None:
    """The function that loads a program, by what its archive holds."""
    if any(name.endswith(EXPORTED) for name in names):
        return _exported
    if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
        return partial(torch.jit.load, map_location="cpu")
    return None


def _exported(file: BufferedReader) -> nn.Module:
    program = torch.export.load(file)  # pyright: ignore[reportArgumentType]
    return program.module()
