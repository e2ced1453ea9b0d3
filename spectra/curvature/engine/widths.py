"""Choose how many columns go together in a product: by their cost, as a clock has measured it once.

A number of columns that costs no less together than one after the other, that memory does not hold, or whose product
differs from single ones is never used.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from spectra.curvature.engine.choices import MARGIN, Choices
from spectra.errors import describe

WIDTHS = (16, 8, 4)  # columns that go together
FEWEST = 3  # columns for which that is tried
PADDED = 0.65  # of a width: where as many columns are there, narrower widths are not looked at
WORTH_MEASURING = 32  # products
ON_THEIR_WAY = 2  # vectors a column: as a row, and padded
SMALL = 2**23  # bytes of intermediate values: with more of them, columns together are no faster on a CPU

Run = Callable[[Tensor], Tensor]


class Widths:
    """The numbers of columns that go together in the products of batches of one shape.

    Args:
        bytes_of: the bytes that a product of so many columns takes for intermediate values; raises where there is none.
        fingerprint: tells what is executed from all else that takes another time.
        choices: where costs are kept.
        seed: of the vectors by which columns together are compared with single ones.
    """

    def __init__(self, bytes_of: Callable[[int], int], fingerprint: str, choices: Choices, seed: int = 0):
        self.room = 0  # bytes that intermediate values may take; 0: columns go one by one
        self.why: str | None = None  # a width is not used, but for its cost
        self._bytes_of, self._fingerprint, self._choices, self._seed = bytes_of, fingerprint, choices, seed
        self._costs: dict[int, float] = {}
        self._plans: dict[int, list[int]] = {}
        self._vector_bytes = 0

    @property
    def used(self) -> list[int]:
        """The widths in use, but for single columns."""
        return sorted({width for plan in self._plans.values() for width in plan} - {1})

    @property
    def transient_bytes(self) -> int:
        """The bytes that the widest product in use takes for intermediate values, and for its vectors on their way."""
        return max(map(self._needed, self.used), default=0)

    def _needed(self, width: int) -> int:
        return self._bytes_of(width) + ON_THEIR_WAY * width * self._vector_bytes

    def plan(self, count: int, run: Callable[[int, Tensor], Run], example: Tensor) -> list[int]:
        """The widths by which `count` columns are multiplied, one after the other; the last may be padded.

        Args:
            count: the number of columns.
            run: returns the product of so many columns as a function of rows (k, n), for one of a vector (n,), given
                a vector of the same type.
            example: such a vector.
        """
        if count not in self._plans:
            self._plans[count] = self._planned(count, run, example)
        return self._plans[count]

    def _planned(self, count: int, run: Callable[[int, Tensor], Run], example: Tensor) -> list[int]:
        def cost(width: int) -> float:
            if width not in self._costs:
                self._costs[width] = self._cost(width, run, example)
            return self._costs[width]

        if count < FEWEST or not self.room:
            return [1] * count
        if example.device.type == "cpu" and (self._bytes_of(1) > SMALL or cost(min(WIDTHS)) > MARGIN * min(WIDTHS)):
            return [1] * count  # wider ones would be no faster
        return planned(count, cost)

    def _cost(self, width: int, run: Callable[[int, Tensor], Run], example: Tensor) -> float:
        """The time of a product of so many columns, in products of one; infinite where it is not to be used."""
        try:
            self._vector_bytes = example.nbytes
            if (needed := self._needed(width)) > self.room:
                self.why = f"{width} columns take {needed:,} bytes"
                return math.inf
            generator = torch.Generator().manual_seed(self._seed)
            rows = torch.randn(width, len(example), generator=generator, dtype=example.dtype).to(example.device)
            several, one = run(width, example), run(1, example)
            found = several(rows)
            for i in (0, width - 1):
                refuse_other(found[i], one(rows[i]), width)
        except Exception as error:  # of any kind: columns then go one by one
            self.why = describe(error)
            return math.inf
        name, calls = f"{width} columns", (lambda: several(rows), lambda: one(rows[0]))
        return self._choices.cost(name, *calls, example.device, self._fingerprint)


def refuse_other(found: Tensor, wanted: Tensor, width: int) -> None:
    """Raise RuntimeError where a product is not that of a single column to half its digits."""
    if not (found - wanted).norm() <= torch.finfo(found.dtype).eps ** 0.5 * wanted.norm():
        raise RuntimeError(f"{width} columns together differ from single ones")


def planned(count: int, cost: Callable[[int], float]) -> list[int]:
    """The widths whose products take the least time in all for so many columns, the widest first.

    A cost is in products of one column. Those of narrow widths are asked for where wider ones leave columns over.
    """
    costs = {1: 1.0}
    for width in WIDTHS:
        if width > count and any(count <= narrower < width for narrower in WIDTHS):
            continue  # all of them fit a narrower one
        costs[width] = cost(width)
        over = count % width
        if costs[width] <= MARGIN * width and (over == 0 or over >= PADDED * width):
            break
    least: list[tuple[float, list[int]]] = [(0.0, [])]
    for some in range(1, count + 1):
        ways = ((price + least[max(some - width, 0)][0], width) for width, price in costs.items())
        price, width = min(ways)
        least.append((price, [width, *least[max(some - width, 0)][1]]))
    return sorted(least[count][1], reverse=True)
