"""The seven matrices of a small network, dense and exact, from Jacobians of single examples: no product of spectra.

Labels come as (N, M, K), M of them for each input, so that many labels cost no more than their moments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from scripts.fisher_is_hessian.tasks import Task, mean_loss

CHUNK = 64  # columns of the Hessian at a time


@dataclass(frozen=True)
class OutputSpace:
    """What is known of each example in output space."""

    curvature: Tensor  # (N, K, K): the second derivative of the loss
    expected: Tensor  # (N, K, K): s E[r r'] over labels that the model itself expects
    slopes: Tensor  # (N, M, K): the derivative of the loss, for the data's labels


def output_space(loss: str, outputs: Tensor, labels: Tensor) -> OutputSpace:
    classes = outputs.shape[1]
    identity = torch.eye(classes, dtype=outputs.dtype).expand(len(outputs), -1, -1)
    if loss == "mse":
        # -log p of variance 1/2 has r = 2 (f - y), so that E[r r'] = 4 I / 2; the mean over outputs has s = 1 / K.
        return OutputSpace(
            2 / classes * identity, 4 * identity / 2 / classes, 2 / classes * (outputs[:, None] - labels)
        )
    p = outputs.softmax(dim=1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    every = p[:, None, :] - identity  # r for each label c, one a row
    expected = torch.einsum("nc,nci,ncj->nij", p, every, every)
    return OutputSpace(curvature, expected, p[:, None] - labels)


def dense_matrices(network: nn.Module, task: Task, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Each (n, n) in float64; `fisher-batch` of random batches of `batch` examples."""
    jacobian = jacobians(network, task.inputs)
    with torch.no_grad():
        space = output_space(task.loss, network(task.inputs), task.labels)
    gradient = torch.einsum("nk,nkp->p", space.slopes.mean(dim=1), jacobian) / len(jacobian)
    return {
        "hessian": hessian(network, task),
        "ggn": sandwich(jacobian, space.curvature),
        "fisher": sandwich(jacobian, space.expected),
        "jacobian-outer": jacobian.flatten(0, 1).T @ jacobian.flatten(0, 1) / len(jacobian),
        "fisher-empirical": empirical(jacobian, space.slopes),
        "fisher-batch": of_batches(jacobian, space.slopes, order(task, generator), batch),
        "gradient-outer": torch.outer(gradient, gradient),
    }


def jacobians(network: nn.Module, inputs: Tensor) -> Tensor:
    """Of outputs by parameters, (N, K, n)."""
    output, point = flat(network)
    return vmap(jacrev(lambda vector, x: output(vector, x[None])[0]), (None, 0))(point, inputs)


def hessian(network: nn.Module, task: Task) -> Tensor:
    output, point = flat(network)
    targets = task.labels.mean(dim=1)  # in which the second derivative is linear

    def loss(vector: Tensor) -> Tensor:
        return mean_loss(task.loss, output(vector, task.inputs), targets)

    matrix = jacrev(grad(loss), chunk_size=CHUNK)(point)
    return (matrix + matrix.T) / 2


def sandwich(jacobian: Tensor, middle: Tensor) -> Tensor:
    """(1/N) sum J_i' M_i J_i."""
    return jacobian.flatten(0, 1).T @ (middle @ jacobian).flatten(0, 1) / len(jacobian)


def empirical(jacobian: Tensor, slopes: Tensor) -> Tensor:
    """The mean over examples of g g'."""
    return sandwich(jacobian, slopes.mT @ slopes / slopes.shape[1])


def order(task: Task, generator: torch.Generator) -> Tensor:
    """The examples, numbered input by input, as batches take them."""
    return torch.randperm(task.examples, generator=generator)


def of_batches(jacobian: Tensor, slopes: Tensor, order: Tensor, size: int) -> Tensor:
    """sum over batches of |b| / N times G_b G_b', G_b the mean gradient of a batch."""
    draws, outputs = slopes.shape[1:]
    columns = []
    for batch in order.split(size):
        weights = torch.zeros(len(jacobian), outputs, dtype=slopes.dtype)
        weights.index_add_(0, batch // draws, slopes.flatten(0, 1)[batch])
        columns.append(weights.flatten() / (len(batch) * len(order)) ** 0.5)  # |b| / N = (|b| / sqrt(|b| N))^2
    gradients = torch.stack(columns) @ jacobian.flatten(0, 1)
    return gradients.T @ gradients


def flat(network: nn.Module):
    """The network as a function of one vector and inputs, and the vector that it has."""
    named = dict(network.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def output(vector: Tensor, inputs: Tensor) -> Tensor:
        parts = zip(named.items(), vector.split(sizes), strict=True)
        return functional_call(network, {name: part.view(p.shape) for (name, p), part in parts}, (inputs,))

    return output, torch.cat([p.detach().flatten() for p in named.values()])
