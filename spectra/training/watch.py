"""`spectra.watch`: record curvature from inside a training loop, without any change to training."""

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
from spectra.inputs.devices import DTYPES, batch_to_device, recorded_device
from spectra.inputs.model import uncompiled
from spectra.inputs.python_objects import device_and_dtype, own_loss, unwrapped
from spectra.krylov.results import Eigenpairs, TraceEstimate
from spectra.krylov.warm_start import WarmStart
from spectra.optimizer.parameter_state import NotStepped
from spectra.optimizer.preconditioner import Preconditioner, preconditioner, refuse_second_decay
from spectra.problem.eval_mode import temporary_eval_mode
from spectra.problem.problem import Problem
from spectra.problem.side_effects import generators_restored
from spectra.records.eig import EigResult
from spectra.records.files import prepare_directory
from spectra.records.precondition import PreconditionRecord
from spectra.records.problem import ProblemRecord
from spectra.records.record import Record
from spectra.records.trace import TraceResult
from spectra.training.examples import examples_of
from spectra.training.measure import Measurements, fewest_products, measure
from spectra.training.observers import forward_hooks, observers, without_observers
from spectra.training.trackers import scalars, tracker
from spectra.wording import dtype_name, outline

log = logging.getLogger(__name__)  # without logging handlers, warnings go to standard error
NEAR = 0.8  # an eigenvalue above this fraction of the threshold is near it
MOST = 4  # list at most this many times k eigenvalues near the threshold


@dataclass(frozen=True)
class Recording:
    """The results of one step by the name of the matrix, and the directory with their files."""

    step: int
    directory: Path
    loss: float  # mean over the watched examples, in eval mode
    eigenpairs: dict[str, Eigenpairs]
    traces: dict[str, TraceEstimate]  # empty with trace=False
    products: int  # total, checks included
    seconds: float  # total
    searched: dict[str, int | None]  # the last step at which further eigenvalues were searched for
    following: dict[str, int]  # the number of eigenvalues in the next recording: more than k near the threshold
    threshold: float | None = None  # of the optimizer's stability, in the units of the eigenvalues
    precondition: PreconditionRecord | None = None  # the optimizer's preconditioner

    @property
    def edge(self) -> dict[str, Tensor]:
        """The ratios eigenvalue / threshold, (k,), by the name of the matrix: above 1, a quadratic loss diverges.

        It is empty without a threshold, and leaves out matrices of gradient products, to which a threshold does not
        apply.
        """
        held = self.precondition
        thresholds = {name: held.threshold_of(name) for name in self.eigenpairs} if held else {}
        return {name: self.eigenpairs[name].values / limit for name, limit in thresholds.items() if limit is not None}

    def scalars(self) -> dict[str, float]:
        """Return the numbers by their names in trackers, such as `spectra/hessian/eigenvalue_1`."""
        found = self.eigenpairs, self.traces, self.searched, self.precondition
        return scalars(self.loss, self.seconds, self.products, *found)

    __repr__ = outline


class Watch:
    """Record leading eigenvalues and the trace at regular steps of a training loop.

        watch = spectra.watch(model, nn.CrossEntropyLoss(), (x, y), "runs/a", every=100)
        for step, batch in enumerate(loader):
            ...
            optimizer.step()
            watch(step)

    A call at a multiple of `every` writes OUT/step-000100/eig.json, eig.npz and trace.json, in the format of
    `spectra eig` and `spectra trace`, and returns a Recording; other calls return None. Training is unchanged, bit for
    bit. Traces use the same random vectors at every step, so that a curve over training shows the matrix and not the
    sampling. Forward hooks that only observe, such as those that log activations, are disabled during recordings,
    except for one call each, which shows that they only observe.

    A recording starts from the eigenvectors of the last one, and takes as many products as the residuals require. Each
    listed value is within its residual of an eigenvalue. A search for larger eigenvalues is made at every fifth
    recording, and whenever eigenvalues or eigenvectors have changed much. `complete` is the result of that search
    (None: there was no search), and `searched` is the step of the last one.

    A recording that fails (because a loss is not finite, or memory or the disk is full) writes nothing and is reported
    in one line by Python's logging; training continues.

    The model may be wrapped by torch.compile, DataParallel or DistributedDataParallel; with several processes, only the
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
        warm: start from the eigenvectors of the last recording; k n numbers are kept in the host's memory, where n is
            the number of parameters. With False, every recording starts from a random vector, and equal parameters give
            equal numbers, bit for bit.
        optimizer: the torch optimizer that trains the model. The matrix is then preconditioned as by this optimizer at
            each recording (`spectra.preconditioner`). Its threshold of stability is recorded too, and up to 4 k
            eigenvalues if some are near it. Nothing can be recorded before the optimizer's first step, unless it has no
            state (plain SGD).
        seed: the seed of starting vectors, probes and drawn labels.
        memory: bytes for products beyond model and data; None: a quarter of the device's.
        save_vectors: write eigenvectors to eig.npz, k n numbers for each recording; overlaps between steps need them.
        log: a tracker that gets the numbers of each recording: an object with .log(values, step), such as a wandb run;
            a SummaryWriter of TensorBoard; a Lightning logger; or a function (values, step). If it fails, that is
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
        with temporary_eval_mode(self.model):
            self.loss, self.batches, output = examples_of(self.model, loss, batches, seed)
        if output:
            self.options = {"output_key": output, **options}
        self._hooks, self._observers = set(), set()  # forward hooks seen so far; those of them that only observe
        self._warm_starts, self._searched = {name: self._warm_start() for name in self.curvature}, {}
        with temporary_eval_mode(self.model), self._unobserved():
            self._refuse_impossible()

    def __call__(self, step: int) -> Recording | None:
        """Record, if `step` is a multiple of `every`.

        Args:
            step: the step of the training loop, after the optimizer's step.

        Returns:
            The recording, or None where nothing was recorded.
        """
        if step % self.every or not first_process():
            return None
        try:
            with temporary_eval_mode(self.model), self._unobserved():
                recording = self._record(step)
        except Exception as error:
            reason = error if isinstance(error, SpectraError) else describe(error)
            log.warning("spectra.watch: step %d is not recorded: %s", step, reason)
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
            raise SpectraError("`curvature`: it is empty; name one or more of spectra.MATRICES, such as hessian")
        count, fewest = len(self.curvature), len(self.curvature) * fewest_products(self.k, self.trace)
        if self.products < fewest:
            what = "a matrix needs" if count == 1 else f"{count} matrices need"
            text = f"{what} at least {fewest} with k = {self.k}; use `products` {fewest} or a smaller `k`"
            raise SpectraError(f"`products` {self.products}: {text}")

    def _refuse_impossible(self) -> None:
        """Raise SpectraError now where no recording could work."""
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
        """Disable forward hooks that only observe inside this context; each new hook is called once to find out."""
        model = uncompiled(self.model)
        if new := forward_hooks(model) - self._hooks:
            problem = self._problem()
            with torch.no_grad(), without_observers(model, self._observers):
                found = observers(model, new, lambda: problem.output(problem.batches[0]))
            self._hooks, self._observers = self._hooks | new, self._observers | found
        with without_observers(model, self._observers):
            yield

    def _problem(self) -> Problem:
        """Make the problem at the present parameters, with the examples on their device."""
        loss = own_loss(self.loss, *device_and_dtype(self.model))
        problem = Problem(uncompiled(self.model), loss, self.batches, seed=self.seed, **self.options)
        device, dtype = problem.device, problem.dtype
        if dtype not in DTYPES.values():
            raise SpectraError(
                f"`model`: its parameters are {dtype}, too imprecise for eigenvalues; keep them in float32 and train "
                "with torch.autocast"
            )
        return replace(problem, batches=[batch_to_device(batch, device, dtype) for batch in self.batches])

    def _warm_start(self) -> WarmStart:
        return WarmStart(self.k, self.tolerance)

    def _refuse_optimizer(self, problem: Problem) -> None:
        """Raise SpectraError where the optimizer has no preconditioner, or weight decay would count twice."""
        if isinstance(self.optimizer, Mapping):  # a state dict does not follow training
            raise SpectraError("`optimizer`: expected a torch optimizer, got a state dict; give the optimizer itself")
        refuse_second_decay(problem.weight_decay, self.optimizer, problem.model, problem.parameters)
        try:
            preconditioner(self.optimizer, problem.model, problem.parameters)
        except NotStepped:
            if stepped(self.optimizer):
                raise

    def _preconditioner(self, problem: Problem) -> Preconditioner | None:
        """Return the optimizer's preconditioner, None without one. Raises SpectraError before its first step."""
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
        preconditioner = self._preconditioner(problem)
        about = self._about(step, problem, preconditioner)
        share = self.products // len(self.curvature)
        if not self.warm:
            self._warm_starts = {name: self._warm_start() for name in self.curvature}
        found = {
            name: measure(
                Curvature(problem, name, self.memory, share),
                preconditioner,
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
            preconditioner and preconditioner.threshold.value,
            held,
        )

    def _following(self, values: Tensor, threshold: float | None) -> int:
        """Return the number of eigenvalues to list next: k, or two more than are near the threshold.

        Negative eigenvalues count by their magnitude, since the search for the largest magnitudes lists them too.
        """
        near = 0 if threshold is None else int((values.abs() >= NEAR * threshold).sum())
        most, share = MOST * self.k, self.products // len(self.curvature)
        while most > self.k and fewest_products(most, self.trace) > share:
            most -= 1
        return max(self.k, min(near + 2, most, self._size)) if near else self.k

    def _write(
        self, directory: Path, about: ProblemRecord, found: list[Measurements], searched: dict[str, int | None]
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

    def _about(self, step: int, problem: Problem, preconditioner: Preconditioner | None) -> ProblemRecord:
        """Make the record of the problem, in the form that the command line writes."""
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
            precondition=preconditioner and PreconditionRecord.of(type(self.optimizer).__name__, preconditioner),
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
            dtype=dtype_name(problem.dtype),
            threads=torch.get_num_threads(),
            loss_value=value.loss,
            accuracy=value.accuracy,
            versions=versions(),
        )


watch = Watch  # the public name


def stepped(optimizer: Any) -> bool:
    """Whether an optimizer has taken a step; Adagrad has a state before its first step."""
    state = getattr(optimizer, "state", None)
    return not isinstance(state, Mapping) or any(held and held.get("step", 1) > 0 for held in state.values())


def first_process() -> bool:
    """Whether this is the process that records: rank 0 of torch.distributed, or the only one."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
