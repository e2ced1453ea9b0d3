"""Models of timm, by their names, against dense autograd in float64."""

import sys
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense import Dense, eigenvalues, largest

import spectra
from spectra.cli import run

timm = pytest.importorskip("timm")

MODELS = {
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": 8, "patch_size": 4, "embed_dim": 4, "depth": 1, "num_heads": 2, "num_classes": 3, "in_chans": 1},
    ),
    "convnext": (
        "convnext_atto",
        {"depths": (1, 1, 1, 1), "dims": (2, 2, 3, 4), "num_classes": 3, "in_chans": 1, "drop_path_rate": 0.1},
    ),
}
PARAMS = {"vit": "*", "convnext": "stages.1.*"}  # of the convolutions some, since they are slow


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for name, size in (("vit", 8), ("convnext", 32)):
        np.savez(f"{name}.npz", x=draw.normal(size=(4, 1, size, size)), y=draw.integers(0, 3, 4))


def spec(kind: str) -> str:
    name, options = MODELS[kind]
    return f"timm:{name}?" + "&".join(f"{key}={value}".replace(" ", "") for key, value in options.items())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("how", ["seed", "checkpoint"])
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.sampled(2)
def test_a_name_has_the_matrices_of_its_model(kind, how, curvature, capfd):
    name, options = MODELS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = timm.create_model(name, **options)
        if how == "checkpoint":
            for parameter in model.parameters():
                parameter.data += 0.3 * torch.randn(parameter.shape)
    torch.save(model.state_dict(), "weights.pth")
    rest = ["--checkpoint", "weights.pth"] if how == "checkpoint" else ["--seed", "7"]
    x, y = (torch.from_numpy(np.load(f"{kind}.npz")[key]) for key in "xy")
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(fnmatchcase(parameter_name, PARAMS[kind]))
    dense = Dense(model.double().eval(), lambda call: call(x), lambda output: F.cross_entropy(output, y))
    line = ["--model", spec(kind), "--data", f"{kind}.npz", "--params", PARAMS[kind], "--curvature", curvature]
    record = eigenvalues(capfd, *line, "-k", "5", *rest)
    expected = largest(getattr(dense, curvature)(), 5)
    assert record["results"][0]["eigenvalues"] == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert record["problem"]["parameters"] == dense.point.numel()


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.sampled(1)
def test_models_that_checkpoint_their_own_activations(curvature):
    x, y = (torch.from_numpy(np.load("vit.npz")[key]) for key in "xy")
    found = []
    for enabled, lean in ((False, None), (True, None), (True, True)):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = timm.create_model(MODELS["vit"][0], **MODELS["vit"][1] | {"depth": 2}).double().eval()
        model.set_grad_checkpointing(enabled)
        problem = spectra.Problem(
            model, spectra.CrossEntropy(), [spectra.Batch(x, y, torch.arange(4))], recompute_activations=lean
        )
        matrix = spectra.Curvature(problem, curvature, products=0)
        found.append(matrix @ torch.ones(problem.size, dtype=torch.float64))
    assert matrix.path.endswith("activations of 2 blocks recomputed")
    for product in found[1:]:
        torch.testing.assert_close(product, found[0], rtol=1e-10, atol=1e-13)


REFUSED = {
    "timm:resnet18?pretrained=true": ["pretrained", "not downloaded", "--checkpoint"],
    "timm:resnet18?pretrained_cfg={'file':'weights.pth'}": ["pretrained_cfg", "--checkpoint"],
    "timm:resnet18?checkpoint_path=weights.pth": ["checkpoint_path", "--checkpoint"],
    "timm:hf-hub:timm/resnet18.a1_in1k": ["not downloaded", "--checkpoint"],
    "timm:local-dir:folder": ["has no model local-dir:folder"],
    "timm:resnet_18": ["did you mean", "resnet18"],
    "timm:vit_tiny_patch16_224?deepth=3": ["building it failed", "deepth"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_built_is_one_line(name, capfd):
    status = run(["eig", "--model", name, "--data", "vit.npz"])
    out, err = capfd.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), err
    for fragment in REFUSED[name]:
        assert fragment in err, err
    assert not Path("weights.pth").exists()


def test_without_the_package_one_line_says_what_to_install(capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert run(["eig", "--model", "timm:resnet18", "--data", "vit.npz"]) == 2
    assert "pip install timm" in capfd.readouterr().err
