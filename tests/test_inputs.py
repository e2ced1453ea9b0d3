"""What a user names becomes an object, or one line that says what to do."""

import argparse
import collections
import contextlib
import io
import os
import pathlib
import pickle
import random
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spectra.errors import SpectraError
from spectra.inputs.checkpoint import load_checkpoint
from spectra.inputs.data import load_data
from spectra.inputs.model import build_model
from spectra.inputs.spec import parse_spec, resolve

NETS = """
import sys
from dataclasses import dataclass
import torch
from torch import nn

TIMES_LOADED = []
TIMES_LOADED.append(1)
FINISHED = nn.Linear(3, 2)
NUMBER = 7

@dataclass
class Config:
    width: int = 4

def build(width=4, bias=True):
    return nn.Sequential(nn.Linear(3, width, bias=bias), nn.Dropout(), nn.Linear(width, 2)).train()

class Net(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

def lazy_neighbour():
    import neighbour_of_nets
    return neighbour_of_nets.build()

def lazy_layer():
    return nn.LazyLinear(2)

def needs(width):
    return nn.Linear(width, 1)

def wrong_type():
    return 3

def broken():
    raise ValueError("the first line\\nthe second line")

def leaves():
    sys.exit(3)
"""

SETS = """
import itertools, random
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

READ = []

class Squares(Dataset):
    def __init__(self, size=20): self.size = size
    def __len__(self): return self.size
    def __getitem__(self, index):
        READ.append(index)
        return torch.full((2,), float(index)), index * index

def squares(size=20):
    READ.clear()
    return Squares(size)

def tensors(x=6, y=6): return torch.arange(float(2 * x)).reshape(x, 2), torch.arange(y)
def arrays(): return [np.arange(6, dtype='>f4').reshape(3, 2), np.array([1, 0, 1], dtype=np.uint8)]
def drawn(): return torch.randn(5, 2), torch.randint(3, (5,))
def with_dict(): return [({'ids': [1, 2, index], 'mask': torch.ones(3)}, 0.5) for index in range(4)]
def with_tuple(): return [((torch.ones(3), index), np.float32(index)) for index in range(4)]
def of_two(): return [(torch.ones(3), 0), (torch.ones(3), 1)]
def flags(): return torch.tensor([[True], [False]]), torch.tensor([True, False])
def halves(): return torch.ones(2, 1, dtype=torch.float16), torch.ones(2, dtype=torch.float64)

def loader(): return DataLoader(Squares(), shuffle=True)
class Stream(IterableDataset):
    def __iter__(self): return iter([])
def stream(): return Stream()
class Endless(Dataset):
    def __getitem__(self, index): return index, index
def endless(): return Endless()
def generator(): return (item for item in [(1, 2)])
def empty(): return []
def ragged(): return [(torch.ones(2, 3), 0), (torch.ones(2, 3), 0), (torch.ones(2, 4), 0)]
class Augmented(Dataset):
    def __init__(self, draw): self.draw = draw
    def __len__(self): return 20
    def __getitem__(self, index): return self.draw(), index
def augmented_torch(): return Augmented(lambda: torch.randn(2))
def augmented_random(): return Augmented(random.random)
def augmented_numpy(): return Augmented(np.random.rand)
def augmented_shape():
    sizes = itertools.cycle([2] * 8 + [3] * 8)
    return Augmented(lambda: torch.ones(next(sizes)))
def alone(): return [torch.ones(3)] * 4
def three(): return [(1, 2, 3)] * 4
def mapping(): return [{'image': 1, 'label': 2}] * 4
class Broken(Squares):
    def __getitem__(self, index):
        if index == 11: raise OSError("disk on fire\\nand more")
        return super().__getitem__(index)
def broken(): return Broken()
def words(): return [("a word", 1)] * 3
def target_pair(): return [(1.0, {'box': torch.ones(2), 'label': 1})] * 3
def object_array(): return np.array([{}, {}]), np.arange(2)
def nan_x():
    x = torch.ones(6, 2); x[4, 1] = float('nan')
    return x, torch.arange(6)
def inf_y(): return [(1.0, float(10.0 ** index)) if index != 3 else (1.0, float('inf')) for index in range(9)]
def scalars(): return torch.tensor(1.0), torch.tensor(2)
"""


@contextlib.contextmanager
def refused(*words):
    """One line that holds all the words."""
    with pytest.raises(SpectraError) as caught:
        yield caught
    message = str(caught.value)
    assert message == " ".join(message.split())
    for word in words:
        assert word in message, message


@contextlib.contextmanager
def nothing_global_changes():
    numpy_state = np.random.get_state
    before = list(sys.path), random.getstate(), numpy_state()[1].tolist(), torch.get_rng_state().tolist()
    yield
    after = list(sys.path), random.getstate(), numpy_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)  # another test file's, run in this process before
    before = set(sys.modules)
    pathlib.Path("nets.py").write_text(NETS)
    pathlib.Path("sets.py").write_text(SETS)
    pathlib.Path("neighbour_of_nets.py").write_text("from torch import nn\ndef build(): return nn.Linear(1, 1)\n")
    pathlib.Path("uses_neighbour.py").write_text("from neighbour_of_nets import build\n")
    yield tmp_path
    for name in set(sys.modules) - before:  # else a module of the same name in the next test's folder is not read
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


# --- names ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("digits", ("digits", {})),
        ("N?a=1&b=2.5&c=1e-3", ("N", {"a": 1, "b": 2.5, "c": 1e-3})),
        ("N?size=3,32,32&p=(3,32)", ("N", {"size": (3, 32, 32), "p": (3, 32)})),
        ("N?a=true&b=FALSE&c=None&d=none", ("N", {"a": True, "b": False, "c": None, "d": None})),
        (
            "N?weights=DEFAULT&root=/a/b.c&e=&q='x'",
            ("N", {"weights": "DEFAULT", "root": "/a/b.c", "e": "", "q": "x"}),
        ),
        ("N?expr=a=b", ("N", {"expr": "a=b"})),
        (r"N?root=C:\data&s='\d'", ("N", {"root": r"C:\data", "s": r"\d"})),
    ],
)
def test_options_are_literals_or_strings(text, expected):
    assert parse_spec(text, "--data") == expected


@pytest.mark.parametrize("text", ["", "?a=1", "N?", "N?a", "N?a=1&", "N?=1", "N?1a=1", "N?a=1&a=2", "N?a b=1"])
def test_malformed_options_are_refused(text):
    with refused("--data", text):
        parse_spec(text, "--data")


def test_a_file_is_loaded_once_and_knows_its_module(here):
    with nothing_global_changes():
        config = resolve("nets.py:Config", "--model")
        assert resolve(f"{here}/nets.py:TIMES_LOADED", "--model") == [1]
    assert pickle.loads(pickle.dumps(config(3))) == config(3)


def test_files_of_one_name_in_two_folders_differ(here):
    for folder, value in (("a", 1), ("b", 2)):
        (here / folder).mkdir()
        (here / folder / "same.py").write_text(f"value = {value}\n")
    assert [resolve(f"{folder}/same.py:value", "--model") for folder in "ab"] == [1, 2]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nest.py:build", ["no such file", "did you mean nets.py"]),
        ("absent/nets.py:build", ["no such file", "file.py:name"]),
        ("nets.py:bulid", ["has no bulid", "did you mean build"]),
        ("nets.py:zzz", ["has no zzz", "there is", "build"]),
        ("nets.py", ["write nets.py:name"]),
        ("nets.py:", ["write nets.py:name"]),
        ("folder.py:build", ["folder"]),
        ("./text:build", ["Python file"]),
        ("syntax.py:build", ["importing", "SyntaxError"]),
        ("raises.py:build", ["importing", "KeyError: 'first'"]),
        ("exits.py:build", ["importing", "SystemExit: 2"]),
        ("missing_inside.py:build", ["importing", "No module named 'absent_package'"]),
        ("missing_inside:build", ["importing", "No module named 'absent_package'"]),
        ("no_such_package.nets:build", ["no module no_such_package"]),
        ("tochvision:resnet18", ["did you mean torchvision:NAME"]),
        ("nets.:build", ["nets."]),
        ("..:build", [".."]),
    ],
)
def test_a_name_that_leads_nowhere(here, spec, words):
    (here / "folder.py").mkdir()
    (here / "text").write_text("hello")
    (here / "syntax.py").write_text("def build(:\n")
    (here / "raises.py").write_text("raise KeyError('first')\n")
    (here / "exits.py").write_text("import sys; sys.exit(2)\n")
    (here / "missing_inside.py").write_text("import absent_package\n")
    with nothing_global_changes(), refused("--model", spec, *words):
        build_model(spec, seed=0)


def test_a_failed_import_keeps_its_cause_and_can_be_mended(here):
    (here / "mended.py").write_text("raise KeyError('first')\n")
    with refused("KeyError") as caught:
        resolve("mended.py:value", "--model")
    assert isinstance(caught.value.__cause__, KeyError)
    (here / "mended.py").write_text("value = 'a longer text than before'\n")
    assert resolve("mended.py:value", "--model").startswith("a longer")


# --- models ---


@pytest.mark.parametrize(
    "spec",
    [
        "nets.py:build",
        "nets.py:build?width=8",
        "nets:build?bias=false",
        "nets.py:Net",
        "torchvision:squeezenet1_1",
    ],
)
def test_a_model_is_built_from_the_seed_in_eval_mode(here, spec):
    torch.rand(3)
    with nothing_global_changes():
        one, same, other = (build_model(spec, seed) for seed in (1, 1, 2))
    assert not any(module.training for module in one.modules())
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_options_reach_the_model(here):
    assert build_model("nets.py:build?width=9&bias=false", 0)[0].weight.shape == (9, 3)
    assert build_model("torchvision:resnet18?num_classes=7", 0).fc.out_features == 7


def test_a_finished_module_is_used_as_it_is(here):
    assert build_model("nets.py:FINISHED", 0) is resolve("nets.py:FINISHED", "--model")


@pytest.mark.parametrize("spec", ["uses_neighbour.py:build", "nets.py:lazy_neighbour", "uses_neighbour:build"])
def test_a_file_finds_its_neighbours_from_anywhere(here, spec, monkeypatch):
    if spec.endswith(".py:build") or spec.startswith("nets"):
        (here / "elsewhere").mkdir()
        monkeypatch.chdir(here / "elsewhere")
        spec = f"../{spec}"
    assert isinstance(build_model(spec, 0), nn.Linear)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("resnet18", ["torchvision:NAME"]),
        ("torchvision:resnet81", ["resnet81", "did you mean", "resnet18"]),
        ("torchvision:resnet18?classes=3", ["building it failed", "classes"]),
        ("torchvision:resnet18?weights=NONSENSE", ["weights=", "--checkpoint"]),
        ("nets.py:NUMBER", ["no callable", "int"]),
        ("nets.py:FINISHED?a=1", ["takes no options"]),
        ("nets.py:build?widht=3", ["widht", "its options are width, bias"]),
        ("nets.py:Net?a=1", ["'a'", "takes no options"]),
        ("nets.py:needs", ["width", "?key=value"]),
        ("nets.py:wrong_type", ["of type int", "torch.nn.Module"]),
        ("nets.py:broken", ["ValueError: the first line"]),
        ("nets.py:leaves", ["SystemExit: 3"]),
        ("nets.py:lazy_layer", ["lazy layers", "one batch"]),
    ],
)
def test_a_model_that_cannot_be(here, spec, words):
    with nothing_global_changes(), refused("--model", spec.partition("?")[0], *words):
        build_model(spec, seed=0)


def test_weights_that_cannot_be_fetched(monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with refused("--model", "OSError: no route", "--checkpoint"):
        build_model("torchvision:squeezenet1_1?weights=DEFAULT", 0)


# --- checkpoints ---


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
        self.head.weight = self.embedding.weight


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(collections.OrderedDict(fc=nn.Linear(3, 4), norm=nn.BatchNorm1d(4)))


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


STATE = network(seed=1).state_dict()
OTHER = {name: value + 1 for name, value in STATE.items()}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
SHARDED_OPTIMIZER = {"state": {"fc": {"exp_avg": torch.ones(2)}}, "param_groups": []}
BESIDE = {
    "epoch": np.int64(3),
    "loss": np.float32(0.5),
    "history": np.arange(4),
    "hyper_parameters": argparse.Namespace(width=4, root=pathlib.Path("/data")),
    "windows": pathlib.PureWindowsPath("C:/data"),
    "counts": collections.defaultdict(list, {"a": [1]}),
    "names": collections.Counter("abc"),
}


def same(model, state=STATE):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (STATE, None),
        (dict(STATE, note="mine"), "refused"),
        ({"state_dict": STATE}, "state_dict"),
        ({"model": STATE, "optimizer": OPTIMIZER, "epoch": 3}, "model"),
        ({"net": STATE, "sgd": OPTIMIZER, "optim": {"a": torch.ones(1)}, "acc": torch.ones(1)}, "net"),
        ({"net": STATE, "loss": torch.ones(1), "accuracy": torch.ones(1), "lr": torch.ones(1)}, "net"),
        ({"net": STATE, "adam": SHARDED_OPTIMIZER}, "net"),
        ({"run": {"last": {"model": STATE}}}, "run.last.model"),
        ({"generator": prefixed("g.", STATE), "classifier": STATE}, "classifier"),
        ({"state_dict": prefixed("module._orig_mod.module.", STATE)}, "state_dict"),
        (prefixed("_orig_mod.", STATE), None),
        ({"state_dict": STATE, **BESIDE}, "state_dict"),
        ({k: v.double() if v.is_floating_point() else v for k, v in STATE.items()}, None),
        ({k: v for k, v in STATE.items() if "num_batches" not in k}, None),  # as torch before 0.4.1 wrote it
    ],
    ids=range(14),
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_found(tmp_path, content, key, zipped):
    path, model = tmp_path / "last.ckpt", network()
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    if key == "refused":
        with refused("--checkpoint", "unexpected note"):
            load_checkpoint(model, path)
        return
    record = load_checkpoint(model, str(path))
    assert record["path"] == str(path)
    assert record["key"] == key
    assert record["tensors"] == len(STATE) - ("norm.num_batches_tracked" not in str(content))
    assert len(record["sha256"]) == 64
    assert same(model)


def test_safetensors(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    model = network()
    assert load_checkpoint(model, tmp_path / "model.safetensors")["key"] is None
    assert same(model)


def test_a_model_that_is_itself_wrapped_keeps_its_names(tmp_path):
    model = nn.DataParallel(network())
    torch.save(prefixed("module.", STATE), tmp_path / "a.pt")
    load_checkpoint(model, tmp_path / "a.pt")
    assert same(model.module)


def test_several_state_dicts_need_a_key(tmp_path):
    path, model = tmp_path / "a.pt", network()
    torch.save({"model": STATE, "ema": {"shadow": OTHER}}, path)
    with refused("--checkpoint ", "model, ema.shadow", "--checkpoint-key"):
        load_checkpoint(model, path)
    assert same(model, network().state_dict())
    load_checkpoint(model, path, "ema.shadow")
    assert same(model, OTHER)
    with refused("--checkpoint-key emma", "model, ema.shadow"):
        load_checkpoint(model, path, "emma")
    torch.save(STATE, path)
    with refused("--checkpoint-key model", "leave --checkpoint-key out"):
        load_checkpoint(model, path, "model")


def test_a_tied_tensor_that_is_stored_once(tmp_path):
    model, weight = Tied(), torch.arange(12.0).reshape(4, 3)
    save_file({"embedding.weight": weight}, tmp_path / "a.safetensors")
    load_checkpoint(model, tmp_path / "a.safetensors")
    assert torch.equal(model.head.weight, weight)
    torch.save({"embedding.weight": weight, "head.weight": weight + 1}, tmp_path / "b.pt")
    with refused("embedding.weight", "head.weight", "one tensor in the model"):
        load_checkpoint(model, tmp_path / "b.pt")
    assert torch.equal(model.head.weight, weight)


def test_a_mask_of_minus_infinity_is_no_defect(tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    load_checkpoint(model, tmp_path / "a.pt")


def changed(**changes):
    return {**STATE, **{name.replace("__", "."): value for name, value in changes.items()}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {("head" + k[2:] if k.startswith("fc") else k): v for k, v in STATE.items()},
            [
                "missing fc.weight (the checkpoint has head.weight)",
                "fc.bias (the checkpoint has head.bias)",
                "--model",
            ],
        ),
        (
            {**STATE, **{f"block.{i}": torch.ones(1) for i in range(17)}},
            ["unexpected block.0", "and 12 more"],
        ),
        (
            changed(fc__weight=torch.ones(4, 2)),
            ["fc.weight is (4, 3) in the model, (4, 2) in the checkpoint"],
        ),
        (changed(fc__weight=3), ["fc.weight", "of type int"]),
        (changed(fc__bias=torch.tensor([0, 0, torch.nan, 0])), ["fc.bias", "not finite"]),
        (changed(norm__running_var=torch.full((4,), torch.inf)), ["norm.running_var", "not finite"]),
        (changed(fc__bias=torch.full((4,), 1e300, dtype=torch.float64)), ["fc.bias", "not finite"]),
        (
            {"epoch": 3, "optimizer": OPTIMIZER},
            ["no state dict", "epoch (int), optimizer (dict)", "torch.save("],
        ),
        ({"adam": SHARDED_OPTIMIZER}, ["no state dict"]),
        ({"optim": {"step": torch.ones(1)}}, ["no state dict"]),
        ({}, ["no state dict", "nothing"]),
        ([1, 2], ["type list", "torch.save("]),
        (torch.ones(3), ["type Tensor", "torch.save("]),
        ({"a\x1b[31m\nb": 1}, ["no state dict"]),
    ],
)
def test_a_mismatch_is_explained_and_nothing_is_loaded(tmp_path, content, words):
    path, model = tmp_path / "a.pt", network()
    torch.save(content, path)
    with refused("--checkpoint", str(path), *words) as caught:
        load_checkpoint(model, path)
    assert str(caught.value).isprintable()
    assert same(model, network().state_dict())


def torchscript(path):
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def cut(path, size, zipped=True):
    whole = io.BytesIO()
    torch.save(STATE, whole, _use_new_zipfile_serialization=zipped)
    path.write_bytes(whole.getvalue()[:size])


CODE = ["could run code", "was not run", 'torch.save(model.state_dict(), "weights.pt")']


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: torch.save({"a": Evil()}, path), [*CODE, "posix.system"]),
        (
            lambda path: torch.save({"a": Evil()}, path, _use_new_zipfile_serialization=False),
            [*CODE, "system"],
        ),
        (lambda path: path.write_bytes(pickle.dumps(Evil())), CODE),
        (lambda path: path.write_bytes(pickle.dumps(Evil(), protocol=0)), CODE),
        (lambda path: path.write_bytes(pickle.dumps(Evil(), protocol=2)), CODE),
        (lambda path: torch.save(nn.Linear(2, 2), path), [*CODE, "torch.nn.modules.linear.Linear"]),
        (lambda path: torch.save({"model": STATE, "f": os.path.join}, path), [*CODE, "posixpath.join"]),
        (lambda path: torch.save({"model": STATE, "f": eval}, path), [*CODE, "eval"]),
        (torchscript, [*CODE, "TorchScript"]),
        (lambda _: None, ["no such file"]),
        (lambda path: path.mkdir(), ["folder"]),
        (lambda path: path.write_bytes(b""), ["empty"]),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), ["text file"]),
        (lambda path: path.write_text('{"a": 1}'), ["text file"]),
        (lambda path: path.write_bytes(bytes(range(256))), ["damaged"]),
        (lambda path: cut(path, 1000), ["cut off"]),
        (lambda path: cut(path, 10), ["cut off"]),
        (lambda path: cut(path, 300, zipped=False), ["cut off"]),
        (lambda path: cut(path, 900, zipped=False), ["cut off"]),
    ],
    ids=range(19),
)
def test_a_file_that_is_no_checkpoint(tmp_path, monkeypatch, write, words):
    monkeypatch.chdir(tmp_path)
    path, model = tmp_path / "a.pt", network()
    write(path)
    with refused("--checkpoint", str(path), *words) as caught:
        load_checkpoint(model, path)
    assert not (tmp_path / "ran").exists()
    assert caught.value.__cause__ is None  # nothing of torch's message, not even in a traceback
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    for advice in ("weights_only", "trust", "add_safe_globals"):
        assert advice not in str(caught.value)
    assert same(model, network().state_dict())


@pytest.mark.parametrize("content", [b"", b"text", bytes(range(256)), "cut"])
def test_a_damaged_safetensors_file(tmp_path, content):
    path = tmp_path / "a.safetensors"
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-5] if content == "cut" else content)
    with refused("--checkpoint", str(path)):
        load_checkpoint(network(), path)


def test_the_evil_pickle_would_run_if_it_were_trusted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Evil(), "a.pt")
    torch.load("a.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_what_stands_beside_the_weights_is_not_rebuilt(tmp_path):
    """A forged dtype, which NumPy would believe, meets a stand-in: nothing of NumPy is called."""

    class Forged:
        def __reduce__(self):
            return np.dtype, ("V8", False, True), (3, "|", None, ("f",), {"f": (np.dtype("O"), 0)}, 8, 1, 0)

    path, model = tmp_path / "a.pt", network()
    torch.save({"model": STATE, "forged": Forged()}, path)
    before = set(torch.serialization.get_safe_globals())
    load_checkpoint(model, path)
    assert same(model)
    assert set(torch.serialization.get_safe_globals()) == before


# --- data ---


def test_digits():
    with nothing_global_changes():
        data = load_data("digits", None, 0)
    assert data.inputs.shape == (1797, 1, 8, 8)
    assert data.inputs.dtype == torch.float32
    assert (data.inputs.min(), data.inputs.max()) == (0, 1)
    assert torch.equal(data.inputs * 16, (data.inputs * 16).round())
    assert data.targets.dtype == torch.int64
    assert data.targets.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert torch.equal(data.indices, torch.arange(1797))
    assert len(data) == 1797


@pytest.mark.parametrize(
    "spec",
    ["digits", "sets.py:squares", "sets:tensors?x=20&y=20", "torchvision:FakeData?size=20&image_size=3,8,8"],
)
def test_samples_are_a_seeded_choice_in_order(here, spec):
    with nothing_global_changes():
        whole, one, again, other = (load_data(spec, n, s) for n, s in ((None, 1), (9, 1), (9, 1), (9, 2)))
    assert len(one) == 9
    assert torch.equal(one.indices, one.indices.unique())
    assert torch.equal(one.inputs, whole.inputs[one.indices])
    assert torch.equal(one.targets, whole.targets[one.indices])
    assert torch.equal(one.indices, again.indices)
    assert torch.equal(one.inputs, again.inputs)
    assert not torch.equal(one.indices, other.indices)
    assert torch.equal(load_data(spec, len(whole), 3).indices, whole.indices)


def test_only_the_chosen_are_read_the_first_of_them_twice(here):
    data = load_data("sets.py:squares", 10, 0)
    chosen = data.indices.tolist()
    assert resolve("sets.py:READ", "--data") == chosen[:8] * 2 + chosen[8:]
    assert data.targets.tolist() == [index**2 for index in chosen]


@pytest.mark.parametrize(
    ("spec", "inputs", "targets"),
    [
        ("sets.py:squares", torch.float32, torch.int64),
        ("sets.py:tensors", torch.float32, torch.int64),
        ("sets.py:arrays", torch.float32, torch.int64),
        ("sets.py:of_two", torch.float32, torch.int64),
        ("sets.py:flags", torch.bool, torch.bool),
        ("sets.py:halves", torch.float16, torch.float64),
        ("a.npz", torch.float64, torch.int64),
        ("ids.npz", torch.int64, torch.float32),
    ],
)
def test_kinds_of_numbers(here, spec, inputs, targets):
    np.savez("a.npz", x=np.ones((4, 2)), y=np.arange(4, dtype=np.uint8))
    np.savez("ids.npz", x=np.ones((4, 2), dtype=np.int32), y=np.ones(4, dtype=np.float32), z=np.ones(3))
    data = load_data(spec, None, 0)
    assert (data.inputs.dtype, data.targets.dtype) == (inputs, targets)
    assert len(data.inputs) == len(data.targets) == len(data.indices) == len(data)


def test_the_values_of_arrays_of_another_byte_order(here):
    assert load_data("sets.py:arrays", None, 0).inputs.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_inputs_may_be_a_dict_or_a_tuple(here):
    data = load_data("sets.py:with_dict", None, 0)
    assert {name: (tuple(x.shape), x.dtype) for name, x in data.inputs.items()} == {
        "ids": ((4, 3), torch.int64),
        "mask": ((4, 3), torch.float32),
    }
    assert data.targets.dtype == torch.float64
    data = load_data("sets.py:with_tuple", 3, 0)
    assert isinstance(data.inputs, tuple)
    assert [tuple(x.shape) for x in data.inputs] == [(3, 3), (3,)]


def test_data_drawn_at_random_are_the_same_in_every_run(here):
    with nothing_global_changes():
        one, two = (load_data("sets.py:drawn", None, 5) for _ in range(2))
    assert torch.equal(one.inputs, two.inputs)


def test_torchvision_images_become_tensors():
    data = load_data("torchvision:FakeData?size=12&image_size=(3,16,16)&num_classes=10", 5, 0)
    assert data.inputs.shape == (5, 3, 16, 16)
    assert data.inputs.dtype == torch.float32
    assert 0 <= data.inputs.min() < data.inputs.max() <= 1
    assert data.targets.dtype == torch.int64


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("digit", ["digits", "file.npz"]),
        ("digits?size=3", ["takes no options"]),
        ("absent.npz", ["no such file"]),
        ("other.npz", ["x and y", "images, labels", "numpy.savez"]),
        ("none.npz", ["nothing", "numpy.savez"]),
        ("uneven.npz", ["(4, 2)", "(3,)", "length"]),
        ("objects.npz", ["numpy.savez"]),
        ("strings.npz", ["numbers"]),
        ("scalar.npz", ["()", "length"]),
        ("text.npz", ["numpy.savez"]),
        ("single.npz", ["numpy.savez"]),
        ("other.npz?x=images", ["takes no options"]),
        ("sets.py:tensors?y=5", ["(6, 2)", "(5,)", "length"]),
        ("sets.py:scalars", ["length"]),
        ("sets.py:nets", ["has no nets"]),
        ("sets.py:squares?sise=3", ["sise", "its options are size"]),
        ("sets.py:loader", ["DataLoader", "data set itself"]),
        ("sets.py:stream", ["IterableDataset", "list of its items"]),
        ("sets.py:endless", ["length", "__len__"]),
        ("sets.py:generator", ["type generator", "two tensors"]),
        ("sets.py:empty", ["empty"]),
        ("sets.py:ragged", ["example 0", "(2, 3)", "example 2", "(2, 4)"]),
        ("sets.py:augmented_torch", ["example 0", "read twice", "augmentation"]),
        ("sets.py:augmented_random", ["example 0", "read twice", "augmentation"]),
        ("sets.py:augmented_numpy", ["example 0", "read twice", "augmentation"]),
        ("sets.py:augmented_shape", ["example 0", "read twice", "augmentation"]),
        ("sets.py:alone", ["example 0 is a Tensor", "pair (x, y)"]),
        ("sets.py:three", ["example 0 is a tuple of length 3", "pair (x, y)"]),
        ("sets.py:mapping", ["example 0 is a dict of image, label", "pair (x, y)"]),
        ("sets.py:broken", ["example 11", "OSError: disk on fire"]),
        ("sets.py:words", ["x holds a str", "numbers"]),
        ("sets.py:target_pair", ["y is a dict", "one tensor or number"]),
        ("sets.py:object_array", ["arrays of numbers"]),
        ("sets.py:nan_x", ["x of example 4 is not finite"]),
        ("sets.py:inf_y", ["y of example 3 is not finite"]),
        ("torchvision:FakData", ["FakData", "did you mean FakeData"]),
        ("torchvision:VisionDataset", ["no data set"]),
        ("torchvision:CIFAR10", ["root", "?key=value"]),
        ("torchvision:CIFAR10?root=absent", ["RuntimeError", "root=", "download=true"]),
        ("torchvision:ImageFolder?root=absent", ["FileNotFoundError", "root="]),
        ("torchvision:FakeData?sice=3", ["sice", "its options are size"]),
        ("torchvision:FakeData?size=2&transform=none", ["PIL", "tensors"]),
    ],
)
def test_data_that_cannot_be(here, spec, words):
    np.savez("other.npz", images=np.ones(3), labels=np.ones(3))
    np.savez("none.npz")
    np.savez("uneven.npz", x=np.ones((4, 2)), y=np.ones(3))
    np.savez("objects.npz", x=np.array([{}, {}]), y=np.ones(2))
    np.savez("strings.npz", x=np.array(["a", "b"]), y=np.ones(2))
    np.savez("scalar.npz", x=np.array(1.0), y=np.array(1.0))
    pathlib.Path("text.npz").write_text("hello")
    with open("single.npz", "wb") as file:
        np.save(file, np.ones(3))
    with nothing_global_changes(), refused("--data", spec.partition("?")[0], *words):
        load_data(spec, None, 0)


@pytest.mark.parametrize("samples", [1798, 0, -1])
def test_samples_out_of_range(samples):
    with refused("--samples", str(samples), "1797"):
        load_data("digits", samples, 0)
