"""Watching a training loop: the loop does not notice, and what is recorded is the matrix at that step."""

import copy
import random
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import seeded
from networks import DEVICES
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, TensorDataset

import spectra
from spectra.cli import run
from spectra.errors import SpectraError
from spectra.krylov.dense import dense_matrix
from spectra.plots.saved import saved_figure
from spectra.problem.eval_mode import temporary_eval_mode
from spectra.records.files import read, read_arrays

X = torch.randn(40, 6, generator=seeded(1), dtype=torch.float64)
Y = torch.randint(3, (40,), generator=seeded(2))
LOSS = spectra.CrossEntropy()
DEVICE = DEVICES[-1]  # where DataParallel puts a model


class Untidy(nn.Module):
    """Draws, counts, keeps and changes buffers in every forward pass, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.calls, self.last = 0, None
        self.register_buffer("moving", torch.zeros(8, dtype=torch.float64))
        self.register_buffer("assigned", torch.zeros(8, dtype=torch.float64))

    def forward(self, x):
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        self.calls += 1
        self.last = x.detach()
        self.moving.mul_(0.9).add_(x.detach().mean(dim=0))
        self.assigned = self.assigned * 0.5 + 1
        return x

    def train(self, mode=True):
        raise AssertionError("a mode is an attribute: train() may merge weights")


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), Untidy(), nn.Dropout(0.3), nn.Linear(8, 8), nn.Linear(8, 3)
        )
    model[5].weight.requires_grad_(False)
    model[1].training = False  # statistics frozen, as in fine-tuning
    return model.double()


class Own(nn.Sequential):
    """In place torch 2.11 compiles no forward of torch.nn itself."""

    def forward(self, x):
        for module in self:
            x = module(x)
        return x


def tidy() -> nn.Module:
    """What torch.compile can take in one piece."""
    model = Own(*network())
    model[3] = nn.Identity()
    return model.to(DEVICE)


def train(place=None, around=nullcontext, steps=7, every=2, make=network, prepare=lambda model: model):
    """A run of SGD, and everything that could tell it from another."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    model = make()
    device = model[0].weight.device
    called = prepare(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    seen, found = [], []
    model[0].weight.register_hook(lambda g: seen.append(g.clone()))
    if make is network:  # torch.compile leaves a module with such hooks alone
        model[6].register_full_backward_hook(lambda module, given, taken: seen.append(taken[0].clone()))
    watch = spectra.watch(called, LOSS, (X, Y), place, every=every, products=40, k=2) if place else None
    for step in range(steps):
        rows = torch.randint(len(X), (16,))
        noisy = X[rows] + random.random() * np.random.rand()  # noqa: NPY002
        optimizer.zero_grad(set_to_none=False)
        loss = nn.functional.cross_entropy(called(noisy.to(device)), Y[rows].to(device))
        loss.backward()
        optimizer.step()
        scheduler.step()
        if watch:
            with around():
                found.append(watch(step))
    chance = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    untidy = [getattr(model[3], name, None) for name in ("calls", "last")]
    modes = [module.training for module in model.modules()]
    gradients = [p.grad for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    return found, (
        model.state_dict(), optimizer.state_dict(), scheduler.state_dict(), chance, untidy, modes, gradients, versions,
        seen, settings(),
    )  # fmt: skip


def settings() -> tuple:
    """PyTorch's global switches, the older names of the same switches among them."""
    backends = torch.backends
    return (
        *(torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()),
        *(torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.get_num_threads()),
        *(backends.cudnn.benchmark, backends.cudnn.deterministic, backends.cudnn.enabled, backends.cudnn.allow_tf32),
        *(backends.cuda.matmul.allow_tf32, backends.cuda.flash_sdp_enabled(), backends.cuda.math_sdp_enabled()),
        *(backends.cuda.mem_efficient_sdp_enabled(), backends.mha.get_fastpath_enabled()),
        *(backends.mkldnn.conv.fp32_precision, torch.are_deterministic_algorithms_enabled()),
    )


def assert_same_bits(one, other):
    """Of two nests of tensors, arrays, numbers and texts."""
    ones, structure = pytree.tree_flatten(one)
    others, second = pytree.tree_flatten(other)
    assert structure == second
    for a, b in zip(ones, others, strict=True):
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        else:
            assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


CONTEXTS = {
    "plain": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("around", CONTEXTS.values(), ids=CONTEXTS.keys())
def test_training_is_unchanged_bit_for_bit(around, tmp_path):
    """Nor does what surrounds the call change what is recorded."""
    _, alone = train()
    usual, _ = train(tmp_path / "usual")
    found, watched = train(tmp_path / "here", around)
    assert_same_bits(alone, watched)
    assert [r is not None for r in found] == [step % 2 == 0 for step in range(7)]
    for one, other in zip(usual[::2], found[::2], strict=True):
        assert (one.loss, one.traces) == (other.loss, other.traces)
        assert_same_bits(vars(one.eigenpairs["hessian"]), vars(other.eigenpairs["hessian"]))


def test_autocast_is_left_out_of_recordings(tmp_path):
    """It casts what is in float32 alone."""
    watch = spectra.watch(network().float(), LOSS, (X, Y), tmp_path, every=1, k=2, warm=False)
    usual = watch(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = watch(1)
    assert (usual.loss, usual.traces) == (found.loss, found.traces)


def test_the_comparison_above_would_notice():
    _, one = train()
    _, other = train(prepare=lambda model: [torch.rand(1), model][1])
    with pytest.raises(AssertionError):
        assert_same_bits(one, other)


FIRST_USE = """
import random, sys
import numpy as np, torch
sys.path.insert(0, {tests!r})
from test_watch import LOSS, X, Y, assert_same_bits, network
import spectra
def chance():
    return torch.get_rng_state(), np.random.get_state(), random.getstate()
before = chance()
assert spectra.watch(network(), LOSS, (X, Y), {out!r}, every=1, k=2)(0)
assert_same_bits(before, chance())
assert "rich" not in sys.modules, "what makes tables is loaded for a recording"
"""


def test_the_first_use_in_a_process_draws_nothing(tmp_path):
    """Modules that are imported for it may draw, as rich does."""
    script = FIRST_USE.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled within": lambda model: [model.__setitem__(0, torch.compile(model[0], backend="eager")), model][1],
    "compiled in place": lambda model: [model.compile(backend="eager"), model][1],
    "data parallel": lambda model: nn.DataParallel(model, [0]),  # each of several devices would draw its own dropout
    "compiled data parallel": lambda model: torch.compile(nn.DataParallel(model, [0]), backend="eager"),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_models(name, tmp_path):
    """The same training, compiled as often, and the same numbers as of the model inside."""
    model = tidy()
    assert spectra.watch(WRAPPERS[name](model), LOSS, (X, Y), tmp_path, every=1).model is model
    plain, _ = train(tmp_path / "plain", steps=3, make=tidy)
    runs = []
    for place in (None, tmp_path / "wrapped"):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        found, state = train(place, steps=3, make=tidy, prepare=WRAPPERS[name])
        runs.append((state, dict(torch._dynamo.utils.counters["stats"])))
    assert bool(runs[0][1]) == name.startswith("compiled")
    assert_same_bits(*runs)
    for a, b in zip(plain, found, strict=True):
        assert (a is None) == (b is None)
        if a:
            torch.testing.assert_close(a.eigenpairs["hessian"].values, b.eigenpairs["hessian"].values)


def test_the_model_is_left_as_found_when_the_look_fails():
    model = network()
    attributes = [dict(module.__dict__) for module in model.modules()]
    names = [name for name, _ in model.named_modules()]
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    gradients = []
    model[0].weight.register_hook(gradients.append)

    def look():
        with torch.no_grad(), temporary_eval_mode(model):
            assert torch.is_grad_enabled()
            assert not any(module.training for module in model.modules())
            model(X).sum().backward()
            assert not gradients
            model[0].part, model[0].attribute = nn.Linear(2, 2), 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look()
    for module, before in zip(model.modules(), attributes, strict=True):
        assert module.__dict__.keys() == before.keys()
        assert all(module.__dict__[name] is value for name, value in before.items())
    assert names == [name for name, _ in model.named_modules()]
    assert_same_bits(dict(model.named_buffers()), buffers)
    model(X).sum().backward()
    assert len(gradients) == 1


def reference(model: nn.Module, name: str) -> torch.Tensor:
    """The matrix of a copy in eval mode."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.training = False
    batches = spectra.cut_batches(X, Y, torch.arange(len(X)), 40)
    return dense_matrix(spectra.Curvature(spectra.Problem(model, LOSS, batches), name))


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher-empirical"])
def test_what_is_recorded_is_the_matrix_at_that_step(name, tmp_path):
    """Eigenvalues within their residuals, the trace within five standard errors, in the files as in the answer."""
    model = network()
    watch = spectra.watch(model, LOSS, (X, Y), tmp_path, every=5, products=60, k=2, curvature=name)
    for step in (0, 5):
        with torch.no_grad():
            model[0].weight += 0.1
        matrix, found = reference(model, name), watch(step)
        pairs, trace = found.eigenpairs[name], found.traces[name]
        spectrum = torch.linalg.eigvalsh(matrix)
        distances = (pairs.values[:, None] - spectrum).abs().min(dim=1).values
        assert (distances <= pairs.residuals + 1e-12).all()
        assert pairs.converged
        assert abs(pairs.values[0]) == pytest.approx(spectrum.abs().max().item(), rel=1e-6)
        error = abs(trace.value - torch.trace(matrix).item())
        assert error <= 5 * trace.standard_error + 1e-12
        assert trace.standard_error <= 0.2 * abs(trace.value)

        _, eig = read(tmp_path / f"step-{step:06d}/eig.json", ["eig"])
        _, traces = read(found.directory / "trace.json", ["trace"])
        assert eig["results"][0]["eigenvalues"] == pairs.values.tolist()
        assert eig["results"][0]["curvature"] == name
        assert traces["results"][0]["trace"] == trace.value
        assert eig["problem"] == traces["problem"]
        assert (eig["problem"]["step"], eig["problem"]["examples"], eig["problem"]["parameters"]) == (
            step,
            40,
            171 - 64,
        )
        model_loss = nn.functional.cross_entropy(model_in_eval(model)(X), Y).item()
        assert eig["problem"]["loss_value"] == found.loss == pytest.approx(model_loss, rel=1e-12)


def model_in_eval(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        module.training = False
    return model


def test_hooks_that_look_on_are_left_out_of_recordings(tmp_path):
    """They are called by two passes, which tell what they and the model do: at the start, or where they come later."""
    model, calls = network(), Counter()

    def counting(name):
        return lambda *_: calls.update([name])

    handle = model[0].register_forward_pre_hook(counting("before"))
    model[2].register_forward_hook(lambda module, x, y: calls.update(["after"]))
    model[5].register_forward_hook(lambda module, x, keywords, y: calls.update(["keywords"]), with_kwargs=True)
    everywhere = nn.modules.module.register_module_forward_hook(counting("everywhere"))
    try:
        watch = spectra.watch(model, LOSS, (X, Y), tmp_path, every=1, products=40, k=2)
        once = calls.copy()
        assert set(once.values()) == {2, 2 * (len(model) + 1)}  # the last of every module
        assert watch(0)
        assert calls == once
        handle.remove()
        model[6].register_forward_hook(counting("late"))
        for step in (1, 2):
            assert watch(step)
            assert calls == once + Counter(late=2)
        model(X)
        assert calls["late"] == 3
        assert calls["before"] == 2
        assert calls["after"] == 3
    finally:
        everywhere.remove()


def halve(module, x, y) -> None:
    y.mul_(0.5)


def test_hooks_that_change_what_the_model_computes_stay(tmp_path):
    """In place, by what they return, or by a weight that they make, as weight_norm does."""
    model = network()
    model[0].register_forward_hook(lambda module, x, y: 1.5 * y)
    model[5].register_forward_hook(halve)
    with warnings.catch_warnings(action="ignore"):  # it is deprecated
        nn.utils.weight_norm(model[6])
    watch = spectra.watch(model, LOSS, (X, Y), tmp_path, every=1, products=60, k=2)
    with torch.no_grad():
        model[6].weight_v += 0.3  # of which the weight is made by a hook
    found = watch(0)
    batches = spectra.cut_batches(X, Y, torch.arange(len(X)), 40)
    for module in model.modules():
        module.training = False
    spectrum = torch.linalg.eigvalsh(dense_matrix(spectra.Curvature(spectra.Problem(model, LOSS, batches), "hessian")))
    assert found.eigenpairs["hessian"].values[0].abs() == pytest.approx(spectrum.abs().max().item(), rel=1e-6)


@pytest.mark.parametrize("products", [22, 26, 47, 150, 400])
@pytest.mark.parametrize("curvature", [("hessian",), ("hessian", "ggn")], ids=len)
def test_products_stay_within_the_budget(products, curvature, tmp_path, monkeypatch):
    """All that is spent is told, half of the budget at least is used, what has not converged is not called so."""
    multiply, spent = spectra.Curvature.__matmul__, []

    def counting(matrix, vectors):
        spent.extend(vectors.reshape(len(vectors), -1).unbind(1))
        return multiply(matrix, vectors)

    monkeypatch.setattr(spectra.Curvature, "__matmul__", counting)
    watch = spectra.watch(network(), LOSS, (X, Y), tmp_path, every=1, products=products, k=2, curvature=curvature)
    found = watch(0)
    records = [read(found.directory, [name])[1] for name in ("eig", "trace")]
    entries = [entry for record in records for entry in record["results"]]
    assert [entry["curvature"] for entry in entries] == 2 * list(curvature)
    assert 0.5 * products <= sum(entry["products"] for entry in entries) <= products or products == 400
    exact = [entry["products"] for entry in entries if entry["method"] == "gram"]  # gradients, counted by the factor
    assert len(spent) == sum(entry["products"] for entry in entries) - sum(exact)
    for entry in entries:
        assert entry["products"] <= products // len(curvature)
        worst = max(entry.get("residuals", [0]))
        assert entry["converged"] is False or worst <= 1e-3 * max(map(abs, entry.get("eigenvalues", [1])))
    for trace in found.traces.values():
        assert trace.standard_error > 0 or trace.converged


def test_the_same_point_gives_the_same_numbers(tmp_path):
    """Where recordings do not start from each other."""
    watch = spectra.watch(network(), LOSS, (X, Y), tmp_path, every=1, products=30, k=2, warm=False)
    one, two = watch(0), watch(1)
    assert torch.equal(one.eigenpairs["hessian"].values, two.eigenpairs["hessian"].values)
    assert one.traces == two.traces


@pytest.mark.parametrize("kept", [False, True])
def test_eigenvectors_are_kept_where_asked(kept, tmp_path):
    found = spectra.watch(network(), LOSS, (X, Y), tmp_path, every=1, k=2, save_vectors=kept)(0)
    arrays = read_arrays(found.directory / "eig.npz", ["eigenvectors_hessian"])
    assert (arrays is not None) == kept
    if kept:
        assert np.array_equal(arrays["eigenvectors_hessian"], found.eigenpairs["hessian"].vectors.numpy())
    assert read_arrays(found.directory / "eig.npz", ["eigenvalues_hessian", "residuals_hessian"])


def test_figures_of_what_was_recorded(tmp_path):
    watch = spectra.watch(network(), LOSS, (X, Y), tmp_path, every=1, k=2)
    directories = [watch(step).directory for step in range(3)]
    for name in ("eig", "trace"):
        figure, files = saved_figure([directory / f"{name}.json" for directory in directories])
        assert len(files) == 3
        assert figure.axes


def test_a_page_of_a_recording_shows_no_command_that_would_fail(tmp_path):
    spectra.watch(network(), LOSS, (X, Y), tmp_path, every=1, k=2)(0)
    assert run(["report", str(tmp_path / "step-000000"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "step 0" in page
    assert "--config" not in page
    assert "How to repeat it" not in page


def test_batches_of_the_caller_and_options_of_the_problem(tmp_path):
    batches = spectra.cut_batches(X, Y, torch.arange(len(X)), 13)
    one = spectra.watch(network(), LOSS, batches, tmp_path, every=1, k=2, weight_decay=0.5)(0)
    two = spectra.watch(network(), LOSS, (X, Y), tmp_path, every=1, k=2)(0)
    values = two.eigenpairs["hessian"].values
    torch.testing.assert_close(one.eigenpairs["hessian"].values[:1], values[:1] + 0.5, rtol=1e-5, atol=0)


def scalars() -> nn.Module:
    return nn.Linear(6, 3).to(torch.bfloat16)


def frozen() -> nn.Module:
    return network().requires_grad_(False)


class Once(nn.Module):
    """Its function has no second derivative."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            context.save_for_backward(x)
            return x * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context, g):
            return 2 * context.saved_tensors[0] * g

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3).double()

    def forward(self, x):
        return self.Square.apply(self.linear(x))


class Sharded(nn.Module):
    """As FSDP's, by its name."""

    def __init__(self):
        super().__init__()
        self.inner = type("FullyShardedDataParallel", (nn.Linear,), {})(6, 3)


WRONG = {
    "every": ({"every": 0}, "`every` 0: expected an integer of 1 or more"),
    "k": ({"k": 0}, "`k` 0: expected an integer of 1 or more"),
    "too many": ({"k": 200, "products": 10_000}, "`k` 200: the matrix has 107 rows"),
    "products": ({"products": 10}, "`products` 10: a matrix needs at least 11 with k = 2"),
    "products of two": (
        {"products": 21, "curvature": ("hessian", "ggn")},
        "`products` 21: 2 matrices need at least 22",
    ),
    "no matrix": ({"curvature": ()}, "`curvature`: it is empty"),
    "matrix": ({"curvature": "hesian"}, "`curvature` hesian: no such matrix"),
    "loss": ({"loss": nn.CrossEntropyLoss}, "`loss`: CrossEntropyLoss is not a loss; call it first"),
    "loss's name": (
        {"loss": "cross_entrpy"},
        "`loss` cross_entrpy: it is not a known loss, .*; did you mean cross_entropy",
    ),
    "no data": ({"batches": 3}, "`batches`: expected a DataLoader, .*, got int"),
    "no batches": ({"batches": iter([])}, "`batches`: list_iterator is empty"),
    "no model": ({"model": lambda: 3}, "`model`: expected a torch.nn.Module, got int"),
    "labels": ({"batches": (X, Y + 1)}, "`data`: "),
    "not finite": ({"batches": (X * torch.nan, Y)}, "`loss`: the mean loss over the data is nan"),
    "shapes": ({"batches": (X[:, :5], Y)}, "`model`: fails on the data"),
    "bfloat16": ({"model": scalars}, "`model`: its parameters are torch.bfloat16, too imprecise"),
    "frozen": ({"model": frozen}, "`model`: all its parameters are frozen"),
    "once": ({"model": Once}, "`model`: a layer has no second derivative"),
    "sharded": ({"model": Sharded}, "`model`: its parameters are sharded"),
    "memory": ({"memory": 10}, r"`memory`: a product of one .* takes .* bytes, more than 10;"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_work_fails_before_training(wrong, message, tmp_path):
    arguments = {"model": network, "loss": LOSS, "batches": (X, Y), "out": tmp_path, "every": 1, "k": 2} | wrong
    with pytest.raises(SpectraError, match=message) as caught:
        spectra.watch(**arguments | {"model": arguments["model"]()})
    assert "\n" not in str(caught.value)


class Returns(nn.Module):
    """Returns its loss, as the models of transformers do."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x, labels):
        logits = self.inner(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Tempered(nn.Module):
    """A loss with a parameter that is trained with the model's."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, output, target):
        return nn.functional.cross_entropy(output * self.scale, target, reduction="none")


def of_batch(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


DATA = DataLoader(TensorDataset(X, Y), 16, shuffle=True)
TAKEN = {
    "PyTorch's": (network, nn.CrossEntropyLoss(), (X, Y)),
    "a name": (network, "cross_entropy", (X, Y)),
    "a function": (network, lambda output, target: nn.functional.cross_entropy(output, target), (X, Y)),
    "a loader": (network, nn.CrossEntropyLoss(), DATA),
    "read once": (network, nn.CrossEntropyLoss(), iter([(X[:30], Y[:30]), (X[30:], Y[30:])])),
    "a data set": (network, nn.CrossEntropyLoss(), TensorDataset(X, Y)),
    "(model, batch)": (network, of_batch, (X, Y)),
    "(model, batch) of a loader": (network, of_batch, DATA),
    "the model's": (Returns, "model", [{"x": X, "labels": Y}]),
}


@pytest.mark.parametrize(("make", "loss", "data"), TAKEN.values(), ids=TAKEN.keys())
def test_losses_and_data_are_those_of_eig(make, loss, data, tmp_path):
    usual = spectra.watch(network(), LOSS, (X, Y), tmp_path / "usual", every=1, k=2)(0)
    found = spectra.watch(make(), loss, data, tmp_path / "found", every=1, k=2)(0)
    assert usual
    assert found
    assert abs(found.loss - usual.loss) < 1e-12
    expected = usual.eigenpairs["hessian"].values
    torch.testing.assert_close(found.eigenpairs["hessian"].values, expected, rtol=1e-6, atol=1e-9)


def test_a_loss_of_ours_in_the_model_has_a_ggn(tmp_path):
    call = {"every": 1, "k": 2, "curvature": "ggn"}
    usual = spectra.watch(network(), LOSS, (X, Y), tmp_path / "usual", **call)(0)
    found = spectra.watch(Returns(), "model", [{"x": X, "labels": Y}], tmp_path / "found", **call)(0)
    expected = usual.eigenpairs["ggn"].values
    torch.testing.assert_close(found.eigenpairs["ggn"].values, expected, rtol=1e-6, atol=1e-9)


def test_a_loss_is_watched_as_it_is_at_the_step(tmp_path):
    loss = Tempered()
    watch = spectra.watch(network(), loss, (X, Y), tmp_path, every=1, k=2)
    before = watch(0).loss
    with torch.no_grad():
        loss.scale.fill_(0.0)
    assert before != pytest.approx(np.log(3))
    found = watch(1)
    assert found.loss == pytest.approx(np.log(3))
    assert "\n" not in repr(found)
    assert len(repr(found)) < 300


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SpectraError, match=r"`out` .*cannot be written"):
        spectra.watch(network(), LOSS, (X, Y), tmp_path / "file", every=1)


def not_finite(model, place):
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan


def no_room(model, place):
    (place / "step-000001").touch()


def out_of_memory(model, place):
    def refuse(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model[3].forward = refuse


def test_errors_of_any_kind_do_not_end_training(tmp_path, caplog, monkeypatch):
    def refuse(*arguments):
        raise MemoryError("no room for the basis\nat all")

    watch = spectra.watch(network(), LOSS, (X, Y), tmp_path, every=1, k=2)
    monkeypatch.setattr("spectra.training.watch.measure", refuse)
    assert watch(7) is None
    assert caplog.messages == ["spectra.watch: step 7 is not recorded: MemoryError: no room for the basis"]


@pytest.mark.parametrize("spoil", [not_finite, no_room, out_of_memory], ids=lambda f: f.__name__)
def test_a_recording_that_fails_is_one_line(spoil, tmp_path, caplog):
    """And training goes on: the model as it was, no file, and the next recording works once the cause has gone."""
    model = network()
    watch = spectra.watch(model, LOSS, (X, Y), tmp_path, every=1, k=2)
    good = copy.deepcopy(model)
    spoil(model, tmp_path)
    modes = [module.training for module in model.modules()]
    assert watch(1) is None
    (line,) = caplog.messages
    assert line.startswith("spectra.watch: step 1 is not recorded: ")
    assert "\n" not in line
    assert [module.training for module in model.modules()] == modes
    assert not list(tmp_path.rglob("*.json"))
    model.load_state_dict(good.state_dict())
    model[3].__dict__.pop("forward", None)
    assert watch(2).directory == tmp_path / "step-000002"


def test_the_first_process_alone_records(tmp_path, monkeypatch):
    watch = spectra.watch(network(), LOSS, (X, Y), tmp_path, every=1, k=2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (1, 0):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        assert (watch(0) is None) == (rank == 1)
