"""The pages of docs/ cannot go stale: their files are written, and their commands and their Python run."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from documents import DOCS, blocks, commands, form

from spectra.cli import run

PAGES = sorted(DOCS.rglob("*.md"))
NEEDS = {"transformers": "transformers", "timm": "timm", "lightning": "lightning", "torch_geometric": "torch_geometric"}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_page(page, tmp_path, monkeypatch, capsys):
    text = page.read_text()
    for word, package in NEEDS.items():
        if f"import {word}" in text or f"{word}:" in text or f"from {word}" in text:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setitem(os.environ, "COLUMNS", "80")
    for number, block in enumerate(blocks(page)):
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, f"{page.name}, block {number}", "exec"), {"__name__": "__main__"})
        elif block.language == "console":
            for line, shown in commands(block):
                capsys.readouterr()
                execute(line, shown, capsys)


def execute(line: list[str], shown: str, capsys) -> None:
    """Run a command of a page: of ours, or `python file.py`."""
    if line[0] == "python":
        spec = importlib.util.spec_from_file_location("__main__", line[1])
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        return
    assert line[0] == "spectra", line
    status = run(line[1:])
    out, err = capsys.readouterr()
    assert status == (2 if shown.startswith("spectra:") else 0), err
    if shown.strip():
        assert form(out if status == 0 else err) == form(shown)
        assert max(map(len, out.splitlines()), default=0) <= 80


def test_files_and_pages_named_exist():
    import re

    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
