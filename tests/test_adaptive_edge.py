"""Trained by full batches, a network comes to rest near the threshold of its own optimizer (Cohen et al. 2022)."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import mse_loss

import spectra
from spectra.cli import run
from spectra.krylov.eigenpairs import eigenpairs
from spectra.optimizer.preconditioner import preconditioner

STUDY = Path(__file__).parent.parent / "results" / "adaptive-edge" / "train.py"
FIRST, LAST, EVERY = 800, 1200, 50  # of the steps that are looked at
AT_THE_EDGE = {
    "gradient descent": ("SGD", {"lr": 0.07}),
    "RMSProp": ("RMSprop", {"lr": 0.003}),
    "Adam": ("Adam", {"lr": 0.01}),
    "NAdam": ("NAdam", {"lr": 0.003}),
}


@pytest.fixture
def study(monkeypatch):
    """The study in results/, with a network of 16 by 16 units that fits a simpler polynomial."""
    spec = importlib.util.spec_from_file_location("train", STUDY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "WIDTH", 16)
    monkeypatch.setattr(module, "DEGREE", 3)
    return module


def over_threshold(net, optimizer, x, y) -> float:
    batches = spectra.cut_batches(x, y, torch.arange(len(y)), len(y))
    problem = spectra.Problem(net, spectra.MeanSquaredError(), batches)
    found = preconditioner(optimizer, net)
    pairs = eigenpairs(found.around(spectra.Curvature(problem, "hessian")), 1, which="LA")
    assert found.threshold.value is not None
    return pairs.values.item() / found.threshold.value


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", AT_THE_EDGE)
def test_training_settles_at_the_threshold_of_its_optimizer(study, case):
    name, options = AT_THE_EDGE[case]
    torch.manual_seed(0)
    net, (x, y) = study.network(), study.data()
    optimizer = getattr(torch.optim, name)(net.parameters(), **options)
    shares = []
    for step in range(1, LAST + 1):
        optimizer.zero_grad()
        mse_loss(net(x), y).backward()
        optimizer.step()
        if step >= FIRST and step % EVERY == 0:
            shares.append(over_threshold(net, optimizer, x, y))
    assert 0.85 < sum(shares) / len(shares) < 1.15
    assert all(0.6 < share < 1.6 for share in shares)


def test_a_learning_rate_far_below_the_edge(study, tmp_path, monkeypatch, capsys):
    """By the command, from a checkpoint: the eigenvalue is a small share of the threshold that stands in the record."""
    torch.manual_seed(0)
    net, (x, y) = study.network(), study.data()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-5)
    for _ in range(10):
        optimizer.zero_grad()
        mse_loss(net(x), y).backward()
        optimizer.step()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
    torch.save(net, tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(STUDY.read_text().replace("WIDTH = 5, 20, 100", "WIDTH = 3, 20, 16"))
    given = ["--model", "train.py:network", "--data", "train.py:data", "--loss", "mse", "--dtype", "float64"]
    asked = ["--checkpoint", "c.pt", "--precondition", "optimizer", "-k", "1", "--which", "LA", "--json"]
    assert run(["eig", *given, *asked]) == 0
    record = json.loads(capsys.readouterr().out)
    limit = record["problem"]["precondition"]["threshold"]
    assert limit == pytest.approx(38 / 1e-5)
    share = record["results"][0]["eigenvalues"][0] / limit
    assert share == pytest.approx(over_threshold(net, optimizer, x, y), rel=1e-6)
    assert share < 0.01
