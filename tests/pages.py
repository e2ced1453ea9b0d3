"""Results of every command on a small problem, and pages as a reader's browser takes them apart."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from spectra.cli import run

NETS = """
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
"""
PROBLEM = "--model nets.py:mlp --data points.npz --dtype float64"
LINES = {  # by command: its options
    "inspect": PROBLEM,
    "eig": f"{PROBLEM} -k 4 --curvature hessian --curvature ggn --curvature fisher --curvature fisher-mc",
    "trace": f"{PROBLEM} --curvature hessian --curvature fisher-empirical --method xtrace",
    "density": f"{PROBLEM} --steps 10 --probes 3 --damping 0.5 --log",
    "compare": f"{PROBLEM} -k 3 --probes 5 --steps 8 --held-out points.npz --subsample 10,20"
    " --curvature hessian --curvature ggn",
    "layers": f"{PROBLEM} --curvature hessian --density --steps 5",
    "landscape": PROBLEM,
    "step": PROBLEM,
}
FIGURES = {  # by command: how many
    "inspect": 0,
    "eig": 1,
    "trace": 1,
    "density": 2,
    "compare": 3,
    "layers": 2,
    "landscape": 1,
    "step": 1,
}
VOID = {"meta", "img", "br", "link", "input", "hr"}


def make_files() -> None:
    Path("nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    np.savez("points.npz", x=draw.normal(size=(40, 4)).astype("float32"), y=draw.integers(3, size=40))


def make(command: str, out: str) -> None:
    assert run([command, *shlex.split(LINES[command]), "--out", out]) == 0


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    children: list[Element | str] = field(default_factory=list)

    def all(self, tag: str = "") -> list[Element]:
        """Those below it, in the order of the page."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                found += [child] * (tag in ("", child.tag)) + child.all(tag)
        return found

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    @property
    def classes(self) -> list[str]:
        return (self.attributes.get("class") or "").split()


class Page(HTMLParser):
    """A page whose tags must be balanced."""

    def __init__(self, text: str):
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.text = text
        self.feed(text)
        self.close()
        assert self.open == [self.root], f"not closed: {[element.tag for element in self.open[1:]]}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"{tag}: an attribute twice"
        self.open[-1].children.append(element := Element(tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> ends {self.open[-1].tag}"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)

    def all(self, tag: str = "") -> list[Element]:
        return self.root.all(tag)

    def one(self, tag: str) -> Element:
        (found,) = self.all(tag)
        return found

    def tables(self) -> list[list[list[str]]]:
        """Cells of every table, row by row."""
        return [[[cell.text for cell in cells(row)] for row in table.all("tr")] for table in self.all("table")]


def cells(row: Element) -> list[Element]:
    return [cell for cell in row.all() if cell.tag in ("th", "td")]
