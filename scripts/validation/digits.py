"""The digits that all trainings of the gallery see."""

from __future__ import annotations

import torch
from torch import Tensor

import spectra


def digits(count: int = 1797) -> tuple[Tensor, Tensor]:
    """The first images (count, 64) in float64, and their labels (count,)."""
    problem = spectra.load_problem(model="spectra.demo:mlp", data="digits", samples=count, dtype="float64").problem
    images = torch.cat([batch.inputs for batch in problem.batches]).flatten(1)
    return images.cpu(), torch.cat([batch.targets for batch in problem.batches]).cpu()
