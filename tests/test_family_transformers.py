"""Models of transformers, built from configurations, against dense autograd in float64."""

import json
import os
import pickle
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense import Dense, eigenvalues, largest
from helpers import arrays_of
from torch import nn

import spectra
from spectra.cli import run
from spectra.curvature.operator import Curvature
from spectra.inputs.problem import load_problem

transformers = pytest.importorskip("transformers")

TOKENS, LENGTH, N = 13, 5, 4
CLASSES = "cross_entropy?class_dim=-1"
SMALL = {
    "gpt2": {
        "n_layer": 1,
        "n_embd": 4,
        "n_head": 2,
        "vocab_size": TOKENS,
        "n_positions": LENGTH,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "bert": {
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 6,
        "vocab_size": TOKENS,
        "max_position_embeddings": LENGTH,
    },
    "llama": {
        "hidden_size": 4,
        "intermediate_size": 6,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": TOKENS,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
        "bos_token_id": 0,
    },
    "mixtral": {
        "hidden_size": 4,
        "intermediate_size": 6,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": TOKENS,
        "num_local_experts": 3,
        "eos_token_id": 0,
        "bos_token_id": 0,
    },
}
CLASS = {
    "gpt2": "GPT2LMHeadModel",
    "bert": "BertForSequenceClassification",
    "llama": "LlamaForCausalLM",
    "mixtral": "MixtralForCausalLM",
}
EXPERTS = {kind: {"experts_implementation": "eager"} if kind == "mixtral" else {} for kind in SMALL}
SIZES = {"gpt2": 324, "bert": 272, "llama": 200}  # tied embeddings once


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    np.savez("tokens.npz", x=draw.integers(0, TOKENS, (N, LENGTH)), y=draw.integers(0, TOKENS, (N, LENGTH)))
    # Token 0 is padding to BERT, whose embedding autograd holds fixed.
    np.savez("labels.npz", x=draw.integers(1, TOKENS, (N, LENGTH)), y=draw.integers(0, 2, N))
    return tmp_path


def built(kind: str, seed: int = 1, **changes) -> nn.Module:
    """A model of its configuration, with weights larger than at the start, so that nothing is nearly linear."""
    config = transformers.CONFIG_MAPPING[kind](**SMALL[kind] | changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, CLASS[kind])(config)
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return model.eval()


def saved(kind: str, dtype=torch.float32, **options) -> None:
    built(kind).to(dtype).save_pretrained("saved", **options)


def reference(kind: str) -> Dense:
    """Dense autograd on the model that transformers itself reads from the folder."""
    model = getattr(transformers, CLASS[kind]).from_pretrained("saved", dtype=torch.float64, **EXPERTS[kind]).eval()
    data = "labels" if kind == "bert" else "tokens"
    x, y = (torch.from_numpy(arrays_of(f"{data}.npz")[name]) for name in "xy")
    return Dense(
        model,
        lambda call: call(x, use_cache=False).logits if kind != "bert" else call(x).logits,
        lambda logits: F.cross_entropy(logits.flatten(0, -2), y.flatten()),
    )


def arguments(kind: str, loss: str = CLASSES) -> list[str]:
    return ["--data", "labels.npz" if kind == "bert" else "tokens.npz", "--loss", loss]


@pytest.mark.parametrize(
    ("kind", "dtype", "options", "auto"),
    [
        ("gpt2", torch.float32, {}, "AutoModelForCausalLM"),
        ("gpt2", torch.float64, {}, "GPT2LMHeadModel"),
        ("bert", torch.float32, {}, "AutoModelForSequenceClassification"),
        ("llama", torch.bfloat16, {"max_shard_size": 150}, "AutoModelForCausalLM"),
        ("mixtral", torch.float16, {}, "AutoModelForCausalLM"),
    ],
)
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.sampled(4)
def test_a_folder_has_the_matrices_of_its_model(kind, dtype, options, auto, curvature, capfd):
    saved(kind, dtype, **options)
    index = Path("saved/model.safetensors.index.json").exists()
    assert index == bool(options)
    dense = reference(kind)
    record = eigenvalues(
        capfd, "--model", f"transformers:{auto}?path=saved", *arguments(kind), "--curvature", curvature, "-k", "6"
    )
    expected = largest(getattr(dense, curvature)(), 6)
    # Rotary embeddings, RMSNorm and experts are in float32 in any case.
    exact = kind in ("gpt2", "bert")
    assert record["results"][0]["eigenvalues"] == pytest.approx(expected, rel=1e-9 if exact else 1e-4)
    assert record["problem"]["parameters"] == dense.point.numel() == SIZES.get(kind, dense.point.numel())
    (note,) = [line for line in record["problem"]["notes"] if line.startswith("weights are those of saved/model.")]
    assert str(dtype).removeprefix("torch.") in note


def test_a_configuration_of_options_is_drawn_by_the_seed(capfd):
    query = "&".join(f"{key}={value}" for key, value in SMALL["gpt2"].items())
    torch.manual_seed(3)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL["gpt2"])).double().eval()
    torch.save(model.state_dict(), "weights.pt")
    own, auto, loaded = (
        eigenvalues(capfd, "--model", name, *arguments("gpt2"), "-k", "3", *rest)
        for name, rest in (
            (f"transformers:GPT2LMHeadModel?{query}", ["--seed", "3"]),
            (f"transformers:AutoModelForCausalLM?model_type=gpt2&{query}", ["--seed", "3"]),
            (f"transformers:GPT2LMHeadModel?{query}", ["--checkpoint", "weights.pt"]),
        )
    )
    assert own["results"][0]["eigenvalues"] == auto["results"][0]["eigenvalues"]
    x, y = (torch.from_numpy(arrays_of("tokens.npz")[name]) for name in "xy")
    dense = Dense(model, lambda call: call(x).logits, lambda z: F.cross_entropy(z.flatten(0, 1), y.flatten()))
    for record in (own, loaded):
        assert record["results"][0]["eigenvalues"] == pytest.approx(largest(dense.hessian(), 3), rel=1e-6)
    assert own["problem"]["notes"] == loaded["problem"]["notes"] == []


def test_a_folder_without_weights_is_drawn_by_the_seed_and_says_so(capfd):
    built("gpt2").config.save_pretrained("saved")
    record = eigenvalues(capfd, "--model", "transformers:GPT2LMHeadModel?path=saved", *arguments("gpt2"), "-k", "1")
    assert record["problem"]["notes"] == ["weights are random, from the seed: saved holds none"]
    torch.save(built("gpt2").state_dict(), "weights.pt")
    line = ["--model", "transformers:GPT2LMHeadModel?path=saved", "--checkpoint", "weights.pt", *arguments("gpt2")]
    record = eigenvalues(capfd, *line, "-k", "1")
    saved("gpt2")
    assert record["results"][0]["eigenvalues"] == pytest.approx(largest(reference("gpt2").hessian(), 1), rel=1e-9)
    assert record["problem"]["notes"] == []


def test_pickled_weights_are_read_as_weights_alone(capfd):
    saved("gpt2")
    expected = largest(reference("gpt2").hessian(), 2)
    Path("saved/model.safetensors").unlink()
    torch.save(built("gpt2").state_dict(), "saved/pytorch_model.bin")
    line = ["--model", "transformers:GPT2LMHeadModel?path=saved", *arguments("gpt2"), "-k", "2"]
    assert eigenvalues(capfd, *line)["results"][0]["eigenvalues"] == pytest.approx(expected, rel=1e-9)
    with open("saved/pytorch_model.bin", "wb") as file:
        pickle.dump(Evil(), file)
    refused(capfd, "transformers:GPT2LMHeadModel?path=saved", "--model saved/pytorch_model.bin", "could run code")


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def refused(capfd, model: str, *fragments: str, data: str = "tokens.npz") -> None:
    capfd.readouterr()
    status = run(["eig", "--model", model, "--data", data, "--loss", CLASSES])
    out, err = capfd.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), err
    for fragment in fragments:
        assert fragment in err, err
    assert not Path("ran").exists()


CODE = "from pathlib import Path\nPath('ran').touch()\nfrom transformers import GPT2LMHeadModel as Own\n"


@pytest.mark.parametrize("model_type", ["gpt2", "own"])
def test_code_in_a_folder_is_not_run(model_type, capfd):
    saved("gpt2")
    config = json.loads(Path("saved/config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.Own"}}
    Path("saved/config.json").write_text(json.dumps(config))
    Path("saved/own.py").write_text(CODE)
    name = "transformers:AutoModelForCausalLM?path=saved"
    if model_type == "own":
        refused(capfd, name, "is not run", "file.py:Class")
    else:
        assert eigenvalues(capfd, "--model", name, *arguments("gpt2"), "-k", "1")
    refused(capfd, f"{name}&trust_remote_code=true", "trust_remote_code", "not run")
    assert not Path("ran").exists()


def changed(**values) -> None:
    config = json.loads(Path("saved/config.json").read_text()) | values
    Path("saved/config.json").write_text(json.dumps(config))


REFUSED = {
    "transformers:gpt2": ["not downloaded", "hf download gpt2"],
    "transformers:openai-community/gpt2": ["not downloaded", "path=FOLDER"],
    "transformers:AutoModelForCausalLM?path=gpt2": ["no such folder", "hf download gpt2"],
    "transformers:pipeline": ["has no model pipeline"],
    "transformers:GPT2LMHeadMdel": ["did you mean GPT2LMHeadModel"],
    "transformers:AutoModelForCausalLM": ["model_type=gpt2", "path=FOLDER"],
    "transformers:AutoModelForCausalLM?model_type=gpt22": ["no model_type gpt22", "gpt2"],
    "transformers:GPT2LMHeadModel?n_embed=3": ["no n_embed", "n_embd"],
    "transformers:GPT2LMHeadModel?n_embd=5&n_head=2": ["building it failed", "what follows '?'"],
    "transformers:BertModel?path=saved": ["model_type is bert", "GPT2LMHeadModel"],
    "transformers:AutoModelForSequenceClassification?path=saved": [
        "score.weight missing",
        "GPT2LMHeadModel; name that",
    ],
    "transformers:GPT2LMHeadModel?path=saved&n_embd=6": ["(12,) instead of (18,)", "what follows '?'"],
    "transformers:GPT2LMHeadModel?path=saved&attn_implementation=flash_attention_2": ["eager and sdpa"],
    "transformers:GPT2LMHeadModel?path=saved&weights_only=false": ["no weights_only"],
    "transformers:PreTrainedModel?path=saved": ["base class"],
    "transformers:GPT2LMHeadModel?path=tokens.npz": ["it is a file"],
    "transformers:GPT2LMHeadModel?path=.": ["no config.json", "save_pretrained"],
    "transformers:AutoModelForImageClassification?path=saved": ["GPT2LMHeadModel; write that class in place of"],
    "transformers:AutoModelForCausalLM?model_type=vit": ["AutoModelForCausalLM has no class for model_type vit"],
    "transformers:saved": ["it is a folder", "transformers:GPT2LMHeadModel?path=saved"],
    "saved": ["it is a folder", "transformers:GPT2LMHeadModel?path=saved"],
    ".": ["it is a folder", "transformers:AutoModel?path=."],
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.sampled(8)
def test_what_cannot_be_built_is_one_line(name, capfd):
    saved("gpt2")
    refused(capfd, name, *REFUSED[name])


def test_weights_that_are_not_there_are_never_random(capfd):
    saved("gpt2")
    name = "transformers:GPT2LMHeadModel?path=saved"
    changed(n_layer=2)
    refused(capfd, name, "transformer.h.1.", "missing", "random")
    changed(n_layer=1, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    refused(capfd, name, "quantised")
    Path("saved/model.safetensors").rename("saved/model.fp16.safetensors")
    Path("saved/config.json").write_text(json.dumps({"model_type": "gpt2"}))
    refused(capfd, name, "model.fp16.safetensors", "pytorch_model.bin")
    Path("saved/config.json").write_text("{")
    refused(capfd, name, "saved/config.json", "copy it again")


@pytest.mark.parametrize("name", ["weights", "loss_mask"])
def test_weights_that_the_models_own_loss_does_not_take(name, capfd):
    saved("gpt2")
    tokens = arrays_of("tokens.npz")["x"]
    np.savez("weighted.npz", input_ids=tokens, labels=tokens, **{name: np.ones_like(tokens)})
    capfd.readouterr()
    line = "eig --model transformers:AutoModelForCausalLM?path=saved --data weighted.npz --loss model"
    status = run(line.split())
    out, err = capfd.readouterr()
    assert (status, out) == (2, "")
    assert f"the model's own loss ignores {name}; " in err


def test_tensors_that_are_not_used_are_told(capfd):
    saved("gpt2")
    tensors = dict(built("gpt2").state_dict()) | {"v_head.weight": torch.ones(3)}
    del tensors["lm_head.weight"]
    Path("saved/model.safetensors").unlink()
    torch.save(tensors, "saved/pytorch_model.bin")
    name = "transformers:GPT2LMHeadModel?path=saved"
    notes = eigenvalues(capfd, "--model", name, *arguments("gpt2"), "-k", "1")["problem"]["notes"]
    assert "1 tensor of saved/pytorch_model.bin not used: v_head.weight" in notes


def test_without_the_package_one_line_says_what_to_install(capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    refused(capfd, "transformers:GPT2LMHeadModel", "pip install transformers")


def test_settings_of_transformers_are_left_as_they_were():
    from huggingface_hub import constants
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), constants.HF_HUB_OFFLINE
    saved("gpt2")
    load_problem(model="transformers:GPT2LMHeadModel?path=saved", data="tokens.npz", loss=CLASSES, device="cpu")
    assert before == (logging.get_verbosity(), logging.is_progress_bar_enabled(), constants.HF_HUB_OFFLINE)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_half_module_in_python_is_copied(kind):
    model = built(kind).to(torch.bfloat16)
    model.save_pretrained("saved")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = (torch.from_numpy(arrays_of("tokens.npz")[name]) for name in "xy")
    model.config.use_cache = False
    found = spectra.eig(model, spectra.CrossEntropy(class_dim=-1), [(x, y)], k=3, method="dense", dtype="float64")
    assert found.values == pytest.approx(largest(reference(kind).hessian(), 3), rel=1e-4)
    found = spectra.eig(model, spectra.CrossEntropy(class_dim=-1), [(x, y)], k=3, method="dense")
    assert found.values == pytest.approx(largest(reference(kind).hessian(), 3), rel=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.dtype == torch.bfloat16


def test_a_result_and_a_plan_may_name_a_folder(capfd):
    saved("gpt2")
    line = "--model transformers:AutoModelForCausalLM?path=saved --data tokens.npz"
    assert run(shlex.split(f"eig {line} --loss {CLASSES} -k 1 --out a")) == 0
    assert run(shlex.split("eig --config a/eig.json -k 2 --json")) == 0, capfd.readouterr().err


def test_files_that_a_configuration_names_are_read_as_weights_alone(capfd, monkeypatch):
    helpers = pytest.importorskip("timm.models._helpers")
    as_before = lambda path, *args, **options: torch.load(path, weights_only=False)  # noqa: E731, timm up to 1.0.9
    monkeypatch.setattr(helpers, "_torch_load", as_before, raising=False)
    Path("saved").mkdir()
    with open("evil.bin", "wb") as file:
        pickle.dump(Evil(), file)
    config = {"model_type": "timm_wrapper", "architecture": "resnet10t", "num_classes": 2, "label_names": ["a", "b"]}
    config["model_args"] = {"checkpoint_path": "evil.bin"}
    Path("saved/config.json").write_text(json.dumps(config))
    refused(capfd, "transformers:AutoModelForImageClassification?path=saved", "could run code")


def test_infinite_values_of_a_configuration_are_numbers():
    config = transformers.GPT2Config(**SMALL["gpt2"], limit=[0.0, float("inf")])
    config.save_pretrained("saved")
    name = "transformers:GPT2LMHeadModel?path=saved"
    found = load_problem(model=name, data="tokens.npz", loss=CLASSES, device="cpu").problem.model.config
    assert [*found.limit] == [0.0, float("inf")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_folder_of_a_stranger_neither_hangs_nor_reads_elsewhere(capfd):
    saved("gpt2", max_shard_size=500)
    index = Path("saved/model.safetensors.index.json")
    content = json.loads(index.read_text())
    places = dict.fromkeys(content["weight_map"], "../outside.safetensors")
    index.write_text(json.dumps(content | {"weight_map": places}))
    name = "transformers:GPT2LMHeadModel?path=saved"
    refused(capfd, name, "--model saved/model.safetensors.index.json", "outside.safetensors")
    Path("saved/config.json").unlink()
    os.mkfifo("saved/config.json")
    refused(capfd, name, "named pipe")
    for text in ("[" * 100_000, "{}[", '["gpt2"]', '{"model_type": ["gpt2"]}', '{"n_layer": "\\u001b[2J"}'):
        Path("saved/config.json").unlink()
        Path("saved/config.json").write_text(text)
        refused(capfd, name, "--model")


# Less memory.


@pytest.mark.parametrize(("kind", "curvature"), [("gpt2", "hessian"), ("llama", "ggn")])
@pytest.mark.sampled(1)
def test_less_memory_changes_no_number(kind, curvature, capfd):
    layers = {"n_layer": 2} if kind == "gpt2" else {"num_hidden_layers": 2}
    built(kind, vocab_size=600, **layers).save_pretrained("saved")
    line = ["eig", "--model", "transformers:AutoModelForCausalLM?path=saved", *arguments(kind), "--dtype", "float64"]
    line += ["--curvature", curvature, "-k", "1", "--tol", "1e-7" if kind == "gpt2" else "1e-5", "--json"]
    found = []
    for rest in ([], ["--memory", "450kB", "--recompute-activations"]):
        capfd.readouterr()
        assert run([*line, *rest]) == 0
        found += json.loads(capfd.readouterr().out)["results"]
    plain, lean = found
    assert lean["eigenvalues"] == pytest.approx(plain["eigenvalues"], rel=1e-9 if kind == "gpt2" else 1e-4)
    assert lean["peak_bytes"] <= 450_000 < plain["peak_bytes"]
    assert "recomputed" not in plain["path"]
    assert "chunks" not in plain["path"]
    assert "; logits in chunks of " in lean["path"]
    assert lean["path"].endswith("; activations of 2 blocks recomputed")


@pytest.mark.parametrize("reentrant", [True, False])
def test_models_that_checkpoint_their_own_activations(reentrant):
    """In eval mode transformers' models do not; the numbers are the same in any case."""
    x, y = (torch.from_numpy(arrays_of("tokens.npz")[name]) for name in "xy")
    found = []
    for enabled, lean in ((False, None), (True, None), (True, True)):
        model = built("gpt2", n_layer=2).double()
        if enabled:
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": reentrant})
        batch = spectra.Batch({"input_ids": x}, y, torch.arange(N))
        problem = spectra.Problem(model, spectra.CrossEntropy(class_dim=-1), [batch], recompute_activations=lean)
        vector = torch.ones(problem.size, dtype=torch.float64)
        found.append(torch.stack([spectra.Curvature(problem, m, products=0) @ vector for m in ("hessian", "ggn")]))
    for products in found[1:]:
        torch.testing.assert_close(products, found[0], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", SIZES)
def test_language_models_are_traced(kind):
    """Some read values of tensors that depend on no data, as of positions."""
    model = built(kind)  # in float32, to which Llama rounds its values inside in any case
    data = [(torch.randint(7, (4, 5)), torch.randint(7, (4, 5)))]
    if kind == "bert":
        data = [(data[0][0], torch.randint(2, (4,)))]
    problem = load_problem(model=model, data=data).problem
    matrix = Curvature(problem, "ggn", products=10**9)
    matrix.prepare()
    assert matrix.path.startswith("hoisted"), matrix.path
