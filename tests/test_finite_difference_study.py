"""scripts/finite_differences.py on a few digits: the kinks that it counts, the slopes that it fits, its page."""

import numpy as np
import pytest
import torch
from torch import nn

from scripts import finite_differences as study
from spectra.curvature.finite_differences import FiniteDifferences


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


def test_a_small_study_ends_in_a_page(tmp_path):
    steps = [10.0**i for i in range(-12, 1)]
    rows = list(study.measure(steps, vectors=1, epochs=1, samples=20))
    assert len(rows) == 2 * 2 * 2 * 2 * len(steps)
    study.save(tmp_path, rows, study.made(1.0))
    text = (tmp_path / "README.md").read_text()
    assert "Without kinks the error is what theory says" in text
    assert max(map(len, (line for line in text.splitlines() if line[:1] != "|"))) <= 120
    found = study.finding(study.findings(rows), network="tanh", dtype="float64", form="central", along=study.ALONG[0])
    assert found["truncation slope"] == pytest.approx(2, abs=0.1)
    assert found["rounding slope"] == pytest.approx(-1, abs=0.4)
    assert (tmp_path / "errors.png").stat().st_size > 10_000
