"""The law of the Lanczos basis, A V' = V' T + Q' C, after every kind of step."""

import pytest
import torch
from helpers import TABLE, Widths, known, matrix, seeded, with_spectrum

from spectra.krylov import lanczos as lanczos_module
from spectra.krylov.lanczos import begin, extend_all, lanczos, random_start
from spectra.operator import Deflated


def assert_law(operator, size, state, tolerance=1e-13):
    """The law to rounding, V and Q orthonormal together, T symmetric."""
    basis, pending = state.basis.double(), state.pending.double()
    left = operator.double() @ basis.T
    right = basis.T @ state.projected + pending.T @ state.coupling
    assert torch.linalg.matrix_norm(left - right) <= tolerance * size * max(1, state.size) ** 0.5
    together = torch.cat([basis, pending])
    assert len(together) <= state.dimension
    assert (together @ together.T - torch.eye(len(together))).abs().max() <= tolerance
    assert (state.projected - state.projected.T).abs().max() <= tolerance * size if state.size else True


def wander(operator, state, seed, moves=30):
    """Random moves: products of the newest or another pending direction, further starts, rotations, thick restarts."""
    generator = seeded(seed)
    for _ in range(moves):
        move = torch.randint(10, (), generator=generator).item()
        if move == 2 and len(state.pending) > 1:
            state.align(torch.randn(len(state.pending), generator=generator, dtype=torch.float64))
        if (move == 0 or not len(state.pending)) and not state.exhausted:
            state.start(random_start(operator, generator))
        elif move == 1 and state.size > 3:
            kept = torch.randperm(state.size, generator=generator)[: state.size // 2]
            state.restart(state.ritz()[1][:, kept])
        elif len(state.pending):
            state.extend(operator, torch.randint(len(state.pending), (), generator=generator).item())
        yield state


@pytest.mark.parametrize("name", TABLE)
def test_law_holds_after_every_step(name):
    for seed, scale in enumerate([1.0, 1e-6, 1e6]):
        given = matrix(name) * scale
        begun = begin(given.matrix, random_start(given.matrix, seeded(seed)))
        for state in wander(given.matrix, begun, seed):
            assert_law(given.matrix, given.size, state)


@pytest.mark.parametrize("name", ["ghosts", "network", "softmax", "low rank"])
def test_law_holds_in_float32(name):
    given = matrix(name)
    single = given.matrix.float()
    for state in wander(single, begin(single, random_start(single, seeded())), seed=1, moves=60):
        assert state.projected.dtype == state.coupling.dtype == torch.float64
        assert_law(single, given.size, state, 3e-6)


def test_one_start_gives_a_tridiagonal_matrix_and_one_residual():
    given = matrix("network")
    state = lanczos(given.matrix, random_start(given.matrix, seeded()), 40)
    assert_law(given.matrix, given.size, state)
    assert state.projected.triu(2).abs().max() <= 1e-13 * given.size
    assert state.coupling[:, :-1].abs().max() <= 1e-13 * given.size
    assert state.pending.shape == (1, given.n)


@pytest.mark.parametrize("name", TABLE)
def test_the_basis_stays_orthonormal_to_the_end(name):
    given = matrix(name)
    state = lanczos(given.matrix, random_start(given.matrix, seeded()), given.n)
    assert_law(given.matrix, given.size, state)


@pytest.mark.parametrize(("spectrum", "steps"), [([3, 3, 3, 1, 1, 1], 2), ([7] * 9, 1), ([0] * 5, 1), ([-2.5], 1)])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_breaks_down_after_as_many_steps_as_distinct_eigenvalues(spectrum, steps, scale, dtype):
    given = known(spectrum) * scale
    state = lanczos(given.matrix.to(dtype), random_start(given.matrix.to(dtype), seeded()), 50)
    assert state.size == steps
    assert not len(state.pending)
    values, _, residuals = state.ritz()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(values, given.spectrum.unique(), rtol=0, atol=50 * eps * given.size)
    assert residuals.max() == 0


def test_never_takes_more_directions_than_the_space_has():
    given = matrix("wilkinson")
    state = begin(given.matrix, random_start(given.matrix, seeded()))
    for seed in range(6):
        state.start(random_start(given.matrix, seeded(seed + 1)))
    while len(state.pending):
        state.extend(given.matrix)
        assert_law(given.matrix, given.size, state)
    assert state.size <= given.n
    while not state.exhausted:
        state.start(random_start(given.matrix, seeded(99)))
        state.extend(given.matrix)
    values, _, residuals = state.ritz()
    torch.testing.assert_close(values, given.spectrum, rtol=0, atol=1e-13 * given.size)
    assert residuals.max() <= 1e-13 * given.size


def test_a_start_inside_the_basis_becomes_a_direction_outside_it():
    given = matrix("network")
    state = lanczos(given.matrix, random_start(given.matrix, seeded()), 20)
    state.start(state.basis[3] + state.basis[7])
    assert_law(given.matrix, given.size, state)
    state.extend(given.matrix)
    assert_law(given.matrix, given.size, state)


def test_a_start_exactly_inside_the_basis_is_refused_by_no_division_by_zero():
    operator = torch.diag(torch.tensor([3.0, 2, 1], dtype=torch.float64))
    state = lanczos(operator, torch.tensor([1.0, 0, 0], dtype=torch.float64), 5)
    assert state.size == 1
    with pytest.raises(ValueError, match="span"):
        state.start(torch.tensor([2.0, 0, 0], dtype=torch.float64))


def test_ritz_residuals_are_true_residuals():
    given = matrix("network")
    state = lanczos(given.matrix, random_start(given.matrix, seeded()), 30)
    values, coordinates, residuals = state.ritz()
    vectors = state.vectors(coordinates)
    true = torch.linalg.vector_norm(given.matrix @ vectors.T - vectors.T * values, dim=0)
    torch.testing.assert_close(residuals, true, rtol=0, atol=1e-12 * given.size)


def test_a_thick_restart_loses_nothing_that_it_keeps():
    given = matrix("ghosts")
    state = lanczos(given.matrix, random_start(given.matrix, seeded()), 30)
    values, coordinates, residuals = state.ritz()
    state.restart(coordinates[:, -8:])
    after, _, residuals_after = state.ritz()
    torch.testing.assert_close(after, values[-8:], rtol=0, atol=1e-13 * given.size)
    torch.testing.assert_close(residuals_after, residuals[-8:], rtol=0, atol=1e-12 * given.size)


def beside(given, count, seed):
    """A run beside the first so many eigenpairs, as they are known to a caller."""
    values, directions = torch.linalg.eigh(given.matrix)
    pairs = values[:count], directions.T[:count].contiguous()
    return begin(given.matrix, random_start(given.matrix, seeded(seed)), known=pairs, rows=4)


@pytest.mark.parametrize("count", [1, 20, 47])
@pytest.mark.parametrize("name", ["strakos", "network", "softmax", "low rank"])
def test_a_run_beside_known_pairs_obeys_the_law_of_the_rest(name, count):
    given = matrix(name)
    state = beside(given, count, 0)
    deflated = Deflated(given.matrix, state.known) @ torch.eye(given.n, dtype=torch.float64)
    for moved in wander(given.matrix, state, seed=1):
        assert_law(deflated, given.size, moved)
        held = torch.cat([moved.basis, moved.pending])
        assert (held @ moved.known.T).abs().max() <= 1e-13
        assert len(held) <= given.n - count


def test_beside_all_other_pairs_one_step_is_all_there_is():
    given = matrix("strakos")
    state = beside(given, given.n - 1, 0)
    state.extend(given.matrix)
    assert state.exhausted
    torch.testing.assert_close(state.ritz()[0], given.spectrum[-1:], rtol=1e-13, atol=0)


def test_a_known_norm_tells_what_rounding_is():
    """The rest of a matrix of low rank is zero: products of the size of epsilon, and no spectrum."""
    given = matrix("low rank")
    values, directions = torch.linalg.eigh(given.matrix)
    pairs = values[-30:], directions.T[-30:].contiguous()
    state = begin(given.matrix, random_start(given.matrix, seeded()), known=pairs)
    state.extend(given.matrix)
    assert not len(state.pending)


def test_several_runs_go_through_one_product_and_differ_in_nothing():
    given = matrix("network")
    operator = Widths(given.matrix)
    runs = [begin(operator, random_start(operator, seeded(seed))) for seed in range(3)]
    for _ in range(20):
        extend_all(runs, operator)
    assert operator.widths == [3] * 20
    for seed, state in enumerate(runs):
        assert_law(given.matrix, given.size, state)
        alone = lanczos(given.matrix, random_start(given.matrix, seeded(seed)), 20)
        torch.testing.assert_close(state.projected, alone.projected, rtol=0, atol=1e-12 * given.size)


def test_runs_share_what_is_known():
    given = matrix("network")
    one = beside(given, 5, 0)
    other = begin(given.matrix, random_start(given.matrix, seeded(1)), known=(one.known_values, one.known))
    extend_all([one, other], given.matrix)
    assert other.known is one.known


def test_a_step_waits_for_the_device_once(monkeypatch):
    """Whatever a product's coefficients are needed for on the CPU gets there together."""
    transfers = []
    monkeypatch.setattr(lanczos_module, "as_cpu_float64", lambda x: transfers.append(len(x)) or x.double())
    given = matrix("network")
    state = begin(given.matrix, random_start(given.matrix, seeded()))
    state.start(random_start(given.matrix, seeded(1)))
    transfers.clear()
    for _ in range(5):
        state.extend(given.matrix)
    assert transfers == [3, 4, 5, 6, 7]  # along V and Q, and the norm of what is left


def test_storage_doubles_up_to_the_capacity_and_no_further():
    given = matrix("network")
    state = begin(given.matrix, random_start(given.matrix, seeded()), capacity=50)
    sizes = {len(state.storage)}
    while state.size < 50:
        state.extend(given.matrix)
        sizes.add(len(state.storage))
    assert sizes == {32, 51}  # with the one pending


def test_non_finite_products_give_non_finite_values_and_no_error():
    operator = with_spectrum([3.0, 2, 1]) * float("nan")
    values, coordinates, residuals = lanczos(operator, torch.ones(3, dtype=torch.float64), 3).ritz()
    assert values.isnan().all()
    assert coordinates.isnan().all()
    assert residuals.isnan().all()
