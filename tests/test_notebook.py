"""What results and problems say of themselves: short texts, and tables and figures in a notebook."""

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import nn

import spectra
from spectra.run.listener import Caller

DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(30, 4, generator=DRAW), torch.randint(3, (30,), generator=DRAW)
LONGEST = 300  # characters


def made() -> tuple:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), nn.CrossEntropyLoss(), (X, Y)


class Reader(HTMLParser):
    """The cells of the tables, the images and the tags that are open, of some HTML."""

    def __init__(self, text: str):
        super().__init__()
        self.cells: list[str] = []
        self.images: list[bytes] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(base64.b64decode(dict(attrs)["src"].partition("base64,")[2], validate=True))
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


@pytest.fixture(scope="module")
def results():
    return {
        "eig": spectra.eig(*made(), k=30),
        "trace": spectra.trace(*made()),
        "density": spectra.density(*made(), steps=10, probes=3),
    }


def test_results_are_short_and_have_their_numbers(results):
    texts = {name: repr(result) for name, result in results.items()}
    assert all(len(text) < LONGEST and "\n" not in text for text in texts.values()), texts
    first, error = results["eig"].values[0], results["eig"].residuals[0]
    assert f"hessian: {first:.4g} ± {error:.1g}" in texts["eig"]
    assert f"{results['trace'].trace:.6g} ± {results['trace'].standard_error:.2g}" in texts["trace"]


def test_tables_of_a_notebook(results):
    eig = Reader(results["eig"]._repr_html_())
    assert eig.cells[:2] == ["eigenvalue", "residual"]
    values = np.array([float(cell) for cell in eig.cells[2:42:2]])
    np.testing.assert_allclose(values, results["eig"].values[:20], rtol=1e-7)
    assert eig.cells[42] == "... 10 more"
    trace = Reader(results["trace"]._repr_html_())
    assert float(trace.cells[3]) == pytest.approx(results["trace"].trace, rel=1e-7)
    assert not eig.images
    assert not trace.images


def test_a_density_shows_its_figure(results):
    for png in (Reader(results["density"]._repr_html_()).images[0], results["density"]._repr_png_()):
        picture = matplotlib.image.imread(io.BytesIO(png))
        assert picture.shape[1] > 1000
        assert picture.std() > 0.05  # it is no empty page
    assert results["density"]._repr_png_() == results["density"]._repr_png_()
    wrong = results["density"].changed(nodes=results["density"].nodes * np.nan)
    assert wrong._repr_png_() is None
    assert not Reader(wrong._repr_html_()).images


def test_figures_show_themselves(results):
    eig, density = results["eig"], results["density"]
    figures = [
        spectra.density_figure({"hessian": density.measure()}),
        spectra.eigenvalue_figure({"hessian": eig}),
    ]
    assert figures[0]._repr_png_() == density._repr_png_()
    for figure in figures:
        assert matplotlib.image.imread(io.BytesIO(figure._repr_png_())).std() > 0.05


def test_a_saved_result_shows_all_its_matrices(tmp_path):
    spectra.density(*made(), curvature=["hessian", "ggn"], steps=5, probes=2, out=tmp_path)
    record = spectra.load_result(tmp_path)
    assert len(Reader(record._repr_html_()).images) == 2
    assert len(repr(record)) < 2 * LONGEST
    assert len(repr(record.problem)) < LONGEST
    assert "(67 of 67 parameters), " in repr(record.problem)


def test_names_are_no_html(results):
    html = results["trace"].changed(curvature="<img src=x>", method="<b>")._repr_html_()
    assert "<b>" not in html
    assert "<img" not in html


def test_what_methods_return_is_short():
    """One line, whatever the size of the matrix and of its vectors."""
    problem = spectra.load_problem(model=made()[0], loss=made()[1], data=made()[2]).problem
    matrices = {name: spectra.Curvature(problem, name) for name in ("hessian", "ggn")}
    pairs = spectra.eigenpairs(matrices["ggn"], 4)
    layers = spectra.layers(problem)
    found = [
        pairs,
        spectra.spectral_measure(matrices["ggn"], probes=2, steps=5),
        spectra.compare(matrices, k=2),
        layers,
        layers.blocks[0],
        spectra.Deflated(matrices["ggn"], pairs.vectors.T),
        spectra.CrossEntropy(torch.ones(1000)),
    ]
    for result in found:
        text = repr(result)
        assert text.startswith(type(result).__name__)
        assert len(text) < 1.5 * LONGEST
        assert "\n" not in text
        assert "tensor(" not in text
    assert f"values=[{pairs.values[0]:.4g}, " in repr(pairs)
    assert f"vectors=<4 x {problem.size}>" in repr(pairs)


def test_problems_batches_and_matrices_are_short():
    problem = spectra.load_problem(model=made()[0], data=made()[2]).problem
    matrix = spectra.Curvature(problem, "ggn")
    assert repr(problem) == (
        "Problem(Sequential, cross_entropy: 67 parameters, 30 examples in 1 batch, torch.float32 on cpu)"
    )
    assert repr(problem.batches[0]) == "Batch(30 examples)"
    assert repr(matrix) == f"Curvature(ggn of {problem!r}; products: not yet made)"
    matrix @ torch.ones(67)
    assert "double backward, 1 of 1 batches kept" in repr(matrix)


def test_pyplot_and_its_windows_are_left_alone():
    script = """
import sys, torch, spectra
result = spectra.density(torch.nn.Linear(2, 2), "mse", (torch.ones(3, 2), torch.ones(3, 2)), steps=2, probes=2)
assert "matplotlib" not in sys.modules
assert result._repr_png_()
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def test_progress_is_one_line_that_goes(capsys, monkeypatch):
    monkeypatch.setattr("spectra.run.listener.EVERY", 0)
    spectra.eig(*made(), k=2, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\n" not in err
    lines = [line.rstrip() for line in err.split("\r")]
    assert any(re.fullmatch(r"hessian: \d+ products.*, \d+ s", line) for line in lines), lines
    assert "loading: reading the data, 0 s" in lines
    assert max(map(len, lines)) <= 78
    assert lines[-1] == ""
    shown = ""
    for line in err.split("\r"):  # as a terminal shows it
        shown = line + shown[len(line) :]
    assert not shown.strip()


@pytest.mark.parametrize("progress", [None, False])
def test_nothing_is_said_otherwise(progress, capsys):
    spectra.trace(*made(), probes=2, progress=progress)
    assert capsys.readouterr() == ("", "")


def test_a_line_is_written_seldom_and_ends_where_work_fails(capsys):
    def failing():
        with Caller(True).work("hessian") as work:
            for products in range(100):
                work(products=products)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    err = capsys.readouterr().err
    assert err.count("product") <= 2
    assert err.endswith(" \r")


def test_a_progress_that_is_no_function_is_named():
    with pytest.raises(spectra.SpectraError, match=r"^`progress` 3: .* True, or a function \(name, \*\*numbers\)"):
        spectra.eig(*made(), progress=3)
