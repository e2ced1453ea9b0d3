"""The register of matrices: names, a sentence each, and where they are. It loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from spectra.errors import ArgumentError, SpectraError


@dataclass(frozen=True)
class Matrix:
    """One entry: what the command line, the tests and error messages say of a matrix."""

    sentence: str
    path: str  # of a function (problem, batch) -> (vector -> product)
    squared: bool = False  # products of gradients: grows with the square of the loss, and has no weight decay
    distribution: bool = False  # needs the loss to be -log p of some model distribution
    centred: bool = False  # less g g', g the gradient of the mean loss
    split: bool = False  # depends on how the data are split into batches
    indefinite: bool = False  # more than J' M J

    def semidefinite(self, loss: object) -> bool:
        """Whether no eigenvalue is negative, by definition: J' M J with M of squares, or of a loss that is -log p."""
        return not self.indefinite and (self.squared or hasattr(loss, "draw"))


MATRICES = {
    "hessian": Matrix(
        "second derivative of the mean loss; indefinite",
        "spectra.curvature.hessian:linearise",
        indefinite=True,
    ),
    "ggn": Matrix(
        "generalised Gauss-Newton: the Hessian less the model's own curvature",
        "spectra.curvature.output_space:ggn",
    ),
    "fisher": Matrix(
        "exact Fisher, over the labels that the model itself expects",
        "spectra.curvature.output_space:fisher",
        distribution=True,
    ),
    "fisher-mc": Matrix(
        "the same with `mc_samples` labels drawn for each example",
        "spectra.curvature.output_space:fisher_mc",
        distribution=True,
    ),
    "fisher-empirical": Matrix(
        "mean outer product of the gradients of single examples, with the data's labels",
        "spectra.curvature.output_space:fisher_empirical",
        squared=True,
    ),
    "gradient-covariance": Matrix(
        "fisher-empirical less g g', g the mean gradient: the noise of stochastic gradients",
        "spectra.curvature.output_space:fisher_empirical",
        squared=True,
        centred=True,
    ),
    "fisher-batch": Matrix(
        "outer products of the gradients of whole batches, often taken for fisher-empirical; depends on `batch_size`",
        "spectra.curvature.engine.gradients:fisher_batch",
        squared=True,
        split=True,
    ),
}


def refuse_unsuited(name: str, loss: object, weight_decay: float) -> None:
    """Raise SpectraError where there is no such matrix, or none of this loss or with weight decay."""
    if name not in MATRICES:
        raise ArgumentError(f"`curvature` {name}: no such matrix; choose from {', '.join(MATRICES)}")
    if not suits(name, loss):
        raise SpectraError(
            f"`curvature` {name}: a loss of your own has no distribution p(y|f) to expect labels of; "
            "use ggn or fisher-empirical"
        )
    refuse_weight_decay(name, weight_decay)


def suits(name: str, loss: object) -> bool:
    """Whether the loss has what the matrix takes."""
    return not MATRICES[name].distribution or hasattr(loss, "draw")


def refuse_weight_decay(name: str, weight_decay: float) -> None:
    if MATRICES[name].squared and weight_decay:
        raise SpectraError(
            f"`weight_decay` {weight_decay:g}: {name} is made of products of gradients, which weight "
            "decay does not shift; leave it out, or ask for hessian, ggn or fisher"
        )


def refuse_gram(name: str) -> None:
    """Raise SpectraError where the matrix has no factor F of which F'F is the matrix."""
    if MATRICES[name].indefinite:
        raise SpectraError(
            f"`method` gram: {name} is not of the form J'M J, so it has no Gram matrix; choose another method, or "
            "`curvature` ggn"
        )
