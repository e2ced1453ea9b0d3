"""Diagonal blocks of whole parameters: products that leave out what belongs to others, for every matrix and network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import seeded
from networks import BY_NAME, NETWORKS, SOME, Case, name_of
from test_dense_reference import applies

from spectra.curvature.leaf_blocks import LeafBlocks, leaf_slices
from spectra.curvature.matrices import MATRICES
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.krylov.block_diagonal import BlockDiagonal
from spectra.layerwise.parameter_blocks import diagonal_blocks, parameter_blocks

EACH = [(case, name) for case in [*NETWORKS, *SOME[2:3], *SOME[4:]] for name in MATRICES if applies(case, name)]
MLP = BY_NAME["mlp"]


def vectors(problem, count: int = 2):
    return torch.randn(problem.size, count, generator=seeded(), dtype=problem.dtype)


@pytest.mark.sampled(20)
@pytest.mark.parametrize(("case", "name"), EACH, ids=name_of)
def test_products_are_those_of_the_dense_blocks(case: Case, name: str):
    """By blocks of layers, against products of the whole matrix cut to each."""
    problem = case.problem()
    blocks = parameter_blocks(problem, "layer")
    index = [block.index for block in blocks]
    given = vectors(problem)
    given[index[0], 1] = 0
    wanted = BlockDiagonal(Curvature(problem, name), index) @ given
    found = LeafBlocks(problem, name, leaf_slices(problem, index)) @ given
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12 * float(wanted.abs().max()))
    assert not found[index[0], 1].any()


@pytest.mark.parametrize("name", [name for name in MATRICES if name != "fisher-batch"])
def test_batches_do_not_matter(name: str):
    given = vectors(MLP.problem())
    found = [LeafBlocks(MLP.problem(sizes), name, [slice(0, 2), slice(2, 4)]) @ given for sizes in (None, (3, 3, 1))]
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


def test_weight_decay_shifts_blocks_alone():
    """Rows of no block stay zero."""
    plain, decayed = (MLP.problem(weight_decay=decay) for decay in (0.0, 0.3))
    given, leaves = vectors(plain), [slice(0, 1)]
    shift = LeafBlocks(decayed, "hessian", leaves) @ given - LeafBlocks(plain, "hessian", leaves) @ given
    own = plain.leaves[0].numel()
    torch.testing.assert_close(shift[:own], 0.3 * given[:own], rtol=1e-10, atol=1e-13)
    assert not shift[own:].any()


def test_what_is_not_asked_for_is_not_multiplied(monkeypatch):
    """A column that is zero in a block costs nothing there; a late block leaves the early layers alone."""
    problem = MLP.problem()
    blocks = LeafBlocks(problem, "ggn", [slice(0, 2), slice(2, 4)])
    asked = []
    times = Curvature.times_blocks
    monkeypatch.setattr(
        Curvature, "times_blocks", lambda self, parts: asked.append([s for s, _ in parts]) or times(self, parts)
    )
    given = vectors(problem, 3)
    early = blocks.places[0]
    given[early, 0] = given[early, 2] = 0
    blocks @ given
    assert asked == [[slice(0, 2), slice(2, 4), slice(2, 4), slice(2, 4)]]


def test_the_early_layers_are_left_alone():
    """A product of the last layer's block calls no gradient of the first layer's parameters."""
    problem = MLP.problem()
    blocks = LeafBlocks(problem, "hessian", [slice(2, 4)])
    given = vectors(problem, 1)[:, 0]
    blocks @ given  # makes what is kept
    called = []
    for p in problem.leaves[:2]:
        p.register_hook(lambda gradient: called.append(gradient))
    blocks @ given
    assert not called


@pytest.mark.parametrize(
    ("index", "wanted"),
    [
        ([range(2080)], [slice(0, 2)]),
        ([range(2048), range(2048, 2080)], [slice(0, 1), slice(1, 2)]),
        ([range(10)], None),
        ([range(2048, 3000)], None),
        ([[0, 2]], None),
    ],
)
def test_slices_are_whole_parameters(index, wanted):
    from torch import nn

    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    problem = replace(MLP.problem(), model=model, parameters=dict(model.named_parameters()))
    assert leaf_slices(problem, [torch.tensor(list(some)) for some in index]) == wanted


@pytest.mark.parametrize(("by", "kind"), [("layer", LeafBlocks), ("module", LeafBlocks), ("channel", BlockDiagonal)])
def test_the_cheaper_way_is_taken_where_there_is_one(by, kind):
    problem = MLP.problem()
    blocks, matrix = parameter_blocks(problem, by), Curvature(problem, "hessian")
    found = diagonal_blocks(matrix, blocks, problem, "hessian")
    assert isinstance(found, kind)
    given = vectors(problem)
    wanted = BlockDiagonal(matrix, [block.index for block in blocks]) @ given
    torch.testing.assert_close(found @ given, wanted, rtol=1e-11, atol=1e-13)


def test_changed_parameters_are_refused():
    problem = MLP.problem()
    blocks = LeafBlocks(problem, "hessian", [slice(0, 2)])
    given = vectors(problem)
    blocks @ given
    with torch.no_grad():
        problem.leaves[0].add_(1)
    with pytest.raises(SpectraError, match="have changed"):
        blocks @ given
