"""The blocks of a network's matrix in one call, as `spectra layers` takes them apart."""

from __future__ import annotations

import torch

from spectra.cluster.distributed import distributed
from spectra.curvature.operator import Curvature
from spectra.layerwise import layers as blockwise
from spectra.layerwise.layers import Layers
from spectra.layerwise.parameter_blocks import block_sums, diagonal_blocks, parameter_blocks
from spectra.problem.problem import Problem
from spectra.vectors import without_autocast


@without_autocast()
def layers(
    problem: Problem, name: str = "hessian", by: str = "layer", *, generator: torch.Generator, **settings
) -> Layers:
    """Traces, diagonal, eigenpairs and spectra of the blocks of the matrix `name`: by layer, module or channel.

    `settings` are those of `analysis.layers.layers`. Raises SpectraError as Curvature does.
    """
    matrix = distributed(Curvature(problem, name))
    blocks = parameter_blocks(problem, by)
    own = diagonal_blocks(matrix, blocks, problem, name)
    return blockwise.layers(matrix, own, blocks, block_sums(problem, blocks, matrix), generator=generator, **settings)
