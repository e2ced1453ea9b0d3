"""What a user names becomes an object, or one line that says what to do."""

import contextlib
import gzip
import hashlib
import importlib.util
import os
import pathlib
import pickle
import random
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import datasets, models

from spectra.errors import SpectraError
from spectra.inputs.data import load_data
from spectra.inputs.loss import build_loss
from spectra.inputs.model import build_model
from spectra.inputs.problem import load_problem
from spectra.inputs.spec import parse_spec, resolve
from spectra.inputs.transform import choose_transform
from spectra.inputs.weights import load_model
from spectra.problem.binary import BinaryCrossEntropy
from spectra.problem.losses import MeanSquaredError

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

class Late(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)
    def forward(self, x):
        import late_neighbour
        return super().forward(x)

def compiled():
    return torch.compile(build())

def compiled_in_place():
    model = build()
    model.compile()
    return model

def compiled_in_part():
    model = build()
    model[2] = torch.compile(model[2])
    return model

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
from torch.utils.data import Dataset, IterableDataset, TensorDataset

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
def alone_pairs(): return [(torch.ones(3), 0)] * 4
def three(): return [(1, 2, 3)] * 4
def mapping(): return [{'image': 1, 'class': 2}] * 4
def two_labels(): return [{'x': 1, 'labels': 2, 'label': 2}] * 4
def only_label(): return [{'label': 2}] * 4
def tokens(target='labels', text=None):
    extra = {} if text is None else {'text': text}
    return [{'input_ids': [1, 2, index], target: [2, index, -100], 'attention_mask': [1, 1, 0], **extra}
            for index in range(4)]
def padded(): return [{'ids': [1, 2], 'mask': [1] * (2 + index), 'label': 0} for index in range(2)]
def uneven_keys(): return [{'a': 1, 'b': 2, 'label': 0}, {'a': 1, 'label': 0}]
def classified(): return [{'pixels': torch.ones(2, 2), 'label': index} for index in range(3)]
def images(): return [(np.full((4, 4, 3), index, dtype=np.uint8), index) for index in range(3)]
class Late(Dataset):
    def __len__(self): return 3
    def __getitem__(self, index):
        import late_neighbour
        return torch.ones(1), index
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

LOSSES = """
import functools
import torch
import torch.nn.functional as F
from torch import nn

NUMBER = 3

def plain(output, target): return F.cross_entropy(output, target)
def powered(output, target, power=2.0, *, scale=1.0): return scale * (output - target).abs() ** power
def needs(output, target, gamma): return gamma * (output - target) ** 2
def reduced(output, target, reduction="mean"): return F.mse_loss(output, target, reduction=reduction)
def late(output, target):
    import late_neighbour
    return (output - target) ** 2
def make(): return plain
def make_with(power=2.0): return functools.partial(powered, power=power)
def alone(output): return output.sum()

class Focal(nn.Module):
    def __init__(self, gamma=2.0):
        super().__init__()
        self.gamma = gamma
        self.register_buffer("one", torch.ones(()))
    def forward(self, output, target):
        loss = F.cross_entropy(output, target, reduction="none")
        return (self.one - (-loss).exp()) ** self.gamma * loss

FOCAL = Focal()

class Drawing(nn.L1Loss):
    def __init__(self):
        super().__init__()
        torch.rand(3)

class Callable:
    def __init__(self, scale): self.scale = scale
    def __call__(self, output, target): return self.scale * (output - target) ** 2
"""

VIEWS = """
import numpy as np
import torch
from torch import nn
from torchvision.transforms import v2

def double(x): return 2 * x
def scaled(x, by, shift=0.0): return by * x + shift
def first(x): return x['pixels']
def pixels(image): return torch.tensor(np.asarray(image).reshape(-1, 3), dtype=torch.float64) / 255
def same(x): return x
def noisy(x): return x + torch.rand(())
def fails(x): raise ValueError('no such\\nview')
def words(x): return 'a word'
def build(size=32): return v2.Resize(size)
def build_any(split='train'): return v2.Resize(3)
def build_alone(): return v2.Resize(3)
def of_two(x, y): return x
NUMBER = 3
compose = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Resize((3, 5))])
layer = nn.Linear(3, 2)
class View:
    def __call__(self, x): return x
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
    """Generators stay where they are, and `sys.path` begins as before."""

    def state():
        numpy_state = np.random.get_state()  # noqa: NPY002
        return random.getstate(), numpy_state[1].tolist(), torch.get_rng_state().tolist()

    before, path = state(), list(sys.path)
    yield
    assert state() == before
    assert sys.path[: len(path)] == path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "nets", raising=False)  # another test file's, run in this process before
    before = set(sys.modules)
    pathlib.Path("nets.py").write_text(NETS)
    pathlib.Path("sets.py").write_text(SETS)
    pathlib.Path("losses.py").write_text(LOSSES)
    pathlib.Path("views.py").write_text(VIEWS)
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
    assert parse_spec(text, "`data`") == expected


@pytest.mark.parametrize("text", ["", "?a=1", "N?", "N?a", "N?a=1&", "N?=1", "N?1a=1", "N?a=1&a=2", "N?a b=1"])
def test_malformed_options_are_refused(text):
    with refused("`data`", text):
        parse_spec(text, "`data`")


@pytest.mark.parametrize(
    ("option", "came", "told"),
    [
        ("model", 3, "`model`: expected a name (a string), got int"),
        ("data", None, "got None"),
        ("loss", None, "got None"),
        ("data", 3, "`data`: expected a DataLoader, batches (x, y), tensors (x, y), or a name, got int"),
        ("data", torch.ones(3), "`data`: batch 0 of Tensor is a Tensor"),
        ("data", {"x": 1}, "`data`: expected a DataLoader, batches (x, y), tensors (x, y), or a name, got dict"),
        ("loss", 3, "`loss`: expected a loss or a function (output, target), got int"),
        ("loss", nn.CrossEntropyLoss, "`loss`: CrossEntropyLoss is not a loss; call it first"),
        ("dtype", "float16", "`dtype` float16: it is not supported; choose from float32, float64"),
        ("device", "nowhere", "`device` nowhere: is not available"),
    ],
)
def test_objects_that_are_neither_names_nor_what_they_stand_for(option, came, told):
    names = {"model": "spectra.demo:mlp", "data": "digits", option: came}
    with refused(told):
        load_problem(**names)


def test_a_file_is_loaded_once_and_knows_its_module(here):
    with nothing_global_changes():
        config = resolve("nets.py:Config", "`model`")
        assert resolve(f"{here}/nets.py:TIMES_LOADED", "`model`") == [1]
    assert pickle.loads(pickle.dumps(config(3))) == config(3)


def test_files_of_one_name_in_two_folders_differ(here):
    for folder, value in (("a", 1), ("b", 2)):
        (here / folder).mkdir()
        (here / folder / "same.py").write_text(f"value = {value}\n")
    assert [resolve(f"{folder}/same.py:value", "`model`") for folder in "ab"] == [1, 2]


def test_data_with_a_name_that_is_too_long_for_a_file():
    with refused("it is not known data; write digits"):
        load_data(5000 * "a", None, 0)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nest.py:build", ["no such file", "did you mean nets.py"]),
        ("absent/nets.py:build", ["no such file", "file.py:name"]),
        ("nets.py:bulid", ["has no bulid", "did you mean build"]),
        ("nets.py:zzz", ["has no zzz", "choose from", "build"]),
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
    with nothing_global_changes(), refused("`model`", spec, *words):
        build_model(spec, seed=0)


def test_a_failed_import_keeps_its_cause_and_can_be_mended(here):
    (here / "mended.py").write_text("raise KeyError('first')\n")
    with refused("KeyError") as caught:
        resolve("mended.py:value", "`model`")
    assert isinstance(caught.value.__cause__, KeyError)
    (here / "mended.py").write_text("value = 'a longer text than before'\n")
    assert resolve("mended.py:value", "`model`").startswith("a longer")


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
        one, same, other = (load_model(spec, seed=seed)[0] for seed in (1, 1, 2))
    assert not any(module.training for module in one.modules())
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_options_reach_the_model(here):
    assert build_model("nets.py:build?width=9&bias=false", 0)[0].weight.shape == (9, 3)
    assert build_model("torchvision:resnet18?num_classes=7", 0).fc.out_features == 7


def test_a_finished_module_is_used_as_it_is(here):
    assert build_model("nets.py:FINISHED", 0) is resolve("nets.py:FINISHED", "`model`")


@pytest.mark.parametrize("spec", ["nets.py:compiled", "nets.py:compiled_in_place", "nets.py:compiled_in_part"])
def test_a_compiled_model_is_taken_as_it_was(here, spec):
    plain, model = build_model("nets.py:build", 0), build_model(spec, 0)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert not any(module._compiled_call_impl for module in model.modules())


@pytest.mark.parametrize("spec", ["uses_neighbour.py:build", "nets.py:lazy_neighbour", "uses_neighbour:build"])
def test_a_file_finds_its_neighbours_from_anywhere(here, spec, monkeypatch):
    if spec.endswith(".py:build") or spec.startswith("nets"):
        (here / "elsewhere").mkdir()
        monkeypatch.chdir(here / "elsewhere")
        spec = f"../{spec}"
    assert isinstance(build_model(spec, 0), nn.Linear)


def test_code_may_import_its_neighbours_late(here, monkeypatch):
    (here / "late_neighbour.py").write_text("")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    for use in (
        lambda: build_model("../nets.py:Late", 0)(torch.ones(2, 1)),
        lambda: load_data("../sets.py:Late", None, 0),
        lambda: build_loss("../losses.py:late").function(torch.ones(2), torch.ones(2)),
    ):
        monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(here)])
        monkeypatch.delitem(sys.modules, "late_neighbour", raising=False)
        use()


def test_what_the_user_adds_to_the_path_stays_at_its_end_where_all_goes_well(here):
    (here / "added.py").write_text("import sys\nsys.path.insert(0, '/added/by/user')\nvalue = 1\n")
    (here / "colorsys.py").write_text("")  # of a name in the standard library
    before = list(sys.path)
    with refused("has no valeu"):
        resolve("added.py:valeu", "`model`")
    assert sys.path == before
    del sys.modules[next(name for name in sys.modules if name.startswith("spectra_user_added"))]
    for _ in range(2):
        resolve("added.py:value", "`model`")
        assert sys.path == [*before, "/added/by/user", str(here)]
    assert not importlib.util.find_spec("colorsys").origin.startswith(str(here))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("resnet18", ["did you mean torchvision:resnet18?"]),
        ("resnet_18", ["not a known model", "torchvision:NAME", "file.py:callable"]),
        ("torchvision:resnet81", ["resnet81", "did you mean", "resnet18"]),
        ("torchvision:resnet18?classes=3", ["building it failed", "classes"]),
        ("torchvision:resnet18?weights=IMAGENET1K_V3", ["IMAGENET1K_V3", "did you mean IMAGENET1K_V1"]),
        ("torchvision:resnet18?weights=ResNet50_Weights.DEFAULT", ["no weights 'ResNet50", "DEFAULT"]),
        ("nets.py:NUMBER", ["expected a callable", "got int"]),
        ("nets.py:FINISHED?a=1", ["takes no options"]),
        ("nets.py:build?widht=3", ["widht", "its options are width, bias"]),
        ("nets.py:Net?a=1", ["'a'", "takes no options"]),
        ("nets.py:needs", ["width", "?key=value"]),
        ("nets.py:wrong_type", ["of type int", "torch.nn.Module"]),
        ("nets.py:broken", ["ValueError: the first line"]),
        ("nets.py:leaves", ["SystemExit: 3"]),
        ("nets.py:lazy_layer", ["lazy layers", "one batch"]),
        ("torchvision:resnet18?pretrained=true", ["weights=DEFAULT"]),
        ("torchvision:resnet18?weights=true", ["no weights True", "DEFAULT", "IMAGENET1K_V1"]),
    ],
)
def test_a_model_that_cannot_be(here, spec, words):
    with nothing_global_changes(), refused("`model`", spec.partition("?")[0], *words):
        build_model(spec, seed=0)


def test_weights_that_cannot_be_fetched(monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with refused("`model`", "OSError: no route", "weights=", "`checkpoint`"):
        build_model("torchvision:squeezenet1_1?weights=DEFAULT", 0)
    with refused("`model`", "OSError: no route", "weights_backbone=none"):
        build_model("torchvision:lraspp_mobilenet_v3_large", 0)


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
    assert resolve("sets.py:READ", "`data`") == chosen[:8] * 2 + chosen[8:]
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
        ("brain.safetensors", torch.bfloat16, torch.int64),
        ("half.safetensors", torch.float16, torch.float32),
        ("eight.safetensors", torch.float8_e4m3fn, torch.bool),
    ],
)
def test_kinds_of_numbers(here, spec, inputs, targets):
    np.savez("a.npz", x=np.ones((4, 2)), y=np.arange(4, dtype=np.uint8))
    np.savez("ids.npz", x=np.ones((4, 2), dtype=np.int32), y=np.ones(4, dtype=np.float32), z=np.array([{}]))
    x = torch.ones(4, 2)
    save_file({"x": x.bfloat16(), "y": torch.arange(4, dtype=torch.int32)}, "brain.safetensors", {"made": "here"})
    save_file({"x": x.half(), "y": torch.ones(4), "z": torch.ones(3)}, "half.safetensors")
    save_file({"x": x.to(torch.float8_e4m3fn), "y": torch.ones(4, dtype=torch.bool)}, "eight.safetensors")
    data = load_data(spec, None, 0)
    assert data.transform is None
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


@pytest.mark.parametrize("target", ["labels", "label"])
def test_an_item_may_be_a_mapping_with_its_labels(here, target):
    data = load_data(f"sets.py:tokens?target={target}", None, 0)
    assert list(data.inputs) == ["input_ids", "attention_mask"]
    assert data.inputs["input_ids"].tolist() == [[1, 2, index] for index in range(4)]
    assert data.targets.tolist() == [[2, index, -100] for index in range(4)]


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
        ("./absent", ["it is not known data; there is no absent in /", "digits"]),
        ("./absent/digits", ["there is no absent in /"]),
        (os.devnull, [f"{os.devnull}: it is not known data; write digits"]),
        ("digits?size=3", ["takes no options"]),
        ("absent.npz", ["no such file"]),
        ("other.npz", ["x and y", "images, classes", "numpy.savez"]),
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
        ("sets.py:stream", ["IterableDataset", "list of its items"]),
        ("sets.py:endless", ["length", "__len__"]),
        ("sets.py:generator", ["batch 0", "holds no tensor", "list of the examples"]),
        ("sets.py:empty", ["empty"]),
        ("sets.py:ragged", ["example 0 has x of shape (2, 3), but example 2 has x of shape (2, 4);", "`transform`"]),
        ("sets.py:augmented_torch", ["example 0", "is read again", "augmentation"]),
        ("sets.py:augmented_random", ["example 0", "is read again", "augmentation"]),
        ("sets.py:augmented_numpy", ["example 0", "is read again", "augmentation"]),
        ("sets.py:augmented_shape", ["example 0", "is read again", "augmentation"]),
        ("sets.py:alone", ["example 0 is a Tensor", "pair (x, y)"]),
        ("sets.py:three", ["example 0 is a tuple of length 3", "pair (x, y)"]),
        ("sets.py:mapping", ["example 0 is a dict of image, class", "pair (x, y)", "labels or label"]),
        ("sets.py:two_labels", ["example 0 is a dict of x, labels, label"]),
        ("sets.py:only_label", ["example 0 is a dict of label", "pair (x, y)"]),
        (
            "sets.py:padded",
            ["example 0 has x['mask'] of shape (2,), but example 1 has x['mask'] of shape (3,);", "pad"],
        ),
        ("sets.py:uneven_keys", ["example 0 has x['b'] of shape (), but example 1 has nothing more;"]),
        ("sets.py:tokens?text=hello", ["x['text'] holds a str", "leave it out"]),
        ("sets.py:broken", ["example 11", "OSError: disk on fire"]),
        ("sets.py:words", ["x holds a str", "numbers"]),
        ("sets.py:target_pair", ["y is a dict", "one tensor or number"]),
        ("sets.py:object_array", ["arrays of numbers"]),
        ("sets.py:nan_x", ["x of example 4 is not finite", "correct it"]),
        ("sets.py:inf_y", ["y of example 3 is not finite"]),
        ("torchvision:FakData", ["FakData", "did you mean FakeData"]),
        ("torchvision:VisionDataset", ["no data set"]),
        ("torchvision:CIFAR10", ["root", "?key=value"]),
        ("torchvision:CIFAR10?root=absent", ["RuntimeError", "root=", "download=true"]),
        ("torchvision:ImageFolder?root=absent", ["FileNotFoundError", "for each class"]),
        ("torchvision:FakeData?sice=3", ["sice", "its options are size"]),
        ("torchvision:FakeData?size=2&transform=none", ["transform cannot be given here", "`transform` file.py:name"]),
        ("torchvision:FakeData?target_transform=int", ["target_transform cannot be given here"]),
        ("absent.safetensors", ["no such file"]),
        ("other.safetensors", ["x and y", "holds labels", "save_file"]),
        ("other.safetensors?x=images", ["takes no options"]),
        ("uneven.safetensors", ["(4, 2)", "(3,)", "length"]),
        ("text.safetensors", ["damaged, or not a .safetensors file", "save_file"]),
        ("cut.safetensors", ["damaged", "save_file"]),
        ("nan.safetensors", ["x of example 1 is not finite"]),
    ],
)
def test_data_that_cannot_be(here, spec, words):
    np.savez("other.npz", images=np.ones(3), classes=np.ones(3))
    np.savez("none.npz")
    np.savez("uneven.npz", x=np.ones((4, 2)), y=np.ones(3))
    np.savez("objects.npz", x=np.array([{}, {}]), y=np.ones(2))
    np.savez("strings.npz", x=np.array(["a", "b"]), y=np.ones(2))
    np.savez("scalar.npz", x=np.array(1.0), y=np.array(1.0))
    save_file({"labels": torch.ones(3)}, "other.safetensors")
    save_file({"x": torch.ones(4, 2), "y": torch.ones(3)}, "uneven.safetensors")
    save_file({"x": torch.tensor([1, float("nan")]).bfloat16(), "y": torch.ones(2)}, "nan.safetensors")
    pathlib.Path("cut.safetensors").write_bytes(pathlib.Path("uneven.safetensors").read_bytes()[:-8])
    pathlib.Path("text.safetensors").write_text("hello")
    pathlib.Path("text.npz").write_text("hello")
    with open("single.npz", "wb") as file:
        np.save(file, np.ones(3))
    with nothing_global_changes(), refused("`data`", spec.partition("?")[0], *words):
        load_data(spec, None, 0)


@pytest.mark.parametrize("samples", [1798, 0, -1])
def test_samples_out_of_range(samples):
    with refused("`samples`", str(samples), "1797"):
        load_data("digits", samples, 0)


# --- image sets ---


def drawn_images(*shape):
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_mnist_files(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = drawn_images(6, 28, 28), np.arange(6, dtype=np.uint8)
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            sizes = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4").tobytes()
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(sizes + array.tobytes()))
    spec = f"torchvision:MNIST?root={tmp_path}"
    with refused("`data`", "Dataset not found", "root=", "download=true"):
        load_data(spec, None, 0)
    sums = [(name, md5(raw / name)) for name, _ in datasets.MNIST.resources]
    monkeypatch.setattr(datasets.MNIST, "resources", sums)
    for options in ("&download=true", "", "&train=false"):  # the first unpacks what is there
        data = load_data(spec + options, None, 0)
        assert data.inputs.dtype == torch.float32
        assert torch.equal(data.inputs, torch.tensor(images)[:, None] / 255)
        assert data.targets.tolist() == labels.tolist()
        assert data.transform == "to tensor"


def test_cifar_batches(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images, labels = drawn_images(4, 3, 32, 32), [3, 1, 4, 1]
    (folder / "test_batch").write_bytes(pickle.dumps({"data": images.reshape(4, -1), "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    spec = f"torchvision:CIFAR10?root={tmp_path}&train=false"
    with refused("`data`", "not found or corrupted", "root="):
        load_data(spec, None, 0)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": md5(folder / "batches.meta")})
    data = load_data(spec, None, 0)
    assert torch.equal(data.inputs, torch.tensor(images) / 255)
    assert data.targets.tolist() == labels


def write_images(folder, sizes):
    """{class: sizes of its images} as PNG files; the images, in the order in which they are found."""
    images = []
    for name in sorted(sizes):
        (folder / name).mkdir(parents=True)
        for number, (height, width) in enumerate(sizes[name]):
            images.append(drawn_images(height, width, 3))
            Image.fromarray(images[-1]).save(folder / name / f"{number}.png")
    return images


@pytest.mark.parametrize("spec", ["pets", "./pets/", "torchvision:ImageFolder?root=pets"])
def test_a_folder_of_images_for_each_class(here, spec):
    images = write_images(here / "pets", {"cats": [(4, 5)] * 2, "dogs": [(4, 5)]})
    data = load_data(spec, None, 0)
    assert torch.equal(data.inputs, torch.stack([torch.tensor(image).movedim(-1, 0) / 255 for image in images]))
    assert data.targets.tolist() == [0, 0, 1]
    assert data.transform == "to tensor"


def test_a_folder_named_digits_does_not_hide_the_digits(here):
    write_images(here / "digits", {"a": [(2, 2)]})
    data = load_data("digits", None, 0)
    assert (len(data), data.transform) == (1797, None)


@pytest.mark.parametrize(
    ("sizes", "spec", "words"),
    [
        (
            {"a": [(4, 4)] * 2, "b": [(4, 5)]},
            "pets",
            ["example 0", "(3, 4, 4)", "example 2", "the same shape", "`transform`"],
        ),
        (
            {"train": [(2, 2)], "val": [(2, 2)]},
            "pets",
            ["train, val", "not classes", "folder of images for each class"],
        ),
        ({"a": []}, "pets", ["FileNotFoundError", "folder of images for each class"]),
        ({"a": [(2, 2)]}, "pets/a", ["FileNotFoundError", "folder of images for each class"]),
        ({"a": [(2, 2)]}, "pets?size=3", ["size", "its options are root"]),
        ({"a": [(2, 2)]}, "torchvision:ImageFolder?root=pets/a", ["FileNotFoundError", "for each class"]),
    ],
)
def test_a_folder_that_is_no_data_set(here, sizes, spec, words):
    write_images(here / "pets", sizes)
    with nothing_global_changes(), refused("`data`", spec.partition("?")[0], *words):
        load_data(spec, None, 0)


def test_a_damaged_image(here):
    write_images(here / "pets", {"a": [(9, 9)] * 2})
    (here / "pets" / "a" / "1.png").write_bytes(b"text")
    with refused("`data` pets", "reading example 1 failed", "UnidentifiedImageError"):
        load_data("pets", None, 0)


# --- transforms ---


def transformed(data, transform, model="nets.py:build"):
    return load_data(data, None, 0, choose_transform(transform, model))


@pytest.mark.parametrize(
    ("data", "transform", "expected"),
    [
        ("sets.py:tensors", "views.py:double", lambda x: 2 * x),
        ("sets.py:squares", "views:double", lambda x: 2 * x),
        ("sets.py:of_two", "views.py:scaled?by=3&shift=1", lambda x: 3 * x + 1),
        ("a.npz", "views.py:double", lambda x: 2 * x),
        ("a.safetensors", "views.py:double", lambda x: 2 * x),
        ("digits", "views.py:scaled?by=-1", lambda x: -x),
        ("sets.py:classified", "views.py:first", lambda x: x["pixels"]),
    ],
)
def test_a_transform_acts_on_every_x(here, data, transform, expected):
    np.savez("a.npz", x=np.arange(4.0), y=np.arange(4))
    save_file({"x": torch.arange(4.0), "y": torch.arange(4)}, "a.safetensors")
    plain, done = load_data(data, None, 0), transformed(data, transform)
    assert (plain.transform, done.transform) == (None, transform)
    assert torch.equal(done.inputs, expected(plain.inputs))
    assert torch.equal(done.targets, plain.targets)
    assert torch.equal(done.indices, plain.indices)


def test_kinds_of_transforms(here):
    assert transformed("sets.py:images", "views.py:compose").inputs.shape == (3, 3, 3, 5)
    layer = resolve("views.py:layer", "`transform`")
    done = transformed("sets.py:alone_pairs", "views.py:layer").inputs
    expected = torch.stack([layer(torch.ones(3)) for _ in range(4)])  # together they are rounded otherwise
    assert torch.equal(done, expected)
    assert not done.requires_grad


def test_a_typed_transform_replaces_the_default_one(here):
    images = write_images(here / "pets", {"a": [(2, 3)], "b": [(2, 3)]})
    data = transformed("pets", "views.py:pixels", "torchvision:shufflenet_v2_x0_5?weights=DEFAULT")
    assert torch.equal(data.inputs, torch.stack([torch.tensor(image).reshape(6, 3).double() / 255 for image in images]))
    resized = transformed("torchvision:FakeData?size=2&image_size=3,8,8", "views.py:compose")
    assert resized.inputs.shape == (2, 3, 3, 5)


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1", "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"])
def test_images_go_through_the_transform_of_the_weights(here, monkeypatch, weights):
    known = models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    state = models.shufflenet_v2_x0_5().state_dict()
    monkeypatch.setenv("TORCH_HOME", str(here))
    (here / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, here / "hub" / "checkpoints" / known.url.rpartition("/")[2])
    spec = f"torchvision:shufflenet_v2_x0_5?weights={weights}"
    assert torch.equal(build_model(spec, 0).fc.weight, state["fc.weight"])
    write_images(here / "pets", {"a": [(40, 60)], "b": [(70, 50)]})
    data = transformed("pets", None, spec)
    images = [image for image, _ in datasets.ImageFolder("pets")]
    assert torch.equal(data.inputs, torch.stack([known.transforms()(image) for image in images]))
    assert data.inputs.shape == (2, 3, 224, 224)
    assert data.transform == "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"
    assert transformed("sets.py:tensors", None, spec).transform is None
    assert transformed("digits", None, spec).inputs.shape == (1797, 1, 8, 8)


@pytest.mark.parametrize(
    "model", ["nets.py:build", "torchvision:resnet18", "torchvision:resnet18?weights=none", "spectra.demo:mlp"]
)
def test_images_become_tensors_where_no_weights_say_how(model):
    assert transformed("torchvision:FakeData?size=2&image_size=3,8,8", None, model).transform == "to tensor"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("views.py:doubel", ["has no doubel", "did you mean double"]),
        ("views.py", ["write views.py:name"]),
        ("absent.py:view", ["no such file"]),
        ("double", ["file.py"]),
        ("views.py:NUMBER", ["got int", "takes x"]),
        ("views.py:View", ["it is a class", "transform = NAME(...)"]),
        ("torchvision.transforms:ToTensor", ["it is a class"]),
        ("views.py:build_alone", ["does not take (x)", "name a function"]),
        ("views.py:of_two", ["missing a required argument: 'y'"]),
        ("views.py:scaled", ["missing a required argument: 'by'", "its options are by, shift"]),
        ("views.py:scaled?bi=2", ["'by'", "its options are by, shift"]),
        ("views.py:double?by=2", ["'by'", "takes no options"]),
        ("views.py:compose?size=2", ["'size'", "takes no options"]),
        ("views.py:build", ["failed on example 0 with ValueError", "transform = NAME(...)"]),
        ("views.py:build_any", ["returned a Resize for example 0", "transform = NAME(...)"]),
        ("views.py:fails", ["failed on example 0 with ValueError: no such", "called with x only"]),
    ],
)
def test_a_transform_that_cannot_be(here, spec, words):
    with nothing_global_changes(), refused(f"`transform` {spec.partition('?')[0]}", *words):
        transformed("sets.py:squares", spec)


@pytest.mark.parametrize(
    ("data", "transform", "words"),
    [
        ("sets.py:squares", "views.py:noisy", ["is read again", "`transform` views.py:noisy"]),
        ("digits", "views.py:noisy", ["is read again", "`transform` views.py:noisy"]),
        ("sets.py:squares", "views.py:words", ["x holds a str", "also from `transform` views.py:words"]),
        ("torchvision:FakeData?size=2", "views.py:same", ["Image", "tensors", "`transform`"]),
        ("sets.py:ragged", "views.py:double", ["(2, 3)", "(2, 4)", "`transform`"]),
    ],
)
def test_data_that_a_transform_leaves_unfit(here, data, transform, words):
    with nothing_global_changes(), refused(f"`data` {data.partition('?')[0]}", *words):
        transformed(data, transform)


def test_a_default_transform_that_does_not_fit_the_images():
    with refused("`transform` ResNet18_Weights.IMAGENET1K_V1", "example 0", "default", "name your own as file.py:name"):
        transformed("torchvision:FakeData?size=2&image_size=1,8,8", None, "torchvision:resnet18?weights=DEFAULT")


# --- losses ---


X, LABELS = torch.linspace(-2, 3, 12, dtype=torch.float64).reshape(4, 3), torch.tensor([0, 2, 1, 2])


@pytest.mark.parametrize(
    ("spec", "targets", "expected"),
    [
        ("losses.py:plain", LABELS, F.cross_entropy(X, LABELS)),
        ("losses.py:powered", X.cos(), (X - X.cos()) ** 2),
        ("losses.py:powered?power=4&scale=3", X.cos(), 3 * (X - X.cos()) ** 4),
        ("losses:needs?gamma=2", X.cos(), 2 * (X - X.cos()) ** 2),
        ("losses.py:reduced?reduction=none", X.cos(), (X - X.cos()) ** 2),
        ("losses.py:reduced?reduction=mean", X.cos(), F.mse_loss(X, X.cos())),
        (
            "losses.py:Focal",
            LABELS,
            (1 - X.softmax(1)[range(4), LABELS]) ** 2 * F.cross_entropy(X, LABELS, reduction="none"),
        ),
        ("losses.py:Focal?gamma=0", LABELS, F.cross_entropy(X, LABELS, reduction="none")),
        ("losses.py:Callable?scale=5", X.cos(), 5 * (X - X.cos()) ** 2),
        ("losses.py:Drawing", X.cos(), F.l1_loss(X, X.cos())),
        ("torch.nn:HingeEmbeddingLoss?margin=0.5", X.cos().sign(), F.hinge_embedding_loss(X, X.cos().sign(), 0.5)),
        ("torch.nn.functional:hinge_embedding_loss", X.cos().sign(), F.hinge_embedding_loss(X, X.cos().sign())),
    ],
)
def test_a_loss_of_ones_own(here, spec, targets, expected):
    with nothing_global_changes():
        loss = build_loss(spec)
    assert loss.name == spec.partition("?")[0]
    torch.testing.assert_close(loss.function(X, targets), expected, rtol=1e-12, atol=1e-15)


def test_a_loss_that_is_a_module_is_used_as_it_is_or_moved(here):
    given = resolve("losses.py:FOCAL", "`loss`")
    assert build_loss("losses.py:FOCAL").function is given
    assert given.one.dtype == torch.float32
    moved = build_loss("losses.py:FOCAL", torch.device("cpu"), torch.float64)
    assert moved.function.one.dtype == torch.float64
    expected = (1 - X.softmax(1)[range(4), LABELS]) ** 2 * F.cross_entropy(X, LABELS, reduction="none")
    torch.testing.assert_close(moved.function(X, LABELS), expected, rtol=1e-12, atol=0)


def test_options_of_the_named_losses():
    loss = build_loss("cross_entropy?class_dim=-1&weight=1,2,3&ignore_index=7&label_smoothing=0.25")
    assert (loss.class_dim, loss.ignore_index, loss.label_smoothing) == (-1, 7, 0.25)
    assert loss.class_weights.tolist() == [1, 2, 3]
    assert build_loss("cross_entropy?class_dim=1").class_dim == 1
    assert build_loss("cross_entropy").class_dim is None
    assert (build_loss("mse"), build_loss("bce_with_logits")) == (MeanSquaredError(), BinaryCrossEntropy())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("crossentropy", ["did you mean cross_entropy", "file.py:name"]),
        ("losses.py", ["write losses.py:name"]),
        ("losses.py:NUMBER", ["got int", "(output, target)"]),
        ("losses.py:powered?pover=3", ["'pover'", "its options are power, scale"]),
        ("losses.py:plain?gamma=3", ["'gamma'", "takes no options"]),
        ("losses.py:powered?output=3", ["output", "its options are power, scale"]),
        ("losses.py:needs", ["missing a required argument: 'gamma'", "its options are gamma"]),
        ("losses.py:make", ["does not take (output, target)", "name a function"]),
        ("losses.py:make_with", ["does not take (output, target)", "name a function"]),
        ("losses.py:Focal?gama=3", ["'gama'", "its options are gamma"]),
        ("losses.py:Callable", ["'scale'", "its options are scale"]),
        ("losses.py:FOCAL?weight=3", ["'weight'", "takes no options"]),
        ("cross_entropy?reduction=total", ["reduction is 'total'", "mean, sum"]),
        ("mse?reduction=batchmean", ["reduction is 'batchmean'", "mean, sum"]),
        ("bce_with_logits?pos_weight=-3", ["pos_weight is -3", ">= 0"]),
        ("bce_with_logits?weight=a", ["weight is 'a'", ">= 0"]),
        ("mse?beta=3", ["no option beta", "choose from reduction"]),
        ("huber?delta=0", ["delta is 0", "above 0"]),
        ("smooth_l1?beta=true", ["beta is True", "above 0"]),
        ("poisson_nll?log_input=1", ["log_input is 1", "true or false"]),
        ("nll?label_smoothing=0.1", ["no option label_smoothing", "choose from class_dim, ignore_index"]),
        ("kl_div?weight=1,2", ["no option weight", "log_target"]),
        ("cross_entropy?smoothing=0.1", ["no option smoothing", "label_smoothing"]),
        ("cross_entropy?class_dim=2", ["class_dim is 2", "-1"]),
        ("cross_entropy?class_dim=true", ["class_dim is True"]),
        ("cross_entropy?label_smoothing=2", ["label_smoothing is 2"]),
        ("cross_entropy?ignore_index=0.5", ["ignore_index is 0.5"]),
        ("cross_entropy?ignore_index=9223372036854775808", ["ignore_index is 9223372036854775808"]),
        ("cross_entropy?weight=1,-2", ["weight is (1, -2)"]),
        ("cross_entropy?weight=1,1e999", ["weight is (1, inf)"]),
    ],
)
def test_a_loss_that_cannot_be(here, spec, words):
    with nothing_global_changes(), refused(f"`loss` {spec.partition('?')[0]}", *words):
        build_loss(spec)


ROTATING = """
import torch
from torch import nn

class Rotating(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("turn", torch.tensor([1j, 0.5 + 0.5j], dtype=torch.complex64))

    def forward(self, x):
        pairs = torch.view_as_complex(x.reshape(-1, 2, 2)) * self.turn
        return super().forward(torch.view_as_real(pairs).reshape(-1, 4))
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_complex_buffers_keep_both_parts(tmp_path, monkeypatch, dtype):
    """As those of rotary embeddings."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("rotating.py").write_text(ROTATING)
    np.savez("points.npz", x=np.eye(4), y=np.arange(4) % 3)
    model = load_problem(model="rotating.py:Rotating", data="points.npz", dtype=dtype).problem.model
    kind = {"float32": torch.complex64, "float64": torch.complex128}[dtype]
    torch.testing.assert_close(model.turn.cpu(), torch.tensor([1j, 0.5 + 0.5j], dtype=kind))


# --- the record ---


LANGUAGE = """
import torch
from torch import nn

class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.embedding(input_ids) * self.scale)

IDS = torch.tensor([[1, 2, 3, 4], [4, 4, 2, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
IGNORED = IDS.masked_fill(MASK == 0, -100)
SHIFTED = torch.cat([IDS[:, 1:], torch.full((2, 1), -100)], dim=1)
def of_tensors(): return IDS, IDS
def of_shifted(): return IDS, SHIFTED
def of_mappings(): return [dict(input_ids=i, attention_mask=m, labels=y) for i, m, y in zip(IDS, MASK, IGNORED)]
def of_shifted_mappings(): return [dict(input_ids=i, attention_mask=m, labels=y) for i, m, y in zip(IDS, MASK, SHIFTED)]
def of_single(): return IDS[0], IDS[0]
"""


@pytest.fixture
def language(tmp_path, monkeypatch):
    """The record of a small language model on data of this name."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("language.py").write_text(LANGUAGE)
    loss = "cross_entropy?class_dim=-1"
    return lambda data: load_problem(model="language.py:Language", data=f"language.py:{data}", loss=loss)


@pytest.mark.parametrize(("data", "what"), [("of_tensors", "x"), ("of_mappings", "x['input_ids']")])
def test_labels_that_are_not_shifted_are_noted(language, data, what):
    loaded = language(data)
    (note,) = loaded.record.notes
    assert loaded.data_notes == (note,)  # before the work
    assert note.startswith(f"y equals {what} at all positions: ")
    assert "shift them in the data" in note


@pytest.mark.parametrize("data", ["of_shifted", "of_shifted_mappings", "of_single"])
def test_labels_that_are_something_else_are_not_noted(language, data):
    assert language(data).record.notes == []


def test_all_parameters_are_counted_beside_the_chosen_ones(language):
    record = language("of_shifted").record
    assert (record.parameters, record.parameters_in_all) == (15 + 5, 15 + 5 + 3)


def test_weights_of_a_checkpoint_are_not_rounded_on_their_way(tmp_path, monkeypatch):
    """Of float64, into a model that was built in float32."""
    monkeypatch.chdir(tmp_path)
    weights = {"weight": torch.rand(3, 4, dtype=torch.float64), "bias": torch.rand(3, dtype=torch.float64)}
    torch.save(weights, "weights.pt")
    pathlib.Path("net.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Linear(4, 3)\n")
    np.savez("points.npz", x=np.zeros((2, 4)), y=np.array([0, 2]))
    loaded = load_problem(model="net.py:build", checkpoint="weights.pt", data="points.npz", dtype="float64")
    assert all(parameter.cpu().equal(weights[name]) for name, parameter in loaded.problem.parameters.items())
