"""What the commands that spend products do: load the problem, apply a method to each matrix, keep what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from spectra.cli.config import refuse_changed
from spectra.cli.reuse import eigenpairs, source
from spectra.cli.terminal import progress_line
from spectra.curvature.matrices import MATRICES

SMALLEST_CHECKED = 8  # products; of fewer, the checks would leave too little
NOT_RECORDED = ("out", "as_json", "save_vectors")  # where the answer goes, not what it is


class Session:
    """The command that is running, the options that it was given, and its problem once loaded."""

    def __init__(self):
        self.context = click.get_current_context()
        self.command: str = self.context.command.name
        self.options: dict[str, Any] = self.context.params

    def load(self):
        """The problem, ready for products, and its record."""
        from inspect import signature

        from spectra.inputs.problem import load_problem
        from spectra.results import prepare_directory

        if self.options["out"]:
            prepare_directory(self.options["out"])
        self.loaded = load_problem(**{name: self.options[name] for name in signature(load_problem).parameters})
        refuse_changed(self.context, self.loaded.record)
        return self.loaded

    def matrices(self, products: int = 100, names: Sequence[str] = ()) -> list:
        """Those asked for, or named, for so many products each: all can be made before any is computed."""
        from spectra.curvature.operator import Curvature

        problem, memory = self.loaded.problem, self.options["memory"]
        expected = min(products, self.options["max_products"] or products)
        return [
            Curvature(problem, name, memory, expected) for name in dict.fromkeys(names or self.options["curvature"])
        ]

    def measure(self, method: Callable, reuse: bool = False, **which) -> list[Measurement]:
        """`method(operator, generator=, max_products=, progress=)` on each of `matrices(**which)`, from the same seed.

        With `reuse` it is also given `known=`: eigenpairs that an earlier `eig` has left, or None.
        """
        matrices, found = self.matrices(**which), []
        earlier = source(self.options) if reuse else None
        while matrices:
            found.append(self._measure_one(matrices.pop(0), method, reuse, earlier))  # popped: gives memory back
        return found

    def _measure_one(self, matrix, method: Callable, reuse: bool, earlier: Path | None) -> Measurement:
        import torch

        from spectra.operator import Counting, check_operator

        with progress_line(matrix.name) as progress:
            matrix.prepare()
            start = time.perf_counter()
            counted = Counting(matrix)
            generator = torch.Generator().manual_seed(self.options["seed"])
            limit = self.options["max_products"]
            checked = limit is None or limit >= SMALLEST_CHECKED
            noise = check_operator(counted, generator) if checked else None
            known = eigenpairs(earlier, counted, matrix.name) if earlier and checked else None
            spent = counted.products
            answer = method(
                counted,
                **({"known": known} if reuse else {}),
                generator=generator,
                max_products=None if limit is None else limit - spent,
                progress=progress,
            )
            seconds = time.perf_counter() - start
        return Measurement(
            curvature=matrix.name,
            answer=answer,
            products=spent + answer.products,
            seconds=seconds,
            setup_seconds=matrix.setup_seconds,
            noise=noise,
            path=matrix.path,
            kept_bytes=matrix.kept_bytes,
            peak_bytes=matrix.peak_bytes,
            semidefinite=MATRICES[matrix.name].semidefinite(matrix.problem.loss),
            projected_out=len(known.values) if known else 0,
            earlier=earlier if known else None,
        )

    def record(self, found: list[Measurement], results: list[dict[str, Any]]) -> dict[str, Any]:
        """The whole record: what was asked, of which problem, and what came out."""
        from spectra.results import make_record

        asked = {name: plain(value) for name, value in self.options.items() if name not in NOT_RECORDED}
        if used := [m.earlier for m in found if m.earlier]:
            asked["deflate"] = str(used[0].with_suffix(".json"))  # so that --config repeats it without this --out
        return make_record(self.command, {**self.loaded.record, "options": asked}, results)

    def write(self, record: dict[str, Any], arrays: dict[str, Any]) -> None:
        from spectra.results import save

        if self.options["out"]:
            save(self.options["out"], record, arrays)


def plain(value: Any) -> Any:
    """An option's value as JSON has it."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class Measurement:
    """What a method found for one matrix, and what it cost."""

    curvature: str
    answer: Any
    products: int
    seconds: float
    setup_seconds: float
    noise: float | None  # relative, of one product
    path: str  # how products were made
    kept_bytes: int  # between products
    peak_bytes: int  # with one product
    semidefinite: bool  # no eigenvalue is negative, by definition
    projected_out: int = 0  # eigenpairs of an earlier run
    earlier: Path | None = None  # that run's arrays

    def cost(self) -> dict[str, Any]:
        return {
            "converged": self.answer.converged,
            "products": self.products,
            "seconds": self.seconds,
            "setup_seconds": self.setup_seconds,
            "noise": self.noise,
            "path": self.path,
            "kept_bytes": self.kept_bytes,
            "peak_bytes": self.peak_bytes,
            **({"projected_out": self.projected_out, "projected_from": str(self.earlier)} if self.earlier else {}),
        }
