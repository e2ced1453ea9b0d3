"""The pages of docs/ cannot go stale: their files are written, and their commands and their Python run."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from documents import DOCS, README, blocks, commands, prints, refreshed

from spectra.cli import run
from spectra.cli.plan_options import checked_plan
from spectra.inputs.loss_options import option_names
from spectra.inputs.registers import LOSSES

pytestmark = [  # of packages that pages use
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
OUTPUT = "one 1\ntwo\nthree 3\n"
PAGES = sorted(DOCS.rglob("*.md"))
OF_DEMO = [page for page in PAGES if "results/demo/" in page.read_text()]  # they share one run of the demonstration
TUTORIAL, CLUSTER = DOCS / "tutorial.md", DOCS / "how-to/cluster.md"
NEEDS = ("transformers", "peft", "datasets", "timm", "torchvision", "lightning", "torch_geometric")


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("page", [page for page in PAGES if page not in OF_DEMO], ids=name_of)
def test_page(page, tmp_path, monkeypatch, capsys, request):
    execute_page(page, tmp_path, monkeypatch, capsys, request)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("page", [page for page in OF_DEMO if page != TUTORIAL], ids=name_of)
def test_page_on_the_demonstration(page, demo_run, tmp_path, monkeypatch, capsys, request):
    shutil.copytree(demo_run, tmp_path, dirs_exist_ok=True)
    execute_page(page, tmp_path, monkeypatch, capsys, request)


def test_the_tutorial(demo_run, tmp_path, monkeypatch, capsys, request):
    shutil.copytree(demo_run, tmp_path, dirs_exist_ok=True)
    execute_page(TUTORIAL, tmp_path, monkeypatch, capsys, request)


def execute_page(page, tmp_path, monkeypatch, capsys, request):
    text = "\n".join(block.text for block in blocks(page))
    for package in NEEDS:
        if f"import {package}" in text or f"{package}:" in text or f"from {package}" in text:
            with warnings.catch_warnings(action="ignore"):  # of its own, where it is imported
                pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("COLUMNS", "80")
    for block in blocks(page):  # another test may have a file of this name
        if block.file:
            monkeypatch.delitem(sys.modules, Path(block.file).stem, raising=False)
    before = set(sys.modules)
    writes = request.config.getoption("--write-pages")
    try:
        execute_blocks(page, capsys, writes)
    finally:
        for name in set(sys.modules) - before:  # another page has other files of these names
            if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
                del sys.modules[name]


def execute_blocks(page: Path, capsys, writes: bool) -> None:
    for number, block in enumerate(blocks(page)):
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, f"{page.name}, block {number}", "exec"), {"__name__": "__main__"})
        elif block.language == "console":
            for line, shown in commands(block):
                capsys.readouterr()
                printed = execute(line, shown, capsys)
                if writes and printed is not None:
                    page.write_text(page.read_text().replace(shown, refreshed(shown, printed), 1))
                else:
                    assert printed is None or prints(printed, shown)


def execute(line: list[str], shown: str, capsys) -> str | None:
    """Run a command of a page, and return what a command of ours prints; `python file.py` runs, no more."""
    if line[0] == "python":
        spec = importlib.util.spec_from_file_location("__main__", line[1])
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        return None
    assert line[0] == "spectra", line
    status = run(line[1:])
    out, err = capsys.readouterr()
    assert status == (2 if shown.startswith("spectra:") else 0), err
    assert max(map(len, out.splitlines()), default=0) <= 80
    return out if status == 0 else err


def test_the_batch_script_runs(demo_run, tmp_path):
    """As a job of its own, and so a command of the pages once by the name of the program."""
    shutil.copytree(demo_run, tmp_path, dirs_exist_ok=True)
    (job,) = (block.text for block in blocks(CLUSTER) if "#SBATCH" in block.text)
    (tmp_path / "job.sh").write_text(job)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/spectra"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m spectra "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], str(command.parent)])
    environment = os.environ | {"PATH": path}  # which the program may not be on, nor installed at all
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(["bash", "job.sh"], **options, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "results/last").iterdir()) == ["eig.json", "eig.npz"]


def test_the_plan_is_understood(tmp_path):
    (plan,) = (block.text for block in blocks(CLUSTER) if block.file == "sweep.toml")
    (tmp_path / "checkpoints").mkdir()
    for step in (9, 10):
        (tmp_path / f"checkpoints/step-{step}.pt").touch()
    (tmp_path / "sweep.toml").write_text(plan)
    names = [task.name for task in checked_plan(tmp_path / "sweep.toml").tasks]
    assert names == [f"step-{step}/{matrix}" for step in (9, 10) for matrix in ("hessian", "ggn")]


def test_files_and_pages_named_exist():
    for page in [README, *PAGES]:
        for target, _, place in re.findall(r"\]\(([^)#:]*)(#([^)]+))?\)", page.read_text()):
            named = page.parent / target if target else page
            assert named.exists(), f"{page.name}: {target}"
            assert not place or place in headings(named), f"{page.name}: {target}#{place}"


def headings(page: Path) -> set[str]:
    """The places on a page that a link may name."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "shown", ["", "one 2e-3\ntwo\nthree 4\n", "one 2\n...\nthree 4\n", "...\nthree 3\n", "one 1\n...\n"]
)
def test_an_output_as_it_is_shown(shown):
    assert prints(OUTPUT, shown)


@pytest.mark.parametrize(
    "shown", ["one 1\ntwo\n", "two\n...\n", "...\ntwo\n", "three 3\n...\none 1\n", "one 1\n...\nfour\n", "o\n...\n"]
)
def test_an_output_that_is_not_as_shown(shown):
    assert not prints(OUTPUT, shown)


@pytest.mark.parametrize(
    ("shown", "output", "now"),
    [
        ("one 3\n...\n", OUTPUT, "one 3\n...\n"),
        ("on 5\n...\nthree 4\n", OUTPUT, "one 1\n...\nthree 3\n"),
        ("...\na cost of 5\n...\n", "x\na price of 6\ny\n", "...\na price of 6\n...\n"),
        ("one\n", OUTPUT, OUTPUT),
    ],
)
def test_a_page_is_written_with_what_commands_print_now(shown, output, now):
    assert refreshed(shown, output) == now
    assert prints(output, now)


def test_every_page_has_something_that_runs():
    for page in PAGES:
        runs = [b for b in blocks(page) if b.language == "console" or (b.language == "python" and not b.file)]
        assert runs, page.name


def test_the_table_of_losses_has_all_names_and_options():
    table = (DOCS / "losses.md").read_text().partition("## Names")[2].partition("\n\n\n")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| `")]
    shown = {tuple(re.findall(r"`(\w+)`", row[0])): set(re.findall(r"`(\w+)(?:=\S+)?`", row[2])) for row in rows[:9]}
    assert sorted(name for names in shown for name in names) == sorted({*LOSSES.own} - {"model"})
    for names, options in shown.items():
        found = [set(option_names(LOSSES.load(name, "`loss`"))) for name in names]
        assert options - {*names} == set().union(*found) - {"reduction"}
