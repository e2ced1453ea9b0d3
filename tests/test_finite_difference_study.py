"""scripts/finite_differences.py on a few digits: the kinks that it counts, the slopes that it fits, its page."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from scripts import finite_differences as study
from spectra.curvature.finite_differences import FiniteDifferences

HERE = Path(__file__).parent.parent / study.OUT


def test_kinks_are_the_units_that_change_sign():
    model = study.trained(study.NETWORKS["ReLU"], epochs=0)
    problem = study.problem_of(model, torch.float64, samples=20)
    vector = torch.randn(problem.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, last = (layer for layer in problem.model if isinstance(layer, nn.Linear) and layer.out_features == 32)
    (x,) = (batch.inputs.flatten(1) for batch in problem.batches)
    parts = dict(zip(problem.parameters, problem.tensors(vector), strict=True))

    def signs(step):
        one = x @ (first.weight + step * parts["1.weight"]).T + first.bias + step * parts["1.bias"]
        two = one.clamp(min=0) @ (last.weight + step * parts["3.weight"]).T + last.bias + step * parts["3.bias"]
        return torch.cat([one, two]) > 0

    for form, behind in (("central", -1.0), ("forward", 0.0)):
        matrix = FiniteDifferences(problem, form, 0.05)
        step = matrix.length / vector.norm().item()
        wanted = int((signs(step) != signs(behind * step)).sum())
        assert study.crossed(problem, vector, matrix) == wanted > 0


def test_slopes_are_those_of_powers():
    steps = np.logspace(-6, 0, 25)
    rows = [{"step": step, "error": (30 * step) ** 2} for step in steps]
    assert study.slope(rows, 1e-5, 1e-2) == pytest.approx(2, abs=1e-9)
    assert study.sharpness(rows, 2) == pytest.approx(30)


def test_errors_are_measured_against_exact_products():
    steps = [1e-3, 1e-2]
    rows = list(study.measure(steps, vectors=1, epochs=0, samples=20))
    assert len(rows) == 2 * 2 * 2 * 2 * len(steps)
    for form, power in (("central", 2), ("forward", 1)):
        some = study.pick(rows, network="tanh", dtype="float64", form=form, along="random")
        assert some[1]["error"] / some[0]["error"] == pytest.approx(10**power, rel=0.1)
        assert not any(row["kinks"] for row in some)


def test_the_page_is_what_the_table_says():
    rows, kept = study.read(HERE / "errors.csv"), json.loads((HERE / "findings.json").read_text())
    found = study.findings(rows)
    assert study.page(found, rows, kept["made"]) == (HERE / "README.md").read_text()
    assert len(study.figure(rows).axes) == 4
