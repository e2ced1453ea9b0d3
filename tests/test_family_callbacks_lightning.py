"""Lightning's Trainer with a SpectraCallback: training does not notice, and what is recorded is of that training."""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense import Dense, largest, met_by_adam
from helpers import WHOLE, seeded
from test_watch import assert_same_bits
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

import spectra
from spectra.errors import SpectraError

with warnings.catch_warnings(action="ignore"):
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.loggers.logger import Logger
    from torchmetrics.classification import MulticlassAccuracy

    from spectra.integrations.lightning import SpectraCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning's own, on loaders without workers and the like
X = torch.randn(40, 5, generator=seeded(1))
Y = torch.randint(3, (40,), generator=seeded(2))


class Augmented(Dataset):
    """Draws from all generators, from one of its own too, and counts."""

    def __init__(self):
        self.own, self.numpy, self.python = seeded(3), np.random.default_rng(4), random.Random(5)
        self.count = 0
        self.rows = [{"row": row} for row in range(12_000)]  # data, among which a generator is not lost

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        self.count += 1
        noise = torch.randn(5) + torch.randn(5, generator=self.own) + random.random() + self.python.random()
        return X[index] + 0.01 * noise + self.numpy.normal(), Y[index], self.count


class Net(lightning.LightningModule):
    """Dropout, running statistics and metrics; it keeps all that it was given and what it returned."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2))
        self.last = nn.Linear(6, 3)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.accuracy, self.updated = MulticlassAccuracy(3), MulticlassAccuracy(3)
        self.seen, self.states, self.kept, self.total = [], [], [], torch.zeros(())

    def forward(self, x):
        return self.last(self.frozen(self.first(x)))

    def training_step(self, batch, index):
        logits = self(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.updated.update(logits, batch[1])
        self.total.add_(loss.detach())  # no buffer, and in place
        self.log_dict({"loss": loss, "accuracy": self.accuracy(logits, batch[1])})
        self.seen.append((batch, loss.detach()))
        return loss

    def on_train_batch_end(self, outputs, batch, index):
        grads = [p.grad for p in self.parameters()]
        modes = [(module.training, [p.requires_grad for p in module.parameters()]) for module in self.modules()]
        metrics = self.updated.compute(), self.total
        self.states.append(copy.deepcopy((grads, modes, metrics, torch.get_rng_state(), random.getstate())))

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, 0.1, momentum=0.9)


class Checkpointed(Net):
    """Activations of its first part are computed twice."""

    def forward(self, x):
        return self.last(self.frozen(checkpoint(self.first, x, use_reentrant=False)))


class Kept(Logger):
    """A logger that keeps what it is told."""

    name = version = "kept"

    def __init__(self):
        super().__init__()
        self.told = []

    def log_metrics(self, metrics, step=None):
        self.told.append((step, metrics))

    def log_hyperparams(self, *_):
        pass


def fit(model, callback=None, data=None, **options):
    """A run of a Trainer, and its logger."""
    logger = Kept()
    usual = {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1, "use_distributed_sampler": False}
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = lightning.Trainer(logger=logger, callbacks=[callback] if callback else [], **usual | quiet | options)
    trainer.fit(model, DataLoader(data, 10, shuffle=True, generator=seeded(9)) if isinstance(data, Dataset) else data)
    return trainer, logger


def trained(make, callback=None, prepare=lambda model: model, **options):
    """All that could tell a run from another, its own log apart, and its recordings' log."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.compiler.reset()
    model, data = make(), Augmented()
    trainer, logger = fit(prepare(model), callback, data, **options)
    chance = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    chance += data.own.get_state(), data.numpy.bit_generator.state, data.python.getstate(), data.count
    told = [(step, values) for step, values in logger.told if "spectra/loss" not in values]
    recorded = [(step, values) for step, values in logger.told if "spectra/loss" in values]
    optimizer = trainer.optimizers[0].state_dict()
    return (model.state_dict(), optimizer, chance, model.seen, model.states, told, trainer.global_step), recorded


VARIANTS = {"all at once": (Checkpointed, {"accumulate_grad_batches": 3, "precision": "bf16-mixed"})}
if WHOLE:
    VARIANTS["plain"] = (Net, {})
    VARIANTS["checkpointed"] = (Checkpointed, {})
    VARIANTS["compiled"] = (Net, {"prepare": lambda model: torch.compile(model, backend="aot_eager")})


@pytest.mark.parametrize(("make", "options"), VARIANTS.values(), ids=VARIANTS)
def test_training_is_unchanged_bit_for_bit(make, options, tmp_path):
    alone, none = trained(make, **options)
    callback = SpectraCallback(tmp_path, every=2, examples=20, products=30, k=2)
    watched, recorded = trained(make, callback, **options)
    assert_same_bits(alone, watched)
    assert none == []
    steps = list(range(0, alone[-1] + 1, 2))
    assert [step for step, _ in recorded] == steps
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:06d}" for step in steps]
    assert all(np.isfinite(list(values.values())).all() for _, values in recorded)


def test_the_comparison_above_would_notice():
    class Draws(lightning.Callback):
        def on_train_start(self, *_):
            torch.rand(1)

    with pytest.raises(AssertionError):
        assert_same_bits(trained(Net)[0], trained(Net, Draws())[0])


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"] if WHOLE else ["bf16-mixed"])
def test_what_is_recorded_is_the_matrix_of_training(precision, tmp_path):
    """Of all the examples, in eval mode, with the weights at the end; autocast is left out."""
    torch.manual_seed(0)
    model = Net()
    callback = SpectraCallback(tmp_path, every=8, examples=99, products=60, k=2, curvature=("hessian", "ggn"))
    _, logger = fit(model, callback, TensorDataset(X, Y), precision=precision)
    (step, values) = [told for told in logger.told if "spectra/loss" in told[1]][-1]
    assert step == 8
    exact = Dense(model.double().eval(), lambda call: call(X.double()), lambda z: F.cross_entropy(z, Y))
    for name, matrix in (("hessian", exact.hessian()), ("ggn", exact.ggn())):
        assert values[f"spectra/{name}/eigenvalue_1"] == pytest.approx(largest(matrix, 1)[0], rel=1e-4)
        error = abs(values[f"spectra/{name}/trace"] - matrix.trace().item())
        assert error <= 5 * values[f"spectra/{name}/trace_error"] + 1e-4
    assert spectra.load_result(tmp_path / "step-000008/eig.json").problem.examples == 40


class ByAdam(Net):
    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], 0.01)


def test_an_optimizer_that_waits_for_its_first_step(tmp_path, caplog):
    """While gradients of the first step are accumulated there is no state either, and not a word of it."""
    callback = SpectraCallback(tmp_path, every=4, examples=40, products=20, k=1, precondition=True)
    fit(ByAdam(), callback, TensorDataset(X, Y), accumulate_grad_batches=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000004"]
    assert "not recorded" not in caplog.text


def test_what_the_optimizer_meets(tmp_path):
    """At the end of a training, beside its threshold; before the first step there is no state, and no recording."""
    torch.manual_seed(0)
    model = ByAdam()
    callback = SpectraCallback(tmp_path, every=4, examples=99, products=60, k=2, precondition=True)
    trainer, logger = fit(model, callback, TensorDataset(X, Y))
    recorded = [told for told in logger.told if "spectra/loss" in told[1]]
    assert [step for step, _ in recorded] == [4, 8]
    exact = Dense(model.double().eval(), lambda call: call(X.double()), lambda z: F.cross_entropy(z, Y))
    expected = largest(met_by_adam(exact.hessian(), trainer.optimizers[0], model), 1)[0]
    values = {name.removeprefix("spectra/hessian_preconditioned/"): value for name, value in recorded[-1][1].items()}
    assert values["eigenvalue_1"] == pytest.approx(expected, rel=1e-4)
    assert values["threshold"] == pytest.approx(38 / 0.01)
    assert values["over_threshold_1"] == pytest.approx(expected * 0.01 / 38, rel=1e-4)


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


class Batches:
    """No DataLoader."""

    def __iter__(self):
        return iter([(X, Y)] * 2)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("make", "loader", "message"),
    [
        (Manual, DataLoader(TensorDataset(X, Y), 10), "`loss`: training_step runs the optimizer"),
        (Net, DataLoader(Stream(), 10), "`data`: Stream has no length, .*; give `data`, the examples to watch"),
        (Net, Batches(), "`data`: the trainer's loader is a Batches, not a DataLoader; give `data`"),
        (Net, DataLoader(TensorDataset(X[None], Y[None]), None), "`data`: the trainer's loader has no batch size"),
    ],
    ids=["manual", "stream", "no loader", "own batches"],
)
def test_what_cannot_be_told_is_a_line_before_training(make, loader, message, tmp_path):
    """And the way out that it names works."""
    torch.manual_seed(0)
    with pytest.raises(SpectraError, match=message):
        fit(make(), SpectraCallback(tmp_path, every=2, k=2), loader)
    given = {"data": (X, Y), "loss": nn.CrossEntropyLoss(), "products": 22, "k": 2}
    fit(make(), SpectraCallback(tmp_path, every=2, **given), loader, max_steps=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000", "step-000002"]


class Telling(Net):
    """Its loss is none of ours; its step uses the trainer, and logs by the logger itself."""

    def training_step(self, batch, index):
        logits = self(batch[0])
        self.total.add_(1)
        self.kept.append(logits.detach())
        penalty = logits.mean(0).square().sum() * (1 + self.trainer.current_epoch)
        self.logger.log_metrics({"penalty": penalty.item()}, step=self.trainer.global_step)
        return F.cross_entropy(logits, batch[1]) + penalty


def test_a_step_that_uses_the_trainer(tmp_path):
    """What it logs in a recording goes nowhere."""
    log = []
    callback = SpectraCallback(tmp_path, every=4, examples=40, k=2, log=lambda values, step: log.append((step, values)))
    torch.manual_seed(0)
    model = Telling()
    _, logger = fit(model, callback, TensorDataset(X, Y), max_epochs=1)
    assert [step for step, told in logger.told if "penalty" in told] == [0, 1, 2, 3]
    assert [step for step, _ in log] == [0, 4]
    assert model.total == len(model.kept) == 4


def test_numbers_that_are_wrong_by_themselves(tmp_path):
    for wrong in ({"every": 0}, {"every": 1, "examples": 0}, {"every": 1, "log": 3}):
        with pytest.raises(SpectraError, match=f"`{list(wrong)[-1]}`"):
            SpectraCallback(tmp_path, **wrong)
