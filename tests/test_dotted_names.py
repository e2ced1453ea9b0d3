"""Names behind the colon may have dots: a class method, an attribute of an object, a module that a file imports."""

from pathlib import Path

import pytest
import torch

from spectra.cli import run
from spectra.errors import SpectraError
from spectra.inputs.model import build_model
from spectra.inputs.spec import resolve

FILE = """
import os.path as paths
from functools import partial
import torch
from torch import nn

class Net(nn.Sequential):
    width = 5

    def __init__(self, width=4):
        super().__init__(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))

    @classmethod
    def wide(cls, width=9):
        return cls(width)

    @staticmethod
    def narrow():
        return Net(2)

    class Inner(nn.Linear):
        pass

class Box: ...

box = Box()
box.net, box.text, box.make = Net(), "text", partial(Net, width=7)

def data():
    return torch.ones(7, 4), torch.zeros(7).long()

class Data:
    points = staticmethod(data)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dotted.py").write_text(FILE)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("Net", 4),
        ("Net.wide", 9),
        ("Net.wide?width=3", 3),
        ("Net.narrow", 2),
        ("box.net", 4),
        ("box.make", 7),
    ],
)
def test_dots_lead_to_what_lies_inside(name, width):
    assert build_model(f"dotted.py:{name}", 0)[0].weight.shape == (width, 4)


def test_dots_lead_through_modules():
    assert resolve("dotted.py:torch.nn.Linear", "`model`") is torch.nn.Linear
    assert resolve("torch.nn:modules.linear.Linear", "`model`") is torch.nn.Linear


def test_a_command_takes_dotted_names(capfd):
    assert run(["eig", "--model", "dotted.py:Net.wide?width=3", "--data", "dotted.py:Data.points", "-k", "1"]) == 0
    assert not capfd.readouterr().err


STANDARD = [
    "torch.os.system?command=touch ran",
    "paths.os.system?command=touch ran",
    "paths.join",
    "torch.sys.modules",
    "box.text.join",
    "Net.__class__",
    "Net.__init__.__globals__",
    "Net.__subclasses__",
    "Net.wide.__func__.__builtins__",
    "box.make.__reduce__",
    "partial.func",
    "Net.width.bit_length",
]


@pytest.mark.parametrize("name", STANDARD)
def test_what_comes_with_python_is_refused_at_every_step(name, capfd):
    assert run(["eig", "--model", f"dotted.py:{name}", "--data", "digits"]) == 2
    err = capfd.readouterr().err
    assert "belongs to Python's standard library" in err, err
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Net.wied", "dotted.py:Net has no wied; did you mean wide"),
        ("box.nett", "dotted.py:box has no nett; did you mean net"),
        ("box.net.nothing", "dotted.py:box.net has no nothing"),
        ("Net.", "the name of the object in it is missing; write dotted.py:name"),
        (".Net", "the name of the object in it is missing; write dotted.py:name"),
        ("Net..wide", "the name of the object in it is missing; write dotted.py:name"),
    ],
)
def test_where_a_dotted_name_ends_is_told(name, expected):
    with pytest.raises(SpectraError) as caught:
        resolve(f"dotted.py:{name}", "`model`")
    assert expected in str(caught.value)
