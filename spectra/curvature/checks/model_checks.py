"""Refuse a model with unsuitable outputs before the first product, and say how to correct it."""

from __future__ import annotations

from spectra.curvature.engine.memory_plan import with_small_logits
from spectra.curvature.engine.used_parameters import output_depends_on_parameters
from spectra.errors import SpectraError
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.head import rows_by_parts
from spectra.problem.model_checks import fewest, refuse_random_output, refuse_shared_outputs
from spectra.problem.problem import Problem
from spectra.quoting import foreign


def refuse_unfit(problem: Problem) -> None:
    """Raise SpectraError where the output is random or constant, mixes examples, or does not fit the targets.

    Products do not show a random output, since a kept graph holds one draw. Matrices of one problem share the outcome
    as long as parameters, modes and hooks do not change.
    """
    state = state_of(problem)
    if problem.found_fit == state:
        return
    if problem.batches:
        refuse_misfit(problem)
        refuse_random_output(problem)
        if not isinstance(problem.loss, BatchLoss):  # its values may mix examples
            refuse_shared_outputs(problem)
    if problem.weight and not output_depends_on_parameters(problem):
        some = foreign(", ".join(list(problem.parameters)[:4])) + (", ..." if len(problem.parameters) > 4 else "")
        raise SpectraError(
            f"`params`: the model's output does not depend on any chosen parameter ({some}); choose some that it is "
            "computed from, or look for detach() and no_grad() in the model, and for weights that its eval() merges"
        )
    problem.found_fit[:] = state


def state_of(problem: Problem) -> list:
    """A list that stays equal as long as the model's parameters, modes and hooks do not change."""
    modules = problem.model.modules()
    return [*(p._version for p in problem.leaves), *((m.training, len(m._forward_hooks)) for m in modules)]


def refuse_misfit(problem: Problem) -> None:
    """Raise SpectraError where a batch's targets do not fit the output."""
    batch = fewest(problem)
    rows = next(rows_by_parts(with_small_logits(problem), batch))[0].detach()
    for each in problem.batches:
        problem.check(rows, each)


def refuse_one_example(problem: Problem, name: str) -> None:
    """Raise SpectraError where a covariance would be zero by definition, and rounding is all that is left."""
    if problem.examples < 2:
        raise SpectraError(f"`curvature` {name}: a covariance needs two examples or more, got 1; raise `samples`")
