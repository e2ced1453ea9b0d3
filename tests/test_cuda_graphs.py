"""Products as CUDA graphs are those without, bit for bit, and what cannot be captured says why and goes on without.

A stand-in runs all of it but CUDA's own calls on the CPU: a graph that computes anew what it has recorded.
"""

import weakref
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import seeded
from networks import BY_NAME, DEVICES, NETWORKS, Case, Lambda, X, Y, name_of
from torch import nn

from spectra.curvature.engine.block_widths import BlockWidths
from spectra.curvature.engine.cuda_graphs import Captured, Graphs, Retained, graphs_for
from spectra.curvature.matrices import MATRICES
from spectra.curvature.operator import Curvature

MANY = 10**12  # products, for which any trace pays
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")


class StandIn(Graphs):
    """Graphs that, as CUDA's, read and write the very tensors that they were recorded with."""

    def beside(self):
        return nullcontext()

    def record(self, compute):
        result = compute()

        return (lambda: result.copy_(compute())), result


@pytest.fixture(params=[pytest.param("stand-in"), pytest.param("cuda", marks=CUDA)])
def device(request, monkeypatch):
    """A device with graphs, and one on which their stand-in is used."""
    monkeypatch.setattr("spectra.curvature.engine.autotuning.Autotuner.cost", lambda *_: 0.1)  # columns go together
    if request.param == "cuda":
        return "cuda"
    monkeypatch.setattr("spectra.curvature.engine.products.graphs_for", lambda device, _: StandIn(device))
    return "cpu"


def columns(problem, count=3):
    drawn = torch.randn(problem.size, count, generator=seeded(), dtype=torch.float64)
    return drawn.to(problem.device, problem.dtype)


def eager(problem, name, monkeypatch, products=MANY) -> Curvature:
    with monkeypatch.context() as patch:
        patch.setattr("spectra.curvature.engine.products.graphs_for", lambda *_: None)
        matrix = Curvature(problem, name, products=products, check=False, compile=False)
        matrix.prepare()
    return matrix


@pytest.mark.sampled(8)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("case", NETWORKS, ids=name_of)
def test_graphs_give_the_same_bits(case, name, dtype, device, monkeypatch):
    problem = case.problem(dtype=dtype, device=device)
    graphs, without = (
        Curvature(problem, name, products=MANY, check=False, compile=False),
        eager(problem, name, monkeypatch),
    )
    for vectors in (columns(problem)[:, 0], columns(problem), columns(problem, 16), columns(problem, 5)):
        found = graphs @ vectors
        assert found.equal(without @ vectors)
        assert found.equal(graphs @ vectors)
    assert "CUDA graph" not in without.path
    assert "as CUDA graphs" in graphs.path or "no CUDA graph: " in graphs.path
    if "hoisted" in graphs.path:
        assert "as CUDA graphs" in graphs.path, graphs.path


@pytest.mark.parametrize("name", MATRICES)
def test_backward_passes_are_captured_or_say_why(name, device, monkeypatch):
    """Where a trace does not pay."""
    monkeypatch.setattr("spectra.curvature.engine.products.LOADING", 1e9)
    problem = BY_NAME["mlp"].problem(device=device)
    graphs, without = (
        Curvature(problem, name, products=12, check=False, compile=False),
        eager(problem, name, monkeypatch, products=12),
    )
    for _ in range(3):
        assert (graphs @ columns(problem)).equal(without @ columns(problem))
    assert graphs.path.startswith("double backward")
    assert "as CUDA graphs" in graphs.path or "no CUDA graph: " in graphs.path


def test_batches_share_one_pool_and_keep_apart(device, batches_as_given):
    """Products of several graphs, one after the other and out of order, with what each leaves behind."""
    problem = BY_NAME["mlp"].problem(device=device, sizes=(2, 2, 3))
    matrix = Curvature(problem, "hessian", memory=2**24, products=MANY, check=False, compile=False)
    first, wide = matrix @ columns(problem, 2), matrix @ columns(problem, 16)
    applies = [*matrix._products][::-1]
    again = torch.stack([sum(apply(v) for apply in applies) for v in columns(problem, 2).unbind(1)], dim=1)
    torch.testing.assert_close(first, again, rtol=1e-13, atol=1e-15)
    held = [apply(columns(problem)[:, 0]) for apply in applies]
    before = [x.clone() for x in held]
    assert wide.equal(matrix @ columns(problem, 16))
    assert all(map(torch.equal, held, before))  # what was handed out is nobody else's
    assert "3 as CUDA graphs; 16 columns together" in matrix.path


def test_what_is_captured_outlives_what_made_it(device):
    """The residuals are freed with the graph, and not before: what reads freed memory gives other numbers."""
    problem = BY_NAME["mlp"].problem(device=device)
    matrix = Curvature(problem, "hessian", products=MANY, check=False, compile=False)
    wanted = matrix @ columns(problem)
    apply = matrix._products._kept[0]
    apply.residuals = None  # the graph holds them itself
    for _ in range(5):
        torch.randn(2**20, device=device)
        assert wanted.equal(matrix @ columns(problem))


@CUDA
def test_what_a_model_makes_on_the_host_is_moved_once():
    scale = Lambda(lambda x: x * torch.ones(3, dtype=x.dtype).cumsum(0).to(x.device))
    problem = Case("scaled", lambda: nn.Sequential(nn.Linear(3, 3), scale, nn.Tanh()), X, Y).problem(device="cuda")
    matrix = Curvature(problem, "hessian", products=MANY, check=False, compile=False)
    matrix @ columns(problem)
    assert matrix.path.startswith("hoisted")
    assert "as CUDA graphs" in matrix.path


@pytest.mark.parametrize("when", ["capture", "replay"])
def test_what_cannot_be_captured_is_made_without(when, device, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing")

    kind = Graphs if device == "cuda" else StandIn
    if when == "capture":
        monkeypatch.setattr(kind, "record", refuse)
    else:
        record = kind.record
        monkeypatch.setattr(kind, "record", lambda *args: (refuse, record(*args)[1]))
    problem = Case("small", lambda: nn.Sequential(nn.Linear(3, 3), Lambda(torch.tanh)), X, Y).problem(device=device)
    matrix = Curvature(problem, "hessian", products=MANY, check=False, compile=False)
    without = eager(problem, "hessian", monkeypatch)
    assert (matrix @ columns(problem)).equal(without @ columns(problem))
    assert "no CUDA graph: RuntimeError: operation not permitted" in matrix.path
    assert "as CUDA graphs" not in matrix.path


def test_a_graph_of_other_bits_is_not_used(device, monkeypatch):
    kind = Graphs if device == "cuda" else StandIn
    record = kind.record
    monkeypatch.setattr(kind, "record", lambda self, compute: record(self, lambda: compute() * 1.0000001))
    problem = BY_NAME["mlp"].problem(device=device)
    matrix = Curvature(problem, "hessian", products=MANY, check=False, compile=False)
    without = eager(problem, "hessian", monkeypatch)
    assert (matrix @ columns(problem)).equal(without @ columns(problem))
    assert "; no CUDA graph: RuntimeError: a CUDA graph of the product gives another result" in matrix.path


@pytest.mark.parametrize(("factor", "captured"), [(1 + 1e-12, True), (1 + 1e-4, False)])
def test_a_product_that_rounds_anew_in_each_call_is_captured_for_its_numbers(device, monkeypatch, factor, captured):
    """Sums by atomic operations do so."""
    kind, calls = Graphs if device == "cuda" else StandIn, iter(range(10**9))
    record = kind.record
    monkeypatch.setattr(kind, "record", lambda self, compute: record(self, lambda: compute() * factor))
    x = torch.ones(3, dtype=torch.float64, device=device)

    def rounded(v):
        return v * (1 + 1e-15 * next(calls))

    graphs = kind(x.device)
    assert isinstance(graphs.captured(rounded, x), Captured) == captured


def test_batches_made_anew_and_few_products_are_not_captured(device):
    problem = BY_NAME["mlp"].problem(device=device)
    matrix = Curvature(problem, "hessian", memory=0, products=MANY, check=False, compile=False)
    matrix @ columns(problem)
    assert matrix.path == "hoisted, 0 of 1 batches kept" or matrix.path == "hoisted, 0 of 2 batches kept"
    assert graphs_for(torch.device("cuda"), 9) is None
    assert graphs_for(torch.device("cpu"), MANY) is None
    assert isinstance(graphs_for(torch.device("cuda"), 10), Graphs)


def test_graphs_take_no_settings_of_pytorch(device, monkeypatch):
    """They hold them: to set them would take longer than a small product."""
    problem = BY_NAME["mlp"].problem(device=device)
    matrix = Curvature(problem, "hessian", products=MANY, check=False, compile=False)
    wanted = [matrix @ columns(problem, count) for count in (1, 3, 16)]
    monkeypatch.setattr("spectra.curvature.operator.twice_differentiable", lambda _: pytest.fail("settings"))
    for count, found in zip((1, 3, 16), wanted, strict=True):
        assert found.equal(matrix @ columns(problem, count))
    with pytest.raises(pytest.fail.Exception):
        matrix @ columns(problem, 7)  # its plan is made first


def test_memory_of_graphs_is_counted(device, monkeypatch):
    problem = BY_NAME["mlp"].problem(device=device)
    matrix = Curvature(problem, "hessian", products=MANY, check=False, compile=False)
    matrix.prepare()
    without = eager(problem, "hessian", monkeypatch)
    assert matrix.kept_bytes - without.kept_bytes == 2 * problem.size * 8 * len(problem.batches[:1])
    widths = BlockWidths(lambda width: 100 * width, 8, "", matrix.choices)
    alone = widths._needed(4)
    widths.held = 2
    assert widths._needed(4) == alone + 2 * 4 * 8


@pytest.mark.parametrize("device", DEVICES)
def test_a_graph_reads_its_argument_at_each_call(device):
    graphs = Graphs(torch.device(device)) if device == "cuda" else StandIn(torch.device(device))
    scale = torch.full((4,), 3.0, device=device)
    run = Captured(lambda v: v * scale, torch.ones(4, device=device), graphs)
    assert run(torch.arange(4.0, device=device)).tolist() == [0, 3, 6, 9]
    assert run(torch.full((4,), torch.nan, device=device)).isnan().all()
    assert run(torch.ones(4, device=device)).tolist() == [3] * 4


def test_products_that_are_not_numbers_are_captured_too():
    graphs = StandIn(torch.device("cpu"))
    run = graphs.captured(lambda v: v / 0 - v / 0, torch.ones(2))
    assert isinstance(run, Captured)
    assert graphs.why is None


class FakeStream:
    def __init__(self, name: str, calls: list):
        self.name, self.calls = name, calls

    def wait_stream(self, other):
        self.calls.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def fake_cuda(monkeypatch):
    """The calls of torch.cuda in order, with streams that are names; work is done as it is recorded."""
    calls: list = []
    main = FakeStream("main", calls)
    current = [main]

    @contextmanager
    def on(stream):
        before, current[0] = current[0], stream
        yield
        current[0] = before

    @contextmanager
    def graph(_, stream, capture_error_mode, pool=None):
        assert capture_error_mode == "thread_local"
        current[0] = stream
        calls.append("capture" if pool == "pool" else "capture apart")
        try:
            yield
        except RuntimeError:  # as PyTorch: the end of a capture that has failed raises, and leaves its stream current
            raise RuntimeError("capture_end failed") from None
        current[0] = main

    fakes = {
        "Stream": lambda device: FakeStream("side", calls),
        "current_stream": lambda device=None: current[0],
        "set_stream": lambda stream: current.__setitem__(0, stream),
        "stream": on,
        "graph_pool_handle": lambda: "pool",
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: calls.append("replay")),
        "graph": graph,
        "current_device": lambda: 0,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        note = lambda *given, name=name: calls.append((name, *given))  # noqa: E731
        monkeypatch.setattr(torch._C, name, note, raising=False)
    return calls, current, main


def test_a_capture_is_in_order_with_what_is_around_it(fake_cuda):
    calls, current, main = fake_cuda
    graphs = Graphs(torch.device("cpu"))

    def compute():
        calls.append(f"compute on {current[0].name}")
        return torch.ones(2)

    replay, result = graphs.record(compute)
    replay()
    warm = ["compute on side"] * 3
    assert calls == ["side waits for main", *warm, "main waits for side", "capture", "compute on side", "replay"]
    assert result.tolist() == [1, 1]
    assert current == [main]


def test_a_capture_that_fails_gives_its_stream_back(fake_cuda):
    calls, current, main = fake_cuda
    graphs, argument = Graphs(torch.device("cpu")), torch.ones(2)

    def apply(v):
        if calls and calls[-1] == "capture":
            raise RuntimeError("operation not permitted when stream is capturing")
        return v * 2

    assert graphs.captured(apply, argument) is apply
    assert graphs.why == "RuntimeError: capture_end failed"
    assert current == [main]
    given_back = [(name, 0, "pool") for name in ("_cuda_endAllocateToPool", "_cuda_releasePool")]
    assert calls[-3:] == [*given_back, "capture apart"]  # at whose end the random generator runs again
    before = len(calls)
    assert graphs.captured(apply, argument) is apply
    assert len(calls) == before  # it is not tried again


@CUDA
def test_a_capture_that_fails_leaves_nothing_behind():
    """Graphs from before are replayed, random numbers are drawn, and memory is given back."""
    device = torch.device("cuda")
    graphs, argument = Graphs(device), torch.ones(4, device=device)
    earlier = graphs.captured(lambda v: v * 2, argument)
    assert isinstance(earlier, Captured)

    def waits(v):
        wide = torch.ones(2**26, device=device) * v[0]
        return v * wide.sum().item()

    held = torch.cuda.memory_reserved(device)
    assert graphs.captured(waits, argument) is waits
    assert "captur" in graphs.why
    assert earlier(argument).tolist() == [2] * 4
    assert torch.randn(8, device=device).isfinite().all()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    del earlier, graphs
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved(device) <= held + 2**22
    other = Graphs(device)
    assert isinstance(other.captured(lambda v: v * 3, argument), Captured)


def test_backward_passes_are_built_beside(fake_cuda):
    """On the stream on which they are captured; autograd runs them there."""
    _, current, main = fake_cuda
    built = []

    def make():
        built.append(current[0].name)
        return lambda vector, leaves=None: vector if leaves is None else vector[leaves]

    product = Retained(make, Graphs(torch.device("cpu")))
    assert built == ["side"]
    assert current == [main]
    assert product(torch.ones(3), slice(2)).tolist() == [1, 1]
    assert product.run is None


def test_a_graph_keeps_what_it_reads(fake_cuda):
    """CUDA's graph holds addresses: once it was wrong for residuals that were freed and written over."""
    scale = torch.full((2,), 3.0)
    alive = weakref.ref(scale)
    run = Captured(partial(torch.mul, scale), torch.ones(2), Graphs(torch.device("cpu")))
    del scale
    assert alive() is not None
    assert run(torch.ones(2)).tolist() == [3, 3]
    del run
    assert alive() is None
