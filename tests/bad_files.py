"""What is in files, good and wrong: strategies of text, bytes, arrays, weights, JSON and TOML."""

import io
import json
import os
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import bad_user
import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save as safetensors
from torch import nn

# Text

CONTROL = [
    "\x1b[31mred",
    "two\nlines",
    "a\rb",
    "\u202eright",
    "\udcff",
    "ключ",
    "💥",
    "%s{}",
    "'",
    '"',
    "../..",
    "x" * 3000,
]
text = st.text(st.characters(codec="utf-8", exclude_characters="\0&?="), min_size=1, max_size=40)
words = text | st.sampled_from(CONTROL)
nonsense = st.text("bcdfgjqxz", min_size=3, max_size=12)  # no name of anything


@st.composite
def misspelled(draw: st.DrawFn, name: str, known: Collection[str] = ()) -> str:
    """A letter of `name` doubled, left out or replaced, so that it is none of `known`."""
    at = draw(st.integers(0, len(name) - 1))
    found = name[:at] + draw(st.sampled_from([name[at] * 2, "", "q", "z"])) + name[at + 1 :]
    return f"{name}q" if found in {name, *known} else found


def no_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return True
    return False


# Bytes


def torch_file(content: Any, **options: Any) -> bytes:
    torch.save(content, file := io.BytesIO(), **options)
    return file.getvalue()


def old_torch_file(content: Any) -> bytes:
    return torch_file(content, _use_new_zipfile_serialization=False)


def npz(**arrays: Any) -> bytes:
    np.savez(file := io.BytesIO(), **arrays)
    return file.getvalue()


def to_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def index(shard: str, names: Collection[str] = ("weight", "bias")) -> bytes:
    return to_json({"weight_map": dict.fromkeys(names, shard)})


noise = st.binary(max_size=300)


def truncated(content: bytes) -> st.SearchStrategy[bytes]:
    return st.integers(0, len(content.rstrip()) - 1).map(lambda end: content[:end])


@st.composite
def flipped(draw: st.DrawFn, content: bytes) -> bytes:
    """One to three bytes changed."""
    copy = bytearray(content)
    for at in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3, unique=True)):
        copy[at] ^= draw(st.integers(1, 255))
    return bytes(copy)


# Good files, and the arrays and weights that are wrong

X = np.random.default_rng(0).normal(size=(11, 4)).astype("float32")
Y = np.arange(11) % 3
WEIGHT, BIAS = torch.from_numpy(X[:3].copy()), torch.zeros(3)
STATE = {"weight": WEIGHT, "bias": BIAS}
GOOD = {
    "user.py": Path(bad_user.__file__).read_bytes(),
    "points.npz": npz(x=X, y=Y),
    "points.safetensors": safetensors({"x": torch.from_numpy(X), "y": torch.from_numpy(Y)}),
    "linear.pt": torch_file(STATE),
    "old.pt": old_torch_file(STATE),
    "linear.safetensors": safetensors(STATE),
    "linear.index.json": index("linear.safetensors"),
    "options.toml": b'model = "user.py:linear"\nseed = 3\n[eig]\nk = 4\n',
    "folder/notes.txt": b"a text\n",
}
WEIGHTS = ["linear.pt", "old.pt", "linear.safetensors", "linear.index.json"]
POINTS = ["points.npz", "points.safetensors"]

ARRAYS = {
    "without y": {"x": X},
    "without x": {"y": Y},
    "of other names": {"images": X, "labels": Y},
    "of nothing": {},
    "of objects": {"x": X.astype(object), "y": Y},
    "of texts": {"x": X.astype(str), "y": Y},
    "of dates": {"x": X, "y": Y.astype("datetime64[s]")},
    "of records": {"x": np.zeros(11, dtype=[("a", "f4")]), "y": Y},
    "with nan": {"x": np.where([True, *[False] * (X.shape[1] - 1)], np.nan, X), "y": Y},
    "with inf": {"x": X, "y": np.full(11, np.inf)},
    "of no examples": {"x": X[:0], "y": Y[:0]},
    "of two lengths": {"x": X, "y": Y[:10]},
    "of scalars": {"x": X[0, 0], "y": Y[0]},
    "of labels too large": {"x": X, "y": Y + 3},  # all of them: --samples may choose any
    "of labels below 0": {"x": X, "y": Y - 3},
    "of complex x": {"x": X.astype("complex64"), "y": Y},
    "of complex y": {"x": X, "y": Y.astype("complex64")},
    "of narrow x": {"x": X[:, :3], "y": Y},
    "of deep x": {"x": X[:, None, None], "y": Y},
    "of flat x": {"x": X[:, 0], "y": Y},
    "of bytes": {"x": X.astype("uint8"), "y": Y},
    "of columns": {"x": X, "y": Y[:, None]},
}


class Evil:
    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


evil = st.sampled_from([Evil(os.system, "touch ran"), Evil(eval, "open('ran', 'w')"), Evil(open, "ran", "w")])
names = st.sampled_from(
    ["weight", "bias", "state_dict", "model", "module.weight", "optimizer", "", "_metadata", "\x1b[31m"]
)
leaves = st.none() | st.booleans() | st.integers(-5, 40) | st.floats() | words | names
odd = [
    BIAS.long(),
    BIAS + torch.nan,
    WEIGHT * 1j,
    WEIGHT.to_sparse(),
    WEIGHT.to("meta"),
    torch.zeros(0),
    torch.zeros(()),
]
tensors = st.sampled_from([WEIGHT, BIAS, nn.Parameter(BIAS), torch.ones(3, 5), *odd])


def trees(leaves: st.SearchStrategy) -> st.SearchStrategy:
    def nested(inner):
        return st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)

    return st.recursive(leaves, nested, max_leaves=8)


values = trees(leaves)  # as JSON has them


def with_nan(at: int) -> bytes:
    weight = WEIGHT.clone()
    weight.view(-1)[at] = torch.nan
    return torch_file(STATE | {"weight": weight})


CHECKPOINTS = {
    "empty.pt": b"",
    "empty.safetensors": b"",
    "noise.pt": noise,
    "noise.safetensors": noise,
    "noise.index.json": noise,
    "zip.pt": noise.map(b"PK\x03\x04".__add__),
    "pickle.ckpt": noise.map(b"\x80\x02".__add__),
    "text.pt": words.map(lambda text: text.encode(errors="replace")),
    "arrays.pt": GOOD["points.npz"],
    "json.pt": values.map(to_json),
    "json.safetensors": values.map(to_json),
    "code.pkl": st.builds(pickle.dumps, evil, st.integers(0, 5)),
    "code.pt": evil.map(lambda code: torch_file({"state_dict": STATE, "hook": code})),
    "old code.pt": evil.map(old_torch_file),
    "module.pt": torch_file(nn.Linear(4, 3)),
    "list.pt": torch_file([WEIGHT, BIAS]),
    "names.pt": misspelled("weight").map(lambda name: torch_file({name: WEIGHT, "bias": BIAS})),
    "shapes.pt": st.integers(5, 9).map(lambda width: torch_file({"weight": torch.ones(3, width), "bias": BIAS})),
    "missing.safetensors": safetensors({"weight": WEIGHT}),
    "surplus.pt": torch_file(STATE | {"extra": BIAS}),
    "nan.pt": st.integers(0, 11).map(with_nan),
    "several.pt": torch_file({"model": STATE, "ema": {"weight": WEIGHT + 1, "bias": BIAS}}),
    "optimizer.pt": torch_file({"optimizer": {"state": {0: STATE}, "param_groups": []}}),
    "integers.pt": torch_file({name: value.long() for name, value in STATE.items()}),
    "complex.pt": torch_file({name: value * 1j for name, value in STATE.items()}),
    "sparse.pt": torch_file(STATE | {"weight": WEIGHT.to_sparse()}),
    "no map.index.json": values.map(to_json),
    "no shards.index.json": (names | words).map(index),
    "elsewhere.index.json": st.sampled_from(["../linear.pt", "/etc/passwd", "..", "folder/x.pt"]).map(index),
    "names.index.json": misspelled("weight").map(lambda name: index("linear.safetensors", [name, "bias"])),
}


# Records, as commands write them


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    """A JSON value with one of its parts, at any depth, replaced or left out."""
    if not isinstance(tree, dict | list) or not tree or draw(st.integers(0, 7)) == 0:
        return draw(values)
    copy = tree.copy()
    at = draw(st.sampled_from(list(tree) if isinstance(tree, dict) else range(len(tree))))
    if draw(st.integers(0, 7)) == 0:
        del copy[at]
    else:
        copy[at] = draw(changed(tree[at]))
    return copy


def saved(command: str) -> st.SearchStrategy[dict]:
    """The record in out/, which is written before anything is drawn."""
    return st.builds(lambda: json.loads(Path(f"out/{command}.json").read_text()))


def changed_record(command: str) -> st.SearchStrategy[bytes]:
    return saved(command).flatmap(changed).map(to_json)


def truncated_record(command: str) -> st.SearchStrategy[bytes]:
    return saved(command).map(to_json).flatmap(truncated)


def with_null(command: str, key: str) -> st.SearchStrategy[bytes]:
    return saved(command).map(lambda record: to_json(record | {"results": [record["results"][0] | {key: None}]}))


FIELDS = {"density": "nodes", "eig": "eigenvalues", "trace": "trace"}  # a number of each command's results
RESULTS = [f"out/{command}.json" for command in FIELDS]


def vectors(n: int, scale: float = 1.0) -> bytes:
    """Eigenpairs as eig keeps them, of a matrix of another size or of none."""
    return npz(
        eigenvalues_hessian=np.ones(3),
        residuals_hessian=np.zeros(3),
        eigenvectors_hessian=scale * np.eye(3, n, dtype="f4"),
    )


def encrypted(content: bytes) -> bytes:
    """An archive whose first file says that it is."""
    place = content.index(b"PK\1\2") + 8
    return content[:place] + bytes([content[place] | 1]) + content[place + 1 :]


VECTORS = {
    "no": noise,
    "encrypted": encrypted(vectors(15)),
    "cut": truncated(vectors(15)),
    "flipped": flipped(vectors(15)),
    "shorter": vectors(14),
    "wrong": vectors(15),
    "huge": vectors(15, 1e30),
}
STRANGE = [
    "true",
    "[1]",
    "[[1]]",
    "1979-05-27",
    "nan",
    "{a = 1}",
    '""',
    '"a\\u0000b"',
    '"\\u001b[31m"',
    "99999999999999999999",
]
TOML = {
    "noise.toml": noise.map(b"\xff".__add__),
    "text.toml": nonsense.map(str.encode),
    "unknown.toml": nonsense.map("{} = 1".format).map(str.encode),
    "misspelled.toml": misspelled("curvature").map('{} = "ggn"'.format).map(str.encode),
    "command.toml": nonsense.map("[{}]\nk = 1".format).map(str.encode),
    "twice.toml": b"seed = 1\nseed = 2",
    "itself.toml": b'config = "options.toml"',
    "flag.toml": st.sampled_from(['"yes"', "1", "[true]", '""']).map("json = {}".format).map(str.encode),
    **{
        f"{key}.toml": st.sampled_from(STRANGE).map(f"{key} = {{}}".format).map(str.encode)
        for key in ("seed", "curvature", "params", "loss", "checkpoint")
    },
}
