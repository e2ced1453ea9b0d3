"""The register of supported optimizers, and how to recognise the optimizer of a saved state.

A state dict of torch does not name its optimizer. It is recognised by the options of its groups and the names in its
state. All of these must be known, because other optimizers share most names with Adam, but not its formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spectra.optimizer import adafactor
from spectra.optimizer.accumulators import adadelta, adagrad, no_momentum, rmsprop, rmsprop_momentum
from spectra.optimizer.adam import adam, adam_momentum, nadam, nadam_momentum, radam
from spectra.optimizer.momentum import Recurrence
from spectra.optimizer.parameter_state import ParameterState, refusal
from spectra.optimizer.sgd import heavy_ball, identity
from spectra.quoting import foreign
from spectra.wording import counted


def rate_of(entry: ParameterState) -> float:
    """The learning rate."""
    return entry.number("lr")


def decay_of(entry: ParameterState) -> float:
    """The weight decay."""
    return entry.number("weight_decay")


@dataclass(frozen=True)
class Rule:
    """How to recognise an optimizer, and how it makes its steps."""

    options: frozenset[str]  # of its groups, without those in COMPUTED and BESIDE
    kept: frozenset[str]  # names of its state
    diagonal: Callable[[ParameterState], Tensor]  # of P, in float64
    recurrence: Callable[[ParameterState], Recurrence]
    rate: Callable[[ParameterState], float] = rate_of
    decay: Callable[[ParameterState], float] = decay_of
    mark: str = "foreach"  # an option that all its groups have: one of torch's, or its own


AVERAGES = frozenset({"step", "exp_avg", "exp_avg_sq"})
ADAM = Rule(
    frozenset({"lr", "betas", "eps", "weight_decay", "amsgrad"}), AVERAGES | {"max_exp_avg_sq"}, adam, adam_momentum
)
RULES = {
    "Adam": ADAM,
    "AdamW": ADAM,
    "NAdam": Rule(
        frozenset({"lr", "betas", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay"}),
        AVERAGES | {"mu_product"},
        nadam,
        nadam_momentum,
    ),
    "RAdam": Rule(
        frozenset({"lr", "betas", "eps", "weight_decay", "decoupled_weight_decay"}),
        AVERAGES,
        radam,
        adam_momentum,
    ),
    "Adagrad": Rule(
        frozenset({"lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value"}),
        frozenset({"step", "sum"}),
        adagrad,
        no_momentum,
    ),
    "RMSprop": Rule(
        frozenset({"lr", "alpha", "eps", "weight_decay", "momentum", "centered"}),
        frozenset({"step", "square_avg", "grad_avg", "momentum_buffer"}),
        rmsprop,
        rmsprop_momentum,
    ),
    "Adadelta": Rule(
        frozenset({"lr", "rho", "eps", "weight_decay"}),
        frozenset({"step", "square_avg", "acc_delta"}),
        adadelta,
        no_momentum,
    ),
    "SGD": Rule(
        frozenset({"lr", "momentum", "dampening", "weight_decay", "nesterov"}),
        frozenset({"momentum_buffer"}),
        identity,
        heavy_ball,
    ),
    "Adafactor": Rule(
        frozenset({"lr", "beta2_decay", "eps", "d", "weight_decay"}),
        frozenset({"step", "row_var", "col_var", "variance"}),
        adafactor.torch_diagonal,
        no_momentum,
        adafactor.torch_rate,
        adafactor.torch_decay,
    ),
    "transformers.Adafactor": Rule(
        frozenset({"lr", "eps", "clip_threshold", "decay_rate", "beta1", "weight_decay"})
        | {"scale_parameter", "relative_step", "warmup_init"},
        frozenset({"step", "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq", "exp_avg", "RMS"}),
        adafactor.transformers_diagonal,
        adafactor.adafactor_momentum,
        adafactor.transformers_rate,
        adafactor.transformers_decay,
        mark="relative_step",
    ),
}
ALWAYS_DECOUPLED = {"AdamW", "Adafactor", "transformers.Adafactor"}
# Options for how a step is computed, and keys that schedulers, trackers and users add to groups.
COMPUTED = {"foreach", "maximize", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
BESIDE = {
    *("params", "param_names", "initial_lr", "swa_lr", "max_lr", "min_lr", "lr_scale", "lr_mult"),
    *("base_momentum", "max_momentum", "name", "group_name", "layer"),
}
# Names of states and options that only these other optimizers have.
OTHERS = {
    "state1": "an optimizer of bitsandbytes, whose state may be of 8 bits",
    "qmap1": "an 8-bit optimizer of bitsandbytes",
    "ns_steps": "Muon, whose preconditioner is not diagonal",
    "use_muon": "Muon, whose preconditioner is not diagonal",
    "factor_matrices": "Shampoo, whose preconditioner is not diagonal",
    "pre_conds": "Shampoo, whose preconditioner is not diagonal",
    "max_preconditioner_dim": "Shampoo, whose preconditioner is not diagonal",
    "GG": "SOAP, whose preconditioner is not diagonal",
    "precond_lr": "PSGD, whose preconditioner is not diagonal",
    "update_proj_gap": "GaLore, whose preconditioner is not diagonal",
    "exp_avg_res_row": "CAME, whose state is factored",
    "exp_avg_diff": "Adan",
    "exp_avg_var": "AdaBelief",
    "exp_hessian_diag_sq": "AdaHessian",
    "hessian": "Sophia, which clips each entry of its step",
    "trust_coeff": "LARS, which scales the step of each layer by its norm",
    "trust_clip": "LAMB, which scales the step of each layer by its norm",
    "d_coef": "Prodigy, which estimates its own learning rate",
    "train_mode": "a schedule-free optimizer, which takes gradients at another point",
    "exp_inf": "Adamax",
    "etas": "Rprop",
    "lambd": "ASGD",
    "max_iter": "L-BFGS",
}
FACTORED = {"exp_avg_sq_row", "exp_avg_sq_r", "row_var"}  # names in the state of any Adafactor
SUPPORTED = (
    f"supported are torch's {', '.join([name for name in RULES if '.' not in name][:-1])} and Adafactor, and "
    "transformers' Adafactor"
)


def rule_name_of(kind: type) -> str | None:
    """The name in RULES of an optimizer's class, if it is one of those."""
    package, _, module = kind.__module__.partition(".")
    torchs = package == "torch" and module.partition(".")[0] == "optim"
    name = kind.__name__ if torchs else f"{package}.{kind.__name__}"
    return name if name in RULES else None


def recognise(groups: Iterable[Mapping[str, Any]], states: Iterable[Mapping[str, Any]], name: str | None = None) -> str:
    """The name in RULES of the optimizer that saved these groups and states; a given `name` is checked.

    Raises SpectraError if it is not in RULES, or the name does not fit.
    """
    options, kept = names_in(groups), names_in(states)
    # Labels that users give their groups are text.
    labels = {key for group in groups for key, value in group.items() if isinstance(value, str)}
    refuse_others(options, kept)
    if name is not None and name not in RULES:
        raise refusal(f"{foreign(name)} is not supported; {SUPPORTED}")
    for one, rule in RULES.items():
        if name in (None, one) and rule.options <= options and kept <= rule.kept:
            strange = options - rule.options - COMPUTED - BESIDE - labels
            if name or (rule.mark in options and not strange):
                return one
    if kept & FACTORED:
        raise refusal(
            f"its state is that of an Adafactor, but in a format of neither torch nor transformers; {SUPPORTED}"
        )
    seen = f"{counted(len(options), 'option')} ({foreign(', '.join(sorted(map(str, options))[:12]))})"
    if name:
        whose = name if "." in name else f"torch's {name}"
        raise refusal(f"its groups have {seen}, which are not those of {whose}; check the name")
    raise refusal(f"its groups have {seen}, which are not those of a supported optimizer; {SUPPORTED}")


def refuse_others(options: set[str], kept: set[str]) -> None:
    """Raise SpectraError if the names of options and states are those of a known optimizer that is not supported.

    Lion has no distinctive name: it has decays like Adam, no eps, and only an average of gradients.
    """
    lion = "Lion, whose step is a sign" if "betas" in options and "eps" not in options and kept == {"exp_avg"} else None
    if other := lion or next((other for mark, other in OTHERS.items() if mark in options | kept), None):
        raise refusal(f"its state is that of {other}; {SUPPORTED}")


def names_in(mappings: Iterable[Mapping[str, Any]]) -> set[str]:
    """The names of options of groups, or of what states hold."""
    return {key for one in mappings for key in one}
