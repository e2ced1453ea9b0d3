"""Class and cross-class structure of the GGN, against the definitions written out example by example."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from networks import CASES
from torch import Tensor

import spectra
from spectra.krylov.dense import dense_matrix
from spectra.memory import fixed_memory_share
from spectra.spectrum.classes import class_count, class_means, class_structure

LABELLED = {c.name: c for c in CASES if c.kind == "cross_entropy" and not c.data()[1].is_floating_point()}
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def deltas(problem) -> tuple[Tensor, Tensor, Tensor]:
    """delta_icc' (E, C, n), w_icc' (E, C) and labels (E,), from the rows of the Jacobian."""
    all_deltas, all_weights, all_labels = [], [], []
    for batch in problem.batches:
        rows = problem.loss.rows(problem.output(batch), batch.targets)
        p, scales = rows.softmax(dim=1), problem.loss.scales(rows, batch.targets) / problem.weight
        for i, (row, label) in enumerate(zip(rows, batch.targets.flatten().tolist(), strict=True)):
            if label == problem.loss.ignore_index:
                continue
            jacobian = [torch.autograd.grad(f, problem.leaves, retain_graph=True, allow_unused=True) for f in row]
            jacobian = torch.stack([flat(parts, problem.leaves) for parts in jacobian])
            all_deltas.append((torch.eye(len(row)).to(row) - p[i]) @ jacobian)
            all_weights.append((scales[i] * p[i]).detach())
            all_labels.append(label)
    return torch.stack(all_deltas).detach(), torch.stack(all_weights), torch.tensor(all_labels)


def flat(parts, leaves) -> Tensor:
    return torch.cat(
        [torch.zeros_like(x).flatten() if g is None else g.flatten() for g, x in zip(parts, leaves, strict=True)]
    )


@cache
def levels(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The matrices of class, cross and within, and all delta_c and delta_cc', by the definitions."""
    delta, w, label = deltas(LABELLED[name].problem())
    n = delta.shape[2]
    class_level, cross, within = torch.zeros(3, n, n, dtype=delta.dtype)
    class_means, cross_means = [], []
    for c in label.unique():
        of_class = label == c
        totals = w[of_class].sum(dim=0)
        means = (w[of_class][:, :, None] * delta[of_class]).sum(dim=0) / totals[:, None]
        others = torch.arange(w.shape[1]) != c
        centre = (totals[others][:, None] * means[others]).sum(dim=0) / totals[others].sum()
        class_level += totals[others].sum() * centre.outer(centre) + totals[c] * means[c].outer(means[c])
        for k in range(w.shape[1]):
            if k != c:
                cross += totals[k] * (means[k] - centre).outer(means[k] - centre)
            for i in of_class.nonzero().flatten():
                within += w[i, k] * (delta[i, k] - means[k]).outer(delta[i, k] - means[k])
        class_means.append(centre)
        cross_means += list(means[others])
    return class_level, cross, within, torch.stack(class_means), torch.stack(cross_means)


@cache
def ggn(name: str) -> Tensor:
    return dense_matrix(spectra.Curvature(LABELLED[name].problem(), "ggn"))


def leading(matrix: Tensor, k: int = 4) -> spectra.Eigenpairs:
    values, vectors = torch.linalg.eigh(matrix)
    nothing = torch.zeros(k, dtype=values.dtype)
    return spectra.Eigenpairs(values.flip(0)[:k], vectors.T.flip(0)[:k], nothing, nothing, products=0, converged=True)


@pytest.mark.parametrize("name", LABELLED)
def test_levels_add_up_to_the_ggn(name):
    torch.testing.assert_close(sum(levels(name)[:3]), ggn(name), **EXACT)


@pytest.mark.parametrize("name", LABELLED)
def test_class_and_cross_are_the_outer_products_of_the_means(name):
    class_level, cross, *_ = levels(name)
    means = class_means(LABELLED[name].problem())
    rows = means.rows.flatten(0, 1)
    own = means.class_scales[:, None] * rows[:: len(means.rows) + 1]
    torch.testing.assert_close(rows.T @ rows, class_level + cross, **EXACT)
    torch.testing.assert_close(own.T @ own, class_level, **EXACT)


@pytest.mark.parametrize("name", LABELLED)
def test_shares_eigenvalues_and_overlaps(name):
    class_level, cross, within, class_deltas, cross_deltas = levels(name)
    pairs = leading(ggn(name))
    found = class_structure(LABELLED[name].problem(), pairs)
    traces = [found.class_trace, found.cross_trace, found.within_trace]
    torch.testing.assert_close(traces, [m.trace().item() for m in (class_level, cross, within)], **EXACT)
    parts = [
        torch.einsum("ki,ij,kj->k", pairs.vectors, m, pairs.vectors) / pairs.values
        for m in (class_level, cross, within)
    ]
    torch.testing.assert_close(found.attribution, torch.stack(parts, dim=1), rtol=1e-7, atol=1e-9)
    for values, matrix in ((found.class_eigenvalues, class_level), (found.mean_eigenvalues, class_level + cross)):
        largest = torch.linalg.eigvalsh(matrix).flip(0)[: len(values)]
        torch.testing.assert_close(values[: len(largest)], largest, rtol=1e-9, atol=1e-12)
    for overlap, rows in zip(found.overlaps.T, (class_deltas, cross_deltas), strict=True):
        basis = torch.linalg.svd(rows, full_matrices=False)
        kept = basis.Vh[basis.S / basis.S.max() > 1e-7]
        torch.testing.assert_close(overlap, (pairs.vectors @ kept.T).square().sum(dim=1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", LABELLED)
def test_means_predict_no_more_than_there_is(name):
    """The GGN less class and cross is positive semi-definite (Weyl)."""
    predicted = class_structure(LABELLED[name].problem(), leading(ggn(name))).mean_eigenvalues
    true = torch.linalg.eigvalsh(ggn(name)).flip(0)[: len(predicted)]
    assert (predicted[: len(true)] <= true + 1e-12 * true.max()).all()


def test_weights_of_a_class_are_its_share():
    problem = LABELLED["mlp"].problem()
    labels = torch.cat([batch.targets for batch in problem.batches])
    shares = labels.bincount(minlength=3).double() / len(labels)
    torch.testing.assert_close(class_means(problem).weights.sum(dim=1), shares)


@pytest.mark.parametrize("sizes", [(7,), (1, 6), (2, 2, 2, 1)])
def test_the_split_into_batches_changes_nothing(sizes):
    case = LABELLED["class weights"]
    torch.testing.assert_close(class_means(case.problem(sizes)).rows, class_means(case.problem()).rows, **EXACT)


@pytest.mark.parametrize("name", ["mlp", "sequence, classes last"])
def test_cost(name):
    """Passes J'u: C - 1 over the data, where examples of a class are by themselves; half a product each."""
    case = LABELLED[name]
    classes = class_count(case.problem())
    expected = {"mlp": (classes - 1) / 2, "sequence, classes last": classes * (classes - 1) / 2}[name]
    assert class_means(case.problem()).products == -(-expected // 1)


def test_overlaps_in_float32():
    """The span of rows that rounding alone tells apart."""
    case, pairs = LABELLED["mlp"], leading(ggn("mlp"))
    single = class_structure(case.problem(dtype=torch.float32), replace(pairs, vectors=pairs.vectors.float()))
    torch.testing.assert_close(single.overlaps, class_structure(case.problem(), pairs).overlaps, rtol=0, atol=1e-4)


def test_weight_decay_changes_no_level():
    case = LABELLED["mlp"]
    pairs = leading(ggn("mlp"))
    shifted = replace(pairs, values=pairs.values + 0.5)
    plain, decayed = class_structure(case.problem(), pairs), class_structure(case.problem(weight_decay=0.5), shifted)
    assert decayed.trace == plain.trace
    torch.testing.assert_close(decayed.eigenvalues, plain.eigenvalues, **EXACT)
    torch.testing.assert_close(decayed.attribution, plain.attribution, **EXACT)


def test_certain_labels_leave_no_mean():
    """Probabilities that round to one and zero: nothing is divided by zero."""
    case = LABELLED["mlp"]
    problem = case.problem()
    with torch.no_grad():
        for parameter in problem.leaves:
            parameter.mul_(1e4)
    found = class_structure(problem, leading(torch.eye(problem.size, dtype=torch.float64)))
    numbers = torch.cat(
        [found.class_eigenvalues, found.mean_eigenvalues, found.attribution.flatten(), found.overlaps.flatten()]
    )
    assert numbers.isfinite().all()


@pytest.mark.parametrize("name", ["mse", "bce", "soft targets", "custom, values"])
def test_other_losses_are_refused(name):
    problem = next(case for case in CASES if case.name == name).problem()
    assert class_count(problem) is None
    with pytest.raises(spectra.SpectraError, match=r"^`loss`: .*; choose `loss` cross_entropy"):
        class_means(problem)


def test_more_classes_than_memory_holds_are_refused():
    problem = LABELLED["mlp"].problem()
    with fixed_memory_share(1000), pytest.raises(spectra.SpectraError, match=r"^`params`: 9 cross-class means of "):
        class_means(problem)
