"""The README cannot go stale: it is short, its commands and its Python run, and what it names exists."""

import re

import pytest
import torch
from documents import README, blocks, commands
from helpers import WHOLE

from spectra.cli import run

BLOCKS = blocks(README)
PYTHON = [block.text for block in BLOCKS if block.language == "python" and not block.file]
LINES = [line for block in BLOCKS if block.language == "console" for line, _ in commands(block)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The files that the README's commands name: its own, a checkpoint, photographs, a language model and a text."""
    place = tmp_path_factory.mktemp("home")
    for block in BLOCKS:
        if block.file:
            (place / block.file).write_text(block.text)
    network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    torch.save(network.state_dict(), place / "last.pt")
    return place


def make_photos(place):
    from PIL import Image
    from torchvision.models import resnet18

    for kind in "abcde":
        (place / "photos" / kind).mkdir(parents=True)
        for number in range(20):
            Image.effect_noise((32, 32), 5.0 * number).convert("RGB").save(place / f"photos/{kind}/{number}.png")
    torch.save(resnet18(num_classes=10).state_dict(), place / "resnet18.pth")


def make_language_model(place):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    config = transformers.GPT2Config(vocab_size=8, n_positions=256, n_embd=4, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(place / "gpt2")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, "?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(place / "gpt2")
    (place / "corpus.txt").write_text("a b " * 64 * 129)


MAKE = {"torchvision:resnet18": make_photos, "transformers:AutoModelForCausalLM": make_language_model}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[3].partition("?")[0])
def test_commands_run(line, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, make in MAKE.items():
            if name in line[3]:
                if not WHOLE:
                    pytest.skip("seconds of a large network: in scripts/test-all")
                make(home)
        status = run(line[1:])
    assert status in (0, 1), capsys.readouterr().err  # 1: a tolerance was not met, on noise for data
    out = home / line[line.index("--out") + 1]
    assert (out / f"{line[1]}.json").is_file()


@pytest.mark.parametrize("text", PYTHON, ids=lambda text: text.splitlines()[0])
def test_python_runs(text, home, monkeypatch):
    """Alone: each from the same random numbers, and without the names of others."""
    monkeypatch.chdir(home)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(compile(text, "README.md", "exec"), {"__name__": "__main__"})
    for named in re.findall(r"# writes (\S+)", text):
        assert (home / named).is_file()


def test_it_is_short_and_has_the_two_commands():
    text = README.read_text()
    assert len(text.splitlines()) <= 200
    (shell,) = (block.text for block in BLOCKS if block.language == "bash")
    scripts = re.findall(r"^bash (\S+)", shell, re.MULTILINE)
    assert scripts == ["scripts/demo", "scripts/test"]
    assert all((README.parent / script).is_file() for script in scripts)
