"""Spectral analysis of loss landscapes: the Hessian, the GGN and the Fisher matrices by matrix-vector products.

The public names are those that `__init__.pyi` imports. Each is loaded when first used, so that `import spectra` and
every `--help` need no torch.
"""

import re
from importlib import import_module
from pkgutil import get_data

__version__ = "0.2.0"

_IMPORTS = (get_data(__name__, "__init__.pyi") or b"").decode()
_HOMES = {name: home for home, name in re.findall(r"^from (\S+) import (\w+) as \2$", _IMPORTS, re.MULTILINE)}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]  (type checkers read `__init__.pyi`)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'spectra' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
