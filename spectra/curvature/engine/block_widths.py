"""Choose how many columns are multiplied together in a product, by timing each number of columns once.

A number is not used if it is no faster than single columns, does not fit memory, or gives another product than single
columns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

from spectra.curvature.engine.autotuning import MARGIN, Autotuner
from spectra.errors import describe
from spectra.random_numbers import draw_keys, normal_rows

NOTE = "columns together"  # the name under which a run saves the widths in use, and why there are no more
WIDTHS = (16, 8, 4)  # numbers of columns that may be multiplied together
FEWEST = 3  # columns from which that is tried
PADDED = 0.65  # share of a width that, if filled with columns, makes it pay to pad the rest
WORTH_MEASURING = 32  # products from which timing pays
ON_THEIR_WAY = 2  # copies of each column: as a row, and padded
SMALL = 2**21  # bytes of intermediate values beyond which columns together are no faster on a CPU

Run = Callable[[Tensor], Tensor]


class BlockWidths:
    """The choice of how many columns are multiplied together in products of batches of one shape.

    `used` are the numbers used so far, also by the run that is resumed.

    Args:
        bytes_of: a function that maps a number of columns to the bytes of intermediate values in their product; it
            raises an error where there is no such product.
        vector_bytes: the bytes of a vector.
        fingerprint: a digest of the graphs that are executed, equal for those that take the same time.
        choices: where costs are kept.
        seed: the seed of the vectors on which columns together are compared with single ones.
    """

    def __init__(
        self, bytes_of: Callable[[int], int], vector_bytes: int, fingerprint: str, choices: Autotuner, seed: int = 0
    ):
        self.room = 0  # bytes that products may take besides what is kept; 0: columns are multiplied one by one
        self.held = 0  # vectors that CUDA graphs hold between products for each column
        self._bytes_of, self._vector_bytes, self._fingerprint = bytes_of, vector_bytes, fingerprint
        self._choices, self._seed = choices, seed
        self._costs: dict[int, float] = {}
        self._plans: dict[int, list[int]] = {}
        noted = choices.noted(NOTE, fingerprint)
        self.used: list[int] = [int(width) for width in re.findall(r"\d+", noted.partition(";")[0])]
        self.why = noted.partition(";")[2] or None  # why a width is not used, other than its cost

    @property
    def transient_bytes(self) -> int:
        """The bytes that the widest product in use takes for intermediate values and copies of its vectors."""
        return max(map(self._needed, self.used), default=0)

    def _needed(self, width: int) -> int:
        return self._bytes_of(width) + (ON_THEIR_WAY + self.held) * width * self._vector_bytes

    def planned(self, count: int) -> list[int]:
        """The plan for `count` columns; empty where none has been made yet."""
        return self._plans.get(count, [])

    def plan(self, count: int, run: Callable[[int, Tensor], Run], example: Tensor) -> list[int]:
        """The widths by which `count` columns are multiplied, one after the other; the last may be padded.

        Args:
            count: the number of columns.
            run: a function of a width and an example vector that returns the product as a function of rows (k, n), or
                of a vector (n,) for width 1.
            example: a vector (n,) of the type and device of the columns.
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
        """The time of a product of `width` columns, in products of one; infinite where it must not be used."""
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
        except Exception as error:  # of any kind: columns are then multiplied one by one
            self.why = describe(error)
            return math.inf
        name, calls = f"{width} columns", (lambda: several(rows), lambda: one(rows[0]))
        return self._choices.cost(name, *calls, example.device, self._fingerprint)


def refuse_other(found: Tensor, wanted: Tensor, width: int) -> None:
    """Raise RuntimeError where a product differs from that of a single column in the first half of its digits."""
    if not (found - wanted).norm() <= torch.finfo(found.dtype).eps ** 0.5 * wanted.norm():
        raise RuntimeError(f"{width} columns together differ from single ones")


def planned(count: int, cost: Callable[[int], float]) -> list[int]:
    """The widths with the least total time for `count` columns, the widest first.

    A cost is in products of one column. Costs of narrow widths are asked for only where wider ones leave columns over.
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
