"""The Hessian by finite differences of gradients in float64: a reference into which no second derivative enters."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def hessian(model: nn.Module, mean_loss: Callable[[], Tensor], step: float = 1e-4) -> Tensor:
    """(n, n) over all parameters of `model`, central differences with one extrapolation; the error is about step^4."""
    parameters = list(model.parameters())

    def gradient() -> Tensor:
        slopes = torch.autograd.grad(mean_loss(), parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([slope.to_dense().reshape(-1) for slope in slopes])

    def slope_change(numbers: Tensor, j: int, step: float) -> Tensor:
        here, ends = numbers[j].item(), []
        for there in (here + step, here - step):
            numbers[j] = there
            ends.append(gradient())
        numbers[j] = here
        return (ends[0] - ends[1]) / (2 * step)

    columns = [
        (4 * slope_change(numbers, j, step / 2) - slope_change(numbers, j, step)) / 3
        for numbers in (p.data.view(-1) for p in parameters)
        for j in range(len(numbers))
    ]
    return torch.stack(columns, dim=1)
