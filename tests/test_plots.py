"""Figures: every text is readable, every curve is there, and the same input gives the same bytes."""

import io
from itertools import combinations

import matplotlib
import numpy as np
import pytest
import torch
from test_density import low_rank, marchenko_pastur, network, semicircle_with_spikes, slq

from spectra.krylov.results import SpectralMeasure
from spectra.plots import asinh_ticks, density_figure, save_figure

GGN = slq(np.abs(network()), deflated=10)
FOUR = {
    "hessian": slq(network(), deflated=10),
    "ggn": GGN,
    "fisher": GGN,
    "fisher-empirical": slq(np.abs(network(seed=1)) / 5, deflated=10),
}
FIGURES = {
    "four": FOUR,
    "tiny": {name: SpectralMeasure(m.nodes * 1e-6, m.weights, m.dimension, m.deflated) for name, m in FOUR.items()},
    "both ends": {"hessian": slq(np.concatenate([network(), [-30.0, -20, -3]]), deflated=13)},
    "nothing deflated": {"ggn": slq(marchenko_pastur())},
    "atom at zero": {"fisher-batch": slq(low_rank(), deflated=10)},
    "spikes": {"hessian": slq(semicircle_with_spikes(), deflated=3)},
    "zero": {"hessian": slq(np.zeros(20))},
    "one point": {"hessian": slq(np.full(20, -3.0), probes=1)},
    "all known": {"gradient-covariance": slq(np.linspace(-1, 2, 30), deflated=30)},
    "long names": {f"gradient-covariance (epoch {epoch})": GGN for epoch in range(5)},
}


def texts(figure):
    """Every text on the page that a reader sees, with its box in pixels."""
    figure.draw_without_rendering()
    found = []
    for axes in [*figure.axes, *(inset for panel in figure.axes for inset in panel.child_axes)]:
        found += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            slack = 1e-9 * (high - low)
            ticks = [tick for tick in axis.get_major_ticks() if low - slack <= tick.get_loc() <= high + slack]
            found += [tick.label1 for tick in ticks if tick.label1.get_visible()] + [axis.offsetText]
    found += [text for legend in figure.legends for text in [legend.get_title(), *legend.get_texts()]]
    boxes = [(text.get_text(), text.get_window_extent()) for text in found if text.get_text().strip()]
    return [(text, box) for text, box in boxes if box.width > 1]  # offsets of shared axes are never drawn


@pytest.mark.parametrize(
    ("name", "log"),
    [(name, log) for name in ("four", "tiny", "long names") for log in (False, True)]
    + [(name, False) for name in ("both ends", "spikes", "all known", "zero")]
    + [(name, True) for name in ("nothing deflated", "atom at zero", "one point")],
)
def test_no_text_overlaps_another_or_leaves_the_page(name, log):
    figure = density_figure(FIGURES[name], log, title="The digits network at its end")
    boxes = texts(figure)
    for (one, box), (other, other_box) in combinations(boxes, 2):
        assert not box.padded(-1).overlaps(other_box.padded(-1)), f"{one!r} overlaps {other!r}"
    page = figure.bbox.padded(1)
    for text, box in boxes:
        inside = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        assert inside, f"{text!r} leaves the page"


@pytest.mark.parametrize("log", [False, True], ids=["linear", "asinh"])
def test_every_matrix_has_a_curve_a_band_and_a_name(log):
    figure = density_figure(FOUR, log, title="A title")
    top, known, bottom = figure.axes
    names = [text.get_text().split("\n")[0] for text in figure.legends[0].get_texts()]
    assert names == list(FOUR)
    assert figure.legends[0].get_title().get_text() == "A title"
    for panel in (top, bottom):
        assert len(panel.lines) == 4
        assert len(panel.collections) == 4
        assert len({line.get_color() for line in panel.lines}) == 4
        assert len({str(line._unscaled_dash_pattern) for line in panel.lines}) == 4
        widths = [line.get_linewidth() for line in panel.lines]
        assert widths == sorted(widths, reverse=True)  # what is drawn first shows around what is drawn last
    for line, measure in zip(known.lines, FOUR.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), measure.nodes[0, :10])
    assert "50" in {text.get_text() for text in known.texts}


def test_the_legend_of_an_asinh_figure_states_the_mass_near_zero():
    (entry,) = density_figure({"ggn": slq(low_rank(), deflated=10)}, log=True).legends[0].get_texts()
    stated = float(entry.get_text().split(": ")[1].split(" %")[0])
    assert stated == pytest.approx(92.5, abs=3)


def test_a_bulk_that_is_a_sliver_is_enlarged_and_the_outliers_stay_in_sight():
    top, _, bottom = density_figure(FOUR).axes
    assert [len(panel.child_axes) for panel in (top, bottom)] == [1, 1]
    (inset,) = top.child_axes
    assert len(inset.lines) == 4
    assert np.ptp(inset.get_xlim()) < 0.1 * np.ptp(top.get_xlim())
    peaks = [np.interp(50.0, line.get_xdata(), line.get_ydata()) for line in top.lines[:3]]
    assert min(peaks) > 2 * top.get_ylim()[0]
    assert not density_figure(FIGURES["spikes"]).axes[0].child_axes


@pytest.mark.parametrize(
    ("low", "high", "scale", "expected"),
    [
        (-0.02, 60, 1e-3, ["$-10^{-2}$", "0", "$10^{-2}$", "$10^{-1}$", "$10^{0}$", "$10^{1}$"]),
        (-1e-9, 1e9, 1e-9, ["0", "$10^{-6}$", "$10^{-3}$", "$10^{0}$", "$10^{3}$", "$10^{6}$"]),
        (0.05, 3, 0.15, ["0.1", "0.2", "0.5", "1", "2"]),
    ],
)
def test_asinh_ticks(low, high, scale, expected):
    major, _ = asinh_ticks(low, high, scale, labels=8)
    assert set(expected) <= set(major.values())
    assert len(major) <= 9
    places = np.arcsinh(np.array(list(major)) / scale)
    assert np.diff(places).min() >= np.ptp(np.arcsinh(np.array([low, high]) / scale)) / 8 * 0.99


@pytest.mark.parametrize(
    ("format", "starts"),
    [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")],
    ids=["png", "pdf", "svg"],
)
def test_the_same_measures_give_the_same_bytes(format, starts, tmp_path):
    buffer, path = io.BytesIO(), tmp_path / f"figure.{format}"
    for target, known in ((buffer, format), (path, None)):
        save_figure(density_figure(FIGURES["atom at zero"], log=True, title="Twice"), target, known)
    written = buffer.getvalue()
    assert written == path.read_bytes()
    assert written.startswith(starts)
    if format == "svg":
        assert b"fisher-batch" in written
    if format == "pdf":
        assert b"/Type3" not in written


def test_a_reader_s_own_settings_are_neither_used_nor_changed():
    def png():
        buffer = io.BytesIO()
        save_figure(density_figure(FIGURES["zero"], log=True), buffer, "png")
        return buffer.getvalue()

    expected = png()
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "savefig.dpi": 50}):
        mine = dict(matplotlib.rcParams)
        assert png() == expected
        assert dict(matplotlib.rcParams) == mine


def test_probes_of_a_float32_run_on_another_device_are_drawn_too():
    measure = FOUR["hessian"]
    short = SpectralMeasure(measure.nodes.to(torch.float32), measure.weights.to(torch.float32), 1000, 10)
    assert density_figure({"hessian": short}).axes
