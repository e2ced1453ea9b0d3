"""Families of models: what a user types for each file of families/, and its loss by the formula, for references.

A formula takes `call`, which calls the network at some parameters (`call.weights`), and the data. It is written without
the user's loss: in the outputs of the network where GGN is defined, else in the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Formula = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Family:
    """What is typed, and the losses of the examples: (N,), or () for those of a whole batch."""

    net: str
    values: Formula  # of (outputs, data), or of (call, data) where there are no outputs
    outputs: Formula | None = None  # of (call, data): a tensor (N, ...)
    loss: str = ""  # as typed; empty for the function `loss` of the file
    distribution: bool = False  # whether the loss is -log p(y|f), so that there is a Fisher matrix, equal to GGN
    whole: bool = False  # whether the loss takes whole batches
    file: str = ""  # where it is not that of the family's name
    divisible: bool = True  # whether its data can be in batches of any size

    def of(self, call: Callable, data: Any) -> Tensor:
        return self.values(self.outputs(call, data) if self.outputs else call, data)


def derivative(value: Tensor, by: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), by, create_graph=True)[0]


def pinn(call, data):
    x, y = (data["inside"][:, i].clone().requires_grad_() for i in range(2))
    u = call(torch.stack([x, y], 1))[:, 0]
    bend = derivative(derivative(u, x), x) + derivative(derivative(u, y), y)
    residual = (bend + torch.sin(math.pi * x) * torch.sin(math.pi * y)).square().mean()
    return residual + 10 * call(data["border"]).square().mean() + (call(data["known"]) - 0.05).square().sum()


def diffusion(call, data):
    angle = (data["t"] * math.pi / 2)[:, None]
    moved = angle.cos() * data["x0"] + angle.sin() * data["noise"]  # sin is not negative here
    return (call(moved, data["t"]) - data["noise"]).square().sum(1) / 2


def vae_outputs(call, data):
    return torch.cat(list(call(data["x"], data["noise"]).values()), 1)


def vae(outputs, data):
    logits, mean, logvar = outputs[:, :6], outputs[:, 6:8], outputs[:, 8:]
    likelihood = (data["targets"] * logits - F.softplus(logits)).sum(1)
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1) - likelihood


def simclr(call, data):
    z = torch.cat([call(view) / call(view).norm(dim=1, keepdim=True) for view in data])
    scores, n = 2 * z @ z.T, len(data[0])
    own = torch.cat([scores.diagonal(n), scores.diagonal(-n)])
    others = scores[~torch.eye(2 * n, dtype=torch.bool)].view(2 * n, 2 * n - 1)
    return (others.exp().sum(1).log() - own).mean()


def supcon(outputs, data):
    z, y, total = outputs / outputs.norm(dim=1, keepdim=True), data[1], 0
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        scores = (z @ z[i] / 0.3)[others]
        same = y[others] == y[i]
        total = total + (scores.exp().sum().log() - scores)[same].mean()
    return total / len(z)


def triplet(call, data):
    anchor, near, far = (call(data[key]) for key in ("anchor", "positive", "negative"))
    return ((anchor - near + 1e-6).norm(dim=1) - (anchor - far + 1e-6).norm(dim=1) + 2).clamp(min=0)


def towers(call, data):
    scores = call(data["image"], data["text"])
    return ((scores.logsumexp(0) + scores.logsumexp(1)) / 2 - scores.diagonal()).mean()


def unet(outputs, data):
    logits, labels = outputs.permute(0, 2, 3, 1).reshape(-1, 3), data[1].reshape(-1)
    logits, labels = logits[labels != 255], labels[labels != 255]
    weights = torch.tensor([1, 2, 0.5], dtype=torch.float64)[labels]
    return len(labels) * weights / weights.sum() * (logits.logsumexp(1) - logits[torch.arange(len(labels)), labels])


def classes(labels: Callable) -> Formula:
    """Cross entropy over the last dimension."""

    def values(outputs, data):
        found = labels(data).reshape(-1)
        logits = outputs.reshape(len(found), -1)
        return logits.logsumexp(1) - logits[torch.arange(len(found)), found]

    return values


def molecules(call, data):
    x = data["positions"].clone().requires_grad_()
    energy = call(data["charges"], x)
    force = -derivative(energy, x)
    return (energy - data["energy"]) ** 2 + (force - data["forces"]).square().sum((1, 2)) / 9


def experts(call, data):
    found = call(data["x"])["logits"]
    share = (data["x"] @ call.weights["gate.weight"].T + call.weights["gate.bias"]).softmax(1)
    used = 1 - (share == share.min(1, keepdim=True).values).double()  # two of three
    return classes(lambda d: d["labels"])(found, data).mean() + 0.3 * (used.mean(0) * share.mean(0)).sum()


def focal(outputs, data):
    p = outputs.softmax(1)[torch.arange(len(outputs)), data[1]]
    return -((1 - p) ** 2) * p.log()


def deep(outputs, data):
    of = classes(lambda d: d[1])
    return sum(0.5 ** (2 - i) * of(outputs[:, 3 * i : 3 * i + 3], data) for i in range(3))


def tasks(outputs, data):
    kind = classes(lambda d: d[1]["kind"])(outputs[:, :3], data)
    return kind + 0.5 * (outputs[:, 3] - data[1]["size"][:, 0]) ** 2


def distilled(call, data):
    x, _ = data
    w, b, v, c = ((torch.linspace(-1, 1, n) + 0.1 * i).sin().double() for i, n in enumerate((32, 8, 24, 3)))
    wise = (torch.tanh(x @ w.view(8, 4).T + b) @ v.view(3, 8).T + c) / 2
    student = call(x)
    soft = (wise.softmax(1) * (wise.log_softmax(1) - (student / 2).log_softmax(1))).sum(1)
    return 2 * soft + 0.5 * classes(lambda d: d[1])(student, data)


def energy(call, data):
    low, high = call(data["x"]), call(data["drawn"])
    return low - high + 0.1 * low.square() + 0.1 * high.square()


def critic(call, data):
    x = (data["false"] + data["mix"] * (data["true"] - data["false"])).requires_grad_()
    steep = derivative(call(x), x).square().sum(1).sqrt()
    return call(data["false"]).mean() - call(data["true"]).mean() + 10 * (steep - 1).square().mean()


def laplacian(call, data):
    x, y = (data[:, i].clone().requires_grad_() for i in range(2))
    u = call(torch.stack([x, y], 1))
    by_y = derivative(u, y)
    return (derivative(derivative(u, x), x) + derivative(by_y, y) - by_y + x * y).square()


def maml(call, data):
    """The network is written out, with its weights after the step."""
    values = []
    for x, y, x_query, y_query in zip(*data.values(), strict=True):
        weights = list(call.weights.values())
        error = (call(x) - y).square().mean()
        w, b, v, c = (
            p - 0.3 * g for p, g in zip(weights, torch.autograd.grad(error, weights, create_graph=True), strict=True)
        )
        values.append((torch.tanh(x_query @ w.T + b) @ v.T + c - y_query).square().mean())
    return torch.stack(values)


def gpt(outputs, data):
    kept = data["targets"] != -1
    return classes(lambda d: d["targets"][kept])(outputs[kept], data)


def policy(call, data):
    log_p = call(data["seen"]).log_softmax(1)
    ratio = (log_p[torch.arange(len(log_p)), data["taken"]] - data["before"]).exp()
    inside = torch.where(data["gain"] > 0, ratio.clamp(max=1.2), ratio.clamp(min=0.8))
    return 0.01 * (log_p.exp() * log_p).sum(1) - inside * data["gain"]


LABELS = "cross_entropy"
FAMILIES = {
    "pinn": Family("net", pinn, whole=True, divisible=False),
    "laplacian": Family("net", laplacian),
    "maml": Family("net", maml),
    "gpt": Family("GPT", gpt, lambda call, d: call(**d)[0], "model", distribution=True),
    "policy": Family("net", policy),
    "diffusion": Family("Denoiser", diffusion),
    "vae": Family("VAE", vae, vae_outputs),
    "vae of a model": Family("VAE", lambda call, d: vae(vae_outputs(call, d), d), file="vae", loss="vae.py:of_model"),
    "simclr": Family("Encoder", simclr, whole=True),
    "supcon": Family(
        "net", lambda call, d: supcon(call(d[0]), d), whole=True, file="contrast", loss="contrast.py:of_model"
    ),
    "supcon of outputs": Family(
        "net", supcon, lambda call, d: call(d[0]), whole=True, file="contrast", divisible=False
    ),
    "triplet": Family("net", triplet),
    "towers": Family("Towers", towers, whole=True),
    "unet": Family(
        "UNet", unet, lambda call, d: call(d[0]), f"{LABELS}?ignore_index=255&weight=1,2,0.5", distribution=True
    ),
    "packed": Family(
        "Packed",
        classes(lambda d: d["labels"]),
        lambda call, d: call(d["tokens"], d["lengths"]),
        LABELS,
        distribution=True,
    ),
    "checkpointed": Family(
        "Checkpointed", classes(lambda d: d[1]), lambda call, d: call(d[0]), LABELS, distribution=True
    ),
    "molecules": Family("SchNet", molecules),
    "experts": Family("Experts", experts, loss="model", whole=True),
    "focal": Family("net", focal, lambda call, d: call(d[0])),
    "distributions": Family(
        "net",
        lambda outputs, d: -(d[1] * outputs.log_softmax(1)).sum(1),
        lambda call, d: call(d[0]),
        LABELS,
        distribution=True,
    ),
    "deep": Family("Deep", deep, lambda call, d: torch.cat(call(d[0]), 1)),
    "tasks": Family("Tasks", tasks, lambda call, d: torch.cat(list(call(d[0]).values()), 1)),
    "distilled": Family("net", distilled, loss="distilled.py:Distillation"),
    "energy": Family("Hopfield", energy),
    "recurrent": Family(
        "Recurrent", classes(lambda d: d[1]), lambda call, d: call(d[0]), f"{LABELS}?class_dim=-1", distribution=True
    ),
    "flow": Family("Flow", lambda outputs, d: -outputs, lambda call, d: call(d)),
    "ode": Family(
        "ODE", lambda outputs, d: (outputs - d[1]).square().mean((1, 2)), lambda call, d: call(d[0]), "mse", True
    ),
    "critic": Family("net", critic, whole=True),
}
