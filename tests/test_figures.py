"""Every kind of figure at the width of a page and of a column: no text overlaps another one or leaves the figure."""

from pathlib import Path

import matplotlib.text
import numpy as np
import pytest
from test_plots import assert_readable

from spectra.plots.saved import KINDS, WHOLE, read_modest, record_figures, saved_figure
from spectra.plots.style import COLUMN, PAGE, Figure, head, lay_out_legend, side_by_side

ROOT = Path(__file__).parent.parent / "results"
SAVED = {  # records of real networks, and the names of their figures
    "demo/eig.json": ["eig"],
    "demo/trace.json": ["trace"],
    "demo/density.json": ["density"],
    "log/density.json": ["density", "density-log"],
    "compare/compare.json": ["compare"],
    "demo/layers.json": ["layers", "layers-density"],
    "figures/channels.json": ["layers"],
    "demo/landscape.json": ["landscape", "landscape-plane", "landscape-surface"],
    "landscapes/barriers.json": ["landscape"],
    "landscapes/several.json": ["landscape"],
    "landscapes/path.json": ["landscape", "landscape-plane", "landscape-surface"],
    "figures/step.json": ["step"],
}


def figures(path, width):
    return record_figures(*read_modest(path, [*KINDS, *WHOLE]), width)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("width", [COLUMN, PAGE])
@pytest.mark.parametrize("name", SAVED)
def test_figures_of_real_networks_are_readable_at_both_widths(name, width):
    found = figures(ROOT / name, width)
    assert list(found) == SAVED[name]
    for figure in found.values():
        assert 0.7 * width < figure.get_figwidth() <= width
        assert_readable(figure)
        assert smallest(figure) >= 6.5


@pytest.mark.sampled(4)
@pytest.mark.parametrize("width", [COLUMN, PAGE])
@pytest.mark.parametrize("command", [*KINDS, *WHOLE])
def test_figures_of_every_command_are_readable_at_both_widths(command, width, results_of_commands):
    found = figures(results_of_commands / f"all/{command}.json", width)
    assert found
    for figure in found.values():
        assert_readable(figure)


def smallest(figure):
    """The size in points of the smallest text."""
    shown = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text().strip() and text.get_visible()]
    return min(text.get_fontsize() for text in shown)


@pytest.mark.parametrize("name", ["compare/compare.json", "demo/landscape.json", "figures/step.json"])
def test_a_column_has_the_curves_and_points_of_a_page(name):
    column, page = (next(iter(figures(ROOT / name, width).values())) for width in (COLUMN, PAGE))
    panels = [[axes for axes in figure.axes if axes.axison] for figure in (column, page)]
    for one, other in zip(*panels, strict=True):
        for line, same in zip(one.lines, other.lines, strict=True):
            assert np.shape(line.get_xydata()) == np.shape(same.get_xydata())
            assert (line.get_color(), line.get_marker()) == (same.get_color(), same.get_marker())


def test_bars_of_two_matrices_differ_in_grey_print():
    share, *_, mass = figures(ROOT / "demo/layers.json", PAGE)["layers"].axes
    for axes in (share, mass):
        hatches = [{bar.get_hatch() for bar in bars} for bars in np.split(np.array(axes.patches), 2)]
        assert all(len(some) == 1 for some in hatches)
        assert hatches[0] != hatches[1]


@pytest.mark.parametrize("width", [COLUMN, PAGE])
def test_panels_of_a_column_are_stacked(width):
    compared = figures(ROOT / "compare/compare.json", width)["compare"]
    compared.draw_without_rendering()
    eigenvalues, overlaps = (axes.get_window_extent() for axes in compared.axes[:2])
    assert (eigenvalues.y0 >= overlaps.y1) == (width == COLUMN)


def titled(inches):
    """A figure whose title has lines of so many inches."""
    figure = Figure(figsize=(COLUMN, 3), layout="constrained")
    head(figure.subplots(), "a title that is far longer than the figure is wide", inches, size=16)
    return figure


def test_the_check_of_texts_finds_what_overlaps_or_is_cut_off():
    assert_readable(titled(2.5))
    with pytest.raises(AssertionError, match="leaves the page"):
        assert_readable(titled(20))
    figure = Figure(figsize=(COLUMN, 2), layout="constrained")
    for part in figure.subfigures(1, 2):
        part.supxlabel("a label wider than its part")
    with pytest.raises(AssertionError, match="overlaps"):
        assert_readable(figure)


def test_the_width_of_a_figure_says_how_many_panels_are_side_by_side():
    assert [side_by_side(4, width, 1.6, 4) for width in (3.25, 6.5, 13)] == [2, 4, 4]
    assert [side_by_side(count, 6.5, 2.0, 3) for count in (0, 1, 5)] == [1, 1, 3]
    assert side_by_side(3, 1.0, 2.0, 3) == 1


def test_a_legend_has_as_many_columns_as_its_entries_leave_room_for():
    short, long = ["a", "b", "c", "d"], "a name that takes most of the width"
    assert lay_out_legend(short, None, COLUMN).columns == 4
    assert lay_out_legend([*short, long], None, PAGE).columns > 1
    assert lay_out_legend([long, f"{long}, too"], None, COLUMN).columns == 1


def test_one_of_several_figures_is_chosen_by_its_name():
    first, plane = (saved_figure([ROOT / "demo/landscape.json"], name=name)[0] for name in (None, "landscape-plane"))
    assert len(first.axes) > len(plane.axes)
    assert plane.axes[0].get_xlabel().startswith("eigenvector 1")
