"""Adafactor of torch and of transformers: preconditioners from sums over rows and columns of squared gradients.

With the mean r of squared gradients over each row of a matrix, the mean c over each column, and the root mean square
RMS(x) of the parameter, the step is -rho P^-1 g with (Shazeer and Stern 2018)

    P = sqrt(v) / max(eps2, RMS(x))        v = r c' / mean(r), or the average of g^2 itself where x is a vector

and the relative step rho. RMS(x) and rho are those of the next step, because those of the last step are not saved. The
optimizer also shortens an update with a root mean square above a limit. This depends on the gradient and is left out,
as gradient clipping is for every optimizer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectra.optimizer.momentum import Recurrence
from spectra.optimizer.parameter_state import ParameterState, refusal

LARGEST_STEP, WARMUP = 1e-2, 1e-6  # of transformers' relative step: its limit, and the growth of the limit per step


def torch_diagonal(entry: ParameterState) -> Tensor:
    """The diagonal of the preconditioner of torch's Adafactor."""
    if len(entry.shape) > 1:
        row, column = (entry.tensor(key, torch_shape(key, entry.shape)) for key in ("row_var", "col_var"))
        least, smallest = torch_eps(entry)
        v = row @ column / row.mean(dim=-2, keepdim=True).clamp(min=least)
    else:
        v = entry.tensor("variance")
        least, smallest = torch_eps(entry)
    return v.sqrt().clamp(min=least) / max(smallest, entry.root_mean_square())


def torch_shape(key: str, shape: torch.Size) -> torch.Size:
    """The shape of a tensor in the state of torch's Adafactor, for a parameter of this shape."""
    if key == "row_var":
        return torch.Size([*shape[:-1], 1])
    return torch.Size([*shape[:-2], 1, shape[-1]]) if key == "col_var" else shape


def torch_eps(entry: ParameterState) -> tuple[float, float]:
    """The two eps of torch's Adafactor; a first one of None is the eps of the dtype of the state or parameter.

    Raises SpectraError if there are not two.
    """
    least, smallest = _pair_of_eps(entry)
    if least is None:
        kept = next((entry.state[key] for key in ("row_var", "variance") if key in entry.state), entry.values)
        least = torch.finfo(torch.float64 if kept is None else kept.dtype).eps
    return least, smallest


def torch_rate(entry: ParameterState) -> float:
    """The relative step of torch's Adafactor at its next step."""
    return min(entry.number("lr"), (entry.step + 1) ** -0.5)


def torch_decay(entry: ParameterState) -> float:
    """The weight decay w with which torch's factor on parameters, 1 - lr weight_decay, is 1 - rho w."""
    rho = torch_rate(entry)
    return entry.number("lr") * entry.number("weight_decay") / rho if rho else 0.0


def transformers_diagonal(entry: ParameterState) -> Tensor:
    """The diagonal of the preconditioner of transformers' Adafactor."""
    if len(entry.shape) > 1:
        row = entry.tensor("exp_avg_sq_row", entry.shape[:-1])
        column = entry.tensor("exp_avg_sq_col", torch.Size([*entry.shape[:-2], entry.shape[-1]]))
        v = (row / row.mean(dim=-1, keepdim=True))[..., None] * column[..., None, :]
    else:
        v = entry.tensor("exp_avg_sq")
    return v.sqrt() / _scale(entry)


def transformers_rate(entry: ParameterState) -> float:
    """The learning rate of transformers' Adafactor, or its relative step at the next step."""
    if not entry.on("relative_step"):
        return entry.number("lr")
    after = entry.step + 1
    return min(WARMUP * after if entry.on("warmup_init") else LARGEST_STEP, after**-0.5)


def transformers_decay(entry: ParameterState) -> float:
    """The weight decay w with which transformers' factor on parameters is 1 - rho w; it scales like the step."""
    return entry.number("weight_decay") * _scale(entry)


def adafactor_momentum(entry: ParameterState) -> Recurrence:
    """The momentum m' = b1 m + (1 - b1) g of transformers' Adafactor with `beta1`; none without it."""
    first = entry.number("beta1") if entry.options.get("beta1") is not None else 0.0
    return Recurrence(decay=first, gain=1 - first)


def _scale(entry: ParameterState) -> float:
    """The factor on a step of transformers' Adafactor."""
    _, smallest = _pair_of_eps(entry)
    return max(smallest, entry.root_mean_square()) if entry.on("scale_parameter") else 1.0


def _pair_of_eps(entry: ParameterState) -> tuple[float | None, float]:
    """The two eps; the first may be None in torch. Raises SpectraError if there are not two."""
    given = entry.options.get("eps")
    if not (isinstance(given, list | tuple) and len(given) == 2 and isinstance(given[1], float | int)):
        raise refusal("its eps is not a pair of numbers; save the whole optimizer.state_dict()")
    return given[0], given[1]
