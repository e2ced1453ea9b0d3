"""Files that hang, exhaust or end whoever opens them: pipes, devices, loops, sizes that lie, nesting without end."""

import io
import json
import os
import pickle
import shlex
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_record
from safetensors.torch import save as safetensors
from test_inputs import refused
from torch import nn

from spectra.cli import run
from spectra.files import read_bounded, read_toml
from spectra.inputs.checkpoint import load_checkpoint
from spectra.inputs.checkpoint_file import read_checkpoint
from spectra.inputs.pickles import find_defect
from spectra.inputs.state_dict import ModelKeys, matches

MODEL = "--model spectra.demo:mlp"
SLOTS = {
    "config.toml": f"eig {MODEL} --data digits --config {{}}",
    "config.json": f"eig {MODEL} --data digits --config {{}}",
    "weights.pt": f"eig {MODEL} --data digits --checkpoint {{}}",
    "weights.safetensors": f"eig {MODEL} --data digits --checkpoint {{}}",
    "weights.index.json": f"eig {MODEL} --data digits --checkpoint {{}}",
    "sharded/.metadata": f"eig {MODEL} --data digits --checkpoint sharded",
    "trained/model.safetensors": f"eig {MODEL} --data digits --checkpoint trained",
    "data.npz": f"eig {MODEL} --data {{}}",
    "data.safetensors": f"eig {MODEL} --data {{}}",
    "nets.py": "eig --model {}:build --data digits",
    "deflate.json": f"trace {MODEL} --data digits --samples 20 --deflate {{}}",
    "result.json": "plot {} --out a.png",
    "page.json": "report {} --out a.html",
    "plan.toml": "sweep status {}",
}


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def one_line(capfd):
    def one_line(line: str, *fragments: str) -> None:
        capfd.readouterr()
        status = run(shlex.split(line))
        out, err = capfd.readouterr()
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert err[:-1].isprintable()
        assert len(err) < 600
        for fragment in fragments:
            assert fragment in err, err

    return one_line


def special(kind: str, name: str) -> str:
    """Make it, and say what a message calls it."""
    Path(name).parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(name)
        return "it is a named pipe"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(name)
        return "it is a socket"
    if kind == "endless device":
        os.symlink("/dev/zero", name)
        return "it is a device"
    os.symlink(name, name)
    return ""  # of links without end: no such file, or too many levels


@pytest.mark.parametrize("kind", ["pipe", "socket", "endless device", "loop"])
@pytest.mark.parametrize("name", SLOTS)
def test_what_is_no_file_is_refused_by_name(name, kind, one_line):
    told = special(kind, name)
    one_line(SLOTS[name].format(name), os.path.dirname(name) or name, told)


def test_a_pipe_in_a_folder_of_images(one_line):
    Path("images/cat").mkdir(parents=True)
    os.mkfifo("images/cat/a.png")
    one_line(f"eig {MODEL} --data images", "--data images", "it is a named pipe")


@pytest.mark.parametrize("name", [name for name in SLOTS if name.endswith((".toml", ".json"))])
def test_what_has_to_be_small_is_not_read(name, one_line):
    with open(name, "wb") as file:
        file.truncate(200 * 2**30)  # holes: nothing on the disk
    one_line(SLOTS[name].format(name), name, "200 GiB", "that are read")


def test_bounds():
    Path("a").write_bytes(b"x" * 100)
    assert read_bounded("a", 100) == b"x" * 100
    with pytest.raises(OSError, match="101 bytes, more than the 100 bytes"):
        read_bounded("/proc/self/status", 100)  # which has no size beforehand


TOML = {
    "arrays": "a = " + "[" * 50_000,
    "tables": "a = " + "{b = " * 50_000,
    "a key of many parts": ".".join(["a"] * 50_000) + " = 1",
    "quoted parts": ".".join(['"a b"'] * 30_000) + " = 1",
    "a table of many parts": "[" + " . ".join(["a"] * 50_000) + "]",
}


@pytest.mark.parametrize("kind", TOML)
@pytest.mark.parametrize("name", ["config.toml", "plan.toml"])
def test_toml_nested_without_end(kind, name, one_line):
    Path(name).write_text(TOML[kind])
    one_line(SLOTS[name].format(name), name, "is not valid TOML")


def test_toml_of_usual_depth():
    Path("a.toml").write_text('a.b."c d".e = [[1.5, 2.5], [3.5]]\n' + "numbers = [" + "1.5, " * 500 + "]")
    assert read_toml("a.toml")["a"]["b"]["c d"]["e"] == [[1.5, 2.5], [3.5]]


@pytest.mark.parametrize("key", ["k", "seed", "tol", "memory", "samples", "batch-size", "max-products", "weight-decay"])
@pytest.mark.parametrize("number", ["1" + "0" * 400, "0x1" + "0" * 5000])
def test_numbers_of_hundreds_of_digits(key, number, one_line):
    Path("config.toml").write_text(f"{key} = {number}")
    one_line(SLOTS["config.toml"].format("config.toml"), "config.toml", key)


@pytest.mark.parametrize("option", ["-k", "--memory", "--seed", "--samples"])
def test_typed_numbers_of_hundreds_of_digits(option, one_line):
    one_line(f"eig {MODEL} --data digits {option} 1{'0' * 400}", option)


def test_results_of_a_million_eigenvalues(one_line):
    entry = {"curvature": "hessian", "eigenvalues": [1.0] * 10**6, "residuals": [0.1] * 10**6}
    Path("result.json").write_text(json.dumps(make_record("eig", {"options": {}}, [entry])))
    for name in ("result.json", "page.json"):
        one_line(SLOTS[name].format("result.json"), "RESULT result.json", "1,000,000 eigenvalues", "compute fewer")
    entry = {"curvature": "hessian", "nodes": [[1.0] * 10**6], "weights": [[1.0] * 10**6]}
    Path("result.json").write_text(json.dumps(make_record("density", {"options": {}}, [entry])))
    for name in ("result.json", "page.json"):
        one_line(SLOTS[name].format("result.json"), "RESULT result.json", "values", "compute fewer")


def test_a_number_of_400_digits_in_a_result(one_line):
    entry = {"curvature": "hessian", "eigenvalues": [10**400], "residuals": [0.1]}
    Path("result.json").write_text(json.dumps(make_record("eig", {"options": {}}, [entry])))
    for name in ("result.json", "page.json"):
        one_line(SLOTS[name].format("result.json"), "RESULT result.json")


@pytest.mark.parametrize("kind", ["object", "U5", "datetime64[s]", "complex128", "bool", "V8"])
def test_arrays_of_wrong_types_are_not_projected_out(kind, capfd):
    problem = f"{MODEL} --data digits --samples 20 --curvature fisher-empirical"
    assert run(f"eig {problem} -k 1 --out old".split()) == 0
    with np.load("old/eig.npz") as arrays:
        held = {name: np.zeros(array.shape, dtype=kind) for name, array in arrays.items()}
    np.savez("old/eig.npz", **held)
    capfd.readouterr()
    assert run(f"trace {problem} --probes 16 --deflate old".split()) in (0, 1)
    assert "old/eig.npz has no eigenvectors of this matrix" in capfd.readouterr().err


# Checkpoints


def torch_file(content, **options) -> bytes:
    torch.save(content, file := io.BytesIO(), **options)
    return file.getvalue()


def with_pickle(data: bytes) -> bytes:
    """An archive of torch's with another pickle."""
    whole, made = zipfile.ZipFile(io.BytesIO(torch_file({"weight": torch.ones(3, 4)}))), io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, data if name.endswith("data.pkl") else whole.read(name))
    return made.getvalue()


NESTED = b"\x80\x02}" + b"N" + pickle.TUPLE1 * 200_000 + b"K\x01s."
DOUBLED = b"\x80\x02}N" + b"q\x00h\x00\x86" * 60 + b"K\x01s."  # (x, x) of (x, x) of ...: 2^60 parts to hash
LYING = 10**11
PROMISE = b"\x8a\x08" + LYING.to_bytes(8, "little")  # LONG1, of eight bytes
OLD = torch_file({"weight": torch.ones(5)}, _use_new_zipfile_serialization=False)


def header(**entry) -> bytes:
    text = json.dumps({"weight": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]} | entry}).encode()
    return len(text).to_bytes(8, "little") + text


def bomb() -> bytes:
    """An archive that unpacks to a hundred times what it holds."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(10**6))
    return made.getvalue()


HOSTILE = {
    "tuples in tuples.pt": (with_pickle(NESTED), "a nested tuple that is too deep"),
    "doubled tuples.pt": (with_pickle(DOUBLED), "a nested tuple that is too deep"),
    "old tuples.pt": (NESTED, "a nested tuple that is too deep"),
    "old that promises.pt": (OLD.replace(b"K\x05", PROMISE, 1), "400,000,000,000 bytes"),
    "unpacks.pt": (bomb(), "would unpack to"),
    "long header.safetensors": ((10**9).to_bytes(8, "little") + b"{}", "declares 1,000,000,000 bytes"),
    "promises.safetensors": (header(shape=[LYING], data_offsets=[0, 4 * LYING]) + bytes(12), "400,000,000,000 bytes"),
    "offsets.safetensors": (header(data_offsets=[0, 10**400]) + bytes(12), "header is wrong"),
    "shape.safetensors": (header(shape=[-3]) + bytes(12), "header is wrong"),
    "kind.safetensors": (header(dtype="F3") + bytes(12), "unknown dtype F3"),
    "deep.safetensors": ((50_000).to_bytes(8, "little") + b"[" * 50_000, "not valid JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_checkpoint_that_lies_about_itself(name):
    content, words = HOSTILE[name]
    Path(name).write_bytes(content)
    with refused("`checkpoint`", name, words, "copy it again"):
        load_checkpoint(nn.Linear(4, 3), name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int16, torch.bool, torch.complex64])
@pytest.mark.parametrize("old", [False, True])
def test_good_files_are_not_suspected(dtype, old):
    content = {"a": torch.zeros(7, dtype=dtype), "view": torch.zeros(9, dtype=dtype)[2:4]}
    content |= {"beside": (1, (2, (3, {}))), 4: "x"}
    held = torch_file(content | {"module": nn.LSTM(2, 2).state_dict()}, _use_new_zipfile_serialization=not old)
    assert find_defect(io.BytesIO(held), len(held)) is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_in_a_checkpoint():
    nested = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(1, 4)])
    torch.save({"weight": nested, "bias": torch.zeros(3)}, "a.pt")
    with refused("`checkpoint`", "a.pt"):
        load_checkpoint(nn.Linear(4, 3), "a.pt")


def test_a_safetensors_file_cut_while_it_is_read(monkeypatch):
    state = {"weight": torch.ones(3, 4), "bias": torch.ones(3)}
    Path("a.safetensors").write_bytes(safetensors(state))
    size = os.fstat

    def longer(file):
        found = list(size(file))
        found[6] += 4096  # as it was before it was cut
        return os.stat_result(found)

    whole = Path("a.safetensors").read_bytes()
    text = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    text = text.replace(b"[12,60]", b"[12,4156]").replace(b"[3,4]", b"[1036]")
    Path("a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + whole[-60:])
    monkeypatch.setattr("spectra.inputs.safetensors_file.os.fstat", longer)
    with refused("`checkpoint`", "a.safetensors", "cut short"):
        load_checkpoint(nn.Linear(4, 3), "a.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_checksum_is_of_the_bytes_that_were_read(suffix, monkeypatch):
    """Though another file takes the place of the first as soon as that has been opened."""
    import hashlib

    import spectra.inputs.checkpoint_file as reading

    save = safetensors if suffix == ".safetensors" else torch_file
    first, second = (save({"weight": torch.full((3, 4), value), "bias": torch.zeros(3)}) for value in (1.0, 2.0))
    path, opened = Path(f"a{suffix}"), reading.open_regular
    path.write_bytes(first)

    def open_and_replace(file):
        found = opened(file)
        Path("new").write_bytes(second)
        os.replace("new", path)
        return found

    monkeypatch.setattr(reading, "open_regular", open_and_replace)
    content, digest = read_checkpoint(path)
    assert digest == hashlib.sha256(first).hexdigest()
    assert content["weight"].eq(1).all()


def test_a_large_file_that_is_written_to_meanwhile(monkeypatch):
    import spectra.inputs.checkpoint_file as reading

    monkeypatch.setattr(reading, "HELD", 0)
    path, load = Path("a.pt"), reading._load
    torch.save({"weight": torch.ones(3, 4), "bias": torch.zeros(3)}, path)

    def load_and_touch(*both):
        found = load(*both)
        os.utime(path, ns=(0, 1))
        return found

    assert read_checkpoint(path)[0].keys() == {"weight", "bias"}
    monkeypatch.setattr(reading, "_load", load_and_touch)
    with refused("`checkpoint`", "a.pt", "changed while it was read"):
        read_checkpoint(path)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("spelled", ["p{}.weight", "module.p{}.weight", "p{}.x.y.weight"])
def test_a_file_of_25_000_prefixes_is_soon_understood(spelled):
    names = [spelled.format(i) for i in range(25_000)]
    found = matches(None, names, ModelKeys(["weight", "bias"], {"weight": 0}, [""]))
    assert len(found) == 25_000
    assert all(len(match.names) == 1 for match in found)
    many = {f"m{i}": {"weight": torch.ones(1), "x": torch.ones(1)} for i in range(3000)}
    torch.save(many, "a.pt")
    with refused("`checkpoint_key`", "m0, m1", "2,995 more"):
        load_checkpoint(nn.Linear(1, 1, bias=False), "a.pt")
