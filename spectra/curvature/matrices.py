"""The register of matrices: the name of each, a description, and the place of its definition. It loads no torch.

A new matrix is a file with a subclass of `spectra.curvature.definition.Definition`, and a line here. Another package
adds one by an entry point of the group `spectra.matrices` that names such a subclass.
"""

from __future__ import annotations

from functools import cache
from inspect import isabstract
from typing import TYPE_CHECKING

from spectra.errors import ArgumentError, SpectraError
from spectra.register import Entry, Register

if TYPE_CHECKING:
    from spectra.curvature.definition import Definition
    from spectra.problem.losses import Loss

OPTION = "`curvature`"
MATRICES = Register(
    "spectra.matrices",
    {
        "hessian": Entry(
            "spectra.curvature.hessian:Hessian",
            "second derivative of the mean loss; indefinite",
        ),
        "ggn": Entry(
            "spectra.curvature.ggn:GaussNewton",
            "generalised Gauss-Newton: the Hessian without the model's own curvature",
        ),
        "fisher": Entry(
            "spectra.curvature.fisher:Fisher",
            "exact Fisher, the expectation over labels from the model's own distribution",
        ),
        "fisher-mc": Entry(
            "spectra.curvature.fisher_mc:SampledFisher",
            "Fisher with `mc_samples` labels drawn from the model for each example",
        ),
        "fisher-empirical": Entry(
            "spectra.curvature.fisher_empirical:EmpiricalFisher",
            "mean outer product of the gradients of single examples, with the data's labels",
        ),
        "gradient-covariance": Entry(
            "spectra.curvature.gradient_covariance:GradientCovariance",
            "fisher-empirical minus g g', g the mean gradient: the noise of stochastic gradients",
        ),
        "fisher-batch": Entry(
            "spectra.curvature.fisher_batch:BatchFisher",
            "outer products of the gradients of whole batches, often mistaken for fisher-empirical; depends on "
            "`batch_size`",
        ),
    },
)

NTK = "ntk"
# Matrices over examples, (N, N), which eig, trace and density compute besides those over parameters.
KERNELS = {NTK: "neural tangent kernel: inner products of all examples' output gradients, averaged over outputs"}


def definition(name: str) -> Definition:
    """The definition of the matrix of this name.

    Raises SpectraError where there is none, or the package that adds it is broken.
    """
    if name in KERNELS:
        return kernel(name)
    if name not in MATRICES:
        raise ArgumentError(f"`curvature` {name}: no such matrix; choose from {', '.join(MATRICES)}")
    return defined(name, MATRICES[name])


@cache
def kernel(name: str) -> Definition:
    """Load the definition of a matrix over examples."""
    from spectra.curvature.tangent_kernel import TangentKernel

    return TangentKernel(name)


@cache
def defined(name: str, _entry: Entry) -> Definition:
    """Load the definition of a matrix from its entry."""
    from spectra.curvature.definition import Definition

    found = MATRICES.load(name, OPTION)
    if not (isinstance(found, type) and issubclass(found, Definition)) or isabstract(found):
        raise SpectraError(
            f"{OPTION} {name}: {MATRICES[name].path} is not a matrix; expected a class that inherits from "
            "spectra.curvature.definition.Definition and defines `middle`; fix the package that adds it"
        )
    return found(name)


def refuse_unsuited(name: str, loss: Loss, weight_decay: float) -> None:
    """Raise SpectraError where the matrix does not exist, or is not defined for this loss or with weight decay."""
    if reason := why_unsuited(name, loss):  # which also refuses unknown names
        raise SpectraError(f"`curvature` {name}: {reason}")
    refuse_weight_decay(name, weight_decay)
    if name in MATRICES:
        MATRICES.warn_of_clash(name, OPTION)


def why_unsuited(name: str, loss: Loss) -> str | None:
    """The reason why the matrix of this name is not defined for the loss, with the way out; None where it is."""
    return definition(name).unsuited(loss)


def refuse_weight_decay(name: str, weight_decay: float) -> None:
    """Raise SpectraError where there is weight decay, and the matrix is made of gradients, which it does not shift."""
    if weight_decay and definition(name).loss_power != 1:
        raise SpectraError(
            f"`weight_decay` {weight_decay:g}: {name} is made of products of gradients, which weight "
            "decay does not shift; leave it out, or ask for hessian, ggn or fisher"
        )


def refuse_gram(name: str) -> None:
    """Raise SpectraError where the matrix has no factor F with A = F'F."""
    if definition(name).has_model_curvature:
        raise SpectraError(
            f"`method` gram: {name} is not of the form J'M J, so it has no Gram matrix; choose another method, or "
            "`curvature` ggn"
        )
