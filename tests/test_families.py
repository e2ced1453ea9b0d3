"""Families of models as a user writes them: one file each, and the command, against PyTorch's dense derivatives.

The reference is `torch.autograd.functional` over the same file's model, on all its data in one batch.
"""

import json
import shlex
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectra.cli import run

BEGIN = """
import torch
import torch.nn.functional as F
from torch import nn

def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

def integers(below, *shape):
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(1))
"""
DIFFUSION = """
class build(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.time, self.last = nn.Linear(3, 5), nn.Embedding(10, 5), nn.Linear(5, 3)
        self.kept = nn.Buffer(torch.linspace(0.95, 0.05, 10))

    def forward(self, x, t, noise):
        kept = self.kept[t][:, None]
        noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
        return self.last(F.silu(self.first(noisy) + self.time(t)))

def data():
    noise = drawn(6, 3, seed=2)
    return {"x": drawn(6, 3), "t": integers(10, 6), "noise": noise}, noise
"""
VAE = """
class build(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(2, 3)

    def forward(self, x, noise):
        mean, log_variance = self.encoder(x).tanh().chunk(2, -1)
        return torch.cat([self.decoder(mean + (log_variance / 2).exp() * noise).tanh(), mean, log_variance], -1)

def loss(output, x):
    made, mean, log_variance = output.split((3, 2, 2), -1)
    return (made - x).square().sum(-1) + (mean.square() + log_variance.exp() - log_variance - 1).sum(-1) / 2

def data():
    return {"x": drawn(6, 3), "noise": drawn(6, 2, seed=2)}, drawn(6, 3)
"""
U_NET = """
class build(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(1, 2)
        self.low = nn.Conv2d(2, 3, 3, padding=1)
        self.up, self.head = nn.ConvTranspose2d(3, 2, 2, stride=2), nn.Conv2d(7, 3, 1)

    def forward(self, x):
        high = F.silu(self.norm(self.down(x)))
        low = F.silu(self.low(F.max_pool2d(high, 2)))
        wide = F.interpolate(low, size=high.shape[-2:], mode="bilinear")
        return self.head(torch.cat([high, self.up(low), wide], 1))

def data():
    return drawn(3, 1, 4, 4), integers(3, 3, 4, 4)
"""
PACKED = """
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

class build(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(7, 3), nn.Linear(4, 3)
        self.network = nn.LSTM(3, 2, batch_first=True, bidirectional=True)

    def forward(self, ids, lengths):
        packed = pack_padded_sequence(self.words(ids), lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.network(packed)[0], batch_first=True)[0].sum(1))

def data():
    return {"ids": integers(7, 5, 6), "lengths": torch.tensor([3, 6, 1, 4, 6])}, integers(3, 5)
"""
CHECKPOINTED = """
from torch.utils.checkpoint import checkpoint

class build(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True) for _ in range(2))

    def forward(self, ids):
        hidden = self.words(ids)
        for layer in self.layers:
            hidden = checkpoint(layer, hidden, use_reentrant=False)
        return self.head(hidden).transpose(1, 2)

def data():
    return integers(7, 4, 5), integers(7, 4, 5)
"""
MOLECULES = """
class build(nn.Module):
    def __init__(self):
        super().__init__()
        self.kinds, self.radial, self.head = nn.Embedding(3, 4), nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, z, pos):
        pos.requires_grad_()
        apart = torch.eye(z.shape[1]).to(pos)
        distance = ((pos[:, :, None] - pos[:, None]).square().sum(-1) + apart).sqrt()
        near = self.radial(torch.exp(-(distance[..., None] - torch.arange(3).to(pos)).square())).tanh()
        energy = self.head((near * (1 - apart)[..., None] * self.kinds(z)[:, None]).sum(2).tanh()).sum((1, 2))
        (slope,) = torch.autograd.grad(energy.sum(), pos, create_graph=True)
        return torch.cat([energy[:, None], -slope.flatten(1)], 1)

def data():
    return {"z": integers(3, 4, 3), "pos": drawn(4, 3, 3)}, drawn(4, 10, seed=3)
"""
STATE_SPACE = """
class build(nn.Module):
    def __init__(self):
        super().__init__()
        self.inputs, self.head = nn.Linear(2, 3), nn.Linear(3, 2)
        self.decay, self.turn, self.read = (nn.Parameter(drawn(3, *more, seed=4)) for more in ((), (), (2,)))

    def forward(self, x):
        signal = self.inputs(x).transpose(1, 2)
        rate = torch.complex(-self.decay.exp(), self.turn)
        ages = torch.arange(x.shape[1]).to(x)
        kernel = (torch.view_as_complex(self.read)[:, None] * (rate[:, None] * ages).exp()).real
        spectrum = torch.fft.rfft(signal, n=2 * len(ages)) * torch.fft.rfft(kernel, n=2 * len(ages))
        return self.head(F.gelu(torch.fft.irfft(spectrum)[..., : len(ages)]).mean(-1))

def data():
    return drawn(5, 6, 2), drawn(5, 2, seed=2)
"""
EXPERTS = """
class build(nn.Module):
    def __init__(self):
        super().__init__()
        self.router, self.up, self.down = nn.Linear(3, 4), nn.Parameter(drawn(4, 3, 5)), nn.Parameter(drawn(4, 5, 2))

    def forward(self, x):
        shares, chosen = self.router(x).softmax(-1).topk(2)
        total = x.new_zeros(len(x), 2)
        for number in range(4):
            rows, places = torch.where(chosen == number)
            made = F.gelu(x[rows] @ self.up[number]) @ self.down[number]
            total = total.index_add(0, rows, made * shares[rows, places, None])
        return total

def data():
    return drawn(7, 3), drawn(7, 2, seed=2)
"""
FAMILIES = {  # the file, the loss as typed, the same as PyTorch's mean
    "diffusion": (DIFFUSION, "mse", F.mse_loss),
    "vae": (VAE, "family.py:loss", None),
    "u-net": (U_NET, "cross_entropy", F.cross_entropy),
    "packed lstm": (PACKED, "cross_entropy", F.cross_entropy),
    "checkpointed": (CHECKPOINTED, "cross_entropy?class_dim=1", F.cross_entropy),
    "molecules": (MOLECULES, "mse", F.mse_loss),
    "state space": (STATE_SPACE, "mse", F.mse_loss),
    "experts": (EXPERTS, "mse", F.mse_loss),
}


@cache
def reference(family: str) -> dict[str, torch.Tensor]:
    """The eigenvalues of the Hessian and of the GGN, rising."""
    source, _, function = FAMILIES[family]
    space: dict = {}
    exec(BEGIN + source, space)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = space["build"]().double().eval()
    inputs, targets = space["data"]()
    function = function or (lambda output, targets: space["loss"](output, targets).mean())
    parameters = dict(model.named_parameters())
    given = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})

    def output(theta):
        parts = theta.split([p.numel() for p in parameters.values()])
        point = {name: part.view_as(parameters[name]) for name, part in zip(parameters, parts, strict=True)}
        return functional_call(model, point, *given)

    theta = torch.cat([p.detach().flatten() for p in parameters.values()])
    with sdpa_kernel(SDPBackend.MATH):
        found = output(theta).detach()
        outward = jacobian(output, theta).flatten(0, -2)
        bend = hessian(lambda output: function(output, targets), found).reshape(found.numel(), -1)
        whole = hessian(lambda theta: function(output(theta), targets), theta)
    return {"hessian": torch.linalg.eigvalsh(whole), "ggn": torch.linalg.eigvalsh(outward.T @ bend @ outward)}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("command", ["eig -k 3 --which BE --tol 1e-6", "trace --method dense", "density --steps 8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_are_those_of_dense_derivatives(family, command, tmp_path, monkeypatch, capfd):
    source, loss, _ = FAMILIES[family]
    monkeypatch.chdir(tmp_path)
    Path("family.py").write_text(BEGIN + source)
    line = f"{command} --model family.py:build --data family.py:data --loss {loss} --dtype float64 --json"
    assert run(shlex.split(f"{line} --curvature hessian --curvature ggn")) == 0, capfd.readouterr().err
    found = {result["curvature"]: result for result in json.loads(capfd.readouterr().out)["results"]}
    for name, values in reference(family).items():
        result = found[name]
        if command.startswith("eig"):
            expected = [values[-1].item(), values[-2].item(), values[0].item()]
            assert result["eigenvalues"] == pytest.approx(expected, rel=1e-6, abs=1e-9 * expected[0])
        elif command.startswith("trace"):
            assert result["trace"] == pytest.approx(values.sum().item(), rel=1e-9)
        else:
            assert result["dimension"] == len(values)
            nodes = [node for probe in result["nodes"] for node in probe]
            assert max(nodes) == pytest.approx(values[-1].item(), rel=1e-2)
