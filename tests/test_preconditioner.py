"""Preconditioners against steps that torch's own optimizers take, and their thresholds against simulations."""

import copy
from itertools import product

import pytest
import torch
from helpers import seeded
from torch import nn

from spectra.errors import SpectraError
from spectra.krylov.eigenpairs import eigenpairs
from spectra.operator import Counting
from spectra.optimizer.adam import nadam, nadam_momentum
from spectra.optimizer.momentum import Recurrence, threshold
from spectra.optimizer.parameter_state import ParameterState
from spectra.optimizer.preconditioned import Preconditioned
from spectra.optimizer.preconditioner import preconditioner
from spectra.product_checks import check_operator

RATE = 0.03
STEPS = 7


class Two(nn.Module):
    """Parameters of two shapes, and no forward."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, generator=seeded(seed), dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(4, generator=seeded(seed + 1), dtype=torch.float64))

    @property
    def flat(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters()]).clone()


def averages(before, after, gradient, group):
    """Adam's and RAdam's momentum."""
    return after["exp_avg"]


def plain(before, after, gradient, group):
    return gradient


def summed(before, after, gradient, group):
    """RMSprop's new part of the momentum, which torch sums after it is preconditioned."""
    return gradient


def nadams(before, after, gradient, group):
    """NAdam's look-ahead, by Dozat (2016)."""
    b1, t, m = group["betas"][0], after["step"].item(), after["mu_product"].item()
    now, later = (b1 * (1 - 0.5 * 0.96 ** (s * group["momentum_decay"])) for s in (t, t + 1))
    return (1 - now) * gradient + later * (1 - m) / (1 - m * later) * after["exp_avg"]


def heavy(before, after, gradient, group):
    if group["momentum"] == 0:
        return gradient
    buffer = after["momentum_buffer"]
    return gradient + group["momentum"] * buffer if group["nesterov"] else buffer


# the class, what its step is the preconditioned of, and options that are tried together
OPTIMIZERS = {
    "Adam": (averages, {"amsgrad": (False, True), "betas": ((0.9, 0.999), (0.0, 0.7)), "eps": (1e-8, 0.1)}),
    "AdamW": (averages, {"amsgrad": (False, True), "betas": ((0.8, 0.95),)}),
    "NAdam": (nadams, {"momentum_decay": (4e-3, 0.3), "decoupled_weight_decay": (False, True)}),
    # 0.6: nothing is adapted at any step; 0.999: from the sixth step on
    "RAdam": (averages, {"betas": ((0.9, 0.999), (0.9, 0.6)), "decoupled_weight_decay": (False, True)}),
    "Adagrad": (plain, {"lr_decay": (0.0, 0.2), "initial_accumulator_value": (0.0, 0.5)}),
    "RMSprop": (summed, {"centered": (False, True), "momentum": (0.0, 0.8)}),
    "Adadelta": (plain, {"rho": (0.9, 0.5), "eps": (1e-6, 1e-2)}),
    "SGD": (heavy, {"momentum": (0.0, 0.9), "dampening": (0.0, 0.3)}),
}
EVERYWHERE = {"weight_decay": (0.0, 0.2), "maximize": (False, True)}


FACTORED = {
    "Adafactor": {
        "lr": (0.03, 0.9),  # below the relative step 1/sqrt(t), and above it
        "eps": ((None, 1e-3), (1.2, 10.0)),  # 1.2: below the root of v at some entries, above it at others
        "d": (1.0, 1e9),
        "weight_decay": (0.0, 0.2),
        "maximize": (False, True),
    },
    "transformers.Adafactor": {
        "lr": (None, 0.03),
        "beta1": (None, 0.6),
        "clip_threshold": (1.0, 1e9),
        "weight_decay": (0.0, 0.2),
        "scale_parameter": (False, True),
        "warmup_init": (False, True),
    },
}


def factored_cases():
    for name, options in FACTORED.items():
        for values in product(*options.values()):
            yield name, dict(zip(options, values, strict=True))


def cases():
    for name, (_, options) in OPTIMIZERS.items():
        every = options | EVERYWHERE
        for values in product(*every.values()):
            yield name, dict(zip(every, values, strict=True))
    yield "SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
    for name in ("Adam", "NAdam", "RAdam", "RMSprop", "Adadelta"):
        yield name, {"foreach": True}
    yield "Adam", {"fused": True, "weight_decay": 0.1}
    yield "Adam", {"lr": torch.tensor(RATE, dtype=torch.float64), "betas": (0.8, 0.9)}


def give_gradients(model: nn.Module, generator: torch.Generator) -> None:
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def trained(name: str, options: dict, steps: int = STEPS, model=None):
    """A model and its optimizer after a few steps on random gradients."""
    model, generator = model or Two(), seeded(5)
    optimizer = getattr(torch.optim, name)(model.parameters(), **{"lr": RATE, **options})
    for _ in range(steps):
        give_gradients(model, generator)
        optimizer.step()
    return model, optimizer, generator


@pytest.mark.parametrize(("name", "options"), [pytest.param(*case, id=str(case)) for case in cases()])
def test_the_step_of_the_optimizer_is_the_preconditioned_momentum(name, options):
    model, optimizer, generator = trained(name, options)
    start, before = model.flat, copy.deepcopy(optimizer.state_dict())
    give_gradients(model, generator)
    ascent = -1 if options.get("maximize") else 1
    decoupled = optimizer.param_groups[0].get("decoupled_weight_decay", False)
    decay = optimizer.param_groups[0]["weight_decay"]
    coupled = 0.0 if decoupled else decay
    gradients = [ascent * p.grad + coupled * p.detach() for p in model.parameters()]
    optimizer.step()
    moved, state = model.flat - start, copy.deepcopy(optimizer.state_dict())
    if name == "Adadelta":  # whose step has the average of squared steps from before it
        for i in state["state"]:
            state["state"][i]["acc_delta"] = before["state"][i]["acc_delta"]
    momenta = [
        OPTIMIZERS[name][0](before["state"].get(i), state["state"].get(i), g, optimizer.param_groups[0])
        for i, g in enumerate(gradients)
    ]
    expected = torch.cat([m.flatten() for m in momenta])
    found = preconditioner(state, model)
    moved = moved + decoupled * RATE * decay * start
    if name == "RMSprop" and options.get("momentum"):
        buffers = torch.cat([before["state"][i]["momentum_buffer"].flatten() for i in before["state"]])
        moved = moved + RATE * options["momentum"] * buffers
    torch.testing.assert_close(moved, -RATE * found.root**2 * expected, rtol=1e-9, atol=1e-14)
    assert found.rate == pytest.approx(RATE)
    assert found.sign == ascent
    torch.testing.assert_close(
        preconditioner(optimizer, model).root, preconditioner(optimizer.state_dict(), model).root
    )
    wanted = torch.full_like(start, decay) if decoupled else decay * found.root**2
    torch.testing.assert_close(torch.zeros_like(start) if found.decay is None else found.decay, wanted)


@pytest.mark.sampled(16)
@pytest.mark.parametrize(("name", "options"), [pytest.param(*case, id=str(case)) for case in factored_cases()])
def test_the_step_of_adafactor_is_the_preconditioned_gradient(name, options):
    """But for the clipping of its update, which is taken from that update; parameters have two, one and three axes."""
    kind = torch.optim.Adafactor
    if name.startswith("transformers"):
        kind = pytest.importorskip("transformers.optimization").Adafactor
        options = options | {"relative_step": options["lr"] is None}
        options["warmup_init"] = options["warmup_init"] and options["relative_step"]
    model, generator = Two(), seeded(5)
    model.third = nn.Parameter(torch.randn(2, 3, 5, generator=generator, dtype=torch.float64))
    optimizer = kind(model.parameters(), **options)
    for _ in range(STEPS):
        give_gradients(model, generator)
        optimizer.step()
    averages = [copy.deepcopy(optimizer.state[p].get("exp_avg")) for p in model.parameters()]
    start = model.flat
    give_gradients(model, generator)
    gradients = [p.grad for p in model.parameters()]
    optimizer.step()
    moved, state = model.flat - start, copy.deepcopy(optimizer.state_dict())
    with torch.no_grad():  # what the last step began with, to which the averages belong that it made
        for p, values in zip(model.parameters(), start.split([p.numel() for p in model.parameters()]), strict=True):
            p.copy_(values.view_as(p))
    for held in state["state"].values():
        held["step"] = held["step"] - 1
    found = preconditioner(state, model)
    assert found.optimizer == name
    decay = torch.zeros_like(start) if found.decay is None else found.decay
    expected, first = -decay * found.rate * start, 0
    for gradient, average in zip(gradients, averages, strict=True):
        part = slice(first, first := first + gradient.numel())
        step = found.root[part] ** 2 * gradient.flatten()
        # the update that is clipped is the gradient over sqrt(v), without the scale by the parameter's own size
        scaled = options.get("scale_parameter", True)
        smallest = options.get("eps", (None, 1e-3))[1]
        scale = max(smallest, start[part].square().mean().sqrt().item()) if scaled else 1.0
        size = (step / scale).square().mean().sqrt().item()
        step = step / max(1.0, size / options.get("d", options.get("clip_threshold")))
        if options.get("beta1"):
            step = (1 - options["beta1"]) * step + options["beta1"] * average.flatten() / found.rate
        expected[part] -= found.sign * found.rate * step
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-14)
    if not options["weight_decay"]:
        b = options.get("beta1") or 0
        assert found.threshold.value * found.rate == pytest.approx((2 + 2 * b) / (1 - b))
    live, saved = preconditioner(optimizer, model), preconditioner(optimizer.state_dict(), model)
    assert torch.equal(live.root, saved.root)
    assert live.rate == saved.rate


@pytest.mark.parametrize("decay", [4e-3, 0.3])
def test_nadam_has_the_coefficients_of_its_last_step(decay):
    """They change from step to step, and with them its threshold: fitted to a step that it takes."""
    model, optimizer, generator = trained("NAdam", {"momentum_decay": decay}, steps=3)
    start = model.weight.detach().clone()
    give_gradients(model, generator)
    optimizer.step()
    state, options = optimizer.state[model.weight], optimizer.param_groups[0]
    entry = ParameterState("weight", model.weight.shape, options, state)
    momentum = (start - model.weight.detach()) / RATE * nadam(entry)
    parts = torch.stack([model.weight.grad.flatten(), state["exp_avg"].flatten()], dim=1)
    direct, through = torch.linalg.lstsq(parts, momentum.flatten()[:, None]).solution.flatten().tolist()
    found = nadam_momentum(entry)
    assert (found.direct, found.through) == pytest.approx((direct, through), rel=1e-9)
    assert (found.decay, found.gain) == pytest.approx((0.9, 0.1))


# Settings in which the preconditioner stays as it is: averages that hardly forget, after 1e11 steps.
LONG = {"betas": (0.9, 1 - 1e-9)}
NOT_CLIPPED = {"d": 1e12, "eps": (None, 10.0)}
HELD = {
    "gradient descent": ("SGD", {}, 2),
    "heavy ball": ("SGD", {"momentum": 0.8}, 2 + 1.6),
    "heavy ball, dampened": ("SGD", {"momentum": 0.8, "dampening": 0.4}, 3.6 / 0.6),
    "Nesterov": ("SGD", {"momentum": 0.8, "nesterov": True}, 3.6 / 2.6),
    "Adam": ("Adam", LONG, 38),
    "Adam without momentum": ("Adam", {"betas": (0.0, 1 - 1e-9)}, 2),
    "Adam, coupled decay": ("Adam", LONG | {"weight_decay": 0.3}, 38),
    "Adam, maximizing": ("Adam", LONG | {"maximize": True}, 38),
    "AdamW": ("AdamW", LONG | {"weight_decay": 0.7}, 38 - 18 * RATE * 0.7),
    "NAdam": ("NAdam", LONG, 38 / 2.8),
    "NAdam, decoupled decay": ("NAdam", LONG | {"weight_decay": 0.7, "decoupled_weight_decay": True}, None),
    "RAdam": ("RAdam", LONG, 38),
    "Adagrad": ("Adagrad", {"lr_decay": 1e-12}, 2),
    "RMSprop": ("RMSprop", {"alpha": 1 - 1e-9, "centered": True}, 2),
    "RMSprop with momentum": ("RMSprop", {"alpha": 1 - 1e-9, "momentum": 0.8}, 3.6),
    "Adadelta": ("Adadelta", {"rho": 1.0}, 2),
    "Adafactor": ("Adafactor", NOT_CLIPPED, None),
    "Adafactor, decoupled decay": ("Adafactor", NOT_CLIPPED | {"weight_decay": 0.7}, None),
}


def held(name: str, options: dict, groups=None, start: float = 1e-9):
    """A model of 16 entries near 0, and an optimizer whose preconditioner is random and stays."""
    model, generator = Two(), seeded(11)
    optimizer = getattr(torch.optim, name)(groups(model) if groups else model.parameters(), **{"lr": RATE, **options})
    give_gradients(model, generator)
    optimizer.step()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(start)
    for state in optimizer.state.values():
        for key, value in state.items():
            if key in ("exp_avg_sq", "square_avg", "sum", "acc_delta", "row_var", "col_var", "variance"):
                value.copy_(torch.rand(value.shape, generator=generator, dtype=value.dtype) + 0.3)
            elif key == "step":
                value.fill_(1e11)
            else:
                value.zero_()
    return model, optimizer


def growth(model, optimizer, matrix, steps: int = 400) -> float:
    """By how much the parameters grow in the later half of descent along x'Ax/2; -x'Ax/2 where it maximizes."""
    sizes = []
    for _ in range(steps):
        gradient = matrix @ model.flat
        gradient = -gradient if optimizer.param_groups[0]["maximize"] else gradient
        for p, part in zip(model.parameters(), gradient.split([p.numel() for p in model.parameters()]), strict=True):
            p.grad = part.view_as(p).clone()
        optimizer.step()
        sizes.append(model.flat.norm().item())
        if not 1e-30 < sizes[-1] < 1e-3:  # the preconditioner would not stay
            break
    return sizes[-1] / sizes[len(sizes) // 2]


def with_top(found, model, top: float, seed: int = 3) -> torch.Tensor:
    """A positive definite matrix A whose preconditioned, decay and all, has the largest eigenvalue `top`.

    What decay adds stays; A is scaled, by bisection.
    """
    n = len(found.root)
    factor = torch.randn(n, n, generator=seeded(seed), dtype=torch.float64)
    shape = factor @ factor.T + 0.05 * torch.eye(n, dtype=torch.float64)
    added = torch.zeros(n, dtype=torch.float64) if found.decay is None else found.decay

    def largest(scale):
        return torch.linalg.eigvalsh(scale * found.root[:, None] * shape * found.root + torch.diag(added))[-1].item()

    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if largest(middle) < top else (low, middle)
    return low * shape


@pytest.mark.parametrize("case", HELD)
def test_the_threshold_parts_convergence_from_divergence(case):
    name, options, times_eta = HELD[case]
    model, optimizer = held(name, options)
    limit = preconditioner(optimizer.state_dict(), model).threshold
    assert limit.value == pytest.approx(limit.upper)
    if times_eta:
        assert limit.value * RATE == pytest.approx(times_eta, rel=1e-6)
    for share, grows in ((0.98, False), (1.02, True)):
        model, optimizer = held(name, options)
        found = preconditioner(optimizer.state_dict(), model)
        assert (growth(model, optimizer, with_top(found, model, share * limit.value)) > 1) == grows


@pytest.mark.parametrize("rates", [(RATE, RATE), (RATE, 3 * RATE)])
def test_the_threshold_where_decoupled_decay_differs(rates):
    """It is an interval then; where rates differ too, it is one without them."""

    def groups(model):
        return [
            {"params": [model.weight], "lr": rates[0], "weight_decay": 0.4},
            {"params": [model.bias], "lr": rates[1], "weight_decay": 0.0},
        ]

    model, optimizer = held("AdamW", LONG, groups)
    found = preconditioner(optimizer, model)
    unit = RATE if rates[0] == rates[1] else 1.0
    assert found.rate == (RATE if unit == RATE else None)
    assert found.threshold.upper * unit == pytest.approx(38)
    assert found.threshold.value * unit == pytest.approx(38 - 18 * RATE * 0.4)
    for top, grows in ((0.99 * found.threshold.value, False), (1.01 * found.threshold.upper, True)):
        model, optimizer = held("AdamW", LONG, groups)
        assert (growth(model, optimizer, with_top(found, model, top)) > 1) == grows


def test_thresholds_that_there_are_none_of():
    assert threshold([Recurrence(0.9), Recurrence(0.8)], [0, 0], 0.1).value is None
    assert "differs" in threshold([Recurrence(0.9), Recurrence(0.8)], [0, 0], 0.1).reason
    assert "0" in threshold([Recurrence()], [0], 0.0).reason
    for rate, decay in ((1e3, 0.01), (None, 2.5)):  # parameters leap over zero
        assert "weight decay alone" in threshold([Recurrence(0.9, 0.1)] * 2, [0, decay], rate).reason
    for recurrence in (Recurrence(decay=1.0), Recurrence(decay=0.5, gain=0.0)):
        assert "no learning rate" in threshold([recurrence], [0], 0.1).reason


@pytest.mark.parametrize("coefficients", list(product((0.0, 0.5, 0.9), (0.1, 1.0), (0.0, 0.4, 1.0), (0.3, 0.9, 1.5))))
def test_the_threshold_of_any_recurrence_against_its_eigenvalues(coefficients):
    """The spectral radius of the recurrence passes 1 at the threshold, and is below it on all of the way there."""
    recurrence = Recurrence(*coefficients)
    b, c, p, q = coefficients
    for rate, decay in ((1.0, 0.0), (0.3, 0.2)):
        limit = threshold([recurrence], [decay], rate).value

        def radius(eigenvalue, rate=rate, decay=decay):
            curvature = eigenvalue - decay
            step = torch.tensor(
                [[b, c * curvature], [-rate * q * b, 1 - rate * decay - rate * curvature * (p + q * c)]],
                dtype=torch.float64,
            )
            return torch.linalg.eigvals(step).abs().max().item()

        assert all(radius(decay + share * (limit - decay)) < 1 for share in (0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999))
        assert radius(decay + 1.001 * (limit - decay)) > 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_preconditioned_is_the_matrix_it_stands_for(dtype):
    n, generator = 12, seeded(2)
    matrix = torch.randn(n, n, generator=generator, dtype=torch.float64)
    matrix = (matrix + matrix.T).to(dtype)
    root, shift = (torch.rand(n, generator=generator, dtype=torch.float64).to(dtype) + 0.1 for _ in range(2))
    for sign, added in product((1.0, -1.0), (None, shift)):
        operator = Preconditioned(matrix, root, added, sign)
        expected = sign * root[:, None] * matrix * root + torch.diag(torch.zeros_like(root) if added is None else added)
        vectors = torch.randn(n, 5, generator=generator, dtype=torch.float64).to(dtype)
        for given in (vectors, vectors[:, 0], vectors[:, :1]):
            torch.testing.assert_close(operator @ given, expected @ given)
    with pytest.raises(TypeError, match="dtype"):
        Preconditioned(matrix, root) @ torch.ones(n, dtype=torch.float16)


def test_rounding_that_p_magnifies_is_told():
    """In single precision products that are not symmetric are laid to P, in double to the model."""
    skew = torch.eye(4, dtype=torch.float64) + torch.tensor([[0.0, 0.1, 0, 0]] + 3 * [[0.0] * 4])
    for dtype, cause in ((torch.float32, r"P\^-1/2 magnifies the rounding"), (torch.float64, "a custom autograd")):
        operator = Preconditioned(skew.to(dtype), torch.ones(4, dtype=dtype))
        with pytest.raises(SpectraError, match=f"the matrix is not symmetric .*{cause}"):
            check_operator(operator)


def test_eigenvalues_are_those_of_the_preconditioned_matrix():
    """Those of P^-1 (A + wd I), which is not symmetric, by dense algebra that does not share our code."""
    model, optimizer, _ = trained("Adam", {"weight_decay": 0.1})
    factor = torch.randn(16, 16, generator=seeded(4), dtype=torch.float64)
    matrix = factor + factor.T
    found = preconditioner(optimizer, model)
    group, states = optimizer.param_groups[0], optimizer.state.values()
    v = torch.cat([state["exp_avg_sq"].flatten() for state in states])
    p = (1 - 0.9**STEPS) * ((v / (1 - 0.999**STEPS)).sqrt() + group["eps"])
    dense = torch.linalg.eigvals((matrix + 0.1 * torch.eye(16, dtype=torch.float64)) / p[:, None]).real
    pairs = eigenpairs(Counting(found.around(matrix)), 3, which="LA", tolerance=1e-10)
    torch.testing.assert_close(pairs.values, dense.sort(descending=True).values[:3])
    with pytest.raises(SpectraError, match="with 16 rows"):
        found.around(matrix[:4, :4])


class Sampled(torch.Tensor):
    """A matrix that is an estimate: quotients have an error of 0.1 of their size."""

    def standard_errors(self, vectors):
        return 0.1 * (vectors * (self.as_subclass(torch.Tensor) @ vectors)).sum(dim=0).abs()

    def trace_error(self):
        return 1.0

    def diagonal_sum(self):
        return 5.0


def test_errors_of_a_matrix_that_is_an_estimate():
    """They are those of the preconditioned quotients; the trace's is not known from that of the matrix."""
    from spectra.operator import find_on

    matrix = torch.diag(torch.arange(1.0, 6, dtype=torch.float64))
    root = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    operator = Counting(Preconditioned(matrix.as_subclass(Sampled), root))
    vectors = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(find_on("standard_errors", operator)(vectors), 0.1 * matrix.diagonal() * root**2)
    assert not find_on("trace_error", operator)() < float("inf")
    assert find_on("diagonal_sum", operator)() is None
    plain = Counting(Preconditioned(matrix, root))
    assert find_on("standard_errors", plain) is None
    assert find_on("trace_error", plain) is None
