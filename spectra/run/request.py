"""Requests: which matrices of which problem, by which method, for how many products, and where the answer goes."""

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
from spectra.optimizer.given import Given
from spectra.problem.by_inputs import INPUTS, PARAMETERS, InputProblem, refuse_wrt
from spectra.problem.problem import Problem
from spectra.records.problem import ProblemRecord
from spectra.run.known import source


class Settings(Protocol):
    """The settings of one command's method, with what can be refused before a matrix is made."""

    @property
    def command(self) -> str:
        """The command that asks for it."""
        ...

    @property
    def less_memory(self) -> tuple[str, str]:
        """The argument by which less memory is taken, beside the products', and how."""
        ...

    def refuse(self, matrices: Sequence[str]) -> None:
        """Raise SpectraError where the settings suit neither each other nor these matrices."""
        ...

    def refuse_size(self, size: int, products: int | None) -> None:
        """Raise SpectraError where a matrix of so many rows, and so many products, is not what they need."""
        ...

    def basis(self, space: Shaped) -> Placement | None:
        """The place of the method's basis for matrices on these vectors; None where it has none, or settles it itself.

        Raises SpectraError where memory holds no basis.
        """
        ...


BY_INPUTS = {"eig": EIG_BLOCKS, "trace": TRACE_BLOCKS}  # methods for the matrices of single examples, by command
FEWEST_LOWER = 24  # products, where their noise is measured by some, and answers are checked by more
S = TypeVar("S", bound=Settings)


class AnySize:
    """Settings that suit every matrix."""

    def refuse(self, matrices: Sequence[str]) -> None:
        pass

    def refuse_size(self, size: int, products: int | None) -> None:
        pass

    def basis(self, space: Shaped) -> Placement | None:
        return None


def anything(_record: ProblemRecord) -> None:
    """Every problem is as it should be."""


@dataclass(frozen=True)
class Request(Generic[S]):
    """A request: which matrices of which problem, by which method, at which cost, and where the files go.

    Attributes:
        problem: a Problem, or the keyword arguments by which `load_problem` makes one; or operators in place of it.
        curvature: names of matrices; of operators what names them.
        options: what a record lists as having been asked, as JSON has it: the command line's names and values.
        seed: of starting vectors and probes.
        max_products: of each matrix, all counted; None is without end.
        memory: bytes that products may take besides model and data; None: a quarter of the device's.
        basis: where the basis of a method lies, auto, device or host.
        check: compare derivatives with differences first.
        precision: of products: ieee, tf32 or bf16.
        products: how those of the Hessian are made: exact, or by differences of gradients.
        precondition: the preconditioner P of P^-1/2 A P^-1/2, as `spectra.optimizer.given` takes it; None: A itself.
        difference_step: the length of a displacement over |w|; None: the best for the dtype.
        compile: compile products; None: where that pays.
        out: the directory of the files; None: nothing is written.
        home: a directory into which something is written without `out`.
        save_every: minutes between two savings of what is done to `out`; None: such a run is not resumed.
        earlier: a result of `eig` whose eigenpairs are used; None: that in `out`, if there is one.
        earlier_option: what the user calls that.
        lenient: matrices that the loss does not have are left out, and not refused.
        ranks: this may be one of several processes, which torchrun has started.
        verify: is given the record of the problem once loaded, and raises SpectraError where it is another than meant.
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
    home: Path | None = None
    save_every: float | None = None
    earlier: Path | None = None
    earlier_option: str = "deflate"
    lenient: bool = False
    ranks: bool = False
    verify: Callable[[ProblemRecord], None] = anything

    @property
    def named(self) -> Mapping[str, Any]:
        """The arguments that name the problem; empty where the problem is given itself."""
        return self.problem if isinstance(self.problem, Mapping) else {}

    @property
    def weight_decay(self) -> float:
        """The weight decay of the problem, known before it is loaded."""
        given = self.problem
        return given.weight_decay if isinstance(given, Problem) else self.named.get("weight_decay", 0.0)

    def refuse(self) -> None:
        """Raise SpectraError where arguments cannot go together, or name an earlier result that is none.

        Each refusal is made where the mechanism is, and again there; here, before anything is loaded.
        """
        if not isinstance(self.problem, Operators):
            for name in self.curvature:
                refuse_weight_decay(name, self.weight_decay)
        elif getattr(self.settings, "method", None) == "gram":
            raise SpectraError(
                "`method` gram: needs a factor of the matrix, which an operator does not have; choose another method"
            )
        self.settings.refuse(self.curvature)
        if self.by_inputs:
            self._refuse_by_inputs()
        if self.preconditioner:
            self._refuse_preconditioner(self.preconditioner)
        refuse_products(self.products, self.difference_step, self.curvature)
        self._refuse_noisy()
        if self.earlier:
            self.arrays_of_earlier()

    @property
    def preconditioner(self) -> Given | None:
        """The preconditioner, as it is named or given."""
        return None if self.precondition is None else Given(self.precondition, self.named.get("checkpoint"))

    def _refuse_preconditioner(self, given: Given) -> None:
        """Raise SpectraError where what is asked for is of no preconditioned matrix, or P is none."""
        if getattr(self.settings, "method", None) == "gram":
            text = "needs a factor of the matrix, which a preconditioned one has not; take another, or leave"
            raise SpectraError(f"`method` gram: {text} `precondition` out")
        if self.by_inputs:
            raise SpectraError("`precondition`: an optimizer moves parameters, not inputs; leave it or `wrt` out")
        for name in self.curvature:
            if name in KERNELS:
                text = "is a matrix over examples, and P is over parameters; leave `precondition` out"
                raise SpectraError(f"`curvature` {name}: {text}")
        given.refuse()

    @property
    def by_inputs(self) -> bool:
        """Whether the problem is differentiated by inputs."""
        given = self.problem
        return isinstance(given, InputProblem) or self.named.get("wrt", PARAMETERS) != PARAMETERS

    def _refuse_by_inputs(self) -> None:
        """Raise SpectraError where arguments do not go with derivatives by inputs."""
        named = self.named
        refuse_wrt(named.get("wrt", INPUTS), named.get("params", ()), self.weight_decay)
        for name in self.curvature:
            if definition(name).loss_power != 1:
                raise SpectraError(
                    f"`curvature` {name}: is made of products of gradients by parameters; with `wrt` inputs ask for "
                    "hessian, ggn or fisher"
                )
        method, known = getattr(self.settings, "method", None), BY_INPUTS.get(self.settings.command, {})
        if method is not None and method not in known:
            raise SpectraError(
                f"`method` {method}: is not for single examples (`wrt` inputs); choose {' or '.join(known)}"
            )
        if self.products != EXACT:
            raise SpectraError(
                f"`products` {self.products}: is for derivatives by parameters, not with `wrt` inputs; leave one out"
            )
        if self.earlier:
            raise SpectraError(
                f"`{self.earlier_option}` {self.earlier}: eigenvectors of an earlier result are not used with `wrt` "
                "inputs; leave it out"
            )

    @property
    def noisy(self) -> str | None:
        """The option by which products are noisy, so that some are measured first; None where they are not."""
        if self.products != EXACT:
            return f"by `products` {self.products}"
        return None if self.precision == IEEE else f"in `precision` {self.precision}"

    def _refuse_noisy(self) -> None:
        """Raise SpectraError where noisy products are too few, or are asked for with what does not go with them."""
        differences = self.products != EXACT
        for name, asked in (("precision", self.precision != IEEE), ("compile", self.compile)):
            if differences and asked:
                raise SpectraError(f"`{name}`: is for exact products, not for {self.products}; leave one of them out")
        if self.noisy and self.max_products is not None and self.max_products < FEWEST_LOWER:
            against, way_out = (
                ("exact ones", "take exact products") if differences else ("ieee", "leave the precision out")
            )
            raise SpectraError(
                f"`max_products` {self.max_products}: products {self.noisy} are measured against {against} first; "
                f"give {FEWEST_LOWER} or more, or {way_out}"
            )

    def arrays_of_earlier(self) -> Path | None:
        """The arrays of the earlier result of `eig`, if there is one. Raises SpectraError where none is as named."""
        return source(self.earlier, self.earlier_option, self.out)
