"""Where eigenvectors lie: bounds that hold for eigenvectors that are off, and what the command and its report tell."""

import json

import numpy as np
import pytest
import torch
from helpers import seeded, uniform, with_spectrum

import spectra
from spectra.cli import run
from spectra.krylov.eigenpairs import eigenpairs
from spectra.spectrum.localisation import angle_bounds, localisation_of, vector_localisation


@pytest.mark.parametrize("angle", [1e-6, 0.01, 0.3, 1.2])
@pytest.mark.parametrize("local", [True, False])
def test_bounds_hold_for_turned_vectors(angle, local):
    """Shares and ratios of v and of u, at a known angle to it in a random direction."""
    random = np.random.default_rng(0)
    for _ in range(50):
        v, other = random.normal(size=(2, 40))
        v = v**5 if local else v
        v /= np.linalg.norm(v)
        other -= v * (v @ other)
        u = np.cos(angle) * v + np.sin(angle) * other / np.linalg.norm(other)
        there, here = (vector_localisation(w[None], {"a": 25, "b": 15}, np.array([np.sin(angle)])) for w in (u, v))
        assert np.abs(there.shares - here.shares).max() <= here.share_error[0]
        moved = abs(there.inverse_participation - here.inverse_participation)[0]
        assert moved <= here.inverse_participation_error[0]


def test_the_bound_of_a_share_is_met():
    first = np.array([[np.cos(0.2 + np.pi / 4), np.sin(0.2 + np.pi / 4)]])
    second = np.array([[np.cos(np.pi / 4 - 0.2), np.sin(np.pi / 4 - 0.2)]])
    there, here = (vector_localisation(w, {"a": 1, "b": 1}, np.sin([0.4])) for w in (first, second))
    assert np.abs(there.shares - here.shares).max() == pytest.approx(here.share_error[0])


def test_the_bound_of_a_ratio_is_met_to_first_order():
    """In the direction in which sum v_i^4 changes fastest."""
    v = np.random.default_rng(0).normal(size=30)
    v /= np.linalg.norm(v)
    w = v**3 - v * (v**4).sum()
    u = np.cos(1e-4) * v + np.sin(1e-4) * w / np.linalg.norm(w)
    there, here = (vector_localisation(x[None], {"": 30}, np.sin([1e-4])) for x in (u, v))
    moved = there.inverse_participation[0] - here.inverse_participation[0]
    assert 0.99 * here.inverse_participation_error[0] <= moved <= here.inverse_participation_error[0]


@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
def test_the_angle_to_the_true_eigenvector(which):
    spectrum = np.concatenate([[5, 4.9, 3, 3, -4.5, -4.2], uniform(54, -1, 1)])
    a = with_spectrum(spectrum)
    true_values, true = np.linalg.eigh(a.numpy())
    pairs = eigenpairs(a, k=5, which=which, tolerance=0.02, generator=seeded())
    turned = angle_bounds(pairs.values.numpy(), pairs.residuals.numpy(), which, 60, pairs.complement)
    nearest = np.abs(true_values - pairs.values.numpy()[:, None]).argmin(axis=1)
    sines = np.sqrt(np.clip(1 - (pairs.vectors.numpy() * true.T[nearest]).sum(axis=1) ** 2, 0, 1))
    told = np.isfinite(turned)
    assert (sines[told] <= turned[told] + 1e-7).all()
    assert told.sum() >= 1
    assert (turned[told] < 1).all()
    alone = angle_bounds(pairs.values.numpy(), pairs.residuals.numpy(), which, 60)
    inner = {"LM": [4], "LA": [4], "SA": [4], "BE": [2, 4]}[which]  # next to those that were not computed
    assert np.isnan(alone[inner]).all()
    everything = angle_bounds(true_values, np.full(60, 1e-9), which, 60)
    assert np.isnan(everything).sum() == 2  # the two copies of 3: nothing else is left out


def test_eigenvectors_of_two_copies_have_no_error_bound():
    pairs = eigenpairs(with_spectrum(np.array([3.0, 3, 2, 1, 0.5])), k=3, tolerance=1e-8, generator=seeded())
    found = localisation_of(pairs, "LM", None)
    assert np.isnan(found.share_error).tolist()[:2] == [True, True]
    assert found.layers == [""]


def test_the_command_tells_where_eigenvectors_lie(tmp_path, capfd):
    base = "eig --model spectra.demo:mlp --data digits --samples 60 --dtype float64 -k 4 --curvature ggn --out"
    assert run([*base.split(), str(tmp_path)]) == 0
    shown = capfd.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "localisation of each eigenvector u: sum of u_i^4" in shown
    tree = json.loads((tmp_path / "eig.json").read_text())["results"][0]["localisation"]
    record = spectra.load_result(tmp_path / "eig.json")
    (entry,) = record.results
    squares = entry.vectors**2
    np.testing.assert_allclose(tree["inverse_participation"], (squares**2).sum(axis=1), rtol=1e-9)
    first = 64 * 32 + 32
    parts = squares[:, :first].sum(axis=1), squares[:, first:-330].sum(axis=1), squares[:, -330:].sum(axis=1)
    np.testing.assert_allclose(tree["shares"], np.stack(parts, axis=1), rtol=1e-9)
    assert tree["layers"] == ["1", "3", "5"]
    assert spectra.localisation(record).share_error[:3] == pytest.approx(entry.localisation.share_error[:3])
    assert entry.changed(localisation=entry.localisation.changed(share_error=np.full(4, np.nan))).is_finite()
    problem = spectra.load_problem(model="spectra.demo:mlp", data="digits", samples=60, dtype="float64").problem
    matrix = spectra.Curvature(problem, "ggn")
    true = spectra.eigenpairs(matrix, k=4, tolerance=1e-10, generator=seeded()).vectors.cpu().numpy() ** 2
    moved = np.abs(true[:, :first].sum(axis=1) - parts[0])
    assert (moved <= np.nan_to_num(np.array(tree["share_error"], dtype=float), nan=1.0) + 1e-8).all()
    assert run(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    assert "the layer with the largest share" in (tmp_path / "page.html").read_text()


def test_an_unused_layer_holds_none(tmp_path, capfd):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.used, self.idle = nn.Linear(64, 10), nn.Linear(3, 2)\n"
        "    def forward(self, x):\n"
        "        return self.used(x.flatten(1))\n"
    )
    assert run(f"eig --model {tmp_path}/net.py:Net --data digits --samples 40 -k 2 --curvature ggn --json".split()) == 0
    found = json.loads(capfd.readouterr().out)["results"][0]["localisation"]
    assert found["layers"] == ["used", "idle"]
    assert [row[1] for row in found["shares"]] == pytest.approx([0, 0], abs=1e-6)


def test_random_eigenvectors_are_as_random_vectors():
    z = torch.randn(300, 300, generator=seeded(), dtype=torch.float64)
    found = localisation_of(eigenpairs(z + z.T, k=8, generator=seeded()), "LM", None)
    assert np.abs(found.inverse_participation - found.random).max() < 5 * found.random_deviation
