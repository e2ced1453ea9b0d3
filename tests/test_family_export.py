"""Programs of torch.export and TorchScript, and compiled modules, against dense autograd in float64."""

import json
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense import Dense, eigenvalues, largest
from helpers import arrays_of, make_record
from torch import nn

import spectra
from spectra.cli import run
from spectra.inputs.code_origin import comes_with_packages, is_inside_folder, is_third_party

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
N = 8


class Net(nn.Module):
    """Convolution, normalisation, attention and dropout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)
        self.qkv = nn.Linear(4, 12)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.tanh(self.norm(self.conv(x))).transpose(1, 2)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.head(self.drop(F.scaled_dot_product_attention(q, k, v)).mean(1))


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net()
        model.norm.running_mean.normal_()
        model.head.bias.requires_grad_(False)
    return model.eval()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    np.savez("points.npz", x=draw.normal(size=(N, 2, 6)), y=draw.integers(0, 3, N))


def data(dtype=torch.float64):
    x, y = (torch.from_numpy(arrays_of("points.npz")[name]) for name in "xy")
    return x.to(dtype), y


def exported(batch: int | None = None, model: nn.Module | None = None):
    """The program of the network, of any size of batch, or of this one."""
    sizes = None if batch else ({0: torch.export.Dim("batch")},)
    return torch.export.export(model or net(), (torch.ones(batch or 4, 2, 6),), dynamic_shapes=sizes)


def scripted():
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.script(net())


def traced():
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.trace(net(), (torch.ones(3, 2, 6),))


PROGRAMS = {
    "net.pt2": lambda path: torch.export.save(exported(), path),
    "net.pt": lambda path: torch.export.save(exported(), path),  # recognised by what is in it
    "scripted.pt": lambda path: scripted().save(path),
    "traced.ts": lambda path: traced().save(path),
    "no_suffix": lambda path: traced().save(path),
}


def dense() -> Dense:
    x, y = data()
    return Dense(net().double(), lambda call: call(x), lambda output: F.cross_entropy(output, y))


def save(path: str) -> None:
    with warnings.catch_warnings(action="ignore"):
        PROGRAMS[path](path)


@pytest.mark.parametrize("path", PROGRAMS)
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.sampled(4)
def test_a_program_has_the_matrices_of_its_module(path, curvature, capfd):
    save(path)
    line = ["--model", path, "--data", "points.npz", "--curvature", curvature, "-k", "6"]
    record = eigenvalues(capfd, *line)
    expected = dense()
    values = largest(getattr(expected, curvature)(), 6)
    assert record["results"][0]["eigenvalues"] == pytest.approx(values, rel=1e-8)
    assert record["problem"]["parameters"] == expected.point.numel()


def test_the_heading_does_not_speak_of_a_seed(capfd):
    """The weights of a program do not come from it."""
    save("net.pt2")
    for command in ("eig -k 1", "inspect"):
        assert run(shlex.split(f"{command} --model net.pt2 --data points.npz")) == 0
        out, err = capfd.readouterr()
        assert not err
        assert "seed" not in out
    assert "no checkpoint: the model comes with its weights" in out


def test_weights_go_into_a_program(capfd):
    model = net()
    zeros = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    torch.save(model.state_dict(), "weights.pt")
    model.load_state_dict(zeros)
    torch.export.save(exported(model=model), "net.pt2")
    line = ["--model", "net.pt2", "--checkpoint", "weights.pt", "--data", "points.npz", "-k", "3"]
    found = eigenvalues(capfd, *line)["results"][0]["eigenvalues"]
    assert found == pytest.approx(largest(dense().hessian(), 3), rel=1e-8)


def refused(capfd, line: list[str] | str, *fragments: str) -> None:
    capfd.readouterr()
    status = run(shlex.split(line) if isinstance(line, str) else line)
    out, err = capfd.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), err
    for fragment in fragments:
        assert fragment in err, err


def test_a_program_of_one_size_of_batch(capfd):
    torch.export.save(exported(batch=4), "net.pt2")
    found = eigenvalues(capfd, "--model", "net.pt2", "--data", "points.npz", "-k", "3", "--batch-size", "4")
    assert found["results"][0]["eigenvalues"] == pytest.approx(largest(dense().hessian(), 3), rel=1e-8)
    for size in ("", "--batch-size 3"):
        refused(capfd, f"eig --model net.pt2 --data points.npz {size}", "size", "--batch-size", "dynamic_shapes")


def test_files_that_are_no_programs_say_what_they_are(capfd):
    torch.save(net().state_dict(), "weights.pt")
    refused(capfd, "eig --model weights.pt --data points.npz", "holds weights", "--checkpoint")
    refused(capfd, "eig --model points.npz --data points.npz", "does not hold a program")
    refused(capfd, "eig --model absent.pt2 --data points.npz", "no such file")
    save("net.pt2")
    refused(capfd, "eig --model net.pt2?width=3 --data points.npz", "takes no options")
    Path("cut.pt2").write_bytes(Path("net.pt2").read_bytes()[:-100])
    refused(capfd, "eig --model cut.pt2 --data points.npz", "--model cut.pt2")


def test_a_program_is_no_checkpoint(capfd):
    for path in ("net.pt2", "scripted.pt"):
        save(path)
        refused(capfd, f"eig --model net.pt2 --checkpoint {path} --data points.npz", f"--checkpoint {path}")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("path", PROGRAMS)
def test_a_program_is_code(path, capfd):
    """A result that names one runs it where somebody says so."""
    save(path)
    assert not comes_with_packages("model", path)
    assert is_third_party(path, "model")
    assert not is_third_party("points.npz", "data")
    options = {"model": path, "data": "points.npz", "loss": "cross_entropy"}
    entry = {"curvature": "hessian", "eigenvalues": [1.0], "residuals": [0.1]}
    Path("eig.json").write_text(json.dumps(make_record("eig", {"options": options, **options}, [entry])))
    refused(capfd, "eig --config eig.json -k 1", "--config eig.json", f"--model {path}", "--trust")
    assert run(shlex.split("eig --config eig.json -k 1 --trust")) == 0
    assert run(shlex.split(f"eig --config eig.json -k 1 --model {path}")) == 0


@pytest.mark.parametrize(
    ("spec", "may"),
    [
        ("transformers:AutoModelForCausalLM?path=folder", True),
        ("transformers:GPT2LMHeadModel?n_layer=1", True),
        ("timm:resnet18?num_classes=3", True),
        ("timm:hf-hub:someone/net", False),
        ("transformers.models.auto:AutoModel.from_pretrained?pretrained_model_name_or_path=x", False),
        ("transformers:AutoModel.from_pretrained?pretrained_model_name_or_path=x", True),  # refused as no class
        ("torchvision.models:resnet.ResNet", False),
        ("net.pt2", False),
        ("elsewhere/net", False),
    ],
)
def test_names_of_models_in_a_result(spec, may):
    assert comes_with_packages("model", spec) is may
    if spec.startswith(("transformers:", "timm:")) and may:
        assert not is_third_party(spec, "model")


def test_a_plan_names_programs_beside_it(tmp_path, capfd):
    Path("elsewhere").mkdir()
    assert is_inside_folder("net.pt2", tmp_path, tmp_path, "model")
    assert not is_inside_folder("../net.pt2", tmp_path / "elsewhere", tmp_path / "elsewhere", "model")
    assert not is_inside_folder("net.pt2", tmp_path / "elsewhere", tmp_path, "model")
    save("net.pt2")
    Path("elsewhere/run.toml").write_text("model = 'net.pt2'\ndata = 'points.npz'\n")
    refused(capfd, "eig --config elsewhere/run.toml", "--model net.pt2", "beside that file", "--trust")
    Path("elsewhere/plan.toml").write_text("[problem]\nmodel = '../net.pt2'\ndata = 'digits'\n[eig]\n")
    refused(capfd, "sweep run elsewhere/plan.toml --dry-run", "PLAN elsewhere/plan.toml", "net.pt2", "--trust")


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    "make",
    [lambda: exported().module(), exported, scripted, traced],
    ids=["module", "exported", "scripted", "traced"],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_programs_in_python(make, dtype):
    model = make()
    before = [value.clone() for value in model.state_dict.values()] if hasattr(model, "graph_signature") else []
    found = spectra.eig(model, nn.CrossEntropyLoss(), data(torch.float32), k=4, method="dense", dtype=dtype)
    expected = largest(dense().hessian(), 4)
    assert found.values == pytest.approx(expected, rel=1e-4)
    assert all(map(torch.equal, before, model.state_dict.values())) if before else True


def test_compiled_modules_in_python():
    whole = torch.compile(net().double())
    part = net().double()
    part.head = torch.compile(part.head)
    for model in (whole, part):
        found = spectra.eig(model, nn.CrossEntropyLoss(), data(), k=4, method="dense")
        assert found.values == pytest.approx(largest(dense().hessian(), 4), rel=1e-8)


class Rotary(nn.Module):
    """A complex buffer, and one tensor under two names."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.other.weight = self.one.weight
        self.register_buffer("turn", torch.polar(torch.ones(2), torch.tensor([0.3, 0.7])))

    def forward(self, x):
        z = torch.view_as_complex(torch.tanh(self.one(x)).unflatten(-1, (2, 2))) * self.turn
        return self.other(torch.view_as_real(z).flatten(-2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_module_in_python_is_copied_with_a_note(dtype, tmp_path):
    torch.manual_seed(0)
    model = Rotary()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    x, y = torch.randn(6, 4), torch.randn(6, 4)
    spectra.eig(model, nn.MSELoss(), (x, y), k=3, method="dense", out=tmp_path / "a")
    record = spectra.load_result(tmp_path / "a")
    wide = Rotary()
    wide.one.weight.data = model.one.weight.data.double()
    wide.turn = wide.turn.to(torch.complex128)
    expected = Dense(wide, lambda call: call(x.double()), lambda output: F.mse_loss(output, y.double()))
    assert record.results[0].values == pytest.approx(largest(expected.hessian(), 3), rel=1e-5)
    assert record.problem.parameters == 16
    assert record.problem.notes == [f"weights come in {str(dtype).removeprefix('torch.')}"]
    assert model.one.weight.dtype == dtype
    assert model.one.weight is model.other.weight
