"""Send recordings to an experiment tracker: wandb, TensorBoard, a Lightning logger, or a function."""

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
PACKAGES = {TENSORBOARD: "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}  # modules to import
GIVE = (
    "give an object with .log(values, step), such as a wandb run, a SummaryWriter of TensorBoard, a Lightning logger, "
    "or a function (values, step)"
)


def tracker(log: Any) -> Tracker:
    """Convert a tracker object to a function (values, step) that logs named numbers.

    Args:
        log: an object with `log_metrics(values, step)` (loggers of Lightning, mlflow), with `add_scalar(name, value,
            step)` (TensorBoard's SummaryWriter) or with `log(values, step)` (a run of wandb, the modules wandb and
            trackio, accelerate); or a function (values, step).

    Raises:
        SpectraError: `log` is none of these.
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
    """Log all values at once, with `step` as a keyword."""
    return lambda values, step: log.log_metrics(values, step=step)


def by_add_scalar(log: Any) -> Tracker:
    """Log one value after another."""

    def add(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            log.add_scalar(name, value, step)

    return add


def by_log(log: Any) -> Tracker:
    """Log all values at once, with `step` as a keyword if `log` has that argument."""
    by_name = has_step(log.log)
    # wandb.init() replaces wandb.log, so it is looked up at each call.
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
    except (TypeError, ValueError):  # functions written in C may have no signature
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
    """Return the finite numbers of a recording by the names under which they are tracked.

    Names are grouped as `spectra/hessian/...`: `eigenvalue_1` is the largest eigenvalue, `smallest_eigenvalue_1` the
    smallest negative one, each with its residual; the trace comes with its standard error. A preconditioned matrix is
    called `hessian_preconditioned`.

    Args:
        loss: the loss over the watched examples.
        seconds: the time of the recording.
        products: the number of matrix-vector products.
        eigenpairs: eigenpairs by the name of the matrix.
        traces: traces by the name of the matrix.
        searched: the last step at which further eigenvalues were searched for, by the name of the matrix.
        precondition: the preconditioner of the matrices; None for none.

    Returns:
        Numbers by name.
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
                found |= zip((f"{matrix}/{label}" for label in names_of(quantity, rank)), both, strict=True)
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
    """Open the tracker with a name for the time of this context.

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
        raise input_error(OPTION, spec, f"it failed with {describe(error)}; correct this, and try again") from error


@contextmanager
def opened(kind: str, place: str, spec: str) -> Iterator[Any]:
    """Open the tracker of a package in a directory or for a project, and close it at the end. Raises SpectraError."""
    if not place:
        what, place = ("directory", "DIR") if kind == TENSORBOARD else ("project", "PROJECT")
        raise input_error(OPTION, spec, f"the {what} is missing; write {kind}:{place}")
    try:
        with warnings.catch_warnings(action="ignore"):  # warnings on import
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
