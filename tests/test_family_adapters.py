"""PEFT adapters on a base model: the spectrum over the adapter's parameters alone, and files that would do more."""

import copy
import json
import os
import pickle
import shlex
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_inputs import refused
from torch import nn
from torch.func import functional_call

from spectra.cli import run
from spectra.inputs.checkpoint import load_checkpoint, read_parameters
from spectra.inputs.checkpoint_file import digest_of
from spectra.inputs.problem import load_problem
from spectra.sweeps.plan import read_plan

with warnings.catch_warnings(action="ignore"):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.fc, self.norm, self.head = nn.Embedding(6, 4), nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.norm(torch.tanh(self.fc(self.emb(x))))).mean(1)

def build():
    torch.manual_seed(3)
    return Net()

class Wrapper(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)

def wrapped():
    return Wrapper(build())

def language(kind="GPT2LMHeadModel", **options):
    import transformers
    torch.manual_seed(3)
    small = {"vocab_size": 6, "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 2, "bos_token_id": 0,
             "eos_token_id": 0}
    if kind.startswith("Llama"):
        small = {"vocab_size": 6, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
                 "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True, "pad_token_id": 0,
                 "bos_token_id": 0, "eos_token_id": 0}
    config = getattr(transformers, kind.replace("LMHeadModel", "Config").replace("ForCausalLM", "Config"))(**small)
    return getattr(transformers, kind)(config)

class Last(nn.Module):
    def __init__(self, lm):
        super().__init__()
        self.lm = lm

    def forward(self, x):
        return self.lm(x).logits[:, -1]

def last(kind="GPT2LMHeadModel"):
    return Last(language(kind))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    np.savez("points.npz", x=draw.integers(0, 6, (7, 3)), y=draw.integers(0, 3, 7))
    yield
    assert not Path("ran").exists()


def named(function, **options) -> nn.Module:
    """What a function of nets.py makes, in float64."""
    space = {}
    exec(NETS, space)
    return space[function](**options).double()


def adapter(path, base, kind="Lora", **options):
    """An adapter of random values on a copy of the base, saved by peft; the adapted model comes back."""
    with warnings.catch_warnings(action="ignore"):
        model = peft.get_peft_model(copy.deepcopy(base), getattr(peft, f"{kind}Config")(**options))
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(path)
    return model.eval()


def points():
    with np.load("points.npz") as held:
        return torch.from_numpy(held["x"]), torch.from_numpy(held["y"])


def dense_hessian(parameters, loss):
    """The Hessian of `loss` of a dictionary of tensors."""
    sizes = [value.numel() for value in parameters.values()]
    flat = torch.cat([value.detach().flatten() for value in parameters.values()])

    def of(vector):
        parts = zip(parameters.items(), vector.split(sizes), strict=True)
        return loss({name: part.view_as(value) for (name, value), part in parts})

    return torch.autograd.functional.hessian(of, flat)


def eigenvalues(matrix, k):
    spectrum = torch.linalg.eigvalsh(matrix)
    return spectrum[spectrum.abs().argsort(descending=True)][:k].tolist()


def spectrum_of(line, capfd):
    capfd.readouterr()
    status = run(shlex.split(f"eig {line} --data points.npz --dtype float64 --tol 1e-9 --json"))
    out, err = capfd.readouterr()
    assert status == 0, err
    record = json.loads(out)
    return record["problem"], record["results"][0]["eigenvalues"]


def test_the_hessian_over_low_rank_parameters(capfd):
    """LoRA by its formula: W x + (alpha / r) B A x, in plain PyTorch, without peft."""
    base = named("build")
    adapter("last", base, target_modules=["fc", "head"], r=2, lora_alpha=3, rank_pattern={"head": 1})
    held = {
        name.removeprefix("base_model.model."): value
        for name, value in load_file("last/adapter_model.safetensors").items()
    }
    held = {name: value.double() for name, value in held.items()}
    x, y = points()

    def loss(low):
        weights = dict(base.named_parameters())
        for layer, rank in (("fc", 2), ("head", 1)):
            change = low[f"{layer}.lora_B.weight"] @ low[f"{layer}.lora_A.weight"]
            weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + 3 / rank * change
        return nn.functional.cross_entropy(functional_call(base, weights, (x,)), y)

    matrix = dense_hessian(held, loss)
    problem, found = spectrum_of("--model nets.py:build --checkpoint last -k 6", capfd)
    assert found == pytest.approx(eigenvalues(matrix, 6), rel=1e-7)
    assert problem["parameters"] == len(matrix) == 2 * (4 + 5) + (5 + 3)
    assert problem["loss_value"] == pytest.approx(loss(held).item(), rel=1e-12)
    every = sum(p.numel() for p in base.parameters()) + len(matrix)
    assert problem["notes"] == [
        f"LORA adapter: {len(matrix)} of {every} parameters are its own; those of the base model are frozen"
    ]
    assert problem["checkpoint_sha256"] == digest_of(Path("last"))


CASES = {
    "LoRA": ("build", "Lora", {"target_modules": ["fc"]}),
    "LoRA, a pattern": ("build", "Lora", {"target_modules": "(f.*|emb)", "use_rslora": True}),
    "LoRA and a head": ("build", "Lora", {"target_modules": ["fc"], "modules_to_save": ["head"]}),
    "LoRA and biases": ("build", "Lora", {"target_modules": ["fc"], "bias": "all"}),
    "LoRA of tokens": ("build", "Lora", {"target_modules": ["fc"], "trainable_token_indices": {"emb": [1, 2]}}),
    "LoRA of a parameter": ("build", "Lora", {"target_modules": [], "target_parameters": ["fc.weight"]}),
    "AdaLoRA": ("build", "AdaLora", {"target_modules": ["fc"], "total_step": 9, "init_r": 3}),
    "IA3": ("build", "IA3", {"target_modules": ["fc", "head"], "feedforward_modules": ["head"]}),
    "LoHa": ("build", "LoHa", {"target_modules": ["fc"], "r": 2}),
    "LoKr": ("build", "LoKr", {"target_modules": ["fc"], "r": 2}),
    "OFT": ("build", "OFT", {"target_modules": ["fc"], "oft_block_size": 2, "r": 0}),
    "HRA": ("build", "HRA", {"target_modules": ["fc"], "r": 2}),
    "norms": ("build", "LNTuning", {"target_modules": ["norm"]}),
    "GPT-2": ("language", "Lora", {"target_modules": ["c_attn"], "r": 2, "fan_in_fan_out": True}),
}
MODELS = {"build": "nets.py:build", "language": "nets.py:last"}  # whose logits are those of the last token


@pytest.mark.sampled(7)
@pytest.mark.parametrize("case", CASES)
def test_the_hessian_over_an_adapter_is_that_of_peft(case, capfd):
    """Against a dense Hessian of the model that peft itself makes of the folder; all of its parameters are chosen."""
    function, kind, options = CASES[case]
    adapter("last", named(function), kind, **options)
    with warnings.catch_warnings(action="ignore"):
        model = peft.PeftModel.from_pretrained(named(function), "last", is_trainable=True).eval()
    chosen = {name: p for name, p in model.named_parameters() if p.requires_grad and "ranknum" not in name}
    x, y = points()

    def loss(values):
        output = functional_call(model, values, (x,))
        return nn.functional.cross_entropy(output if function == "build" else output.logits[:, -1], y)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        matrix = dense_hessian(chosen, loss)
    k = min(4, len(matrix))
    problem, found = spectrum_of(f"--model {MODELS[function]} --checkpoint last -k {k}", capfd)
    assert problem["parameters"] == len(matrix)
    assert found == pytest.approx(eigenvalues(matrix, k), rel=1e-6, abs=1e-10)
    read = read_parameters("last", problem["shapes"])  # as a sweep follows weights
    assert sum(value.numel() for value in read.values()) == len(matrix)


def test_what_peft_keeps_out_of_the_derivative_is_found(capfd):
    """DoRA detaches the norm of the weights (Liu et al. 2024, section 4.3): its gradient is not that of the loss."""
    expected = adapter("last", named("build"), target_modules=["fc", "emb"], use_dora=True)
    load_checkpoint(model := named("build").eval(), "last")
    x, _ = points()
    assert torch.allclose(model(x), expected(x), rtol=1e-12)
    assert run(shlex.split("eig --model nets.py:build --checkpoint last --data points.npz --dtype float64")) == 2
    error = capfd.readouterr().err
    assert "autograd gives a wrong derivative" in error
    assert "lora_magnitude_vector" in error
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert len(read_parameters("last", shapes)) == 6


@pytest.mark.parametrize("function", ["wrapped", "build"])
@pytest.mark.parametrize("saved", ["wrapped", "build"])
def test_prefixes_of_the_base_are_added_and_removed(function, saved):
    expected = adapter("last", named(saved), target_modules=["fc"])
    record = load_checkpoint(model := named(function), "last")
    assert (record["prefix"], record["added"]) == {
        ("build", "wrapped"): ("net.", None),
        ("wrapped", "build"): (None, "net."),
    }.get((function, saved), (None, None))
    x, _ = points()
    assert torch.allclose(model(x), expected(x), rtol=1e-12)


def test_an_adapter_that_fits_two_parts_is_never_placed():
    adapter("last", named("build"), target_modules=["fc"])
    model = nn.ModuleDict({"student": named("build"), "teacher": named("build")})
    with refused("`checkpoint`", "student., teacher."):
        load_checkpoint(model, "last")
    with refused("`checkpoint`", "it adapts fc, which the model does not have"):
        load_checkpoint(nn.ModuleDict({"other": nn.Linear(2, 2)}), "last")


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_tied_embeddings_stay_tied(kind):
    base = named("language", kind=kind)
    targets = {"LlamaForCausalLM": ["q_proj", "v_proj"], "GPT2LMHeadModel": ["c_attn", "c_proj"]}[kind]
    expected = adapter("last", base, target_modules=targets)
    load_checkpoint(model := named("language", kind=kind).eval(), "last")
    x, _ = points()
    assert torch.allclose(model(x).logits, expected(x).logits, rtol=1e-10)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_parameters_of_the_base_can_be_chosen_by_name():
    adapter("last", named("build"), target_modules=["fc"], modules_to_save=["head"])
    named_options = {"model": "nets.py:build", "data": "points.npz", "checkpoint": "last", "dtype": "float64"}
    alone = load_problem(**named_options).problem.parameters
    assert {name.partition(".")[0] for name in alone} == {"fc", "head"}
    assert not any("base_layer" in name or "original_module" in name for name in alone)
    loaded = load_problem(**named_options, params=["*base_layer*", "norm.*", "*lora_A*"])
    assert set(loaded.problem.parameters) == {
        "fc.base_layer.weight", "fc.base_layer.bias", "norm.weight", "norm.bias", "fc.lora_A.default.weight"
    }  # fmt: skip
    assert any("any of them can be chosen" in note for note in loaded.record.notes)
    every = load_problem(**named_options, params=["*"]).problem.parameters
    assert {"emb.weight", "head.modules_to_save.default.weight", "fc.lora_B.default.weight"} < set(every)
    assert not any("original_module" in name for name in every)  # which the adapter has replaced


def test_the_hessian_over_base_and_adapter(capfd):
    """All parameters of LoRA by its formula, the base's too."""
    base = named("build")
    adapter("last", base, target_modules=["fc"], r=2, lora_alpha=3)
    held = load_file("last/adapter_model.safetensors")
    held = {name.removeprefix("base_model.model."): value.double() for name, value in held.items()}
    x, y = points()

    def loss(values):
        low = values["fc.lora_B.weight"] @ values["fc.lora_A.weight"]
        weights = {name: value for name, value in values.items() if "lora" not in name}
        weights["fc.weight"] = weights["fc.weight"] + 3 / 2 * low
        return nn.functional.cross_entropy(functional_call(base, weights, (x,)), y)

    matrix = dense_hessian(dict(base.named_parameters()) | held, loss)
    problem, found = spectrum_of("--model nets.py:build --checkpoint last -k 4 --params '*'", capfd)
    assert problem["parameters"] == len(matrix)
    assert found == pytest.approx(eigenvalues(matrix, 4), rel=1e-7)


def test_inspect_tells_of_the_adapter(capfd):
    adapter("last", named("build"), target_modules=["fc"])
    assert run(shlex.split("inspect --model nets.py:build --checkpoint last --json")) == 0
    problem = json.loads(capfd.readouterr().out)["problem"]
    match = problem["checkpoint_match"]
    assert (match["adapter"], match["adapter_parameters"]) == ("LORA", problem["parameters"])
    assert run(shlex.split("inspect --model nets.py:build --checkpoint last")) == 0
    assert "all 2 tensors of the LORA adapter match" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize("named_by", ["adapter_model.safetensors", "adapter_config.json", "."])
def test_an_adapter_is_named_by_its_folder_or_a_file(named_by):
    expected = adapter("last", named("build"), target_modules=["fc"])
    load_checkpoint(model := named("build"), Path("last", named_by))
    x, _ = points()
    assert torch.equal(model(x), expected(x))


def test_an_adapter_in_torchs_own_format():
    expected = adapter("last", named("build"), target_modules=["fc"])
    torch.save(load_file("last/adapter_model.safetensors"), "last/adapter_model.bin")
    Path("last/adapter_model.safetensors").unlink()
    load_checkpoint(model := named("build"), "last")
    x, _ = points()
    assert torch.equal(model(x), expected(x))


def test_folders_of_the_trainer_with_adapters_in_a_sweep():
    """The Trainer's folder of an adapter: beside it the optimiser's state and a pickle that is never read."""
    base = named("build")
    for step in (20, 100):
        adapter(f"runs/checkpoint-{step}", base, target_modules=["fc"])
        Path(f"runs/checkpoint-{step}/training_args.bin").write_bytes(pickle.dumps(Evil()))
        Path(f"runs/checkpoint-{step}/trainer_state.json").write_text(json.dumps({"global_step": step}))
    Path("plan.toml").write_text(
        "[problem]\nmodel = 'nets.py:build'\ndata = 'points.npz'\ncheckpoint = 'runs/checkpoint-*'\n[eig]\n"
    )
    tasks = read_plan(Path("plan.toml")).tasks
    assert [task.name for task in tasks] == ["checkpoint-20/hessian", "checkpoint-100/hessian"]
    load_checkpoint(named("build"), tasks[0].checkpoint)
    save_file(base.state_dict(), "runs/checkpoint-20/model.safetensors")
    with refused("`checkpoint`", "model.safetensors, adapter_config.json", "name one"):
        load_checkpoint(named("build"), "runs/checkpoint-20")


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


def configured(**changes):
    def write():
        content = json.loads(Path("last/adapter_config.json").read_text()) | changes
        Path("last/adapter_config.json").write_text(json.dumps(content))

    return write


def weights(change):
    def write():
        held = load_file("last/adapter_model.safetensors")
        save_file(change(held), "last/adapter_model.safetensors")

    return write


def first(held):
    return next(iter(held))


WRONG = {
    "another kind": (configured(peft_type="PREFIX_TUNING"), ["type PREFIX_TUNING", "merge_and_unload"]),
    "no kind": (configured(peft_type=["LORA"]), ["type ['LORA']"]),
    "a start that changes the base": (configured(init_lora_weights="pissa"), ["init_lora_weights=pissa"]),
    "layers over and over": (configured(layer_replication=[[0, 10**9]]), ["unknown option layer_replication"]),
    "an option of another version": (configured(use_magic=True), ["unknown option use_magic"]),
    "a pattern without end": (configured(alpha_pattern={"(a+)+$": 3}), ["(a+)+$", "never finish matching"]),
    "many stars": (configured(rank_pattern={".*.*.*x": 3}), ["never finish matching"]),
    "no JSON": (lambda: Path("last/adapter_config.json").write_text("{'r'"), ["not valid JSON"]),
    "deep JSON": (lambda: Path("last/adapter_config.json").write_text("[" * 100_000), ["not valid JSON"]),
    "another rank": (configured(r=5), ["size mismatch", "`model`"]),
    "a rank without end": (configured(r=10**9), ["`checkpoint`"]),
    "a rank that is none": (configured(r="x"), ["`checkpoint`"]),
    "too few": (weights(lambda held: {first(held): held[first(held)]}), ["missing", "lora_B"]),
    "too many": (weights(lambda held: held | {"base_model.model.fc.lora_C.weight": torch.ones(2)}), ["unexpected"]),
    "not finite": (weights(lambda held: held | {first(held): held[first(held)] * torch.nan}), ["not finite"]),
    "weights of the base of another shape": (
        weights(lambda held: held | {"base_model.model.emb.weight": torch.ones(9, 4)}),
        ["emb.weight is (6, 4) in the model, (9, 4) in the adapter"],
    ),
    "no weights": (lambda: Path("last/adapter_model.safetensors").write_bytes(b""), ["empty"]),
    "a pipe": (
        lambda: (Path("last/adapter_config.json").unlink(), os.mkfifo("last/adapter_config.json")),
        ["named pipe"],
    ),
    "a configuration without end": (configured(peft_version="x" * 2**20), ["more than the 1 MiB"]),
    "no configuration": (lambda: Path("last/adapter_config.json").unlink(), ["folder"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_adapter_that_does_not_fit(case):
    write, words = WRONG[case]
    adapter("last", named("build"), target_modules=["fc"])
    write()
    with refused("`checkpoint` last", *words):
        load_checkpoint(named("build"), "last")


def test_code_in_an_adapter_is_not_run():
    adapter("last", named("build"), target_modules=["fc"])
    Path("last/adapter_model.safetensors").unlink()
    torch.save({"base_model.model.fc.lora_A.weight": Evil()}, "last/adapter_model.bin")
    with refused("`checkpoint` last", "could run code", "was not run"):
        load_checkpoint(named("build"), "last")


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model_name_or_path": "someone/model", "revision": "main"},
        {"auto_mapping": {"base_model_class": "system", "parent_library": "os"}},
        {"megatron_config": {"a": 1}, "megatron_core": "evil"},
        {"corda_config": {"cache_file": "evil.pt"}, "eva_config": {"rho": 3}, "loftq_config": {"loftq_bits": 4}},
        {"runtime_config": {"ephemeral_gpu_offload": True}, "task_type": "CAUSAL_LM", "peft_version": "99.0"},
        {"target_modules": "(f+)+c"},
        {"lora_dropout": 0.5, "inference_mode": True},
    ],
)
def test_names_of_models_and_packages_are_not_followed(changes, monkeypatch):
    """Nothing is looked up on a hub, imported or read by a name in the configuration."""
    Path("evil.py").write_text("open('ran', 'w')")
    torch.save(Evil(), "evil.pt")
    monkeypatch.syspath_prepend(os.getcwd())
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network"))
    expected = adapter("last", named("build"), target_modules=["fc"])
    configured(**changes)()
    load_checkpoint(model := named("build"), "last")
    x, _ = points()
    assert torch.equal(model.eval()(x), expected(x))


def test_without_peft_it_says_what_to_install(monkeypatch):
    adapter("last", named("build"), target_modules=["fc"])
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with refused("`checkpoint` last", "PEFT adapter", "pip install peft"):
        load_checkpoint(named("build"), "last")


def test_a_bare_file_of_an_adapter_wants_its_configuration():
    adapter("last", named("build"), target_modules=["fc"])
    shutil.copy("last/adapter_model.safetensors", "adapter_model.safetensors")
    with refused("`checkpoint` adapter_model.safetensors", "PEFT adapter without its adapter_config.json"):
        load_checkpoint(named("build"), "adapter_model.safetensors")


def test_weights_of_the_base_beside_the_adapter_are_taken():
    """As peft saves embeddings whole, where tokens were added to them."""
    base = named("build")
    with torch.no_grad():
        base.emb.weight.mul_(2)
    expected = adapter("last", base, target_modules=["fc"])
    weights(lambda held: held | {"base_model.model.emb.weight": base.emb.weight.detach()})()
    load_checkpoint(model := named("build"), "last")
    x, _ = points()
    assert torch.allclose(model(x), expected(x), rtol=1e-12)
    assert not model.emb.weight.requires_grad


def test_a_model_that_has_an_adapter_is_no_base():
    expected = adapter("last", named("build"), target_modules=["fc"])
    with refused("`checkpoint` last", "`model` already has one; name the base model"):
        load_checkpoint(expected, "last")
    torch.save(expected.state_dict(), "whole.pt")
    with refused("`checkpoint` whole.pt", "of a model with a PEFT adapter;", "save_pretrained"):
        load_checkpoint(named("build"), "whole.pt")
    other = adapter("other", named("build"), target_modules=["fc"])
    with torch.no_grad():
        other.base_model.model.fc.lora_A["default"].weight.zero_()
    load_checkpoint(other, "whole.pt")  # into a model of the same adapter, name by name
    x, _ = points()
    assert torch.equal(other(x), expected(x))


def test_adapters_of_half_precision_are_cast():
    expected = adapter("last", named("build"), target_modules=["fc"])
    weights(lambda held: {name: value.bfloat16() for name, value in held.items()})()
    record = load_checkpoint(model := named("build"), "last")
    assert record["dtypes"] == ["bfloat16"]
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    x, _ = points()
    assert torch.allclose(model(x), expected(x), atol=0.05)
    assert not torch.equal(model(x), expected(x))
