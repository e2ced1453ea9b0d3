"""Logits by chunks of tokens: the same matrices to rounding, and no more than a chunk of logits at a time."""

import json
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense import Dense
from torch import nn
from torch.testing import assert_close

from spectra.cli import run
from spectra.cli.repeat import repeat_commands
from spectra.curvature.engine.differentiation import twice_differentiable
from spectra.curvature.engine.footprint import measured
from spectra.curvature.engine.hoisting import HoistedProduct
from spectra.curvature.engine.memory_plan import PART, plan_memory, with_small_logits
from spectra.curvature.engine.meter import Meter
from spectra.curvature.evaluation import evaluate
from spectra.curvature.matrices import MATRICES, definition
from spectra.curvature.operator import Curvature
from spectra.problem import head as heads
from spectra.problem.batch import Batch
from spectra.problem.binary import BinaryCrossEntropy
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.head import find_head
from spectra.problem.problem import Problem
from spectra.problem.tokens import Head
from spectra.records.record import load_result
from spectra.tables.inspection import inspect_text

CLASSES, WIDTH, LENGTH, N = 7, 3, 5, 3
CHUNK = 4  # tokens, which divides neither a sequence nor a batch
NAMES = list(MATRICES)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class LanguageModel(nn.Module):
    """A network of tokens, whose embedding is tied to its head or not."""

    def __init__(self, tied: bool = True, bias: bool = True):
        super().__init__()
        self.embedding, self.head = nn.Embedding(CLASSES, WIDTH), nn.Linear(WIDTH, CLASSES, bias)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        if tied:
            self.head.weight = self.embedding.weight

    def hidden(self, x):
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x):
        return self.head(self.hidden(x))


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, CLASSES, (2, N, LENGTH), generator=draw)
    y[0, 2], y[2, 4] = -100, -100
    return x, y


def problem_of(model: nn.Module | None = None, loss: CrossEntropy | None = None, **settings) -> Problem:
    x, y = tokens()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = (model or LanguageModel()).double().eval()
    batches = settings.pop("batches", [Batch(x, settings.pop("targets", y), torch.arange(10, 10 + N))])
    return Problem(model, loss or CrossEntropy(class_dim=-1), batches, seed=3, mc_samples=2, **settings)


def products(problem: Problem, name: str, hoisted: bool = False) -> torch.Tensor:
    """Products of the matrix of the first batch with three vectors."""
    vectors = torch.randn(3, problem.size, generator=torch.Generator().manual_seed(5), dtype=problem.dtype)
    linearise, batch = definition(name).linearise, problem.batches[0]
    with twice_differentiable(problem.model):
        apply = linearise(problem, batch)
        if hoisted:
            made = HoistedProduct(linearise, problem, [batch])
            residuals = made.residuals(batch)
            return torch.stack([made.apply(residuals, vector) for vector in vectors])
        return torch.stack([apply(vector) for vector in vectors])


WEIGHTS = torch.linspace(0.5, 2, CLASSES, dtype=torch.float64)
EACH = torch.rand(N, LENGTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64).round(decimals=1)
CASES = {
    "plain": {},
    "untied": {"model": lambda: LanguageModel(tied=False)},
    "without bias": {"model": lambda: LanguageModel(bias=False)},
    "smoothed": {"loss": CrossEntropy(class_dim=-1, label_smoothing=0.1, class_weights=WEIGHTS)},
    "class weights": {"loss": CrossEntropy(class_dim=-1, class_weights=WEIGHTS, ignore_index=2)},
    "weights of targets": {"targets": {"labels": tokens()[1], "weights": EACH}},
    "sum": {"loss": CrossEntropy(class_dim=-1, reduction="sum")},
}


def case(name: str) -> Problem:
    settings = dict(CASES[name])
    torch.manual_seed(0)
    model = settings.pop("model", LanguageModel)()
    loss = settings.get("loss")
    if loss and loss.ignore_index != -100:
        settings["targets"] = tokens()[1].where(tokens()[1] != -100, 2)
    return problem_of(model, **settings)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.sampled(14)
def test_chunks_change_no_number(kind, name):
    whole = case(kind)
    chunked = replace(whole, head=Head("head", CHUNK))
    assert find_head(whole) is None  # so few classes are no reason
    assert_close(products(chunked, name), products(whole, name), rtol=1e-12, atol=1e-13)


def test_labels_are_drawn_as_in_the_whole():
    whole = case("plain")
    for chunk in (1, CHUNK, 100):
        chunked = replace(whole, head=Head("head", chunk))
        assert_close(products(chunked, "fisher-mc"), products(whole, "fisher-mc"), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher", "fisher-mc", "fisher-empirical"])
@pytest.mark.sampled(1)
def test_a_graph_of_chunks_has_their_products(name):
    whole = case("weights of targets")
    chunked = replace(whole, head=Head("head", 8))
    assert_close(products(chunked, name, hoisted=True), products(whole, name), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("chosen", [["head*"], ["blocks.0.*"], ["embedding.weight"]])
@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_chunks_of_some_parameters(chosen, name):
    torch.manual_seed(0)
    whole = problem_of(LanguageModel(tied=False))
    named = {n: p for n, p in whole.model.named_parameters() if any(fnmatch(n, glob) for glob in chosen)}
    whole = replace(whole, parameters=named)
    assert_close(
        products(replace(whole, head=Head("head", CHUNK)), name), products(whole, name), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_chunks_against_dense_autograd(name):
    torch.manual_seed(0)
    problem = replace(problem_of(LanguageModel()), head=Head("head", CHUNK))
    x, y = tokens()
    dense = Dense(problem.model, lambda call: call(x), lambda z: F.cross_entropy(z.reshape(-1, CLASSES), y.flatten()))
    found = Curvature(problem, name, memory=0, products=0) @ torch.eye(problem.size, dtype=torch.float64)
    assert_close(found, getattr(dense, name)(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_products_of_diagonal_blocks(name):
    torch.manual_seed(0)
    whole, places = problem_of(LanguageModel()), slice(1, 3)
    vector = torch.randn(sum(p.numel() for p in whole.leaves[places]), dtype=torch.float64)
    with twice_differentiable(whole.model):
        found = [
            definition(name).linearise(problem, whole.batches[0])(vector, places)
            for problem in (whole, replace(whole, head=Head("head", CHUNK)))
        ]
    assert_close(found[1], found[0], rtol=1e-12, atol=1e-13)


def test_the_loss_and_the_accuracy_by_chunks():
    whole = case("weights of targets")
    found, expected = evaluate(replace(whole, head=Head("head", CHUNK))), evaluate(whole)
    assert found.loss == pytest.approx(expected.loss, rel=1e-14)
    assert found.accuracy == expected.accuracy


class Wide(nn.Module):
    """A network whose logits take far more than the rest."""

    def __init__(self, classes: int = 2000):
        super().__init__()
        self.embedding, self.inner, self.head = nn.Embedding(classes, 4), nn.Linear(4, 4), nn.Linear(4, classes, False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(torch.tanh(self.inner(self.embedding(x))))


def wide(count: int = 6, length: int = 40, dtype: torch.dtype = torch.float64) -> Problem:
    torch.manual_seed(0)
    x, y = torch.randint(0, 2000, (2, count, length))
    return Problem(Wide().to(dtype), CrossEntropy(class_dim=-1), [Batch(x, y, torch.arange(count))])


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher", "fisher-mc", "fisher-empirical"])
@pytest.mark.sampled(2)
def test_logits_that_do_not_fit_memory_are_never_held(name):
    whole = wide()
    logits = 6 * 40 * 2000 * 8
    limit = 2 * logits
    costs = {}
    with twice_differentiable(whole.model):
        found = plan_memory(definition(name).linearise, whole, limit)
        for kind, problem in {"whole": whole, "chunks": found.problem}.items():
            _ = problem.weight, problem.examples, problem.writes_inputs
            costs[kind] = measured(definition(name).linearise, problem, problem.batches[0])
    assert found.problem.head == Head("head", limit // PART // (10 * 2000 * 8))
    assert max(costs["whole"].history) > 6 * logits
    assert max(costs["chunks"].history) < logits
    assert costs["chunks"].kept < 0.2 * logits < 2 * logits < costs["whole"].kept

    vector = torch.randn(whole.size, dtype=torch.float64)
    plain, small = Curvature(whole, name), Curvature(whole, name, memory=limit)
    assert_close(small @ vector, plain @ vector, rtol=1e-12, atol=1e-14)
    assert "chunks" not in plain.path
    assert small.path.endswith(f"; logits in chunks of {found.problem.head.chunk} tokens")
    assert small.derivative_check
    assert small.derivative_check.not_checked is None or "memory" in small.derivative_check.not_checked


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher-mc"])
def test_the_derivatives_of_chunks_are_checked(name):
    torch.manual_seed(0)
    matrix = Curvature(replace(problem_of(LanguageModel()), head=Head("head", CHUNK)), name)
    matrix.prepare()
    assert matrix.derivative_check
    assert matrix.derivative_check.error is not None
    assert matrix.derivative_check.error < 1e-6


def test_the_halves_of_a_graph_hold_no_more_than_a_chunk():
    problem = wide()
    logits, linearise = 6 * 40 * 2000 * 8, definition("hessian").linearise
    chunked = replace(problem, head=Head("head", 40))
    with twice_differentiable(problem.model):
        _ = chunked.weight, chunked.examples, chunked.writes_inputs
        hoisted = HoistedProduct(linearise, chunked, chunked.batches)
        vector = torch.randn(problem.size, dtype=torch.float64)
        with Meter([*problem.model.parameters(), vector]) as meter:
            hoisted.apply(hoisted.residuals(chunked.batches[0]), vector)
    assert meter.peak < logits  # in six chunks; the graph of the whole takes five


def test_evaluation_holds_no_more_than_a_chunk(monkeypatch):
    monkeypatch.setattr("spectra.curvature.engine.memory_plan.LARGE", 2**18)
    problem = wide()
    logits = 6 * 40 * 2000 * 8
    expected = evaluate(replace(problem, head=Head("head", 240)))
    _ = problem.weight, problem.writes_inputs
    with Meter(problem.model.parameters()) as meter:
        found = evaluate(problem)
    assert meter.peak < 0.7 * logits  # of one example, on which the layer is found
    assert found.loss == pytest.approx(expected.loss, rel=1e-13)
    assert found.accuracy == expected.accuracy
    assert with_small_logits(problem).head


# Which layer makes the logits.


class Changed(LanguageModel):
    """Logits on which something is done."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


class Twice(LanguageModel):
    def forward(self, x):
        return self.head(self.hidden(x)) if self.head(self.hidden(x)).sum() > -1e9 else x


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def own_head() -> nn.Module:
    model = LanguageModel()
    model.head = Scaled(WIDTH, CLASSES)
    return model


def hooked() -> nn.Module:
    model = LanguageModel()
    model.head.register_forward_hook(lambda _module, _given, output: output * 2)
    return model


@pytest.mark.parametrize(
    ("make", "name"),
    {
        "plain": (LanguageModel, "head"),
        "scaled": (lambda: Changed(lambda z: 3 * z), None),
        "in place": (lambda: Changed(lambda z: z.mul_(3)), None),
        "cut": (lambda: Changed(lambda z: z[:, :, :]), "head"),
        "the last": (lambda: Changed(lambda z: z.flip(1)), None),
        "called twice": (Twice, None),
        "of another class": (own_head, None),
        "hooked": (hooked, None),
    }.values(),
)
def test_the_layer_that_makes_the_logits(make, name, monkeypatch):
    monkeypatch.setattr(heads, "LEAST", 2)
    torch.manual_seed(0)
    found = find_head(problem_of(make()))
    assert found == (None if name is None else (name, CLASSES, LENGTH))


def test_other_losses_have_no_chunks(monkeypatch):
    monkeypatch.setattr(heads, "LEAST", 2)
    torch.manual_seed(0)
    x, _ = tokens()
    soft = torch.rand(N, LENGTH, CLASSES, dtype=torch.float64).softmax(-1)
    indices = torch.arange(N)
    assert find_head(problem_of(targets=soft)) is None
    assert find_head(Problem(LanguageModel().double(), BinaryCrossEntropy(), [Batch(x, soft, indices)])) is None


def test_images_with_classes_in_the_second_dimension(monkeypatch):
    """A convolution of one pixel makes the logits there; a linear layer's, moved, are not its own tensor."""
    monkeypatch.setattr(heads, "LEAST", 2)
    torch.manual_seed(0)
    model = Changed(lambda z: z.movedim(-1, 1))
    assert find_head(problem_of(model, CrossEntropy(class_dim=1))) is None


# By the command line.

NETS = """
import torch
from torch import nn

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(900, 4), nn.Linear(4, 900, False)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 4)) for _ in range(4))

    def forward(self, x):
        x = self.embedding(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)
"""


@pytest.fixture
def line(tmp_path, monkeypatch):
    """The options of a problem whose logits are large."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    np.savez("tokens.npz", x=draw.integers(0, 900, (6, 20)), y=draw.integers(0, 900, (6, 20)))
    loss = "cross_entropy?class_dim=-1"
    return f"--model nets.py:Wide --data tokens.npz --loss {loss} --dtype float64 --params layers.0.* --json".split()


def record(capfd, *words: str) -> dict:
    capfd.readouterr()
    assert run([*words]) == 0
    return json.loads(capfd.readouterr().out)


def test_memory_and_blocks_by_the_command_line(line, capfd):
    lean = "--recompute-activations"
    plain, *others = (
        record(capfd, "eig", *line, "-k", "2", "--curvature", "ggn", *rest)
        for rest in ([], ["--memory", "1MB"], ["--memory", "1MB", lean])
    )
    paths = [found["results"][0]["path"] for found in (plain, *others)]
    assert ["; logits in chunks of " in path for path in paths] == [False, True, True]
    assert ["; activations of 4 blocks recomputed" in path for path in paths] == [False, False, True]
    for found in others:
        assert found["results"][0]["eigenvalues"] == pytest.approx(plain["results"][0]["eigenvalues"], rel=1e-9)
    assert others[1]["problem"]["recompute_activations"] is True
    assert others[1]["problem"]["options"]["recompute_activations"] is True


def test_inspect_tells_what_memory_asks_for(line, capfd):
    words = ["inspect", *line, "--curvature", "ggn", "--memory", "1MB", "--recompute-activations", "--out", "out"]
    (found,) = record(capfd, *words)["results"]
    assert "; logits in chunks of " in found["path"]
    assert found["path"].endswith("; activations of 4 blocks recomputed")
    assert found["peak_bytes"] <= 1_000_000
    assert "activations of 4 blocks" in " ".join(inspect_text(load_result("out/inspect.json")).split())


def test_what_was_asked_repeats_itself(line, capfd):
    for flag, asked in (("--recompute-activations", True), ("--no-recompute-activations", False)):
        first = record(capfd, "eig", *line, "-k", "1", flag, "--out", "first")
        again = record(capfd, "eig", "--trust", "--config", "first/eig.json", "--json")
        assert again["results"][0]["eigenvalues"] == first["results"][0]["eigenvalues"]
        assert again["problem"]["recompute_activations"] is asked
        assert any(flag in words for words in repeat_commands(Path("first/eig.json"), load_result("first/eig.json")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="on CUDA, whose derivatives are computed in other threads")
@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher-mc"])
def test_chunks_on_cuda(name):
    torch.manual_seed(0)
    whole = problem_of(LanguageModel())
    vector = torch.randn(whole.size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = Curvature(whole, name, products=0) @ vector
    (batch,) = whole.batches
    there = Batch(batch.inputs.cuda(), batch.targets.cuda(), batch.indices.cuda())
    chunked = replace(whole, model=whole.model.cuda(), batches=[there], parameters={}, head=Head("head", CHUNK))
    for expected_products in (0, 10**6):  # by double backward, and as a graph
        matrix = Curvature(chunked, name, products=expected_products)
        assert_close((matrix @ vector.cuda()).cpu(), expected, rtol=1e-10, atol=1e-12)
        assert "chunks of 4 tokens" in matrix.path
