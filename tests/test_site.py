"""The site: it builds without a warning, and its reference lists every command, public name and key of a result."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from documents import DOCS
from helpers import WHOLE

import spectra
from spectra.commands import COMMANDS
from spectra.records.fields import layout

ROOT = DOCS.parent
HOOKS = ROOT / "scripts/site"


class Page(HTMLParser):
    """What a page of HTML loads of its own accord, and the targets of its links."""

    def __init__(self, path: Path):
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        if tag == "a":
            self.links.append(named.get("href") or "")
        elif place := named.get("src") or (named.get("href") if tag == "link" else None):
            self.loads.append(place)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    out = tmp_path_factory.mktemp("site")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def hook(name: str):
    """The module of a hook."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", HOOKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(site):
    """Strictly: every page is in the navigation, and every link and place within a page exists."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))
    for path in pages:
        page = Page(path)
        assert page.loads
        for place in page.loads:
            assert "//" not in place, f"{path.name} loads {place}"
            target = path.parent / place.partition("?")[0]
            assert path.name == "404.html" or target.exists(), f"{path.name} loads {place}"
        for link in page.links:  # to files that are no pages, of which MkDocs asks less
            target = path.parent / link.partition("#")[0]
            assert path.name == "404.html" or "//" in link or target.exists(), f"{path.name}: {link}"


def test_the_site_shows_what_pages_link_to_beside_docs(site):
    assert "Papyan" in (site / "results/validation/index.html").read_text()
    for page in DOCS.rglob("*.md"):
        for name in re.findall(r"\]\((?:\.\./)+(results/[^)#]+\.(?:png|csv|json))\)", page.read_text()):
            assert (site / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_command_line_has_every_command_and_option(site):
    text = (site / "reference/command-line.html").read_text()
    for name in COMMANDS:
        assert f'id="spectra-{name}"' in text
    assert 'id="spectra-sweep-collect"' in text
    shown = set(re.findall(r"<code>[^<]*?(--[a-z][a-z-]+)", text))
    taken = {option for name in COMMANDS for option in long_options(name)}
    assert len(taken) > 50
    assert taken <= shown


def long_options(name: str) -> set[str]:
    from spectra.commands import cli_command

    command = cli_command(name)
    found = [command, *getattr(command, "commands", {}).values()]
    options = (option for one in found for p in one.params if not getattr(p, "hidden", False) for option in p.opts)
    return {option for option in options if option.startswith("--")}


def test_the_python_reference_has_every_public_name_once(site):
    named = re.findall(r"^::: spectra\.(\w+)$", (DOCS / "reference/python.md").read_text(), re.MULTILINE)
    assert sorted(named) == spectra.__all__
    text = (site / "reference/python.html").read_text()
    for name in named:
        assert f'id="spectra.{name}"' in text


def test_every_key_of_a_result_has_a_meaning():
    fields, wanted, used = hook("fields"), [], set()
    classes = [fields.Record, *fields.RESULTS.values(), *fields.OTHERS.values()]
    for cls in classes:
        fields.table(cls, list(layout(cls)), wanted)
    for cls in wanted:  # which grows on the way
        fields.table(cls, list(layout(cls)), wanted)
    for cls in dict.fromkeys(classes + wanted):
        for slot in layout(cls):
            assert slot.rest or fields.meaning(cls, slot.name), f"{cls.__name__}.{slot.name}: write it in fields.toml"
            used |= {slot.name} | {f"{base.__name__}.{slot.name}" for base in cls.__mro__}
    assert set(fields.MEANINGS) <= used


EXECUTE = """
import sys
import nbclient, nbformat
book = nbformat.read(sys.argv[1], as_version=4)
client = nbclient.NotebookClient(book, timeout=300, kernel_name="python3")
client.create_kernel_manager().transport = "ipc"  # no ports
nbformat.write(client.execute(), "executed.ipynb")
"""


@pytest.mark.skipif(not WHOLE, reason="with the whole suite alone")
def test_the_notebook_runs(tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = DOCS / "notebook.ipynb"
    assert not any(cell.get("outputs") for cell in json.loads(book.read_text())["cells"])  # the file stays small
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", EXECUTE, str(book)], cwd=tmp_path, env=environment, check=True)
    cells = json.loads((tmp_path / "executed.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    shown = [output["data"].keys() for output in outputs if "data" in output]
    assert sum("text/html" in kinds for kinds in shown) == 3  # the tables and the density
    assert sum("image/png" in kinds for kinds in shown) == 3  # the figures
