"""Describe a model and its checkpoint, and forecast the cost of commands on a problem."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from spectra.curvature.engine.gradients import mean_gradient
from spectra.curvature.factor.forecast import gram_bytes, gram_seconds, trace_seconds
from spectra.curvature.factor.gram import Factor
from spectra.curvature.operator import Curvature
from spectra.defaults import RTOL, TOLERANCE, K
from spectra.errors import SpectraError
from spectra.inputs.description import versions
from spectra.inputs.problem import Loaded
from spectra.inputs.weights import adapter_notes, load_model
from spectra.krylov.eigenpairs import basis_of
from spectra.krylov.eigensolver import PENDING
from spectra.krylov.forecast import (
    PILOT,
    Forecast,
    forecast_eigenpairs,
    forecast_measure,
    forecast_trace,
    outline,
)
from spectra.krylov.gram import decomposition_seconds
from spectra.krylov.lanczos import begin, random_start
from spectra.krylov.results import Progress
from spectra.operator import Counting
from spectra.problem.parameter_selection import select_parameters
from spectra.product_checks import CHECKS
from spectra.records.inspect import InspectResult
from spectra.records.problem import CheckpointMatch, LayerRecord, ProblemRecord
from spectra.records.record import Record
from spectra.run.measurement import Measurement
from spectra.run.request import AnySize
from spectra.run.session import Session
from spectra.run.trace import usual_method
from spectra.vectors import norm, shard_sizes


def layers(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> Iterator[LayerRecord]:
    """Yield the modules of a model that have parameters, in its order."""
    wanted, first = {id(p) for p in chosen.values()}, {id(p): name for name, p in model.named_parameters()}
    for place, module in model.named_modules():
        held = {f"{place}.{name}".lstrip("."): p for name, p in module.named_parameters(recurse=False)}
        own = [p for name, p in held.items() if first[id(p)] == name]
        if held:
            yield LayerRecord(
                name=place,
                type=type(module).__name__,
                parameters=sum(p.numel() for p in own),
                trainable=sum(p.numel() for p in own if p.requires_grad),
                chosen=sum(p.numel() for p in own if id(p) in wanted),
                tied=[first[id(p)] for name, p in held.items() if first[id(p)] != name],
            )


@dataclass(frozen=True)
class Estimate:
    """The forecast cost of a command on one matrix, with the given options and its defaults."""

    command: str
    method: str  # gram: exact
    products: int
    seconds: float
    bytes: int  # peak on the device, of products and the method's vectors, beyond model and data
    at_least: bool  # whether the cost may be far higher
    host_bytes: int = 0  # on the host, if the basis of a GPU run is there
    largest_parameters: int | None = None  # for which the smallest basis of the method fits in memory


@dataclass(frozen=True)
class Forecasts:
    """The forecast costs of commands on one matrix, and the cost of the pilot run."""

    seconds_per_product: float
    estimates: tuple[Estimate, ...]
    products: int  # of the pilot run
    converged: bool  # whether products are finite, so that there are estimates
    refused: tuple[str, ...] = ()  # why commands would be refused for lack of memory


def forecast_commands(
    operator: Counting,
    *,
    k: int = K,
    tolerance: float = TOLERANCE,
    rtol: float = RTOL,
    generator: torch.Generator,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> Forecasts:
    """Forecast the costs of `eig`, `trace` and `density` on a counted Curvature from a pilot run of 20 products.

    There are forecasts for the default method of each, and for the Gram matrix if there is one.
    """
    start, before = time.perf_counter(), operator.products
    k = min(k, operator.shape[0])
    try:
        place = basis_of(operator, k)
    except SpectraError as error:
        return Forecasts(0.0, (), 0, converged=False, refused=(str(error),))
    steps = min(PILOT, max_products or PILOT, place.vectors)
    pilot = begin(operator, random_start(operator, generator), rows=steps + PENDING, place=place.device)
    while pilot.size < steps and len(pilot.pending) and pilot.finite:
        pilot.extend(operator)
        if progress:
            progress(products=operator.products)
    spent = operator.products - before
    pace = (time.perf_counter() - start) / max(spent, 1)
    taken = cast(Curvature, operator.operator).peak_bytes
    if not pilot.finite:
        return Forecasts(pace, (), spent, converged=False)
    seen = outline(pilot)
    n = pilot.storage.shape[1]
    held = max(shard_sizes(seen.mesh, n)) / n  # the largest share of a vector in one process

    def estimate(command: str, method: str, cost: Forecast) -> Estimate:
        products = CHECKS + cost.products
        seconds = products * pace + cost.seconds
        return Estimate(
            command,
            method,
            products,
            seconds,
            taken + int(held * cost.bytes),
            cost.at_least,
            int(held * cost.host_bytes),
            cost.largest,
        )

    refused: list[str] = []

    def unless_refused(command: str, method: str, forecast: Callable[[], Forecast]) -> Estimate | None:
        try:
            return estimate(command, method, forecast())
        except SpectraError as error:
            refused.append(str(error))
            return None

    exact = {e.command: e for e in exact_estimates(operator, k, pace)}
    estimates = [
        unless_refused(
            "eig", "lanczos", partial(forecast_eigenpairs, seen, k, tolerance=tolerance, generator=generator)
        ),
        exact.get("eig"),
        estimate("trace", "xtrace", forecast_trace(seen, rtol=rtol, generator=generator))
        if usual_method(operator, max_products and max_products - CHECKS) == "xtrace"
        else None,
        exact.get("trace"),
        unless_refused("density", "lanczos", partial(forecast_measure, seen, generator=generator)),
    ]
    return Forecasts(pace, tuple(e for e in estimates if e), spent, converged=True, refused=tuple(refused))


def exact_estimates(operator: Counting, k: int, pace: float) -> Iterator[Estimate]:
    """Yield the forecast costs of the method gram, if it would not be refused."""
    taken, vector = cast(Curvature, operator.operator).peak_bytes, operator.shape[0] * operator.dtype.itemsize
    with suppress(SpectraError):
        factor = cast(Factor, operator.factor())
        products, seconds = factor.cost() + k + math.ceil(k / 2), gram_seconds(factor) + 1.5 * k * pace
        seconds += decomposition_seconds(factor.rows)
        memory = gram_bytes(factor) + 2 * k * vector
        yield Estimate("eig", "gram", CHECKS + products, CHECKS * pace + seconds, taken + memory, False)
    with suppress(SpectraError):
        factor = cast(Factor, operator.factor())
        if factor.trace_work() < math.inf:
            products, seconds = factor.trace_cost(), trace_seconds(factor)
            yield Estimate("trace", "gram", CHECKS + products, CHECKS * pace + seconds, taken + 2 * vector, False)


@dataclass(frozen=True)
class InspectSettings(AnySize):
    """The settings of the commands that are forecast."""

    k: int = K
    tolerance: float = TOLERANCE
    rtol: float = RTOL

    command = "inspect"
    less_memory = ("`params`", "choose fewer parameters")


def inspection(session: Session[InspectSettings]) -> Record:
    """Describe a model and its checkpoint, and with data forecast commands; save the record and return it."""
    if session.request.named["data"] is None:
        found = []
        model_alone(session)
    else:
        found = measured_forecasts(session)
    record = session.record(found, [InspectResult.of(measurement) for measurement in found])
    if refused := list(dict.fromkeys(text for measurement in found for text in measurement.answer.refused)):
        record = record.changed(problem=record.problem.changed(notes=[*(record.problem.notes or ()), *refused]))
    session.save_record(record)
    return record


def measured_forecasts(session: Session[InspectSettings]) -> list[Measurement]:
    """Forecast commands for each matrix, and add layers, checkpoint and gradient to the problem's record."""
    settings = session.request.settings
    session.load(lambda: with_layers(session.network.loaded))
    with session.listener.work("gradient"):
        session.problem_record = session.problem_record.changed(gradient_norm=norm(mean_gradient(session.problem)))
    session.listener.heading(session.problem_record)
    return session.measure(partial(forecast_commands, k=settings.k, tolerance=settings.tolerance, rtol=settings.rtol))


def with_layers(loaded: Loaded) -> ProblemRecord:
    """The problem's record with its layers and the match of the checkpoint."""
    return loaded.record.changed(**model_fields(loaded.problem.model, loaded.problem.parameters, loaded.checkpoint))


def model_fields(model: nn.Module, chosen: Mapping[str, nn.Parameter], match: dict[str, Any] | None) -> dict[str, Any]:
    """The fields of a record for the layers of a model and the match of its checkpoint."""
    return {"layers": list(layers(model, chosen)), "checkpoint_match": match and CheckpointMatch(**match)}


def model_alone(session: Session[InspectSettings]) -> None:
    """Set the problem's record for a model without data."""
    session.prepare()
    arguments = session.request.named
    named = (arguments[name] for name in ("model", "checkpoint", "checkpoint_key", "seed"))
    model, match, _ = load_model(*named, params=arguments["params"])
    chosen = select_parameters(model, arguments["params"])
    session.problem_record = ProblemRecord.known(
        parameters=sum(p.numel() for p in chosen.values()),
        parameters_in_all=sum(p.numel() for p in model.parameters()),
        model=arguments["model"],
        checkpoint=arguments["checkpoint"] and str(arguments["checkpoint"]),
        checkpoint_key=match and match["key"],
        checkpoint_sha256=match and match["sha256"],
        params=list(arguments["params"]),
        seed=arguments["seed"],
        data=None,
        notes=adapter_notes(match, model, arguments["params"]),
        versions=versions(),
        **model_fields(model, chosen, match),
    )
