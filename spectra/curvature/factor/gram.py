"""The Gram matrix F F' of A = F'F + shift I: its non-zero eigenvalues are those of A less the shift.

F = S J, with S the root of M that the matrix defines, has one row for an output of an example (ggn, fisher), a drawn
label (fisher-mc), an example (fisher-empirical) or a batch (fisher-batch). F F' is the sum of F_p F_p' over parameters
p, so that F is made block by block, and for linear layers not at all (Dangel, Tatzel, Hennig 2022).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate, chain

import torch
from torch import Tensor

from spectra.curvature.engine.batches import own_batches
from spectra.curvature.engine.differentiation import Jacobian, explained, gradient, twice_differentiable
from spectra.curvature.engine.gradients import mean_gradient
from spectra.curvature.factor.inner_products import add_gram
from spectra.curvature.factor.linear_layers import (
    Features,
    linear_calls,
    linear_features,
    linear_squares,
    row_squares,
)
from spectra.curvature.factor.part import BatchRoot, first_of
from spectra.curvature.matrices import definition, refuse_gram
from spectra.devices import device_of_vectors
from spectra.errors import SpectraError
from spectra.memory import memory_share
from spectra.problem.batch import Batch
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.losses import CustomLoss
from spectra.problem.problem import Problem

LARGEST = 10_000  # rows; the Gram matrix takes 0.8 GB, its eigenvectors as much again, and minutes
SINGLE = 16  # examples of a batch in the time of one alone: 2 to 9 were measured on CPUs, more on a GPU
LARGEST_ROOTS = 2**27  # bytes of S on one batch, which is decomposed in float64


class Factor:
    """The factor F (rows, n) of a matrix A = F'F + shift I of a problem, one that `Curvature` has accepted.

    Args:
        problem: the model, loss and data.
        name: the matrix.
        memory: the bytes for blocks of F, and for inputs and slopes of linear layers (of at least one layer); by
            default a quarter of the device's. F F', S and the graph of one batch are not included.

    Raises:
        SpectraError: the matrix has no such factor.
    """

    def __init__(self, problem: Problem, name: str, memory: int | None = None):
        refuse_gram(name)
        self.problem = problem
        self.name = name
        self.definition = definition(name)
        self.memory = memory_share(problem.device) if memory is None else memory
        self.shift = problem.weight_decay
        self._passes = 0.0

    @property
    def products(self) -> int:
        """The products spent so far; a pass J v or J'u over all the data counts as half a product."""
        return math.ceil(round(self._passes / 2, 6))  # shares may not add up to the last digit

    @property
    def rows(self) -> int:
        """The number of rows of F."""
        return sum(part.size for part in self.parts)

    @cached_property
    def parts(self) -> list[BatchRoot]:
        """The rows of S for each batch. Raises SpectraError where there are too many for a Gram matrix."""
        self._refuse_wide()
        with self._settings():
            parts = list(self._parts(self.problem.batches))
        for part in parts:
            self._refuse_many(len({i for i, _ in part.kinds}))
        return parts

    def cost(self) -> int:
        """The number of products that `gram` will cost."""
        return math.ceil(self._price(len(self._groups()), set(chain(*self._layers))) / 2)

    def trace_cost(self) -> int:
        """The number of products that `trace` will cost, judged by the first batch that has rows."""
        known, part = set(chain(*self._layers)), self._first_parts[-1]
        passes = self._passes_of(part, bool(known), bool(self._besides(known))) if part.size else 0
        return math.ceil((passes + self.definition.subtracts_mean_gradient) / 2)

    def trace_work(self) -> float:
        """The work of `trace` in products, estimated from shapes alone.

        A pass over examples one by one counts SINGLE times. The work is no less than `trace_cost`, and infinite where S
        may not exist, or is large for a batch.
        """
        matrix, batch = self.definition, self.problem.batches[0]
        units = 1 if matrix.depends_on_batches else len(batch)
        with self._settings():
            rows, calls = linear_calls(self.problem, batch, units)

        each = matrix.most_root_rows(self.problem, rows)
        if not matrix.semidefinite(self.problem.loss) or each * rows.nbytes > LARGEST_ROOTS:
            return math.inf

        kinds = each if matrix.depends_on_batches else each * len(rows) // len(batch)
        known = {i for call in calls for i in call.key}
        passes = bool(known) * (kinds + 1) + bool(self._besides(known)) * kinds * min(SINGLE, units)
        return (passes + matrix.subtracts_mean_gradient) / 2

    @property
    def one_by_one(self) -> int:
        """The number of parameters whose columns of F are filled row by row."""
        return sum(p.numel() for p in self._besides(set(chain(*self._layers))))

    @property
    def columns(self) -> int:
        """The count of numbers that an inner product of two rows of F reads from each row.

        For an outer product they are the numbers of its two factors.
        """
        return self.one_by_one + sum(self._layers.values())

    def gram(self) -> Tensor:
        """The Gram matrix F F' (rows, rows), in float64."""
        total = torch.zeros(self.rows, self.rows, dtype=torch.float64, device=device_of_vectors(self.problem.device))
        known: set[int] = set()
        with self._settings():
            for keys in self._groups():
                features = self._features(keys)
                known |= {i for key in features for i in key}
                while features:  # each pair is freed as soon as it has been added
                    inputs, slopes = features.popitem()[1]
                    add_gram(total, slopes, inputs)
            for first, last in self._spans(known):
                add_gram(total, self._block(self._besides(known), first, last))

        self._passes += self._price(len(self._groups()), known)
        return self._centred(self._centred(total).T)

    def trace(self) -> float:
        """The trace of F'F, the sum of all squares in F; rows are not stored, so there may be any number."""
        with self._settings():
            total, passes = self._totals([(squares.sum().item(), passes) for _, squares, passes in self._squares()])
        self._passes += passes
        if self.definition.subtracts_mean_gradient:
            total -= row_squares(mean_gradient(self.problem)[None]).item()
            self._passes += 1
        return total

    def squares(self) -> Tensor:
        """The sum of |row|^2 over the rows of F of each of this process's examples (N,), in float64.

        The mean gradient is not subtracted. A matrix made of whole batches does not have it.
        """
        found, spent = [torch.zeros(0, dtype=torch.float64)], []
        with self._settings():
            for part, squares, passes in self._squares():
                every = torch.zeros(part.kept.shape, dtype=torch.float64)
                every[part.kept.cpu()] = squares.cpu()
                examples = self.problem.counted(part.kept.sum(dim=1).flatten(), part.batch).cpu()
                found.append(every.sum(dim=1).flatten()[examples])
                spent.append((0.0, passes))
        self._passes += self._totals(spent)[1]
        return torch.cat(found)

    def _squares(self) -> Iterator[tuple[BatchRoot, Tensor, float]]:
        """Yield this process's parts, each with |row|^2 (size,) of its rows of F and the passes that they took."""
        for part in self._parts(own_batches(self.problem)):
            found = linear_squares(self.problem, part)
            known = {i for key in found for i in key}
            squares = torch.zeros(part.size, dtype=torch.float64, device=device_of_vectors(self.problem.device))
            for more in found.values():
                squares += more
            if (rest := self._besides(known)) and part.size:
                squares += torch.cat([row_squares(row[None]) for row in self._gradients(part, rest)])
            yield part, squares, self._share(part) * self._passes_of(part, bool(known), bool(rest))

    def _totals(self, numbers: list[tuple[float, float]]) -> list[float]:
        """The sums of both numbers, over all processes."""
        return self.problem.processes.totals(sum(x for x, _ in numbers), sum(y for _, y in numbers))

    def times(self, vectors: Tensor) -> Tensor:
        """F v for each row v of `vectors` (k, n): (k, rows)."""
        found = [vectors.new_zeros(len(vectors), 0)]
        vectors = vectors.to(self.problem.device)
        with self._settings():
            for part in self.parts:
                jacobian = Jacobian(self.problem, part.batch)
                found.append(
                    torch.stack([part.times(jacobian.times(vector)) for vector in vectors]).to(found[0].device)
                )
        self._passes += len(vectors)
        return self._centred(torch.cat(found, dim=1))

    def transposed_times(self, weights: Tensor) -> Tensor:
        """F'w for each row w of `weights` (k, rows): (k, n)."""
        place = device_of_vectors(self.problem.device)
        vectors = torch.zeros(len(weights), self.problem.size, dtype=self.problem.dtype, device=place)
        pieces = self._centred(weights).split([part.size for part in self.parts], dim=1)
        with self._settings():
            for part, piece in zip(self.parts, pieces, strict=True):
                rows = self._rows(part.batch)
                for vector, w in zip(vectors, piece, strict=True):
                    slope = part.transposed_times(w).view_as(rows)
                    vector += self.problem.vector(gradient(rows, self.problem.leaves, slope)).to(place)
        self._passes += len(vectors)
        return vectors

    @contextmanager
    def _settings(self) -> Iterator[None]:
        with twice_differentiable(self.problem.model), explained():
            yield

    def _rows(self, batch: Batch) -> Tensor:
        return self.problem.rows(batch)

    def _parts(self, batches: Sequence[Batch]) -> Iterator[BatchRoot]:
        made = {id(part.batch): part for part in self._first_parts}
        for batch in batches:
            yield made[id(batch)] if id(batch) in made else self._part(batch)

    @cached_property
    def _first_parts(self) -> list[BatchRoot]:
        """The parts up to the first that has rows; costs are predicted from it."""
        parts: list[BatchRoot] = []
        for batch in self.problem.batches:
            if not parts or not parts[-1].size:
                parts.append(self._part(batch))
        return parts

    def _part(self, batch: Batch) -> BatchRoot:
        with torch.no_grad():
            rows = self._rows(batch)
        self.problem.check(rows, batch)
        return BatchRoot(batch, self.definition.root(self.problem, batch, rows))

    def _refuse_wide(self) -> None:
        """Refuse too many rows before S is made, which takes the cube of the outputs.

        The number of rows is known for built-in losses, which curve in every direction but one.
        """
        loss = self.problem.loss
        if self.definition.root_is_of_full_rank and not isinstance(loss, CustomLoss):
            with self._settings(), torch.no_grad():
                rows = self._rows(first_of(self.problem.batches[0], 1))
            self._refuse_many(self.definition.most_root_rows(self.problem, rows) - isinstance(loss, CrossEntropy))

    def _refuse_many(self, each: int) -> None:
        units, kind = self.problem.examples, "examples"
        if self.definition.depends_on_batches:
            units, kind = len(self.problem.batches), "batches"
        if each * units > LARGEST:
            raise SpectraError(
                f"`method` gram: the Gram matrix of {self.name} has {each * units:,} rows here ({units:,} {kind} x "
                f"{each}), more than the limit of {LARGEST:,}; choose another method, or fewer `samples`"
            )

    def _centred(self, rows: Tensor) -> Tensor:
        """Rows times the symmetric root of I - 11'/N. Examples without a row have a gradient of zero."""
        count = rows.shape[-1]
        if not self.definition.subtracts_mean_gradient or not count:
            return rows
        share = (1 - math.sqrt(1 - count / self.problem.examples)) / count
        return rows - share * rows.sum(dim=-1, keepdim=True)

    # Passes over the data.

    def _price(self, groups: int, known: set[int]) -> float:
        blocks = len(self._spans(known))
        return sum(self._share(part) * self._passes_of(part, groups, blocks) for part in self.parts)

    def _passes_of(self, part: BatchRoot, groups: int, blocks: int) -> float:
        """The number of passes over the part's own batch.

        A group of layers takes one pass for each kind of row and one for a test; a block of columns one for each row.
        """
        return groups * (len(part.kinds) + 1) + blocks * part.size / len(part.roots)

    def _share(self, part: BatchRoot) -> float:
        return len(part.batch) / sum(map(len, self.problem.batches))

    # Parameters of linear layers, all rows at once.

    @cached_property
    def _layers(self) -> dict[tuple[int, ...], int]:
        """The width of each linear layer by its key, from the first batch that has rows."""
        with self._settings():
            part = self._first_parts[-1]
            return {call.key: call.width for call in linear_calls(self.problem, part.batch, len(part.roots))[1]}

    def _groups(self) -> list[set[tuple[int, ...]]]:
        """The keys of layers, in groups whose inputs and slopes of all rows fit memory together.

        A layer that does not fit is alone.
        """
        groups: list[set[tuple[int, ...]]] = []
        each, room = self.rows * self.problem.dtype.itemsize, 0
        for key, width in self._layers.items():
            size = each * width
            if not groups or size > room:
                groups.append(set())
                room = self.memory
            groups[-1].add(key)
            room -= size
        return groups

    def _features(self, keys: set[tuple[int, ...]]) -> Features:
        """The inputs and slopes of all rows, for the layers among `keys` that are used in every batch."""
        parts = [part for part in self.parts if part.size]
        found: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for part in parts:
            for key, pair in linear_features(self.problem, part, keys).items():
                found.setdefault(key, []).append(pair)

        features: Features = {}
        for key, pairs in found.items():
            if len(pairs) == len(parts):
                inputs, slopes = zip(*pairs, strict=True)
                features[key] = torch.cat(inputs), torch.cat(slopes)
        return features

    # The other parameters, row by row.

    def _besides(self, known: set[int]) -> list[Tensor]:
        return [p for p in self.problem.leaves if id(p) not in known]

    def _spans(self, known: set[int]) -> list[tuple[int, int]]:
        """The first and last columns of each block, among all columns of the other parameters."""
        columns = sum(p.numel() for p in self._besides(known))
        width = max(1, self.memory // (max(self.rows, 1) * self.problem.dtype.itemsize))
        return [(first, min(first + width, columns)) for first in range(0, columns, width)]

    def _block(self, leaves: list[Tensor], first: int, last: int) -> Tensor:
        """Columns `first` to `last` of F by these parameters: (rows, last - first)."""
        ends = list(accumulate(p.numel() for p in leaves))
        inside = [(end, p) for end, p in zip(ends, leaves, strict=True) if first < end and end - p.numel() < last]
        start = inside[0][0] - inside[0][1].numel()

        block = torch.empty(self.rows, last - first, dtype=self.problem.dtype, device=self.problem.device)
        rows = (row for part in self.parts for row in self._gradients(part, [p for _, p in inside]))
        for target, row in zip(block, rows, strict=True):
            target.copy_(row[first - start : last - start])
        return block

    def _gradients(self, part: BatchRoot, leaves: list[Tensor]) -> Iterator[Tensor]:
        """Yield the part's rows of F by these parameters, one after the other."""
        for unit in part.units():
            rows = self._rows(unit.batch)
            for kind in unit.kinds:
                yield self.problem.vector(gradient(rows, leaves, unit.of_kind(*kind).view_as(rows)))
