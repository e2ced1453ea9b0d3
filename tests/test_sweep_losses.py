"""Fifty-three losses as users write them: the Hessian against second differences of the loss itself, in float64.

No derivative of PyTorch's enters the reference. What is refused is listed, with the words that refuse it.
"""

import pytest
import torch
import torch.nn.functional as F
from helpers import seeded
from torch import distributions as DS
from torch import nn

from spectra.curvature.evaluation import cut_batches
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.problem.losses import CustomLoss
from spectra.problem.problem import Problem

D = torch.float64
N, K = 7, 3
g = seeded(5)
x = torch.randn(N, 3, dtype=D, generator=g)
yr = torch.randn(N, K, dtype=D, generator=g)
yp = yr.exp()
yl = torch.randint(K, (N,), generator=g)
yb = (yr > 0).to(D)
ys = yr.softmax(1)
ypm = torch.where(yr > 0, 1.0, -1.0).to(D)
none = {"reduction": "none"}

LOSSES = {
    "bce sigmoid": (lambda o, t: F.binary_cross_entropy(o.sigmoid(), t, **none), yb),
    "bce pos_weight": (
        lambda o, t: F.binary_cross_entropy_with_logits(
            o, t, pos_weight=torch.tensor([1.0, 2.0, 3.0], dtype=o.dtype), **none
        ),
        yb,
    ),
    "bce weight": (
        lambda o, t: F.binary_cross_entropy_with_logits(
            o, t, weight=torch.tensor([1.0, 2.0, 3.0], dtype=o.dtype), **none
        ),
        yb,
    ),
    "kl_div": (lambda o, t: F.kl_div(o.log_softmax(1), t, **none), ys),
    "kl log_target": (lambda o, t: F.kl_div(o.log_softmax(1), t.log(), log_target=True, **none), ys),
    "poisson": (lambda o, t: F.poisson_nll_loss(o, t, **none), yp),
    "poisson full": (lambda o, t: F.poisson_nll_loss(o, t, full=True, log_input=True, **none), yp),
    "gaussian_nll": (lambda o, t: F.gaussian_nll_loss(o[:, :1], t[:, :1], o[:, 1:2].exp(), **none), yr),
    "gaussian_nll clamp": (
        lambda o, t: F.gaussian_nll_loss(o[:, :1], t[:, :1], (o[:, 1:2] * 0).exp() * 1e-9, **none) * 1e-6,
        yr,
    ),
    "multi_margin": (lambda o, t: F.multi_margin_loss(o, t, **none), yl),
    "multi_margin p2": (lambda o, t: F.multi_margin_loss(o, t, p=2, **none), yl),
    "soft_margin": (lambda o, t: F.soft_margin_loss(o, t, **none), ypm),
    "multilabel_soft": (lambda o, t: F.multilabel_soft_margin_loss(o, t, **none), yb),
    "multilabel_margin": (
        lambda o, t: F.multilabel_margin_loss(
            o, torch.stack([t, torch.full_like(t, -1), torch.full_like(t, -1)], 1), **none
        ),
        yl,
    ),
    "hinge": (lambda o, t: F.hinge_embedding_loss(o, t, **none), ypm),
    "triplet": (lambda o, t: F.triplet_margin_loss(o, t, t.roll(1, 1), **none), yr),
    "cosine_emb": (lambda o, t: F.cosine_embedding_loss(o, t, torch.ones(len(o), dtype=o.dtype), **none), yr),
    "margin_rank": (lambda o, t: F.margin_ranking_loss(o[:, 0], o[:, 1], t[:, 0], **none), ypm),
    "nll": (lambda o, t: F.nll_loss(o.log_softmax(1), t, **none), yl),
    "ce none": (lambda o, t: F.cross_entropy(o, t, **none), yl),
    "ce mean": (lambda o, t: F.cross_entropy(o, t), yl),
    "focal": (lambda o, t: (1 - o.softmax(1).gather(1, t[:, None])[:, 0]) ** 2 * F.cross_entropy(o, t, **none), yl),
    "focal detached": (
        lambda o, t: (1 - o.softmax(1).gather(1, t[:, None])[:, 0]).detach() ** 2 * F.cross_entropy(o, t, **none),
        yl,
    ),
    "gce": (lambda o, t: (1 - o.softmax(1).gather(1, t[:, None])[:, 0] ** 0.7) / 0.7, yl),
    "logit adjusted": (
        lambda o, t: F.cross_entropy(o + torch.tensor([0.1, 0.2, 0.7], dtype=o.dtype).log(), t, **none),
        yl,
    ),
    "dice": (lambda o, t: 1 - (2 * (o.sigmoid() * t).sum(1) + 1) / (o.sigmoid().sum(1) + t.sum(1) + 1), yb),
    "ordinal": (
        lambda o, t: F.binary_cross_entropy_with_logits(
            o.cumsum(1), (torch.arange(K) < t[:, None]).to(o.dtype), **none
        ),
        yl,
    ),
    "msle": (lambda o, t: (torch.log1p(o.exp()) - torch.log1p(t)) ** 2, yp),
    "rmse per ex": (lambda o, t: ((o - t) ** 2).mean(1).sqrt(), yr),
    "l2 dist": (lambda o, t: (o - t).norm(dim=1), yr),
    "entropy": (lambda o, t: -(o.softmax(1) * o.log_softmax(1)).sum(1), yl),
    "evidential": (lambda o, t: torch.lgamma((F.softplus(o) + 1).sum(1)) - torch.lgamma(F.softplus(o) + 1).sum(1), yl),
    "cox": (lambda o, t: o[:, 0] - o[:, 0].exp().log1p(), yl),
    "Normal": (lambda o, t: -DS.Normal(o[:, 0], F.softplus(o[:, 1]) + 0.1).log_prob(t[:, 0]), yr),
    "StudentT": (lambda o, t: -DS.StudentT(F.softplus(o[:, 0]) + 2, o[:, 1], o[:, 2].exp()).log_prob(t[:, 0]), yr),
    "Beta": (lambda o, t: -DS.Beta(F.softplus(o[:, 0]) + 0.5, F.softplus(o[:, 1]) + 0.5).log_prob(t[:, 0]), ys),
    "Gamma": (lambda o, t: -DS.Gamma(o[:, 0].exp(), o[:, 1].exp()).log_prob(t[:, 0]), yp),
    "NegBin": (lambda o, t: -DS.NegativeBinomial(o[:, 0].exp(), logits=o[:, 1]).log_prob(t[:, 0].round()), yp),
    "Dirichlet": (lambda o, t: -DS.Dirichlet(o.exp()).log_prob(t), ys),
    "VonMises": (lambda o, t: -DS.VonMises(o[:, 0], o[:, 1].exp()).log_prob(t[:, 0]), yr),
    "Laplace": (lambda o, t: -DS.Laplace(o[:, 0], o[:, 1].exp()).log_prob(t[:, 0]), yr),
    "MVN": (
        lambda o, t: -DS.MultivariateNormal(o[:, :2], scale_tril=torch.diag_embed(o[:, :2].exp())).log_prob(t[:, :2]),
        yr,
    ),
    "Mixture": (lambda o, t: -DS.MixtureSameFamily(DS.Categorical(logits=o), DS.Normal(o, 1.0)).log_prob(t[:, 0]), yr),
    "Weibull": (lambda o, t: -DS.Weibull(o[:, 0].exp(), o[:, 1].exp()).log_prob(t[:, 0]), yp),
    "LogNormal": (lambda o, t: -DS.LogNormal(o[:, 0], o[:, 1].exp()).log_prob(t[:, 0]), yp),
    "Cauchy": (lambda o, t: -DS.Cauchy(o[:, 0], o[:, 1].exp()).log_prob(t[:, 0]), yr),
    "Bernoulli probs": (lambda o, t: -DS.Bernoulli(probs=o.sigmoid()).log_prob(t), yb),
    "ContBernoulli": (lambda o, t: -DS.ContinuousBernoulli(logits=o).log_prob(t), ys),
    "KL normals": (lambda o, t: DS.kl_divergence(DS.Normal(o[:, 0], o[:, 1].exp()), DS.Normal(0.0, 1.0)), yr),
    "OneHot": (lambda o, t: -DS.OneHotCategorical(logits=o).log_prob(t), F.one_hot(yl, K).to(D)),
    "Multinomial": (lambda o, t: -DS.Multinomial(3, logits=o).log_prob(t), 3 * F.one_hot(yl, K).to(D)),
    "Logistic": (
        lambda o, t: (
            -DS.TransformedDistribution(
                DS.Uniform(torch.zeros((), dtype=D), torch.ones((), dtype=D)),
                [DS.SigmoidTransform().inv, DS.AffineTransform(o[:, 0], o[:, 1].exp())],
            ).log_prob(t[:, 0])
        ),
        yr,
    ),
    "ctc": (
        lambda o, t: F.ctc_loss(
            o.log_softmax(1)[None].expand(4, -1, -1),
            t[:, None].clamp(min=1),
            torch.full((len(o),), 4),
            torch.full((len(o),), 1),
            reduction="none",
        ),
        yl,
    ),
}

REFUSED = {
    **dict.fromkeys(("ctc", "multi_margin", "multi_margin p2", "multilabel_margin"), "has no second derivative"),
    "focal detached": "detach",  # its gradient is that of no function, so that differences contradict it
}
ROUTES = {"graph kept": {}, "traced": {"products": 10**9}}


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, K)).double()


def curvature_along(function, d: torch.Tensor, step: float = 2e-3) -> float:
    """d'H d, by second differences of a function of the parameters at zero, with one step of Richardson's."""

    def difference(h: float) -> float:
        return (function(h * d) - 2 * function(0 * d) + function(-h * d)) / h**2

    return (4 * difference(step) - difference(2 * step)) / 3


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", LOSSES)
def test_hessian(name):
    loss, targets = LOSSES[name]
    model = build()
    problem = Problem(model, CustomLoss(loss), cut_batches(x, targets, torch.arange(N), N))
    start = problem.vector([p.detach().clone() for p in problem.leaves])

    def value(shift: torch.Tensor) -> float:
        parts = dict(zip(problem.parameters, problem.tensors(start + shift), strict=True))
        with torch.no_grad():
            return loss(torch.func.functional_call(model, parts, (x,)), targets).mean().item()

    if name in REFUSED:
        with pytest.raises(SpectraError, match=rf"`loss` .*{REFUSED[name]}"):
            Curvature(problem, "hessian") @ start
        return
    directions = torch.randn(6, problem.size, dtype=D, generator=seeded(1))
    expected = torch.tensor([curvature_along(value, d) for d in directions])
    for settings in ROUTES.values():
        operator = Curvature(problem, "hessian", **settings)
        found = torch.stack([d @ (operator @ d) for d in directions])
        size = torch.linalg.matrix_norm(directions).item() ** 2 / len(directions)
        scale = max(expected.abs().max().item(), 1e-6 * size * abs(value(0 * start)))
        assert (found - expected).abs().max() <= 1e-4 * scale
