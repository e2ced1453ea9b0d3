"""What tests/test_family_callbacks_ranks.py asks of two processes: `callback_ranks.py OUT PORT`.

Trains by Lightning and by transformers, each with and without a SpectraCallback, and compares. The packages are slow to
import: it is done once, before the processes part.
"""

import os
import sys
import warnings
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("ignore")
import lightning  # noqa: E402
import transformers  # noqa: E402

from spectra.errors import SpectraError  # noqa: E402
from spectra.integrations import lightning as for_lightning  # noqa: E402
from spectra.integrations import transformers as for_transformers  # noqa: E402

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))
Y = torch.arange(24) % 3
FEW = {"every": 2, "examples": 12, "products": 22, "k": 2}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Gathering(Net):
    """A step that needs the other processes."""

    def training_step(self, batch, index):
        everywhere = self.all_gather(self(batch[0]))
        return F.cross_entropy(self(batch[0]), batch[1]) + everywhere.mean()


def by_lightning(model, *callbacks) -> dict:
    torch.manual_seed(0)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_epochs": 1, "callbacks": list(callbacks)}
    lightning.Trainer(**options | quiet).fit(model, DataLoader(TensorDataset(X, Y), 3, shuffle=True))
    return model.state_dict() | {"chance": torch.get_rng_state()}


class Returns(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 3))

    def forward(self, x, labels):
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class GatheringTrainer(transformers.Trainer):
    """A loss that needs the other processes."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        loss = model(**inputs)["loss"]
        return loss + 0 * self.accelerator.gather(loss.detach()).mean()


def by_transformers(place, *callbacks, kind=transformers.Trainer) -> dict:
    torch.manual_seed(0)
    options = {"per_device_train_batch_size": 3, "num_train_epochs": 1, "learning_rate": 0.1, "ddp_backend": "gloo"}
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no"}
    arguments = transformers.TrainingArguments(output_dir=str(place), **options | quiet)
    data = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    trainer = kind(Returns(), arguments, train_dataset=data, callbacks=list(callbacks))
    trainer.train()
    return trainer.model.state_dict() | {"chance": torch.get_rng_state()}


def refused(train, *given, **more) -> bool:
    """Whether a training whose loss needs all processes is refused, in each of them."""
    try:
        train(*given, **more)
    except SpectraError as error:
        return "communicates with other processes" in str(error)
    return False


def seeded(make):
    torch.manual_seed(5)
    return make()


def compare(rank: int, place: Path, port: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    callback = for_transformers.SpectraCallback
    assert same(by_transformers(place), by_transformers(place, callback(place / "transformers", **FEW)))
    assert refused(by_transformers, place, callback(place / "none", **FEW), kind=GatheringTrainer)
    callback = for_lightning.SpectraCallback
    watched = by_lightning(seeded(Net), callback(place / "lightning", **FEW))
    assert same(by_lightning(seeded(Net)), watched)
    assert refused(by_lightning, seeded(Gathering), callback(place / "none", **FEW))


if __name__ == "__main__":
    both = [get_context("fork").Process(target=compare, args=(rank, Path(sys.argv[1]), sys.argv[2])) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in both))
