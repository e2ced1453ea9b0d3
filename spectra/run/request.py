"""Requests: the problem, matrices, method, limits and output directory of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from spectra.curvature.finite_differences import refuse_products
from spectra.curvature.matrices import KERNELS, definition, refuse_weight_decay
from spectra.defaults import EXACT, IEEE
from spectra.errors import SpectraError
from spectra.inputs.operators import Operators
from spectra.krylov.methods import EIG_BLOCKS, TRACE_BLOCKS
from spectra.krylov.placement import Placement
from spectra.operator import Shaped
from spectra.optimizer.preconditioner_spec import PreconditionerSpec
from spectra.problem.input_problem import INPUTS, PARAMETERS, InputProblem, refuse_wrt
from spectra.problem.problem import Problem
from spectra.records.problem import ProblemRecord
from spectra.run.earlier_eigenpairs import earlier_arrays


class Settings(Protocol):
    """The interface of the settings of one command, with checks before a matrix is made."""

    @property
    def command(self) -> str:
        """The name of the command."""
        ...

    @property
    def less_memory(self) -> tuple[str, str]:
        """The argument that reduces the memory of the method, and the way to do so."""
        ...

    def refuse(self, matrices: Sequence[str]) -> None:
        """Raise SpectraError if the settings do not fit each other or these matrices."""
        ...

    def refuse_size(self, size: int, products: int | None) -> None:
        """Raise SpectraError if the settings do not fit a matrix of this size, or this limit on products."""
        ...

    def basis(self, space: Shaped) -> Placement | None:
        """The place of the method's basis for vectors of this space; None if it has none, or chooses the place itself.

        Raises SpectraError if memory is too small for a basis.
        """
        ...


BY_INPUTS = {"eig": EIG_BLOCKS, "trace": TRACE_BLOCKS}  # methods for the matrices of single examples, by command
FEWEST_LOWER = 24  # products, if some measure the noise and others check the answers
S = TypeVar("S", bound=Settings)


class AnySize:
    """The base of settings that fit every matrix."""

    def refuse(self, matrices: Sequence[str]) -> None:
        pass

    def refuse_size(self, size: int, products: int | None) -> None:
        pass

    def basis(self, space: Shaped) -> Placement | None:
        return None


def anything(_record: ProblemRecord) -> None:
    """Accept any problem."""


@dataclass(frozen=True)
class Request(Generic[S]):
    """A request: the problem, matrices, method, limits and output directory of a run.

    Attributes:
        settings: the settings of the command.
        problem: a Problem, or the keyword arguments of `load_problem`, or operators in place of it.
        curvature: the names of matrices; for operators, the name of the argument that gives them.
        options: the options that the record lists, with the command line's names and JSON values.
        seed: the seed of starting vectors and probes.
        max_products: the limit on products of each matrix, including checks; None: no limit.
        memory: the memory for products, beyond model and data, in bytes; None: a quarter of the device's.
        basis: the memory that holds the basis of a method: auto, device or host.
        check: compare derivatives with finite differences first.
        precision: the precision of products: ieee, tf32 or bf16.
        products: how products with the Hessian are computed: exact, or by differences of gradients.
        precondition: the preconditioner P of P^-1/2 A P^-1/2, as in `optimizer.preconditioner_spec`; None: A itself.
        difference_step: the length of a displacement over |w|; None: the best for the dtype.
        compile: compile products; None: if that saves time.
        out: the directory of the files; None: nothing is written.
        home: a directory for files that are written even without `out`.
        save_every: the minutes between saves to `out`; None: the run cannot be resumed.
        earlier: a result of `eig` with eigenpairs to use; None: the one in `out`, if any.
        earlier_option: the name of the option for `earlier`.
        lenient: leave out matrices that the loss does not have, instead of raising an error.
        ranks: whether this may be one of several processes that torchrun started.
        verify: called with the record of the loaded problem; raises SpectraError if it is not the intended one.
    """

    settings: S
    problem: Problem | Mapping[str, Any] | Operators
    curvature: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    max_products: int | None = None
    memory: int | None = None
    basis: str = "auto"
    check: bool = True
    precision: str = IEEE
    products: str = EXACT
    precondition: Any = None
    difference_step: float | None = None
    compile: bool | None = None
    out: Path | None = None
    artifacts_dir: Path | None = None
    save_every: float | None = None
    earlier: Path | None = None
    earlier_option: str = "deflate"
    lenient: bool = False
    ranks: bool = False
    verify: Callable[[ProblemRecord], None] = anything

    @property
    def named(self) -> Mapping[str, Any]:
        """The arguments that name the problem; empty if it is given as an object."""
        return self.problem if isinstance(self.problem, Mapping) else {}

    @property
    def weight_decay(self) -> float:
        """The weight decay of the problem, known before it is loaded."""
        given = self.problem
        return given.weight_decay if isinstance(given, Problem) else self.named.get("weight_decay", 0.0)

    def refuse(self) -> None:
        """Raise SpectraError if arguments cannot be combined, or the earlier result is not valid.

        These errors are raised again where the arguments are used; here, before anything is loaded.
        """
        if not isinstance(self.problem, Operators):
            for name in self.curvature:
                refuse_weight_decay(name, self.weight_decay)
        elif getattr(self.settings, "method", None) == "gram":
            raise SpectraError(
                "`method` gram: needs a factor of the matrix, which an operator does not have; choose another method"
            )
        self.settings.refuse(self.curvature)
        if self.wrt_inputs:
            self._refuse_wrt_inputs()
        if self.preconditioner:
            self._refuse_preconditioner(self.preconditioner)
        refuse_products(self.products, self.difference_step, self.curvature)
        self._refuse_noisy()
        if self.earlier:
            self.arrays_of_earlier()

    @property
    def preconditioner(self) -> PreconditionerSpec | None:
        """The preconditioner as given; None if there is none."""
        return (
            None if self.precondition is None else PreconditionerSpec(self.precondition, self.named.get("checkpoint"))
        )

    def _refuse_preconditioner(self, given: PreconditionerSpec) -> None:
        """Raise SpectraError if the request cannot be combined with a preconditioner, or P is not valid."""
        if getattr(self.settings, "method", None) == "gram":
            text = "needs a factor of the matrix, which a preconditioned matrix lacks"
            raise SpectraError(f"`method` gram: {text}; choose another method, or omit `precondition`")
        if self.wrt_inputs:
            raise SpectraError("`precondition`: an optimizer updates parameters, not inputs; omit it or `wrt`")
        for name in self.curvature:
            if name in KERNELS:
                text = "is a matrix over examples, but P acts on parameters; omit `precondition`"
                raise SpectraError(f"`curvature` {name}: {text}")
        given.refuse()

    @property
    def wrt_inputs(self) -> bool:
        """Whether derivatives are with respect to inputs."""
        given = self.problem
        return isinstance(given, InputProblem) or self.named.get("wrt", PARAMETERS) != PARAMETERS

    def _refuse_wrt_inputs(self) -> None:
        """Raise SpectraError if arguments cannot be combined with derivatives with respect to inputs."""
        named = self.named
        refuse_wrt(named.get("wrt", INPUTS), named.get("params", ()), self.weight_decay)
        for name in self.curvature:
            if definition(name).loss_power != 1:
                raise SpectraError(
                    f"`curvature` {name}: is made of gradients with respect to parameters; with `wrt` inputs choose "
                    "hessian, ggn or fisher"
                )
        method, known = getattr(self.settings, "method", None), BY_INPUTS.get(self.settings.command, {})
        if method is not None and method not in known:
            raise SpectraError(f"`method` {method}: is not available with `wrt` inputs; choose {' or '.join(known)}")
        if self.products != EXACT:
            raise SpectraError(f"`products` {self.products}: is not available with `wrt` inputs; omit one of them")
        if self.earlier:
            raise SpectraError(
                f"`{self.earlier_option}` {self.earlier}: eigenvectors of an earlier result are not used with `wrt` "
                "inputs; omit it"
            )

    @property
    def noisy(self) -> str | None:
        """The option that makes products noisy, as text for a message; None if products are not noisy."""
        if self.products != EXACT:
            return f"by `products` {self.products}"
        return None if self.precision == IEEE else f"in `precision` {self.precision}"

    def _refuse_noisy(self) -> None:
        """Raise SpectraError if noisy products are too few, or are combined with options for exact ones."""
        differences = self.products != EXACT
        for name, asked in (("precision", self.precision != IEEE), ("compile", self.compile)):
            if differences and asked:
                raise SpectraError(f"`{name}`: needs exact products, not {self.products}; omit one of them")
        if self.noisy and self.max_products is not None and self.max_products < FEWEST_LOWER:
            against, way_out = ("exact ones", "choose exact products") if differences else ("ieee", "omit `precision`")
            raise SpectraError(
                f"`max_products` {self.max_products}: products {self.noisy} are compared with {against} first; "
                f"give {FEWEST_LOWER} or more, or {way_out}"
            )

    def arrays_of_earlier(self) -> Path | None:
        """The arrays of the earlier `eig`; None if there is none. Raises SpectraError if a named one is missing."""
        return earlier_arrays(self.earlier, self.earlier_option, self.out)
