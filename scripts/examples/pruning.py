"""Optimal Brain Damage and Surgeon compared with magnitude pruning, on digits.

At a minimum, setting weight i to zero raises the loss by w_i^2 H_ii / 2 (Optimal Brain Damage: LeCun, Denker, Solla
1990). If the other weights then adapt, by -w_i / [H^-1]_ii times column i of H^-1, the loss rises by
w_i^2 / (2 [H^-1]_ii) (Optimal Brain Surgeon: Hassibi, Stork 1993). Here H is the GGN with weight decay, which is
positive definite. The diagonal takes n products. The inverse takes n solves, or for a small network the dense matrix.

    python scripts/examples/pruning.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import spectra
from spectra.inputs.data import digits

METHODS = ("magnitude", "damage", "surgeon")
SPARSITIES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9)
DECAY = 1e-3
KNOWN = 60  # eigenpairs beside which inverse products are taken

Data = tuple[Tensor, Tensor]


class Row(NamedTuple):
    """The accuracy that one method leaves on held-out digits, in percent: a mean over seeds and its standard error."""

    method: str
    sparsity: float  # share of the weights that are zero
    accuracy: float  # with no training in between
    accuracy_error: float
    retrained: float  # with some after each step to the next sparsity
    retrained_error: float


def main(
    samples: int = 600,
    width: int = 8,
    sparsities: Sequence[float] = SPARSITIES,
    seeds: int = 5,
    retraining: int = 50,
) -> list[Row]:
    """Prune networks of one hidden layer step by step, by each method; print and return accuracies at each sparsity."""
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for seed in range(seeds):
        images, labels = digits()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        images, labels = images[order].double(), labels[order]
        data, held_out = (images[:samples], labels[:samples]), (images[samples:], labels[samples:])
        weights = trained(network_of(width, seed), data, 500)
        network = network_of(width, seed)
        if seed == 0:
            print(f"{len(weights)} weights; before pruning {accuracy(network, weights, held_out):.1f} % are right")
            print(inverse_by_solves(network, weights, data))
        for method in METHODS:
            alone = steps(network, weights, data, method, sparsities, 0)
            between = steps(network, weights, data, method, sparsities, retraining)
            for sparsity, one, other in zip(sparsities, alone, between, strict=True):
                shares = accuracy(network, one, held_out), accuracy(network, other, held_out)
                found.setdefault((method, sparsity), []).append(shares)
    print(f"{'sparsity':>8} {'method':10} {'accuracy, %':>14} {'and retrained':>14}")
    rows = []
    for sparsity in sparsities:
        for method in METHODS:
            shares = torch.tensor(found[method, sparsity])
            means, errors = shares.mean(dim=0).tolist(), (shares.std(dim=0) / seeds**0.5).tolist()
            rows.append(Row(method, sparsity, means[0], errors[0], means[1], errors[1]))
            print(line(rows[-1]))
    return rows


def network_of(width: int, seed: int) -> nn.Module:
    """A network with one hidden layer of tanh, at its first weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10)).double()


def trained(network: nn.Module, data: Data, iterations: int, alive: Tensor | None = None) -> Tensor:
    """The weights (n,) after so many iterations of L-BFGS on the loss with weight decay; others stay zero."""
    mask = torch.ones_like(vector(network)) if alive is None else alive.to(torch.float64)
    weights = vector(network).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=iterations, tolerance_grad=1e-7, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        kept = weights * mask
        loss = cross_entropy(output(network, kept, data[0]), data[1]) + DECAY / 2 * kept.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return weights.detach() * mask


def vector(network: nn.Module) -> Tensor:
    """The weights (n,) of a network."""
    return parameters_to_vector(network.parameters()).detach().clone()


def output(network: nn.Module, weights: Tensor, images: Tensor) -> Tensor:
    """The output of the network with these weights, differentiable by them."""
    shapes = {name: p.shape for name, p in network.named_parameters()}
    parts = weights.split([shape.numel() for shape in shapes.values()])
    own = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    return torch.func.functional_call(network, own, images)


def accuracy(network: nn.Module, weights: Tensor, data: Data) -> float:
    """The share of right labels, in percent."""
    return 100 * (output(network, weights, data[0]).argmax(dim=1) == data[1]).double().mean().item()


def curvature(network: nn.Module, weights: Tensor, data: Data) -> spectra.Curvature:
    """The GGN of the loss at these weights, with weight decay."""
    vector_to_parameters(weights, network.parameters())
    batches = spectra.cut_batches(*data, torch.arange(len(data[1])), size=len(data[1]))
    problem = spectra.Problem(network, spectra.CrossEntropy(), batches, weight_decay=DECAY)
    return spectra.Curvature(problem, "ggn", products=0, check=False)


def inverse_by_solves(network: nn.Module, weights: Tensor, data: Data) -> str:
    """Compare the diagonal of the inverse by `spectra.solve`, a column each, with that of the dense inverse."""
    matrix = curvature(network, weights, data)
    known = spectra.eigenpairs(matrix, min(KNOWN, len(weights) // 2))
    unit = torch.eye(len(weights), dtype=torch.float64)
    solved = spectra.solve(matrix, unit, method="cg", known=known, lowest=DECAY, tolerance=1e-6)
    exact = torch.linalg.inv(matrix @ unit).diagonal()
    off = ((solved.x.diagonal() - exact).abs() / exact).max().item()
    bound = (solved.error_bounds / exact).max().item()
    return (
        f"diagonal of the inverse by {len(weights)} solves: {solved.products:,} products beside {len(known.values)} "
        f"eigenpairs ({known.products});\noff by {off:.0e} of itself at most, bound {bound:.0e}"
    )


def steps(
    network: nn.Module, weights: Tensor, data: Data, method: str, sparsities: Sequence[float], retraining: int
) -> list[Tensor]:
    """The weights at each sparsity, with the matrix taken anew before each step."""
    alive, reached = torch.ones(len(weights), dtype=torch.bool), []
    for sparsity in sparsities:
        matrix = curvature(network, weights, data) @ torch.eye(len(weights), dtype=torch.float64)
        count = round(sparsity * len(weights)) - int((~alive).sum())
        weights, alive = prune(weights, matrix, alive, count, method)
        if retraining:
            vector_to_parameters(weights, network.parameters())
            weights = trained(network, data, retraining, alive)
        reached.append(weights)
    return reached


def prune(weights: Tensor, matrix: Tensor, alive: Tensor, count: int, method: str) -> tuple[Tensor, Tensor]:
    """Set `count` of the weights that are alive (n,) to zero: the new weights, and those that are alive then."""
    if method == "surgeon":
        return surgery(weights, matrix, alive, count)
    ranks = weights.abs() if method == "magnitude" else damage(weights, matrix.diagonal())
    gone = ranks.masked_fill(~alive, torch.inf).argsort(stable=True)[:count]
    weights, alive = weights.clone(), alive.clone()
    weights[gone], alive[gone] = 0, False
    return weights, alive


def damage(weights: Tensor, diagonal: Tensor) -> Tensor:
    """What the loss rises by as each weight alone is set to zero (LeCun, Denker, Solla 1990)."""
    return weights.square() * diagonal / 2


def surgeon(weights: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """What it rises by as the others make up for it (Hassibi, Stork 1993)."""
    return weights.square() / (2 * inverse_diagonal)


def surgery(weights: Tensor, matrix: Tensor, alive: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Set one weight after the other to zero, each the cheapest of all, as the others make up for it.

    The inverse of the matrix without a row and column follows from the inverse with them, by a term of rank one.
    """
    held = alive.nonzero().flatten()
    inverse, left = torch.linalg.inv(matrix[held][:, held]), weights[held]
    still = torch.ones(len(held), dtype=torch.bool)
    for _ in range(count):
        costs = surgeon(left, inverse.diagonal()).masked_fill(~still, torch.inf)
        index = int(costs.argmin())
        column, pivot = inverse[:, index].clone(), inverse[index, index].item()
        left = left - left[index] / pivot * column
        inverse = inverse - torch.outer(column, column) / pivot
        still[index] = False
        left[~still] = 0
    weights, alive = weights.clone(), alive.clone()
    weights[held], alive[held] = left, still
    return weights, alive


def line(row: Row) -> str:
    """A line of the table."""
    return (
        f"{row.sparsity:8.0%} {row.method:10} {row.accuracy:7.1f} ± {row.accuracy_error:4.1f} "
        f"{row.retrained:7.1f} ± {row.retrained_error:4.1f}"
    )


if __name__ == "__main__":
    main()
