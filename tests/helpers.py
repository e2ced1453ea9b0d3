"""Symmetric matrices whose spectra are known, and what tests of methods share."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spectra.operator import Wrapper
from spectra.records import files

CPU = torch.device("cpu")
WHOLE = os.environ.get("SPECTRA_TEST_ALL") == "1"  # as scripts/test-all sets it: heavy sets are run whole


def make_record(command: str, problem: dict, results: list[dict]) -> dict:
    """A result as JSON has it, whole or not."""
    return {"schema": files.SCHEMA, "command": command, "problem": problem, "results": results}


def save(directory: Path, record: dict, arrays: dict) -> None:
    """Such a result as files."""
    files.save(directory, record["command"], files.to_json(record), arrays)


def arrays_of(path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, which is closed."""
    with np.load(path) as held:
        return dict(held)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(count: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, count)


def with_spectrum(spectrum, seed: int = 0) -> Tensor:
    """A full matrix with these eigenvalues in random directions, exactly symmetric."""
    spectrum = torch.as_tensor(np.asarray(spectrum), dtype=torch.float64)
    n = len(spectrum)
    directions = torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=torch.float64)).Q
    matrix = (directions * spectrum) @ directions.T
    return (matrix + matrix.T) / 2


@dataclass(frozen=True)
class Known:
    """A matrix (n, n) in float64 and its eigenvalues (n,), rising."""

    matrix: Tensor
    spectrum: Tensor

    @property
    def n(self) -> int:
        return len(self.spectrum)

    @property
    def size(self) -> float:
        """|A|; 1 for the zero matrix, so that it serves as a unit."""
        return self.spectrum.abs().max().item() or 1.0

    def __mul__(self, scale: float) -> "Known":
        return Known(self.matrix * scale, (self.spectrum * scale).sort().values)


def known(spectrum, matrix: Tensor | None = None) -> Known:
    spectrum = torch.as_tensor(np.sort(np.asarray(spectrum, dtype=np.float64)))
    return Known(with_spectrum(spectrum) if matrix is None else matrix, spectrum)


def strakos(n: int = 48, low: float = 0.1, high: float = 100.0, ratio: float = 0.8) -> np.ndarray:
    """Strakos (1991): crowds at the low end; without reorthogonalisation Lanczos returns copies of the rest."""
    i = np.arange(n)
    return low + i / (n - 1) * (high - low) * ratio ** (n - 1 - i)


def wilkinson() -> Known:
    """W21+: its largest eigenvalues come in pairs that agree to fourteen digits."""
    matrix = torch.diag(torch.arange(-10, 11).abs().double())
    matrix += torch.diag(torch.ones(20, dtype=torch.float64), 1) + torch.diag(torch.ones(20, dtype=torch.float64), -1)
    return Known(matrix, torch.linalg.eigvalsh(matrix))


# Softmax regression at zero weights: each eigenvalue of the inputs' covariance C - 1 times, and zeros (C = 10).
SOFTMAX = np.concatenate([np.repeat(0.7 ** np.arange(14), 9), np.zeros(14)])

TABLE: dict[str, Callable[[], Known]] = {
    "ghosts": lambda: known(np.concatenate([[100, 50, 20], uniform(147)])),
    "strakos": lambda: known(strakos()),
    "wilkinson": wilkinson,
    "low rank": lambda: known(np.concatenate([uniform(30, 0.5, 3), np.zeros(370)])),
    "softmax": lambda: known(SOFTMAX),
    "multiple top": lambda: known(np.concatenate([np.full(3, 10.0), np.full(2, -4.0), uniform(150, -1, 1)])),
    "opposite": lambda: known(np.concatenate([[5, -5], uniform(98, -1, 1)])),
    "network": lambda: known(np.concatenate([[40, 22, 15, 9, 5], -(uniform(60) ** 4), uniform(135, seed=1) ** 4])),
    "flat": lambda: known(np.linspace(1, 3, 120)),
    "decay": lambda: known(np.arange(1, 151) ** -2.0),
    "identity": lambda: known(np.ones(30), torch.eye(30, dtype=torch.float64)),
    "zero": lambda: known(np.zeros(30), torch.zeros(30, 30, dtype=torch.float64)),
    "one by one": lambda: known([-2.5], torch.tensor([[-2.5]], dtype=torch.float64)),
}


@cache
def matrix(name: str) -> Known:
    return TABLE[name]()


def expected(spectrum: Tensor, k: int, which: str) -> Tensor:
    """The k eigenvalues that `which` names, in its order, by the words of the command line's contract."""
    rising = spectrum.sort().values
    top, bottom = rising.flip(0), rising
    if which == "LM":
        return torch.tensor(sorted(spectrum.tolist(), key=abs, reverse=True)[:k], dtype=torch.float64)
    return {"LA": top[:k], "SA": bottom[:k], "BE": torch.cat([top[: (k + 1) // 2], bottom[: k // 2]])}[which]


@dataclass
class Products:
    """An operator that is only its product: no tensor, no methods of one."""

    multiply: Callable[[Tensor], Tensor]
    n: int
    dtype: torch.dtype = torch.float64
    device: torch.device = CPU

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.n, self.n))

    def __matmul__(self, vectors: Tensor) -> Tensor:
        assert vectors.dtype == self.dtype
        assert vectors.ndim in (1, 2)
        assert vectors.shape[0] == self.n
        return self.multiply(vectors)


@dataclass
class Widths(Wrapper):
    """The same matrix, with the columns of each call."""

    widths: list[int] = field(default_factory=list)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        self.widths.append(1 if vectors.ndim == 1 else vectors.shape[1])
        return self.operator @ vectors


def not_finite(n: int = 60, good: int = 0, bad: float = float("nan")) -> Products:
    """A matrix whose products, after the first `good`, hold something that is not finite."""
    calls = 0
    whole = with_spectrum(uniform(n))

    def multiply(vectors):
        nonlocal calls
        calls += 1
        product = whole @ vectors
        if calls > good:
            product[n // 2] = bad
        return product

    return Products(multiply, n)
