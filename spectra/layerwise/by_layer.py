"""Analyse the diagonal blocks of a network's matrix in one call: the public `spectra.layers`."""

from __future__ import annotations

from typing import Any

import torch

from spectra.arguments import chosen_generator, require_choice, require_integer, require_number
from spectra.cluster.distributed import distributed
from spectra.comparison.comparison import Watch, quiet
from spectra.curvature.operator import Curvature
from spectra.defaults import IEEE, LAYERS_PROBES, RTOL, TOLERANCE
from spectra.krylov.results import Eigenpairs
from spectra.layerwise import layers as blockwise
from spectra.layerwise.layers import DIAGONALS, Layers
from spectra.layerwise.parameter_blocks import BY, block_sums, diagonal_blocks, parameter_blocks, root_of
from spectra.optimizer.preconditioner_spec import PreconditionerSpec
from spectra.problem.problem import Problem, require_problem
from spectra.vectors import without_autocast


@without_autocast()
def layers(
    problem: Problem,
    name: str = "hessian",
    by: str = "layer",
    *,
    k: int = 1,
    method: str = "xdiag",
    rtol: float = RTOL,
    ranked: bool = False,
    tolerance: float = TOLERANCE,
    steps: int = 0,
    probes: int = LAYERS_PROBES,
    known: Eigenpairs | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
    max_products: int | None = None,
    precision: str = IEEE,
    precondition: Any = None,
    watch: Watch = quiet,
) -> Layers:
    """Compute trace, diagonal, eigenpairs and spectrum of each layer's diagonal block of a curvature matrix.

    Args:
        problem: the model, loss and data.
        name: the name of the matrix in `spectra.MATRICES`.
        by: what a block is: layer, module or channel.
        k: the number of leading eigenpairs of each block; 0: none, and none of the full matrix either.
        method: the estimator of the diagonal, xdiag or hutchinson.
        rtol: the standard error of every block's trace, over |trace of the full matrix|, at which the diagonal has
            converged.
        ranked: also rank the blocks by their saliencies, which have to meet `rtol` too.
        tolerance: the residual over |eigenvalue| at which an eigenpair has converged.
        steps: the products that each probe of a block's spectrum takes; 0: no spectra.
        probes: the number of random vectors of a spectrum.
        known: leading eigenpairs of the full matrix from an earlier run.
        seed: the seed of all random vectors, used where no `generator` is given.
        generator: a torch.Generator on the CPU, used instead of the seed.
        max_products: the most products with the full matrix; one with each block counts as many as there are blocks.
        precision: ieee, tf32 or bf16: the precision of products with the full matrix; those with blocks are in ieee.
        precondition: an optimizer of torch or its state, a `spectra.Preconditioner`, or a diagonal P as a mapping from
            parameter names or as a vector (n,): the blocks are those of P^-1/2 A P^-1/2, plus the optimizer's weight
            decay.
        watch: a function from the name of the next step to a context in which methods report their progress.

    Returns:
        A `Layers`, with one entry for each block.

    Raises:
        SpectraError: the matrix is not defined for this loss, or an argument is wrong.
    """
    require_problem(problem)
    require_choice("by", by, BY)
    require_integer("k", k, least=0)
    require_choice("method", method, DIAGONALS)
    require_number("rtol", rtol)
    require_number("tolerance", tolerance)
    require_integer("steps", steps, least=0)
    require_integer("probes", probes)
    require_integer("max_products", max_products, optional=True)
    generator = chosen_generator(seed, generator)
    preconditioner = None
    if precondition is not None:
        preconditioner, _ = PreconditionerSpec(precondition).load(problem.model, problem.parameters)
    root = root_of(preconditioner)
    matrix = distributed(Curvature(problem, name, precision=precision))
    blocks = parameter_blocks(problem, by)
    own = diagonal_blocks(matrix, blocks, problem, name)
    if preconditioner:
        matrix, own = preconditioner.around(matrix), preconditioner.around(own)
    return blockwise.layers(
        matrix,
        own,
        blocks,
        block_sums(problem, blocks, matrix, root),
        k=k,
        method=method,
        rtol=rtol,
        ranked=ranked,
        tolerance=tolerance,
        steps=steps,
        probes=probes,
        known=known,
        generator=generator,
        max_products=max_products,
        watch=watch,
    )
