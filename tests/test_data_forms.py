"""A matrix is of examples: in whichever form they come, it is the same, and what cannot be read is one line."""

from __future__ import annotations

import json
import sys
from collections import UserDict, namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Subset, TensorDataset

import spectra
from spectra.cli import run
from spectra.curvature.evaluation import mean_loss
from spectra.errors import SpectraError
from spectra.inputs.code_origin import comes_with_packages
from spectra.inputs.data import load_data
from spectra.inputs.items import ItemRequirements, item_requirements
from spectra.inputs.problem import load_problem
from spectra.inputs.python_objects import own_data
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.losses import CustomLoss

N, T, WORDS = 13, 5, 7
CODE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Tagger(nn.Module):
    '''Logits (b, T, words) of the next word, by the word and the mean of those that the mask leaves.'''

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7)

    def forward(self, input_ids, attention_mask=None, scale=1.0, extra=None):
        h = self.words(input_ids)
        mask = torch.ones_like(h[..., :1]) if attention_mask is None else attention_mask[..., None].to(h.dtype)
        return scale * self.head(torch.tanh(h + (h * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)))

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(256, 2)
        self.head = nn.Linear(2, 256)

    def forward(self, x):
        return self.head(torch.tanh(self.words(x)))

def regression():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()

def arrays():
    import numpy as np
    return {name: torch.from_numpy(array) for name, array in np.load("tokens.npz").items()}

def rows():
    found = arrays()
    return [{name: array[index] for name, array in found.items()} for index in range(len(found["labels"]))]

def lists():
    return [{name: value.tolist() for name, value in row.items()} | {"extra": None} for row in rows()]

def pairs():
    return [({"input_ids": row["input_ids"], "attention_mask": row["attention_mask"]}, row["labels"]) for row in rows()]

def loader(): return DataLoader(rows(), batch_size=4)
def shuffled(): return DataLoader(rows(), batch_size=4, shuffle=True)
def batches():
    for first in range(0, 13, 6):
        yield {name: array[first : first + 6] for name, array in arrays().items()}

class Ragged(Dataset):
    '''Rows without their padding, which the collate function puts back.'''
    def __len__(self): return 13
    def __getitem__(self, index):
        row = rows()[index]
        kept = int(row["attention_mask"].sum())
        return {name: value[:kept] for name, value in row.items()}
    @staticmethod
    def collate_fn(rows):
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        pad = torch.nn.utils.rnn.pad_sequence
        return {key: pad([row[key] for row in rows], True, value) for key, value in fill.items()}

def ragged(): return Ragged()

class Sized(Dataset):
    def __len__(self): return 4
    def __getitem__(self, index): return torch.full((index + 1, 3), float(index)), float(index)
    def collate_fn(self, items): return torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items])

def sized(): return Sized()
def first(x): return 2 * x[0]
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("forms.py").write_text(CODE)
    Path("collated.py").write_text(CODE + "\ncollate_fn = Ragged.collate_fn\ndel Ragged.collate_fn\n")
    np.savez("tokens.npz", **{name: array.numpy() for name, array in tokens().items()})
    save_file(tokens(), "tokens.safetensors")
    return tmp_path


def tokens() -> dict[str, torch.Tensor]:
    """Sequences of words of different lengths, padded; the last word of each has no next one."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(WORDS, (N, T), generator=draw)
    mask = torch.arange(T) < torch.randint(2, T + 1, (N, 1), generator=draw)
    mask[0] = True
    ids = ids.where(mask, 0)
    labels = ids.roll(-1, 1).where(mask.roll(-1, 1) & (torch.arange(T) < T - 1), -100)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels.where(mask, -100)}


def built(name: str = "Tagger", seed: int = 0) -> nn.Module:
    from spectra.inputs.model import build_model

    return build_model(f"forms.py:{name}", seed).double()


def trace_of(model: nn.Module, value) -> float:
    """The trace of the Hessian of `value(call)` by the parameters, dense, by PyTorch alone."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def function(vector):
        parts = vector.split([shape.numel() for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return value(lambda *x, **y: functional_call(model, named, x, y))

    return torch.autograd.functional.hessian(function, theta).trace().item()


def tagged_trace() -> float:
    found = tokens()
    labels = found.pop("labels")
    return trace_of(built(), lambda call: F.cross_entropy(call(**found).flatten(0, 1), labels.flatten()))


def command(capfd, *words: str) -> dict:
    capfd.readouterr()
    status = run(["trace", "--method", "dense", "--dtype", "float64", "--json", *words])
    out, err = capfd.readouterr()
    assert status == 0, err
    return json.loads(out) | {"err": err}


def refusal(capfd, *words: str) -> str:
    capfd.readouterr()
    status = run(["trace", "--method", "dense", "--json", *words])
    out, err = capfd.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), err
    return err


# By name

NAMED = (
    "tokens.npz",
    "tokens.safetensors",
    "arrays",
    "rows",
    "lists",
    "pairs",
    "loader",
    "shuffled",
    "batches",
    "ragged",
)


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("form", [*NAMED, "collated"])
def test_named_data(form, sized, capfd):
    data = {"collated": "collated.py:ragged"}.get(form, form if "." in form else f"forms.py:{form}")
    size = ("--batch-size", "5") if sized else ()
    found = command(capfd, "--model", "forms.py:Tagger", "--data", data, *size)
    assert found["results"][0]["trace"] == pytest.approx(tagged_trace(), rel=1e-9)
    assert found["problem"]["samples"] == N
    assert any("shuffles" in note for note in found["problem"]["notes"]) == (form == "shuffled")


def test_a_transform_comes_before_the_collate_function():
    from spectra.inputs.transform import choose_transform

    view = choose_transform("forms.py:first", "forms.py:regression")
    data = load_data("forms.py:sized", None, 0, view)
    assert data.inputs.tolist() == [[2.0 * i] * 3 for i in range(4)]
    assert data.targets.tolist() == [0, 1, 2, 3]
    assert data.transform == "forms.py:first"
    assert data.notes == ("collate_fn of forms.py:sized makes the batches",)
    for name, told in (
        ("loader", "it applies to single examples, but forms.py:loader gives batches"),
        ("ragged", "pairs"),
    ):
        with pytest.raises(SpectraError, match=told):
            load_data(f"forms.py:{name}", None, 0, view)


def test_an_array_that_the_model_does_not_take(capfd):
    np.savez("more.npz", token_type_ids=np.zeros((N, T), int), **{k: v.numpy() for k, v in tokens().items()})
    told = refusal(capfd, "--model", "forms.py:Tagger", "--data", "more.npz")
    assert "the model has no argument token_type_ids (it takes input_ids, attention_mask, scale, extra)" in told
    np.savez("fewer.npz", ids=np.zeros((N, T), int), labels=np.zeros((N, T), int))
    assert "the model has no argument ids" in refusal(capfd, "--model", "forms.py:Tagger", "--data", "fewer.npz")
    np.savez("mask.npz", attention_mask=np.zeros((N, T), int), labels=np.zeros((N, T), int))
    told = refusal(capfd, "--model", "forms.py:Tagger", "--data", "mask.npz")
    assert "the model needs input_ids, but the data hold attention_mask" in told


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_arrays_beside_x_and_y_are_told(suffix, tmp_path):
    arrays = {"x": torch.ones(4, 3), "y": torch.arange(4) % 2, "weight": torch.ones(4)}
    if suffix == "npz":
        np.savez("more.npz", **{key: array.numpy() for key, array in arrays.items()})
    else:
        save_file(arrays, "more.safetensors")
    (note,) = load_data(f"more.{suffix}", None, 0).notes
    assert note == "unused arrays: weight (used are x, y and weights or loss_mask)"


def test_targets_that_are_absent(capfd):
    np.savez("x.npz", x=np.random.default_rng(0).normal(size=(6, 3)))
    told = refusal(capfd, "--model", "forms.py:regression", "--data", "x.npz", "--loss", "mse")
    assert "it needs arrays x and y, or arrays named as the model's arguments and labels or label" in told
    assert "but it holds x" in told


# Text


@pytest.mark.parametrize(("stride", "chunks"), [(None, 4), (3, 6)])
def test_text_in_bytes(stride, chunks, capfd):
    content = bytes(range(97, 97 + 22))
    Path("corpus.txt").write_bytes(content)
    spec = "text:corpus.txt?length=5&tokenizer=bytes" + (f"&stride={stride}" if stride else "")
    found = command(capfd, "--model", "forms.py:Plain", "--data", spec)
    x = torch.tensor([list(content[i : i + 6]) for i in range(0, 17, stride or 5)])
    assert len(x) == chunks
    expected = trace_of(built("Plain"), lambda call: F.cross_entropy(call(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()))
    assert found["results"][0]["trace"] == pytest.approx(expected, rel=1e-9)
    for note in (f"{chunks} chunks of 5 tokens", "labels are the next tokens: they were shifted by one place here"):
        assert any(note in one for one in found["problem"]["notes"])
        assert note in found["err"]  # before the work


def test_text_of_a_model_that_shifts_by_itself():
    Path("corpus.txt").write_text("a text")
    data = load_data(
        "text:corpus.txt?length=3&tokenizer=bytes", None, 0, wanted=ItemRequirements(whole=True, forwards=True)
    )
    assert data.inputs["input_ids"].tolist() == data.inputs["labels"].tolist() == [[97, 32, 116], [101, 120, 116]]
    assert data.targets is None
    assert data.notes[1].startswith("labels are the tokens themselves: the model has to shift them")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", "the number of tokens in a chunk is missing; write text:corpus.txt?length=256"),
        ("?length=0", "length is 0; give an integer above 0"),
        ("?length=4&stride=x", "stride is 'x'"),
        ("?length=4&width=3", "has no option width; its options are length, stride, tokenizer"),
        ("?length=4", "has no path= of a folder with a tokenizer; add tokenizer=DIR"),
        ("?length=4&tokenizer=absent", "there is no such folder"),
        ("?length=40&tokenizer=bytes", "it holds 6 tokens, but one chunk needs 41"),
    ],
)
def test_text_that_cannot_be(options, told):
    Path("corpus.txt").write_text("a text")
    with pytest.raises(SpectraError) as caught:
        load_data(f"text:corpus.txt{options}", None, 0)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_that_is_not_there():
    with pytest.raises(SpectraError, match="there is no such file"):
        load_data("text:absent.txt?length=3&tokenizer=bytes", None, 0)
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("folder").mkdir()
    with pytest.raises(SpectraError, match="not text in UTF-8"):
        load_data("text:latin.txt?length=3&tokenizer=folder", None, 0)


def test_text_is_no_code():
    assert comes_with_packages("data", "text:corpus.txt?length=5&tokenizer=folder")
    assert not comes_with_packages("model", "text:build")


def test_streams_are_out():
    with pytest.raises(SpectraError, match="the data must be finite and repeatable; return a list"):
        load_data("shards-{000..099}.tar", None, 0)


# Labels that are the tokens of the inputs


def test_labels_are_shifted_on_request(capfd):
    found = tokens()
    found["labels"] = found["input_ids"].where(found["attention_mask"] == 1, -100)
    np.savez("same.npz", **{name: array.numpy() for name, array in found.items()})
    made = command(capfd, "--model", "forms.py:Tagger", "--data", "same.npz", "--loss", "cross_entropy?shift=true")
    assert made["results"][0]["trace"] == pytest.approx(tagged_trace(), rel=1e-9)
    noted = command(capfd, "--model", "forms.py:Tagger", "--data", "same.npz")
    assert any("or write cross_entropy?shift=true" in note for note in noted["problem"]["notes"])


def test_an_ignored_label_of_ones_own_is_put_in_the_last_place():
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    wanted = item_requirements(CrossEntropy(ignore_index=0, shift=True))
    found = own_data((ids, ids), None, 0, None, wanted)
    assert found.targets.tolist() == [[2, 3, 0], [5, 6, 0]]
    found = own_data([{"input": ids, "labels": ids, "weights": ids}], None, 0, None, wanted)
    assert found.batches[0].targets["labels"].tolist() == [[2, 3, 0], [5, 6, 0]]
    assert found.batches[0].targets["weights"].tolist() == [[2, 3, 0], [5, 6, 0]]


def test_labels_that_cannot_be_shifted(capfd):
    told = refusal(capfd, "--model", "spectra.demo:mlp", "--data", "digits", "--loss", "cross_entropy?shift=true")
    assert "shift needs integer labels of tokens (b, T), but those of digits are shape (1797,)" in told
    Path("corpus.txt").write_text("a text")
    words = ("--data", "text:corpus.txt?length=3&tokenizer=bytes", "--loss", "cross_entropy?shift=true")
    assert "are shifted already; leave shift out" in refusal(capfd, "--model", "forms.py:Plain", *words)


# In Python


def points():
    draw = torch.Generator().manual_seed(3)
    return torch.randn(N, 3, generator=draw).double(), torch.randn(N, 2, generator=draw).double()


class Halves(UserDict):
    pass


Named = namedtuple("Named", ["x", "y"])


@dataclass
class Fields:
    x: torch.Tensor
    labels: torch.Tensor


class Pieces(IterableDataset):
    def __iter__(self):
        yield from zip(*points(), strict=True)


class Mapped(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, index):
        x, y = points()
        return Halves(input=x[index], targets=y[index])

    def collate_fn(self, items):
        return [torch.stack([item[key] for item in items]) for key in ("input", "targets")]


def numpy_batches(x, y):
    return [{"input": x[:6].numpy(), "label": y[:6].tolist()}, {"input": x[6:].numpy(), "label": y[6:].tolist()}]


OWN = {
    "mapping of all": lambda x, y: {"input": x, "labels": y},
    "mapping of arrays": lambda x, y: Halves(x=x.numpy(), target=y.numpy()),
    "lists of numbers": lambda x, y: (x.tolist(), y.tolist()),
    "mapping of lists": lambda x, y: {"input": x.tolist(), "labels": y.tolist()},
    "subset": lambda x, y: Subset(Mapped(), range(N)),
    "targets by another name": lambda x, y: [{"x": x, "y": y}],
    "UserDict": lambda x, y: [Halves(input=x[:6], labels=y[:6]), Halves(input=x[6:], labels=y[6:])],
    "named tuples": lambda x, y: [Named(x[:6], y[:6]), Named(x[6:], y[6:])],
    "dataclass": lambda x, y: [Fields(x, y)],
    "arrays in batches": numpy_batches,
    "numbers in lists": lambda x, y: [(x.tolist(), y.tolist())],
    "two inputs in a list": lambda x, y: [([x], y)],
    "data set with a collate_fn": lambda x, y: Mapped(),
    "loader of an iterable": lambda x, y: DataLoader(Pieces(), batch_size=5),
    "loader that shuffles": lambda x, y: DataLoader(TensorDataset(x, y), 4, shuffle=True),
    "loader of batches": lambda x, y: DataLoader([(x[:6], y[:6]), (x[6:], y[6:])], batch_size=None),
    "loader of dicts": lambda x, y: DataLoader([{"input": a, "label": b} for a, b in zip(x, y, strict=True)], 4),
    "loader with workers": lambda x, y: DataLoader(TensorDataset(x, y), 5, num_workers=1),
    "iterator": lambda x, y: iter(DataLoader(TensorDataset(x, y), 4)),
}


@pytest.mark.parametrize("name", OWN)
def test_objects(name):
    x, y = points()
    model = built("regression")
    expected = trace_of(model, lambda call: F.mse_loss(call(x), y))
    found = spectra.trace(model, nn.MSELoss(), OWN[name](x, y), method="dense")
    assert found.trace == pytest.approx(expected, rel=1e-9)


TREES = {
    "tensors": lambda x, y, z: (x, (y, z)),
    "mapping": lambda x, y, z: {"input": x, "labels": {"a": y, "b": z}},
    "batches": lambda x, y, z: [(x[:4], [y[:4], z[:4]]), (x[4:], [y[4:], z[4:]])],
    "items": lambda x, y, z: Rows([(a, (b, c)) for a, b, c in zip(x, y, z, strict=True)]),
    "loader": lambda x, y, z: DataLoader([(a, (b, c)) for a, b, c in zip(x, y, z, strict=True)], 4),
}


class Rows(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.mark.parametrize("name", TREES)
def test_several_targets(name):
    def loss(output, targets):
        first, second = targets.values() if isinstance(targets, dict) else targets
        return ((output - first) ** 2).sum(1) * second

    x, y = points()
    z, model = x[:, 0].exp(), built("regression")
    expected = trace_of(model, lambda call: loss(call(x), (y, z)).mean())
    found = spectra.trace(model, CustomLoss(loss), TREES[name](x, y, z), method="dense")
    assert found.trace == pytest.approx(expected, rel=1e-9)


ABSENT = {
    "tensor": lambda x: x,
    "array": lambda x: x.numpy(),
    "one in a tuple": lambda x: (x,),
    "batches": lambda x: [x[:4], x[4:]],
    "items": lambda x: Rows(list(x)),
    "loader": lambda x: DataLoader(x, batch_size=4),
    "loader of tuples": lambda x: DataLoader(TensorDataset(x), batch_size=4),
}


@pytest.mark.parametrize("name", ABSENT)
def test_targets_are_absent(name):
    x, _ = points()
    model = built("regression")
    expected = trace_of(model, lambda call: call(x).square().sum(1).mean())
    loss = CustomLoss(lambda output, target: output.square().sum(1))
    found = spectra.trace(model, loss, ABSENT[name](x), method="dense")
    assert found.trace == pytest.approx(expected, rel=1e-9)
    if name != "one in a tuple":
        whole = BatchLoss(lambda model, x: model(x[0] if isinstance(x, tuple) else x).square().sum(1))
        found = spectra.trace(model, whole, ABSENT[name](x), method="dense")
        assert found.trace == pytest.approx(expected, rel=1e-9)


def test_the_residual_of_a_differential_equation_by_name(capfd):
    x, _ = points()
    np.savez("x.npz", x=x.numpy())
    save_file({"x": x}, "x.safetensors")
    expected = trace_of(built("regression"), lambda call: ((call(x)[:, 0] - x.prod(1)) ** 2).mean())

    def loss(model, x):
        return (model(x)[:, 0] - x.prod(1)) ** 2

    for name in ("x.npz", "x.safetensors"):
        found = load_problem(model=built("regression"), data=name, loss=BatchLoss(loss))
        assert spectra.trace(found.problem, method="dense").trace == pytest.approx(expected, rel=1e-9)


def test_points_that_belong_together_are_one_batch():
    x, _ = points()
    data = {"inside": x, "border": x[:4]}
    model = built("regression")

    def loss(model, batch):
        return model(batch["inside"]).square().mean() + model(batch["border"]).mean()

    expected = trace_of(model, lambda call: loss(call, data))
    for form in (data, [data], iter([data])):
        assert spectra.trace(model, BatchLoss(loss), form, method="dense").trace == pytest.approx(expected, rel=1e-9)
    with pytest.raises(SpectraError, match="the arrays of dict have different lengths \\(4 and 13\\); leave it out"):
        spectra.trace(model, BatchLoss(loss), data, samples=3)


@pytest.mark.parametrize("form", ["tuples of examples", "list of examples", "lists", "data set"])
def test_images_of_different_sizes(form):
    """Examples that cannot be stacked come as lists, as detection models take them."""
    draw = torch.Generator().manual_seed(1)
    images = [torch.randn(3, 4 + i, 5, generator=draw).double() for i in range(6)]
    labels = [{"boxes": torch.randn(i + 1, 3, generator=draw).double()} for i in range(6)]
    items = list(zip(images, labels, strict=True))
    model = built("regression")

    def value(call, image, label):
        return call(image.mean((1, 2)) + label["boxes"].sum(0)).square().sum()

    def loss(model, batch):
        pairs = batch if isinstance(batch, list) else zip(*batch, strict=True)
        return torch.stack([value(model, *pair) for pair in pairs])

    data = {
        "tuples of examples": lambda: DataLoader(items, 4, collate_fn=lambda batch: tuple(zip(*batch, strict=True))),
        "list of examples": lambda: DataLoader(items, 4, collate_fn=lambda batch: batch),
        "lists": lambda: [(images[:4], labels[:4]), (images[4:], labels[4:])],
        "data set": lambda: Rows(items),
    }[form]()
    expected = trace_of(model, lambda call: torch.stack([value(call, *item) for item in items]).mean())
    found = spectra.trace(model, BatchLoss(loss), data, method="dense")
    assert found.trace == pytest.approx(expected, rel=1e-9)


def test_constants_go_to_the_model_with_every_example():
    found = tokens()
    labels = found.pop("labels")
    model = built()
    expected = trace_of(model, lambda call: F.cross_entropy(call(**found, scale=2.0).flatten(0, 1), labels.flatten()))
    cut = [{name: x[part] for name, x in {**found, "labels": labels}.items()} for part in (slice(5), slice(5, None))]
    for constants in ({"scale": 2.0}, {"scale": torch.tensor(2.0).double()}):
        batches = [{**batch, **constants} for batch in cut]
        value = spectra.trace(model, CrossEntropy(class_dim=-1), batches, method="dense").trace
        assert value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["weights", "loss_mask"])
def test_weights_of_targets_stand_beside_them(name):
    found = tokens() | {name: torch.rand(N, T)}
    np.savez("weighted.npz", **{key: array.numpy() for key, array in found.items()})
    model = built()
    for wanted in (
        item_requirements(CrossEntropy(), model),
        item_requirements(CustomLoss(lambda output, target: output), model),
    ):
        for data in (
            load_data("weighted.npz", None, 0, wanted=wanted),
            own_data([found], None, 0, None, wanted).batches[0],
        ):
            assert list(data.inputs) == ["input_ids", "attention_mask"]
            assert torch.equal(data.targets["labels"], found["labels"])
            assert torch.equal(data.targets["weights"], found[name])
    np.savez("pair.npz", x=np.ones((3, 2)), y=np.ones(3), weights=np.arange(3.0))
    data = load_data("pair.npz", None, 0, wanted=item_requirements(CustomLoss(lambda output, target: output)))
    assert data.inputs.shape == (3, 2)
    assert data.targets["weights"].tolist() == [0, 1, 2]


def test_weights_of_targets_as_the_targets_of_a_pair():
    x, y, weights = torch.randn(9, 3).double(), torch.randint(2, (9,)), torch.rand(9).double()
    model = built("regression")
    expected = trace_of(
        model, lambda call: (weights * F.cross_entropy(call(x), y, reduction="none")).sum() / weights.sum()
    )
    for data in ((x, {"labels": y, "weights": weights}), {"x": x, "y": y, "weights": weights}):
        for given in (data, [data]):
            found = spectra.trace(model, nn.CrossEntropyLoss(), given, method="dense").trace
            assert found == pytest.approx(expected, rel=1e-9)


# Loaders


def test_examples_of_a_loader_have_the_numbers_of_the_data_set():
    """Labels that fisher-mc draws belong to examples, whatever the order in which they come."""
    torch.manual_seed(0)
    x, y, model = torch.randn(20, 3).double(), torch.randint(2, (20,)), built("regression")

    def trace(data):
        return spectra.trace(model, nn.CrossEntropyLoss(), data, curvature="fisher-mc", method="dense").trace

    data = TensorDataset(x, y)
    expected = trace((x, y))
    assert trace(DataLoader(data, 6, shuffle=True)) == pytest.approx(expected, rel=1e-9)
    assert trace(DataLoader(data, 6, sampler=RandomSampler(data))) == pytest.approx(expected, rel=1e-9)
    assert trace(DataLoader(data, 6, sampler=RandomSampler(data), num_workers=1)) == pytest.approx(expected, rel=1e-9)
    assert trace([(x.flip(0), y.flip(0))]) != pytest.approx(expected, rel=1e-9)
    some = {"samples": 7, "seed": 3}
    both = [
        own_data(form, wanted=None, batch_size=None, **some) for form in ((x, y), DataLoader(data, 6, shuffle=True))
    ]
    drawn = torch.cat([batch.indices for batch in both[1].batches])
    assert drawn.sort().values.tolist() == both[0].indices.tolist()


def test_what_a_loader_does_is_told():
    x, y = points()
    data = TensorDataset(x, y)
    assert own_data(DataLoader(data, 4), None, 0, None).notes == ()
    found = own_data(DataLoader(data, 4, shuffle=True, drop_last=True), None, 0, None)
    assert found.notes == (
        "the loader shuffles: it was read once, and its batches are kept",
        "the loader leaves out 1 of 13 examples",
    )
    loader = DataLoader(data, 4, shuffle=True)
    sampler = loader.batch_sampler
    own_data(loader, None, 0, None)
    assert loader.batch_sampler is sampler


class Augmented(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, index):
        return torch.randn(3), torch.randn(2)


class Redrawn:
    def __iter__(self):
        yield torch.randn(4, 3), torch.randn(4, 2)


class Stream(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.ones(3), torch.ones(2)


def masking(rows):
    x, y = (torch.stack(part) for part in zip(*rows, strict=True))
    return x * (torch.rand(x.shape) > 0.2), y


def forever():
    while True:
        yield torch.ones(100, 1000), torch.ones(100, 2)


@pytest.mark.parametrize("label", [int, lambda y: y, lambda y: y.numpy()], ids=["int", "tensor", "array"])
@pytest.mark.parametrize("mapping", [False, True])
def test_a_list_of_examples_is_a_data_set(label, mapping):
    x, y = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)), torch.arange(7) % 3
    items = [{"x": x[i], "label": label(y[i])} if mapping else (x[i], label(y[i])) for i in range(7)]
    found = own_data(items, None, 0, None).cut(7)[0]
    assert torch.equal(found.inputs, x)
    assert torch.equal(found.targets, y)


Example = namedtuple("Example", "x y")
NAMED = {
    "batches": lambda x, y: [Example(x, y)],
    "loader": lambda x, y: DataLoader([Example(*pair) for pair in zip(x, y, strict=True)], 4),
    "data set": lambda x, y: Subset([Example(*pair) for pair in zip(x, y, strict=True)], range(len(x))),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_tuples_keep_their_names_for_a_loss_of_a_batch(name):
    x, y = points()
    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    loss = BatchLoss(lambda model, batch: (model(batch.x) - batch.y).square(), "named")
    problem = load_problem(model=net, data=NAMED[name](x, y), loss=loss).problem
    assert mean_loss(problem) == pytest.approx(F.mse_loss(net(x), y).item())


def test_fields_that_a_batch_does_not_have_are_told():
    loss = BatchLoss(lambda model, batch: model(batch.x), "dotted")
    with pytest.raises(SpectraError, match=r"has no attribute .x.*its batch is a dict with keys x, y"):
        load_problem(model=nn.Linear(3, 2).double(), data=[dict(zip("xy", points(), strict=True))], loss=loss)


def test_a_loss_of_a_batch_by_another_name_is_told_how():
    def own(net, batch):
        return net(batch[0]).square().mean()

    with pytest.raises(SpectraError, match=r"to get \(model, batch\), call its first parameter model"):
        load_problem(model=nn.Linear(3, 2).double(), data=points(), loss=own)


class Failing(TensorDataset):
    def __getitem__(self, index):
        if index == 9:
            raise OSError(f"cannot read file {index}")
        return super().__getitem__(index)


def cut_off():
    yield points()
    raise OSError("cannot read file 9")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_fails_says_so(workers):
    told = "reading batch 2 of DataLoader failed with OSError: cannot read file 9" if not workers else "read file 9"
    with pytest.raises(SpectraError, match=f"`data`: .*{told}") as caught:
        own_data(DataLoader(Failing(*points()), 4, num_workers=workers), None, 0, None)
    assert "\n" not in str(caught.value)


def test_an_iterable_that_fails_says_so():
    with pytest.raises(SpectraError, match="reading batch 1 of generator failed with OSError: cannot read file 9"):
        own_data(cut_off(), None, 0, None)


@pytest.mark.parametrize("sampler", [False, True])
def test_a_loader_s_own_generator_is_left_as_found(sampler):
    data, generator = TensorDataset(*points()), torch.Generator().manual_seed(3)
    before = generator.get_state()
    chosen = {"sampler": RandomSampler(data, generator=generator)} if sampler else {"shuffle": True}
    loader = DataLoader(data, 4, generator=None if sampler else generator, **chosen)
    one, two = (own_data(loader, None, 0, None).cut(4) for _ in range(2))
    assert torch.equal(generator.get_state(), before)
    assert all(torch.equal(a.indices, b.indices) for a, b in zip(one, two, strict=True))


CHANGING = {
    "augmentation": (lambda data: DataLoader(Augmented(), 4), "gives different examples when it is read again"),
    "augmentation, shuffled": (lambda data: DataLoader(Augmented(), 4, shuffle=True), "switch random augmentation off"),
    "masks drawn while collating": (lambda data: DataLoader(data, 4, collate_fn=masking), "collate_fn"),
    "an iterable": (lambda data: Redrawn(), "gives a different first batch when it is read again"),
    "an iterable data set": (lambda data: Stream(), "yields single examples; .* finite and repeatable"),
}


@pytest.mark.parametrize("name", CHANGING)
def test_data_that_change_are_refused(name):
    made, told = CHANGING[name]
    with pytest.raises(SpectraError, match=told) as caught:
        own_data(made(TensorDataset(*points())), None, 0, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [forever(), DataLoader(Stream(), 50)], ids=["generator", "loader of a stream"])
def test_data_without_an_end_are_refused(data, monkeypatch):
    monkeypatch.setattr("spectra.inputs.loaders.MOST", 1000)
    with pytest.raises(
        SpectraError, match=r"does not end after 1,.* finite and repeatable: give a list of some batches"
    ):
        own_data(data, None, 0, None)


def test_a_collate_function_that_draws_is_refused():
    data = Rows(list(zip(*points(), strict=True)))
    data.collate_fn = masking
    with pytest.raises(SpectraError, match="are different when they are read again"):
        own_data(data, None, 0, None)


WRONG = {
    "object": ([object()], "batch 0 of list is a object"),
    "object inside": ([(torch.ones(3), {"a": object()})], "holds a object, which cannot be split into examples"),
    "numbers": ([(1, 2)], "holds no tensors; give batches of tensors, or a list of the examples"),
    "three": ([(torch.ones(3),) * 3], r"every batch has to be a pair \(x, y\).* needs a loss of \(model, batch\)"),
    "words": ([(torch.ones(3, 2), ["a", "b", "c"])], "y holds a str|y is a list"),
    "ragged": ([(torch.ones(3, 2), [[1, 2], [3]])], "x and y of batch 0 of list have shapes"),
    "mapping": ({"x": 1}, "`data`: expected a DataLoader, .*, got dict"),
    "identifiers": (
        {"x": torch.ones(2, 3), "id": ["a", "b"]},
        r"dict holds id of type list beside tensors; leave it out, .*\[batch\]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_batch(name):
    data, told = WRONG[name]
    with pytest.raises(SpectraError, match=told) as caught:
        own_data(data, None, 0, None)
    assert "\n" not in str(caught.value)
