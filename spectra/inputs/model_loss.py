"""Recognise the loss that a model returns as a known loss of the logits that it returns too.

A model returns only the value of its loss on a batch. GGN and Fisher matrices need the loss as a function of the
logits, and a mean over all data needs the weight of each batch. So the model's loss is compared with our losses on some
examples, in value and in its gradient with respect to the parameters. If none agrees, the loss is used as a function of
the logits (`spectra.problem.own_loss`), provided that it depends on the parameters through the logits only and is a
mean over independent examples. Otherwise it is used as it is, batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spectra.curvature.engine.differentiation import explained, twice_differentiable
from spectra.errors import SpectraError, describe
from spectra.inputs.items import OTHER_TARGETS, TARGETS
from spectra.inputs.stacking import next_labels
from spectra.memory import out_of_memory
from spectra.problem.batch import Batch
from spectra.problem.binary import BinaryCrossEntropy
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.losses import CustomLoss, Loss, MeanSquaredError
from spectra.problem.model_inputs import BEYOND, BEYOND_EMBEDDING, detached_inputs
from spectra.problem.model_loss import call, forward, is_lightning, logits_in, loss_in
from spectra.problem.outputs import entries
from spectra.problem.own_loss import OwnLoss, producer_of
from spectra.problem.side_effects import without_side_effects

EXAMPLES = 8  # of the first and of the last batch, on which losses are compared
OF_LOGITS = "the model's own loss is not one that spectra knows, and is treated as a function of its logits"
VALUE, SLOPE = 1e-5, 1e-4  # relative tolerances of losses and gradients in float32; 100 times smaller in float64


@dataclass(frozen=True)
class RecognisedLoss:
    """A model's own loss as a loss of its logits, and the batches prepared for it."""

    loss: Loss
    batches: list[Batch]  # with labels as targets
    output: str | None  # path of the logits in the model's output
    note: str


@dataclass(frozen=True)
class LossHypothesis:
    """One hypothesis about a model's own loss: which of our losses it is, and how targets are made from labels."""

    loss: Loss
    sentence: str
    column: bool = False  # whether logits have a last dimension of size 1 that labels lack

    def targets(self, labels: Tensor) -> Tensor:
        """Make the targets of our loss from the labels."""
        if isinstance(self.loss, CrossEntropy) and self.loss.shift:
            return next_labels(labels, self.loss.ignore_index, "data")
        return labels[..., None] if self.column else labels


def recognise(model: nn.Module, batches: Sequence[Batch], parameters: Sequence[Tensor]) -> RecognisedLoss | None:
    """Find the loss of the logits that equals the model's own loss; None where the model computes something else.

    Args:
        model: a model that returns its loss.
        batches: batches whose inputs are the arguments of the model, labels included.
        parameters: the parameters with respect to which gradients are compared.

    Raises:
        SpectraError: the model fails on the data, or returns no loss.
    """
    with twice_differentiable(model), explained(), without_side_effects(model):
        first, last = (first_examples(batch) for batch in (batches[0], batches[-1]))
        returned = called(model, first)
        own, logits = loss_in(returned), logits_in(returned)
        key = label_key(first.inputs)
        if key is None or not (isinstance(own, Tensor) and own.ndim == 0):
            return None
        ignored = ignored_label(batch.inputs[key] for batch in batches)
        views = []
        for keep in (False, True):  # whether labels stay among the inputs: some models need them to return logits
            halves = [separated(batch, key, keep) for batch in (first, last)]
            output, shown = find_logits(model, halves[0].inputs, logits)
            if shown is not None:
                views.append((keep, halves, output, shown))
        for keep, halves, output, shown in views:
            for reading in loss_hypotheses(shown, halves[0].targets, ignored):
                pairs = zip((first, last), halves, strict=True)
                if all(agree(model, whole, half, output, reading, parameters) for whole, half in pairs):
                    made = [separated(batch, key, keep) for batch in batches]
                    made = [replace(batch, targets=reading.targets(batch.targets)) for batch in made]
                    return RecognisedLoss(reading.loss, made, output or None, reading.sentence)
        for keep, halves, output, _ in views:
            if found := as_function_of_logits(model, (first, last), halves, output, parameters):
                made = [replace(separated(batch, key, keep), targets=batch.inputs) for batch in batches]
                return RecognisedLoss(found, made, output or None, OF_LOGITS)
    return None


def as_function_of_logits(
    model: nn.Module, wholes: Sequence[Batch], halves: Sequence[Batch], output: str, parameters: Sequence[Tensor]
) -> CustomLoss | None:
    """Return the model's own loss as a function of its logits; None where it is not one, or couples examples.

    The loss depends on the parameters through the logits only, if its gradient is that of the function, and the
    gradient of the function at detached logits is zero.
    """
    function = None
    for whole, half in zip(wholes, halves, strict=True):
        inputs = detached_inputs(whole.inputs, True)
        logits = logits_of(model, half, output)
        producer = producer_of(model, inputs, logits)
        if producer is None:
            return None
        function = OwnLoss(model, producer)
        own, replaced = loss_in(call(model, inputs)), function(logits, inputs)
        detached = function(logits.detach().requires_grad_(), inputs)
        slopes = [flat_gradient(value, parameters) for value in (own, replaced, detached)]
        finer = 1 if own.dtype == torch.float32 else 1e-2
        through = (slopes[0] - slopes[1]).norm() <= finer * SLOPE * slopes[0].norm() and not slopes[2].norm()
        if not (through and is_mean_of_parts(model, whole)):
            return None
    return function and CustomLoss(function, "model")


def is_mean_of_parts(model: nn.Module, batch: Batch) -> bool:
    """Whether the loss of a batch is the mean of the losses of its halves."""
    count = len(batch)
    if count < 2:
        return True
    try:
        parts = [batch.part(slice(0, count // 2)), batch.part(slice(count // 2, None))]
    except (SpectraError, TypeError, IndexError):
        return False
    whole, *split = [loss_in(call(model, detached_inputs(b.inputs, True))).item() for b in (batch, *parts)]
    mean = sum(len(part) * value for part, value in zip(parts, split, strict=True)) / count
    return abs(whole - mean) <= VALUE * max(abs(whole), abs(mean))


def logits_of(model: nn.Module, batch: Batch, output: str) -> Tensor:
    """Return the logits in the model's output for a batch; `output` is their path, empty for the output itself."""
    returned = forward(model, detached_inputs(batch.inputs, True))
    return returned if not output else dict(places(returned))[output]


def first_examples(batch: Batch) -> Batch:
    """Return the first examples of a batch, or all of it where it cannot be cut."""
    with suppress(SpectraError, TypeError, IndexError):
        return batch.part(slice(EXAMPLES))
    return batch


def called(model: nn.Module, batch: Batch) -> Any:
    """Call the model on a batch. Raises SpectraError where it fails."""
    try:
        with torch.enable_grad():
            return call(model, detached_inputs(batch.inputs, True))
    except Exception as error:
        if isinstance(error, SpectraError) or out_of_memory(error):
            raise
        way_out = BEYOND_EMBEDDING if BEYOND in str(error) else remedy(model)
        raise SpectraError(
            f"`model`: fails on the data ({describe(error)}); {way_out} (SPECTRA_TRACEBACK=1 shows where)"
        ) from error


def remedy(model: nn.Module) -> str:
    """Return the advice for a model that fails while it computes its loss."""
    if not is_lightning(model):
        return (
            "with `loss` model, it is called with the whole batch, labels included, and has to return its loss; check "
            "that `model` fits `data`, or name another `loss`"
        )
    return (
        "its training_step is called with a batch only, without a trainer, logger or optimizer; check that `model` "
        "fits `data`, or name a `loss`"
    )


def label_key(inputs: Any) -> Any:
    """Find the labels of a batch: their key in a mapping, or index 1 of a pair; None where it is not clear."""
    if isinstance(inputs, Mapping):
        held = [key for key in TARGETS if isinstance(inputs.get(key), Tensor)]
        held = held or [key for key in OTHER_TARGETS if isinstance(inputs.get(key), Tensor)]
        return held[0] if len(held) == 1 else None
    return 1 if isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[1], Tensor) else None


def separated(batch: Batch, key: Any, keep: bool) -> Batch:
    """Make the labels of a batch its targets; with `keep`, they stay among the inputs too."""
    labels = batch.inputs[key]
    if isinstance(batch.inputs, Mapping):
        rest = {name: value for name, value in batch.inputs.items() if keep or name != key}
    else:
        rest = batch.inputs if keep else batch.inputs[0]
    return Batch(rest, labels, batch.indices)


def find_logits(model: nn.Module, inputs: Any, logits: Tensor | None) -> tuple[str, Tensor | None]:
    """Find the logits in the model's output for these inputs.

    Args:
        model: the model.
        inputs: its inputs, with or without labels.
        logits: the logits that it returns with its loss; None where it returns none: the output itself is used then.

    Returns:
        The path of the logits, empty for the output itself, and the logits; None where the output holds no logits.
    """
    with suppress(Exception):
        returned = forward(model, detached_inputs(inputs, True))
        if isinstance(returned, Tensor):
            fits = returned.ndim > 0 if logits is None else same(returned, logits)
            return "", returned if fits else None
        for path, value in places(returned):
            if logits is not None and isinstance(value, Tensor) and same(value, logits):
                return path, value
    return "", None


def places(returned: Any) -> Iterator[tuple[str, Any]]:
    """Yield the entries of an output that may be logits, with their paths."""
    found = entries(returned)
    yield from ((name, found[name]) for name in ("logits", "0", "1") if name in found)


def same(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors are equal up to rounding."""
    return one.shape == two.shape and bool((one - two).abs().max() <= SLOPE * two.abs().max())


def ignored_label(labels: Iterable[Tensor]) -> int:
    """Return the label to ignore: the lowest one if it is negative, such as -1 in nanoGPT, else PyTorch's -100."""
    lowest = min(int(part.min()) if part.numel() and not part.is_floating_point() else 0 for part in labels)
    return lowest if lowest < 0 else CrossEntropy.ignore_index


def loss_hypotheses(logits: Tensor, labels: Tensor, ignored: int) -> Iterator[LossHypothesis]:
    """Yield the losses of ours that fit the shapes of logits and labels."""
    entropy = {dim: CrossEntropy(class_dim=dim, ignore_index=ignored) for dim in (-1, 1)}
    if not labels.is_floating_point():
        if labels.shape == logits.shape[:-1] and labels.ndim == 2:
            shift = "the model's own loss is the cross entropy of its logits; the model shifts the labels by one place"
            yield LossHypothesis(CrossEntropy(class_dim=-1, shift=True, ignore_index=ignored), shift)
        if labels.shape == logits.shape[:-1]:
            yield LossHypothesis(entropy[-1], "the model's own loss is the cross entropy of its logits")
        if labels.shape == (logits.shape[0], *logits.shape[2:]):
            yield LossHypothesis(entropy[1], "the model's own loss is the cross entropy of its logits")
        return
    column = logits.shape == (*labels.shape, 1)
    if labels.shape == logits.shape or column:
        squares = "the model's own loss is the mean squared error of its output"
        yield LossHypothesis(MeanSquaredError(), squares, column=column)
        binary = "the model's own loss is the binary cross entropy of its logits"
        yield LossHypothesis(BinaryCrossEntropy(), binary, column=column)
    if labels.shape == logits.shape:
        yield LossHypothesis(entropy[-1], "the model's own loss is the cross entropy of its logits")


def agree(
    model: nn.Module, whole: Batch, half: Batch, output: str, reading: LossHypothesis, parameters: Sequence[Tensor]
) -> bool:
    """Whether our loss equals the model's own loss on a batch, in value and in its gradient."""
    own = loss_in(call(model, detached_inputs(whole.inputs, True)))
    logits = logits_of(model, half, output)
    targets = reading.targets(half.targets)
    try:
        rows = reading.loss.rows(logits, targets)
        reading.loss.check(rows, targets)
        weight = reading.loss.weight(targets)
    except SpectraError:
        return False
    if not weight:
        return False
    ours = reading.loss.total(rows, targets) / weight
    finer = 1 if own.dtype == torch.float32 else 1e-2  # many models compute their loss in float32 in any case
    if not abs(ours.item() - own.item()) <= finer * VALUE * abs(own.item()):
        return False
    slopes = [flat_gradient(value, parameters) for value in (own, ours)]
    return bool((slopes[0] - slopes[1]).norm() <= finer * SLOPE * slopes[0].norm())


def flat_gradient(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return the gradient of a scalar with respect to the parameters as one vector."""
    gradients = torch.autograd.grad(value, list(parameters), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in pytree.tree_leaves(gradients)])
