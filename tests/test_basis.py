"""Bases on the host of a pretend device, and bases as small as memory makes them: the same numbers; bytes counted."""

import math
from contextlib import closing
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from helpers import known, matrix, seeded, uniform, with_spectrum
from pretend_device import DEVICE, DeviceTensor, OnDevice, PretendDevice
from torch.overrides import TorchFunctionMode

from spectra.errors import ArgumentError, SpectraError
from spectra.inputs.problem import Loaded
from spectra.krylov import placement as places
from spectra.krylov.block_diagonal import BlockDiagonal, block_eigenpairs, block_measures
from spectra.krylov.deflation import known_pairs, with_deflation
from spectra.krylov.eigenpairs import basis_of, eigenpairs
from spectra.krylov.eigensolver import Eigensolver, least_basis, usual_basis, vectors_held
from spectra.krylov.forecast import VectorMeter, forecast_eigenpairs, forecast_trace, largest_matrix, outline
from spectra.krylov.hutch_plus_plus import hutch_plus_plus
from spectra.krylov.hutchinson import hutchinson
from spectra.krylov.lanczos import begin, lanczos, random_start, remove
from spectra.krylov.quadrature import spectral_measure
from spectra.krylov.reverse_communication import serve_products
from spectra.krylov.warm_start import WarmStart
from spectra.krylov.xtrace import xtrace
from spectra.memory import basis_place, fixed_basis_place, fixed_memory_share, products_share
from spectra.operator import Counting
from spectra.problem.problem import Processes
from spectra.records.eig import eig_results
from spectra.resume.journal import CheckpointedOperator, Journal
from spectra.resume.state import State
from spectra.run.density import DensitySettings
from spectra.run.eig import EigSettings, lean
from spectra.run.inspection import forecast_commands
from spectra.run.measurement import Measurement
from spectra.run.request import Request
from spectra.run.session import Session
from spectra.run.trace import TraceSettings
from spectra.transfer import TransferBuffers
from spectra.vectors import dot, norms, on_device, pieces, row_dots

INDEX = np.arange(1, 301)
SPECTRA = {
    "1/i": 1 / INDEX,
    "network": np.concatenate([[40, 22, 15, 9, 5], -(uniform(100) ** 4), uniform(195, seed=1) ** 4]),
    "clustered": np.concatenate([[3, 2.999, 2.998, 2.5], uniform(296)]),
    "copies": np.concatenate([[5, 5, 5, 4, 4], uniform(295)]),
}
CPU = torch.device("cpu")


def host_share_of(vectors: int, n: int, monkeypatch, itemsize: int = 8) -> None:
    """Make the host hold so many vectors (n,)."""
    monkeypatch.setattr(places, "host_share", lambda: vectors * n * itemsize)


def share_of(vectors: int, n: int, itemsize: int = 8):
    """A context in which a quarter of the device holds so many vectors (n,)."""
    return fixed_memory_share(vectors * n * itemsize)


def pairs_of(operator, **options):
    found = eigenpairs(operator, 5, tolerance=1e-5, generator=seeded(), **options)
    return [found.values, found.residuals, found.vectors, found.products]


def measure_of(operator, **options):
    found = spectral_measure(operator, probes=3, steps=12, generator=seeded(), **options)
    return [found.nodes, found.weights, found.deflated, found.products]


def estimate_of(method, operator, **options):
    with fixed_basis_place(options.get("basis", "auto")):
        found = method(operator, rtol=0.02, generator=seeded())
    return [found.value, found.standard_error, found.products]


def beside_known(method, operator, **options):
    """What a method makes beside eigenpairs that an earlier run has left in a file."""
    values, vectors = torch.linalg.eigh(operator.matrix if isinstance(operator, OnDevice) else operator)
    with fixed_basis_place(options.get("basis", "auto")):
        pairs = known_pairs(operator, values[-4:], vectors.T[-4:], torch.full((4,), 1e-9))
        found = method(operator, known=pairs, generator=seeded())
    return [pairs.residuals, pairs.vectors, *[x for x in vars(found).values() if not isinstance(x, bool)]]


def blocks_of(operator, **options):
    index = [torch.arange(90), torch.arange(90, 200), torch.arange(210, 300)]
    with fixed_basis_place(options.get("basis", "auto")):
        diagonal = BlockDiagonal(operator, [on_device(part, operator.device) for part in index])
        pairs = block_eigenpairs(diagonal, diagonal.blocks, 2, generator=seeded())
        measures = block_measures(diagonal, diagonal.blocks, pairs, probes=2, steps=5, generator=seeded())
    return [x for found in pairs for x in (found.values, found.vectors)] + [m.nodes for m in measures]


def warm_pairs_of(operator, **options):
    """Of searches that start from each other: from a sum of old vectors, and from each."""
    with fixed_basis_place(options.get("basis", "auto")):
        start = WarmStart(5, 1e-5)
        found = [start.eigenpairs(operator, generator=seeded()) for _ in range(4)]
    return [x for pairs in found for x in (pairs.values, pairs.vectors, pairs.products)]


WAYS = {
    "eigenpairs": pairs_of,
    "eigenpairs from the last": warm_pairs_of,
    "density": measure_of,
    "xtrace": partial(estimate_of, xtrace),
    "hutch++": partial(estimate_of, hutch_plus_plus),
    "hutchinson": partial(estimate_of, hutchinson),
    "density beside known pairs": partial(beside_known, partial(spectral_measure, probes=2, steps=10)),
    "trace beside known pairs": partial(beside_known, partial(with_deflation(hutchinson), probes=20)),
    "blocks": blocks_of,
}


def assert_alike(found, expected, rounding: float = 0.0) -> None:
    """The same numbers, wherever they are: bit for bit, or up to rounding."""
    for one, other in zip(found, expected, strict=True):
        one, other = (torch.as_tensor(x.held if isinstance(x, DeviceTensor) else x) for x in (one, other))
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("basis", ["device", "host"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("way", WAYS)
def test_a_basis_on_either_side_gives_the_numbers_of_the_cpu(way, dtype, basis):
    """Of one run bit for bit, where sums on the host are those of the CPU; of several at once up to rounding."""
    given = with_spectrum(SPECTRA["network"]).to(dtype)
    expected = WAYS[way](given)
    with PretendDevice():
        found = WAYS[way](OnDevice(given), basis=basis)
    assert_alike(found, expected, 0.0 if basis == "host" and way == "eigenpairs" else 1e4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", SPECTRA)
def test_restarts_on_the_host_give_the_numbers_of_the_cpu(name, monkeypatch):
    given = with_spectrum(SPECTRA[name])
    host_share_of(20, 300, monkeypatch)
    with share_of(20, 300):
        expected = pairs_of(given)
        with PretendDevice():
            assert_alike(pairs_of(OnDevice(given), basis="host"), expected)


@pytest.mark.parametrize("k", [1, 10, 30])
@pytest.mark.parametrize("name", ["1/i", "copies"])
def test_few_vectors_are_on_the_device_whatever_the_basis(name, k):
    """What is multiplied, its image, and the next: but for blocks of residuals, within what the device may take."""
    given = with_spectrum(SPECTRA[name])
    with PretendDevice() as device, share_of(2, 300):
        found = eigenpairs(OnDevice(given), k, tolerance=1e-6, generator=seeded(), basis="host")
    assert found.converged
    assert found.vectors.device == CPU
    assert device.peak <= 3.1 * 300 * 8


@pytest.mark.parametrize("vectors", [2, 7, 100])
def test_residuals_are_found_in_blocks_that_fit(vectors, monkeypatch):
    """Vectors on the host, of which some are at a time on the device."""
    monkeypatch.setattr("spectra.vectors.PIECE_OF_A_DEVICE", 50)
    monkeypatch.setattr("spectra.vectors.PIECE", 25)
    given = with_spectrum(SPECTRA["network"])
    rows = torch.linalg.qr(torch.randn(300, 8, generator=seeded(), dtype=torch.float64))[0].T.contiguous()
    values = torch.linspace(0, 1, 8, dtype=torch.float64)
    with PretendDevice() as device, share_of(vectors, 300):
        operator = OnDevice(given)
        search = Eigensolver(operator, 8, "LM", 1e-3, seeded(), 100, 20, None, CPU)
        found = serve_products(search.residuals_of(values, rows), operator)
    expected = torch.linalg.vector_norm(given @ rows.T - rows.T * values, dim=0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert search.products == 8
    assert device.peak <= (max(3, vectors) + 0.1) * 300 * 8


def test_few_vectors_of_a_density_are_on_the_device():
    given = with_spectrum(SPECTRA["1/i"])
    with PretendDevice() as device, share_of(2, 300):
        spectral_measure(OnDevice(given), probes=3, steps=30, generator=seeded(), basis="host")
    assert device.peak <= 4.1 * 300 * 8


@pytest.mark.parametrize("extra", [0, 4])
@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_smallest_bases_converge_to_the_eigenvalues(name, k, extra, monkeypatch):
    """Residuals are true, and values are those of the closed form: all of them where nothing was missed."""
    given, tolerance = known(SPECTRA[name]), 1e-4 if name == "clustered" else 1e-7
    held = vectors_held(k, least_basis(k) + extra)
    monkeypatch.setattr("spectra.vectors.PIECE", 100)
    with share_of(held, 300), VectorMeter(300) as meter:
        found = eigenpairs(Counting(given.matrix), k, tolerance=tolerance, generator=seeded(), max_products=3000)
    assert found.converged
    assert meter.peak <= (held + 2) * 300 * 8  # with a vector and its image on their way
    left = torch.linalg.vector_norm(given.matrix @ found.vectors.T - found.vectors.T * found.values, dim=0)
    assert (left <= 2 * tolerance * given.size).all()
    nearest = (found.values[:, None] - given.spectrum).abs().min(dim=1).values
    assert (nearest <= 2 * tolerance * given.size).all()
    if name in ("1/i", "network") or found.complete:
        top = given.spectrum[given.spectrum.abs().argsort(descending=True)[:k]]
        torch.testing.assert_close(found.values, top, rtol=0, atol=2 * tolerance * given.size)


@pytest.mark.parametrize("which", ["LA", "SA", "BE"])
def test_the_smallest_bases_find_every_end(which):
    given = known(SPECTRA["network"])
    with share_of(vectors_held(4, least_basis(4)), 300):
        found = eigenpairs(given.matrix, 4, which=which, tolerance=1e-5, generator=seeded(), max_products=5000)
    assert found.converged
    rising = given.spectrum
    ends = {"LA": rising.flip(0)[:4], "SA": rising[:4], "BE": torch.cat([rising.flip(0)[:2], rising[:2]])}
    torch.testing.assert_close(found.values, ends[which], rtol=0, atol=1e-4 * given.size)


def test_a_small_basis_costs_products_and_a_usual_one_none():
    given = known(SPECTRA["network"])
    spent = {}
    for vectors in (least_basis(10), usual_basis(10), 300):
        with share_of(vectors_held(10, vectors), 300):
            spent[vectors] = eigenpairs(given.matrix, 10, tolerance=1e-6, generator=seeded()).products
    assert spent[usual_basis(10)] <= 1.1 * spent[300]
    assert spent[least_basis(10)] > spent[300]


@pytest.mark.parametrize(
    ("device", "host", "choice", "place"),
    [
        (100, 1000, "auto", "device"),
        (20, 1000, "auto", "host"),
        (20, 10, "auto", "device"),
        (20, 20, "auto", "device"),
        (20, 25, "auto", "host"),
        (20, 1000, "device", "device"),
        (100, 50, "host", "host"),
    ],
)
def test_the_device_holds_the_basis_while_it_fits_and_then_the_host(device, host, choice, place, monkeypatch):
    """Five eigenpairs take 38 basis vectors, and 9 beside."""
    host_share_of(host, 300, monkeypatch)
    with share_of(device, 300):
        found = basis_of(OnDevice(torch.eye(300, dtype=torch.float64)), 5, choice=choice)
    assert found.device == (CPU if place == "host" else DEVICE)
    assert found.vectors == min(300, {"host": host, "device": device}[place] - 9)
    assert found.usual == usual_basis(5)


def test_what_is_settled_for_a_run_is_taken_up():
    operator = OnDevice(torch.eye(300, dtype=torch.float64))
    with fixed_basis_place("host", 50 * 300 * 8):
        assert basis_of(operator, 5) == places.Placement(CPU, 41, usual_basis(5))
        assert basis_of(operator, 5, choice="device").device == DEVICE
    with fixed_basis_place("device"), share_of(20, 300):
        assert basis_of(operator, 5).device == DEVICE


def test_on_the_cpu_there_is_one_memory():
    given = matrix("network").matrix
    for choice in places.BASES:
        assert basis_of(given, 5, choice=choice).device == CPU
    with fixed_basis_place("host"), fixed_memory_share(1000):
        assert products_share(CPU) == 1000
        assert products_share(DEVICE) == 2000  # its own and the basis's
    with fixed_basis_place("device"), fixed_memory_share(1000):
        assert products_share(DEVICE) == 1000


@pytest.mark.parametrize("basis", ["device", "host"])
@pytest.mark.parametrize(
    ("method", "argument", "least"),
    [
        (partial(eigenpairs, k=3), "`k` 3", 13),
        (partial(spectral_measure, steps=40), "`steps` 40", 45),
    ],
)
def test_too_little_memory_is_refused_in_one_line(method, argument, least, basis, monkeypatch):
    n = 10**6
    row = n * 8
    monkeypatch.setattr(places, "memory_of", lambda device: (math.inf, least * row - (device == CPU)))
    host_share_of(2 if basis == "host" else least, n, monkeypatch)
    operator = OnDevice(torch.empty(0, dtype=torch.float64))
    operator.shape = torch.Size((n, n))
    with share_of(2, n), pytest.raises(SpectraError) as caught:
        method(operator, basis=basis)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{argument}: the smallest basis, {least} vectors of 7.63 MiB, takes ")
    assert f"{'the host' if basis == 'host' else 'meta'} has " in text
    assert ("give `basis` host" in text) == (basis == "device")
    assert "`params`" in text


@pytest.mark.parametrize("method", [partial(eigenpairs, k=2), partial(spectral_measure, probes=2, steps=3)])
def test_a_place_that_there_is_not_is_refused(method):
    with pytest.raises(ArgumentError, match=r"^`basis` 'disk': expected one of auto, device, host$"):
        method(torch.eye(5), basis="disk")


def session(basis: str, settled: dict | None, settings) -> Session:
    """A session whose problem, of 300 parameters, is on the pretend device; with what an earlier run has settled."""
    made = Session(Request(settings, {}, ("hessian",), basis=basis))
    problem = {"size": 300, "dtype": torch.float64, "device": DEVICE, "processes": Processes()}
    made.network.loaded = cast(Loaded, SimpleNamespace(problem=SimpleNamespace(**problem)))
    made.state = cast(State, SimpleNamespace(settled=settled))
    return made


@pytest.mark.parametrize(
    ("asked", "settled", "place"),
    [
        ("auto", None, "host"),
        ("device", None, "device"),
        ("host", None, "host"),
        ("auto", {"memory_share": 1, "basis": "device", "host_share": 10**8}, "device"),
        ("auto", {"memory_share": 1, "basis": "host", "host_share": 10**9}, "host"),
        ("auto", {"memory_share": 1}, "host"),  # of an earlier version
        ("host", {"memory_share": 1, "basis": "device", "host_share": 10**9}, "host"),
    ],
)
@pytest.mark.parametrize("settings", [EigSettings(k=3), DensitySettings(steps=30)])
def test_a_run_settles_where_its_bases_lie(settings, asked, settled, place, monkeypatch):
    monkeypatch.setattr("spectra.run.session.host_share", lambda: 10**9)
    with share_of(20, 300), session(asked, settled, settings) as run:
        kept, notes = run._settle_basis()
        assert kept == {"basis": place, "host_share": (settled or {}).get("host_share", 10**9)}
        assert basis_place() == place
        on_host = [text for text in notes if "is in host memory" in text]
        assert len(on_host) == (place == "host")
        if on_host:
            share = "since a quarter of the device's memory holds 20 vectors of 2.34 KiB"
            why = "as requested" if asked == "host" else share
            assert on_host[0].endswith(why)
        expected = ["memory holds only 13 basis vectors of 2.34 KiB"] * (
            settings.command == "eig" and place == "device"
        )
        assert [text.split(",")[0] for text in notes if "restarts" in text] == expected
    assert basis_place() == "auto"


def test_a_method_without_a_basis_leaves_it_to_what_is_asked():
    with share_of(20, 300), session("auto", None, TraceSettings()) as run:
        assert run._settle_basis() == ({"basis": "auto", "host_share": run._settle_basis()[0]["host_share"]}, [])
        assert basis_place() == "auto"


@pytest.mark.parametrize("k", [1, 3])
def test_vectors_that_will_not_be_written_are_given_back(k, monkeypatch):
    given = with_spectrum(SPECTRA["network"])
    solve = partial(eigenpairs, k=k)
    whole = solve(given, generator=seeded())
    assert lean(solve, False, given, generator=seeded()).holds_vectors
    monkeypatch.setattr("spectra.run.eig.LARGEST_VECTORS", k * 300 * 8 - 1)
    kept, left = (lean(solve, save, given, generator=seeded()) for save in (True, False))
    assert torch.equal(kept.vectors, whole.vectors)
    assert not left.holds_vectors
    assert left.vectors.shape == whole.vectors.shape
    assert left.vectors.nbytes == whole.vectors.nbytes
    assert left.vectors.untyped_storage().nbytes() == 8
    assert torch.equal(left.values, whole.values)
    for vectors, save in ((kept, True), (left, True)):
        (result,) = eig_results([measured(vectors)], "lanczos", save)
        assert (result.vectors is None) == (vectors is left)


def measured(answer) -> Measurement:
    """A measurement of this answer."""
    costs = dict.fromkeys(["seconds", "setup_seconds", "noise", "kept_bytes", "peak_bytes"], 0)
    return Measurement("hessian", answer, answer.products, path="hoisted", semidefinite=False, **costs)


class Cut(BaseException):
    """The end of a process, as far as a method can see."""


class Cutting(OnDevice):
    """The matrix, until the process ends."""

    def __init__(self, matrix, left: int):
        super().__init__(matrix)
        self.left = left

    def __matmul__(self, vectors):
        if self.products == self.left:
            raise Cut
        return super().__matmul__(vectors)


@pytest.mark.parametrize("first", ["device", "host"])
@pytest.mark.parametrize("then", ["device", "host"])
def test_a_run_that_was_cut_off_goes_on_with_its_basis_on_either_side(first, then, tmp_path):
    """Where the bits of a vector differ, its product is made anew; here they do not, and a product alone is checked."""
    given = with_spectrum(SPECTRA["network"])
    with PretendDevice():
        whole = pairs_of(OnDevice(given), basis=then)
        with pytest.raises(Cut), closing(Journal(tmp_path / "hessian")) as journal:
            pairs_of(CheckpointedOperator(Cutting(given, 12), journal), basis=first)
        with closing(Journal(tmp_path / "hessian")) as journal:
            again = pairs_of(CheckpointedOperator(operator := OnDevice(given), journal), basis=then)
    assert_alike([x.held if isinstance(x, DeviceTensor) else x for x in again], whole, 1e-12)
    assert operator.products == whole[-1] - 12 + 1


@pytest.mark.parametrize("vectors", [(2, 60), (2, 20), (60, 60)])
def test_forecasts_tell_what_lies_where(vectors, monkeypatch):
    """Of a matrix a thousand times the surrogate, whose basis restarts where the host holds no more."""
    device, host = vectors
    pilot = lanczos(given := with_spectrum(SPECTRA["network"]), random_start(given, seeded()), 20)
    seen = outline(pilot)
    counts = seen.counts * torch.where(seen.alone, 1, 10**4)
    seen = replace(seen, counts=counts, device=DEVICE)
    n, row = seen.shape[0], 8 * seen.shape[0]
    host_share_of(host, n, monkeypatch)
    with fixed_memory_share(device * row):
        found = forecast_eigenpairs(seen, 3, generator=seeded())
        asked = largest_matrix(seen, 1)
    if device > host // 2:
        assert found.host_bytes == 0
        assert found.bytes <= device * row
    else:
        assert found.bytes == 3 * row
        assert 9 * row <= found.host_bytes <= (host + 3) * row
    most = max(vectors)
    assert asked == pytest.approx(most * n, rel=1e-6)
    assert found.largest == pytest.approx(most * n / vectors_held(3, least_basis(3)), rel=1e-6)


@pytest.mark.parametrize(("vectors", "free"), [((2, 100), 100), ((2, 20), 20), ((100, 100), 100)])
def test_forecasts_of_a_trace_tell_what_lies_where(vectors, free, monkeypatch):
    """A sketch takes 80 vectors, on the host or the device; where neither holds it, signs take a few."""
    device, host = vectors
    given = with_spectrum(SPECTRA["clustered"])
    seen = outline(lanczos(given, random_start(given, seeded()), 20))
    seen = replace(seen, counts=seen.counts * torch.where(seen.alone, 1, 10**4), device=DEVICE)
    n, row = seen.shape[0], 8 * seen.shape[0]
    host_share_of(host, n, monkeypatch)
    monkeypatch.setattr(places, "memory_of", lambda place: (math.inf, free * row))
    with fixed_memory_share(device * row):
        found = forecast_trace(seen, rtol=0.1, generator=seeded())
    if max(vectors) < 80:
        assert (found.bytes, found.host_bytes) == (5 * row, 0)
    elif device < 40:
        assert found.bytes == 3 * row
        assert found.host_bytes >= 60 * row
    else:
        assert found.bytes >= 60 * row
        assert found.host_bytes == 0
    assert found.products >= 16


def test_what_memory_does_not_hold_is_forecast_as_refused(monkeypatch):
    class Matrix(Counting):
        peak_bytes = 0

        def factor(self):
            raise SpectraError("there is none")

    given = with_spectrum(SPECTRA["network"])
    monkeypatch.setattr(places, "memory_of", lambda device: (math.inf, 40 * 300 * 8))
    with share_of(2, 300):
        found = forecast_commands(Counting(Matrix(given)), k=3, generator=seeded())
    assert [estimate.command for estimate in found.estimates] == ["eig", "trace"]
    assert found.refused == (
        "`steps` 80: the smallest basis, 85 vectors of 2.34 KiB, takes 199 KiB, and the host has 89.1 KiB free for it; "
        "take fewer, or choose fewer parameters with `params`",
    )


class Stream(TorchFunctionMode):
    """Copies that do not block happen late, in their order: when an event behind them is waited for."""

    def __init__(self):
        super().__init__()
        self.waiting = []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function is torch.Tensor.copy_ and (keywords or {}).get("non_blocking"):
            self.waiting.append(partial(torch.Tensor.copy_, *arguments))
            return arguments[0]
        return function(*arguments, **(keywords or {}))

    def event(self):
        return Event(self)


class Event:
    """An event on a stream."""

    def __init__(self, stream: Stream):
        self.stream, self.before = stream, []

    def record(self):
        self.before = list(self.stream.waiting)

    def synchronize(self):
        for copy in self.before:
            if copy in self.stream.waiting:
                copy()
                self.stream.waiting.remove(copy)


@pytest.mark.parametrize("length", [0, 1, 4, 5, 8, 9, 23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_cross_in_turns_of_two_buffers(length, dtype):
    with Stream() as stream:
        with torch.device("meta"):  # torch's default device has no part in it
            lane = TransferBuffers(stream.event, pinned=False, size=4 * dtype.itemsize)
        for factor in range(1, 4):
            given, device = factor * torch.arange(length, dtype=dtype), torch.zeros(length, dtype=dtype)
            host = torch.zeros(length, dtype=dtype)
            lane.up(device, given)
            lane.down(host, device)
            assert torch.equal(host, given)
            assert torch.equal(device, given)


@pytest.mark.parametrize("piece", [1, 7, 299, 300])
def test_vectors_are_worked_on_piece_by_piece(piece, monkeypatch):
    """The law of Lanczos, through restarts, rotations and other orders; and sums."""
    given = matrix("network")
    u, v = torch.randn(2, 3, given.n, generator=seeded(), dtype=torch.float64)
    whole = [dot(u[0], v[0]), norms(u), norms(u, dim=None), row_dots(u, v)]
    monkeypatch.setattr("spectra.vectors.PIECE", piece)
    for one, other in zip([dot(u[0], v[0]), norms(u), norms(u, dim=None), row_dots(u, v)], whole, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-14, atol=1e-14)

    state = begin(given.matrix, random_start(given.matrix, seeded()))
    for seed in range(3):
        state.align(state.start(random_start(given.matrix, seeded(seed + 1))))
        for index in (-1, 0, -1, -1):
            state.extend(given.matrix, index)
        state.restart(state.ritz()[1][:, -3:])
        left = given.matrix @ state.basis.T
        right = state.basis.T @ state.projected + state.pending.T @ state.coupling
        assert torch.linalg.matrix_norm(left - right) <= 1e-12 * given.size
        together = torch.cat([state.basis, state.pending])
        assert (together @ together.T - torch.eye(len(together))).abs().max() <= 1e-13


@pytest.mark.parametrize("shape", [(2**28 + 1,), (1, 2**27), (48, 2**24 + 3), (300, 2**23), (0, 5), (0,)])
def test_pieces_on_a_device_are_small_beside_vectors(shape):
    """What is made of the rows of a piece takes no more memory than a long vector."""
    cuts, count = list(pieces(torch.empty(shape, device="meta"))), math.prod(shape[:-1])
    assert [cut.start for cut in cuts] == [0, *(cut.stop for cut in cuts[:-1])]
    assert cuts[-1].stop >= shape[-1]
    assert all(count * (cut.stop - cut.start) <= max(2**26, count * 2**20) for cut in cuts)


def test_long_sums_in_single_precision_keep_it(monkeypatch):
    """One after the other, equal numbers add up to a number that is off by thousands of roundings."""
    monkeypatch.setattr("spectra.vectors.PIECE", 2**12)
    rows = torch.full((2, 2**22), 0.1)
    (along,) = remove(rows[0].clone(), [rows[1:]])
    exact = 2**22 * rows[0, 0].double() ** 2
    assert abs(along - exact) <= 1e-5 * exact


class Identity:
    """The identity in single precision."""

    def __init__(self, n: int):
        self.shape, self.dtype, self.device = torch.Size((n, n)), torch.float32, CPU

    def __matmul__(self, vectors):
        return vectors.clone()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="vectors cross to a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_basis_on_the_host_of_a_cuda_device(dtype):
    given = with_spectrum(SPECTRA["network"]).to("cuda", dtype)
    on_card, on_host = (eigenpairs(given, 5, tolerance=1e-5, generator=seeded(), basis=b) for b in ("device", "host"))
    assert on_card.vectors.is_cuda
    assert on_host.vectors.device == CPU
    torch.testing.assert_close(on_host.values, on_card.values, rtol=1e-5, atol=0)
    assert ((on_host.vectors @ on_card.vectors.cpu().T).diagonal().abs() - 1).abs().max() < 1e-3
    again = eigenpairs(given, 5, tolerance=1e-5, generator=seeded(), basis="host")
    assert_alike([again.values, again.vectors], [on_host.values, on_host.vectors])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="vectors cross to a CUDA device")
@pytest.mark.parametrize("count", [1, 2**24, 2**24 + 1, 2**26 + 12345])
def test_vectors_cross_to_a_cuda_device_and_back(count):
    given = torch.randn(count, generator=seeded())
    device = torch.device("cuda")
    for _ in range(3):
        there = on_device(given, device) * 2
        back = on_device(there, CPU)
        assert torch.equal(back, given * 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the memory of a CUDA device")
def test_few_vectors_are_on_a_cuda_device():
    n = 2**22
    scales = torch.linspace(1, 2, n, device="cuda")

    class Diagonal(Identity):
        def __matmul__(self, vectors):
            return vectors * (scales if vectors.ndim == 1 else scales[:, None])

    operator = Diagonal(n)
    operator.device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with fixed_memory_share(2 * 4 * n):
        eigenpairs(operator, 4, generator=seeded(), max_products=40, basis="host")
    assert torch.cuda.max_memory_allocated() - before <= 12 * 4 * n  # random numbers are made of wider ones
