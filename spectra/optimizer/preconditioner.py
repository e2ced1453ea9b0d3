"""The preconditioner of an optimizer at a problem's parameters: P, what weight decay adds, and the threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spectra.errors import ArgumentError, SpectraError
from spectra.operator import SymmetricOperator, find_on, placed
from spectra.optimizer.momentum import Threshold, threshold
from spectra.optimizer.parameter_state import ParameterState, refusal
from spectra.optimizer.preconditioned import Preconditioned
from spectra.optimizer.rules import ALWAYS_DECOUPLED, RULES, names_in, recognise, refuse_others, rule_name_of
from spectra.optimizer.state_dict import ParameterStates, read_parameter_states
from spectra.problem.parameter_selection import select_parameters
from spectra.quoting import foreign
from spectra.wording import outline


@dataclass(frozen=True)
class Preconditioner:
    """The preconditioner P of an optimizer, as P^-1/2, with its weight decay and its threshold of stability.

    In place of the curvature A of the loss, the optimizer sees P^-1/2 A P^-1/2 + diag(decay), with -A if it maximizes.
    If learning rates eta differ between parameters, P is replaced by P / eta, and the threshold does not contain eta.

    Attributes:
        optimizer: the name of torch's class; None if P was given directly.
        root: P^-1/2: a float64 vector (n,) on the CPU for a diagonal P, otherwise a symmetric operator (n, n).
        decay: the weight decay (n,), float64 on the CPU; None: zero.
        rate: the learning rate eta; None if rates differ, or there is no optimizer.
        threshold: the threshold of stability for the eigenvalues of the preconditioned matrix.
        sign: 1.0, or -1.0 if the optimizer maximizes.
        matched: how parameters of a saved state were matched with the model's: names, or order; None if they were
            known.
    """

    optimizer: str | None
    root: Any
    decay: Tensor | None
    rate: float | None
    threshold: Threshold
    sign: float = 1.0
    matched: str | None = None

    __repr__ = outline

    @property
    def diagonal(self) -> bool:
        """Whether P is diagonal."""
        return isinstance(self.root, Tensor) and self.root.ndim == 1

    def around(self, operator: SymmetricOperator, of_loss: bool | None = None) -> Preconditioned:
        """Precondition a matrix (n, n) at the same parameters.

        Args:
            operator: the matrix A.
            of_loss: whether A is a second derivative of the loss, which weight decay and the sign of `maximize` affect.
                They do not affect products of gradients, such as their covariance. None: taken from a `Curvature`, and
                True for other operators.

        Returns:
            P^-1/2 A P^-1/2 + diag(decay), as an operator.

        Raises:
            ArgumentError: the operator has another number of rows.
        """
        rows = len(self.root) if self.diagonal else self.root.shape[0]
        if operator.shape[0] != rows:
            raise ArgumentError(f"`operator` of shape {tuple(operator.shape)}: give one with {rows:,} rows")
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
    """Compute the preconditioner P of a torch optimizer, such as Adam's diagonal, from its state.

    Args:
        optimizer: a torch.optim optimizer, or what its `state_dict()` returned.
        model: the model whose parameters were optimized.
        parameters: the parameters by which the loss is differentiated, by their names in the model; None: all that
            require gradients. The rows of P are their entries in this order.
        name: the name of torch's class, such as `AdamW`, if a state dict does not show it: before torch 2.7, the states
            of Adam and AdamW look the same.

    Returns:
        A `Preconditioner`. Coupled weight decay w adds w I to A (so leave out the problem's `weight_decay`); decoupled
        weight decay adds w P.

    Raises:
        SpectraError: the optimizer is none of those in `spectra.optimizer.rules.RULES`, the state of a parameter is
            missing or cannot be matched with certainty, or P is not positive and finite.
    """
    chosen = select_parameters(model) if parameters is None else parameters
    held = parameter_states_of(optimizer, model, chosen, name)
    return replace(_from_parameter_states(held.kind, [held.by_name[own] for own in chosen], name), matched=held.matched)


def parameter_states_of(
    optimizer: Optimizer | Mapping, model: nn.Module, chosen: Mapping[str, nn.Parameter], name: str | None = None
) -> ParameterStates:
    """The options and state that an optimizer, or its state dict, holds for each parameter.

    The arguments are those of `preconditioner`. Raises SpectraError if a chosen parameter is not certainly among those
    of the optimizer.
    """
    is_saved = isinstance(optimizer, Mapping)
    held = read_parameter_states(optimizer, model, name) if is_saved else _live(optimizer, model, name)
    if missing := [own for own in chosen if own not in held.by_name]:
        rest = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise refusal(f"{foreign(missing[0])}{rest} not among its parameters; leave such parameters out with `params`")
    return held


def refuse_second_decay(
    decay: float, optimizer: Any, model: nn.Module, chosen: Mapping[str, nn.Parameter], name: str | None = None
) -> None:
    """Raise SpectraError if a problem has this weight decay, and the optimizer or its saved state has its own.

    Further arguments are those of `preconditioner`.
    """
    if not decay:
        return
    held = parameter_states_of(optimizer, model, chosen, name)
    if any(held.by_name[own].number("weight_decay") for own in chosen):
        raise second_decay(decay)


def second_decay(decay: float, optimizer: str = "the optimizer") -> SpectraError:
    """The error for a problem with a weight decay in addition to that of the `optimizer`, which the error names so."""
    return SpectraError(
        f"`weight_decay` {decay:g}: {optimizer} has its own weight decay, so it would count twice; leave "
        "`weight_decay` out"
    )


def _live(optimizer: Any, model: nn.Module, name: str | None) -> ParameterStates:
    """The options and state that an optimizer in memory holds for each parameter."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):  # as Accelerate and Lightning wrap it
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise refusal(f"expected a torch.optim optimizer or its state_dict(), got {type(optimizer).__name__}")
    states = [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"]]
    known = name or rule_name_of(type(optimizer))
    if known is None:
        refuse_others(names_in(optimizer.param_groups), names_in(states))
        shown = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
        raise refusal(
            f"{foreign(shown)} is not supported; if its steps are those of one of {', '.join(RULES)}, give `name`"
        )
    rule = recognise(optimizer.param_groups, states, known)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    held = {
        own: ParameterState(own, p.shape, groups[id(p)], optimizer.state.get(p, {}), p)
        for own, p in model.named_parameters()
        if id(p) in groups
    }
    return ParameterStates(rule, held, matched=None)


def _from_parameter_states(kind: str, entries: list[ParameterState], name: str | None) -> Preconditioner:
    rule = RULES[kind]
    rates = [rule.rate(entry) for entry in entries]
    rate = rates[0] if len(set(rates)) == 1 else None
    signs = {entry.on("maximize") for entry in entries}
    if len(signs) > 1:
        raise refusal(
            "it maximizes for some parameters and minimizes for others, so the preconditioned matrix is not symmetric; "
            "choose either with `params`"
        )
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


def _diagonal(diagonal: Tensor, entry: ParameterState) -> Tensor:
    """The diagonal of P. Raises SpectraError if it is not positive and finite."""
    if not (diagonal.isfinite() & (diagonal > 0)).all():
        raise refusal(
            f"P is zero or not finite at entries of {foreign(entry.name)}: they had no gradient and eps is 0, or the "
            "run diverged; leave it out with `params`, or give another checkpoint"
        )
    return diagonal


def is_decoupled(entry: ParameterState, kind: str, name: str | None) -> bool:
    """Whether weight decay is decoupled. Raises SpectraError if the state does not say, or contradicts `kind`."""
    if kind in ALWAYS_DECOUPLED:
        if entry.options.get("decoupled_weight_decay") is False and entry.number("weight_decay"):
            raise refusal(
                f"its state says that weight decay is coupled, as in Adam, and not as in {kind}; leave the name out"
            )
        return True
    known = "decoupled_weight_decay" in entry.options or name is not None or kind not in ("Adam", "AdamW")
    if not known and entry.number("weight_decay"):
        raise refusal(
            "it may be of Adam or AdamW, which differ in weight decay, and a state of torch before 2.7 does not say "
            "which; append ?name=AdamW to the path, or give `name` in Python"
        )
    return entry.on("decoupled_weight_decay")
