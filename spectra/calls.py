"""`spectra.eig`, `trace`, `density`, `step` and `landscape`: the commands as calls from Python.

They check, resume, deflate and record like the commands, since both pass a request to `spectra.run`. A call prints
nothing, and does not change the caller's model.

`spectra.compare` and `spectra.layers` take operators or a Problem and write no files; they are in
`spectra.comparison.comparison` and `spectra.layerwise.by_layer`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from inspect import signature
from numbers import Real
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar

from torch import nn

from spectra.arguments import LARGEST_SEED, require_boolean, require_integer, wrong
from spectra.curvature.matrices import KERNELS, MATRICES
from spectra.defaults import (
    ADAPTIVE_RHO,
    ASCENT_STEPS,
    DENSITY_PROBES,
    DENSITY_STEPS,
    EXACT,
    IEEE,
    PRECISIONS,
    PRODUCTS,
    RHO,
    RTOL,
    SAVE_EVERY,
    TOLERANCE,
    K,
)
from spectra.errors import ArgumentError, SpectraError
from spectra.given_operator import size_of
from spectra.inputs.devices import choose_device_and_dtype
from spectra.inputs.loss_options import loss_name
from spectra.inputs.operators import Operators
from spectra.inputs.problem import load_problem
from spectra.inputs.python_objects import called_program, own_loss
from spectra.inputs.spec import suggest
from spectra.krylov.methods import EIG, TRACE
from spectra.krylov.placement import BASES
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.input_problem import PARAMETERS
from spectra.problem.losses import CustomLoss
from spectra.problem.problem import Problem
from spectra.records.density import DensityResult
from spectra.records.eig import EigResult
from spectra.records.entry import Entry
from spectra.records.record import Record
from spectra.records.trace import TraceResult
from spectra.run.density import DensitySettings
from spectra.run.density import density as densities
from spectra.run.eig import EigSettings
from spectra.run.eig import eig as eigenvalues
from spectra.run.listener import Caller
from spectra.run.request import Request, S
from spectra.run.session import Session
from spectra.run.trace import TraceSettings
from spectra.run.trace import trace as traces
from spectra.steps.run import StepSettings
from spectra.steps.run import step as steps
from spectra.surfaces.landscape import Grid
from spectra.surfaces.names import named as directions_named
from spectra.surfaces.run import LandscapeSettings, landscapes
from spectra.wording import dtype_name

ENDS = ("LM", "LA", "SA", "BE")
OF_STEPS = ("hessian", "ggn")  # the default matrices of a step
OF_EXACT = {
    "precision": IEEE,
    "products": EXACT,
    "difference_step": None,
    "precondition": None,
}  # for calls without these arguments
# Keywords of the problem, besides model, loss, data and seed.
PROBLEM = tuple(
    name
    for name in signature(load_problem).parameters
    if name not in ("model", "loss", "data", "seed", "processes", "begins", "fits")
)
Progress = Callable[..., None]
Result = TypeVar("Result", bound=Entry)


def eig(
    model: Any,
    loss: Any = None,
    data: Any = None,
    *,
    curvature: str | Sequence[str] = "hessian",
    k: int = K,
    which: str = "LM",
    method: str = "lanczos",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    out: str | Path | None = None,
    max_products: int | None = None,
    basis: str = "auto",
    check: bool = True,
    precision: str = IEEE,
    products: str = EXACT,
    precondition: Any = None,
    difference_step: float | None = None,
    compile: bool | None = None,
    save_vectors: bool = False,
    save_every: float = SAVE_EVERY,
    progress: Progress | bool | None = None,
    **problem: Any,
) -> EigResult | list[EigResult]:
    """Compute eigenvalues and eigenvectors at the ends of the spectrum of a matrix, such as a network's Hessian.

    Args:
        model: a torch.nn.Module, a name as on the command line, or a `spectra.Problem` (then leave out loss and data).
            A module is evaluated in eval mode and not changed. Instead of a network it may be a matrix, in any form
            that `spectra.as_operator` takes; then leave out loss, data, curvature, check, precision and compile.
        loss: a loss of spectra or PyTorch; a function (output, target) or (model, batch), which returns values of the
            examples, their mean over the batch, or a mapping of such parts; or a name.
        data: a DataLoader or another iterable of batches (x, y), which is read once; tensors (x, y); or a name.
        curvature: the name of a matrix in `spectra.MATRICES`, or ntk, or a sequence of names.
        k: the number of eigenvalues, 1 to n, where n is the number of chosen parameters.
        which: LM (largest magnitudes), LA (largest), SA (smallest) or BE (half from either end).
        method: lanczos, power, dense or gram.
        tolerance: the residual |A u - lambda u| over |lambda| at which an eigenpair has converged.
        seed: random seed of starting vectors, drawn labels, and the choice of `samples`.
        out: a directory for eig.json and eig.npz; an interrupted call resumes from what it left there. None: nothing is
            written.
        max_products: stop after this many matrix-vector products, including checks; None: no limit.
        basis: the memory that holds the Lanczos basis: device, host (for a model on a GPU), or auto, which uses the
            host if a quarter of the device's memory is too small.
        check: compare derivatives with finite differences first.
        precision: the precision of products: ieee, tf32 (on GPUs that have it) or bf16. The noise of lower precision is
            measured first, and is the result's `noise`. Eigenvalues of lanczos are refined by products in ieee; those
            of other methods have the noise in their errors.
        products: how products with the Hessian are computed: exact, finite-difference (central differences of
            gradients) or forward-difference. The error of one product is measured, and is in the result's
            `finite_difference`.
        precondition: P, for the matrix P^-1/2 A P^-1/2 that an optimizer sees instead of A, plus its weight decay: an
            optimizer of torch, or its state; a diagonal P as a mapping from parameter names, or a vector (n,) in their
            order; an operator (n, n) that multiplies by P^-1/2; what `spectra.preconditioner` returns; or a name as on
            the command line, such as a file of one of these. None: A itself.
        difference_step: the displacement of the parameters by finite differences, relative to their norm; None: the
            best for the dtype.
        compile: compile products by torch.compile; None: only on a GPU, if that saves time over all products.
        save_vectors: write the eigenvectors (k n numbers) even if they take more than 1 GiB.
        save_every: minutes between saves to `out`.
        progress: True shows a progress line on standard error; a function is called as progress("hessian", products=12,
            ...).
        **problem: further arguments of `spectra.load_problem`: loss_part, params, wrt (inputs: the matrices of single
            examples with respect to their inputs), weight_decay, mc_samples, samples, batch_size, output, memory
            (bytes), recompute_activations, device, dtype (a module is copied to it); for a model by name also
            checkpoint, checkpoint_key and transform.

    Returns:
        An `EigResult` with `values` (k,), `residuals` (k,), `vectors` (k, n), `converged`, `complete` and `products`.
        If `curvature` is a sequence, a list of results in its order. With respect to inputs, `values` are means over
        examples, with their standard deviation `spread` (k,), and `values_by_example` and `residuals_by_example`
        (N, k).

    Raises:
        SpectraError: an argument has a value that cannot be used; the message says which one, and what to do.
        TypeError: an argument is unknown, missing, or given together with a `Problem` that has its own.

    Examples:
        >>> import torch, spectra
        >>> x, y = torch.randn(20, 4), torch.randint(3, (20,))
        >>> result = spectra.eig(torch.nn.Linear(4, 3), torch.nn.CrossEntropyLoss(), (x, y), k=2)
        >>> result.values.shape, result.converged
        ((2,), True)
    """
    given = Arguments.of(locals())
    settings = EigSettings(
        as_count("k", k, 1),
        as_choice("which", which, ENDS),
        as_choice("method", method, EIG),
        as_positive("tolerance", tolerance),
    )
    options = {"k": settings.k, "which": which, "method": method, "tol": settings.tolerance}
    request = make_request(settings, options, given)
    with Session(request, Caller(checked_progress(progress))) as session:
        return one_or_all(eigenvalues(session, save_vectors).results, curvature)


def trace(
    model: Any,
    loss: Any = None,
    data: Any = None,
    *,
    curvature: str | Sequence[str] = "hessian",
    rtol: float = RTOL,
    method: str | None = None,
    probes: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    deflate: str | Path | None = None,
    max_products: int | None = None,
    basis: str = "auto",
    check: bool = True,
    precision: str = IEEE,
    products: str = EXACT,
    precondition: Any = None,
    difference_step: float | None = None,
    compile: bool | None = None,
    save_every: float = SAVE_EVERY,
    progress: Progress | bool | None = None,
    **problem: Any,
) -> TraceResult | list[TraceResult]:
    """Estimate the trace of a matrix, such as a network's Hessian, with its standard error.

    Args:
        model: a torch.nn.Module, a name as on the command line, a `spectra.Problem`, or a matrix; see `spectra.eig`.
        loss: a loss of spectra or PyTorch, a function, or a name; see `spectra.eig`.
        data: a DataLoader, other batches (x, y), tensors (x, y), or a name; see `spectra.eig`.
        curvature: the name of a matrix in `spectra.MATRICES`, or ntk, or a sequence of names.
        rtol: the standard error over |trace| at which the estimate has converged.
        method: xtrace, hutch++, hutchinson, dense or gram; None: gram if it is exact and cheaper, otherwise xtrace.
        probes: the exact number of random vectors, 2 or more; None: as many as `rtol` needs.
        seed: random seed.
        out: a directory for trace.json; an interrupted call resumes from what it left there. None: nothing is written.
        deflate: the saved result of an earlier eig, whose eigenvectors are projected out; None: the one in `out`, if
            any.
        max_products: stop after this many matrix-vector products, including checks; None: no limit.
        basis: the memory that holds the Lanczos basis: device, host or auto; see `spectra.eig`.
        check: compare derivatives with finite differences first.
        precision: the precision of products: ieee, tf32 or bf16; see `spectra.eig`.
        products: how products with the Hessian are computed: exact, finite-difference or forward-difference; see
            `spectra.eig`.
        precondition: an optimizer, or another form of P: the matrix is P^-1/2 A P^-1/2; see `spectra.eig`. None: A
            itself.
        difference_step: the displacement of the parameters by finite differences, relative to their norm; None: the
            best for the dtype.
        compile: compile products by torch.compile; None: only on a GPU, if that saves time.
        save_every: minutes between saves to `out`.
        progress: True shows a progress line on standard error; a function is called as progress("hessian", products=12,
            ...).
        **problem: further arguments of `spectra.load_problem`, such as params, samples or device; see `spectra.eig`.

    Returns:
        A `TraceResult` with `trace`, `standard_error`, `converged` and `products`. If `curvature` is a sequence, a
        list of results in its order. With respect to inputs, `trace` is the mean over examples, with `spread` and
        `traces_by_example`.

    Raises:
        SpectraError: an argument has a value that cannot be used; the message says which one, and what to do.
        TypeError: an argument is unknown, missing, or given together with a `Problem` that has its own.
    """
    given = Arguments.of(locals())
    settings = TraceSettings(
        as_positive("rtol", rtol),
        None if method is None else as_choice("method", method, TRACE),
        None if probes is None else as_count("probes", probes, 2),
    )
    options = {"method": method, "rtol": settings.rtol, "probes": settings.probes, "deflate": deflate and str(deflate)}
    request = make_request(settings, options, given)
    with Session(request, Caller(checked_progress(progress))) as session:
        return one_or_all(traces(session).results, curvature)


def density(
    model: Any,
    loss: Any = None,
    data: Any = None,
    *,
    curvature: str | Sequence[str] = "hessian",
    steps: int = DENSITY_STEPS,
    probes: int = DENSITY_PROBES,
    damping: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    deflate: str | Path | None = None,
    max_products: int | None = None,
    basis: str = "auto",
    check: bool = True,
    precision: str = IEEE,
    products: str = EXACT,
    precondition: Any = None,
    difference_step: float | None = None,
    compile: bool | None = None,
    save_every: float = SAVE_EVERY,
    progress: Progress | bool | None = None,
    **problem: Any,
) -> DensityResult | list[DensityResult]:
    """Estimate the spectral density of a matrix, such as a network's Hessian, as nodes and weights of a quadrature.

    Args:
        model: a torch.nn.Module, a name as on the command line, a `spectra.Problem`, or a matrix; see `spectra.eig`.
        loss: a loss of spectra or PyTorch, a function, or a name; see `spectra.eig`.
        data: a DataLoader, other batches (x, y), tensors (x, y), or a name; see `spectra.eig`.
        curvature: the name of a matrix in `spectra.MATRICES`, or ntk, or a sequence of names.
        steps: the number of products that each probe takes, 2 or more.
        probes: the number of random vectors.
        damping: X above 0, for the effective dimension and the condition number of A + X I; None: neither.
        seed: random seed.
        out: a directory for density.json, density.npz and density.png; an interrupted call resumes from what it left
            there. None: nothing is written.
        deflate: the saved result of an earlier eig, whose eigenvectors are projected out; None: the one in `out`, if
            any.
        max_products: stop after this many matrix-vector products, including checks; None: no limit.
        basis: the memory that holds the Lanczos basis: device, host or auto; see `spectra.eig`.
        check: compare derivatives with finite differences first.
        precision: the precision of products: ieee, tf32 or bf16; see `spectra.eig`.
        products: how products with the Hessian are computed: exact, finite-difference or forward-difference; see
            `spectra.eig`.
        precondition: an optimizer, or another form of P: the matrix is P^-1/2 A P^-1/2; see `spectra.eig`. None: A
            itself.
        difference_step: the displacement of the parameters by finite differences, relative to their norm; None: the
            best for the dtype.
        compile: compile products by torch.compile; None: only on a GPU, if that saves time.
        save_every: minutes between saves to `out`.
        progress: True shows a progress line on standard error; a function is called as progress("hessian", products=12,
            ...).
        **problem: further arguments of `spectra.load_problem`, such as params, samples or device; see `spectra.eig`.

    Returns:
        A `DensityResult` with `nodes` and `weights` (probes, steps), `dimension`, `converged` and `products`. If
        `curvature` is a sequence, a list of results in its order.

    Raises:
        SpectraError: an argument has a value that cannot be used; the message says which one, and what to do.
        TypeError: an argument is unknown, missing, or given together with a `Problem` that has its own.
    """
    given = Arguments.of(locals())
    settings = DensitySettings(
        as_count("steps", steps, 2),
        as_count("probes", probes, 1),
        None if damping is None else as_positive("damping", damping),
    )
    options = {"steps": settings.steps, "probes": settings.probes, "log": False, "damping": settings.damping}
    request = make_request(settings, options | {"deflate": deflate and str(deflate)}, given)
    with Session(request, Caller(checked_progress(progress))) as session:
        return one_or_all(densities(session, draw).results, curvature)


def step(
    model: Any,
    loss: Any = None,
    data: Any = None,
    *,
    optimizer: Any = None,
    to: Any = (),
    curvature: str | Sequence[str] = OF_STEPS,
    k: int = K,
    tolerance: float = TOLERANCE,
    noise: bool = True,
    population: bool = False,
    rho: float = RHO,
    adaptive_rho: float = ADAPTIVE_RHO,
    ascent_steps: int = ASCENT_STEPS,
    seed: int = 0,
    out: str | Path | None = None,
    eigenvectors: str | Path | None = None,
    max_products: int | None = None,
    basis: str = "auto",
    check: bool = True,
    compile: bool | None = None,
    save_every: float = SAVE_EVERY,
    progress: Progress | bool | None = None,
    **problem: Any,
) -> Record:
    """Compute the slope, curvature and loss along the direction of the next optimizer step.

    The directions d are the negative gradient, the optimizer's update, its momentum, and the directions to other
    checkpoints, if these are known.

    Args:
        model: a torch.nn.Module, a name as on the command line, or a `spectra.Problem`; see `spectra.eig`.
        loss: a loss of spectra or PyTorch, a function, or a name; see `spectra.eig`.
        data: a DataLoader, other batches (x, y), tensors (x, y), or a name; see `spectra.eig`.
        optimizer: a torch.optim optimizer of the model, what its `state_dict()` returned, or a file that holds that;
            None: the state in the checkpoint, if any.
        to: another checkpoint of the same model, as a file, a module or a mapping of its parameters; or several.
        curvature: the names of the matrices A in d'Ad. By default, those that the loss does not have are left out.
        k: the number of leading eigenvectors for which the share of d is given; 0: none.
        tolerance: the residual over |eigenvalue| at which an eigenvector has converged.
        noise: estimate the noise scales of the gradient, as `spectra.noise_scale` does.
        population: whether the data are the whole population, rather than a sample from a larger one.
        rho: the radius of the ball in which gradient ascent raises the loss, as in `spectra.worst_case`.
        adaptive_rho: the radius of the ball in which distances are relative to each parameter's size.
        ascent_steps: the number of ascent steps in each ball; 0: no balls.
        seed: random seed.
        out: a directory for step.json and step.png; an interrupted call resumes from what it left there. None: nothing
            is written.
        eigenvectors: the saved result of an earlier eig that holds eigenvectors; None: the one in `out`, if any.
        max_products: stop after this many matrix-vector products, including checks; None: no limit.
        basis: the memory that holds the Lanczos basis: device, host or auto; see `spectra.eig`.
        check: compare derivatives with finite differences first.
        compile: compile products by torch.compile; None: only on a GPU, if that saves time.
        save_every: minutes between saves to `out`.
        progress: True shows a progress line on standard error; a function is called as progress("hessian", products=12,
            ...).
        **problem: further arguments of `spectra.load_problem`, such as params, samples or device; see `spectra.eig`.

    Returns:
        A `Record`: `point` has the loss along each direction, with the best and the critical step, and `results` has
        one entry for each matrix, with the curvature along each direction and its share in the leading eigenvectors.

    Raises:
        SpectraError: an argument has a value that cannot be used; the message says which one, and what to do.
        TypeError: an argument is unknown, missing, or given together with a `Problem` that has its own.
    """
    given = Arguments.of({**locals(), **OF_EXACT, "deflate": eigenvectors})
    if is_matrix(model):
        raise SpectraError("`model`: step takes a network, not a matrix; give a module, a name or a Problem")
    for name in named_matrices(curvature):
        as_choice("curvature", name, MATRICES)
    others = tuple(to) if isinstance(to, list | tuple) else (to,)
    optimizer = str(optimizer) if isinstance(optimizer, Path) else optimizer
    settings = StepSettings(
        as_count("k", k, 0),
        as_positive("tolerance", tolerance),
        optimizer,
        others,
        noise,
        population,
        as_positive("rho", rho),
        as_positive("adaptive_rho", adaptive_rho),
        as_count("ascent_steps", ascent_steps, 0),
    )
    require_boolean("noise", noise)
    require_boolean("population", population)
    options = {
        "optimizer": optimizer if isinstance(optimizer, str) else None,
        "k": settings.k,
        "tol": settings.tolerance,
    }
    options |= {
        name: getattr(settings, name) for name in ("noise", "population", "rho", "adaptive_rho", "ascent_steps")
    }
    options |= {"to": [str(other) for other in others if isinstance(other, str | Path)]}
    request = make_request(settings, options | {"eigenvectors": eigenvectors and str(eigenvectors)}, given)
    if request.wrt_inputs:
        raise SpectraError("`wrt` inputs: a step updates parameters, not inputs; omit `wrt`")
    options = {name: value for name, value in request.options.items() if name not in (*OF_EXACT, "wrt")}
    lenient = curvature == OF_STEPS
    request = replace(request, options=options, earlier_option="eigenvectors", lenient=lenient)
    with Session(request, Caller(checked_progress(progress))) as session:
        record = with_figures(session, steps(session), "spectra.plots.step:step_figures")
        session.save_record(record)
        return record


def landscape(
    model: Any,
    loss: Any = None,
    data: Any = None,
    *,
    along: str | Sequence[str] = "1",
    radius: float | None = None,
    points: int | None = None,
    optimizer: Any = None,
    others: str | Path | Sequence[str | Path] = (),
    curvature: str | Sequence[str] = "hessian",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    out: str | Path | None = None,
    eigenvectors: str | Path | None = None,
    max_products: int | None = None,
    basis: str = "auto",
    check: bool = True,
    compile: bool | None = None,
    save_every: float = SAVE_EVERY,
    progress: Progress | bool | None = None,
    **problem: Any,
) -> Record:
    """Compute the loss on lines and planes through a network's weights, with the prediction from slope and curvature.

    Args:
        model: a torch.nn.Module, a name as on the command line, or a `spectra.Problem`; see `spectra.eig`.
        loss: a loss of spectra or PyTorch, a function, or a name; see `spectra.eig`.
        data: a DataLoader, other batches (x, y), tensors (x, y), or a name; see `spectra.eig`.
        along: the directions, one name for each line, and two with a comma between them for each plane: 1, 2, ...
            (eigenvectors by magnitude), lowest, random, gradient (its negative), update and momentum (of the
            optimizer), and checkpoint:PATH (the way to another checkpoint, with the barrier between the two); or
            path:GLOB, the plane of the two principal components of many checkpoints.
        radius: the distance from the weights, in units of |d|; for another checkpoint, the distance beyond either end.
            None: depends on the direction.
        points: the odd number of points on a line, or on a side of a plane; None: 41 on a line, 25 on a side.
        optimizer: a torch.optim optimizer of the model, what its `state_dict()` returned, or a file that holds that;
            None: the state in the checkpoint.
        others: further checkpoints of the model, each of which gets the same lines and planes.
        curvature: the names of the matrices A that predict the loss.
        tolerance: the residual over |eigenvalue| at which an eigenvector has converged.
        seed: random seed.
        out: a directory for landscape.json, its arrays and the figures; an interrupted call resumes from what it left
            there. None: nothing is written.
        eigenvectors: the saved result of an earlier eig that holds eigenvectors; None: the one in `out`, if any.
        max_products: stop after this many matrix-vector products, including checks; None: no limit.
        basis: the memory that holds the Lanczos basis: device, host or auto; see `spectra.eig`.
        check: compare derivatives with finite differences first.
        compile: compile products by torch.compile; None: only on a GPU, if that saves time.
        save_every: minutes between saves to `out`.
        progress: True shows a progress line on standard error; a function is called as progress("hessian", products=12,
            ...).
        **problem: further arguments of `spectra.load_problem`, such as params, samples or device; see `spectra.eig`.

    Returns:
        A `Record`, whose `results` has one entry for each matrix and checkpoint, with `directions`, `lines` and
        `planes`; a line to another checkpoint has its `barrier`.

    Raises:
        SpectraError: an argument has a value that cannot be used; the message says which one, and what to do.
        TypeError: an argument is unknown, missing, or given together with a `Problem` that has its own.
    """
    given = Arguments.of({**locals(), **OF_EXACT, "deflate": eigenvectors})
    if is_matrix(model):
        raise SpectraError("`model`: landscape takes a network, not a matrix; give a module, a name or a Problem")
    for name in named_matrices(curvature):
        as_choice("curvature", name, MATRICES)
    optimizer = str(optimizer) if isinstance(optimizer, Path) else optimizer
    texts = [along] if isinstance(along, str) else along
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise wrong("along", along, "the name of a direction as a string, or a sequence of names")
    more = tuple(map(str, [others] if isinstance(others, str | Path) else others))
    grid = Grid(None if radius is None else as_positive("radius", radius), None if points is None else as_odd(points))
    settings = LandscapeSettings(
        tuple(map(parsed_directions, texts)), grid, as_positive("tolerance", tolerance), more, optimizer
    )
    options = {"along": [",".join(names) for names in settings.along], "radius": radius, "points": points}
    options |= {"tol": settings.tolerance, "optimizer": optimizer if isinstance(optimizer, str) else None}
    request = make_request(settings, options | {"eigenvectors": eigenvectors and str(eigenvectors)}, given)
    if request.wrt_inputs:
        raise SpectraError("`wrt` inputs: a landscape is a function of the parameters; omit `wrt`")
    options = {name: value for name, value in request.options.items() if name not in (*OF_EXACT, "wrt")}
    if more:
        options["checkpoint"] = [*filter(None, [options.get("checkpoint")]), *more]
    request = replace(request, options=options, earlier_option="eigenvectors")
    with Session(request, Caller(checked_progress(progress))) as session:
        record = with_figures(session, landscapes(session), "spectra.plots.landscape:landscape_figures")
        session.save_record(record)
        return record


def parsed_directions(text: Any) -> tuple[str, ...]:
    """The names of the directions of a line or a plane. Raises SpectraError if one is not valid."""
    try:
        return directions_named(str(text))
    except ValueError as error:
        raise SpectraError(f"`along` {error}") from None


def as_odd(points: Any) -> int:
    """An odd number of points, 3 or more. Raises SpectraError."""
    if as_count("points", points, 3) % 2 == 0:
        raise SpectraError(f"`points` {points}: is even; give an odd number, so that one point is at the weights")
    return int(points)


def with_figures(session: Session[Any], record: Record, place: str) -> Record:
    """Write the figures of a record to `out`, and return the record with their paths; without `out` there are none.

    `place` is the path `module:function` of the function that draws them with matplotlib.
    """
    if (out := session.request.out) is None:
        return record.changed(figures=[])
    from spectra.plots.files import write_png  # loads matplotlib, which a call without `out` does not need

    figures = resolve_name(place)(record)
    for name, figure in figures.items() if session.first else ():
        write_png(figure, out / f"{name}.png")
    return record.changed(figures=[str(out / f"{name}.png") for name in figures])


CALLS: dict[str, Callable[..., Any]] = {
    "eig": eig,
    "trace": trace,
    "density": density,
    "step": step,
    "landscape": landscape,
}


def draw(measures: dict[str, Any], path: Path, thresholds: Sequence[float | None] = ()) -> None:
    """Write the figure of densities."""
    from spectra.plots.files import draw_density  # loads matplotlib, which a call without `out` does not need

    draw_density(measures, path, thresholds)


@dataclass(frozen=True)
class Arguments:
    """The arguments that all calls share; `eig` describes them."""

    model: Any
    loss: Any
    data: Any
    problem: dict[str, Any]
    curvature: str | Sequence[str]
    seed: int
    out: str | Path | None
    max_products: int | None
    basis: str
    check: bool
    precision: str
    products: str
    precondition: Any
    difference_step: float | None
    compile: bool | None
    save_every: float
    deflate: str | Path | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Arguments:
        """Pick the shared arguments from all arguments of a call."""
        return cls(**{field.name: given[field.name] for field in fields(cls) if field.name in given})


# Arguments that only apply to networks, with their defaults.
OF_NETWORKS = {
    "curvature": "hessian",
    "check": True,
    "precision": IEEE,
    "products": EXACT,
    "difference_step": None,
    "compile": None,
}


def make_request(settings: S, options: Mapping[str, Any], given: Arguments) -> Request[S]:
    """Make the request of a call; `asked` are its settings under the names of the command line."""
    seed = as_count("seed", given.seed, 0)
    if is_matrix(given.model):
        refuse_network_arguments(settings.command, given)
        names, recorded = ("operator",), {}
        device, dtype = (given.problem.get(name) for name in ("device", "dtype"))
        problem = Operators((given.model,), device, dtype, seed)
    else:
        names = named_matrices(given.curvature)
        problem, recorded = problem_of(settings.command, given.model, given.loss, given.data, given.problem, seed)
        recorded |= {"curvature": list(names), "no_check": not given.check, "compile": given.compile}
        recorded |= {"precision": given.precision, "products": given.products, "difference_step": given.difference_step}
        if given.precondition is None or isinstance(given.precondition, str | os.PathLike):  # an object has no spec
            recorded["precondition"] = given.precondition and os.fspath(given.precondition)
    max_products = None if given.max_products is None else as_count("max_products", given.max_products, 1)
    step = None if given.difference_step is None else as_positive("difference_step", given.difference_step)
    require_boolean("compile", given.compile, optional=True)
    recorded |= {"seed": seed, "max_products": max_products, "basis": as_choice("basis", given.basis, BASES)}
    return Request(
        settings,
        problem,
        names,
        options={**options, **recorded},
        seed=seed,
        max_products=max_products,
        memory=given.problem.get("memory"),
        basis=given.basis,
        check=bool(given.check),
        precision=as_choice("precision", given.precision, PRECISIONS),
        products=as_choice("products", given.products, PRODUCTS),
        precondition=given.precondition,
        difference_step=step,
        compile=given.compile,
        out=as_path(given.out),
        save_every=as_positive("save_every", given.save_every),
        earlier=as_path(given.deflate),
    )


def is_matrix(model: Any) -> bool:
    """Whether the model argument is a matrix: it has a shape or a size, or is a pair (n, function)."""
    if isinstance(model, str | nn.Module | Problem | type):
        return False
    return size_of(model) is not None or (isinstance(model, tuple) and len(model) == 2 and callable(model[1]))


def refuse_network_arguments(command: str, given: Arguments) -> None:
    """Raise TypeError for an argument that only applies to networks, if a matrix is given in place of one."""
    named = {"loss": given.loss, "data": given.data, "precondition": given.precondition, **given.problem}
    there = [name for name, value in named.items() if value is not None and name not in ("device", "dtype")]
    there += [name for name, default in OF_NETWORKS.items() if getattr(given, name) != default]
    if there:
        raise TypeError(f"{command}() takes no {there[0]} with a matrix; omit it")


def problem_of(
    command: str, model: Any, loss: Any, data: Any, options: dict[str, Any], seed: int
) -> tuple[Problem | dict[str, Any], dict[str, Any]]:
    """The Problem of a request, or the arguments of `load_problem` for it, and the options that its record lists.

    Raises TypeError for an argument that is unknown, missing or superfluous.
    """
    for name in options:
        if name not in PROBLEM:
            known = [*PROBLEM, *signature(CALLS[command]).parameters]
            raise TypeError(f"{command}() got an unexpected keyword argument '{name}'; {suggest(name, known)}")
    if isinstance(model, Problem):
        more = {"loss": loss, "data": data} | {key: value for key, value in options.items() if key != "memory"}
        for name, value in more.items():
            if value is not None:
                raise TypeError(f"{command}() takes no {name} with a Problem, which has its own; omit it")
        return model, {"memory": options.get("memory")}
    for name, value in {"loss": loss, "data": data}.items():
        if value is None:
            raise TypeError(f"{command}() is missing the argument {name}; give it, or a Problem as model")
    checked, model = checked_options(options), called_program(model)
    if not isinstance(model, str | nn.Module):
        if isinstance(model, type):
            name = model.__name__
            raise SpectraError(f"`model`: expected a module, got the class {name}; call it first: {name}(...)")
        came = getattr(model, "__name__", type(model).__name__)
        raise SpectraError(f"`model`: expected a module, a name or a Problem, got {came}")
    device, dtype = choose_device_and_dtype(model, checked.get("device"), checked.get("dtype"))
    loss = loss if isinstance(loss, str) else own_loss(loss, device, dtype)
    kind = dtype_name(dtype)
    recorded = {name: checked.get(name, default) for name, default in DEFAULTS.items()}
    recorded |= {"params": list(recorded["params"]), "dtype": kind, "device": str(checked.get("device") or "auto")}
    if isinstance(model, str):
        path = checked.get("checkpoint")
        recorded |= {"model": model, "checkpoint": path and str(path), "checkpoint_key": checked.get("checkpoint_key")}
    if isinstance(data, str):
        recorded |= {"data": data, "transform": checked.get("transform")}
    if not isinstance(loss, CustomLoss | BatchLoss):
        recorded["loss"] = loss if isinstance(loss, str) else loss_name(loss)
    return {"model": model, "loss": loss, "data": data, "seed": seed, **checked}, recorded


# The options that every record of a problem lists, with their defaults.
DEFAULTS: dict[str, Any] = {
    "output": None,
    "loss_part": None,
    "samples": None,
    "batch_size": None,
    "memory": None,
    "recompute_activations": None,
    "params": [],
    "wrt": PARAMETERS,
    "mc_samples": 1,
    "weight_decay": 0.0,
}


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the keyword arguments of a problem, and convert each to its type. Raises SpectraError."""
    found = {name: value for name, value in options.items() if value is not None}
    for name in ("samples", "batch_size", "mc_samples", "memory"):
        if name in found:
            found[name] = as_count(name, found[name], 0 if name == "memory" else 1)
    if "recompute_activations" in found:
        require_boolean("recompute_activations", found["recompute_activations"])
    if "weight_decay" in found:
        found["weight_decay"] = as_positive("weight_decay", found["weight_decay"], or_zero=True)
    if "params" in found:
        found["params"] = (found["params"],) if isinstance(found["params"], str) else tuple(found["params"])
    if "checkpoint" in found:
        found["checkpoint"] = as_path(found["checkpoint"])
    return found


def named_matrices(curvature: str | Sequence[str]) -> tuple[str, ...]:
    """The names of the requested matrices. Raises SpectraError if one is unknown, or there are none."""
    if not isinstance(curvature, Iterable):
        raise wrong("curvature", curvature, "the name of a matrix in spectra.MATRICES, or a sequence of names")
    names = (curvature,) if isinstance(curvature, str) else tuple(curvature)
    for name in names:
        as_choice("curvature", name, [*MATRICES, *KERNELS])
    if not names:
        raise SpectraError("`curvature`: is empty; give one or more of spectra.MATRICES, such as hessian")
    return names


def one_or_all(results: list[Result], curvature: str | Sequence[str]) -> Result | list[Result]:
    """One result if `curvature` is a name, otherwise a list of results in its order."""
    if isinstance(curvature, str):
        return results[0]
    found = {result.curvature: result for result in results}
    return [found[name] for name in curvature]


def checked_progress(progress: Any) -> Any:
    """Check and return the argument `progress`. Raises ArgumentError if it is not a function, True, False or None."""
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise wrong("progress", progress, "True, or a function (name, **numbers)")
    return progress


def as_path(path: str | Path | None) -> Path | None:
    """The path of a string or a path; None for None."""
    return None if path is None else Path(path)


def as_count(name: str, value: Any, least: int) -> int:
    """The value as an int from `least` to 2^63 - 1. Raises ArgumentError."""
    require_integer(name, value, least)
    require_integer(name, value, least, LARGEST_SEED)  # names the upper bound only if it is exceeded
    return int(value)


def as_positive(name: str, value: Any, or_zero: bool = False) -> float:
    """The value as a finite float above zero, or zero with `or_zero`. Raises ArgumentError."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not or_zero):
        raise wrong(name, value, f"a finite number {'>= 0' if or_zero else 'above 0'}")
    return float(value)


def as_choice(name: str, value: Any, known: Iterable[str]) -> str:
    """The value, if it is one of the known names. Raises ArgumentError."""
    if value not in known:
        raise ArgumentError(f"`{name}` {value!r}: {suggest(str(value), known)}")
    return value
