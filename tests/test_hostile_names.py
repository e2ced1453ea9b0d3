"""What files call things reaches terminals, figures and pages in printable characters, on one line, not at length."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_files import to_json
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from spectra.cli import run
from spectra.errors import SpectraError
from spectra.page.templating import TEMPLATES
from spectra.plots.names import settable
from spectra.quoting import LINE, NAME, quoted, readable

CLEARS = "\x1b[2J\x1b[H"
FAKES = "x\nspectra: all is well\r"
TURNS = "\u202egnp.\u2066"
LONG = "w" * 5000
HOSTILE = [CLEARS, FAKES, TURNS, "a\x00b\x9b31m", LONG, "\udcff", "$\\frac$"]
HARMLESS = re.compile(r"[\x20-\x7e\xa0-\u2027\u202f-\u205f\u2070-\U0010ffff\n]*")


def assert_harmless(text: str, what: str) -> None:
    """No control characters but line ends, no line that a name has begun, no name at length."""
    assert HARMLESS.fullmatch(text), (what, ascii(text)[:400])
    assert not any(line.startswith("spectra: all is well") for line in text.splitlines()), what
    assert "w" * 1000 not in text, what


@given(st.text(), st.integers(30, 200))
def test_quoting(text, most):
    found = quoted(text, most)
    assert found.isprintable()
    assert len(found) <= most
    assert quoted(found, most) == found
    assert "\n" not in TEMPLATES.from_string("{{ text }}").render(text=text)
    if text.isprintable() and len(text) <= most:
        assert found == text


def test_escapes_are_as_python_writes_them():
    assert quoted("a\x1b[31m\n\u202e\udcff") == r"a\x1b[31m\n\u202e\udcff"
    assert quoted("é λ 漢 💥 C:\\x") == "é λ 漢 💥 C:\\x"
    assert quoted("a" * 80 + "b" * 200) == "a" * 78 + " ... " + "b" * 77
    assert len(quoted(LONG)) == NAME
    assert quoted(10**5000).startswith("a number")
    assert len(str(SpectraError(LONG))) == LINE
    assert str(SpectraError(FAKES)) == "x\\nspectra: all is well\\r"


def test_every_text_of_a_record_is_readable():
    assert readable({FAKES: [CLEARS, {"a": (TURNS, 1.5, None)}]}) == {
        quoted(FAKES): [quoted(CLEARS), {"a": [quoted(TURNS), 1.5, None]}]
    }


@pytest.mark.parametrize("name", HOSTILE)
def test_names_in_figures(name):
    shown = settable(name)
    assert shown.isprintable()
    assert len(shown) <= NAME + shown.count("\\$")
    assert settable(shown) == shown


@pytest.fixture
def shown(tmp_path, monkeypatch, capfd):
    """Run a command, and see that all it shows is harmless; its status."""
    monkeypatch.chdir(tmp_path)

    def shown(line: list[str] | str) -> int:
        capfd.readouterr()
        status = run(shlex.split(line) if isinstance(line, str) else line)
        out, err = capfd.readouterr()
        assert out or err
        assert_harmless(out, f"stdout of {line}")
        assert_harmless(err, f"stderr of {line}")
        if status == 2:
            assert out == ""
            assert all(line.startswith("spectra: ") and len(line) < 600 for line in err.splitlines())
        return status

    return shown


def module_named(name: str) -> nn.Module:
    """A model of one layer, of which a checkpoint may call things as it likes."""
    model = nn.Module()
    model.add_module(name.replace(".", "").replace("\x00", "") or "x", nn.Linear(4, 3))
    return model


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_keys_of_checkpoints(name, suffix, shown):
    """In `inspect`, which lists what it ignores, and in errors of the others."""
    Path("plain.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(4, 3)\n")
    np.savez("points.npz", x=np.ones((7, 4), "f4"), y=np.zeros(7, int))
    held = {f"net.{key}": value for key, value in nn.Linear(4, 3).state_dict().items()}
    files = {
        "beside": held | {name: torch.ones(2)},
        "instead": {name: torch.ones(3, 4), "bias": torch.ones(3)},
        "prefix": {f"{name}.{key.removeprefix('net.')}": value for key, value in held.items()},
        "nan": held | {"net.weight": torch.full((3, 4), torch.nan), name: torch.ones(1)},
        "twice": {f"{name}{i}.{key.removeprefix('net.')}": v + i for i in range(2) for key, v in held.items()},
    }
    if suffix == ".safetensors" and name == "\udcff":
        return  # whose library writes no such name
    for kind, content in files.items():
        if suffix == ".pt":
            torch.save({name: content} if kind == "nan" else content, f"{kind}.pt")
        else:
            save_file(content, f"{kind}.safetensors")
        line = f"--model plain.py:build --checkpoint {kind}{suffix}"
        assert shown(f"inspect {line}") == (0 if kind in ("beside", "prefix") else 2)
        if kind in ("prefix", "twice"):
            shown(f"eig {line} --data points.npz -k 1")
    torch.save({"optimizer": {}, name: [1, 2]}, "none.pt")
    assert shown("inspect --model plain.py:build --checkpoint none.pt") == 2
    key = ["--checkpoint-key", name.replace("\x00", "")]
    assert shown(["inspect", "--model", "plain.py:build", "--checkpoint", f"prefix{suffix}", *key]) in (0, 2)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", [name for name in HOSTILE if "\x00" not in name and name != LONG])
def test_names_of_files_and_layers(name, shown):
    """Paths of every kind, class folders, modules, and what the user's code says."""
    safe = name.replace("/", "")
    Path("plain.py").write_text(
        "from torch import nn\n"
        f"class Strange(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.add_module({safe.replace('.', '')!a}, nn.Linear(4, 3))\n"
        f"        self.add_module('b', nn.Linear(3, 3))\n"
        "    def forward(self, x):\n        return self.b(next(self.children())(x))\n"
        "def build():\n    return Strange()\n"
        f"def fails():\n    raise ValueError({safe!a})\n"
    )
    np.savez(f"{safe}.npz", x=np.ones((7, 4), "f4"), y=np.arange(7) % 3)
    np.savez("arrays.npz", **{"x": np.ones(3)} | ({name: np.ones(3)} if name != "\udcff" else {}))
    line = ["--model", "plain.py:build", "--data", f"{safe}.npz", "--out", f"out{safe}"]
    for command in (
        ["inspect"],
        ["eig", "-k", "1"],
        ["trace", "--method", "dense"],
        ["layers"],
        ["landscape"],
        ["step", "-k", "1"],
    ):
        assert shown([*command, *line]) in (0, 1)
    assert shown(["plot", f"out{safe}/layers.json", "--out", f"a{safe}.png"]) == 0
    assert shown(["report", f"out{safe}", "--out", "a.html"]) == 0
    page = Path("a.html").read_text()
    assert HARMLESS.fullmatch(re.sub(r"data:image[^\"]*", "", page)), ascii(page)[:300]
    eig = ["eig", "--model", "plain.py:build", "--data"]
    assert shown([*eig, "arrays.npz"]) == 2
    assert shown([*eig, f"{safe}.safetensors"]) == 2
    assert shown(["eig", "--model", f"{safe}.py:build", "--data", "digits"]) == 2
    assert shown(["eig", "--model", "plain.py:fails", "--data", "digits"]) == 2
    assert shown(["eig", "--model", f"plain.py:build?{safe}=1", "--data", "digits"]) == 2
    assert shown([*eig, f"{safe}.npz", "--params", safe or "x"]) == 2
    assert shown([*eig, f"{safe}.npz", "--config", f"{safe}.toml"]) == 2
    assert shown(["report", f"{safe}.json", "--out", "a.html"]) == 2
    assert shown(["plot", f"out{safe}/eig.json", "--out", "b.png", "--title", safe]) in (0, 2)
    for folder in (safe, "b"):
        (Path("images") / folder).mkdir(parents=True)
    assert shown([*eig, "images"]) == 2


LINES = {
    "eig": "-k 2",
    "trace": "--method dense --params 5.bias",
    "density": "--steps 4 --probes 2",
    "inspect": "",
    "compare": "-k 2 --probes 3 --steps 4 --curvature hessian --curvature ggn",
    "layers": "-k 1 --method hutchinson --rtol 1",
    "landscape": "--along 1 --along random --points 3",
    "step": "-k 2",
}
PROBLEM = "--model spectra.demo:mlp --data digits --samples 30 --seed 1"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    for command, line in LINES.items():
        assert run(shlex.split(f"{command} {line} {PROBLEM} --out {out}")) in (0, 1)
    return out


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", [CLEARS + FAKES + TURNS, LONG, "\udcff$\\frac$"])
def test_texts_of_results(name, results, shown):
    """In every text of every kind of record at once, read by `report`, `plot`, `--config` and `--deflate`."""
    drawn = 0
    for command in LINES:
        record = json.loads((results / f"{command}.json").read_text())
        strange = made_strange(record, name) | {"command": command}
        for result in strange["results"][: 1 if command != "compare" else 0]:
            result["curvature"] = name if command in ("eig", "layers") else "hessian"  # as far as tables go
        Path(f"{command}.json").write_bytes(to_json(strange))
        for line in (f"report {command}.json --out a.html", f"plot {command}.json --out a.svg"):
            page = Path(line.rpartition(" ")[2])
            page.unlink(missing_ok=True)
            shown(line)
            if page.exists():
                drawn += 1
                content = re.sub(r"data:image[^\"]*|<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
                assert HARMLESS.fullmatch(content), ascii(content)[:400]
    assert drawn >= 6
    assert shown("eig --config eig.json") == 2
    shown(f"trace {PROBLEM} --deflate eig.json --method dense --params 5.bias")


def made_strange(tree, name: str):
    """A JSON value of which every text is another, but those that say of what kind it is."""
    if isinstance(tree, str):
        return name
    if isinstance(tree, dict):
        kept = ("by", "sort", "kind", "dtype", "device")
        return {key: value if key in kept else made_strange(value, name) for key, value in tree.items()}
    return [made_strange(value, name) for value in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("name", [CLEARS, FAKES, TURNS, "\udcff"])
def test_names_in_plans(name, shown):
    """Checkpoints, keys and values of a plan; logs of tasks, of which status shows the last lines."""
    Path("c").mkdir()
    torch.save({"0.weight": torch.ones(2, 2)}, f"c/{name}.pt")
    torch.save({"0.weight": torch.ones(2, 2)}, "c/last.pt")
    text = "[problem]\nmodel = 'gone.py:build'\ndata = 'digits'\ncheckpoint = 'c/*.pt'\n[eig]\nk = 1\n"
    Path("plan.toml").write_text(text)
    assert shown("sweep status plan.toml") == 0
    logs = Path("plan/.sweep/last")
    logs.mkdir(parents=True)
    arguments = json.dumps(name)
    (logs / "hessian.log").write_text(f"{name}\n{name}\n", errors="surrogateescape")
    (logs / "hessian.json").write_text(f'{{"command": "eig", "arguments": [{arguments}], "status": 3}}')
    assert shown("sweep status plan.toml") == 0
    assert shown("sweep collect plan.toml") == 2
    for line in (f"{json.dumps(name)} = 1", f"[{json.dumps(name)}]", f"[eig]\nwhich = {json.dumps(name)}"):
        if "udcff" not in line:
            Path("bad.toml").write_text(f"{text}\n{line}" if "which" not in line else text.replace("[eig]", line))
            assert shown("sweep status bad.toml") == 2
            Path("run.toml").write_text(line)
            assert shown("eig --model spectra.demo:mlp --data digits --config run.toml") == 2
