"""Folders of the package datasets, and text with a tokenizer of transformers, both made here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spectra.cli import run
from spectra.errors import SpectraError
from spectra.inputs.data import load_data
from spectra.inputs.items import Arguments, ItemRequirements, arguments_of
from spectra.inputs.model import build_model

datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

NETS = """
import torch
from torch import nn

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(12, 3)
        self.head = nn.Linear(3, 12)

    def forward(self, input_ids, attention_mask=None):
        h = self.words(input_ids)
        mask = torch.ones_like(h[..., :1]) if attention_mask is None else attention_mask[..., None].to(h.dtype)
        return self.head(torch.tanh(h + (h * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)))

class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        return self.head(x.mean((-1, -2)))
"""
ROWS = [[1, 2, 3, 4], [5, 6], [7, 8, 9], [10, 11, 1, 2], [3, 4, 5]]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("nets.py").write_text(NETS)
    return tmp_path


def quietly(table, folder: str) -> None:
    datasets.disable_progress_bars()
    table.save_to_disk(folder)
    datasets.enable_progress_bars()


def table(masks: bool = True, **more):
    labels = [[*row[1:], -100] for row in ROWS]
    columns = {"input_ids": ROWS, "labels": labels, "text": ["a text"] * len(ROWS), **more}
    if masks:
        columns["attention_mask"] = [[1] * len(row) for row in ROWS]
    return datasets.Dataset.from_dict(columns)


def expected(model: nn.Module) -> float:
    """The trace of the Hessian, one row at a time, without padding."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def value(vector):
        parts = vector.split([shape.numel() for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        total = vector.new_zeros(())
        for row in ROWS:
            ids = torch.tensor([row])
            logits = torch.func.functional_call(model, named, (ids,))
            total = total + F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
        return total / sum(len(row) - 1 for row in ROWS)

    return torch.autograd.functional.hessian(value, theta).trace().item()


def command(capfd, *words: str) -> dict:
    capfd.readouterr()
    status = run(["trace", "--method", "dense", "--dtype", "float64", "--json", *words])
    out, err = capfd.readouterr()
    assert status == 0, err
    return json.loads(out) | {"err": err}


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("splits", [True, False])
def test_a_saved_data_set(masks, splits, capfd):
    made = table(masks)
    quietly(datasets.DatasetDict({"train": made, "test": made}) if splits else made, "saved")
    data = "saved?split=train" if splits else "saved"
    found = command(capfd, "--model", "nets.py:Tagger", "--data", data)
    model = build_model("nets.py:Tagger", 0).double()
    assert found["results"][0]["trace"] == pytest.approx(expected(model), rel=1e-9)
    notes = found["problem"]["notes"]
    assert "unused columns: text" in notes
    assert any(note.startswith("rows of tokens are padded to the longest") for note in notes)
    assert "unused columns: text" in found["err"]


def test_an_object_of_the_package(capfd):
    import spectra

    made = table().remove_columns("text").select([0, 3])
    model = build_model("nets.py:Tagger", 0).double()
    of_one = {name: torch.tensor(made[name]) for name in made.column_names}
    one, other = (spectra.trace(model, "cross_entropy", data, method="dense").trace for data in (made, of_one))
    assert one == pytest.approx(other, rel=1e-9)


def test_one_input_of_another_name_comes_first(capfd):
    from PIL import Image

    colours = [(10 * i, 20, 250 - i) for i in range(6)]
    images = [Image.new("RGB", (3, 2), colour) for colour in colours]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    quietly(datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2, 3, 0, 1]}, features=features), "images")
    takes = Arguments(("x",), ("x",), False)
    data = load_data("images", None, 0, wanted=ItemRequirements(takes=takes))
    assert data.inputs.shape == (6, 3, 2, 3)
    assert data.transform == "to tensor"
    assert (data.inputs[:, :, 0, 0] * 255).round().int().tolist() == [list(colour) for colour in colours]
    assert command(capfd, "--model", "nets.py:Images", "--data", "images")["problem"]["samples"] == 6


def test_what_a_loss_of_model_and_batch_takes_nobody_knows():
    quietly(table(extra=list(range(5))), "saved")
    wanted = ItemRequirements(whole=True, takes=arguments_of(build_model("nets.py:Tagger", 0)))
    data = load_data("saved", None, 0, wanted=wanted)
    assert set(data.inputs) == {"input_ids", "labels", "text", "attention_mask", "extra"}
    assert data.inputs["text"] == ["a text"] * 5
    assert data.inputs["extra"].tolist() == list(range(5))
    assert data.targets is None


def damaged(folder: Path) -> None:
    (folder / "state.json").write_text("{")


def elsewhere(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": "../other/data.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))


REFUSED = {
    "split": ("saved?split=train", lambda folder: None, "it holds one data set; leave split out"),
    "option": ("saved?columns=3", lambda folder: None, "has no option columns; its only option is split"),
    "damaged": ("saved", damaged, "it cannot be read (JSONDecodeError"),
    "files elsewhere": ("saved", elsewhere, "it names files in another folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_cannot_be(name, here):
    quietly(table(), "saved")
    spec, change, told = REFUSED[name]
    change(here / "saved")
    with pytest.raises(SpectraError) as caught:
        load_data(spec, None, 0)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_splits_that_cannot_be():
    quietly(datasets.DatasetDict({"train": table()}), "splits")
    with pytest.raises(SpectraError, match=r"write splits\?split=train"):
        load_data("splits", None, 0)
    with pytest.raises(SpectraError, match="did you mean train"):
        load_data("splits?split=trian", None, 0)


def test_columns_that_cannot_be():
    quietly(table(values=[[1.0] * i for i in range(1, 6)]), "uneven")
    with pytest.raises(SpectraError, match=r"rows of different lengths \(1 to 5\); pad or cut them"):
        load_data("uneven", None, 0)
    quietly(datasets.Dataset.from_dict({"a": [1, 2], "b": [1, 2], "label": [0, 1]}), "names")
    with pytest.raises(SpectraError, match=r"it has columns a, b, label, but the model takes x; rename them"):
        load_data("names", None, 0, wanted=ItemRequirements(takes=Arguments(("x",), ("x",), False)))


def test_the_package_is_asked_for(monkeypatch):
    quietly(table(), "saved")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SpectraError, match=r"pip install datasets"):
        load_data("saved", None, 0)


# Text


TEXT = "the cat sat on the mat , and the dog sat on the cat . " * 6


def tokenizer(folder: str):
    """A tokenizer of words, as one is saved beside a model."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.train_from_iterator([TEXT], tokenizers.trainers.WordLevelTrainer(special_tokens=["?"]))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?")
    fast.save_pretrained(folder)
    return made


@pytest.mark.parametrize("of_model", [True, False])
def test_text_with_a_tokenizer(of_model):
    ids = torch.tensor(tokenizer("folder").encode(TEXT).ids)
    Path("corpus.txt").write_text(TEXT)
    takes = arguments_of(build_model("nets.py:Tagger", 0))
    wanted = ItemRequirements(
        takes=takes, model="transformers:AutoModelForCausalLM?path=folder" if of_model else "nets.py:Tagger"
    )
    data = load_data("text:corpus.txt?length=8" + ("" if of_model else "&tokenizer=folder"), None, 0, wanted=wanted)
    count = (len(ids) - 1) // 8
    assert list(data.inputs) == ["input_ids"]
    assert torch.equal(data.inputs["input_ids"], ids[: 8 * count].view(count, 8))
    assert torch.equal(data.targets, ids[1 : 8 * count + 1].view(count, 8))


def test_text_by_the_command(capfd):
    ids = torch.tensor(tokenizer("folder").encode(TEXT).ids)
    assert ids.max() < 12
    Path("corpus.txt").write_text(TEXT)
    found = command(
        capfd, "--model", "nets.py:Tagger", "--data", "text:corpus.txt?length=8&tokenizer=folder", "--samples", "5"
    )
    assert found["problem"]["samples"] == 5
    assert found["problem"]["examples"] == 40
    assert "labels are the next tokens" in found["err"]


def test_a_folder_without_a_tokenizer():
    Path("corpus.txt").write_text(TEXT)
    Path("folder").mkdir()
    Path("folder/config.json").write_text(json.dumps({"model_type": "gpt2", "auto_map": {"AutoTokenizer": "evil.T"}}))
    Path("folder/evil.py").write_text("open('ran', 'w')\nclass T: pass\n")
    with pytest.raises(SpectraError) as caught:
        load_data("text:corpus.txt?length=8&tokenizer=folder", None, 0)
    assert "its tokenizer cannot be used" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


# A language model that returns its own loss


def small_gpt2(folder: str) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 12, "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 1}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def of_next_tokens(rows: list[list[int]]) -> float:
    """The trace of the Hessian of the mean cross entropy over all next tokens, one row at a time."""
    model = transformers.GPT2LMHeadModel.from_pretrained("folder", attn_implementation="eager").double().eval()
    names = [name for name, _ in model.named_parameters()]
    theta = [p.detach() for p in model.parameters()]
    sizes = [p.numel() for p in theta]

    def value(vector):
        parts = [part.view_as(p) for part, p in zip(vector.split(sizes), theta, strict=True)]
        total = vector.new_zeros(())
        for row in rows:
            ids = torch.tensor([row])
            logits = torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (ids,)).logits
            total = total + F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
        return total / sum(len(row) - 1 for row in rows)

    return torch.autograd.functional.hessian(value, torch.cat([p.flatten() for p in theta])).trace().item()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("form", ["text", "folder"])
def test_the_loss_of_a_language_model(form, capfd):
    pytest.importorskip("spectra.inputs.model_loss")
    small_gpt2("folder")
    text = TEXT[: len(TEXT) // 2]
    ids = tokenizer("folder").encode(text).ids
    rows, data = ROWS, "saved"
    if form == "text":
        Path("corpus.txt").write_text(text)
        rows, data = [ids[8 * i : 8 * i + 8] for i in range(len(ids) // 8)], "text:corpus.txt?length=8"
    else:
        columns = {"input_ids": ROWS, "labels": ROWS, "attention_mask": [[1] * len(row) for row in ROWS]}
        quietly(datasets.Dataset.from_dict({**columns, "text": ["a text"] * len(ROWS)}), "saved")
    model = "transformers:AutoModelForCausalLM?path=folder"
    found = command(capfd, "--model", model, "--data", data, "--loss", "model")
    assert found["results"][0]["trace"] == pytest.approx(of_next_tokens(rows), rel=1e-7)
    assert any("the model shifts the labels by one place" in note for note in found["problem"]["notes"])
