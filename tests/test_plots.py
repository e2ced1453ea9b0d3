"""Figures: every text is readable, every curve is there and can be told apart, the same input gives the same bytes."""

import io
from itertools import combinations, pairwise

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.transforms import Bbox
from test_density import low_rank, marchenko_pastur, network, semicircle_with_spikes, slq

import spectra
from spectra.errors import ArgumentError, SpectraError
from spectra.krylov.results import Eigenpairs, SpectralMeasure, TraceEstimate
from spectra.plots import density_figure, eigenvalue_figure, save_figure, trace_figure
from spectra.plots.axes import asinh_ticks
from spectra.plots.landscape import landscape_figures
from spectra.plots.layers import layers_figures
from spectra.plots.style import COLOURS, MOST_CURVES, line_style, marker_style, shortened, text_width, wrapped
from spectra.records.fields import encode
from spectra.records.record import Record

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


def box_of(text):
    """The box of a text in pixels; of a slanted one, as along a 3D axis, that of its middle."""
    box = text.get_window_extent()
    if text.get_rotation() % 90 == 0:
        return box
    x, y, half = *((box.p0 + box.p1) / 2), text.get_fontsize() / 2 * text.figure.dpi / 72
    return Bbox([[x - half, y - half], [x + half, y + half]])


def every_axes(figure):
    """The visible panels of a figure, and those inside them."""
    panels = [*figure.axes, *(inset for panel in figure.axes for inset in panel.child_axes)]
    return [axes for axes in panels if axes.get_visible()]


def shown_ticks(axis):
    """The ticks within the limits of an axis whose labels are drawn."""
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    ticks = [tick for tick in axis.get_major_ticks() if low - slack <= tick.get_loc() <= high + slack]
    return [tick for tick in ticks if tick.label1.get_visible()]


def texts(figure):
    """Every text on the page that a reader sees, with its box in pixels."""
    figure.draw_without_rendering()
    found = []
    for axes in every_axes(figure):
        found += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        if axes.get_legend():
            found += axes.get_legend().get_texts()
        for axis in (axes.xaxis, axes.yaxis):
            found += [*(tick.label1 for tick in shown_ticks(axis)), axis.offsetText]
    for part in [figure, *figure.subfigs]:
        found += [text for text in (part._suptitle, part._supxlabel, part._supylabel) if text]
        found += [text for legend in part.legends for text in [legend.get_title(), *legend.get_texts()]]
    boxes = [(text.get_text(), box_of(text)) for text in found if text.get_text().strip()]
    return [(text, box) for text, box in boxes if box.width > 1]  # offsets of shared axes are never drawn


def pairs(values, residual=1e-3):
    """Eigenpairs of which a figure sees values and residuals."""
    values = torch.tensor(values, dtype=torch.float64)
    residuals = torch.full_like(values, residual)
    return Eigenpairs(values, values[:, None], residuals, residuals, products=0, converged=True)


def estimate(value, error=0.5):
    return TraceEstimate(value, error, products=0, converged=True)


EIG = {
    "hessian": pairs([9.0, -4, 2, 1, -0.5]),
    "ggn": pairs([8.5, 4, 2, 1, 0]),
    **{f"checkpoint {epoch}, fisher-empirical": pairs([5.0 / epoch, 2, 1e-3]) for epoch in range(1, 9)},
}
TRACES = {f"checkpoint {epoch}, gradient-covariance": estimate(3.0 * epoch - 7) for epoch in range(6)}
TITLE = "The digits network at its end, after thirty epochs of stochastic gradient descent with momentum"
OTHERS = [
    (figure, answers, log)
    for figure, answers in ((eigenvalue_figure, EIG), (trace_figure, TRACES))
    for log in (False, True)
]


def assert_readable(figure):
    boxes = texts(figure)
    for (one, box), (other, other_box) in combinations(boxes, 2):
        assert not box.padded(-1).overlaps(other_box.padded(-1)), f"{one!r} overlaps {other!r}"
    for axes in every_axes(figure):
        labels = [box_of(tick.label1) for tick in shown_ticks(axes.xaxis) if tick.label1.get_text()]
        row = sorted(labels, key=lambda box: box.x0)
        assert all(right.x0 - left.x1 > 1.5 for left, right in pairwise(row)), "tick labels without a space between"
    page = figure.bbox.padded(1)
    for text, box in boxes:
        inside = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        assert inside, f"{text!r} leaves the page"


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "log", "width"),
    [(name, log, 6.5) for name in ("four", "tiny", "long names") for log in (False, True)]
    + [(name, False, 6.5) for name in ("both ends", "spikes", "all known", "zero")]
    + [(name, True, 6.5) for name in ("nothing deflated", "atom at zero", "one point")]
    + [(name, log, 3.25) for name in ("four", "long names") for log in (False, True)]
    + [("both ends", True, 3.25), ("tiny", True, 3.25), ("nothing deflated", True, 3.25), ("four", True, 10.0)],
)
def test_no_text_of_densities_overlaps_another_or_leaves_the_page(name, log, width):
    assert_readable(density_figure(FIGURES[name], log, title=TITLE, width=width))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("width", [3.25, 6.5])
@pytest.mark.parametrize(("draw", "answers", "log"), OTHERS)
def test_nor_does_that_of_eigenvalues_and_traces(draw, answers, log, width):
    assert_readable(draw(answers, log, title=TITLE, width=width))


def recorded(command, entries):
    return Record.of({"command": command, "problem": {}, "results": encode(entries)})


def along_random(matrix):
    """What `landscape` records of a line and its spread."""
    t = np.linspace(-1, 1, 5)
    line = {"along": "random 1", "t": t, "loss": 2.3 + t**2, "prediction": 2.3 + 2 * t**2, "departure": -(t**2)}
    line["holds"] = {"share": 0.1, "start": -0.5, "stop": 0.5}
    bend = {"mean": 4.0, "standard_error": 0.5, "quantiles": [0.01, 0.1, 1.0, 10.0, 30.0]}
    direction = {"name": "random 1", "eigenvalue": None, "norm": 2.46, "curvature": 0.02}
    spread = [{"along": "random 1", "curvature": bend}]
    return {"curvature": matrix, "directions": [direction], "lines": [line], "planes": [], "spread": spread}


def test_nor_does_that_of_a_landscape_of_matrices_with_long_names():
    entries = [along_random(matrix) for matrix in ("gradient-covariance", "fisher-empirical", "fisher-mc", "ggn")]
    assert_readable(landscape_figures(recorded("landscape", entries))["landscape"])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("size", [1.0, 1e-5])
@pytest.mark.parametrize("ratio", [31, 50, 99, 1e4])
def test_nor_does_that_of_the_narrow_columns_of_layers(ratio, size):
    values = size * np.geomspace(0.0015, 0.0015 * ratio, 14)
    blocks = [
        {"name": f"encoder.layers.{i}.self_attention", "share": 0.07, "share_error": 0.001, "trace": value}
        | {"mean": value, "mean_error": 0, "eigenvalues": [value], "residuals": [0], "mass": 0.07}
        for i, value in enumerate(values)
    ]
    entry = {"curvature": "ggn", "by": "layer", "eigenvalues": [2 * values[-1]], "residuals": [0], "blocks": blocks}
    figure = layers_figures(recorded("layers", [entry]))["layers"]
    assert_readable(figure)
    mean = figure.axes[1]
    low, high = mean.get_xlim()
    assert sum(low <= tick <= high for tick in mean.get_xticks()) >= (2 if size == 1 else 1)


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


def test_a_narrow_asinh_axis_is_labelled_on_either_side_of_zero():
    major, _ = asinh_ticks(-0.3, 5, 7.7e-4, labels=4.1)
    assert list(major.values()) == ["$-10^{-1}$", "0", "$10^{-1}$"]


def test_long_names_take_a_quarter_of_a_column_at_most():
    names = {f"{name}, checkpoint-0001": measure for name, measure in FOUR.items()}
    rug = density_figure(names, width=3.25).axes[1]
    assert max(text_width(label.get_text(), 7) for label in rug.get_yticklabels()) <= 0.25 * 72 * 3.25


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


def lightness(rgb):
    """CIE L*, of 100, and linear rgb before it: sRGB (IEC 61966-2-1), D65."""
    luminance = linear(rgb) @ np.array([0.2126, 0.7152, 0.0722])
    return 116 * np.cbrt(luminance) - 16 if luminance > 216 / 24389 else luminance * 24389 / 27


def linear(rgb):
    rgb = np.array(rgb)
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize(
    "style", [lambda index: line_style(index, MOST_CURVES), marker_style], ids=["lines", "markers"]
)
def test_any_two_curves_differ_in_their_pattern_or_in_grey(style):
    for one, other in combinations(map(style, range(MOST_CURVES)), 2):
        patterns = [(str(s["linestyle"]), s.get("marker")) for s in (one, other)]
        grey = [lightness(matplotlib.colors.to_rgb(s["color"])) for s in (one, other)]
        assert patterns[0] != patterns[1] or abs(grey[0] - grey[1]) >= 12


# Machado, Oliveira, Fernandes 2009: what is seen without one of the cones, in linear rgb.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def lab(rgb):
    """CIE L*a*b* of linear rgb."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    x, y, z = np.cbrt(np.clip(xyz / [0.9505, 1, 1.089], 0, 1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_the_colours_stay_apart_for_the_colour_blind(blindness):
    seen = [lab(np.array(BLINDNESS[blindness]) @ linear(matplotlib.colors.to_rgb(colour))) for colour in COLOURS]
    assert min(np.linalg.norm(one - other) for one, other in combinations(seen, 2)) > 10  # 2 is just noticeable


def drawn(axes):
    """(x, y, error, filled) of every point with its error bar."""
    for points, _, (bar,) in (container.lines for container in axes.containers):
        for x, y, segment in zip(*points.get_data(), bar.get_segments(), strict=True):
            yield x, y, np.ptp(segment, axis=0).max() / 2, points.get_markerfacecolor() != "white"


def test_every_eigenvalue_stands_at_its_rank_with_its_residual():
    (axes,) = eigenvalue_figure({"hessian": EIG["hessian"], "ggn": EIG["ggn"]}).axes
    points = sorted(drawn(axes))
    assert [round(x) for x, *_ in points] == [rank for rank in range(1, 6) for _ in range(2)]
    assert [y for _, y, *_ in points] == [9, 8.5, -4, 4, 2, 2, 1, 1, -0.5, 0]
    np.testing.assert_allclose([error for _, _, error, _ in points], 1e-3, rtol=1e-9)
    assert all(filled for *_, filled in points)


def test_on_a_logarithmic_axis_negative_eigenvalues_are_hollow_and_zeros_are_counted():
    figure = eigenvalue_figure({"hessian": EIG["hessian"], "ggn": EIG["ggn"]}, log=True)
    points = [(y, filled) for _, y, _, filled in sorted(drawn(figure.axes[0]))]
    assert points == [
        (9, True),
        (8.5, True),
        (4, False),
        (4, True),
        (2, True),
        (2, True),
        (1, True),
        (1, True),
        (0.5, False),
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["hessian", "ggn (1 zero)", "hollow: λ < 0"]
    low, high = figure.axes[0].get_ylim()
    assert 0.3 < low < 0.5 < 9 < high < 15


def test_a_trace_is_a_row_with_two_standard_errors_to_either_side():
    traces = {"hessian": estimate(-3.0, 0.25), "ggn": estimate(8.0, 0.0)}
    (axes,) = trace_figure(traces).axes
    assert list(drawn(axes)) == [(-3, 0, 0.5, True), (8, 1, 0, True)]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["hessian", "ggn"]
    assert axes.get_xlabel() == "trace ± 2 standard errors"
    (axes,) = trace_figure(traces, log=True).axes
    assert list(drawn(axes)) == [(3, 0, 0.5, False), (8, 1, 0, True)]
    assert "hollow: negative" in axes.get_xlabel()


@pytest.mark.parametrize(("draw", "answer"), [(eigenvalue_figure, pairs([0.0, 0])), (trace_figure, estimate(0.0, 0.0))])
def test_zeros_alone_have_no_logarithmic_axis(draw, answer):
    with pytest.raises(SpectraError, match=r"^`log`: every value is zero"):
        draw({"ggn": answer}, log=True)
    draw({"ggn": answer})


@pytest.mark.parametrize("scale", [1e-12, 1.0])
@pytest.mark.parametrize("decades", [0.1, 1.9, 6])
def test_a_logarithmic_axis_has_labels_enough(scale, decades):
    values = (scale * np.geomspace(10**decades, 1, 5)).tolist()
    figure = eigenvalue_figure({"ggn": pairs(values, scale * 1e-3)}, log=True, width=3.25)
    figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    low, high = axis.get_view_interval()
    assert (
        2 <= sum(low <= tick.get_loc() <= high and bool(tick.label1.get_text()) for tick in axis.get_major_ticks()) <= 8
    )
    assert_readable(figure)


def test_long_names_are_cut_where_they_stay_different():
    for names in (list(TRACES), [f"{'long-' * 9}{end}" for end in "abc"], [f"{start}{'-long' * 9}" for start in "abc"]):
        short = shortened(names, 90, 8)
        assert max(text_width(name, 8) for name in short) <= 90 < min(text_width(name, 8) for name in names)
        assert len(set(short)) == len(names)
    assert shortened(["ggn", r"$\lambda$" * 12], 90, 8) == ["ggn", r"$\lambda$" * 12]


def test_long_titles_are_broken_into_lines():
    lines = wrapped(TITLE, 150, 10).split("\n")
    assert " ".join(lines) == TITLE
    assert max(text_width(line, 10) for line in lines) <= 150


@pytest.mark.parametrize(
    ("draw", "answers", "format"), [(eigenvalue_figure, EIG, "pdf"), (trace_figure, TRACES, "svg")]
)
def test_eigenvalues_and_traces_give_the_same_bytes_too(draw, answers, format):
    written = [io.BytesIO(), io.BytesIO()]
    for buffer in written:
        save_figure(draw(answers, log=True), buffer, format)
    assert written[0].getvalue() == written[1].getvalue()


def test_letters_are_embedded_in_a_pdf_and_outlines_in_an_svg():
    pdf, svg = io.BytesIO(), io.BytesIO()
    for buffer, format in ((pdf, "pdf"), (svg, "svg")):
        save_figure(eigenvalue_figure(EIG), buffer, format)
    assert b"/FontFile2" in pdf.getvalue()
    assert b"/Type3" not in pdf.getvalue()
    assert b"<text" not in svg.getvalue()


# Results of the commands as functions


def test_figures_take_the_results_of_the_commands():
    matrix = torch.diag(torch.arange(1.0, 9.0))
    density, trace = spectra.density(matrix, steps=4, probes=2), spectra.trace(matrix)
    drawn = trace_figure({"a": trace}).axes[0].containers[0].lines[0]
    assert drawn.get_xdata() == [trace.trace]
    curves = [density_figure({"a": one}).axes[0].lines[0].get_xydata() for one in (density, density.measure())]
    assert np.array_equal(*curves)


@pytest.mark.parametrize("draw", [density_figure, trace_figure, eigenvalue_figure])
def test_a_figure_of_results_without_names_is_refused(draw):
    with pytest.raises(ArgumentError, match=r"give results by name, as \{'a': result\}"):
        draw([1.0])
    with pytest.raises(ArgumentError, match="there is nothing to draw"):
        draw({})
