"""What errors are measured against: our product in float64, itself checked against `torch.autograd.functional`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.benchmarks.problems import Case
from spectra.curvature.operator import Curvature

FEW = 100  # examples whose Jacobian is written out
SMALL = 5000  # parameters, up to which matrices are


def reference(case: Case, matrix: str, vector: Tensor) -> Tensor:
    """The product in float64, nothing kept and nothing hoisted."""
    return Curvature(case.double().problem(), matrix, memory=0, products=0) @ vector.double()


def deviation(case: Case, matrix: str, vector: Tensor) -> float | None:
    """How far that is from the matrix's definition, on a few examples of a small network; None for others."""
    if case.size > SMALL or matrix == "fisher-mc":
        return None
    case = case.first(FEW)
    wanted, found = by_definition(case.double(), matrix, vector.double()), reference(case, matrix, vector)
    return ((found - wanted).norm() / wanted.norm()).item()


def by_definition(case: Case, matrix: str, vector: Tensor) -> Tensor:
    ((x, y),) = case.batches
    names = [name for name, _ in case.model.named_parameters()]
    sizes = [p.numel() for p in case.parameters]

    def output(theta: Tensor) -> Tensor:
        shaped = [part.view_as(p) for part, p in zip(theta.split(sizes), case.parameters, strict=True)]
        return torch.func.functional_call(case.model, dict(zip(names, shaped, strict=True)), (x,))

    theta = torch.cat([p.detach().flatten() for p in case.parameters])
    if matrix == "hessian":
        return torch.autograd.functional.hvp(lambda theta: F.cross_entropy(output(theta), y), theta, vector)[1]
    jacobian, p = torch.autograd.functional.jacobian(output, theta), output(theta).softmax(1).detach()
    if matrix == "ggn":
        middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    else:
        residuals = p - F.one_hot(y, p.shape[1])
        middle = residuals[:, :, None] * residuals[:, None, :]
    return torch.einsum("bcn,bcd,bdm,m->n", jacobian, middle, jacobian, vector) / len(y)
