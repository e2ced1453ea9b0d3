"""What `scripts/gpu-check` has found on a GPU, as tables: targets set beforehand, and products side by side.

Each folder of results/gpu is one machine on one day. A figure is that of the newest folder that has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.benchmarks import quick
from scripts.benchmarks.problems import SHORT
from scripts.benchmarks.targets import Row, limits

FOLDERS = Path("results/gpu")
HOW = f"""Made by `scripts/gpu-check`, in IEEE float32 by deterministic algorithms, the peers and the gradient too, in
one process on one model and data. Milliseconds of a gradient (eager, as one CUDA graph, compiled) and of our product
(as it comes, compiled). o/g: our product in compiled gradients, else in those of a CUDA graph. peer/o: time of the
fastest peer over ours. Peers run as their documentation shows them (with the plain kernels of attention where they
fail as they come) and, where measured, under torch.compile; one whose number is off by more than {quick.RIGHT:g} is
not compared with."""
NONE_LENT = "no GPU was lent for this row"
SMALL = ("mlp", "digits", "gpt", "vit")
LARGE = ("resnet20", "resnet50", "gpt2", "vitb")


@dataclass
class Found:
    """By problem and matrix the products, by name the figures, and where each folder's numbers come from."""

    products: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)  # of parts, ok or what became of them
    made: list[str] = field(default_factory=list)

    def of(self, problem: str, matrix: str) -> dict[str, Any] | None:
        return self.products.get(problem, {}).get(matrix)

    def number(self, figure: str, name: str, key: str) -> float | None:
        """A number of a figure, None where it was not measured."""
        return self.figures.get(figure, {}).get(name, {}).get(key)


def read(folders: Path = FOLDERS) -> Found:
    """Everything that is kept, of the newest folder that has it."""
    found = Found()
    for folder in sorted(path for path in folders.glob("*") if path.is_dir()):
        kept = {
            name: json.loads(path.read_text()) if (path := folder / f"{name}.json").exists() else {}
            for name in ("benchmarks", "figures", "check")
        }
        for problem, one in kept["benchmarks"].get("quick", {}).items():
            if (one["made"].get("cuda") or {}).get("devices"):
                found.products[problem] = one["result"]
        if made := kept["check"].get("made"):
            if not made.get("cuda"):
                continue
            found.made.append(origin(folder, made))
            found.checks |= {part["part"]: part["status"] for part in kept["check"]["parts"]}
            found.figures |= {name: one["numbers"] for name, one in kept["figures"].items() if one["numbers"]}
    return found


def origin(folder: Path, made: dict[str, Any]) -> str:
    cuda, changes = made["cuda"], " with changes" if made["dirty"] else ""
    return (
        f"{made['date'][:10]}: {cuda['devices']} x {made['device']}, CUDA {cuda['version']}, cuDNN {cuda['cudnn']}, "
        f"torch {made['versions']['torch']}, Python {made['python']}, commit {made['commit'][:9]}{changes} ({folder})"
    )


def section(found: Found) -> Iterator[str]:
    """The part of the page that is about a GPU."""
    yield "## On a GPU"
    yield HOW
    yield targets(found)
    if found.products:
        yield table(quick.HEAD, (quick.row(*key, one) for key, one in products(found)))
    yield "\n".join(found.made)


def products(found: Found) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    for problem in quick.PROBLEMS:
        for matrix, one in found.products.get(problem, {}).items():
            yield (problem, matrix), one


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def targets(found: Found) -> str:
    """The table of targets, each with what was found."""
    lines = ["| what, on an H100 or H200 | target | found | |", "| --- | --- | --- | --- |"]
    return "\n".join(lines + [row.line() for rows in ROWS for row in rows(found)])


def product_rows(found: Found) -> Iterator[Row]:
    aims = {"hessian": ("Hessian", (5, 10, 8, 4), (3, 2, 2, 2)), "ggn": ("GGN", (8, 12, 8, 6), ())}
    for matrix, (name, small, large) in aims.items():
        for problems, least in ((SMALL, small), (LARGE, large)):
            if least:
                what = f"{name} product, time of the fastest eager peer over ours"
                yield row(what, dict(zip(problems, least, strict=True)), over_ours(found, matrix), most=False)
    for matrix, (name, *_), most in (("hessian", aims["hessian"], 2.2), ("ggn", aims["ggn"], 1.55)):
        what = f"one {name} product, in compiled gradients"
        yield row(what, dict.fromkeys(LARGE[1:], most), in_compiled_gradients(found, matrix))


def row(what: str, aims: dict[str, float], figure: Callable[[str], float | None], most: bool = True) -> Row:
    """A row of several problems; it says of which of them no GPU was lent."""
    made = limits(what, aims, figure, most)
    missing = [SHORT[problem] for problem in aims if figure(problem) is None]
    if not missing:
        return made
    text = NONE_LENT if len(missing) == len(aims) else f"{made.figures}; no GPU was lent for {', '.join(missing)}"
    return Row(what, made.target, text, None)


def over_ours(found: Found, matrix: str) -> Callable[[str], float | None]:
    def figure(problem: str) -> float | None:
        one = found.of(problem, matrix)
        return one and quick.over_ours(one, compiled=False)

    return figure


def in_compiled_gradients(found: Found, matrix: str) -> Callable[[str], float | None]:
    def figure(problem: str) -> float | None:
        one = found.of(problem, matrix)
        return quick.in_gradients(one) if one and quick.COMPILED in one["seconds"] else None

    return figure


def figure_rows(found: Found) -> Iterator[Row]:
    def gain(problem: str) -> float | None:
        alone, each = (found.number("columns", f"{problem} hessian", key) for key in ("ms alone", "ms of 16"))
        return alone / each if alone and each else None

    aims = dict(zip(SMALL, (4, 6, 2, 2), strict=True))
    yield row("sixteen Hessian columns together: time of sixteen single products over it", aims, gain, most=False)
    what, name = (
        "density of the digits network, 10 probes of 80 steps, whole, s",
        "digits, density, 10 probes of 80 steps",
    )
    yield single(what, 0.4, task(found, f"{name}, again"))
    yield single("`eig -k 10` of the same, after set-up, s", 0.1, task(found, "digits, eig -k 10, again", setup=False))
    language = task(found, "GPT-2 124M, eig -k 2 --curvature ggn")
    yield single("`eig -k 2 --curvature ggn` of GPT-2 124M, whole, s", 5, language)
    yield single("set-up of ResNet-50, GPT-2 and ViT-B, the slowest first matrix, s", 2, slowest_setup(found))
    yield single("10^8 normal numbers, s", 0.2, found.figures.get("random", {}).get("normal numbers, seconds"))
    yield large(found)
    yield numbers(found)


def task(found: Found, name: str, setup: bool = True) -> float | None:
    """The seconds of a task, with or without its set-up."""
    whole, part = (found.number("tasks", name, key) for key in ("seconds", "set-up"))
    return whole if whole is None or setup else whole - (part or 0.0)


def slowest_setup(found: Found) -> float | None:
    known = [found.number("set-up", f"{name}, hessian", "seconds") for name in ("resnet50", "gpt2", "vitb")]
    return max(known) if all(known) else None


def single(what: str, limit: float, value: float | None) -> Row:
    if value is None:
        return Row(what, f"≤ {limit:g}", NONE_LENT, None)
    return Row(what, f"≤ {limit:g}", f"{value:.2f}", value <= limit)


def large(found: Found) -> Row:
    known = found.figures.get("large", {})
    text = "; ".join(
        f"{name}: {one['seconds']:.0f} s, {one['products']} products, peak {one['peak'] / 1e9:.0f} GB"
        for name, one in known.items()
    )
    runs = all(one["converged"] and one["peak"] < 80e9 for one in known.values()) if len(known) == 2 else None
    what = "`eig -k 3` of a 1.3-billion-parameter decoder, Hessian and GGN, 8 sequences of 512, one 80-GB card"
    return Row(what, "runs", text or NONE_LENT, runs)


def numbers(found: Found) -> Row:
    """Commands in float64 against the CPU, and products made twice."""
    commands, columns = found.checks.get("commands"), found.figures.get("columns", {})
    texts, good = [], []
    if commands:
        texts.append(f"commands in float64 against the CPU: {commands}")
        good.append(commands == "ok")
    if columns:
        same = all(one["twice the same"] for one in columns.values())
        texts.append(f"products twice: {'the same bits' if same else 'NOT the same'}")
        good.append(same)
    what = "products: in float64 those of the CPU to rounding; twice the same bits on one card"
    return Row(what, "yes", "; ".join(texts) or NONE_LENT, all(good) if len(good) == 2 else None)


ROWS = (product_rows, figure_rows)
