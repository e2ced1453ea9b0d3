"""The preconditioner of an optimizer at a problem's parameters: P, what weight decay adds, and the threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spectra.errors import ArgumentError
from spectra.operator import SymmetricOperator, find_on, placed
from spectra.optimizer.entry import Entry, refusal
from spectra.optimizer.momentum import Threshold, threshold
from spectra.optimizer.preconditioned import Preconditioned
from spectra.optimizer.rules import ALWAYS_DECOUPLED, RULES, names_in, of_class, recognise, refuse_others
from spectra.optimizer.saved import Entries, read_entries
from spectra.problem.choice import choose_parameters
from spectra.quoting import foreign
from spectra.wording import outline


@dataclass(frozen=True)
class Preconditioner:
    """A P as P^-1/2, and what an optimizer adds to the curvature A of the loss.

    The optimizer meets P^-1/2 A P^-1/2 + diag(decay), or with -A where it maximizes. Where learning rates differ
    between parameters, P / eta stands for P throughout, and `threshold` is without eta.
    """

    optimizer: str | None  # the name of torch's class; None: P was given itself
    root: Any  # P^-1/2: (n,), float64 on the CPU, of a diagonal P; else a SymmetricOperator (n, n)
    decay: Tensor | None  # (n,), float64 on the CPU; None: zero
    rate: float | None  # eta; None where rates differ, or there is no optimizer
    threshold: Threshold  # of the eigenvalues of the whole
    sign: float = 1.0
    matched: str | None = None  # how a saved state's parameters were told: names, or order; None: they were known

    __repr__ = outline

    @property
    def diagonal(self) -> bool:
        """Whether P is diagonal."""
        return isinstance(self.root, Tensor) and self.root.ndim == 1

    def around(self, operator: SymmetricOperator, of_loss: bool | None = None) -> Preconditioned:
        """The preconditioned matrix of an operator (n, n) at the same parameters.

        Args:
            operator: the matrix A.
            of_loss: whether A is made of second derivatives, to which weight decay and the sign of `maximize` belong.
                Matrices of products of gradients, as their covariance, have neither. None: as a `Curvature` tells.
        """
        rows = len(self.root) if self.diagonal else self.root.shape[0]
        if operator.shape[0] != rows:
            raise ArgumentError(f"`operator` of shape {tuple(operator.shape)}: give one of {rows:,} rows")
        if of_loss is None:
            of_loss = getattr(find_on("definition", operator), "loss_power", 1) == 1
        root = self.root
        if isinstance(root, Tensor):
            root = placed(root, operator) if self.diagonal else root.to(operator.device)
        if not of_loss:
            return Preconditioned(operator, root)
        decay = None if self.decay is None else placed(self.decay, operator)
        return Preconditioned(operator, root, decay, self.sign)


def preconditioner(
    optimizer: Optimizer | Mapping,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter] | None = None,
    *,
    name: str | None = None,
) -> Preconditioner:
    """The preconditioner that an optimizer of torch has at a model's parameters, from its state.

    Args:
        optimizer: a torch.optim optimizer, or what its `state_dict()` returned.
        model: the model whose parameters were optimized.
        parameters: those by which the loss is differentiated, by their names in the model; None: all that require
            gradients. The rows of P are their entries in this order.
        name: the name of torch's class, as `AdamW`, where a state dict does not tell: Adam's and AdamW's of torch
            before 2.7 look alike.

    Returns:
        A Preconditioner. Coupled weight decay w adds w I to A (so that `weight_decay` of a problem is to be left out),
        and decoupled weight decay adds w P.

    Raises:
        SpectraError: the optimizer is none of those in `spectra.optimizer.rules.RULES`, a parameter has no state yet or
            none that is certainly its own, or P is not positive and finite.
    """
    chosen = choose_parameters(model) if parameters is None else parameters
    held = entries_of(optimizer, model, chosen, name)
    return replace(_of_entries(held.kind, [held.by_name[own] for own in chosen], name), matched=held.matched)


def entries_of(
    optimizer: Optimizer | Mapping, model: nn.Module, chosen: Mapping[str, nn.Parameter], name: str | None = None
) -> Entries:
    """What an optimizer, or its state dict, holds of the chosen parameters and others; arguments as `preconditioner`'s.

    Raises SpectraError where a chosen one is not certainly among those that it moves.
    """
    is_saved = isinstance(optimizer, Mapping)
    held = read_entries(optimizer, model, name) if is_saved else _live(optimizer, model, name)
    if missing := [own for own in chosen if own not in held.by_name]:
        rest = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise refusal(
            f"{foreign(missing[0])}{rest} not among its parameters; leave out by `params` what it does not move"
        )
    return held


def _live(optimizer: Any, model: nn.Module, name: str | None) -> Entries:
    """What an optimizer in memory holds, which knows its parameters themselves."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):  # as Accelerate and Lightning wrap it
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise refusal(f"{type(optimizer).__name__} is no optimizer; give one of torch.optim, or its state_dict()")
    states = [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"]]
    known = name or of_class(type(optimizer))
    if known is None:
        refuse_others(names_in(optimizer.param_groups), names_in(states))
        shown = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
        raise refusal(f"{foreign(shown)} is not known; if it steps as one of {', '.join(RULES)} does, give `name` too")
    rule = recognise(optimizer.param_groups, states, known)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    held = {
        own: Entry(own, p.shape, groups[id(p)], optimizer.state.get(p, {}), p)
        for own, p in model.named_parameters()
        if id(p) in groups
    }
    return Entries(rule, held, matched=None)


def _of_entries(kind: str, entries: list[Entry], name: str | None) -> Preconditioner:
    rule = RULES[kind]
    rates = [rule.rate(entry) for entry in entries]
    rate = rates[0] if len(set(rates)) == 1 else None
    signs = {entry.on("maximize") for entry in entries}
    if len(signs) > 1:
        raise refusal("it maximizes some parameters and minimizes others, so the matrix it meets is not symmetric")
    decoupled = [is_decoupled(entry, kind, name) for entry in entries]
    decays = [rule.decay(entry) for entry in entries]
    roots, added, shares = [], [], []
    for entry, eta, apart, decay in zip(entries, rates, decoupled, decays, strict=True):
        unit = 1.0 if rate is not None else eta
        inverse = unit / _diagonal(rule.diagonal(entry), entry)
        roots.append(inverse.sqrt().flatten())
        added.append((torch.full_like(inverse, unit) if apart else inverse).flatten() * decay)
        shares.append(unit * decay if apart else 0.0)
    return Preconditioner(
        optimizer="AdamW" if kind == "Adam" and any(decoupled) else kind,
        root=torch.cat(roots),
        decay=torch.cat(added) if any(decays) else None,
        rate=rate,
        threshold=threshold([rule.recurrence(entry) for entry in entries], shares, rate),
        sign=-1.0 if True in signs else 1.0,
    )


def _diagonal(diagonal: Tensor, entry: Entry) -> Tensor:
    """The diagonal of P. Raises SpectraError where it is not positive and finite."""
    if not (diagonal.isfinite() & (diagonal > 0)).all():
        raise refusal(
            f"P is zero or not finite at entries of {foreign(entry.name)}: no gradient has come there and eps is 0, or "
            "the run diverged; leave it out by `params`, or take another checkpoint"
        )
    return diagonal


def is_decoupled(entry: Entry, kind: str, name: str | None) -> bool:
    """Whether weight decay is decoupled. Raises SpectraError where it matters and the state does not tell or denies."""
    if kind in ALWAYS_DECOUPLED:
        if entry.options.get("decoupled_weight_decay") is False and entry.number("weight_decay"):
            raise refusal(
                f"its state says that weight decay is coupled, as Adam's is, and not as {kind}'s; leave the name out"
            )
        return True
    told = "decoupled_weight_decay" in entry.options or name is not None or kind not in ("Adam", "AdamW")
    if not told and entry.number("weight_decay"):
        raise refusal(
            "its weight decay is Adam's or AdamW's, and a state of torch before 2.7 does not tell which; give `name`, "
            "or write ?name=AdamW behind a path"
        )
    return entry.on("decoupled_weight_decay")
