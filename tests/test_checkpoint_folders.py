"""Folders as checkpoints: Hugging Face's Trainer, torch.distributed.checkpoint, DeepSpeed and others."""

import hashlib
import json
import os
import pickle
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_inputs import refused
from torch import nn

from spectra.cli import run
from spectra.inputs.checkpoint import load_checkpoint, read_parameters
from spectra.inputs.checkpoint_file import digest_of, read_checkpoint
from spectra.sweeps.checkpoints import training_steps
from spectra.sweeps.digests import digest
from spectra.sweeps.plan import read_plan

with warnings.catch_warnings(action="ignore"):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

NETS = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build()

    def forward(self, x):
        return self.net(x)

def wrapped():
    return Wrapper()
"""


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("ran").exists()


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


STATE = build(1).state_dict()


def same(model, state=STATE) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# Hugging Face's Trainer


def shards(folder, stem="model", suffix=".safetensors"):
    files = {f"{stem}-0000{i + 1}-of-00002{suffix}": list(STATE)[i::2] for i in (0, 1)}
    for file, names in files.items():
        held = {name: STATE[name] for name in names}
        save_file(held, folder / file) if suffix == ".safetensors" else torch.save(held, folder / file)
    places = {name: file for file, names in files.items() for name in names}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def trainer(folder, step=500, write=lambda folder: save_file(STATE, folder / "model.safetensors")):
    """What the Trainer leaves: weights, the optimiser's state, and its arguments, a pickle of a class."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    write(folder)
    torch.save({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, folder / "optimizer.pt")
    torch.save(Evil(), folder / "training_args.bin")
    torch.save({"_step_count": 3}, folder / "scheduler.pt")
    (folder / "config.json").write_text('{"architectures": ["Net"]}')
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": step / 1000}))
    return folder


WRITTEN = {
    "safetensors": lambda folder: save_file(STATE, folder / "model.safetensors"),
    "bin": lambda folder: torch.save(STATE, folder / "pytorch_model.bin"),
    "shards": shards,
    "shards of torch": lambda folder: shards(folder, "pytorch_model", ".bin"),
    "diffusers": lambda folder: save_file(STATE, folder / "diffusion_pytorch_model.safetensors"),
    "FSDP": lambda folder: write_distributed(folder / "pytorch_model_fsdp_0", {"model": STATE}),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_folder_of_the_trainer(kind):
    folder, model = trainer("runs/checkpoint-500", write=WRITTEN[kind]), build()
    record = load_checkpoint(model, folder)
    assert same(model)
    assert (record["path"], record["tensors"]) == (str(folder), 4)
    assert record["sha256"] == digest_of(folder) == digest(folder, Path())
    read = read_parameters(folder, {name: list(value.shape) for name, value in STATE.items()})
    assert all(torch.equal(value, STATE[name]) for name, value in read.items())


def test_the_checksum_of_a_folder_is_that_of_its_file():
    folder = trainer("checkpoint-500")
    assert digest_of(folder) == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    save_file({name: value + 1 for name, value in STATE.items()}, folder / "model.safetensors")
    assert digest(folder, Path()) == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_folder_that_holds_two_of_them():
    folder = trainer("checkpoint-500")
    torch.save(STATE, folder / "pytorch_model.bin")
    with refused("`checkpoint` checkpoint-500", "model.safetensors, pytorch_model.bin", "name one"):
        load_checkpoint(build(), folder)
    load_checkpoint(model := build(), folder / "pytorch_model.bin")
    assert same(model)


def test_a_folder_of_folders_says_which():
    trainer("runs/checkpoint-500")
    with refused("`checkpoint` runs", "name one of the folders in it: checkpoint-500"):
        load_checkpoint(build(), "runs")


def test_a_tensor_in_two_shards():
    folder = trainer("a", write=shards)
    first, second = sorted(folder.glob("model-*"))
    save_file({name: STATE[name] for name in STATE}, first)
    with refused("`checkpoint` ", "2.weight is in shard" if "2.weight" in list(STATE)[1::2] else "is in shard"):
        load_checkpoint(build(), folder)
    second.unlink()
    with refused("`checkpoint` ", second.name, "are missing; copy all shards"):
        load_checkpoint(build(), folder)


def test_a_name_that_an_index_has_twice():
    folder = trainer("a", write=shards)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"0.weight"', '"0.bias"'))
    with refused("`checkpoint` a/model.safetensors.index.json", "0.bias comes twice"):
        load_checkpoint(build(), folder)


def test_a_sweep_over_folders(capfd):
    """The Trainer's folders by a glob, each with the step that its trainer_state.json tells."""
    Path("nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    np.savez("points.npz", x=draw.normal(size=(11, 4)).astype("f4"), y=draw.integers(0, 3, 11))
    for step in (1000, 500):
        scaled = {name: value * (1 - step / 10_000) for name, value in STATE.items()}
        trainer(
            f"runs/checkpoint-{step}", step + 7, lambda folder, s=scaled: save_file(s, folder / "model.safetensors")
        )
    Path("runs/logs").mkdir()
    named = "model = 'nets.py:build'\ndata = 'points.npz'\ncheckpoint = 'runs/*'"
    Path("plan.toml").write_text(f"[problem]\n{named}\n[eig]\nk = 4\n")
    plan = read_plan(Path("plan.toml"))
    assert [task.name for task in plan.tasks] == ["checkpoint-500/hessian", "checkpoint-1000/hessian"]
    places = {task.name: task.checkpoint for task in plan.tasks}
    assert training_steps(places) == ("training step", dict(zip(places, (507, 1007), strict=True)))
    for task in plan.tasks:
        line = f"eig --model nets.py:build --data points.npz --curvature hessian --seed 0 -k 4 --out plan/{task.name}"
        assert run(shlex.split(f"{line} --checkpoint {os.path.relpath(task.checkpoint)}")) == 0, capfd.readouterr().err
    capfd.readouterr()
    assert run(["sweep", "collect", "plan.toml", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert {row["step"] for row in rows} == {507, 1007}
    assert "update_share" in {row["quantity"] for row in rows}  # weights of both were read
    assert run(["sweep", "status", "plan.toml"]) == 0
    assert "2 finished" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize(
    ("pattern", "labels"),
    [
        ("runs/checkpoint-*", ["checkpoint-500", "checkpoint-1000"]),
        ("runs/checkpoint-*/model.safetensors", ["checkpoint-500/model", "checkpoint-1000/model"]),
        ("runs/*500*", ["checkpoint-500"]),
        ("runs/**/model.safetensors", ["checkpoint-500/model", "checkpoint-1000/model"]),
    ],
)
def test_globs_of_folders_and_files(pattern, labels):
    for step in (500, 1000):
        trainer(f"runs/checkpoint-{step}", step)
    plan = f"[problem]\nmodel = 'spectra.demo:mlp'\ndata = 'digits'\ncheckpoint = {json.dumps(pattern)}\n[eig]\n"
    Path("plan.toml").write_text(plan)
    found = [task.name.removesuffix("hessian").strip("/") for task in read_plan(Path("plan.toml")).tasks]
    assert found == labels


# torch.distributed.checkpoint


def write_distributed(folder, content):
    with warnings.catch_warnings(action="ignore"):
        dcp.save(content, checkpoint_id=folder)


def converted(folder):
    """The tensors of a folder as torch's own reader has them."""
    with warnings.catch_warnings(action="ignore"):
        dcp_to_torch_save(folder, "converted.pt")
    return torch.load("converted.pt", weights_only=True)


def test_a_folder_of_torch_distributed_checkpoint():
    model = build(2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    held = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3, "name": "mine"}
    write_distributed("sharded", held)
    content, _ = read_checkpoint("sharded")
    assert content.keys() == {"model"}
    expected = converted("sharded")["model"]
    assert all(torch.equal(value, expected[name]) for name, value in content["model"].items())
    record = load_checkpoint(loaded := build(), "sharded")
    assert same(loaded, model.state_dict())
    files = [Path("sharded/.metadata"), *sorted(Path("sharded").glob("*.distcp"))]
    lines = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    assert record["sha256"] == hashlib.sha256(lines.encode()).hexdigest() == digest_of(Path("sharded"))
    assert record["key"] == "model"


def pieces(folder, tensors, cut, paths=None, **changes):
    """A folder of several ranks, written by hand: rows of each tensor dealt to `cut` shards."""
    Path(folder).mkdir(exist_ok=True)
    described, stored, files = {}, {}, [b""] * cut
    for name, tensor in tensors.items():
        chunks = []
        for rank, rows in enumerate(tensor.split(-(-len(tensor) // cut)) if tensor.ndim else [tensor]):
            start = sum(chunk.sizes[0] for chunk in chunks) if tensor.ndim else 0
            offsets = torch.Size([start] + [0] * (tensor.ndim - 1) if tensor.ndim else [])
            torch.save(rows.clone(), "piece.pt")
            held = Path("piece.pt").read_bytes()
            info = {"relative_path": f"__{rank}_0.distcp", "offset": len(files[rank]), "length": len(held)}
            stored[MetadataIndex(name, offsets, len(chunks))] = _StorageInfo(**info | changes)
            files[rank] += held
            chunks.append(ChunkStorageMetadata(offsets, rows.shape))
        described[name] = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), tensor.size(), chunks)
    for rank, content in enumerate(files):
        Path(folder, f"__{rank}_0.distcp").write_bytes(content)
    metadata = Metadata(described, planner_data=paths, storage_data=stored)
    Path(folder, ".metadata").write_bytes(pickle.dumps(metadata))
    return metadata


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_are_put_together_as_torch_does(cut, dtype):
    state = {name: value.to(dtype) for name, value in STATE.items()}
    pieces("sharded", below("model.", state), cut, {f"model.{name}": ("model", name) for name in state})
    content, _ = read_checkpoint("sharded")
    expected = converted("sharded")["model"]
    assert content["model"].keys() == expected.keys() == state.keys()
    for name, value in content["model"].items():
        assert value.dtype == dtype
        assert torch.equal(value, expected[name])
        assert torch.equal(value, state[name])


def spoiled(change):
    """The metadata of two shards, changed."""

    def write():
        metadata = pieces("sharded", STATE, 2)
        change(metadata)
        Path("sharded/.metadata").write_bytes(pickle.dumps(metadata))

    return write


def resized(metadata, **changes):
    first = next(iter(metadata.state_dict_metadata.values()))
    for name, value in changes.items():
        setattr(first, name, value)


def stored_elsewhere(**changes):
    return lambda metadata: [setattr(info, k, v) for info in metadata.storage_data.values() for k, v in changes.items()]


def shard_with_code():
    metadata = pieces("sharded", STATE, 1)
    torch.save(Evil(), "piece.pt")
    held = Path("piece.pt").read_bytes()
    stored_elsewhere(offset=0, length=len(held))(metadata)
    Path("sharded/__0_0.distcp").write_bytes(held)
    Path("sharded/.metadata").write_bytes(pickle.dumps(metadata))


def raw(content):
    def write():
        pieces("sharded", STATE, 1)
        Path("sharded/.metadata").write_bytes(content)

    return write


def in_metadata(place):
    return spoiled(lambda metadata: setattr(metadata, place, {"a": Evil()}))


DISTRIBUTED = {
    "code": (raw(pickle.dumps(Evil())), ["could run code", "system"]),
    "code in old pickles": (raw(pickle.dumps(Evil(), protocol=0)), ["could run code", "system"]),
    "code beside tensors": (in_metadata("planner_data"), ["could run code", "system"]),
    "code in the state": (in_metadata("state_dict_metadata"), ["could run code", "system"]),
    "another function of torch's": (raw(b"ctorch\nload\n(Vx\ntR."), ["torch.load", "could run code"]),
    "a name within a class": (
        raw(b"\x80\x04\x8c%torch.distributed.checkpoint.metadata\x8c\x11Metadata.__init__\x93)R."),
        ["could run code"],
    ),
    "code in a shard": (shard_with_code, ["not a tensor that torch.save wrote"]),
    "no metadata": (raw(b"\x80\x04K\x01."), ["holds a int"]),
    "nothing": (raw(b""), ["has an unknown structure"]),
    "nested tuples": (raw(b"\x80\x02}N" + b"\x85" * 200_000 + b"K\x01s."), ["a nested tuple that is too deep"]),
    "a number for memory": (raw(b"\x80\x02}r\xff\xff\xff\x7f."), ["numbers objects that it does not hold"]),
    "a shape without end": (
        spoiled(lambda m: resized(m, size=torch.Size([2**40, 4]))),
        ["declares", "shards are smaller"],
    ),
    "a missing piece": (spoiled(lambda m: resized(m, chunks=[])), ["has no pieces"]),
    "pieces that miss": (spoiled(lambda m: resized(m, size=torch.Size([9, 4]))), ["pieces of", "missing"]),
    "pieces outside": (spoiled(lambda m: resized(m, size=torch.Size([2, 4]))), ["outside its shape"]),
    "another folder": (spoiled(stored_elsewhere(relative_path="../a.distcp")), ["not a file in its folder"]),
    "a file of the system": (spoiled(stored_elsewhere(relative_path="/etc/passwd")), ["not a file in its folder"]),
    "another kind of file": (spoiled(stored_elsewhere(relative_path="a.pt")), ["not a file in its folder"]),
    "no such shard": (spoiled(stored_elsewhere(relative_path="__9_0.distcp")), ["__9_0.distcp is missing"]),
    "behind the end": (spoiled(stored_elsewhere(length=10**9)), ["beyond the end"]),
    "a negative place": (spoiled(stored_elsewhere(offset=-1)), ["an invalid shape"]),
    "compressed": (spoiled(stored_elsewhere(transform_descriptors=["zstd"])), ["compressed"]),
    "paths without end": (
        spoiled(lambda m: setattr(m, "planner_data", dict.fromkeys(STATE, ("a",) * 1000))),
        ["no state dict"],
    ),
}


@pytest.mark.parametrize("kind", DISTRIBUTED)
def test_a_folder_of_shards_that_lies(kind):
    write, words = DISTRIBUTED[kind]
    write()
    with refused("`checkpoint` sharded", *words) as caught:
        load_checkpoint(model := build(), "sharded")
    assert same(model, build().state_dict())
    for advice in ("weights_only", "trust", "add_safe_globals"):
        assert advice not in str(caught.value)


def test_the_metadata_would_run_if_it_were_unpickled(tmp_path):
    raw(pickle.dumps(Evil()))()
    with pytest.raises(AttributeError):  # what os.system returns is no metadata
        dcp.FileSystemReader("sharded").read_metadata()
    Path("ran").unlink()


def test_entries_that_are_no_tensors_are_not_read():
    """Torch's own planner unpickles them freely."""
    write_distributed("sharded", {"model": STATE, "note": Evil()})
    load_checkpoint(model := build(), "sharded")
    assert same(model)


def test_the_command_reads_folders(capfd):
    """The spectrum at the weights of a folder is that at the same weights in one file."""
    Path("nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    np.savez("points.npz", x=draw.normal(size=(11, 4)).astype("f4"), y=draw.integers(0, 3, 11))
    torch.save(STATE, "weights.pt")
    pieces("sharded", STATE, 2)
    write_distributed("nested", {"model": below("net.", STATE), "optimizer": {"state": torch.ones(3)}})
    found = {}
    for name in ("weights.pt", str(trainer("checkpoint-500")), "sharded", "nested"):
        assert run(shlex.split(f"eig --model nets.py:build --data points.npz -k 3 --checkpoint {name} --json")) == 0
        record = json.loads(capfd.readouterr().out)
        found[name] = record["results"][0]["eigenvalues"]
        assert record["problem"]["checkpoint_prefix"] == ("net." if name == "nested" else None)
    assert all(values == found["weights.pt"] for values in found.values())
    line = "eig --model nets.py:wrapped --data points.npz -k 3 --checkpoint sharded --json"
    assert run(shlex.split(line)) == 0
    record = json.loads(capfd.readouterr().out)
    assert record["problem"]["checkpoint_added"] == "net."
    assert record["results"][0]["eigenvalues"] == pytest.approx(found["weights.pt"], rel=1e-4)


@pytest.mark.parametrize("kind", ["code", "code in a shard", "nested tuples"])
def test_the_command_answers_with_one_line(kind, capfd):
    Path("nets.py").write_text(NETS)
    DISTRIBUTED[kind][0]()
    assert run(shlex.split("inspect --model nets.py:build --checkpoint sharded")) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("spectra: --checkpoint sharded: ")


# What is not read


def tree(*files):
    for file in files:
        path = Path("run", file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("global_step500" if file == "latest" else "")


ZERO = ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt")
STEP = [f"global_step500/{name}" for name in ZERO]
FOREIGN = {
    "ZeRO": (["latest", "zero_to_fp32.py", *STEP], "run",
             ["DeepSpeed", "python -m deepspeed.utils.zero_to_fp32 run OUT -t global_step500, and name OUT"]),
    "ZeRO of bfloat16": (["latest", "global_step500/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"], "run",
                         ["python -m deepspeed.utils.zero_to_fp32 run OUT -t global_step500,"]),
    "of two steps": (["latest", *STEP, *[name.replace("500", "400") for name in STEP]], "run",
                     ["run OUT -t global_step500,"]),
    "of two steps, none the latest": ([*STEP, *[name.replace("500", "400") for name in STEP]], "run",
                                      ["name one of the folders in it: global_step400, global_step500"]),
    "of one step without latest": (STEP, "run", ["run OUT -t global_step500,"]),
    "the folder of a step": (["latest", *STEP], "run/global_step500", ["zero_to_fp32 run OUT -t global_step500,"]),
    "a rank's file": (["latest", *STEP], f"run/{STEP[0]}", ["zero_to_fp32 run OUT -t global_step500,"]),
    "Lightning": (["latest", "zero_to_fp32.py", *[name.replace("global_step500", "checkpoint") for name in STEP]],
                  "run", ["zero_to_fp32 run OUT -t checkpoint,"]),
    "without ZeRO": (["latest", STEP[1]], "run", ["name the file in it: run/global_step500/mp_rank_00_model_states"]),
    "tensor parallel": (["latest", STEP[1], STEP[1].replace("k_00", "k_01")], "run", ["of a tensor-parallel model"]),
    "Megatron": (["latest_checkpointed_iteration.txt", "iter_0000500/mp_rank_00/model_optim_rng.pt"], "run",
                 ["Megatron-LM", "tools/checkpoint/convert.py"]),
    "a step of Megatron": (["mp_rank_00/model_optim_rng.pt"], "run", ["Megatron-LM"]),
    "Orbax": (["_CHECKPOINT_METADATA", "manifest.ocdbt", "d/1"], "run", ["Orbax (JAX)"]),
    "TensorFlow": (["checkpoint", "a.index", "a.data-00000-of-00001"], "run", ["TensorFlow"]),
    "shards without metadata": (["__0_0.distcp"], "run", ["torch.distributed.checkpoint without its .metadata"]),
    "a shard": (["__0_0.distcp", ".metadata"], "run/__0_0.distcp", ["torch.distributed.checkpoint", "folder: run"]),
    "an adapter without weights": (["adapter_config.json"], "run", ["PEFT adapter without", "merge_and_unload"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_folders_are_named_with_a_way_out(kind):
    files, path, words = FOREIGN[kind]
    tree(*files)
    with refused(f"`checkpoint` {path}", *words):
        load_checkpoint(build(), path)


def test_names_of_folders_are_quoted_for_the_shell():
    for name in STEP:
        path = Path("my run", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with refused("zero_to_fp32 'my run' OUT -t global_step500"):
        load_checkpoint(build(), "my run")


def test_whole_weights_beside_those_of_deepspeed_are_read():
    folder = trainer("run")
    tree("latest", "zero_to_fp32.py", *STEP)
    load_checkpoint(model := build(), folder)
    assert same(model)


def test_a_tar_archive_is_named():
    import tarfile

    torch.save(STATE, "weights.pt")
    torch.save(STATE, "last.pth.tar")  # a usual name of torch's own files
    with tarfile.open("model.nemo", "w") as archive:
        archive.add("weights.pt")
    with refused("`checkpoint` model.nemo", "tar archive", "unpack it"):
        load_checkpoint(build(), "model.nemo")
    load_checkpoint(model := build(), "last.pth.tar")
    assert same(model)


@pytest.mark.parametrize("name", ["0.qweight", "0.weight.absmax", "0.weight_scale_inv", "0.weight.quant_state.nf4"])
def test_quantised_weights_are_named(name):
    save_file({**STATE, name: torch.ones(2)}, "a.safetensors")
    with refused("`checkpoint` a.safetensors", "quantised", name, "dequantised"):
        load_checkpoint(build(), "a.safetensors")


# Prefixes


class Language(nn.Module):
    """A model below a prefix, and a head beside it that may be tied to its embedding."""

    def __init__(self, tied: bool):
        super().__init__()
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(5, 4), "h": build()})
        self.lm_head = nn.Linear(4, 5, bias=False)
        if tied:
            self.lm_head.weight = self.transformer["wte"].weight


def below(prefix, state):
    return {prefix + name: value for name, value in state.items()}


BODY = {name.removeprefix("transformer."): value for name, value in Language(True).state_dict().items()}
HEAD = {"lm_head.weight": BODY.pop("lm_head.weight")}


@pytest.mark.parametrize(
    ("content", "prefix", "added", "count"),
    [
        (BODY, None, "transformer.", 5),
        (below("model.", BODY), "model.", "transformer.", 5),
        (below("module.", BODY), "module.", "transformer.", 5),
        (below("transformer.", BODY), None, None, 5),
        (below("base_model.model.transformer.", BODY), "base_model.model.", None, 5),
        (below("transformer.", BODY) | HEAD, None, None, 6),
        (below("net.transformer.", BODY) | below("net.", HEAD), "net.", None, 6),
        (BODY | HEAD, None, "transformer.", 6),
    ],
)
def test_a_prefix_is_added_beside_a_tied_head(content, prefix, added, count):
    torch.save(content, "a.pt")
    model = Language(True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    record = load_checkpoint(model, "a.pt")
    assert (record["prefix"], record["added"], record["tensors"]) == (prefix, added, count)
    expected = below("transformer.", BODY) | HEAD
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.lm_head.weight is model.transformer["wte"].weight


def test_a_head_of_its_own_is_missing():
    torch.save(BODY, "a.pt")
    with refused("`checkpoint`", "missing lm_head.weight;"):
        load_checkpoint(Language(False), "a.pt")


def test_a_branch_of_two_is_never_chosen():
    model = nn.ModuleDict({"student": build(), "teacher": build()})
    torch.save(STATE, "a.pt")
    with refused("`checkpoint`", "its names are not those of the model"):
        load_checkpoint(model, "a.pt")
