"""Build models of the package timm, `timm:NAME?num_classes=10`, with random weights.

Nothing is downloaded, and no file is read: the user gives weights as `checkpoint`, which runs no code.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from spectra.errors import describe
from spectra.inputs.spec import input_error, suggest
from spectra.quoting import foreign

OPTION = "`model`"
PREFIX = "timm:"
INSTALL = "the package timm is not installed; install it with pip install timm"
FILES = ("checkpoint_path", "cache_dir")  # and whatever begins with `pretrained`
WAY_OUT = "weights are not downloaded; download the file yourself, and give it as `checkpoint`"


def make(name: str, options: dict[str, Any]) -> nn.Module:
    """Build the model with a name in timm's list; the options go to `timm.create_model`.

    Raises:
        SpectraError: no such model, an option would download or read weights, or building it failed.
    """
    with warnings.catch_warnings(action="ignore"):
        try:
            import timm
        except ImportError as error:
            raise input_error(OPTION, name, INSTALL) from error
        short = name.removeprefix(PREFIX)
        known = timm.list_models()
        if short.partition(".")[0] not in known:  # a tag of weights may follow a dot
            hub = short.startswith("hf") or "/" in short
            way_out = WAY_OUT if hub else suggest(short, known)
            raise input_error(OPTION, name, f"timm has no model {foreign(short)}; {way_out}")
        for key, value in options.items():
            if key.startswith("pretrained") and value in (False, None):
                continue
            if key.startswith("pretrained") or key in FILES:
                raise input_error(OPTION, f"{name}?{key}", WAY_OUT)
        try:
            return timm.create_model(short, **options)
        except Exception as error:
            text = f"building it failed with {describe(error)}; check what follows '?'"
            raise input_error(OPTION, name, text) from error
