"""Losses as functions of the model's output: their values, weights, and the distribution p(y|f) behind them.

A loss views the model's output as rows (E, K), one per example: a target of cross entropy (each token of a sequence),
or a row of mse and bce_with_logits. The mean over a data set is the sum of `total` divided by the sum of `weight` over
all batches, which is PyTorch's own mean over all data, however they are split; with `reduction` "sum" it is the sum of
`total`. The second derivative L_i in row i is s_i times the Hessian of -log p at f_i; `scales` are the s_i.
`spectra.inputs.registers` lists the losses that have names.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from spectra.devices import device_of_vectors
from spectra.errors import ArgumentError, SpectraError, describe
from spectra.memory import out_of_memory
from spectra.quoting import quoted
from spectra.wording import counted

FIX = "fix the loss (to get (model, batch), call its first parameter model)"
RESHAPE = "choose the loss that fits them, or reshape the data"


@runtime_checkable
class Loss(Protocol):
    """The interface of a loss. Targets are those of one batch; rows are (E, K)."""

    def rows(self, output: Tensor, targets: Tensor) -> Tensor:
        """The model's output as rows.

        Raises SpectraError if the shapes do not fit; reads no values, so that it can be traced.
        """
        ...

    def check(self, rows: Tensor, targets: Tensor) -> None:
        """Raise SpectraError if values of targets do not fit rows of this width.

        Called once, before the first use.
        """
        ...

    def total(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The sum of the losses of all rows, a tensor ()."""
        ...

    def weight(self, targets: Tensor) -> float:
        """The contribution of the batch to the number by which the sum of losses is divided."""
        ...

    def examples(self, targets: Tensor) -> int:
        """The number of examples that count."""
        ...


@runtime_checkable
class ClassificationLoss(Protocol):
    """A loss of labels, for which there is an accuracy."""

    def hits(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Whether the output predicts each counted target correctly: booleans (counted,)."""
        ...


class Distribution(Protocol):
    """The interface of a loss that is -log p(y|f) of a distribution p, as the Fisher matrices need it."""

    def scales(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The scales s_i: (E, 1) or (E, K)."""
        ...

    def expected(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The expectation E_{y~p}[r r'] u for each row u of `vectors` (E, K), where r = d(-log p(y|f)) / df."""
        ...

    def draw(self, rows: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        """Draw r (E, K) for labels y from p, given `uniform(j)`: uniform numbers (E,) in (0, 1), new for each j."""
        ...


class Elementwise:
    """A loss of single outputs: an example is a row, and the mean is over all its outputs."""

    name: ClassVar[str]
    linear: ClassVar[bool] = False  # whether the second derivative in the output is zero
    convex: ClassVar[bool] = True  # in the output
    natural: ClassVar[bool] = False  # whether the output is p's natural parameter, so that ggn equals fisher

    def rows(self, output: Tensor, targets: Tensor) -> Tensor:
        """The output as rows (E, K). Raises SpectraError if the targets have another shape."""
        if output.shape != targets.shape:
            way_out = RESHAPE
            if output.shape == (*targets.shape, 1):
                way_out = "add that dimension to the targets, y[..., None], or return output.squeeze(-1) from the model"
            if targets.shape == (*output.shape, 1):
                way_out = "drop the targets' last dimension, y[..., 0], or return output.unsqueeze(-1) from the model"
            raise mismatch(self.name, output, targets, way_out)
        return output.reshape(len(output), -1)

    def check(self, rows: Tensor, targets: Tensor) -> None:
        """Accept all targets."""

    def total(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The sum of the losses of all outputs."""
        return self.values(rows, targets).sum()

    @abstractmethod
    def values(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The loss of each output, (E, K)."""

    def weight(self, targets: Tensor) -> float:
        """The number of targets."""
        return targets.numel()

    def examples(self, targets: Tensor) -> int:
        """The number of rows."""
        return len(targets)

    def value_weights(self, targets: Tensor) -> Tensor:
        """The weight of each value in the mean: ones (E, K)."""
        place = device_of_vectors(targets.device)
        return torch.ones(len(targets), targets[0].numel(), dtype=torch.float64, device=place)

    def target_shape(self, targets: Tensor) -> torch.Size:
        """The shape of the targets."""
        return targets.shape

    def counted(self, targets: Tensor) -> Tensor:
        """Booleans (E,) that say which rows are examples: all."""
        return torch.ones(len(targets), dtype=torch.bool, device=targets.device)

    def scales(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Scales of one, (E, 1)."""
        return rows.new_ones(len(rows), 1)


def like(rows: Tensor, targets: Tensor) -> Tensor:
    """Targets as rows (E, K), in the dtype of the output."""
    return targets.reshape(rows.shape).to(rows.dtype)


def columns(uniform: Callable[[int], Tensor], count: int) -> Tensor:
    """Uniform numbers (E, count) in float64."""
    return torch.stack([uniform(k) for k in range(count)], dim=1)


def normal_numbers(uniform: Callable[[int], Tensor], count: int) -> Tensor:
    """Standard normal numbers (E, count) in float64 (Box and Muller 1958)."""
    found = []
    for k in range(count):
        radius, angle = (-2 * uniform(2 * k).log()).sqrt(), 2 * torch.pi * uniform(2 * k + 1)
        found.append(radius * angle.cos())
    return torch.stack(found, dim=1)


@dataclass(frozen=True)
class MeanSquaredError(Elementwise):
    """Mean squared error, as `torch.nn.MSELoss` computes it.

    As a likelihood, it is -log p of a Gaussian of variance 1/2, divided by the number of outputs.

    Attributes:
        reduction: mean or sum.
    """

    reduction: str = "mean"

    name = "mse"
    natural = True

    def values(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The squared errors."""
        return F.mse_loss(rows, like(rows, targets), reduction="none")

    def expected(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The expectation E[r r'] u = 2 u."""
        # r = 2 (f - y) with y of variance 1/2: the expectation of r r' is 2 I.
        return 2 * vectors

    def draw(self, rows: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        """Draw r (E, K), normal numbers of variance 2."""
        return (2**0.5 * normal_numbers(uniform, rows.shape[1])).to(rows)  # 2 (f - y), of variance 2


@dataclass(frozen=True)
class CustomLoss:
    """A loss given as a function of (output, targets).

    Attributes:
        function: it returns values of the examples (b, ...), or their mean over the batch (their sum if `reduction` is
            sum), or a mapping of such parts, which are summed. Output and targets may be tuples, lists or mappings of
            tensors.
        name: the name of the loss in results and error messages.
        part: the key of the only part of a mapping to use; None: the sum of all parts.
        reduction: mean or sum: how a single number for a batch is computed from its examples' losses.

    Examples:
        >>> import spectra, torch
        >>> loss = spectra.CustomLoss(lambda output, target: (output - target).abs().pow(3).mean(dim=1))
    """

    function: Callable[[Any, Any], Any]
    name: str = "custom"
    part: str | None = None
    reduction: str = "mean"

    several_outputs: ClassVar[bool] = True  # it takes more than one tensor of the model

    def __post_init__(self):
        if not callable(self.function):
            came = type(self.function).__name__
            raise ArgumentError(f"`function`: expected a function (output, targets) -> values, got {came}")

    def rows(self, output: Tensor, targets: Any) -> Tensor:
        """Return the output itself, which the function needs in its own shape.

        Raises:
            SpectraError: output and targets differ in length.
        """
        if isinstance(targets, Tensor) and len(output) != len(targets):
            raise mismatch(self.name, output, targets)
        # Rows keep the output's own shape, which the function needs: (b, ...) in place of (E, K).
        return output

    def check(self, rows: Tensor, targets: Any) -> None:
        """Accept all targets."""

    def total(self, rows: Any, targets: Any, count: int | None = None) -> Tensor:
        """The sum over a batch of the function's values.

        Args:
            rows: the model's output, or a tensor in its place.
            targets: the targets of the batch, or None.
            count: the number of examples; None: as many as the output has entries.

        Returns:
            The sum, a tensor ().

        Raises:
            SpectraError: the function fails, or does not return such values.
        """
        count = len(rows) if count is None else count
        values = values_of(self.called(rows, targets), count, self)
        given = (leaf for leaf in pytree.tree_leaves(rows) if isinstance(leaf, Tensor))
        if not values.requires_grad and any(leaf.requires_grad for leaf in given):
            raise SpectraError(
                f"`loss` {self.name}: its value does not depend on the output; remove detach(), no_grad() and item()"
            )
        return values.sum()

    def called(self, output: Any, targets: Any) -> Any:
        """Call the function on a batch.

        Raises:
            SpectraError: the function fails.
        """
        return self.result(output, targets)

    def result(self, *arguments: Any) -> Any:
        """Call the function with these arguments.

        Raises:
            SpectraError: the function fails.
        """
        try:
            return self.function(*arguments)
        except Exception as error:
            if out_of_memory(error):
                raise
            way_out = remedy(error, FIX)
            if takes_batch(self.function):
                way_out = "it was called with (output, target); to get (model, batch), call its first parameter model"
            raise SpectraError(f"`loss` {self.name}: fails on the data ({describe(error)}); {way_out}") from error

    def weight(self, targets: Any) -> float:
        """The number of examples."""
        return length_of(targets)

    def examples(self, targets: Any) -> int:
        """The number of examples."""
        return length_of(targets)


def takes_batch(function: Callable[..., Any]) -> bool:
    """Whether the second parameter of a function is called `batch`."""
    try:
        return [*inspect.signature(function).parameters][1:2] == ["batch"]
    except (TypeError, ValueError):  # some built-ins have no signature
        return False


def remedy(error: Exception, otherwise: str = "fix the loss") -> str:
    """The way out, for the message about a user's loss that fails with this error."""
    text = str(error)
    if "dtype" in text or "scalar type" in text or "device" in text:  # e.g. of a teacher network that stays in float32
        return (
            "convert its own tensors and networks to the model's dtype and device; in a loss that is a torch.nn.Module "
            "they are converted automatically"
        )
    if "does not require grad" in text:
        return "derivatives inside a loss need create_graph=True, and inputs that require gradients"
    return otherwise


class UserLoss(Protocol):
    """The attributes of a user's loss that `values_of` needs."""

    @property
    def name(self) -> str:
        """The name of the loss in messages."""
        ...

    @property
    def part(self) -> str | None:
        """The key of the only part to use, if the loss returns several."""
        ...

    @property
    def reduction(self) -> str:
        """Whether one number for a batch is the mean or the sum of its examples' losses."""
        ...


def values_of(found: Any, count: int, loss: UserLoss) -> Tensor:
    """The losses of `count` examples (count,), or of all together (1,), from what a user's function returned.

    Raises SpectraError if it returned anything other than values of the examples, one number, or a mapping of these.
    """
    if isinstance(found, Mapping):
        return sum_of_parts({str(key): value for key, value in found.items()}, count, loss)
    if loss.part is not None:
        raise SpectraError(
            f"`loss_part` {quoted(loss.part)}: `loss` {loss.name} does not return a mapping of parts; omit it"
        )
    if isinstance(found, torch.distributions.Distribution):
        raise SpectraError(
            f"`loss` {loss.name}: takes (output, target), and returned a distribution; take the output alone, with "
            "options by keyword (output, *, scale=1.0), or return -log_prob(target)"
        )
    if not (isinstance(found, Tensor) and found.is_floating_point()):
        raise SpectraError(f"`loss` {loss.name}: returned a {type(found).__name__}; return a floating-point tensor")
    if found.ndim == 0:
        return (found if loss.reduction == "sum" else found * count).reshape(1)
    if len(found) != count:
        raise SpectraError(
            f"`loss` {loss.name}: returned shape {tuple(found.shape)} for {counted(count, 'example')}; "
            "return one value for each example, or the mean over the batch"
        )
    return found.reshape(count, -1).mean(dim=1)


def sum_of_parts(parts: Mapping[str, Any], count: int, loss: UserLoss) -> Tensor:
    """The values of the chosen part, or the sum of all parts.

    If some parts are one number for the batch, the sum is one number too. Raises SpectraError as `values_of` does.
    """
    if not parts:
        raise SpectraError(f"`loss` {loss.name}: returned an empty mapping; return one part or more")
    if loss.part is not None and loss.part not in parts:
        names = ", ".join(quoted(name) for name in parts)
        raise SpectraError(f"`loss_part` {quoted(loss.part)}: `loss` {loss.name} has no such part; available: {names}")
    chosen = parts if loss.part is None else {loss.part: parts[loss.part]}
    values = [values_of(value, count, PartOf(f"{loss.name}[{name}]", loss.reduction)) for name, value in chosen.items()]
    if len({len(value) for value in values}) > 1:  # some per example, some for the batch
        values = [value.sum(dim=0, keepdim=True) for value in values]
    return torch.stack(values).sum(dim=0)


@dataclass(frozen=True)
class PartOf:
    """One part of a user's loss."""

    name: str
    reduction: str
    part: None = None


def name_of(loss: Loss) -> str:
    """The name of a loss, for messages and records."""
    return getattr(loss, "name", "cross_entropy")


def length_of(targets: Any) -> int:
    """The number of examples in a tree of targets."""
    if isinstance(targets, Tensor | list):
        return len(targets)
    values = targets.values() if isinstance(targets, Mapping) else targets
    return length_of(next(iter(values)))


def mismatch(name: str, output: Tensor, targets: Tensor, way_out: str = RESHAPE) -> SpectraError:
    """The error for an output and targets whose shapes do not fit."""
    return SpectraError(
        f"`loss` {name}: the output has shape {tuple(output.shape)}, the targets {tuple(targets.shape)}; {way_out}"
    )
