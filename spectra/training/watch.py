"""`spectra.watch`: curvature recorded from inside a training loop, which goes on as if nothing had been looked at."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectra.arguments import require_integer, require_number
from spectra.curvature.evaluation import evaluate
from spectra.curvature.operator import Curvature
from spectra.defaults import TOLERANCE
from spectra.devices import name_of_device
from spectra.errors import SpectraError, describe
from spectra.inputs.description import versions
from spectra.inputs.devices import DTYPES, brought, recorded_device
from spectra.inputs.given import device_and_dtype, own_loss, unwrapped
from spectra.inputs.model import uncompiled
from spectra.krylov.results import Eigenpairs, TraceEstimate
from spectra.krylov.warm_start import WarmStart
from spectra.optimizer.entry import NotStepped
from spectra.optimizer.preconditioner import Preconditioner, preconditioner, refuse_second_decay
from spectra.problem.problem import Problem
from spectra.problem.side_effects import generators_restored
from spectra.problem.undisturbed import undisturbed
from spectra.records.eig import EigResult
from spectra.records.files import prepare_directory
from spectra.records.precondition import PreconditionRecord
from spectra.records.problem import ProblemRecord
from spectra.records.record import Record
from spectra.records.trace import TraceResult
from spectra.training.examples import examples_of
from spectra.training.measure import Found, least, measure
from spectra.training.observers import forward_hooks, observers, without_observers
from spectra.training.trackers import scalars, tracker
from spectra.wording import outline

log = logging.getLogger(__name__)  # where nobody has set up logging, warnings go to standard error
NEAR = 0.8  # of the threshold, from which on an eigenvalue is near it
MOST = 4  # times k: the most eigenvalues that are listed near the threshold


@dataclass(frozen=True)
class Recording:
    """The results of one step, by matrix, and where they were written."""

    step: int
    directory: Path
    loss: float  # the mean over the examples watched, in eval mode
    eigenpairs: dict[str, Eigenpairs]
    traces: dict[str, TraceEstimate]  # empty where none is asked for
    products: int  # in all, checks included
    seconds: float  # in all
    searched: dict[str, int | None]  # the last step at which eigenvalues beside the listed ones were searched for
    following: dict[str, int]  # how many eigenvalues the next recording lists: more than k near the threshold
    threshold: float | None = None  # of stability of the optimizer, in the units of the eigenvalues
    precondition: PreconditionRecord | None = None  # of that optimizer, which the eigenvalues are preconditioned by

    @property
    def edge(self) -> dict[str, Tensor]:
        """The eigenvalues over the threshold (k,), by matrix: beyond 1 a quadratic diverges. Empty without one, and
        without matrices of products of gradients, of which it says nothing.
        """
        held = self.precondition
        thresholds = {name: held.threshold_of(name) for name in self.eigenpairs} if held else {}
        return {name: self.eigenpairs[name].values / limit for name, limit in thresholds.items() if limit is not None}

    def scalars(self) -> dict[str, float]:
        """The numbers by the names under which trackers show them, such as `spectra/hessian/eigenvalue_1`."""
        found = self.eigenpairs, self.traces, self.searched, self.precondition
        return scalars(self.loss, self.seconds, self.products, *found)

    __repr__ = outline


class Watch:
    """Record leading eigenvalues and the trace during training, every so many steps of a training loop.

        watch = spectra.watch(model, nn.CrossEntropyLoss(), (x, y), "runs/a", every=100)
        for step, batch in enumerate(loader):
            ...
            optimizer.step()
            watch(step)

    A call at a step that `every` divides writes OUT/step-000100/eig.json, eig.npz and trace.json, in the format of
    `spectra eig` and `spectra trace`, and returns a Recording; other calls return None. Training is unchanged, bit for
    bit. Traces use the same random vectors at every step, so that a curve over training shows the matrix and not the
    sampling. Forward hooks that only observe, such as those that log activations, are disabled during recordings,
    except for one call each, which shows that they only observe.

    A recording starts from the eigenvectors of the last one, and takes as many products as the residuals require. There
    is an eigenvalue within its residual of each value. A search for larger ones is made at every fifth recording, and
    at once where eigenvalues or eigenvectors have changed much. `complete` tells what that search has excluded (None:
    there was none), and `searched` the step of the last one.

    A recording that fails (because a loss is not finite, or memory or the disk is full) writes nothing and is reported
    in one line by Python's logging; training goes on.

    The model may be wrapped by torch.compile, DataParallel or DistributedDataParallel; of several processes only the
    first records. Models with sharded parameters (FSDP) are refused.

    Args:
        model: the model, in any mode, with parameters in float32 or float64; recordings do not use autocast.
        loss: a loss of PyTorch or spectra, a function of (output, target) or (model, batch), or a name, as
            `spectra.eig` takes it.
        batches: the examples, fixed for all of training: a pair (x, y), a DataLoader, which is read once, or other data
            as `spectra.eig` takes them. They are moved to the model's device at each recording.
        out: the directory in which each recording makes its own.
        every: the number of steps from one recording to the next.
        products: the most matrix-vector products of a recording, all matrices and checks included, shared equally by
            the matrices. Up to half of a matrix's share goes to eigenvalues, and the rest to the trace; without a
            trace, all goes to eigenvalues.
        k: the number of eigenvalues of largest magnitude.
        curvature: the name of a matrix in `spectra.MATRICES`, or a sequence of names.
        tolerance: the residual over |eigenvalue| at which an eigenpair has converged.
        rtol: the standard error over |trace| at which the trace has converged. A recording stops early once its
            tolerances are met; `converged` says whether they were.
        trace: record the trace too.
        warm: start from the eigenvectors of the last recording; k n numbers are kept in the host's memory. Otherwise
            every recording starts afresh, and the same parameters give the same numbers, bit for bit.
        optimizer: the torch optimizer that trains the model. The matrix is then the one that this optimizer sees, with
            its preconditioner as it is at each recording (`spectra.preconditioner`). Its threshold of stability is
            recorded too, and up to 4 k eigenvalues where some are near it. Unless the optimizer has no state, as plain
            SGD, nothing can be recorded before its first step.
        seed: the seed of starting vectors, probes and drawn labels.
        memory: bytes for products beyond model and data; None: a quarter of the device's.
        save_vectors: write eigenvectors to eig.npz, k n numbers for each recording; overlaps between steps need them.
        log: where each recording's numbers go besides files: an object with .log(values, step), such as a wandb run; a
            SummaryWriter of TensorBoard; a Lightning logger; or a function (values, step). If it fails, that is
            reported in one line too.
        **options: further fields of `spectra.Problem`, such as weight_decay or output_key.

    Raises:
        SpectraError: an argument cannot work, such as a model without second derivatives. Checking this takes a few
            forward passes and one gradient for each matrix.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        batches: Any,
        out: str | Path,
        *,
        every: int,
        products: int = 100,
        k: int = 3,
        curvature: str | Sequence[str] = "hessian",
        tolerance: float = TOLERANCE,
        rtol: float = 0.05,
        trace: bool = True,
        warm: bool = True,
        optimizer: Any = None,
        seed: int = 0,
        memory: int | None = None,
        save_vectors: bool = False,
        log: Any = None,
        **options: Any,
    ):
        if not isinstance(model, nn.Module):
            raise SpectraError(f"`model`: expected a torch.nn.Module, got {type(model).__name__}")
        self.model = unwrapped(model)
        self.out, self.every, self.products, self.k = Path(out), every, products, k
        self.curvature = tuple(dict.fromkeys([curvature] if isinstance(curvature, str) else curvature))
        self.tolerance, self.rtol, self.seed, self.memory = tolerance, rtol, seed, memory
        self.trace, self.warm, self.optimizer = trace, warm, optimizer
        self.save_vectors, self.options = save_vectors, options
        self.tracker = None if log is None else tracker(log)
        self._refuse_numbers()
        with undisturbed(self.model):
            self.loss, self.batches, output = examples_of(self.model, loss, batches, seed)
        if output:
            self.options = {"output_key": output, **options}
        self._hooks, self._observers = set(), set()  # forward hooks seen so far; those of them that only look on
        self._warm_starts, self._searched = {name: self._warm_start() for name in self.curvature}, {}
        with undisturbed(self.model), self._unobserved():
            self._first_look()

    def __call__(self, step: int) -> Recording | None:
        """Record, if `step` is one of those asked for.

        Args:
            step: the step of the training loop, after the optimizer's step.

        Returns:
            The recording, or None where nothing was recorded.
        """
        if step % self.every or not first_process():
            return None
        try:
            with undisturbed(self.model), self._unobserved():
                recording = self._record(step)
        except Exception as error:
            told = error if isinstance(error, SpectraError) else describe(error)
            log.warning("spectra.watch: step %d is not recorded: %s", step, told)
            return None
        self._track(recording)
        return recording

    def _track(self, recording: Recording) -> None:
        if self.tracker is None:
            return
        try:
            with generators_restored():
                self.tracker(recording.scalars(), recording.step)
        except Exception as error:
            log.warning("spectra.watch: step %d is not logged: %s", recording.step, describe(error))

    def _refuse_numbers(self) -> None:
        for name, number in {"every": self.every, "k": self.k, "products": self.products}.items():
            require_integer(name, number)
        for name, number in {"tolerance": self.tolerance, "rtol": self.rtol}.items():
            require_number(name, number)
        if not self.curvature:
            raise SpectraError("`curvature`: is empty; name one or more of spectra.MATRICES, such as hessian")
        count, fewest = len(self.curvature), len(self.curvature) * least(self.k, self.trace)
        if self.products < fewest:
            what = "a matrix" if count == 1 else f"{count} matrices"
            raise SpectraError(f"`products` {self.products}: {what} with k = {self.k} takes {fewest}; give as many")

    def _first_look(self) -> None:
        """Whatever can work at no step fails now."""
        problem = self._problem()
        if self.k > problem.size:
            raise SpectraError(f"`k` {self.k}: the matrix has {problem.size} rows; ask for at most as many eigenvalues")
        self._size = problem.size
        evaluate(problem)
        if self.optimizer is not None:
            self._refuse_optimizer(problem)
        for name in self.curvature:
            Curvature(problem, name, self.memory, products=0).prepare()
        prepare_directory(self.out)

    @contextmanager
    def _unobserved(self) -> Iterator[None]:
        """Inside, no forward hook is called that only looks on; to know which do, each is called once."""
        model = uncompiled(self.model)
        if new := forward_hooks(model) - self._hooks:
            problem = self._problem()
            with torch.no_grad(), without_observers(model, self._observers):
                found = observers(model, new, lambda: problem.output(problem.batches[0]))
            self._hooks, self._observers = self._hooks | new, self._observers | found
        with without_observers(model, self._observers):
            yield

    def _problem(self) -> Problem:
        """The problem at the present parameters, its examples beside them."""
        loss = own_loss(self.loss, *device_and_dtype(self.model))
        problem = Problem(uncompiled(self.model), loss, self.batches, seed=self.seed, **self.options)
        device, dtype = problem.device, problem.dtype
        if dtype not in DTYPES.values():
            raise SpectraError(
                f"`model`: its parameters are {dtype}, too short for eigenvalues; keep them in float32 and train under "
                "torch.autocast"
            )
        return replace(problem, batches=[brought(batch, device, dtype) for batch in self.batches])

    def _warm_start(self) -> WarmStart:
        return WarmStart(self.k, self.tolerance)

    def _refuse_optimizer(self, problem: Problem) -> None:
        """Raise SpectraError where the optimizer has no preconditioner, or the problem has weight decay beside its."""
        if isinstance(self.optimizer, Mapping):  # which would stay as it is, while training goes on
            raise SpectraError("`optimizer`: a state does not change with training; give the optimizer itself")
        refuse_second_decay(problem.weight_decay, self.optimizer, problem.model, problem.parameters)
        try:
            preconditioner(self.optimizer, problem.model, problem.parameters)
        except NotStepped:
            if stepped(self.optimizer):
                raise

    def _preconditioner(self, problem: Problem) -> Preconditioner | None:
        """The preconditioner as it is now, where there is an optimizer. Raises SpectraError before its first step."""
        if self.optimizer is None:
            return None
        try:
            return preconditioner(self.optimizer, problem.model, problem.parameters)
        except NotStepped as error:
            if stepped(self.optimizer):
                raise
            raise SpectraError("`optimizer`: it has not taken a step yet, so it has no state") from error

    def _record(self, step: int) -> Recording:
        start, directory = time.perf_counter(), self.out / f"step-{step:06d}"
        problem = self._problem()
        met = self._preconditioner(problem)
        about = self._about(step, problem, met)
        share = self.products // len(self.curvature)
        if not self.warm:
            self._warm_starts = {name: self._warm_start() for name in self.curvature}
        found = {
            name: measure(
                Curvature(problem, name, self.memory, share),
                met,
                self._warm_starts[name],
                share,
                self.rtol if self.trace else None,
                self.seed,
                directory / "eig.npz",
            )
            for name in self.curvature
        }
        searched = self._searched | {n: step for n, f in found.items() if f.eigenpairs.answer.complete is not None}
        self._write(directory, about, list(found.values()), searched)
        self._searched = searched
        held = about.get("precondition")
        for name, one in found.items():
            self._warm_starts[name].k = self._following(one.eigenpairs.answer.values, held and held.threshold_of(name))
        return Recording(
            step,
            directory,
            about.loss_value,
            {name: one.eigenpairs.answer for name, one in found.items()},
            {name: one.trace.answer for name, one in found.items() if one.trace},
            sum(one.products for one in found.values()),
            time.perf_counter() - start,
            {name: searched.get(name) for name in found},
            {name: self._warm_starts[name].k for name in found},
            met and met.threshold.value,
            held,
        )

    def _following(self, values: Tensor, threshold: float | None) -> int:
        """The number of eigenvalues to list next: k, or so many that two lie below those near the threshold.

        Negative ones count by their magnitude, as behind them positive ones are hidden.
        """
        near = 0 if threshold is None else int((values.abs() >= NEAR * threshold).sum())
        most, share = MOST * self.k, self.products // len(self.curvature)
        while most > self.k and least(most, self.trace) > share:
            most -= 1
        return max(self.k, min(near + 2, most, self._size)) if near else self.k

    def _write(
        self, directory: Path, about: ProblemRecord, found: list[Found], searched: dict[str, int | None]
    ) -> None:
        pairs = [
            EigResult.of(
                f.eigenpairs, "lanczos", vectors=self.save_vectors, last_search=searched.get(f.eigenpairs.curvature)
            )
            for f in found
        ]
        traces = [TraceResult.of(f.trace, f.trace_method) for f in found if f.trace]
        prepare_directory(directory)
        Record(command="eig", problem=about, results=pairs).save(directory)
        if traces:
            Record(command="trace", problem=about, results=traces).save(directory)

    def _about(self, step: int, problem: Problem, met: Preconditioner | None) -> ProblemRecord:
        """The problem as results of the command line tell it, as far as it has such names."""
        value, name, device = evaluate(problem), type(self.model).__name__, problem.device
        return ProblemRecord.known(
            parameters=problem.size,
            parameters_in_all=sum(p.numel() for p in self.model.parameters()),
            examples=problem.examples,
            step=step,
            model=name,
            checkpoint=f"{name} at step {step}",
            data="the examples watched",
            transform=None,
            loss=getattr(problem.loss, "name", "cross_entropy"),
            samples=sum(map(len, problem.batches)),
            batch_size=max(map(len, problem.batches)),
            weight_decay=problem.weight_decay,
            precondition=met and PreconditionRecord.of(type(self.optimizer).__name__, met),
            mc_samples=problem.mc_samples,
            output=problem.output_key,
            memory=self.memory,
            seed=self.seed,
            max_products=self.products,
            k=self.k,
            which="LM",
            tol=self.tolerance,
            rtol=self.rtol,
            device=recorded_device(device),
            device_name=name_of_device(device),
            dtype=str(problem.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            loss_value=value.loss,
            accuracy=value.accuracy,
            versions=versions(),
        )


watch = Watch  # as a loop calls it


def stepped(optimizer: Any) -> bool:
    """Whether an optimizer, or what is given as one, has had a step; Adagrad has a state before its first."""
    state = getattr(optimizer, "state", None)
    return not isinstance(state, Mapping) or any(held and held.get("step", 1) > 0 for held in state.values())


def first_process() -> bool:
    """Whether this is the process that records: rank 0 of torch.distributed, or the only one."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
