"""The Fisher of wide random networks: its largest eigenvalue grows with the width, and its mean falls with it.

For layers of widths a_l M and weights of variance v over the number of inputs, Karakida, Akaho and Amari (2019) find

    mean ~ k1 / M,     largest ~ a ((N - 1) k2 + k1) M / N,     a = sum of a_l a_(l-1)

where k1 sums a_(l-1) / a times (second moment of the inputs of layer l) (its backward factor) for one input of the
network, and k2 for two independent ones (`moments`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

import spectra
from scripts.validation.row import Row

SOURCE = "Karakida, Akaho, Amari 2019"
WEIGHTS, BIASES, LAYERS, INPUTS = 3.0, 0.64, 4, 0.5  # variances; layers of weights; inputs over the width


def rows(widths: tuple[int, ...] = (200, 400, 800, 1600), seeds: int = 5, examples: int = 20) -> Iterator[Row]:
    """Both constants at the largest width, and the exponents of the width by least squares on logarithms.

    The error is the spread over seeds. The theory leaves out what is smaller by a factor of the width: the biases.
    """
    largest, mean = (np.empty((seeds, len(widths))) for _ in range(2))
    products = 0
    for i in range(seeds):
        random = torch.Generator().manual_seed(i)
        for j, width in enumerate(widths):
            x = torch.randn(examples, int(INPUTS * width), generator=random, dtype=torch.float64)
            problem = (network(width, random), nn.MSELoss(), (x, torch.zeros(examples, 1, dtype=torch.float64)))
            pairs = spectra.eig(*problem, curvature="ggn", k=1, method="gram")
            trace = spectra.trace(*problem, curvature="ggn", method="gram")
            size = sum(p.numel() for p in problem[0].parameters())
            largest[i, j], mean[i, j] = pairs.values[0] / 2, trace.trace / size / 2  # the loss r^2 has the GGN 2 F
            products += pairs.products + trace.products
    note = (
        f"tanh, 3 layers, widths {widths[0]} to {widths[-1]}, half as many inputs, {examples} examples, {seeds} seeds"
    )
    shares = np.array([INPUTS, 1.0, 1.0, 1.0])  # inputs of each layer, over the width
    total, (one, two) = shares[:-1].sum(), (moments(both) for both in (False, True))
    first, second = (float(shares @ (forward * back)) / total for forward, back in (one, two))
    theory = (total * ((examples - 1) * second + first) / examples, first)
    # Biases add their backward factors, one for each unit; the share of the parameters that they are is smaller.
    biases = (float(two[1].sum()) / (total * second), float(one[1].sum()) / (total * first))
    for values, power, name, constant, share in zip(
        (largest, mean), (1, -1), ("largest", "mean"), theory, biases, strict=True
    ):
        at = values[:, -1] / float(widths[-1]) ** power
        found, error, finite = float(at.mean()), float(at.std(ddof=1) / seeds**0.5), constant * share / widths[-1]
        title = f"{name} eigenvalue {'over' if power == 1 else 'times'} the width"
        yield Row(title, SOURCE, constant, found, error, finite, note, products)
        slopes = [np.polyfit(np.log(widths), np.log(row), 1)[0] for row in values]
        error = float(np.std(slopes, ddof=1) / seeds**0.5)
        name = f"exponent of the width, {name} eigenvalue"
        finite = abs(float(np.polyfit(np.log(widths), np.log1p(share / np.array(widths)), 1)[0]))
        yield Row(name, SOURCE, power, float(np.mean(slopes)), error, finite, note, products)


def moments(independent: bool) -> tuple[np.ndarray, np.ndarray]:
    """The second moment of the inputs of each layer, and its backward factor, for one input or two independent ones."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = np.outer(weights, weights) / (2 * np.pi)
    u, v = np.meshgrid(nodes, nodes, indexing="ij")
    forward, slopes, same, other = [0.0 if independent else 1.0], [], 1.0, 0.0
    for _ in range(LAYERS - 1):
        size, cross = WEIGHTS * same + BIASES, WEIGHTS * other + BIASES
        first, second = size**0.5 * u, cross / size**0.5 * u + (size - cross**2 / size) ** 0.5 * v
        same = (weights * np.tanh(first) ** 2).sum()
        other = (weights * np.tanh(first) * np.tanh(second)).sum()
        slope = 1 / np.cosh(first) ** 2 * (1 / np.cosh(second if independent else first) ** 2)
        slopes.append(WEIGHTS * (weights * slope).sum())
        forward.append(other if independent else same)
    return np.array(forward), np.array([np.prod(slopes[layer:]) for layer in range(LAYERS)])


def network(width: int, random: torch.Generator) -> nn.Module:
    """Three tanh layers and a linear output."""
    layers = [
        nn.Linear(int(INPUTS * width), width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
    ]
    model = nn.Sequential(*layers, nn.Linear(width, 1)).double()
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.data = torch.randn(layer.weight.shape, generator=random, dtype=torch.float64)
            layer.weight.data *= (WEIGHTS / layer.in_features) ** 0.5
            layer.bias.data = BIASES**0.5 * torch.randn(layer.bias.shape, generator=random, dtype=torch.float64)
    return model
