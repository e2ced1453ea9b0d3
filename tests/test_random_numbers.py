"""Random numbers by key and index: published outputs, the same in all parts and on all devices, and chance enough."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import CPU, seeded
from scipy import stats

from spectra import random_numbers
from spectra.curvature.keyed_uniforms import uniforms
from spectra.operator import random_signs, random_vectors
from spectra.random_numbers import draw_keys, in_unit_interval, mix, normal_like, normal_rows, sign_rows, words

DOUBLE = torch.float64
CUDA = pytest.param(
    torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), id="cuda"
)
ROWS = [normal_rows, sign_rows]
KEYS = [0, 1, 1234567, 2**63 - 2, 0x1234567890ABCDEF]
N = 200_000


def reference(key: int, index: int) -> int:
    """Output number `index` of SplitMix64 from the state `key`, as its authors' C code says, in Python's integers."""
    x = (key + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def unsigned(integers) -> list[int]:
    return [int(x) % 2**64 for x in integers.flatten()]


@pytest.fixture
def small_chunks(monkeypatch):
    """Many chunks in few entries, of which each holds whole pairs and whole words."""
    monkeypatch.setattr(random_numbers, "CHUNKS", {"cpu": 64, "cuda": 128})
    monkeypatch.setattr(random_numbers, "SMALL", 0)


# The integers


def test_published_outputs():
    """Of SplitMix64, seeds 1234567 (rosettacode.org) and 0 (OpenJDK's and Rust's tests of the same generator)."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert unsigned(words([1234567], np.arange(5))) == known
    assert unsigned(words([0], np.arange(3))) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_tensors_and_arrays_give_the_integers_of_the_definition(device):
    indices = [0, 1, 2, 63, 64, 2**31, 2**32 + 5, 2**40 - 1, 2**52]
    expected = [reference(key, index) for key in KEYS for index in indices]
    assert unsigned(words(KEYS, np.array(indices))) == expected
    assert unsigned(words(KEYS, torch.tensor(indices, device=device))) == expected


def test_the_unit_interval_keeps_the_first_53_bits():
    bits = [0, 1 << 11, 2**64 - 1 << 11, 2**63, 12345678901234567890]
    bits = [x % 2**64 for x in bits]
    given = torch.tensor(np.array(bits, dtype=np.uint64).view(np.int64))
    assert in_unit_interval(given).tolist() == [((x >> 11) + 0.5) * 2.0**-53 for x in bits]


def test_labels_are_drawn_by_seed_example_position_sample_and_draw():
    """The uniforms of fisher-mc, as one chain of the same mixing."""

    def mixed(x: int) -> int:
        return reference(x, 0)

    found = uniforms(7, torch.tensor([5, 11]), 6, 3)(2).tolist()
    for place, (index, position) in enumerate((i, p) for i in (5, 11) for p in range(3)):
        bits = mixed(mixed(mixed(mixed(7) ^ index) ^ mixed(position + 2**32)) ^ mixed((3 << 40) + 2))
        assert found[place] == ((bits >> 11) + 0.5) * 2.0**-53


def test_mix_changes_half_of_the_bits():
    """Whichever bit of the state changes (avalanche): by chance each output bit changes with probability 1/2."""
    states = torch.tensor(draw_keys(seeded(), 4000))
    for bit in range(0, 63, 9):
        changed = mix(states) ^ mix(states ^ (1 << bit))
        shares = ((changed[:, None] >> torch.arange(64)) & 1).double().mean(dim=0)
        assert (shares - 0.5).abs().max() < 5 * 0.5 / 4000**0.5


# What the entries are made of


def test_signs_are_the_bits_of_the_words():
    bits = [reference(KEYS[2], i // 64) >> i % 64 & 1 for i in range(300)]
    assert sign_rows(KEYS[2:3], slice(0, 300), DOUBLE, CPU)[0].tolist() == [2 * bit - 1 for bit in bits]


def test_normal_numbers_are_those_of_box_and_muller():
    u = [((reference(KEYS[2], i) >> 11) + 0.5) * 2.0**-53 for i in range(300)]
    radius = np.sqrt(-2 * np.log(u[::2]))
    angle = 2 * np.pi * np.array(u[1::2])
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)])
    np.testing.assert_allclose(normal_rows(KEYS[2:3], slice(0, 300), DOUBLE, CPU)[0], expected.T.ravel(), atol=1e-14)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_any_part_of_any_rows_in_any_chunks(rows, device, monkeypatch):
    """An entry depends on its key and index alone: signs and integers to the bit, normal numbers to rounding."""
    whole = rows(KEYS, slice(0, 1000), DOUBLE, CPU)
    tolerance = {"rtol": 0, "atol": 0 if rows is sign_rows else 1e-14}
    for chunk, small in ((64, 0), (384, 0), (1 << 20, 1 << 20)):
        monkeypatch.setattr(random_numbers, "CHUNKS", {"cpu": chunk, "cuda": chunk})
        monkeypatch.setattr(random_numbers, "SMALL", small)
        for first, last in ((0, 1000), (0, 1), (1, 2), (63, 65), (64, 128), (77, 893), (999, 1000), (5, 5), (64, 64)):
            found = rows(KEYS, slice(first, last), DOUBLE, device)
            assert found.device.type == device.type
            torch.testing.assert_close(found.cpu(), whole[:, first:last], **tolerance)
    for place, key in enumerate(KEYS):
        torch.testing.assert_close(rows([key], slice(3, 99), DOUBLE, device)[0].cpu(), whole[place, 3:99], **tolerance)


@pytest.mark.parametrize("rows", ROWS)
def test_what_runs_on_other_devices_runs_here_on_tensors(rows, small_chunks, monkeypatch):
    expected = rows(KEYS, slice(0, 777), DOUBLE, CPU)
    monkeypatch.setattr(random_numbers, "integers", lambda v, device: torch.arange(v.start, v.stop, v.step))
    torch.testing.assert_close(rows(KEYS, slice(0, 777), DOUBLE, CPU), expected, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_gpu_draws_what_the_cpu_draws(dtype):
    part, device = slice(12_345, 12_345 + 10 * random_numbers.SMALL), torch.device("cuda")
    signs = sign_rows(KEYS, part, dtype, device)
    assert signs.is_cuda
    assert torch.equal(signs.cpu(), sign_rows(KEYS, part, dtype, CPU))
    normals = normal_rows(KEYS, part, dtype, device)
    assert normals.is_cuda
    assert torch.equal(normals, normal_rows(KEYS, part, dtype, device))
    eps = torch.finfo(dtype).eps  # a number in float64 that is off by its last bit may be rounded to the other side
    torch.testing.assert_close(normals.cpu(), normal_rows(KEYS, part, dtype, CPU), rtol=eps, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", ROWS)
def test_other_dtypes_are_rounded_from_float64(dtype, rows):
    part = slice(0, 2 * random_numbers.CHUNKS["cpu"] // len(KEYS))
    found = rows(KEYS, part, dtype, CPU)
    assert found.dtype == dtype
    assert torch.equal(found, rows(KEYS, part, DOUBLE, CPU).to(dtype))


# Vectors of an operator


@pytest.mark.parametrize("draw", [random_vectors, random_signs])
def test_each_process_makes_its_own_shard(draw, monkeypatch):
    """Of any number of processes; the last shards may be shorter or empty."""
    n, shape = 1001, torch.Size((1001, 1001))
    whole = draw(SimpleNamespace(shape=shape, dtype=DOUBLE, device=CPU), 3, seeded(2))
    monkeypatch.setattr("spectra.operator.from_shard", lambda part, mesh, n, dimension: part)
    for ranks in (2, 3, 64):
        parts = []
        for rank in range(ranks):
            mesh = SimpleNamespace(size=lambda ranks=ranks: ranks, get_local_rank=lambda rank=rank: rank)
            operator = SimpleNamespace(shape=shape, dtype=DOUBLE, device=CPU, mesh=mesh)
            parts.append(draw(operator, 3, seeded(2)))
        assert sum(part.shape[1] for part in parts) == n
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("draw", [random_vectors, random_signs])
def test_vectors_drawn_together_are_those_drawn_one_by_one(draw):
    operator = torch.eye(500, dtype=DOUBLE)
    one, other = seeded(3), seeded(3)
    together = draw(operator, 5, one)
    apart = torch.cat([draw(operator, count, other) for count in (1, 3, 0, 1)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-14)
    assert torch.equal(one.get_state(), other.get_state())


def test_a_default_device_changes_nothing(monkeypatch):
    before = random_vectors(torch.eye(9), 2, seeded()), random_signs(torch.eye(9), 2, seeded())
    operator = torch.eye(9)
    with torch.device("meta"):
        after = random_vectors(operator, 2, seeded()), random_signs(operator, 2, seeded())
    assert all(map(torch.equal, before, after))


def test_nothing_global_is_drawn_from():
    before = torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    random_vectors(torch.eye(9), 2, seeded())
    random_signs(torch.eye(9), 2, seeded())
    normal_like(torch.zeros(3, 4), seeded())
    assert before == (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate())  # noqa: NPY002


def test_normal_like_has_shape_dtype_and_device_of_the_tensor():
    found = normal_like(torch.zeros(3, 0, 5), seeded()), normal_like(torch.zeros((), dtype=torch.bfloat16), seeded())
    assert [(x.shape, x.dtype) for x in found] == [((3, 0, 5), torch.float32), ((), torch.bfloat16)]
    given = torch.zeros(4, 6)
    whole = normal_like(given, seeded(), DOUBLE)
    assert whole.shape == given.shape
    assert torch.equal(whole.float(), normal_like(given, seeded()))


# Chance: every bound is 5 standard errors, which one of a million draws misses


def drawn(rows, seed: int, count: int = 1, n: int = N) -> np.ndarray:
    return rows(draw_keys(seeded(seed), count), slice(0, n), DOUBLE, CPU).numpy()


def bounded(samples: np.ndarray, variance: float = 1.0) -> bool:
    """Whether the mean of independent samples of mean zero and this variance lies within 5 standard errors."""
    return bool(abs(samples.mean()) < 5 * (variance / samples.size) ** 0.5)


@pytest.mark.parametrize("seed", [0, 1, 2, 10**6])
def test_normal_numbers_have_the_distribution(seed):
    x = drawn(normal_rows, seed)[0]
    assert stats.kstest(x, "norm").pvalue > 1e-4
    assert stats.kstest(x[::2], "norm").pvalue > 1e-4
    assert stats.kstest(x[1::2], "norm").pvalue > 1e-4
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert bounded(x**power - mean, variance), power
    beyond = 2 * stats.norm.sf(4)  # the tails are there
    assert bounded((np.abs(drawn(normal_rows, seed, 20)) > 4) - beyond, beyond)


@pytest.mark.parametrize("seed", [0, 1, 2, 10**6])
def test_signs_are_fair(seed):
    x = drawn(sign_rows, seed)[0]
    assert set(x) == {-1, 1}
    assert bounded(x)
    lanes = x[: N // 64 * 64].reshape(-1, 64)
    assert all(bounded(lanes[:, place]) for place in range(64))
    runs = 1 + (x[1:] != x[:-1]).sum()
    assert abs(runs - N / 2) < 5 * N**0.5 / 2


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("lag", [1, 2, 3, 7, 63, 64, 65, 128, 4096])
def test_neighbours_do_not_correlate(rows, lag):
    x = drawn(rows, 5)[0]
    assert bounded(x[lag:] * x[:-lag])
    if rows is normal_rows:
        even = x**2 - 1  # pairs share a radius: their squares would show it
        assert bounded(even[lag:] * even[:-lag], 4)


@pytest.mark.parametrize("rows", ROWS)
def test_streams_and_seeds_do_not_correlate(rows):
    """Vectors of one generator, of seeds that differ by one, and of keys that differ by one or by a few steps."""
    groups = [
        drawn(rows, 0, 12, 20_000),
        np.concatenate([drawn(rows, seed, 1, 20_000) for seed in range(12)]),
        rows(list(range(100, 112)), slice(0, 20_000), DOUBLE, CPU).numpy(),
    ]
    for group in groups:
        products = group @ group.T / 20_000**0.5
        assert np.abs(products - np.diag(np.diag(products))).max() < 5
        squares = (group**2 - 1) @ (group**2 - 1).T / (2 * 20_000**0.5)
        assert np.abs(squares - np.diag(np.diag(squares))).max() < 5


def test_keys_do_not_repeat():
    keys = [key for seed in range(50) for key in draw_keys(seeded(seed), 200)]
    assert len(set(keys)) == len(keys)
    assert 0 <= min(keys) <= max(keys) < 2**63


def test_hutchinson_is_unbiased_over_seeds():
    """The mean over seeds of w'Aw is tr A, and its variance 2 (|A|^2 - |diag A|^2)."""
    draw = torch.randn(40, 40, generator=seeded(1), dtype=DOUBLE)
    a = draw + draw.T
    w = torch.cat([random_signs(a, 1, seeded(seed)) for seed in range(2000)])
    samples = ((w @ a) * w).sum(dim=1)
    variance = 2 * (a.square().sum() - a.diagonal().square().sum())
    assert abs(samples.mean() - a.trace()) < 5 * (variance / len(w)) ** 0.5
    assert 0.8 < samples.var() / variance < 1.2
