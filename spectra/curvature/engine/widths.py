"""Choose how many columns go together in a product: by their cost, as a clock has measured it once.

A number of columns that costs no less together than one after the other, that memory does not hold, or whose product
differs from single ones is never used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

from spectra.curvature.engine.choices import MARGIN, Choices
from spectra.errors import describe
from spectra.random_numbers import draw_keys, normal_rows

NOTE = "columns together"  # under which a run writes down which they are, and why no more
WIDTHS = (16, 8, 4)  # columns that go together
FEWEST = 3  # columns for which that is tried
PADDED = 0.65  # of a width: where as many columns are there, narrower widths are not looked at
WORTH_MEASURING = 32  # products
ON_THEIR_WAY = 2  # vectors a column: as a row, and padded
SMALL = 2**21  # bytes of intermediate values: with more of them, columns together are no faster on a CPU

Run = Callable[[Tensor], Tensor]


class Widths:
    """The numbers of columns that go together in the products of batches of one shape: `used` are those so far, also by
    the run that is resumed.

    Args:
        bytes_of: the bytes that a product of so many columns takes for intermediate values; raises where there is none.
        vector_bytes: the bytes of a vector.
        fingerprint: tells what is executed from all else that takes another time.
        choices: where costs are kept.
        seed: of the vectors by which columns together are compared with single ones.
    """

    def __init__(
        self, bytes_of: Callable[[int], int], vector_bytes: int, fingerprint: str, choices: Choices, seed: int = 0
    ):
        self.room = 0  # bytes that products may take besides what is kept; 0: columns go one by one
        self.held = 0  # vectors a column that CUDA graphs hold between products
        self._bytes_of, self._vector_bytes, self._fingerprint = bytes_of, vector_bytes, fingerprint
        self._choices, self._seed = choices, seed
        self._costs: dict[int, float] = {}
        self._plans: dict[int, list[int]] = {}
        noted = choices.noted(NOTE, fingerprint)
        self.used: list[int] = [int(width) for width in re.findall(r"\d+", noted.partition(";")[0])]
        self.why = noted.partition(";")[2] or None  # a width is not used, but for its cost

    @property
    def transient_bytes(self) -> int:
        """The bytes that the widest product in use takes for intermediate values, and for its vectors on their way."""
        return max(map(self._needed, self.used), default=0)

    def _needed(self, width: int) -> int:
        return self._bytes_of(width) + (ON_THEIR_WAY + self.held) * width * self._vector_bytes

    def planned(self, count: int) -> list[int]:
        """The plan for so many columns; empty where none has been made yet."""
        return self._plans.get(count, [])

    def plan(self, count: int, run: Callable[[int, Tensor], Run], example: Tensor) -> list[int]:
        """The widths by which `count` columns are multiplied, one after the other; the last may be padded.

        Args:
            count: the number of columns.
            run: returns the product of so many columns as a function of rows (k, n), for one of a vector (n,), given
                a vector of the same type.
            example: such a vector.
        """
        if count not in self._plans:
            self._plans[count] = self._make_plan(count, run, example)
            self.used = sorted({*self.used, *self._plans[count]} - {1})
            self._choices.note(NOTE, self._fingerprint, f"{self.used};{self.why or ''}")
        return self._plans[count]

    def _make_plan(self, count: int, run: Callable[[int, Tensor], Run], example: Tensor) -> list[int]:
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
            if (needed := self._needed(width)) > self.room:
                self.why = f"{width} columns take {needed:,} bytes"
                return math.inf
            keys = draw_keys(torch.Generator().manual_seed(self._seed), width)
            rows = normal_rows(keys, slice(0, len(example)), example.dtype, example.device)
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
        narrower = max((other for other in WIDTHS if other < width), default=1)
        fills = (
            over == 0 or over >= PADDED * width or costs[width] <= math.ceil(over / narrower)
        )  # each costs 1 or more
        if costs[width] <= MARGIN * width and fills:
            break
    least: list[tuple[float, list[int]]] = [(0.0, [])]
    for some in range(1, count + 1):
        ways = ((price + least[max(some - width, 0)][0], width) for width, price in costs.items())
        price, width = min(ways)
        least.append((price, [width, *least[max(some - width, 0)][1]]))
    return sorted(least[count][1], reverse=True)
