"""The public names: one list, which type checkers, editors and `import spectra` read alike."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import spectra

STUB = Path(spectra.__file__).with_suffix(".pyi")


def test_stub_and_package_have_the_same_names():
    imports = [node for node in ast.parse(STUB.read_text("utf-8")).body if isinstance(node, ast.ImportFrom)]
    told = {alias.asname: (node.module, alias.name) for node in imports for alias in node.names}
    assert told == {name: (home, name) for name, home in spectra._HOMES.items()}
    assert spectra.__all__ == sorted(told)
    assert set(spectra.__all__) <= set(dir(spectra))
    assert {"Problem", "eigenpairs", "load_problem", "watch"} <= set(spectra.__all__)


@pytest.mark.parametrize("name", spectra.__all__)
def test_public_name_is_what_its_home_has(name):
    assert getattr(spectra, name) is getattr(import_module(spectra._HOMES[name]), name)


def test_other_names_are_missing():
    with pytest.raises(AttributeError, match="module 'spectra' has no attribute 'eigenpair'"):
        spectra.eigenpair  # noqa: B018
