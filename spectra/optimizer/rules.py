"""The register of optimizers whose preconditioner is known, and how a saved state tells which one it is of.

A state dict of torch names no optimizer. It is told by the options of its groups and the names in its state, all of
which have to be known: other optimizers share most of their names with Adam, and none of its formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spectra.optimizer.accumulators import adadelta, adagrad, none, rmsprop, summed_steps
from spectra.optimizer.adam import adam, averaged, look_ahead, nadam, radam
from spectra.optimizer.entry import Entry, refusal
from spectra.optimizer.momentum import Recurrence
from spectra.optimizer.sgd import heavy_ball, identity
from spectra.quoting import foreign
from spectra.wording import counted


@dataclass(frozen=True)
class Rule:
    """How an optimizer of torch makes its steps."""

    options: frozenset[str]  # of its groups, without those that say how a step is computed or are in all
    kept: frozenset[str]  # names of its state
    diagonal: Callable[[Entry], Tensor]  # of P, in float64
    recurrence: Callable[[Entry], Recurrence]


AVERAGES = frozenset({"step", "exp_avg", "exp_avg_sq"})
ADAM = Rule(frozenset({"lr", "betas", "eps", "weight_decay", "amsgrad"}), AVERAGES | {"max_exp_avg_sq"}, adam, averaged)
RULES = {
    "Adam": ADAM,
    "AdamW": ADAM,
    "NAdam": Rule(
        frozenset({"lr", "betas", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay"}),
        AVERAGES | {"mu_product"},
        nadam,
        look_ahead,
    ),
    "RAdam": Rule(
        frozenset({"lr", "betas", "eps", "weight_decay", "decoupled_weight_decay"}),
        AVERAGES,
        radam,
        averaged,
    ),
    "Adagrad": Rule(
        frozenset({"lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value"}),
        frozenset({"step", "sum"}),
        adagrad,
        none,
    ),
    "RMSprop": Rule(
        frozenset({"lr", "alpha", "eps", "weight_decay", "momentum", "centered"}),
        frozenset({"step", "square_avg", "grad_avg", "momentum_buffer"}),
        rmsprop,
        summed_steps,
    ),
    "Adadelta": Rule(
        frozenset({"lr", "rho", "eps", "weight_decay"}),
        frozenset({"step", "square_avg", "acc_delta"}),
        adadelta,
        none,
    ),
    "SGD": Rule(
        frozenset({"lr", "momentum", "dampening", "weight_decay", "nesterov"}),
        frozenset({"momentum_buffer"}),
        identity,
        heavy_ball,
    ),
}
# How a step is computed; and what schedulers, trackers and users write into groups beside the options.
COMPUTED = {"foreach", "maximize", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
BESIDE = {
    *("params", "param_names", "initial_lr", "swa_lr", "max_lr", "min_lr", "lr_scale", "lr_mult"),
    *("base_momentum", "max_momentum", "name", "group_name", "layer"),
}
# Names of states and options that only these others have.
OTHERS = {
    "state1": "an optimizer of bitsandbytes, whose state may be of 8 bits",
    "qmap1": "an 8-bit optimizer of bitsandbytes",
    "exp_avg_sq_row": "Adafactor, whose state is factored",
    "row_var": "Adafactor, whose state is factored",
    "beta2_decay": "Adafactor, whose state is factored",
    "ns_steps": "Muon, whose preconditioner is not diagonal",
    "factor_matrices": "Shampoo, whose preconditioner is not diagonal",
    "GG": "SOAP, whose preconditioner is not diagonal",
    "exp_inf": "Adamax",
    "etas": "Rprop",
    "lambd": "ASGD",
    "max_iter": "L-BFGS",
}
KNOWN = f"read are those of torch's {', '.join(list(RULES)[:-1])} and {list(RULES)[-1]}"


def recognise(groups: Iterable[Mapping[str, Any]], states: Iterable[Mapping[str, Any]], name: str | None = None) -> str:
    """The name in RULES of the optimizer that groups and states are of; `name` where one is given and fits.

    Raises SpectraError where it is none of them.
    """
    options = {key for group in groups for key in group}
    # What users label their groups with is text.
    labels = {key for group in groups for key, value in group.items() if isinstance(value, str)}
    kept = {key for state in states for key in state}
    for mark, other in OTHERS.items():
        if mark in options | kept:
            raise refusal(f"its state is that of {other}, which is not read; {KNOWN}")
    if name is not None and name not in RULES:
        raise refusal(f"{foreign(name)} is not known; {KNOWN}")
    for one, rule in RULES.items():
        if name in (None, one) and rule.options <= options and kept <= rule.kept:
            strange = options - rule.options - COMPUTED - BESIDE - labels
            if name or ("foreach" in options and not strange):  # all of torch's have it
                return one
    seen = f"{counted(len(options), 'option')} ({foreign(', '.join(sorted(map(str, options))[:12]))})"
    if name:
        raise refusal(f"its groups have {seen}, which are not those of torch's {name}; check the name")
    raise refusal(f"its groups have {seen}, which are not those of an optimizer that is known; {KNOWN}")
