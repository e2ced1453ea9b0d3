"""The page of `spectra report`: what it shows is what the terminal shows, and all of it is inside the page."""

import base64
import io
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from shutil import copytree
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers import make_record, save
from jinja2 import UndefinedError
from pages import FIGURES, Page, cells
from rich.table import Table

from spectra.cli import run
from spectra.page.document import document
from spectra.page.results import KINDS, read_all
from spectra.page.tables import blocks, paragraphs_and_tables
from spectra.page.templating import TEMPLATES, Markup
from spectra.plots.saved import record_figures
from spectra.plots.style import save_figure
from spectra.plots.svg import TOLERANCE, distances, needed, shortened, svg
from spectra.quoting import quoted
from spectra.records.record import Record
from spectra.tables.results import new_table

COMMANDS = list(KINDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, results_of_commands):
    """Results of all commands in one directory."""
    return copytree(results_of_commands, tmp_path_factory.mktemp("results") / "here")


@pytest.fixture(autouse=True)
def at_home(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def whole(folder) -> Page:
    """The page of all of them, as the command writes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["report", "all", "--out", "pages/whole.html"]) == 0
        return Page(Path("pages/whole.html").read_text(encoding="utf-8"))


def content(parts) -> str:
    """HTML of paragraphs and tables."""
    return TEMPLATES.get_template("parts.html").module.content(list(parts))


def page_of(*records, title=None, repeat=lambda path, record: []) -> Page:
    return Page(document([(Path(f"{i}.json"), record) for i, record in enumerate(records)], title, repeat))


def record_of(command: str) -> Record:
    ((_, record),) = read_all([Path(f"all/{command}.json")])
    return record


# What is shown


@pytest.mark.sampled(4)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_word_of_the_terminal_is_on_the_page(command, whole):
    printed = Path(f"{command}.txt").read_text(encoding="utf-8")
    printed = set(re.sub(r"^all/.*\.png$|[─]+", "", printed, flags=re.MULTILINE).split())
    section = whole.all("section")[1 + COMMANDS.index(command)]
    shown = " ".join(part.text for tag in ("p", "th", "td", "figcaption") for part in section.all(tag))
    assert len(printed) > 20
    assert printed <= set(shown.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_tables_have_the_cells_of_the_terminal(command):
    record = record_of(command)
    parts = [part for part in resolve_name(KINDS[command].parts)(record) if isinstance(part, Table)]
    found = page_of(record).tables()
    assert len(found) == len(parts)
    for (head, *body), part in zip(found, parts, strict=True):
        assert head == [str(column.header) for column in part.columns]
        rows = zip(*(column.cells for column in part.columns), strict=True)
        for row, expected in zip(body, rows, strict=True):
            expected = [str(cell) for cell in expected]
            assert row == [expected[0].strip(), *expected[1:]] or (
                not any(expected[1:]) and row == [expected[0].strip()]
            )


def test_numbers_stand_to_the_right_and_names_name_their_rows():
    table = new_table("A / B", "distance", "")
    table.add_row("hessian")
    table.add_row(" ggn", "0.1 ± 0.2", "x")
    page = Page(content(blocks([table])))
    head, alone, below = page.all("tr")
    assert [(c.tag, c.classes, c.attributes.get("scope")) for c in cells(head)] == [
        ("th", [], "col"),
        ("th", ["right"], "col"),
        ("td", [], None),
    ]
    assert [(c.text, c.attributes) for c in cells(alone)] == [("hessian", {"colspan": "3", "scope": "rowgroup"})]
    assert [(c.tag, c.classes) for c in cells(below)] == [("th", ["inner"]), ("td", ["right"]), ("td", ["right"])]


def test_a_line_above_a_table_is_its_caption_and_all_others_are_paragraphs():
    table = new_table("", "a")
    table.add_row("x", "1")
    lead, rest = paragraphs_and_tables(["what it is of", table, "caption", table, "note", "", table, "last"])
    page = Page(content(rest))
    assert lead == "what it is of"
    assert [part.text for part in page.all("figcaption")] == ["caption"]
    assert [part.text for part in page.all("p")] == ["note", "last"]
    assert [part.attributes["aria-label"] for part in page.all("div")] == ["table", "caption", "table"]


# Figures


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_figures(command):
    page = page_of(record_of(command))
    images = page.all("img")
    assert len(images) == FIGURES[command]
    for image in images:
        assert len(image.attributes["alt"]) > 20
        assert int(image.attributes["width"]) > int(image.attributes["height"]) / 3 > 20
    assert len({image.attributes["src"] for image in images}) == len(images)
    captions = [figure.all("figcaption")[0].text for figure in page.all("figure") if figure.all("img")]
    assert all(caption.endswith(".") for caption in captions)


def test_the_figures_of_compare_are_drawn_again_byte_for_byte():
    for name, figure in record_figures(Path("x"), record_of("compare")).items():
        save_figure(figure, file := io.BytesIO(), "png")
        assert file.getvalue() == Path(f"all/{name}.png").read_bytes()


def test_images_are_vectors_that_need_nothing_from_outside(whole):
    for image in whole.all("img"):
        kind, _, content = image.attributes["src"].partition("base64,")
        assert kind == "data:image/svg+xml;"
        root = ElementTree.fromstring(base64.b64decode(content))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        for part in root.iter():
            assert not part.tag.endswith(("}image", "}script", "}foreignObject")), "rasterised, or a program"
            for name, value in part.attrib.items():
                if name.endswith("href"):
                    assert value.startswith("#")
        assert {
            use.attrib["{http://www.w3.org/1999/xlink}href"][1:] for use in root.iter("{http://www.w3.org/2000/svg}use")
        } <= {part.attrib["id"] for part in root.iter() if "id" in part.attrib}


@pytest.mark.parametrize("closed", [False, True])
def test_a_thinned_line_stays_near_every_point(closed):
    walk = np.cumsum(np.random.default_rng(1).normal(scale=0.05, size=(800, 2)), axis=0)
    points = np.vstack([walk, walk[:1]]) if closed else walk
    kept = points[needed(points)]
    assert len(kept) < 0.8 * len(points)
    np.testing.assert_array_equal(kept[[0, -1]], points[[0, -1]])
    nearest = np.min([distances(points, *ends) for ends in pairwise(kept)], axis=0)
    assert 0 < nearest.max() <= TOLERANCE


def test_a_straight_line_keeps_its_ends_and_a_corner_its_point():
    line = np.column_stack([np.linspace(0, 90, 1001), np.zeros(1001)])
    assert needed(line).sum() == 2
    corner = np.vstack([line, [[90, 40]]])
    np.testing.assert_array_equal(corner[needed(corner)], [[0, 0], [90, 0], [90, 40]])
    path = "".join(f"{'L' if i else 'M'} {x:.6f} {y:.6f} \n" for i, (x, y) in enumerate(corner))
    assert shortened(path) == "M0.00 0.00L90.00 0.00L90.00 40.00"
    assert shortened(path + "z\n") == "M0.00 0.00L90.00 0.00L90.00 40.00z"
    assert shortened("M 1.23456 2 \nQ 3.98765 4 5 6.5 \nz\n") == "M 1.23 2 \nQ 3.98 4 5 6.5 \nz\n"


def test_a_large_density_is_a_small_file(tmp_path):
    draw = np.random.default_rng(0)
    entries = [
        {"curvature": name, "dimension": 10**6, "deflated": 0, "nodes": nodes.tolist(), "weights": [[1 / 80] * 80] * 10}
        for name in ("hessian", "ggn", "fisher", "fisher-empirical")
        for nodes in [np.sort(draw.normal(size=(10, 80)) ** 3)]
    ]
    record = Record.of(make_record("density", {"options": {}}, entries))
    ((_, figure),) = record_figures(tmp_path, record).items()
    assert len(base64.b64encode(svg(figure))) < 300_000


# The page by itself


def test_it_is_one_document_with_headings_in_order(whole):
    assert whole.text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert whole.one("title").text == whole.one("h1").text == "Loss landscape of nets.py:mlp on points.npz"
    assert whole.one("main")
    names = {m.attributes.get("name"): m.attributes.get("content") for m in whole.all("meta")}
    assert names["viewport"] == "width=device-width, initial-scale=1"
    levels = [int(e.tag[1]) for e in whole.all() if re.fullmatch(r"h\d", e.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_nothing_comes_from_outside(whole):
    for part in whole.all():
        assert part.tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name, value in part.attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                assert value.startswith(("data:image/svg+xml;base64,", "#"))
            assert "//" not in value.partition("base64,")[0]
    style = whole.one("style").text
    assert not re.search(r"url\(|@import|//|expression", style)
    (policy,) = [m.attributes["content"] for m in whole.all("meta") if "http-equiv" in m.attributes]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_links_lead_to_the_results_in_their_order(whole):
    names = [part.attributes["id"] for part in whole.all() if "id" in part.attributes]
    assert len(set(names)) == len(names) == len(COMMANDS) + 1
    links = whole.one("nav").all("a")
    assert [link.attributes["href"] for link in links] == [f"#{name}" for name in names[1:]]
    sections = {part.attributes["id"]: part for part in whole.all("section")}
    for link, command in zip(links, COMMANDS, strict=True):
        assert sections[link.attributes["href"][1:]].all("h2")[0].text == link.text == KINDS[command].title
    assert all(f"all/{command}.json" in whole.one("nav").text for command in COMMANDS)


def test_one_result_needs_no_contents():
    assert page_of(record_of("eig")).all("nav") == []


def test_it_is_made_for_narrow_screens_and_paper(whole):
    style = re.sub(r"\s+", " ", whole.one("style").text)
    for rule in (".wide { overflow-x: auto; }", "white-space: pre-wrap", "overflow-wrap: anywhere"):
        assert rule in style
    assert re.search(r"img \{[^}]*width: 100%;[^}]*height: auto;", style)
    assert "@media (max-width: 30rem)" in style
    assert "@media screen and (prefers-color-scheme: dark)" in style  # figures stay on white, and paper too
    assert re.search(r"img \{[^}]*background: #fff;", style)
    assert "--page: #fff" in style.partition("@media print {")[2]
    paper = style.partition("@media print {")[2]
    assert re.search(r"figure, tr, pre, dl, \.lead \{ break-inside: avoid; \}", paper)
    assert "break-after: avoid" in paper
    assert "--ink: #000" in paper
    for table in whole.all("table"):
        assert any(table in box.all("table") for box in whole.all("div") if "wide" in box.classes)


def test_the_same_results_give_the_same_bytes(whole):
    assert run(["report", "all", "--out", "pages/again.html"]) == 0
    assert Path("pages/again.html").read_bytes() == whole.text.encode()


# What strangers write


EVIL = "<script>alert('1')</script> & \"quoted\" </title></style><img src=x onerror=y> é λ"


def test_what_others_have_written_is_text():
    record = record_of("eig")
    evil = {"model": EVIL, "data": EVIL, "checkpoint": EVIL, "notes": [EVIL], "versions": {EVIL: EVIL}}
    results = [record.results[0].changed(curvature=EVIL), *record.results[1:]]
    record = record.changed(problem=record.problem.changed(**evil), results=results)
    page = page_of(record, title=EVIL, repeat=lambda path, record: [["spectra", EVIL]])
    assert not page.all("script")
    assert len(page.all("img")) == 1
    assert page.one("title").text == page.one("h1").text == EVIL
    assert EVIL in [part.text for part in page.all("dd")]
    assert EVIL in [part.text for part in page.all("p")]
    assert EVIL in [part.text for part in page.all("th")]
    assert shlex.quote(EVIL) in page.all("pre")[0].text
    assert EVIL in page.one("img").attributes["alt"]


@pytest.mark.parametrize("value", ["\ud800", "\x00", "\x1b[31m", "\u202eabc", "\x7f", "a\rb"])
def test_what_no_page_can_hold_is_quoted(value):
    found = TEMPLATES.from_string('<p title="{{ value }}">{{ value }}</p>').render(value=value)
    found.encode()
    assert Page(found).one("p").text == quoted(value) != value
    assert Page(found).one("p").attributes["title"] == quoted(value)


def test_markup_is_not_escaped_twice():
    template = TEMPLATES.from_string("{{ html }}{{ text }}{{ number }}")
    assert template.render(html=Markup("<b>&lt;</b>"), text="a\n&", number=7) == "<b>&lt;</b>a\\n&amp;7"


def test_what_a_template_is_not_given_is_an_error():
    with pytest.raises(UndefinedError):
        TEMPLATES.from_string("{{ nothing }}").render()


# The problem


def facts_of(part) -> dict[str, str]:
    names, values = ([found.text for found in part.all(tag)] for tag in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def test_what_results_share_is_said_once(whole):
    found = [facts_of(section) for section in whole.all("section")]
    problem = json.loads(Path("all/eig.json").read_text())["problem"]
    assert found[0]["Model"] == "nets.py:mlp"
    assert found[0]["Checkpoint"] == "none: as built with seed 0"
    assert found[0]["Data"] == "points.npz, 40 examples"
    assert found[0]["Loss"] == f"cross_entropy {problem['loss_value']:.4g}, accuracy {100 * problem['accuracy']:.4g} %"
    assert found[0]["Parameters"] == "43"
    assert found[0]["Precision"] == "float64"
    assert found[0]["Device"].startswith(f"{problem['device']} ({problem['device_name']}), {problem['threads']} thread")
    assert found[0]["Versions"].startswith("spectra ")
    assert found[2] == {"Labels drawn": "1 for each example of fisher-mc"}
    assert found[1] == found[3] == found[4] == {}


def test_what_they_do_not_share_stands_with_each():
    one, two = record_of("eig"), record_of("trace")
    problem = two.problem.changed(
        seed=7,
        checkpoint="a.pt",
        checkpoint_sha256="0123456789abcdef",
        ranks=3,
        checkpoint_key="ema",
        checkpoint_ignored=2,
        params=["*.weight"],
        parameters_in_all=99,
    )
    two = two.changed(problem=problem)
    common, first, second = (facts_of(section) for section in page_of(one, two).all("section"))
    assert "Seed" not in common
    assert first["Seed"] == "0"
    assert second["Seed"] == "7"
    assert second["Checkpoint"] == "a.pt, entry ema, 2 other names ignored, SHA-256 0123456789ab…"
    assert second["Parameters"] == "43 of 99 (*.weight)"
    assert second["Device"].endswith(", 3 ranks")
    assert "Model" in common
    assert "Model" not in first | second


def test_a_model_alone_is_a_page_too():
    assert run(["inspect", "--model", "nets.py:mlp", "--out", "alone"]) == 0
    assert run(["report", "alone", "--out", "alone.html", "--title", "One model"]) == 0
    page = Page(Path("alone.html").read_text(encoding="utf-8"))
    assert page.one("h1").text == "One model"
    assert facts_of(page.root)["Parameters"] == "43"
    assert "Data" not in facts_of(page.root)


# Numbers that are not finite


@pytest.mark.parametrize(
    ("command", "keys"),
    [("eig", ["eigenvalues", "residuals"]), ("trace", ["trace", "standard_error"]), ("density", ["nodes"])],
)
def test_a_number_that_is_not_finite_is_told_and_not_drawn(command, keys):
    record = json.loads(Path(f"all/{command}.json").read_text())
    for key in keys:
        record["results"][0][key] = json.loads(
            re.sub(r"-?[\d.]+(e-?\d+)?", "null", json.dumps(record["results"][0][key]))
        )
    Path("bad").mkdir(exist_ok=True)
    save(Path("bad"), record, {})
    assert run(["report", f"bad/{command}.json", "--out", "bad.html"]) == 0
    page = Page(Path("bad.html").read_text(encoding="utf-8"))
    assert "nan" in " ".join(cell.text for cell in page.all("td"))
    name, others = record["results"][0]["curvature"], len(record["results"]) > 1
    assert len(page.all("img")) == (1 if others else 0)
    assert all(name in image.attributes["alt"] for image in page.all("img"))
