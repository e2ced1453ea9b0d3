"""Packages of others add matrices, losses, models and data by entry points: a tiny one is put where Python looks."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from spectra.cli import run
from spectra.curvature.matrices import MATRICES, definition
from spectra.errors import SpectraError
from spectra.inputs.code_origin import comes_with_packages, is_third_party
from spectra.inputs.data import load_data
from spectra.inputs.loss import build_loss
from spectra.inputs.model import build_model
from spectra.inputs.registers import DATA, LOSSES, MODELS
from spectra.register import NameClash, installed

MODULE = '''
import torch
from torch import nn
from spectra.curvature.ggn import GaussNewton
from spectra.problem.losses import MeanSquaredError

class Doubled(GaussNewton):
    """Twice the GGN."""

    def middle(self, problem, batch, rows):
        apply = super().middle(problem, batch, rows)
        return lambda vectors: 2 * apply(vectors)

class Squares(MeanSquaredError):
    name = "toy-squares"

class Scaled(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, output, target):
        return self.scale * (output - target).square().mean(dim=1)

def cubes(output, target, power=3):
    return (output - target).abs().pow(power).mean(dim=1)

def net(width=5):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))

def points(count=23):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 4, generator=generator), torch.randn(count, 2, generator=generator)
'''
POINTS = """
[spectra.matrices]
toy = toy_package:Doubled
broken = toy_package_that_is_gone:Matrix
hessian = toy_package:Doubled
function = toy_package:net
without-middle = spectra.curvature.definition:Definition

[spectra.losses]
toy-squares = toy_package:Squares
toy-scaled = toy_package:Scaled
toy-cubes = toy_package:cubes
mse = toy_package:cubes
broken = toy_package:none

[spectra.models]
toy-net = toy_package:net
broken = toy_package:none

[spectra.data]
toy-points = toy_package:points
digits = toy_package:points
broken = toy_package:none
"""
TOY = "--model toy-net --data toy-points --loss toy-squares --dtype float64 --json"


def install(folder: Path, name: str, points: str) -> None:
    """What pip leaves of a package: its metadata, beside its modules."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch) -> Path:
    """The folder in which the package is installed; the current one is another."""
    site, work = tmp_path / "site", tmp_path / "work"
    install(site, "toy-package", POINTS)
    (site / "toy_package.py").write_text(MODULE)
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path[:1] + os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    yield site
    sys.modules.pop("toy_package", None)


@pytest.fixture
def call(capfd):
    def call(line: str) -> tuple[int, str, str]:
        capfd.readouterr()
        return run(shlex.split(line)), *capfd.readouterr()

    return call


@pytest.fixture
def values(call):
    def values(line: str) -> list[float]:
        status, out, err = call(line)
        assert (status, err) == (0, ""), err
        return json.loads(out)["results"][0]["eigenvalues"]

    return values


def test_eig_of_what_a_package_adds(values):
    expected = values(f"eig {TOY} -k 3 --curvature ggn")
    assert values(f"eig {TOY} -k 3 --curvature toy") == pytest.approx([2 * value for value in expected])
    assert values(f"eig {TOY} -k 3 --curvature toy --method gram") == pytest.approx([2 * v for v in expected], rel=1e-3)


def test_options_go_to_what_a_package_adds(values):
    line = f"eig {TOY.replace('toy-net', 'toy-net?width=3')} -k 2 --curvature ggn"
    same = values(line)
    assert values(line.replace("toy-squares", "toy-scaled?scale=3.0")) == pytest.approx([3 * value for value in same])
    assert values(line.replace("toy-squares", "toy-cubes?power=2")) == pytest.approx(same)
    assert values(line.replace("toy-points", "toy-points?count=7")) != pytest.approx(same)


def test_a_loss_of_a_package_may_have_a_distribution(values):
    """An object with the methods of a loss is used as it is, and not for a function of (output, target)."""
    assert values(f"eig {TOY} -k 2 --curvature fisher") == pytest.approx(values(f"eig {TOY} -k 2 --curvature ggn"))


def test_options_that_a_package_does_not_take(call):
    for wrong in (TOY.replace("toy-net", "toy-net?depth=3"), TOY.replace("toy-points", "toy-points?depth=3")):
        status, out, err = call(f"eig {wrong} --curvature toy")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "depth" in err


@pytest.mark.parametrize(
    ("register", "use", "group"),
    [
        (MATRICES, definition, "spectra.matrices"),
        (LOSSES, build_loss, "spectra.losses"),
        (MODELS, lambda name: build_model(name, 0), "spectra.models"),
        (DATA, lambda name: load_data(name, None, 0), "spectra.data"),
    ],
)
def test_a_broken_entry_point_is_refused_when_it_is_used(register, use, group):
    assert "broken" in register  # without an import
    with pytest.raises(SpectraError, match=rf"broken: the entry point of toy-package \({group}, .* uninstall") as error:
        use("broken")
    assert "\n" not in str(error.value)


def test_a_broken_entry_point_harms_no_other(call):
    status, out, _ = call("eig --help")
    assert status == 0
    assert "fisher-batch,toy,broken,function,without-middle;" in "".join(out.split())
    status, out, err = call(f"eig {TOY} --curvature broken")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "toy-package" in err


@pytest.mark.parametrize("name", ["function", "without-middle"])
def test_what_is_no_matrix_is_refused(name):
    with pytest.raises(SpectraError, match=rf"curvature\W* {name}: \S+ is not a matrix; .*Definition"):
        definition(name)


def test_our_names_win_and_a_clash_is_told():
    with pytest.warns(NameClash, match=r"mse: defined more than once; using spectra itself, not toy-package"):
        assert type(build_loss("mse")).__name__ == "MeanSquaredError"
    with pytest.warns(NameClash, match=r"digits: defined more than once; using spectra itself, not toy-package"):
        assert len(load_data("digits", None, 0)) == 1797
    assert MATRICES["hessian"].package is None


def test_the_command_line_tells_of_a_clash_in_one_line():
    line = "eig --model toy-net --data toy-points --loss mse -k 1 --curvature ggn --json"
    words = [sys.executable, "-m", "spectra", *shlex.split(line)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    json.loads(done.stdout)
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("spectra: ")
    assert "mse: defined more than once; using spectra itself, not toy-package" in done.stderr


def test_of_two_packages_the_first_by_name_wins(package):
    install(package, "another", "[spectra.models]\ntoy-net = another_package:net\n")
    (package / "another_package.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(4, 2)\n")
    installed.cache_clear()
    with pytest.warns(NameClash, match=r"toy-net: defined more than once; using the package another, not toy-package"):
        assert isinstance(build_model("toy-net", 0), nn.Linear)
    sys.modules.pop("another_package")


def test_a_folder_comes_before_the_data_of_a_package():
    from PIL import Image

    for kind in "ab":
        Path("toy-points", kind).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(Path("toy-points", kind, "0.png"))
    with pytest.warns(NameClash, match=r"toy-points: it is the folder here; the data of the package toy-package"):
        found = load_data("toy-points", None, 0)
    assert found.inputs.shape == (2, 3, 2, 2)


def test_files_of_a_stranger_in_the_current_directory_add_nothing(package, monkeypatch):
    """`python -m spectra` looks for modules there, but what lies there is no installed package."""
    install(Path.cwd(), "stranger", "[spectra.matrices]\nstrange = stranger:Matrix\n")
    for here in ("", str(Path.cwd()), "."):
        monkeypatch.setattr(sys, "path", [here, *sys.path])
        installed.cache_clear()
        assert "strange" not in MATRICES
        assert "toy" in MATRICES


def test_a_package_whose_metadata_cannot_be_read_is_passed_over(package):
    install(package, "damaged", "[spectra.matrices\nno equals sign\n")
    (package / "damaged_2-1.0.dist-info").mkdir()
    (package / "damaged_2-1.0.dist-info" / "entry_points.txt").write_bytes(b"[spectra.matrices]\n\xff = x:y\n")
    installed.cache_clear()
    assert "toy" in MATRICES


def test_a_result_may_name_a_matrix_of_a_package_and_nothing_else_of_it(call):
    """Which is used with the result's word alone; code that takes options is typed again, or allowed by --trust."""
    assert call(f"eig {TOY} -k 1 --curvature toy --out run1")[0] == 0
    status, out, err = call("eig --config run1/eig.json --json")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "run1/eig.json: names --" in err
    assert "which would run as code" in err
    assert call("eig --config run1/eig.json --json --trust")[0] == 0
    typed = "--model toy-net --data toy-points --loss toy-squares"
    status, out, _ = call(f"eig --config run1/eig.json --json {typed}")
    assert status == 0
    assert json.loads(out)["results"][0]["curvature"] == "toy"


@pytest.mark.parametrize(
    ("option", "spec"),
    [("model", "toy-net?width=3"), ("data", "toy-points"), ("held_out", "toy-points"), ("loss", "toy-squares")],
)
def test_names_of_packages_are_code(option, spec):
    assert not comes_with_packages(option, spec)
    assert is_third_party(spec)


@pytest.mark.parametrize(("option", "spec"), [("loss", "mse"), ("data", "digits"), ("loss", "toy-net")])
def test_names_of_ours_are_not(option, spec):
    assert comes_with_packages(option, spec)


def test_a_toml_file_may_name_what_is_installed(values):
    content = "model = 'toy-net'\ndata = 'toy-points'\nloss = 'toy-squares'\ncurvature = 'toy'\nk = 1\n"
    Path("run.toml").write_text(content)
    assert len(values("eig --config run.toml --json --dtype float64")) == 1


def test_a_plan_may_name_what_is_installed(call):
    problem = "model = 'toy-net'\ndata = 'toy-points'\nloss = 'toy-squares'\ncurvature = 'toy'"
    Path("plan.toml").write_text(f"[problem]\n{problem}\n[eig]\nk = 1\n")
    status, _, err = call("sweep run plan.toml --dry-run")
    assert status == 0, err


def test_nothing_is_imported_before_it_is_used():
    script = (
        "import sys; from spectra.curvature.matrices import MATRICES; "
        "assert 'toy' in MATRICES; print({'torch', 'toy_package'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_toy_model_is_a_model():
    assert isinstance(build_model("toy-net?width=3", 0)[0], nn.Linear)
    assert torch.equal(build_model("toy-net", 1)[0].weight, build_model("toy-net", 1)[0].weight)
