"""The `Problem`: a model, a loss and data, at the model's current parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from spectra.arguments import LARGEST_SEED, require_boolean, require_integer, require_number, wrong
from spectra.errors import ArgumentError, SpectraError, describe
from spectra.memory import out_of_memory
from spectra.problem.batch import Batch
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.blocks import recomputing
from spectra.problem.losses import ClassificationLoss, CustomLoss, Loss
from spectra.problem.model_inputs import (
    BEYOND,
    BEYOND_EMBEDDING,
    Structured,
    detached_inputs,
    lacks_decoder_inputs,
    map_tensors,
    versions,
)
from spectra.problem.model_loss import forward
from spectra.problem.outputs import Layout, choose_output, flattened, tensors_of
from spectra.problem.parameter_selection import refuse_training_layers, select_parameters
from spectra.problem.side_effects import without_side_effects
from spectra.problem.tokens import Head
from spectra.problem.weights import Weighable, labels_of, weighable, weights_of
from spectra.wording import counted


@dataclass(frozen=True)
class Processes:
    """The processes that share the batches; here this process alone, and several in a subclass."""

    rank: int = 0
    count: int = 1

    def total(self, part: Tensor) -> Tensor:
        """Sum `part` over all processes; each gets the same bits."""
        return part

    def least(self, number: int) -> int:
        """The minimum of `number` over all processes."""
        return number

    def totals(self, *numbers: float) -> list[float]:
        """Sum each number over all processes."""
        return self.total(torch.tensor(numbers, dtype=torch.float64)).tolist()


@dataclass(frozen=True)
class Problem:
    """A model, a loss and data: the mean loss over all batches as a function of the chosen parameters.

    Matrices do not depend on how the examples are split into batches (except fisher-batch). The model is left as it was
    found.

    Attributes:
        model: the network.
        loss: a loss of spectra: `CrossEntropy`, `MeanSquaredError`, `BinaryCrossEntropy`, `CustomLoss` or another.
        batches: the data, as a list of `Batch`.
        parameters: the chosen parameters by name; their entries, in this order, are the n rows of a matrix. If empty,
            all parameters that require gradients.
        weight_decay: the coefficient of |theta|^2 / 2, which is added to the loss.
        seed: the seed of the labels that fisher-mc draws.
        mc_samples: the number of labels that fisher-mc draws for each example.
        output_key: which tensor is the output of a model that returns several, such as `logits` or `0.hidden`.
        processes: the processes that share the products; each holds all batches.
        recompute_activations: whether to recompute activations in the model's blocks for derivatives, which takes less
            memory and more time; None: only if memory requires it.
        blocks: the names of the modules with recomputed activations.
        head: the last layer, if its logits are computed in chunks of tokens; otherwise None.

    Examples:
        >>> import torch, spectra
        >>> x, y = torch.randn(20, 4), torch.randint(3, (20,))
        >>> batches = spectra.cut_batches(x, y, torch.arange(20), 10)
        >>> spectra.Problem(torch.nn.Linear(4, 3), spectra.CrossEntropy(), batches)
        Problem(Linear, cross_entropy: 15 parameters, 20 examples in 2 batches, torch.float32 on cpu)
    """

    model: nn.Module
    loss: Loss
    batches: Sequence[Batch]
    parameters: Mapping[str, nn.Parameter] = field(default_factory=dict)
    weight_decay: float = 0.0
    seed: int = 0
    mc_samples: int = 1
    output_key: str | None = None
    processes: Processes = Processes()
    recompute_activations: bool | None = None
    blocks: tuple[str, ...] = ()
    head: Head | None = None
    found_fit: list = field(default_factory=list, init=False, repr=False, compare=False)  # for `checks.refuse_unfit`
    layouts: dict = field(default_factory=dict, init=False, repr=False, compare=False)  # of outputs that are trees
    containers: list = field(default_factory=list, init=False, repr=False, compare=False)  # see `_takes_container`

    def __post_init__(self):
        refuse_foreign(self.model, self.loss, self.batches)
        require_number("weight_decay", self.weight_decay, finite=True)
        require_integer("seed", self.seed, 0, LARGEST_SEED)
        require_integer("mc_samples", self.mc_samples)
        require_boolean("recompute_activations", self.recompute_activations, optional=True)
        if not self.parameters:
            object.__setattr__(self, "parameters", select_parameters(self.model))
        refuse_training_layers(self.model)

    def __repr__(self) -> str:
        examples = (
            f"{counted(sum(map(len, self.batches)), 'example')} in {counted(len(self.batches), 'batch', 'batches')}"
        )
        names = f"{type(self.model).__name__}, {getattr(self.loss, 'name', type(self.loss).__name__)}"
        return f"Problem({names}: {counted(self.size, 'parameter')}, {examples}, {self.dtype} on {self.device})"

    @property
    def leaves(self) -> tuple[nn.Parameter, ...]:
        """The chosen parameters, as a tuple."""
        return tuple(self.parameters.values())

    @property
    def size(self) -> int:
        """The number n of entries of the chosen parameters, which is the number of rows of a matrix."""
        return sum(p.numel() for p in self.leaves)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters and of vectors."""
        return self.leaves[0].dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters and of vectors."""
        return self.leaves[0].device

    @cached_property
    def weight(self) -> float:
        """The number W by which the sum of the batches' losses is divided; 1 for losses that are sums.

        Raises:
            SpectraError: all targets are ignored or have weight 0.
        """
        return self.mean_weight

    @cached_property
    def mean_weight(self) -> float:
        """The number by which the sum of the batches' losses is divided to give the mean loss.

        It is 1 for a loss with `reduction` "sum".

        Raises:
            SpectraError: all targets are ignored or have weight 0.
        """
        weight = sum(map(self.weight_of, self.batches))
        if not weight > 0:
            raise SpectraError(
                "`data`: there are no targets, or all are ignored or have weight 0, so the mean loss is undefined; "
                "check ignore_index and weight of `loss`"
            )
        return 1.0 if getattr(self.loss, "reduction", "mean") == "sum" else weight

    @cached_property
    def examples(self) -> int:
        """The number N of examples, as the loss counts them: targets that are not ignored, or rows."""
        return sum(map(self.examples_of, self.batches))

    def weight_of(self, batch: Batch) -> float:
        """The contribution of a batch to `mean_weight`."""
        if batch.targets is None:
            return len(batch)
        labels, weights = self.labels(batch), weights_of(self.loss, batch.targets)
        every = self.loss.weight(labels)
        return every if weights is None else (weights * weighable(self.loss).value_weights(labels)).sum().item()

    def examples_of(self, batch: Batch) -> int:
        """The number of examples of a batch, as the loss counts them."""
        if batch.targets is None:
            return len(batch)
        labels, weights = self.labels(batch), weights_of(self.loss, batch.targets)
        if weights is None:
            return self.loss.examples(labels)
        return int((weighable(self.loss).counted(labels) & (weights != 0).any(dim=1)).sum())

    def labels(self, batch: Batch) -> Any:
        """The targets of a batch as the loss takes them, without their weights.

        Raises:
            SpectraError: the loss does not take such targets.
        """
        return labels_of(self.loss, batch.targets)

    def counted(self, rows: Tensor, batch: Batch) -> Tensor:
        """Booleans (E,) that say which rows are examples."""
        if not isinstance(self.loss, Weighable):
            return torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        weights = weights_of(self.loss, batch.targets)
        kept = self.loss.counted(self.labels(batch))
        return kept if weights is None else kept & (weights != 0).any(dim=1)

    def rows(self, batch: Batch) -> Tensor:
        """Compute the model's output on a batch as the loss views it, with one row for each example: (E, K).

        For a user's loss, rows are the output itself, (b, ...), or its tensors side by side if it has several, (b,
        K). For a loss of (model, batch), they are its values, (b, 1) or (1, 1).

        Raises:
            SpectraError: the model fails, or the targets do not fit the output.
        """
        return self.rows_of(self.output(batch), batch)

    def rows_of(self, output: Any, batch: Batch) -> Tensor:
        """Arrange an output of the model as rows.

        Raises:
            SpectraError: the targets do not fit.
        """
        if isinstance(output, Tensor) or not isinstance(self.loss, CustomLoss):
            return self.loss.rows(output, self.labels(batch))
        rows, layout = flattened(output, len(batch))
        self.layouts[layout_key(batch, layout.by_example)] = layout
        return rows

    def total(self, rows: Tensor, batch: Batch) -> Tensor:
        """The sum of the losses of a batch's rows, a tensor (). Call `rows` for this batch first."""
        if isinstance(self.loss, CustomLoss):
            return self.loss.total(self.restored(rows, batch), batch.targets, len(batch))
        labels, weights = self.labels(batch), weights_of(self.loss, batch.targets)
        if weights is None:
            return self.loss.total(rows, labels)
        values = weighable(self.loss).values(rows, labels)
        return (weights.to(rows) * values).where(weights != 0, 0).sum()

    def hits(self, loss: ClassificationLoss, rows: Tensor, batch: Batch) -> Tensor:
        """Whether the output predicts each counted target correctly: booleans (counted,)."""
        hits, weights = loss.hits(rows, self.labels(batch)), weights_of(loss, batch.targets)
        if weights is None:
            return hits
        return hits[(weights != 0)[weighable(loss).counted(self.labels(batch))].flatten()]

    def restored(self, rows: Tensor, batch: Batch) -> Any:
        """Restore the model's output from the rows of a user's loss. Call `rows` for this batch first."""
        layout = self.layout(batch)
        return layout.restored(rows) if layout else rows

    def layout(self, batch: Batch) -> Layout | None:
        """The layout of an output of several tensors in the rows of a batch; None before `rows` was called for it."""
        if not self.layouts:
            return None
        return self.layouts.get(layout_key(batch, False)) or self.layouts.get(layout_key(batch, True))

    def check(self, rows: Tensor, batch: Batch) -> None:
        """Check that the values of a batch's targets fit its rows.

        Raises:
            SpectraError: they do not fit, such as a label beyond the number of classes.
        """
        self.loss.check(rows, self.labels(batch))
        weights = weights_of(self.loss, batch.targets)
        if weights is not None and not (weights >= 0).all():
            raise SpectraError("`data`: some weights of targets are negative or nan; give weights of 0 or more")

    def output(self, batch: Batch) -> Any:
        """Compute the model's output on a batch, without side effects on the model.

        Returns:
            A tensor; for a user's loss it may be tuples, lists or mappings of tensors.

        Raises:
            SpectraError: the model fails, or the loss needs one tensor and `output_key` names none.
        """
        with without_side_effects(self.model):
            return self.call(batch)

    def call(self, batch: Batch) -> Any:
        """Call the model on a batch, without undoing side effects such as those on BatchNorm's statistics.

        Raises:
            SpectraError: the model fails, or the loss needs one tensor and `output_key` names none.
        """
        grad = torch.is_grad_enabled()
        given = detached_inputs(batch.inputs, self.writes_inputs)
        before = versions(given)
        output = self._forward(given, batch)
        if not self.writes_inputs and versions(given) != before:
            raise SpectraError(
                "`model`: its forward wrote to its inputs in place, for some batches only, and changed the data; let "
                "it work on a copy (x = x.clone())"
            )
        return output if grad else map_tensors(Tensor.detach, output)

    @cached_property
    def writes_inputs(self) -> bool:
        """Whether the model writes to its inputs in place; it is tried on copies of a few examples."""
        batch = self.batches[0]
        for cut in (slice(2), slice(None)):
            with suppress(SpectraError, TypeError):  # inputs that cannot be cut, or a model that rejects two examples
                some = batch if cut == slice(None) else batch.part(cut)
                given = detached_inputs(some.inputs, True)
                before = versions(given)
                self._forward(given, some)
                return versions(given) != before
        return False  # the next call raises the same error, and reports it

    def _forward(self, inputs: Any, batch: Batch) -> Any:
        """The model's output on inputs, with gradients enabled, since some models differentiate in forward."""
        try:
            with torch.enable_grad(), recomputing(self.model, self.blocks):
                if isinstance(self.loss, BatchLoss):
                    given = inputs.whole() if isinstance(inputs, Structured) else inputs
                    return self.loss.values(self.model, given, len(batch))
                output = forward(self.model, inputs)
        except Exception as error:
            if isinstance(error, SpectraError) or out_of_memory(error):
                raise
            way_out = "check that `model` fits `data`"
            if isinstance(inputs, Mapping):
                way_out += f", which give it {', '.join(map(str, inputs))}"
                if lacks_decoder_inputs(self.model, inputs):
                    way_out = "it makes the inputs of its decoder from labels, which only `loss` model gives it"
            of_kinds = any(phrase in str(error) for phrase in ("type", "not implemented for"))  # and not of shapes
            if BEYOND in str(error):
                way_out = BEYOND_EMBEDDING
            if "Guard failed" in str(error):  # torch.export's, which fixes sizes by default
                way_out = "it was exported for one batch size: set `batch_size` to that, or export with dynamic_shapes"
            if isinstance(inputs, Tensor) and not inputs.is_floating_point() and of_kinds:
                way_out = (
                    f"x holds integers ({inputs.dtype}): convert them to floats, e.g. with `transform` file.py:name"
                )
            raise SpectraError(
                f"`model`: fails on the data ({describe(error)}); {way_out} (SPECTRA_TRACEBACK=1 shows where)"
            ) from error
        chosen = choose_output(output, self.output_key, trees=getattr(self.loss, "several_outputs", False))
        if isinstance(self.loss, CustomLoss) and self.output_key is None and chosen is not output:
            chosen = output if self._takes_container(self.loss, output, batch.targets) else chosen
        kinds = {tensor.dtype for tensor in tensors_of(chosen)}
        if not any(kind.is_floating_point or kind.is_complex for kind in kinds):
            raise SpectraError(
                f"`model`: its output is {listed(kinds)}, which has no derivative; return floating-point values, such "
                "as logits, or select them with `output`"
            )
        return chosen

    def _takes_container(self, loss: CustomLoss, output: Any, targets: Any) -> bool:
        """Whether a user's loss expects the container that holds the only tensor of an output, as in `o.logits`.

        The loss is tried once on the container, since `o[0]` of a bare tensor would silently be its first row.
        """
        if not self.containers and tensors_of(output):
            self.containers.append(works(loss, output, targets))
        return self.containers == [True]

    def vector(self, tensors: Sequence[Tensor]) -> Tensor:
        """Concatenate tensors with the shapes of the parameters into one vector (n,)."""
        return torch.cat([t.reshape(-1) for t in tensors])

    def parameter_vector(self) -> Tensor:
        """The chosen parameters as they are now, in one vector (n,)."""
        return self.vector([p.detach() for p in self.leaves])

    def tensors(self, vector: Tensor, leaves: slice = slice(None)) -> tuple[Tensor, ...]:
        """Split a vector (n,) into views with the shapes of the parameters.

        Args:
            vector: the vector, over all parameters or over those of `leaves` alone.
            leaves: which parameters, as a slice of `problem.leaves`.

        Returns:
            The views, in order.
        """
        shapes = self.leaves[leaves]
        parts = vector.split([p.numel() for p in shapes])
        return tuple(part.view(p.shape) for part, p in zip(parts, shapes, strict=True))


def works(loss: CustomLoss, output: Any, targets: Any) -> bool:
    """Whether a user's loss accepts an output."""
    with suppress(SpectraError):
        loss.called(output, targets)
        return True
    return False


def layout_key(batch: Batch, by_example: bool) -> tuple[tuple[int, ...], ...]:
    """A key that is equal for batches with the same layout of outputs; `by_example` leaves out the batch size."""
    return tuple(tuple(tensor.shape[1 if by_example else 0 :]) for tensor in tensors_of(batch.inputs))


def listed(dtypes: Iterable[torch.dtype]) -> str:
    """The names of dtypes, for a message."""
    return " and ".join(sorted(map(str, dtypes))) or "no tensor"


def refuse_foreign(model: Any, loss: Any, batches: Any) -> None:
    """Raise ArgumentError if an argument is not a model, a loss of ours or a list of batches."""
    if not isinstance(model, nn.Module):
        if isinstance(model, type):
            raise ArgumentError(f"`model`: expected a torch.nn.Module, got the class {model.__name__}")
        raise wrong("model", type(model), "a torch.nn.Module")
    if isinstance(loss, type) or not isinstance(loss, Loss):
        came = getattr(loss, "__name__", type(loss).__name__)
        raise ArgumentError(
            f"`loss`: expected a loss of spectra, got {came}; use spectra.MeanSquaredError(), CrossEntropy(), "
            "BinaryCrossEntropy() or CustomLoss(function)"
        )
    if not isinstance(batches, Sequence) or not all(isinstance(batch, Batch) for batch in batches[:1]):
        inside = f" of {type(batches[0]).__name__}" if isinstance(batches, Sequence) else ""
        raise ArgumentError(
            f"`batches`: expected a list of spectra.Batch, got {type(batches).__name__}{inside}; make them with "
            "spectra.cut_batches(x, y, torch.arange(len(y)), size)"
        )
    if not batches:
        raise ArgumentError("`batches`: is empty; give one spectra.Batch or more")


def require_problem(problem: object) -> None:
    """Raise ArgumentError if `problem` is not a Problem."""
    if not isinstance(problem, Problem):
        raise wrong("problem", type(problem), "a Problem, such as spectra.load_problem(...).problem")
