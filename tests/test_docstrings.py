"""The docstrings of public names, as the site renders them: each argument is described, and each example is true."""

import doctest
import inspect
import logging
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import spectra

griffe = pytest.importorskip("griffe")

PUBLIC = [name for name in spectra.__all__ if name != "MATRICES"]  # an object, whose class is not public


@cache
def module(file: str) -> Any:
    """A module as mkdocstrings reads it: from its source, with docstrings in Google's style."""
    return griffe.visit("module", Path(file), Path(file).read_text("utf-8"), docstring_parser="google")


def definition(found: Any) -> Any:
    """The source of a function or class, as griffe reads it."""
    return module(str(inspect.getsourcefile(found)))[found.__name__]


def described(name: str) -> dict[str, Any]:
    """The definitions of a public name and of the public methods and properties of its own that have a docstring."""
    found = definition(inspect.unwrap(getattr(spectra, name)))
    members = found.members.items() if found.is_class else ()
    return {name: found} | {f"{name}.{key}": m for key, m in members if not key.startswith("_") and m.docstring}


def told(found: Any) -> set[str]:
    """The arguments that a docstring describes; of a dataclass also the fields that it inherits from others."""
    sections = [section for base in homes(found) for section in definition(base).docstring.parsed]
    kinds = ("parameters", "attributes")
    return {entry.name.lstrip("*") for section in sections if section.kind.value in kinds for entry in section.value}


def homes(found: Any) -> list[Any]:
    """A function or class; of a dataclass also the classes of which it has fields."""
    return [base for base in found.__mro__ if is_dataclass(base)] if is_dataclass(found) else [found]


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_begins_with_a_sentence_that_reads_alone(name):
    for key, found in described(name).items():
        first = found.docstring.value.partition("\n\n")[0]
        assert first.endswith("."), f"{key}: {first}"
        assert "\n" not in first, f"{key}: {first}"
        assert not first.startswith(("Of ", "The same ", "As ")), f"{key}: {first}"


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "SymmetricOperator"])  # which is never called
def test_docstring_describes_every_argument(name):
    found = inspect.unwrap(getattr(spectra, name))
    assert told(found) == set(inspect.signature(found).parameters)


@pytest.mark.parametrize("name", PUBLIC)
def test_sections_parse(name, caplog):
    """Griffe warns of arguments that there are not; a `Raises` in the text is none of its sections."""
    with caplog.at_level(logging.WARNING, logger="griffe"):
        for key, found in described(name).items():
            sections = {section.kind.value for section in found.docstring.parse()}  # which is not cached
            assert "raises" in sections or "Raises" not in found.docstring.value, key
    assert not caplog.records, caplog.text


@pytest.mark.parametrize("name", [name for name in PUBLIC if ">>>" in (getattr(spectra, name).__doc__ or "")])
def test_example_is_true(name):
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(getattr(spectra, name)) or "", {}, name, None, None)
    assert doctest.DocTestRunner().run(test).failed == 0
