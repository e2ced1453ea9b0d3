"""The Trainer of transformers with a SpectraCallback: training goes on unnoticing; recordings are of that training."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense import Dense, largest, met_by_adam
from helpers import WHOLE, seeded
from test_watch import assert_same_bits
from torch import nn

import spectra
from spectra.errors import SpectraError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from spectra.integrations.transformers import SpectraCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages' own, on devices without pinned memory and the like
X = torch.randint(1, 13, (24, 5), generator=seeded(1))
Y = torch.randint(2, (24,), generator=seeded(2))


@pytest.fixture(autouse=True)
def no_garbage_collection(monkeypatch):
    """Of all that tests hold, at the start of each training, by far its longest part."""
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda *_, **__: None)


class Augmented(torch.utils.data.Dataset):
    """Draws from all generators, from one of its own too."""

    def __init__(self):
        self.own = seeded(3)

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        change = torch.randint(1, 13, (1,), generator=self.own)
        return {"input_ids": torch.cat([X[index, :-1], change]), "labels": Y[index]}


class Masking:
    """A collator that makes its generator when it is first called, as the one for masked language modelling does."""

    generator = None

    def __call__(self, items):
        self.generator = self.generator or seeded(7)
        batch = transformers.default_data_collator(items)
        hidden = torch.rand(batch["input_ids"].shape, generator=self.generator) < 0.1
        return batch | {"input_ids": batch["input_ids"].masked_fill(hidden, 12)}


class Seen(transformers.TrainerCallback):
    """What a training step leaves behind."""

    def __init__(self):
        self.states, self.told = [], []

    def on_substep_end(self, args, state, control, model, **_):
        gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        modes = [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]
        self.states.append((gradients, modes, torch.get_rng_state(), random.getstate()))

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.on_substep_end(args, state, control, model)

    def on_log(self, args, state, control, logs, **_):
        self.told.append((state.global_step, dict(logs)))


class Tiny(nn.Module):
    """A network that returns its loss, as the models of transformers do."""

    def __init__(self):
        super().__init__()
        self.config = transformers.PretrainedConfig()  # at which label smoothing looks
        self.words = nn.Embedding(13, 4)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.2))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.last = nn.Linear(4, 2)

    def forward(self, input_ids, labels=None):
        logits = self.last(self.frozen(self.inner(self.words(input_ids).mean(1))))
        return {"loss": None if labels is None else F.cross_entropy(logits, labels), "logits": logits}


def network() -> nn.Module:
    torch.manual_seed(0)
    return Tiny()


def bert() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6}
    config = transformers.BertConfig(vocab_size=13, max_position_embeddings=5, **sizes)
    return transformers.BertForSequenceClassification(config)


def trainer_of(place, *callbacks, model=None, data=None, kind=transformers.Trainer, **options):
    """A Trainer of a tiny network."""
    own = {"compute_loss_func", "data_collator"}
    usual = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 0.05, "logging_steps": 1}
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "output_dir": str(place)}
    arguments = transformers.TrainingArguments(
        **usual | quiet | {name: value for name, value in options.items() if name not in own}
    )
    given = {name: value for name, value in options.items() if name in own}
    data = Augmented() if data is None else data
    return kind(model or network(), arguments, train_dataset=data, callbacks=list(callbacks), **given)


def without_times(history) -> list[dict]:
    """The log of training alone, without what is measured by a clock."""
    timed = ("runtime", "per_second")
    entries = [entry for entry in history if "spectra/loss" not in entry]
    return [{name: v for name, v in entry.items() if not name.endswith(timed)} for entry in entries]


def trained(place, callback=None, make=network, **options):
    """All that could tell a run from another, and the entries of its log that are of recordings."""
    torch.compiler.reset()
    seen, data, collator = Seen(), Augmented(), Masking()
    extra = [seen] if callback is None else [callback, seen]
    trainer = trainer_of(place, *extra, model=make(), data=data, data_collator=collator, **options)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    trainer.train()
    chance = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    chance += data.own.get_state(), collator.generator.get_state()
    history = trainer.state.log_history
    state = trainer.model.state_dict(), trainer.optimizer.state_dict(), trainer.lr_scheduler.state_dict()
    recorded = [entry for entry in history if "spectra/loss" in entry]
    told = [values for _, values in seen.told if "spectra/loss" in values]
    assert [{"step": entry["step"], **values} for entry, values in zip(recorded, told, strict=True)] == recorded
    return (*state, chance, seen.states, without_times(history), trainer.state.global_step), recorded


VARIANTS = {"accumulated, bf16": {"gradient_accumulation_steps": 2, "bf16": True}}
if WHOLE:
    VARIANTS["plain"] = {}
    VARIANTS["checkpointed"] = {"gradient_checkpointing": True, "make": bert, "max_steps": 5}
    VARIANTS["compiled"] = {"torch_compile": True, "torch_compile_backend": "aot_eager"}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_training_is_unchanged_bit_for_bit(options, tmp_path):
    alone, none = trained(tmp_path, **options)
    callback = SpectraCallback(tmp_path / "out", every=5, examples=10, products=22, k=2)
    watched, recorded = trained(tmp_path, callback, **options)
    assert_same_bits(alone, watched)
    assert none == []
    steps = list(range(0, alone[-1] + 1, 5))
    assert [entry["step"] for entry in recorded] == steps
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"step-{step:06d}" for step in steps]


def test_the_comparison_above_would_notice(tmp_path):
    class Draws(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            torch.rand(1)

    with pytest.raises(AssertionError):
        assert_same_bits(trained(tmp_path)[0], trained(tmp_path, Draws())[0])


def smoothed(z, y):
    return F.cross_entropy(z, y, label_smoothing=0.2)


def penalised(z, y):
    return F.cross_entropy(z, y) + 0.1 * z.mean(0).square().sum()


class Penalised(transformers.Trainer):
    """A loss of its own, which logs."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        self.log({"mean": outputs["logits"].mean().item()})
        loss = penalised(outputs["logits"], labels)
        return (loss, outputs) if return_outputs else loss


LOSSES = {
    "the model's": ({}, F.cross_entropy),
    "in bf16": ({"bf16": True}, F.cross_entropy),
    "smoothed": ({"label_smoothing_factor": 0.2}, smoothed),
    "a function": ({"compute_loss_func": lambda out, y, **_: penalised(out["logits"], y)}, penalised),
    "a Trainer's": ({"kind": Penalised}, penalised),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("options", "loss"), LOSSES.values(), ids=LOSSES)
def test_what_is_recorded_is_the_matrix_of_training(options, loss, tmp_path):
    """Of all the examples, in eval mode, with the weights at the end; autocast is left out."""
    data = [{"input_ids": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    callback = SpectraCallback(tmp_path / "out", every=3, examples=99, products=60, k=2)
    options = {"per_device_train_batch_size": 24, "num_train_epochs": 3, **options}
    trainer = trainer_of(tmp_path, callback, data=data, **options)
    for _ in range(2 if "bf16" in options else 1):  # a second call puts autocast around once more
        trainer.train()
        values = next(entry for entry in reversed(trainer.state.log_history) if "spectra/loss" in entry)
        model = network()
        model.load_state_dict(trainer.model.state_dict())
        reference = Dense(model.double().eval(), lambda call: call(X)["logits"], lambda z: loss(z, Y))
        matrix = reference.hessian()
        assert values["step"] == 3
        assert values["spectra/loss"] == pytest.approx(reference.loss(reference.at(reference.point)).item(), rel=1e-5)
        assert largest(matrix, 1)[0] in (
            pytest.approx(values[f"spectra/hessian/{name}"], rel=1e-3, abs=1e-6)
            for name in ("eigenvalue_1", "smallest_eigenvalue_1")
            if f"spectra/hessian/{name}" in values
        )
        error = abs(values["spectra/hessian/trace"] - matrix.trace().item())
        assert error <= 5 * values["spectra/hessian/trace_error"] + 1e-4
    logged = [entry["step"] for entry in trainer.state.log_history if "mean" in entry]
    assert logged == ([0, 1, 2] if "kind" in options else []), "a recording has logged"


def test_what_the_optimizer_meets(tmp_path):
    """At the end of a training by AdamW, beside its threshold; before the first step there is no state."""
    data = [{"input_ids": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    callback = SpectraCallback(tmp_path / "out", every=3, examples=99, products=60, k=2, precondition=True)
    options = {"per_device_train_batch_size": 24, "num_train_epochs": 3, "lr_scheduler_type": "constant"}
    trainer = trainer_of(tmp_path, callback, data=data, **options)
    trainer.train()
    (values,) = (entry for entry in trainer.state.log_history if "spectra/loss" in entry)
    assert values["step"] == 3
    model = network()
    model.load_state_dict(trainer.model.state_dict())
    exact = Dense(model.double().eval(), lambda call: call(X)["logits"], lambda z: F.cross_entropy(z, Y))
    expected = max(largest(met_by_adam(exact.hessian(), trainer.optimizer.optimizer, trainer.model), 2))
    assert values["spectra/hessian_preconditioned/eigenvalue_1"] == pytest.approx(expected, rel=1e-3)
    assert values["spectra/hessian_preconditioned/threshold"] == pytest.approx(38 / 0.05)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([{"input_ids": x, "labels": y} for x, y in zip(X, Y, strict=True)])


def test_data_without_a_length_are_a_line_before_training(tmp_path):
    """And the way out that it names works."""
    trainer = trainer_of(tmp_path, SpectraCallback(tmp_path / "out", every=2, k=2), data=Stream(), max_steps=2)
    with pytest.raises(SpectraError, match=r"`data`: .* has no length, .*; give `data`, the examples to watch"):
        trainer.train()
    batches = [{"input_ids": X, "labels": Y}]
    callback = SpectraCallback(tmp_path / "out", every=2, data=batches, products=22, k=2)
    trainer_of(tmp_path, callback, data=Stream(), max_steps=2).train()
    assert spectra.load_result(tmp_path / "out/step-000002/eig.json").problem.examples == 24


def test_a_call_that_is_no_trainers(tmp_path):
    with pytest.raises(SpectraError, match="it was not called by a Trainer of transformers"):
        SpectraCallback(tmp_path, every=2).on_train_begin(None, None, None)
