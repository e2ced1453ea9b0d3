"""The localisation of eigenvectors: the number of parameters and the layers that hold each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Any

import numpy as np

from spectra.records.fields import Matrix, Stored, Vector, stored


def nothing() -> np.ndarray:
    """An empty array, the default for errors."""
    return np.empty(0)


@stored
class Localisation(Stored):
    """Inverse participation ratios, sum of u_i^4, of unit eigenvectors u, compared with those of random vectors."""

    inverse_participation: Vector  # (k,): 1 for a single entry, 1/n for entries of one size
    random: float  # 3/(n + 2), the mean over random unit vectors
    random_deviation: float  # and the standard deviation
    layers: list[str]
    sizes: list[int]  # parameters of each layer
    shares: Matrix  # (k, layers) of |u|^2
    inverse_participation_by_layer: Matrix  # (k, layers), of the part in the layer, at unit norm; nan if empty
    random_by_layer: Vector  # (layers,), the mean of such a part of random vectors
    # Bounds on errors, from residuals and gaps; nan if no gap next to the eigenvalue is resolved.
    inverse_participation_error: Vector = field(default_factory=nothing)  # (k,)
    share_error: Vector = field(default_factory=nothing)  # (k,), of the share of any layer

    def participants(self) -> np.ndarray:
        """The numbers of equal entries that give the same ratios (k,)."""
        return 1 / self.inverse_participation

    def rows(self) -> Iterator[dict[str, Any]]:
        """Iterate over eigenvectors, counted from 1, and layers, as dictionaries."""
        columns = (self.layers, self.sizes, self.random_by_layer.tolist())
        for i, (shares, ratios) in enumerate(zip(self.shares, self.inverse_participation_by_layer, strict=True), 1):
            for layer, size, random, share, ratio in zip(*columns, shares.tolist(), ratios.tolist(), strict=True):
                parts = {"share": share, "chance": size / sum(self.sizes), "inverse_participation": ratio}
                yield {"index": i, "layer": layer, "parameters": size, **parts, "random": random}

    def main_layer(self, i: int) -> int:
        """The index of the layer that holds most of eigenvector i."""
        return int(np.argmax(self.shares[i]))

    def __str__(self) -> str:
        """A table of 80 columns with each eigenvector and the layers that hold most of it."""
        head = f"sum u_i^4 of a random vector: {self.random:.2g} ± {self.random_deviation:.1g}"
        lines = [head, "      sum u_i^4  / random  layers: % of |u|² (% of parameters)"]
        for i, ratio in enumerate(self.inverse_participation):
            lines.append(f"{i + 1:>4}  {ratio:>9.2g}  {ratio / self.random:>8.3g}  {self.held_by(i)}")
        return "\n".join(lines)

    def held_by(self, i: int) -> str:
        """The layers that hold most of eigenvector i, as many as fit on a line."""
        text, total = "", sum(self.sizes)
        for j in np.argsort(-self.shares[i], kind="stable"):
            name = self.layers[j] or "model"
            more = f"{', ' if text else ''}{name} {100 * self.shares[i, j]:.0f} ({100 * self.sizes[j] / total:.0f})"
            if len(text) + len(more) > 52:
                break
            text += more
        return text
