"""Where recordings go besides files: an experiment tracker, TensorBoard, a logger of Lightning's, or a function."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from spectra.errors import SpectraError, describe
from spectra.inputs.spec import input_error, resolve
from spectra.krylov.results import Eigenpairs, TraceEstimate
from spectra.records.precondition import PreconditionRecord
from spectra.sweeps.eigenspaces import ranks
from spectra.sweeps.tracked import named, names_of

Tracker = Callable[[dict[str, float], int], Any]  # (values by name, step)
OPTION, TENSORBOARD = "`log`", "tensorboard"
PACKAGES = {TENSORBOARD: "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}  # with their modules
GIVE = (
    "give an object with .log(values, step), as wandb's run, a SummaryWriter of TensorBoard, a logger of Lightning's, "
    "or a function (values, step)"
)


def tracker(log: Any) -> Tracker:
    """The function (values, step) that hands named numbers to a tracker.

    Args:
        log: an object with `log_metrics(values, step)` (loggers of Lightning, mlflow), with `add_scalar(name, value,
            step)` (TensorBoard's SummaryWriter) or with `log(values, step)` (a run of wandb, the modules wandb and
            trackio, accelerate); or a function (values, step).

    Raises:
        SpectraError: it is none of these.
    """
    if isinstance(log, type):
        raise SpectraError(f"`log`: {log.__name__} is a class; call it first: {log.__name__}(...)")
    for name, adapted in ADAPTERS.items():
        if callable(getattr(log, name, None)):
            return adapted(log)
    if callable(log):
        return log
    raise SpectraError(f"`log`: {type(log).__name__} is not a tracker; {GIVE}")


def by_log_metrics(log: Any) -> Tracker:
    """Hand over all values at once, the step by its name."""
    return lambda values, step: log.log_metrics(values, step=step)


def by_add_scalar(log: Any) -> Tracker:
    """Hand over one value after another."""

    def tell(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            log.add_scalar(name, value, step)

    return tell


def by_log(log: Any) -> Tracker:
    """Hand over all values at once, the step by its name where `log` has an argument of that name."""
    by_name = has_step(log.log)
    # wandb.log is another function once wandb.init() has been called: it is looked up each time.
    return lambda values, step: log.log(values, step=step) if by_name else log.log(values, step)


ADAPTERS: dict[str, Callable[[Any], Tracker]] = {
    "log_metrics": by_log_metrics,
    "add_scalar": by_add_scalar,
    "log": by_log,
}


def has_step(function: Callable[..., Any]) -> bool:
    """Whether a function has an argument `step`, or takes arguments of any name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of what is written in C
        return True
    return "step" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def scalars(
    loss: float,
    seconds: float,
    products: int,
    eigenpairs: Mapping[str, Eigenpairs],
    traces: Mapping[str, TraceEstimate],
    searched: Mapping[str, int | None] | None = None,
    precondition: PreconditionRecord | None = None,
) -> dict[str, float]:
    """The numbers of a recording by the names under which they are tracked, those left out that are not finite.

    They group as `spectra/hessian/...`: `eigenvalue_1` is the largest, `smallest_eigenvalue_1` the smallest of those
    below zero, each with its residual; the trace comes with its standard error. A preconditioned matrix is called
    `hessian_preconditioned`.

    Args:
        eigenpairs, traces: by the name of the matrix.
        searched: the last step at which eigenvalues beside these were searched for, by that name.
        precondition: what the matrices are preconditioned by.
    """
    found: dict[str, float] = {"loss": loss, "products": products, "seconds": seconds}
    for name, pairs in eigenpairs.items():
        matrix = named(name, precondition is not None)
        values, threshold = pairs.values.cpu().numpy(), precondition and precondition.threshold_of(name)
        for rank, value, residual in zip(ranks(values, "LM").tolist(), values, pairs.residuals.tolist(), strict=True):
            numbers = {"eigenvalue": (value, residual)}
            if threshold:
                numbers["over_threshold"] = value / threshold, residual / threshold
            for quantity, both in numbers.items():
                found |= zip((f"{matrix}/{told}" for told in names_of(quantity, rank)), both, strict=True)
        if threshold:
            found[f"{matrix}/threshold"] = threshold
        if (step := (searched or {}).get(name)) is not None:
            found[f"{matrix}/searched"] = step
    for name, trace in traces.items():
        matrix = named(name, precondition is not None)
        found |= {f"{matrix}/trace": trace.value, f"{matrix}/trace_error": trace.standard_error}
    return {f"spectra/{name}": float(value) for name, value in found.items() if math.isfinite(value)}


@contextmanager
def named_tracker(spec: str) -> Iterator[Tracker]:
    """The tracker of a name, inside this context: it is opened at the start, and closed at the end.

    Args:
        spec: `tensorboard:DIR`, `wandb:PROJECT`, `trackio:PROJECT`, or `path/to/file.py:name` or `package.module:name`
            of what `tracker` takes.

    Raises:
        SpectraError: there is no such tracker, its package is not installed, or it fails.
    """
    kind, _, place = spec.partition(":")
    try:
        if kind in PACKAGES:
            with opened(kind, place, spec) as log:
                yield tracker(log)
        else:
            yield tracker(resolve(spec, OPTION))
    except SpectraError:
        raise
    except Exception as error:
        raise input_error(OPTION, spec, f"it failed with {describe(error)}; correct that, and try again") from error


@contextmanager
def opened(kind: str, place: str, spec: str) -> Iterator[Any]:
    """The tracker of a package, opened in a directory or for a project, and closed at the end. Raises SpectraError."""
    if not place:
        raise input_error(
            OPTION, spec, f"it names no place; write {kind}:{'DIR' if kind == TENSORBOARD else 'PROJECT'}"
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of the package's own, where it is imported
            package = import_module(PACKAGES[kind])
    except ImportError as error:
        raise input_error(OPTION, spec, f"the package {kind} is not installed; pip install {kind}") from error
    if kind == TENSORBOARD:
        with package.SummaryWriter(place) as writer:
            yield writer
    else:
        package.init(project=place)
        yield package
        package.finish()
