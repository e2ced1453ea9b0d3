"""Draw from a distribution by inverting its cumulative distribution function at uniform numbers of each example."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributions as ds

from spectra.devices import in_float64
from spectra.errors import SpectraError
from spectra.problem.counts import poisson_counts
from spectra.wording import counted

Next = Callable[[tuple[int, ...]], Tensor]  # new uniform numbers of a shape, whose first dimension counts the examples
HALVINGS = 200  # of an interval of logarithms: enough for every float64
NEGLIGIBLE = 2.0**-60  # a probability beyond the mean after which the rest is rounding
MOST = 100_000  # counts that are tried one after another


def inverse_transform(density: ds.Distribution, uniform: Callable[[int], Tensor], dtype: torch.dtype) -> Tensor:
    """Draw from a distribution whose first dimension counts the examples, given `uniform(j)`: (b,) in (0, 1).

    Raises SpectraError if there is no inverse for its family, or no entry for each example.
    """
    used, examples = 0, len(uniform(0))
    if tuple(density.batch_shape[:1]) != (examples,):
        raise SpectraError(
            f"`curvature` fisher-mc: the loss's {type(density).__name__} has batch_shape {tuple(density.batch_shape)} "
            f"for {counted(examples, 'example')}; its first dimension must count the examples"
        )

    def following(shape: tuple[int, ...]) -> Tensor:
        nonlocal used
        count = prod(shape[1:])
        numbers = torch.stack([uniform(used + j) for j in range(count)], dim=1)
        used += count
        return numbers.reshape(shape)

    while isinstance(density, ds.Independent):
        density = density.base_dist
    if type(density) in INVERSES:
        return INVERSES[type(density)](density, following)
    try:
        return density.icdf(following(density.batch_shape)).to(dtype)
    except NotImplementedError as error:
        raise SpectraError(
            f"`curvature` fisher-mc: {type(density).__name__} has no inverse cumulative distribution function (icdf); "
            "give `loss` a method draw(output, uniform), or use fisher-empirical"
        ) from error


def bernoulli(d: ds.Bernoulli, following: Next) -> Tensor:
    """Draws from a Bernoulli distribution, 0 or 1."""
    return (following(d.batch_shape) < in_float64(d.probs)).to(d.probs)


def categorical(d: ds.Categorical | ds.OneHotCategorical, following: Next) -> Tensor:
    """Draws of class labels, (b, ...)."""
    cumulative = in_float64(d.probs).cumsum(dim=-1)
    target = following(d.batch_shape)[..., None] * cumulative[..., -1:]
    labels = torch.searchsorted(cumulative.contiguous(), target, right=True)[..., 0]
    return labels.clamp(max=d.probs.shape[-1] - 1).to(d.probs.device)


def one_hot(d: ds.OneHotCategorical, following: Next) -> Tensor:
    """Draws of class labels as one-hot vectors (b, ..., C)."""
    return F.one_hot(categorical(d, following), d.probs.shape[-1]).to(d.probs)


def poisson(d: ds.Poisson, following: Next) -> Tensor:
    """Draws from a Poisson distribution."""
    return poisson_counts(in_float64(d.rate), following(d.batch_shape)).to(d.rate)


def geometric(d: ds.Geometric, following: Next) -> Tensor:
    """Draws from a geometric distribution: numbers of failures before the first success."""
    return (following(d.batch_shape).log() / (-in_float64(d.probs)).log1p()).floor().to(d.probs)


def by_counting(d: Any, following: Next) -> Tensor:
    """Draws of counts, by adding up probabilities from 0. Raises SpectraError if a count exceeds MOST."""
    numbers = following(d.batch_shape)
    exact = type(d)(in_float64(d.total_count), logits=in_float64(d.logits), validate_args=False)
    count, reached, mean = torch.zeros_like(numbers), torch.zeros_like(numbers), exact.mean
    for k in range(MOST):
        probability = exact.log_prob(torch.full_like(numbers, k)).exp()
        reached = reached + probability
        beyond = (reached < numbers) & ((probability > NEGLIGIBLE) | (k < mean))
        if not beyond.any():
            return count.to(d.logits)
        count = count + beyond
    raise SpectraError(
        f"`curvature` fisher-mc: counts of {type(d).__name__} exceed {MOST:,}; give `loss` a method "
        "draw(output, uniform)"
    )


def standard_gamma(shape: Tensor, numbers: Tensor) -> Tensor:
    """Logarithms of draws from a gamma distribution of rate 1, by bisection."""
    shape = in_float64(shape)
    low, high = torch.full_like(numbers, -800.0), (shape + 40 * shape.sqrt() + 60).log()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = torch.special.gammainc(shape, middle.exp()) >= numbers
        low, high = low.where(above, middle), middle.where(above, high)
    return (low + high) / 2


def gamma(d: ds.Gamma, following: Next) -> Tensor:
    """Draws from a gamma distribution."""
    tiny = torch.finfo(d.rate.dtype).tiny
    found = standard_gamma(d.concentration, following(d.batch_shape)).exp() / in_float64(d.rate)
    return found.to(d.rate).clamp(min=tiny)


def beta(d: ds.Beta, following: Next) -> Tensor:
    """Draws from a beta distribution, as x / (x + y) for two gamma draws."""
    x, y = (standard_gamma(a, following(d.batch_shape)) for a in (d.concentration1, d.concentration0))
    kind = torch.finfo(d.concentration1.dtype)
    return (x - y).sigmoid().to(d.concentration1).clamp(kind.tiny, 1 - kind.eps)


INVERSES: dict[type[ds.Distribution], Callable[..., Tensor]] = {
    ds.Bernoulli: bernoulli,
    ds.Categorical: categorical,
    ds.OneHotCategorical: one_hot,
    ds.Poisson: poisson,
    ds.Geometric: geometric,
    ds.Binomial: by_counting,
    ds.NegativeBinomial: by_counting,
    ds.Gamma: gamma,
    ds.Beta: beta,
}
