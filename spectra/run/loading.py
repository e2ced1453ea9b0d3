"""The problem of a request, loaded, with what is refused on the way: the model before data are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch

from spectra.cluster import ranks
from spectra.curvature.checks.loss_checks import why_no_gradients, why_zero
from spectra.curvature.checks.precision import refuse_precision
from spectra.curvature.matrices import KERNELS, definition, refuse_unsuited, why_unsuited
from spectra.defaults import IEEE
from spectra.errors import SpectraError
from spectra.inputs.description import describe_problem
from spectra.inputs.devices import choose_place
from spectra.inputs.problem import Loaded, load_problem
from spectra.problem.by_inputs import InputProblem
from spectra.problem.problem import Problem, Processes
from spectra.product_checks import CHECKS, NOISE_PRODUCTS
from spectra.run.request import Request
from spectra.wording import counted

SMALLEST_CHECKED = 8  # products; of fewer, the checks would leave too little


def device_of(request: Request) -> torch.device:
    """The device on which the problem is or will be. Raises SpectraError where there is no such device."""
    given = request.problem
    if isinstance(given, Problem):
        return given.device
    named = str(place_of(request)[1])
    if request.ranks and ranks.world() > 1 and (":" in named or named == "mps"):
        kind = named.partition(":")[0]
        way_out = (
            "cpu, or one process without torchrun" if kind == "mps" else f"{kind}, of which each rank takes its own"
        )
        raise SpectraError(f"`device` {named}: it is one device for all of torchrun's ranks; take `device` {way_out}")
    return choose_place(*place_of(request))[0]


def place_of(request: Request) -> tuple[Any, Any, Any]:
    """The model of a request that names its parts, and the device and dtype asked for."""
    named = cast("Mapping[str, Any]", request.problem)
    return named["model"], named.get("device"), named.get("dtype")


def idle_cards(request: Request, device: torch.device) -> str | None:
    """The note that other cards are idle, with the line that would use them; None where a user has chosen one."""
    named = request.problem.get("device") if isinstance(request.problem, Mapping) else None
    if not request.ranks or ranks.world() > 1 or device.type != "cuda" or named not in (None, "auto", "cuda"):
        return None
    if (count := torch.cuda.device_count()) < 2:
        return None
    command = f"torchrun --nproc-per-node {count} -m spectra {request.settings.command} ..."
    return f"{device} is used, the other {counted(count - 1, 'card')} not; `{command}` uses all"


def refuse_lower_precision(request: Request, device: torch.device) -> None:
    """Raise SpectraError where the device or the dtype lacks the precision asked for, before anything is loaded."""
    if request.precision != IEEE:
        given = request.problem
        own = isinstance(given, Problem)
        dtype = given.dtype if own else choose_place(*place_of(request))[1]
        refuse_precision(request.precision, dtype, device)


def processes_of(request: Request, device: torch.device) -> Processes:
    """The ranks that torchrun has started, once all are there; or those of a Problem; or this process alone."""
    if isinstance(request.problem, Problem):
        return request.problem.processes
    if request.ranks and ranks.world() > 1:
        from spectra.cluster.distributed import join

        return join(device)
    return Processes()


def checks_of(request: Request) -> int:
    """The number of products for checking that a matrix is one; none where too few would be left."""
    limit = request.max_products
    if limit is not None and limit < SMALLEST_CHECKED:
        return 0
    return CHECKS + NOISE_PRODUCTS if request.noisy else CHECKS


def load(request: Request, processes: Processes, begins: Callable[[str], None]) -> tuple[Loaded, tuple[str, ...]]:
    """The problem, and the matrices that it has of those asked for; `begins` is told of each stage.

    A note in the record tells of the others. Raises SpectraError.
    """
    names, missing = request.curvature, []

    def leave_out(name: str, reason: str) -> None:
        nonlocal names
        names = tuple(other for other in names if other != name)
        missing.append(f"{name} is left out: {reason.removeprefix('is zero: ').partition(';')[0]}")

    def fits(loss: Any, size: int) -> None:
        for name in names:
            if request.lenient and (reason := why_unsuited(name, loss)):
                leave_out(name, reason)
            else:
                refuse_unsuited(name, loss, request.weight_decay)
        if KERNELS.keys() & {*names}:  # whose size the data tell
            return
        limit = request.max_products
        request.settings.refuse_size(size, None if limit is None else limit - checks_of(request))

    if not isinstance(request.problem, Problem):
        loaded = load_problem(**request.named, processes=processes, begins=begins, fits=fits)
    else:
        given = request.problem
        fits(given.loss, given.input_size if isinstance(given, InputProblem) else given.size)
        begins("the loss over the data")
        loaded = Loaded(request.problem, describe_problem(request.problem, request.memory))
    for name in names:
        matrix = definition(name)
        if reason := why_zero(loaded.problem, matrix) or why_no_gradients(loaded.problem, matrix):
            if not request.lenient:
                raise SpectraError(f"`curvature` {name}: {reason}")
            leave_out(name, reason)
    return replace(loaded, record=loaded.record.changed(notes=[*(loaded.record.notes or ()), *missing])), names
