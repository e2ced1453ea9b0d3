"""The base class of matrices, `Definition`. Each matrix is a subclass in a file of its own.

Every matrix is a sum over batches, and for all but the Hessian a term is of the form

    A_b = J'M J,     M = S'S,

with J the derivative of the model's rows f by the parameters, and M a matrix in output space that is block-diagonal
over rows (for fisher-batch, over batches). The Hessian is the GGN plus the model's own curvature. Nothing is stored for
single examples. The losses l_i of the examples are scaled so that their mean is the loss. M of a batch has the factor
1/W for second derivatives of the summed loss, and N/W^2 for products of its gradients (W: `Problem.weight`, N:
`Problem.examples`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from torch import Tensor

from spectra.curvature.chunks import linearised_by_chunks
from spectra.curvature.engine.differentiation import Apply, Jacobian, gradient
from spectra.curvature.roots import by_example, decomposed, refuse_indefinite, refuse_tied_examples, root_of
from spectra.problem.batch import Batch
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.densities import DensityLoss, SampledLoss
from spectra.problem.losses import Distribution, Loss
from spectra.problem.model_loss import ModelLoss
from spectra.problem.problem import Problem
from spectra.problem.weights import weights_of

# Refuses a GGN of zeros, for which methods would return 0 +- 0.
IS_ZERO = "is zero: the loss is linear in the model's output{}; ask for hessian{} or fisher-empirical"

# Derivatives that a product may use: H v, J v, M v with M the loss's second derivative by the outputs, the loss's first
# derivative by the outputs, and its first derivative by the parameters.
Derivative = Literal["hessian", "jacobian", "loss hessian", "loss gradient", "gradient"]


@dataclass(frozen=True)
class Definition(ABC):
    """The definition of a matrix. A subclass defines `middle`, and sets the class attributes that differ from here.

    Rows are the model's output as the loss views it: (E, K), or of any shape (b, ...) for a user's own loss.
    """

    name: str  # in the register

    # The derivatives that a product uses; each is compared with finite differences before the first product.
    derivatives: ClassVar[tuple[Derivative, ...]] = ("jacobian",)
    # The power of the loss's scale with which the matrix grows. Weight decay shifts those of power 1 alone.
    loss_power: ClassVar[int] = 1
    # Whether it needs a loss that is -log p(y|f) of some distribution p: one with `scales`, `expected` and `draw`.
    needs_distribution: ClassVar[bool] = False
    # Whether its numbers depend on labels drawn at random, keyed on the problem's seed.
    draws_labels: ClassVar[bool] = False
    # Whether g g' is subtracted, g the gradient of the mean loss.
    subtracts_mean_gradient: ClassVar[bool] = False
    # Whether it depends on how the data are split into batches: M then couples the rows of a batch.
    depends_on_batches: ClassVar[bool] = False
    # Whether the model's own curvature is added to J'M J: the matrix then has no factor F with F'F = A.
    has_model_curvature: ClassVar[bool] = False
    # Whether S has a row for each direction in which the loss curves, so that their number is known before S is made.
    root_is_of_full_rank: ClassVar[bool] = False

    @abstractmethod
    def middle(self, problem: Problem, batch: Batch, rows: Tensor) -> Apply:
        """M on a batch: a function of a tensor of the shape of `rows` that returns one of that shape.

        Whatever does not depend on the vector is best computed before the function is returned: that is done once.
        """

    def linearise(self, problem: Problem, batch: Batch) -> Apply:
        """The batch's term of the matrix, as a function of a vector (n,): v -> J'M(J v).

        The function also takes a slice of the problem's parameters as a second argument. The vector (n_l,) and the
        product then belong to these parameters, and the product is that of their diagonal block.
        """
        if problem.head is not None:
            return linearised_by_chunks(self.middle, problem, batch, problem.head)
        jacobian = Jacobian(problem, batch)
        middle = self.middle(problem, batch, jacobian.rows)
        return lambda vector, leaves=None: jacobian.transposed_times(middle(jacobian.times(vector, leaves)), leaves)

    def root(self, problem: Problem, batch: Batch, rows: Tensor) -> Tensor:
        """The rows of S on a batch as (units, s, positions, D): each row has D entries, for outputs of one unit.

        Units are the examples of the batch, or the batch itself; positions are those of a sequence whose targets are
        examples. By default M's blocks are decomposed, which takes the cube of D. Raises SpectraError where M has no
        root.
        """
        middle, rows = self.middle(problem, batch, rows), rows.detach()
        values, vectors = decomposed(middle, rows)
        if not self.semidefinite(problem.loss):
            what = f"`loss` {getattr(problem.loss, 'name', type(problem.loss).__name__)}"
            refuse_tied_examples(middle, values, vectors, rows, what, self.name)
            refuse_indefinite(values, problem.dtype, what, self.name)
        return by_example(root_of(values, vectors, rows), batch)

    def most_root_rows(self, problem: Problem, rows: Tensor) -> int:
        """The largest number of rows that S may have for one row of the model.

        Where M couples the rows of a batch, it is the number for the batch.
        """
        return rows[0].numel()

    @property
    def takes_loss_hessian(self) -> bool:
        """Whether a product needs the second derivative of the loss by the outputs."""
        return not {"hessian", "loss hessian"}.isdisjoint(self.derivatives)

    def semidefinite(self, loss: Loss) -> bool:
        """Whether no eigenvalue is negative by definition: M is made of squares, or of a loss that is -log p."""
        squares = self.loss_power == 2 or self.needs_distribution
        return not self.has_model_curvature and (squares or (has_distribution(loss) and getattr(loss, "convex", True)))

    def unsuited(self, loss: Loss) -> str | None:
        """The reason why the matrix is not defined for the loss, with the way out; None where it is."""
        in_output_space = self.needs_distribution or "loss hessian" in self.derivatives
        if in_output_space and isinstance(loss, ModelLoss):
            return (
                "the model's own loss is not a function of each example's logits alone, so it has no second "
                "derivative by them; use hessian, or give a loss of (output, target)"
            )
        if in_output_space and isinstance(loss, BatchLoss):
            return (
                "a loss of (model, batch) hides the model's output, so it has no second derivative by it; use hessian "
                "or fisher-empirical, or give a loss of (output, target)"
            )
        if self.needs_distribution and not has_distribution(loss):
            return (
                "a custom loss has no known distribution p(y|f) of labels; use ggn or fisher-empirical, or give as "
                "loss a function of the output that returns a torch.distributions.Distribution of the targets"
            )
        if self.needs_distribution and not self.draws_labels and isinstance(loss, SampledLoss):
            return "a loss with a method draw has no expectation in closed form; use fisher-mc"
        if "loss hessian" in self.derivatives and getattr(loss, "linear", False):
            return IS_ZERO.format("", ", fisher")
        return None


def has_distribution(loss: Loss) -> bool:
    """Whether the loss is -log p(y|f) of a distribution that it can draw labels from."""
    return hasattr(loss, "draw") or isinstance(loss, DensityLoss | SampledLoss)


def distribution_of(problem: Problem, batch: Batch) -> Distribution:
    """The distribution of a batch's labels, for a loss that has one."""
    loss = problem.loss
    if isinstance(loss, DensityLoss | SampledLoss):
        loss = loss.distribution(lambda rows: problem.restored(rows, batch))
    return cast(Distribution, loss)


def label_scales(problem: Problem, batch: Batch, rows: Tensor) -> Tensor:
    """The scales s_i of a batch, with the weights of its targets: (E, 1) or (E, K)."""
    scales = distribution_of(problem, batch).scales(rows, problem.labels(batch))
    weights = weights_of(problem.loss, batch.targets)
    if weights is None:
        return scales
    if weights.shape[1] > 1:  # a target has several outputs
        weights = weights.repeat(1, rows.shape[1] // weights.shape[1])
    return scales * weights.to(rows)


def scaled(scales: Tensor, rows: Tensor) -> Tensor:
    """Rows (E, K) times scales (E, 1) or (E, K); rows of a user's loss have any shape (b, ...)."""
    return (scales * rows.flatten(1)).view_as(rows)


def loss_gradient(problem: Problem, batch: Batch, rows: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """The rows as a new leaf, detached from the parameters, and the derivative of the batch's summed loss by it."""
    leaf = rows.detach().requires_grad_()
    return leaf, gradient(problem.total(leaf, batch), (leaf,), create_graph=create_graph)[0]


def loss_hessian(problem: Problem, batch: Batch, rows: Tensor) -> Apply:
    """M u with M the second derivative of the loss by the outputs over W, by autograd in output space."""
    leaf, slope = loss_gradient(problem, batch, rows, create_graph=True)
    return lambda vectors: gradient(slope, (leaf,), vectors)[0] / problem.weight
