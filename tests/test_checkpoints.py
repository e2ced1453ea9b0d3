"""Weights as others hand them over: loaded whole and strictly, or one line and a model as it was."""

import argparse
import collections
import functools
import hashlib
import io
import json
import os
import pathlib
import pickle
import sys
import types
import typing
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_inputs import refused
from torch import nn

from spectra.inputs.checkpoint import load_checkpoint


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
    # Where there is CUDA, DataParallel moves the model.
    return all(torch.equal(value.cpu(), state[name]) for name, value in model.state_dict().items())


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
        ({"generator": {"g.weight": torch.ones(1), "g.bias": torch.ones(1)}, "classifier": STATE}, "classifier"),
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
        with refused("`checkpoint`", "unexpected note"):
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
    with refused("`checkpoint` ", "model, ema.shadow", "`checkpoint_key`"):
        load_checkpoint(model, path)
    assert same(model, network().state_dict())
    load_checkpoint(model, path, "ema.shadow")
    assert same(model, OTHER)
    with refused("`checkpoint_key` emma", "model, ema.shadow"):
        load_checkpoint(model, path, "emma")
    torch.save(STATE, path)
    with refused("`checkpoint_key` model", "leave `checkpoint_key` out"):
        load_checkpoint(model, path, "model")


def test_a_tied_tensor_that_is_stored_once(tmp_path):
    model, weight = Tied(), torch.arange(12.0).reshape(4, 3)
    save_file({"embedding.weight": weight}, tmp_path / "a.safetensors")
    load_checkpoint(model, tmp_path / "a.safetensors")
    assert torch.equal(model.head.weight, weight)
    torch.save({"embedding.weight": weight, "head.weight": weight + 1}, tmp_path / "b.pt")
    with refused("embedding.weight", "head.weight", "one tied tensor in the model"):
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
                "`model`",
            ],
        ),
        (
            {k.replace("fc.w", "fc.v").replace("fc.b", "head.b"): v for k, v in STATE.items()},
            ["fc.weight (the checkpoint has fc.veight)", "fc.bias (the checkpoint has head.bias)"],
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
    with refused("`checkpoint`", str(path), *words) as caught:
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
        (torchscript, [*CODE, "TorchScript", "`model`"]),
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
    with refused("`checkpoint`", str(path), *words) as caught:
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
    with refused("`checkpoint`", str(path)):
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


def test_what_packages_allow_torch_changes_nothing(tmp_path):
    """As torch_geometric allows a real defaultdict, which torch's reader does not fill; of one name any could win."""

    def other(number, *_):
        raise AssertionError(number)

    allowed = [(functools.partial(other, number), "collections.defaultdict") for number in range(40)]
    torch.save({"state_dict": STATE, **BESIDE}, tmp_path / "last.ckpt")
    with torch.serialization.safe_globals(allowed):
        before = set(torch.serialization.get_safe_globals())
        assert load_checkpoint(network(), tmp_path / "last.ckpt")["key"] == "state_dict"
        assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("package", ["omegaconf.dictconfig", "lightning.fabric.utilities.data", "torchmetrics.metric"])
def test_objects_of_packages_that_are_not_here(tmp_path, monkeypatch, package):
    """As Hydra's configuration in a Lightning checkpoint."""
    module, there = types.ModuleType(package), package in sys.modules
    module.Config = type("Config", (), {"__module__": package, "__init__": lambda self: setattr(self, "a", 1)})
    with monkeypatch.context() as patch:
        for depth in range(1, package.count(".") + 1):
            name = ".".join(package.split(".")[:depth])
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, package, module)
        extras = {"config": module.Config(), "partial": functools.partial(int, "3"), "type": typing.Any}
        torch.save({"state_dict": STATE, "hyper_parameters": extras}, tmp_path / "last.ckpt")
    model = network(seed=1)
    assert load_checkpoint(model, tmp_path / "last.ckpt")["key"] == "state_dict"
    assert same(model)
    assert (package in sys.modules) == there


# --- what frameworks write ---

LOST = {"criterion.weight": torch.ones(2), "metric.total": torch.tensor(3)}
SHARDED = prefixed(
    "_fsdp_wrapped_module.",
    {name.replace("fc.", "fc._fsdp_wrapped_module._checkpoint_wrapped_module."): v for name, v in STATE.items()},
)
LIGHTNING = {
    "epoch": 3,
    "pytorch-lightning_version": "2.5.0",
    "state_dict": prefixed("backbone.model.", STATE) | LOST,
    "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}}}},
    "callbacks": {
        "EarlyStopping{'monitor': 'loss'}": {"best_score": torch.tensor(0.5), "patience": 3},
        "ModelCheckpoint": {"dirpath": pathlib.Path("/runs"), "best_model_score": torch.tensor(0.5)},
    },
    "optimizer_states": [OPTIMIZER],
    "lr_schedulers": [{"last_epoch": 3}],
    "hparams_name": "kwargs",
    "hyper_parameters": {"args": argparse.Namespace(width=4), "lr": 0.1},
}
BOTH = prefixed("model.", STATE) | prefixed("ema_model.module.", OTHER) | {"ema_model.n_averaged": torch.tensor(5)}
NOT_THE_MODEL = sorted(prefixed("model.", STATE) | {"ema_model.n_averaged": 0})


@pytest.mark.parametrize(
    ("content", "key", "prefix", "ignored"),
    [
        (LIGHTNING, "state_dict", "backbone.model.", sorted(LOST)),
        ({"state_dict": prefixed("net._orig_mod.", STATE) | LOST}, "state_dict", "net._orig_mod.", sorted(LOST)),
        ({"model": prefixed("module.", STATE), "args": argparse.Namespace(a=1), "epoch": 3}, "model", "module.", []),
        ({"checkpoint": {"model": STATE}}, "checkpoint.model", None, []),
        (prefixed("module.", STATE) | {"n_averaged": torch.tensor(5)}, None, "module.", ["n_averaged"]),
        (SHARDED, None, "_fsdp_wrapped_module.", []),
        ({name.replace("fc.", "fc._orig_mod."): value for name, value in STATE.items()}, None, None, []),
        (prefixed("a.module.b.", STATE), None, "a.module.b.", []),
        (prefixed("model.", STATE) | prefixed("teacher.", {"fc.weight": torch.ones(4, 3)}), None, "model.",
         ["teacher.fc.weight"]),
        (OTHER | prefixed("", STATE), None, None, []),
    ],
    ids=["lightning", "compiled", "parallel", "deep", "averaged", "sharded", "compiled in part", "in", "part", "as is"],
)  # fmt: skip
def test_names_under_a_prefix(tmp_path, content, key, prefix, ignored):
    path, model = tmp_path / "last.ckpt", network()
    torch.save(content, path)
    record = load_checkpoint(model, path)
    assert (record["key"], record["prefix"], record["ignored"]) == (key, prefix, ignored)
    assert record["tensors"] == len(STATE)
    assert record["dtypes"] == ["float32"]
    assert same(model)


@pytest.mark.parametrize(
    ("content", "places"),
    [
        (BOTH, {"model": STATE, "ema_model": OTHER, "ema_model.module": OTHER}),
        ({"state_dict": BOTH}, {"state_dict.model": STATE, "state_dict.ema_model": OTHER}),
        ({"state_dict": STATE, "state_dict_ema": OTHER}, {"state_dict": STATE, "state_dict_ema": OTHER}),
        ({"model": STATE, "model_ema": OTHER, "optimizer": OPTIMIZER}, {"model": STATE, "model_ema": OTHER}),
        ({"net": prefixed("m.", STATE), "ema": {"shadow": OTHER}},
         {"net": STATE, "net.m": STATE, "ema": OTHER, "ema.shadow": OTHER}),
    ],
    ids=["prefixes", "prefixes inside", "timm", "keys", "a prefix and a key"],
)  # fmt: skip
def test_two_that_would_do_are_never_chosen_between(tmp_path, content, places):
    path, model = tmp_path / "a.pt", network()
    torch.save(content, path)
    with refused("`checkpoint` ", "fit the model", "`checkpoint_key`") as caught:
        load_checkpoint(model, path)
    assert same(model, network().state_dict())
    offered = str(caught.value).partition("fit the model: ")[2].partition(";")[0].split(", ")
    assert len(offered) == 2
    for key, expected in {**places, **dict(zip(offered, (STATE, OTHER), strict=True))}.items():
        load_checkpoint(model, path, key)
        assert same(model, expected), key
    with refused("`checkpoint_key` nowhere", offered[0]):
        load_checkpoint(model, path, "nowhere")


def test_old_counters_do_not_choose(tmp_path):
    old = {name: value for name, value in STATE.items() if "num_batches" not in name}
    torch.save({"model": old, "model_ema": OTHER}, tmp_path / "a.pt")
    with refused("fit the model: model, model_ema"):
        load_checkpoint(network(), tmp_path / "a.pt")


def test_tied_tensors_do_not_choose(tmp_path):
    state = {f"{name}.weight": torch.ones(4, 3) for name in ("a.embedding", "a.head", "b.embedding")}
    torch.save(state, tmp_path / "a.pt")
    with refused("fit the model: a, b"):
        load_checkpoint(Tied(), tmp_path / "a.pt")


def test_a_copy_beside_names_that_fit_is_chosen_by_key_alone(tmp_path):
    path, model = tmp_path / "a.pt", network()
    torch.save(STATE | prefixed("ema_model.", OTHER), path)
    with refused("unexpected ema_model.fc.weight"):
        load_checkpoint(model, path)
    load_checkpoint(model, path, "ema_model")
    assert same(model, OTHER)


def test_what_a_key_leaves_out_is_reported(tmp_path):
    torch.save({"state_dict": BOTH}, tmp_path / "a.pt")
    record = load_checkpoint(network(), tmp_path / "a.pt", "state_dict.ema_model")
    assert record["key"] == "state_dict"
    assert record["prefix"] == "ema_model.module."
    assert record["ignored"] == NOT_THE_MODEL


def test_several_of_which_none_fits(tmp_path):
    torch.save({"a": {"x": torch.ones(1)}, "b": {"y": torch.ones(1), "fc.weight": torch.ones(4, 3)}}, tmp_path / "a.pt")
    with refused("none of its state dicts fits the model: a, b", "`checkpoint_key`"):
        load_checkpoint(network(), tmp_path / "a.pt")
    with refused("it has x, but the model has fc.weight"):
        load_checkpoint(network(), tmp_path / "a.pt", "a")


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.o = nn.LSTM(3, 4), nn.Linear(4, 2)


def test_a_foreign_checkpoint_is_not_paired(tmp_path):
    """Names that look alike by chance, as 0.weight and o.weight do, would mislead."""
    torch.save(Recurrent().state_dict(), tmp_path / "a.pt")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
    theirs = "lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0, o.weight and 1 more"
    ours = "0.weight, 0.bias, 2.weight, 2.bias"
    with refused(f"its names are not those of the model: it has {theirs}, but the model has {ours}; check `model`"):
        load_checkpoint(model, tmp_path / "a.pt")


@pytest.mark.parametrize("place", ["trunk", "body.block"])
def test_names_that_one_change_makes_the_models_are_paired(tmp_path, place):
    model = nn.ModuleDict({name: nn.ModuleDict({"body": nn.Linear(3, 4)}) for name in "ab"})
    torch.save({name.replace("body", place): value for name, value in model.state_dict().items()}, tmp_path / "a.pt")
    with refused(*(f"{name}.body.bias (the checkpoint has {name}.{place}.bias)" for name in "ab")):
        load_checkpoint(model, tmp_path / "a.pt")


def test_differences_are_told_below_the_prefix(tmp_path):
    state = prefixed("model.", {name.replace("fc.bias", "fc.bais"): value for name, value in STATE.items()}) | LOST
    torch.save(state, tmp_path / "a.pt")
    with refused(": missing fc.bias (the checkpoint has fc.bais); check"):
        load_checkpoint(network(), tmp_path / "a.pt")
    torch.save(prefixed("model.", changed(fc__extra=torch.ones(1))) | LOST, tmp_path / "a.pt")
    with refused(": unexpected fc.extra; check"):
        load_checkpoint(network(), tmp_path / "a.pt")


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
@pytest.mark.parametrize("prefix", ["", "module.", "net.", "net.module."])
def test_a_wrapped_model_takes_any_of_them(tmp_path, wrap, prefix):
    model = wrap(network())
    state = prefixed(prefix, STATE)
    if wrap is not nn.DataParallel:
        state[prefix.removesuffix("module.") + "n_averaged"] = torch.tensor(5)
    torch.save(state, tmp_path / "a.pt")
    load_checkpoint(model, tmp_path / "a.pt")
    assert same(model.module)


def test_a_part_of_the_model_that_is_named_like_a_wrapper_keeps_its_name(tmp_path):
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    state = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    both = nn.ModuleDict({"module": nn.ModuleDict({"a": nn.Linear(2, 2)}), "a": nn.Linear(2, 2)})  # one name when bare
    other = {name: torch.randn_like(value) for name, value in both.state_dict().items()}
    for net, wanted in ((model, state), (both, other)):
        for prefix in ("", "module.", "net._orig_mod."):
            torch.save(prefixed(prefix, wanted), tmp_path / "a.pt")
            load_checkpoint(net, tmp_path / "a.pt")
            assert same(net, wanted)


# --- versions of layers ---


class Versioned(nn.Linear):
    _version = 2
    seen: object = "nothing"

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        type(self).seen = metadata
        super()._load_from_state_dict(state, prefix, metadata, *rest)


@pytest.mark.parametrize("prefix", ["", "module.", "net.module."])
@pytest.mark.parametrize("wrap", [nn.Sequential, lambda net: nn.DataParallel(nn.Sequential(net))])
def test_a_layer_sees_the_version_that_was_saved_and_nothing_else(tmp_path, prefix, wrap):
    model = wrap(Versioned(2, 2))
    state = collections.OrderedDict(prefixed(prefix, nn.Sequential(nn.Linear(2, 2)).state_dict()))
    state._metadata = {f"{prefix}0": {"version": 7, "assign_to_params_buffers": True}, 3: 4, f"{prefix}1": "x"}
    if prefix:
        state._metadata["x" * len(prefix[:-1]) + ".0"] = {"version": 3}  # beside the prefix
    torch.save(state, tmp_path / "a.pt")
    load_checkpoint(model, tmp_path / "a.pt")
    assert Versioned.seen == {"version": 7}


def test_counters_that_old_batch_norms_lacked(tmp_path):
    """BatchNorm counts batches since its version 2: without a version or with an older one they may be missing."""
    path, model = tmp_path / "a.pt", network()
    for version in (None, 1, "two"):
        state = collections.OrderedDict((n, v) for n, v in prefixed("module.", STATE).items() if "num_batches" not in n)
        if version:
            state._metadata = {"module.norm": {"version": version}}
        torch.save(state, path)
        load_checkpoint(model, path)
    state._metadata = {"module.norm": {"version": 2}}
    torch.save(state, path)
    with refused("missing norm.num_batches_tracked"):
        load_checkpoint(model, path)


def test_weight_norm_of_old_lies_under_a_prefix(tmp_path):
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.Linear(2, 2), nn.Linear(2, 2))
    state = prefixed("model.", model.state_dict()) | LOST
    parts = {f"model.0.weight_{kind}": f"model.0.parametrizations.weight.original{i}" for i, kind in enumerate("gv")}
    old = {name: torch.rand_like(state.pop(new)) for name, new in parts.items()}
    torch.save(state | old, tmp_path / "a.pt")
    record = load_checkpoint(model, tmp_path / "a.pt")
    assert record["prefix"] == "model."
    assert torch.equal(model[0].parametrizations.weight.original1, old["model.0.weight_v"])


# --- kinds of numbers ---


def cast(dtype, state=STATE):
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}


KINDS = ["float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_precisions_are_copied_and_reported(tmp_path, kind, suffix):
    path, model, state = tmp_path / f"a{suffix}", network(), cast(getattr(torch, kind))
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path, metadata={"format": "pt", "__note__": "mine"})
    assert load_checkpoint(model, path)["dtypes"] == [kind]
    assert same(model, cast(torch.float32, state))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_mixed_precisions_are_all_reported(tmp_path):
    torch.save(changed(fc__weight=STATE["fc.weight"].half(), note__loss=torch.ones(1).double()), tmp_path / "a.pt")
    torch.save({"model." + k: v for k, v in torch.load(tmp_path / "a.pt").items() if k[0] != "n"}, tmp_path / "b.pt")
    model = nn.Sequential(collections.OrderedDict(fc=nn.Linear(3, 4)))
    assert load_checkpoint(model, tmp_path / "b.pt")["dtypes"] == ["float16", "float32"]


def quantised():
    with warnings.catch_warnings(action="ignore"):  # deprecated in torch 2.15
        return torch.quantize_per_tensor(torch.ones(4, 3), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (quantised(), ["float32 in the model, qint8 in the checkpoint", "dequantised"]),
        (torch.ones(4, 3, dtype=torch.int8), ["float32 in the model, int8 in the checkpoint", "dequantised"]),
        (torch.ones(4, 3, dtype=torch.complex64), ["complex64 in the checkpoint", "`model`"]),
        (torch.ones(4, 3).to_sparse(), ["sparse", "hold values"]),
        (torch.ones(4, 3, device="meta"), ["meta", "values"]),
    ],
    ids=["quantised", "int8", "complex", "sparse", "meta"],
)
def test_numbers_of_another_kind_are_refused(tmp_path, value, words):
    path, model = tmp_path / "a.pt", network()
    torch.save(changed(fc__weight=value), path)
    with refused("`checkpoint`", "fc.weight", *words):
        load_checkpoint(model, path)
    assert same(model, network().state_dict())


def test_complex_weights_of_a_complex_model(tmp_path):
    model = nn.Linear(2, 2, dtype=torch.complex64)
    state = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    assert load_checkpoint(model, tmp_path / "a.pt")["dtypes"] == ["complex64"]
    assert same(model, state)
    state["bias"][1] = complex(0, float("nan"))
    torch.save(state, tmp_path / "a.pt")
    with refused("bias holds values that are not finite"):
        load_checkpoint(model, tmp_path / "a.pt")


def test_parameters_views_and_one_storage(tmp_path):
    path, model, pool = tmp_path / "a.pt", network(), torch.arange(24.0)
    state = changed(fc__weight=nn.Parameter(pool[:12].view(3, 4).T), norm__weight=pool[12:20:2], norm__bias=pool[13:17])
    torch.save(state, path)
    load_checkpoint(model, path)
    assert same(model, {name: value.detach() for name, value in state.items()})
    with torch.no_grad():
        model.norm.weight.zero_()
    assert model.norm.bias.any()


def test_a_tied_tensor_in_two_precisions(tmp_path):
    model, weight = Tied(), torch.arange(12.0).reshape(4, 3)
    torch.save({"embedding.weight": weight, "head.weight": weight.double()}, tmp_path / "a.pt")
    load_checkpoint(model, tmp_path / "a.pt")
    assert torch.equal(model.head.weight, weight)


def test_a_tied_tensor_counts_once_in_finding_the_prefix(tmp_path):
    weight = torch.arange(12.0).reshape(4, 3)
    save_file({"lm.embedding.weight": weight, "loss.scale": torch.ones(1)}, tmp_path / "a.safetensors")
    model = Tied()
    record = load_checkpoint(model, tmp_path / "a.safetensors")
    assert (record["prefix"], record["tensors"], record["ignored"]) == ("lm.", 1, ["loss.scale"])
    assert torch.equal(model.head.weight, weight)


def test_buffers_that_are_not_persistent_stay_as_built(tmp_path):
    model, weight = nn.Linear(2, 2), torch.ones(2, 2)
    model.register_buffer("mask", torch.eye(2), persistent=False)
    torch.save({"weight": weight, "bias": weight[0]}, tmp_path / "a.pt")
    assert load_checkpoint(model, tmp_path / "a.pt")["tensors"] == 2
    assert torch.equal(model.mask, torch.eye(2))


class Stubborn(nn.Linear):
    def set_extra_state(self, state):
        raise ValueError("the first line\nno extra state today")

    def get_extra_state(self):
        return 1


def test_a_layer_that_fails_while_loading(tmp_path):
    model = Stubborn(2, 2)
    before = {name: value.clone() for name, value in model.named_parameters()}
    torch.save({"weight": torch.ones(2, 2), "bias": torch.ones(2), "_extra_state": {"a": 1}}, tmp_path / "a.pt")
    with refused("loading failed with ValueError: no extra state today"):
        load_checkpoint(model, tmp_path / "a.pt")
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


class Noted(nn.Linear):
    def get_extra_state(self):
        return None

    def set_extra_state(self, state):
        assert state is None


def test_equal_extra_states_are_not_taken_for_tied_tensors(tmp_path):
    model = nn.Sequential(Noted(2, 2), Noted(2, 2))
    state = {name: None if "extra" in name else value + 1 for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    load_checkpoint(model, tmp_path / "a.pt")
    assert all(torch.equal(value, state[name]) for name, value in model.named_parameters())
    del state["0._extra_state"]
    torch.save(state, tmp_path / "a.pt")
    with refused("missing 0._extra_state"):
        load_checkpoint(model, tmp_path / "a.pt")


def test_an_interrupt_leaves_the_model_as_it_was(tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    model = network()
    torch.save(STATE, tmp_path / "a.pt")
    model.norm.register_load_state_dict_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(model, tmp_path / "a.pt")
    assert same(model, network().state_dict())


def test_arrays_in_place_of_tensors_are_named(tmp_path):
    torch.save({"fc.weight": np.ones((4, 3)), "fc.bias": np.ones(4)}, tmp_path / "a.pt")
    with refused("no state dict", "fc.weight (NumPyArray)", "torch.save("):
        load_checkpoint(network(), tmp_path / "a.pt")


# --- indices of shards, and folders ---

NAMES = list(STATE)
INDEX = {".safetensors": "model.safetensors.index.json", ".bin": "pytorch_model.bin.index.json"}


def shards(folder, suffix=".safetensors", **changes):
    """Two shards and their index, whose map is changed by name."""
    files = {f"model-0000{i}-of-00002{suffix}": NAMES[i - 1 :: 2] for i in (2, 1)}
    for file, names in files.items():
        state = {name: STATE[name] for name in names}
        torch.save(state, folder / file) if suffix == ".bin" else save_file(state, folder / file)
    places = {name: file for file, names in files.items() for name in names}
    places |= {name.replace("__", "."): file for name, file in changes.items()}
    index = folder / INDEX[suffix]
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("suffix", INDEX)
def test_an_index_of_shards(tmp_path, suffix):
    index, model = shards(tmp_path, suffix), network()
    record = load_checkpoint(model, index)
    assert same(model)
    assert (record["tensors"], record["key"], record["prefix"]) == (len(STATE), None, None)
    files = [index, *sorted(tmp_path.glob(f"model-*{suffix}"))]
    lines = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    assert record["sha256"] == hashlib.sha256(lines.encode()).hexdigest()


def test_shards_may_be_links_as_in_a_cache(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    shards(tmp_path / "blobs")
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    model = network()
    load_checkpoint(model, tmp_path / "snapshot" / INDEX[".safetensors"])
    assert same(model)


SHARD = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / SHARD).unlink(), [SHARD, "are missing; copy all shards"]),
        (lambda folder: shards(folder, fc__weight="../elsewhere.safetensors"), ["'../elsewhere", "not read"]),
        (lambda folder: shards(folder, fc__weight="/etc/passwd"), ["'/etc/passwd'", "not read"]),
        (lambda folder: shards(folder, fc__weight="..\\a.bin"), ["a.bin", "not read"]),
        (lambda folder: shards(folder, fc__weight=".."), ["'..'", "not read"]),
        (lambda folder: shards(folder, fc__weight="\0"), ["'\\x00'", "not read"]),
        (lambda folder: shards(folder, fc__weight=3), ["no weight_map"]),
        (lambda folder: shards(folder, fc__scale=SHARD), [f"its shard {SHARD} lacks fc.scale"]),
        (lambda folder: (folder / SHARD).write_bytes(b""), [SHARD, "empty"]),
        (lambda folder: (folder / SHARD).write_bytes(bytes(range(200))), [SHARD, "damaged"]),
        (lambda folder: shards(folder, fc__weight=INDEX[".safetensors"]), ["text file"]),
        (lambda folder: (folder / INDEX[".safetensors"]).write_text("{'a'"), ["not valid JSON", "copy it again"]),
        (lambda folder: (folder / INDEX[".safetensors"]).write_bytes(b"\xff\xfe\xff"), ["not valid JSON"]),
        (lambda folder: (folder / INDEX[".safetensors"]).write_text("[" * 100_000), ["not valid JSON"]),
        (lambda folder: (folder / INDEX[".safetensors"]).write_text("[1]"), ["no weight_map"]),
        (lambda folder: (folder / INDEX[".safetensors"]).write_text('{"weight_map": {}}'), ["no weight_map"]),
    ],
)
def test_an_index_that_cannot_be_followed(tmp_path, spoil, words):
    index, model = shards(tmp_path), network()
    save_file(STATE, tmp_path.parent / "elsewhere.safetensors")
    spoil(tmp_path)
    with refused("`checkpoint`", str(tmp_path), *words):
        load_checkpoint(model, index)
    assert same(model, network().state_dict())


def test_code_in_a_shard_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index = shards(tmp_path, ".bin")
    torch.save({"fc.weight": Evil()}, tmp_path / "model-00001-of-00002.bin")
    with refused("model-00001-of-00002.bin", *CODE):
        load_checkpoint(network(), index)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["last.ckpt", "log.txt"], ["name the file in it: ", "last.ckpt"]),
        (["weights.safetensors", "config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"],
         ["name the file in it: ", "weights.safetensors"]),
        (["weights-00001-of-00002.safetensors", "weights.safetensors.index.json"],
         ["name the file in it: ", "weights.safetensors.index.json"]),
        (["a.pt", "b.pt"], ["name one of the files in it: a.pt, b.pt"]),
        (["log.txt"], ["name a file of weights"]),
    ],
)  # fmt: skip
def test_a_folder_says_which_file_would_do(tmp_path, files, words):
    folder = tmp_path / "run"
    folder.mkdir()
    for file in files:
        (folder / file).write_text("x")
    with refused(f"`checkpoint` {folder}: it is a folder; ", *words):
        load_checkpoint(network(), folder)


def test_a_configuration_in_place_of_an_index(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["Net"]}')
    with refused("config.json", "no weight_map", f"name the file in it: {tmp_path / 'model.safetensors'}"):
        load_checkpoint(network(), tmp_path / "config.json")


def test_a_path_that_no_system_takes():
    with refused("`checkpoint`", "File name too long"):
        load_checkpoint(network(), "a" * 5000)


FOREIGN = {
    "a.pt2": ("torch.export", "torch.export.load(file).state_dict", "is code", "`model`"),
    "exported.pt": ("torch.export", "torch.export.load(file).state_dict", "is code", "`model`"),
    "__0_0.distcp": ("torch.distributed.checkpoint", "copy its folder again, with .metadata"),
    "a.npz": ("a file of NumPy arrays", "torch.from_numpy"),
    "arrays.pt": ("a file of NumPy arrays", "torch.from_numpy"),
    "a.gguf": ("GGUF", "state_dict"),
    "folder of DeepSpeed": ("DeepSpeed", "deepspeed.utils.zero_to_fp32"),
    "folder of PEFT": ("PEFT adapter", "merge_and_unload"),
    "adapter_model.safetensors": ("PEFT adapter", "merge_and_unload"),
}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Files and folders that hold weights in another way, made by the libraries themselves where those are here."""
    import torch.distributed.checkpoint as dcp

    folder = tmp_path_factory.mktemp("foreign")
    torch.export.save(torch.export.export(nn.Linear(3, 4), (torch.ones(2, 3),)), folder / "a.pt2")
    (folder / "exported.pt").write_bytes((folder / "a.pt2").read_bytes())
    with warnings.catch_warnings(action="ignore"):
        dcp.save(dict(STATE), checkpoint_id=folder / "sharded")
    (part,) = (folder / "sharded").glob("*.distcp")
    (folder / "__0_0.distcp").write_bytes(part.read_bytes())
    np.savez(folder / "a.npz", weight=np.ones(3))
    (folder / "arrays.pt").write_bytes((folder / "a.npz").read_bytes())
    (folder / "a.gguf").write_bytes(b"GGUF" + bytes(60))
    (folder / "folder of DeepSpeed").mkdir()
    (folder / "folder of DeepSpeed/zero_to_fp32.py").touch()
    (folder / "folder of PEFT").mkdir()
    (folder / "folder of PEFT/adapter_config.json").write_text("{}")
    adapter = {f"base_model.model.fc.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    save_file(adapter, folder / "folder of PEFT/adapter_model.safetensors")
    save_file(adapter, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_are_named_with_a_way_out(name, foreign):
    with refused("`checkpoint`", name, *FOREIGN[name]):
        load_checkpoint(network(), foreign / name)


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.net = inner


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_a_prefix_of_the_model_is_added(depth, prefix, tmp_path):
    """A model that wraps another takes the weights of that other, whatever wrapper those were saved from."""
    model = network()
    for _ in range(depth):
        model = Wrapper(model)
    torch.save(prefixed(prefix, STATE), tmp_path / "a.pt")
    record = load_checkpoint(model, tmp_path / "a.pt")
    assert record["added"] == "net." * depth
    assert record["prefix"] == (prefix or None)
    assert same(model, prefixed("net." * depth, STATE))
    torch.save(prefixed("net." * depth, STATE), tmp_path / "a.pt")  # nothing to add
    assert load_checkpoint(model, tmp_path / "a.pt")["added"] is None


def test_a_prefix_is_added_to_versions_of_layers_too(tmp_path):
    torch.save(network(seed=1).state_dict(), tmp_path / "a.pt")
    state = network(seed=1).state_dict()
    state.pop("norm.num_batches_tracked")
    state._metadata["norm"] = {"version": 1}  # of a torch that had no counters yet
    torch.save(state, tmp_path / "old.pt")
    assert load_checkpoint(Wrapper(network()), tmp_path / "old.pt")["added"] == "net."
