"""Compute the logits of a language model in chunks of tokens, from the inputs of its last linear layer (the head).

Logits are far larger than the inputs of the head. So a forward pass stops at the head, and the logits are computed for
one chunk of tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from spectra.problem.batch import Batch
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.problem import Problem
from spectra.problem.recomputation import Links, recomputed
from spectra.problem.tokens import Head, Tokens
from spectra.problem.weights import LABELS, WEIGHTS, weights_of

LEAST = 512  # classes: with fewer, logits take little of the memory


class HeadReached(BaseException):
    """Raised when a forward pass reaches the head; a BaseException, so that no model catches it."""

    def __init__(self, given: Tensor):
        super().__init__()
        self.given = given


def loss_of(problem: Problem, batch: Batch) -> Tensor:
    """The sum of the losses of a batch, a tensor (), as a function of the parameters.

    If the problem has a head, first and second derivatives are computed in chunks too. Raises SpectraError as
    `Problem.rows` does.
    """
    if problem.head is None:
        return problem.total(problem.rows(batch), batch)
    layer, given = problem.head.layer(problem.model), head_inputs(problem, batch, problem.head)
    links: Links = {}
    totals = [
        recomputed(lambda some, part=part: problem.total(logits(layer, some), part), given[part.cut], links=links)
        for part in tokens_of(problem, batch, problem.head, len(given))
    ]
    return torch.stack(totals).sum()


def rows_by_parts(problem: Problem, batch: Batch) -> Iterator[tuple[Tensor, Batch]]:
    """Yield the rows of a batch with their targets: all at once, or in chunks of tokens if the problem has a head."""
    if problem.head is None:
        yield problem.rows(batch), batch
        return
    layer, given = problem.head.layer(problem.model), head_inputs(problem, batch, problem.head)
    for part in tokens_of(problem, batch, problem.head, len(given)):
        yield logits(layer, given[part.cut]), part


def head_inputs(problem: Problem, batch: Batch, head: Head) -> Tensor:
    """The inputs of the head for a batch, one row per token: (E, D)."""

    def stop(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        raise HeadReached(arguments[0])

    _ = problem.writes_inputs  # calls the model, so it is evaluated before hooks are registered
    handle = head.layer(problem.model).register_forward_pre_hook(stop)
    try:
        problem.output(batch)
    except HeadReached as reached:
        given = reached.given if torch.is_grad_enabled() else reached.given.detach()
        return given.flatten(0, -2)
    finally:
        handle.remove()
    raise RuntimeError(f"the model no longer calls {head.name}")


def logits(head: nn.Linear, given: Tensor) -> Tensor:
    """The logits of some tokens."""
    return F.linear(given, head.weight, head.bias)


def tokens_of(problem: Problem, batch: Batch, head: Head, count: int) -> Iterator[Tokens]:
    """Yield the chunks of a batch of `count` tokens."""
    labels, weights = problem.labels(batch).reshape(-1), weights_of(problem.loss, batch.targets)
    indices, shared = batch.indices.repeat_interleave(count // len(batch)), {}
    for first in range(0, count, head.chunk):
        cut = slice(first, first + head.chunk)
        targets: Any = labels[cut] if weights is None else {LABELS: labels[cut], WEIGHTS: weights[cut, 0]}
        yield Tokens(None, targets, indices[cut], batch, count, cut, shared)


def find_head(problem: Problem) -> tuple[str, int, int] | None:
    """The name of the linear layer that computes the logits, the number of classes, and of tokens per example.

    None if the loss is not the cross entropy of labels, or if the output is not exactly the tensor that one layer
    returns in one call.
    """
    batch = problem.batches[0]
    if not isinstance(problem.loss, CrossEntropy) or problem.labels(batch).is_floating_point():
        return None
    wide = {name: m for name, m in problem.model.named_modules() if isinstance(m, nn.Linear) and is_plain(m)}
    if not wide or every_module._global_forward_hooks or every_module._global_forward_pre_hooks:
        return None
    calls: list[tuple[str, Tensor, int]] = []
    some = batch.part(slice(1))
    _ = problem.writes_inputs  # calls the model, so it is evaluated before hooks are registered

    def note(name: str, _module: nn.Module, _arguments: Any, output: Tensor) -> None:
        calls.append((name, output, output._version))  # held, so that no other tensor gets its memory

    handles = [module.register_forward_hook(partial(note, name)) for name, module in wide.items()]
    try:
        with torch.no_grad():
            output = problem.output(some)
            rows = problem.rows_of(output, some)
    finally:
        for handle in handles:
            handle.remove()
    found = [
        name for name, made, version in calls if (made.data_ptr(), version) == (output.data_ptr(), output._version)
    ]
    if len(found) != 1 or sum(name == found[0] for name, *_ in calls) != 1:
        return None
    name, classes = found[0], wide[found[0]].out_features
    as_it_is = rows.data_ptr() == output.data_ptr() and output.dtype == wide[name].weight.dtype
    if not as_it_is or rows.shape != (output.numel() // classes, classes) or output.shape[-1] != classes:
        return None
    return name, classes, len(rows)


def is_plain(layer: nn.Linear) -> bool:
    """Whether a layer has many outputs, and does only what `nn.Linear` does."""
    own = "forward" in vars(layer) or type(layer).forward is not nn.Linear.forward
    return layer.out_features >= LEAST and not (own or layer._forward_hooks or layer._forward_pre_hooks)
