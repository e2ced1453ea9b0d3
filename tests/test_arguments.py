"""Public functions refuse wrong arguments as Python does: a ValueError that names the argument, and what is allowed."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import spectra
from spectra.errors import ArgumentError
from spectra.krylov.dense import dense_eigenpairs
from spectra.krylov.gram import gram_eigenpairs
from spectra.krylov.power import power_iteration

A = torch.diag(torch.arange(1.0, 11.0, dtype=torch.float64))
MODEL = nn.Linear(2, 3)
BATCHES = spectra.cut_batches(torch.ones(4, 2), torch.tensor([0, 1, 2, 0]), torch.arange(4), 2)
PROBLEM = spectra.Problem(MODEL, spectra.CrossEntropy(), BATCHES)

COUNTS = [0, -1, 2.5, "3", True, math.nan]
BASES = [-1, 2.5, "3", True]
TOLERANCES = [-1e-3, math.nan, "0.1", None, 10**400]
SEEDS = [-1, 0.5, "0", None, 2**63]
GENERATORS = [0, "cpu", np.random.default_rng(0)]
MATRICES = [
    torch.ones(3, 4),
    torch.ones(3),
    torch.zeros(0, 0),
    np.array([["a", "b"], ["b", "a"]]),
    torch.ones(3, 3, dtype=torch.complex64),
    torch.triu(torch.ones(3, 3)),
    np.full((3, 3), np.nan),
    [[1.0]],
    None,
]
SEARCH = {
    "operator": MATRICES,
    "k": [*COUNTS, None, 11],
    "which": ["SM", "lm", "", None, 0],
    "tolerance": TOLERANCES,
    "max_products": COUNTS,
    "seed": SEEDS,
    "generator": GENERATORS,
}
ESTIMATE = {
    "operator": MATRICES,
    "rtol": TOLERANCES,
    "probes": COUNTS,
    "known": [math.nan, "0", None],
    "max_products": COUNTS,
    "seed": SEEDS,
    "generator": GENERATORS,
}
NAMED = {"model": "spectra.demo:mlp", "data": "digits", "samples": 9}
PARTS = {"model": MODEL, "loss": spectra.CrossEntropy(), "batches": BATCHES}
TABLE = {  # of each function: arguments that do, and for each name values that do not
    spectra.eigenpairs: ({"operator": A, "k": 2}, SEARCH | {"largest_basis": BASES}),
    power_iteration: ({"operator": A, "k": 2}, SEARCH | {"which": ["SM", None]}),
    dense_eigenpairs: ({"operator": A, "k": 2}, {name: SEARCH[name] for name in list(SEARCH)[:4]}),
    gram_eigenpairs: (
        {"operator": spectra.Curvature(PROBLEM, "ggn"), "k": 2},
        {"k": [*COUNTS, 10], "which": SEARCH["which"], "tolerance": TOLERANCES, "seed": SEEDS},
    ),
    spectra.hutchinson: ({"operator": A, "probes": 4}, ESTIMATE),
    spectra.hutch_plus_plus: ({"operator": A, "probes": 4}, ESTIMATE),
    spectra.xtrace: ({"operator": A, "probes": 4}, ESTIMATE),
    spectra.spectral_measure: (
        {"operator": A, "probes": 2, "steps": 3},
        {
            "operator": MATRICES,
            "probes": [*COUNTS, None],
            "steps": [*COUNTS, None],
            "max_products": COUNTS,
            "largest_basis": BASES,
            "seed": SEEDS,
            "generator": GENERATORS,
        },
    ),
    spectra.check_operator: (
        {"operator": A},
        {
            "operator": [one for one in MATRICES if one is not MATRICES[5] and one is not MATRICES[6]],
            "seed": SEEDS,
            "generator": GENERATORS,
        },
    ),
    spectra.to_scipy: ({"operator": A}, {"operator": MATRICES}),
    spectra.compare: (
        {"operators": {"a": A, "b": 2 * A}, "k": 2, "probes": 2, "steps": 3},
        {
            "operators": [{"a": A, "b": matrix} for matrix in MATRICES] + [{"a": A, "b": torch.eye(3)}, [A, A], None],
            "k": [*COUNTS, None, 11],
            "probes": [*COUNTS, None],
            "steps": [-1, 2.5, None],
            "tolerance": TOLERANCES,
            "max_products": COUNTS,
            "seed": SEEDS,
            "generator": GENERATORS,
        },
    ),
    spectra.layers: (
        {"problem": PROBLEM},
        {
            "by": ["layers", "", None],
            "k": [-1, 1.5, None],
            "method": ["dense", None],
            "rtol": TOLERANCES,
            "tolerance": TOLERANCES,
            "steps": [-1, 2.5, None],
            "probes": [*COUNTS, None],
            "max_products": COUNTS,
            "seed": SEEDS,
            "generator": GENERATORS,
        },
    ),
    spectra.Curvature: (
        {"problem": PROBLEM, "name": "ggn"},
        {"memory": [-1, 0.5, "2GiB"], "products": [-1, 0.5, None]},
    ),
    spectra.Problem: (
        PARTS,
        {
            "model": [nn.Linear, None, torch.ones(3)],
            "loss": [nn.CrossEntropyLoss(), spectra.CrossEntropy, "mse", None],
            "batches": [[], None, [(1, 2)], torch.ones(3)],
            "weight_decay": [math.nan, math.inf, "0.1", None],
            "seed": SEEDS,
            "mc_samples": [*COUNTS, None],
        },
    ),
    spectra.cut_batches: (
        {"inputs": torch.ones(4), "targets": torch.ones(4), "indices": torch.arange(4), "size": 2},
        {"size": [*COUNTS, None]},
    ),
    spectra.CustomLoss: ({"function": nn.functional.mse_loss}, {"function": [None, "mse", 3]}),
    spectra.CrossEntropy: ({}, {"label_smoothing": [-0.1, 1.5, math.nan]}),
    spectra.load_problem: (
        NAMED,
        {
            "batch_size": COUNTS,
            "memory": [-1, 0.5, "2GiB"],
            "mc_samples": [*COUNTS, None],
            "weight_decay": [math.nan, math.inf, "0.1"],
            "device": ["gpu", ""],
            "dtype": ["float16", "double"],
            "seed": SEEDS,
            "params": ["*", "0.weight"],
        },
    ),
}
CASES = [
    pytest.param(function, good, name, values, id=f"{function.__name__}-{name}")
    for function, (good, bad) in TABLE.items()
    for name, values in bad.items()
]


@pytest.mark.parametrize(("function", "good", "name", "values"), CASES)
def test_wrong_arguments_are_refused(function, good, name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^`{name}(`|\[)") as caught:
            function(**good | {name: value})
        assert isinstance(caught.value, spectra.SpectraError)


@pytest.mark.parametrize("function", [one for one in TABLE if one is not spectra.load_problem])
def test_right_arguments_are_taken(function):
    function(**TABLE[function][0])


def test_the_message_says_what_came_and_what_is_allowed():
    with pytest.raises(ArgumentError, match=r"^`k` 0: expected an integer of 1 or more$"):
        spectra.eigenpairs(A, 0)
    with pytest.raises(ArgumentError, match=r"^`which` 'SM': expected one of LM, LA, SA, BE$"):
        spectra.eigenpairs(A, 1, which="SM")
    with pytest.raises(ArgumentError, match=r"^`tolerance` nan: expected a number >= 0$"):
        spectra.eigenpairs(A, 1, tolerance=math.nan)
    with pytest.raises(ArgumentError, match=r"^`operator`: expected a square matrix, .*, got the shape \(2, 3\)$"):
        spectra.xtrace(torch.ones(2, 3))


@pytest.mark.parametrize(
    "function",
    [
        lambda **draws: spectra.eigenpairs(A, 2, tolerance=1e-3, max_products=5, **draws).values,
        lambda **draws: spectra.hutchinson(A + 1, probes=5, **draws).value,
        lambda **draws: spectra.hutch_plus_plus(A + 1, probes=4, **draws).value,
        lambda **draws: spectra.xtrace(A + 1, probes=3, **draws).value,
        lambda **draws: spectra.spectral_measure(A, probes=1, steps=3, max_products=6, **draws).nodes,
        lambda **draws: spectra.check_operator(A.float(), **draws),
        lambda **draws: spectra.compare({"a": A, "b": A @ A}, k=1, probes=2, steps=0, **draws).pairs[0].cosine,
    ],
)
def test_seed_is_zero_unless_given_and_a_generator_wins(function):
    def drawn(seed):
        return function(generator=torch.Generator().manual_seed(seed))

    assert str(function()) == str(drawn(0))
    assert str(function(seed=7)) == str(drawn(7))
    assert str(function(seed=3, generator=torch.Generator().manual_seed(7))) == str(drawn(7))


def test_numbers_of_numpy_are_taken():
    pairs = spectra.eigenpairs(A, np.int64(2), tolerance=np.float64(1e-6))
    assert torch.equal(pairs.values, spectra.eigenpairs(A, 2, tolerance=1e-6).values)
