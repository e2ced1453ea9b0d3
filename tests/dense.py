"""Dense references in float64 for tests of whole families of models: torch.autograd alone, on any module."""

import json

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectra.cli import run


class Dense:
    """The loss of a module as a function of the vector of its parameters that require gradients."""

    def __init__(self, model: nn.Module, output, loss):
        """`output` makes the outputs of the model as it is called, `loss` their mean loss."""
        self.model, self.output, self.loss = model, output, loss
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.point = torch.cat([p.detach().reshape(-1) for p in self.named.values()])

    def at(self, point: Tensor) -> Tensor:
        parts = point.split([p.numel() for p in self.named.values()])
        values = {name: part.view(p.shape) for (name, p), part in zip(self.named.items(), parts, strict=True)}
        return self.output(lambda *args, **kwargs: functional_call(self.model, values, args, kwargs, tie_weights=True))

    def hessian(self) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return hessian(lambda point: self.loss(self.at(point)), self.point)

    def ggn(self) -> Tensor:
        """J' L J, with L the Hessian of the loss by the outputs."""
        with sdpa_kernel(SDPBackend.MATH):
            outputs = self.at(self.point).detach()
            j = jacobian(self.at, self.point).reshape(outputs.numel(), -1)
            inner = hessian(lambda flat: self.loss(flat.view(outputs.shape)), outputs.reshape(-1))
        return j.T @ inner @ j


def met_by_adam(matrix: Tensor, optimizer: torch.optim.Optimizer, model: nn.Module) -> Tensor:
    """P^-1/2 A P^-1/2 with Adam's P = (1 - b1^t) (sqrt(v / (1 - b2^t)) + eps), for the model that it has trained."""
    group = optimizer.param_groups[0]
    states = [optimizer.state[p] for p in model.parameters() if p.requires_grad]
    (b1, b2), t = group["betas"], float(states[0]["step"])
    v = torch.cat([state["exp_avg_sq"].double().reshape(-1) for state in states])
    root = ((1 - b1**t) * ((v / (1 - b2**t)).sqrt() + group["eps"])).rsqrt()
    return root[:, None] * matrix * root


def largest(matrix: Tensor, k: int) -> list[float]:
    """The k eigenvalues of largest magnitude, in falling magnitude."""
    return sorted(torch.linalg.eigvalsh(matrix).tolist(), key=abs, reverse=True)[:k]


def eigenvalues(capfd, *line: str) -> dict:
    """The record of `spectra eig LINE --json` in float64, every eigenvalue found at once."""
    capfd.readouterr()
    status = run(["eig", *line, "--method", "dense", "--dtype", "float64", "--device", "cpu", "--json"])
    out, err = capfd.readouterr()
    assert status == 0, err
    assert all(told.startswith("spectra: ") for told in err.splitlines()), err  # nothing of a package's own messages
    return json.loads(out)
