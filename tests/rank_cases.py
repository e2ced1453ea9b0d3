"""What tests/test_ranks.py asks of one process, and as a program of each of several: `RANK=0 ... rank_cases.py OUT`."""

import math
import sys
from functools import partial
from pkgutil import resolve_name
from unittest import mock

import pytest
import torch
from torch import nn

from spectra.cluster.distributed import Ranks, distributed, join
from spectra.cluster.ranks import finish, rank
from spectra.cluster.replicated import Replicated
from spectra.curvature.engine.gradients import mean_gradient
from spectra.curvature.evaluation import cut_batches, evaluate
from spectra.curvature.finite_differences import FiniteDifferences
from spectra.curvature.matrices import MATRICES, definition
from spectra.curvature.operator import Curvature
from spectra.given_operator import as_operator
from spectra.krylov.blocks import vector_bytes
from spectra.krylov.deflation import known_pairs
from spectra.krylov.diagonal import hutchinson_diagonal, xdiag
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.eigensolver import least_basis, vectors_held
from spectra.krylov.lanczos import lanczos, random_start
from spectra.krylov.methods import EIG, TRACE
from spectra.krylov.quadrature import spectral_measure
from spectra.krylov.sketch import Sketch
from spectra.krylov.solve import solve
from spectra.krylov.xtrace import mean, xtrace
from spectra.layerwise.layers import layers
from spectra.layerwise.parameter_blocks import block_sums, diagonal_blocks, parameter_blocks
from spectra.memory import fixed_memory_share
from spectra.operator import Counting, mesh_of, placed, random_vectors, reference
from spectra.optimizer.preconditioned import Preconditioned
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.losses import CustomLoss, MeanSquaredError
from spectra.problem.problem import Problem, Processes
from spectra.product_checks import check_operator, measure_noise
from spectra.run.inspection import forecast_commands
from spectra.vectors import _other_mesh, from_shard, full_tensor, local, orthonormal, sum_shards


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(processes: Processes, size: int = 10, loss=None, width: int = 4, **options) -> Problem:
    """23 examples of 5 numbers, in 3 classes; 47 parameters at a width of 5, and 2 at one of 0."""
    generator = seeded(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if width:
            model = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).double()
        else:
            model = nn.Linear(1, 1).double()
    x = torch.randn(23, 5 if width else 1, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (23,), generator=generator)
    if not width:
        y, loss = x.square(), MeanSquaredError()
    batches = cut_batches(x, y, torch.arange(23), size)
    weights = torch.tensor([1.0, 2.0, 0.5])
    return Problem(model, loss or CrossEntropy(weights, label_smoothing=0.1), batches, processes=processes, **options)


def rows_of_cross_entropy(output, targets):
    return nn.functional.cross_entropy(output, targets, reduction="none")


PROBLEMS = {
    "three batches": problem,
    "one batch": partial(problem, size=23),
    "one batch, never cut": partial(problem, size=23, loss=CustomLoss(rows_of_cross_entropy)),
    "two parameters": partial(problem, width=0),
    "weight decay": partial(problem, weight_decay=0.3),
}


def products(operator) -> dict:
    return {"one": operator @ random_vectors(operator, 1, seeded())[0], "some": operator @ vectors_of(operator, 20)}


def vectors_of(operator, count: int):
    return random_vectors(operator, count, seeded(3)).T


def eig(method: str, operator, **options) -> dict:
    found = resolve_name(EIG[method])(operator, 3, generator=seeded(), tolerance=1e-6, **options)
    vectors = full_tensor(found.vectors)
    return {
        "values": found.values,
        "residuals are small": bool(found.residuals.max() < 1e-5),
        "gram": vectors @ vectors.T,
        "span": vectors.T @ vectors,
        "products": found.products,
        "converged": found.converged,
    }


def smallest_basis(operator) -> dict:
    """Eigenpairs from the least memory with which restarts work."""
    with fixed_memory_share(vectors_held(3, least_basis(3)) * vector_bytes(operator)):
        found = eig("lanczos", operator)
    return {what: found[what] for what in ("values", "residuals are small", "span", "converged")}


def on_hosts(operator) -> dict:
    """Vectors on a second mesh of the same processes, as the hosts of GPUs have one, and back on the first."""
    rows = random_vectors(operator, 3, seeded())
    if mesh := mesh_of(operator):
        partner = _other_mesh(mesh, "cpu")
        moved = from_shard(local(rows).clone(), partner, operator.shape[0], 1)
        assert moved.device_mesh is partner is not mesh
    else:
        moved = rows
    basis = full_tensor(orthonormal(moved)[0])
    return {"whole": moved, "gram": sum_shards(lambda u: u @ u.T, moved), "span": basis.T @ basis}


def trace(method: str, operator, **options) -> dict:
    found = resolve_name(TRACE[method])(operator, generator=seeded(), **options)
    return {"value": found.value, "error": found.standard_error, "products": found.products}


def density(operator) -> dict:
    found = spectral_measure(operator, probes=3, steps=6, generator=seeded())
    return {"nodes": found.nodes, "weights": found.weights, "deflated": found.deflated, "products": found.products}


def blocks(by: str, operator) -> dict:
    """All of a matrix block by block: by products of whole parameters, or of the whole matrix cut to each."""
    curvature = getattr(operator, "part", operator)
    parts = parameter_blocks(curvature.problem, by)
    own = diagonal_blocks(operator, parts, curvature.problem, curvature.name)
    sums = block_sums(curvature.problem, parts, operator)
    found = layers(operator, own, parts, sums, rtol=0.3, tolerance=1e-6, steps=3, probes=2, generator=seeded())
    count, never = range(len(parts)), lambda values, errors: False
    sketch = xdiag(operator, sums, never, generator=seeded(), max_products=20)  # fewer than take all exactly
    signs = hutchinson_diagonal(operator, sums, never, generator=seeded(), max_products=7)
    return {
        "sketch": sketch.replicates,
        "sketch's errors": full_tensor(sketch.standard_errors),
        "signs": full_tensor(signs.values),
        "signs' errors": full_tensor(signs.standard_errors),
        "diagonal": full_tensor(found.diagonal.values),
        "sums": found.diagonal.sums,
        "values": torch.cat([pairs.values for pairs in found.eigenpairs]),
        "masses": torch.tensor([found.mass(i) for i in count]),
        "overlaps": torch.tensor([found.overlap(i) for i in count]),
        "nodes": torch.cat([measure.nodes.flatten() for measure in found.measures]),
        "products": found.products,
    }


def forecast(operator) -> dict:
    found = forecast_commands(Counting(operator), k=3, generator=seeded())
    return {"products": found.products, **{f"{e.command} {e.method}": e.products for e in found.estimates}}


def reuse(operator) -> dict:
    """Known eigenpairs, as files hold them, of this matrix and of another; and what is made of them."""
    matrix = full_tensor(operator @ placed(torch.eye(operator.shape[0]), operator).T)
    values, vectors = torch.linalg.eigh(matrix)
    known = known_pairs(operator, values[-2:], vectors.T[-2:], torch.full((2,), 1e-12))
    other = known_pairs(operator, values[-2:] + 1, vectors.T[-2:], torch.full((2,), 1e-12))
    measure = spectral_measure(operator, known=known, probes=2, steps=5, generator=seeded())
    return {"found": known.values, "other": other is None, "nodes": measure.nodes, "weights": measure.weights}


def inverse_products(operator) -> dict:
    """One right-hand side and several, whole or in shards, and what known eigenpairs leave of them."""
    sides = vectors_of(operator, 3)
    known = eigenpairs(operator, min(4, operator.shape[0]), generator=seeded())
    options = {"damping": 1.0, "tolerance": 1e-11}
    return {
        "one": solve(operator, full_tensor(sides)[:, 0], **options).x,
        "some": solve(operator, sides, method="minres", known=known, **options).x,
    }


def preconditioned(operator) -> dict:
    """Products, errors and eigenvalues of R A R plus a diagonal, and of R A R with an R that is a whole matrix."""
    n = operator.shape[0]
    root, shift = (placed(torch.linspace(low, 2, n, dtype=torch.float64), operator) for low in (0.5, -1))
    around = Preconditioned(operator, root, shift, sign=-1.0)
    full = torch.randn(n, n, generator=seeded(), dtype=torch.float64)
    full, mesh = full + full.T, mesh_of(operator)
    mixed = Preconditioned(operator, full if mesh is None else Replicated(full, mesh, operator.device))
    values = {"values": eigenpairs(around, 2, generator=seeded()).values}
    return products(around) | values | {"mixed": mixed @ vectors_of(operator, 2)}


def noise(operator) -> dict:
    return {"noise": check_operator(operator, seeded()) < 1e-12}


def differences(operator) -> dict:
    """Products by finite differences, compared with exact ones over all ranks."""
    part = operator if isinstance(operator, Curvature) else operator.part
    found = distributed(FiniteDifferences(part.problem, step=1e-3))
    noise = measure_noise(found, seeded())
    pairs = eigenpairs(found, 3, generator=seeded(), tolerance=1e-2)
    vector = random_vectors(found, 1, seeded(2))[0]
    exact = {"product": found @ vector, "exact": reference(found) @ vector, "symmetric": check_operator(found) < 1e-3}
    return exact | {"noise": noise.norm, "values": pairs.values, "residuals": pairs.residuals}


def krylov_basis(operator) -> dict:
    state = lanczos(operator, random_start(operator, seeded()), 12)
    basis = full_tensor(state.basis)
    return {"diagonal": state.projected.diagonal(), "gram": basis @ basis.T}


def short_of_rank(operator) -> dict:
    """Q of up to 8 rows that span up to 3 dimensions, and never all."""
    n = operator.shape[0]
    count, span = min(8, n), min(3, n - 1)
    drawn = torch.randn(span, n, generator=seeded(), dtype=torch.float64)
    mixture = torch.randn(count, span, generator=seeded(), dtype=torch.float64)
    mixture[-1] = 0
    rows = placed(mixture @ drawn, operator)
    basis, triangle = orthonormal(rows)
    again = triangle.T @ full_tensor(basis)
    return {
        "gram": full_tensor(basis) @ full_tensor(basis).T,
        "rows": again,
        "change": torch.dist(again, full_tensor(rows)) < 1e-12,
    }


def past_the_rank(operator) -> dict:
    """A sketch that grows although there is no more of the matrix."""
    sketch, generator = Sketch(operator), seeded()
    for size in (2, 9, 20):
        sketch.grow(size, generator)
    return {
        "gram": full_tensor(sketch.basis) @ full_tensor(sketch.basis).T,
        "mean": mean(sketch.coordinates(), operator.shape[0]),
    }


def short_on_one(operator) -> dict:
    """Memory holds no sketch on the last rank, and holds one on the others."""
    mesh = mesh_of(operator)
    last = mesh is None or mesh.get_local_rank() == mesh.size() - 1
    free = mock.patch("spectra.krylov.placement.memory_of", return_value=(math.inf, 0 if last else math.inf))
    with fixed_memory_share(20 * vector_bytes(operator)), free:
        return {"v": xtrace(operator, rtol=0.5, generator=seeded()).value}


def given_operator(kind: str, processes: Processes):
    """A matrix of 11 rows, not one of a network: dense, sparse, or known by its products alone."""
    matrix = torch.diag(torch.arange(11.0, dtype=torch.float64) - 3)
    matrix[2, 9] = matrix[9, 2] = 1.5
    forms = {
        "dense": matrix,
        "sparse": matrix.to_sparse_coo(),
        "products": (11, lambda vector: matrix.numpy() @ vector),
    }
    operator = as_operator(forms[kind])
    return Replicated(operator, processes.mesh, CPU) if isinstance(processes, Ranks) else operator


CPU = torch.device("cpu")
GIVEN = ("dense", "sparse", "products")
MANY = tuple(MATRICES)
# what is asked -> of which problems, and of which matrices
TABLE = {
    "products": (products, tuple(PROBLEMS), MANY),
    "preconditioned": (preconditioned, ("three batches", "two parameters"), ("hessian",)),
    "noise": (noise, ("three batches",), ("hessian",)),
    "differences": (differences, ("three batches",), ("hessian",)),
    **{f"eig {name}": (partial(eig, name), ("three batches",), ("ggn",)) for name in EIG},
    "eig of two": (
        lambda operator: {"values": eigenpairs(operator, 2, generator=seeded()).values},
        ("two parameters",),
        ("hessian", "ggn"),
    ),
    "eig of the smallest basis": (smallest_basis, ("three batches",), ("fisher",)),
    "on hosts": (on_hosts, ("three batches", "two parameters"), ("hessian",)),
    "eig restarted": (partial(eig, "lanczos", largest_basis=5), ("three batches",), ("fisher",)),
    **{f"trace {name}": (partial(trace, name, rtol=0.1), ("three batches",), ("ggn",)) for name in TRACE},
    "trace probes": (lambda a: {"v": xtrace(a, probes=7, generator=seeded()).value}, ("weight decay",), ("hessian",)),
    "trace where one is short": (short_on_one, ("three batches",), ("hessian",)),
    "trace hutch++ of rank 2": (partial(trace, "hutch++", probes=12), ("three batches",), ("fisher-batch",)),
    "a sketch past the rank": (past_the_rank, ("three batches",), ("fisher-batch",)),
    "trace gram": (
        partial(trace, "gram"),
        tuple(PROBLEMS),
        ("fisher-empirical", "gradient-covariance", "fisher-batch"),
    ),
    "density": (density, ("three batches", "one batch, never cut"), ("hessian",)),
    "reuse": (reuse, ("three batches",), ("hessian",)),
    "solve": (inverse_products, ("three batches", "two parameters"), ("hessian",)),
    "forecast": (forecast, ("three batches",), ("hessian", "gradient-covariance")),
    **{f"by {by}": (partial(blocks, by), ("three batches",), ("ggn",)) for by in ("layer", "channel")},
    "basis": (krylov_basis, ("one batch",), ("hessian",)),
    "short of rank": (short_of_rank, ("one batch", "two parameters"), ("hessian",)),
}
CASES = [
    (asked, of, name)
    for asked, (_, problems, names) in TABLE.items()
    for of in problems
    for name in names
    if not ("never cut" in of and definition(name).needs_distribution)
    and not ("decay" in of and definition(name).loss_power == 2)
]
CASES += [(asked, "given", kind) for asked in ("products", "noise", "eig lanczos", "density") for kind in GIVEN]
CASES += [("trace probes", "given", "sparse"), ("reuse", "given", "dense")]


def answers(processes: Processes) -> dict:
    """All cases, and what is told of each problem; DTensors whole."""
    found = {(asked, of, name): one(asked, of, name, processes) for asked, of, name in CASES}
    for of, make in PROBLEMS.items():
        made = make(processes)
        told = evaluate(made)
        found[of] = {"loss": told.loss, "accuracy": told.accuracy or math.nan, "gradient": mean_gradient(made)}
    return {
        case: {what: full_tensor(x) if torch.is_tensor(x) else x for what, x in told.items()}
        for case, told in found.items()
    }


def one(asked: str, of: str, name: str, processes: Processes) -> dict:
    if of == "given":
        return TABLE[asked][0](given_operator(name, processes))
    return TABLE[asked][0](distributed(Curvature(PROBLEMS[of](processes), name)))


def main() -> None:
    processes = join(torch.device("cpu"))
    found = answers(processes)
    matrix = distributed(Curvature(problem(processes), "ggn"))
    held = random_vectors(matrix, 2, seeded())
    with pytest.raises(TypeError, match=r"dtype torch\.float64, got torch\.float32"):  # on every rank, or others wait
        matrix @ held[0].float()
    found["parts"] = {"held": processes.total(torch.eye(processes.count)[rank()] * held.to_local().numel())}
    found["alike"] = {"least": processes.least(1 + rank()), "mesh": str(held.placements)}
    if rank() == 0:
        torch.save(found, sys.argv[1])
    finish()


if __name__ == "__main__":
    main()
