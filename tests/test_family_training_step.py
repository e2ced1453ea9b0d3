"""`--loss model` with LightningModules: the loss is what training_step returns for a batch; data modules are data."""

import runpy
import shlex
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from dense import Dense, eigenvalues, largest

import spectra
from spectra.cli import run

with warnings.catch_warnings(action="ignore"):
    lightning = pytest.importorskip("lightning")

FILE = """
import warnings
with warnings.catch_warnings(action="ignore"):
    import lightning
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Pair(lightning.LightningModule):
    def __init__(self, width=4):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log("loss", loss, prog_bar=True)
        self.log_dict({"accuracy": (logits.argmax(1) == y).float().mean()})
        return loss

class Mapping(Pair):
    def training_step(self, batch):
        logits = self(batch["x"])
        return {"loss": F.cross_entropy(logits, batch["labels"]), "logits": logits}

class Penalised(Pair):
    def training_step(self, batch, batch_idx):
        logits = self(batch[0])
        return F.cross_entropy(logits, batch[1]) + 0.1 * logits.mean(0).square().sum()

class Prepared(Pair):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return 2 * batch[0], batch[1]

class Trainer(Pair):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1]) * (1 + self.trainer.current_epoch)

class Logger(Pair):
    def training_step(self, batch, batch_idx):
        self.logger.experiment.add_scalar("step", batch_idx)
        return F.cross_entropy(self(batch[0]), batch[1])

class Manual(Pair):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()

class Draws(Pair):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0] + torch.randn_like(batch[0])), batch[1])

class Nothing(Pair):
    def training_step(self, batch, batch_idx):
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

def draw():
    return torch.randn(12, 3, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3

def mapping():
    x, y = draw()
    return {"x": x, "labels": y}

class Points(lightning.LightningDataModule):
    def __init__(self, size=5):
        super().__init__()
        self.size = size

    def setup(self, stage):
        self.train = TensorDataset(*draw())

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.size)

class Broken(Points):
    def setup(self, stage):
        raise FileNotFoundError("points.bin")
"""


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch):
    """The names of the user's file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("lit.py").write_text(FILE)
    return runpy.run_path("lit.py")


def built(user, name="Pair"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return user[name]().double().eval()


def dense(user, loss, scale=1.0) -> Dense:
    x, y = user["draw"]()
    return Dense(built(user), lambda call: call(scale * x.double()), lambda z: loss(z, y))


def penalised(z, y, sizes=(12,)):
    parts = zip(z.split(sizes), y.split(sizes), strict=True)
    return sum(len(a) / len(z) * (F.cross_entropy(a, b) + 0.1 * a.mean(0).square().sum()) for a, b in parts)


@pytest.mark.parametrize("curvature", ["hessian", "ggn", "fisher"])
@pytest.mark.parametrize(("model", "data"), [("Pair", "draw"), ("Mapping", "mapping"), ("Pair", "Points?size=5")])
@pytest.mark.sampled(4)
def test_the_cross_entropy_of_a_step_is_recognised(user, model, data, curvature, capfd):
    reference = dense(user, F.cross_entropy)
    expected = largest(reference.hessian() if curvature == "hessian" else reference.ggn(), 6)
    line = f"--model lit.py:{model} --data lit.py:{data} --loss model --curvature {curvature} -k 6".split()
    assert eigenvalues(capfd, *line)["results"][0]["eigenvalues"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("batch_size", "sizes"), [(12, [12]), (5, [5, 5, 2])])
def test_a_step_with_more_in_it_is_taken_as_it_is(user, batch_size, sizes, capfd):
    expected = largest(dense(user, lambda z, y: penalised(z, y, sizes)).hessian(), 4)
    line = f"--model lit.py:Penalised --data lit.py:draw --loss model -k 4 --batch-size {batch_size}"
    record = eigenvalues(capfd, *line.split())
    assert record["results"][0]["eigenvalues"] == pytest.approx(expected, rel=1e-6)
    assert any("takes whole batches" in note for note in record["problem"]["notes"])


def test_what_lightning_does_to_a_batch_is_done(user, capfd):
    expected = largest(dense(user, F.cross_entropy, scale=2.0).hessian(), 4)
    line = "--model lit.py:Prepared --data lit.py:Points --loss model -k 4"
    record = eigenvalues(capfd, *line.split())
    assert record["results"][0]["eigenvalues"] == pytest.approx(expected, rel=1e-6)


def test_a_checkpoint_of_lightning_with_its_own_step(user, capfd):
    model = user["Pair"](width=5)
    model.net[0].weight.data.mul_(3)
    state = {"state_dict": model.state_dict(), "hyper_parameters": {"width": 5}, "epoch": 1, "global_step": 2}
    torch.save(state | {"pytorch-lightning_version": "2.5.0"}, "last.ckpt")
    x, y = user["draw"]()
    reference = Dense(model.double().eval(), lambda call: call(x.double()), lambda z: F.cross_entropy(z, y))
    expected = largest(reference.hessian(), 4)
    for name in (
        "lit.py:Pair.load_from_checkpoint?checkpoint_path=last.ckpt",
        "lit.py:Pair?width=5 --checkpoint last.ckpt",
    ):
        record = eigenvalues(capfd, *f"--model {name} --data lit.py:draw --loss model -k 4".split())
        assert record["results"][0]["eigenvalues"] == pytest.approx(expected, rel=1e-6)


def test_in_python(user):
    expected = largest(dense(user, F.cross_entropy).hessian(), 3)
    for data in (user["Points"](), user["draw"]()):
        found = spectra.eig(built(user), "model", data, k=3, tolerance=1e-9)
        assert list(found.values) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("Trainer", "draw", "training_step is called with a batch only, without a trainer"),
        ("Logger", "draw", "training_step is called with a batch only, without a trainer"),
        ("Manual", "draw", "training_step is called with a batch only, without a trainer"),
        ("Draws", "draw", "its value changes from call to call"),
        ("Nothing", "draw", "without a loss"),
        ("Pair", "Broken", "its training data cannot be loaded (FileNotFoundError: points.bin)"),
    ],
)
def test_a_line_for_what_cannot_be(model, data, message, capfd):
    capfd.readouterr()
    assert run(shlex.split(f"eig --model lit.py:{model} --data lit.py:{data} --loss model -k 2")) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
