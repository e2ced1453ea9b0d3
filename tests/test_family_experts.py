"""Mixtures of experts, state space models and flex attention of transformers, made from configurations.

They compute parts of themselves in float32, so that the reference agrees to its rounding.
"""

import json
import shlex
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectra.cli import run
from spectra.curvature.operator import Curvature
from spectra.inputs.problem import load_problem

with warnings.catch_warnings(action="ignore"):
    transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
FILE = """
import torch
import transformers

SIZES = {"vocab_size": 5, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 3}
TWO = {"num_experts_per_tok": 2, "num_key_value_heads": 1, "max_position_embeddings": 8, "use_cache": False}

def mixtral(experts="grouped_mm"):
    config = transformers.MixtralConfig(**SIZES, **TWO, num_local_experts=3)
    return transformers.MixtralForCausalLM._from_config(config, experts_implementation=experts)

def qwen(experts="grouped_mm"):
    more = {"num_experts": 3, "moe_intermediate_size": 2, "shared_expert_intermediate_size": 2}
    config = transformers.Qwen2MoeConfig(**SIZES, **TWO, **more, decoder_sparse_step=1)
    return transformers.Qwen2MoeForCausalLM._from_config(config, experts_implementation=experts)

def mamba(experts=None):
    more = {"state_size": 2, "conv_kernel": 2, "expand": 1, "time_step_rank": 1, "use_cache": False}
    sizes = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, **more))

def data():
    ids = torch.randint(5, (3, 5), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids[:, :-1]}, ids[:, 1:].clone()
"""
SPACE: dict = {}
exec(FILE, SPACE)
ROUNDING = 1e-5  # of float32, in parts of the models


def built(name: str, **options) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SPACE[name](**options).double().eval()


@cache
def reference(name: str) -> torch.Tensor:
    """The Hessian of the mean cross entropy, of the model whose experts are called one by one."""
    model, (inputs, labels) = built(name, experts="eager"), SPACE["data"]()
    parameters = dict(model.named_parameters())

    def loss(theta):
        parts = theta.split([p.numel() for p in parameters.values()])
        point = {name: part.view_as(parameters[name]) for name, part in zip(parameters, parts, strict=True)}
        return F.cross_entropy(functional_call(model, point, (), inputs).logits.flatten(0, 1), labels.flatten())

    with sdpa_kernel(SDPBackend.MATH):
        return hessian(loss, torch.cat([p.detach().flatten() for p in parameters.values()]))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["mixtral", "qwen", "mamba"])
def test_the_hessian_is_autograds(name):
    inputs, labels = SPACE["data"]()
    batches = [({key: x[part] for key, x in inputs.items()}, labels[part]) for part in (slice(2), slice(2, 3))]
    options = {"loss": "cross_entropy?class_dim=-1", "output": "logits"}
    problem = load_problem(model=built(name), data=batches, **options).problem
    found = Curvature(problem, "hessian") @ torch.eye(problem.size, dtype=torch.float64)
    assert (found - reference(name)).norm() < ROUNDING * reference(name).norm()


@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")  # transformers' own
def test_flex_attention_is_the_plain_one():
    def product(attention: str) -> torch.Tensor:
        config = transformers.LlamaConfig(**SPACE["SIZES"] | {"hidden_size": 32}, use_cache=False)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = transformers.LlamaForCausalLM._from_config(config, attn_implementation=attention).double().eval()
        problem = load_problem(model=model, data=SPACE["data"](), loss="cross_entropy?class_dim=-1", output="logits")
        return Curvature(problem.problem, "hessian") @ torch.linspace(-1, 1, problem.problem.size, dtype=torch.float64)

    wanted, found = product("eager"), product("flex_attention")
    assert (found - wanted).norm() < ROUNDING * wanted.norm()


@pytest.mark.parametrize("name", ["mixtral", "mamba"])
def test_by_the_command(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("lm.py").write_text(FILE)
    line = f"eig -k 1 --model lm.py:{name} --data lm.py:data --loss cross_entropy?class_dim=-1 --output logits --json"
    assert run(shlex.split(f"{line} --dtype float64")) == 0, capfd.readouterr().err
    (result,) = json.loads(capfd.readouterr().out)["results"]
    expected = max(torch.linalg.eigvalsh(reference(name)).tolist(), key=abs)
    assert result["eigenvalues"][0] == pytest.approx(expected, rel=1e-4)
