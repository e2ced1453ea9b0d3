"""Softmax regression at zero weights: (I/C - 11'/C^2) (x) X'X/N, so that each eigenvalue comes C - 1 times."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn

import spectra
from scripts.validation.digits import digits
from scripts.validation.row import Row

SOURCE = "closed form"
CLASSES = 10


def rows() -> Iterator[Row]:
    """The largest eigenvalue and how often it comes, in the Hessian and in the GGN, on the digits."""
    images, labels = digits()
    model = nn.Linear(images.shape[1], CLASSES, bias=False).double()
    nn.init.zeros_(model.weight)
    exact = np.linalg.eigvalsh((images.T @ images / len(images)).numpy())[::-1] / CLASSES
    problem = (model, nn.CrossEntropyLoss(), (images, labels))
    for pairs in spectra.eig(*problem, curvature=["hessian", "ggn"], k=CLASSES, which="LA", tolerance=1e-8):
        note, name = "digits, 10 classes", {"hessian": "Hessian", "ggn": "GGN"}[pairs.curvature]
        residual = float(pairs.residuals[0])
        rounding = 1e-12 * exact[0]
        yield Row(
            f"largest eigenvalue, {name}", SOURCE, exact[0], pairs.values[0], residual, rounding, note, pairs.products
        )
        copies = int(np.sum(np.abs(pairs.values - exact[0]) < 1e-6 * exact[0]))
        yield Row(f"its multiplicity, {name}", SOURCE, CLASSES - 1, copies, 0.0, 0.0, note, pairs.products)
