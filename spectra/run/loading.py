"""Load the problem of a request, and refuse what can be refused before the model is built or data are read."""

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
from spectra.inputs.devices import choose_device_and_dtype
from spectra.inputs.problem import Loaded, load_problem
from spectra.problem.input_problem import InputProblem
from spectra.problem.problem import Problem, Processes
from spectra.product_checks import CHECKS, NOISE_PRODUCTS
from spectra.run.request import Request
from spectra.wording import counted

SMALLEST_CHECKED = 8  # products; with fewer, checks would leave too few


def device_of(request: Request) -> torch.device:
    """The device of the problem. Raises SpectraError if there is no such device."""
    given = request.problem
    if isinstance(given, Problem):
        return given.device
    named = str(place_of(request)[1])
    if request.ranks and ranks.world() > 1 and (":" in named or named == "mps"):
        kind = named.partition(":")[0]
        way_out = "cpu, or one process without torchrun" if kind == "mps" else f"{kind}, so that each rank has its own"
        raise SpectraError(f"`device` {named}: is one device for all of torchrun's ranks; give `device` {way_out}")
    return choose_device_and_dtype(*place_of(request))[0]


def place_of(request: Request) -> tuple[Any, Any, Any]:
    """The model, device and dtype in a request that names the parts of its problem."""
    named = cast("Mapping[str, Any]", request.problem)
    return named["model"], named.get("device"), named.get("dtype")


def idle_cards(request: Request, device: torch.device) -> str | None:
    """A note that other GPUs are idle, with the command that uses them; None if the user chose a GPU."""
    named = request.problem.get("device") if isinstance(request.problem, Mapping) else None
    if not request.ranks or ranks.world() > 1 or device.type != "cuda" or named not in (None, "auto", "cuda"):
        return None
    if (count := torch.cuda.device_count()) < 2:
        return None
    command = f"torchrun --nproc-per-node {count} -m spectra {request.settings.command} ..."
    return f"{device} is used, but not the other {counted(count - 1, 'GPU')}; `{command}` uses all"


def refuse_lower_precision(request: Request, device: torch.device) -> None:
    """Raise SpectraError if the device or the dtype lacks the requested precision, before anything is loaded."""
    if request.precision != IEEE:
        given = request.problem
        own = isinstance(given, Problem)
        dtype = given.dtype if own else choose_device_and_dtype(*place_of(request))[1]
        refuse_precision(request.precision, dtype, device)


def processes_of(request: Request, device: torch.device) -> Processes:
    """The ranks that torchrun started, after all have joined; or those of a Problem; or this process alone."""
    if isinstance(request.problem, Problem):
        return request.problem.processes
    if request.ranks and ranks.world() > 1:
        from spectra.cluster.distributed import join

        return join(device)
    return Processes()


def checks_of(request: Request) -> int:
    """The number of products for checking that a matrix is symmetric; 0 if too few products would be left."""
    limit = request.max_products
    if limit is not None and limit < SMALLEST_CHECKED:
        return 0
    return CHECKS + NOISE_PRODUCTS if request.noisy else CHECKS


def load(request: Request, processes: Processes, begins: Callable[[str], None]) -> tuple[Loaded, tuple[str, ...]]:
    """Load the problem; return it and the names of the requested matrices that it has.

    `begins` is called with each stage. The record has a note for each matrix that is left out. Raises SpectraError.
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
        if KERNELS.keys() & {*names}:  # their size depends on the data
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
