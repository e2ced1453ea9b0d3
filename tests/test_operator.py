"""Wrappers against dense algebra, SciPy's view, and the check before any method starts."""

import pytest
import torch
from helpers import Products, expected, matrix, seeded, with_spectrum
from networks import BY_NAME
from scipy.sparse.linalg import eigsh, lobpcg

from spectra.comparison.pairs import Difference
from spectra.curvature.leaf_blocks import LeafBlocks
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.krylov.block_diagonal import BlockDiagonal
from spectra.operator import Counting, Deflated, Shifted, Wrapper, random_vectors, to_scipy
from spectra.product_checks import check_operator
from spectra.resume.journal import CheckpointedOperator
from spectra.vectors import dot, norm

N = 40


def dense(seed=0, dtype=torch.float64):
    return with_spectrum(torch.linspace(-2, 5, N), seed).to(dtype)


def basis(count, dtype=torch.float64):
    return torch.linalg.qr(torch.randn(N, count, generator=seeded(9), dtype=dtype)).Q.T.contiguous()


WRAPPERS = {
    "tensor": lambda a: (a, a),
    "wrapper": lambda a: (Wrapper(a), a),
    "counting": lambda a: (Counting(a), a),
    "shifted": lambda a: (Shifted(a, -1.5), a - 1.5 * torch.eye(N, dtype=a.dtype)),
    "deflated": lambda a: (Deflated(a, basis(3, a.dtype)), project(3, a.dtype) @ a @ project(3, a.dtype)),
    "deflated by nothing": lambda a: (Deflated(a, basis(3, a.dtype)[:0]), a),
    "deflated by all": lambda a: (Deflated(a, basis(N, a.dtype)), torch.zeros_like(a)),
    "product alone": lambda a: (Products(lambda v: a @ v, N, a.dtype), a),
    "nested": lambda a: (
        Counting(Shifted(Deflated(a, basis(2, a.dtype)), 0.5)),
        project(2, a.dtype) @ a @ project(2, a.dtype) + 0.5 * torch.eye(N, dtype=a.dtype),
    ),
}


def project(count, dtype):
    rows = basis(count, dtype)
    return torch.eye(N, dtype=dtype) - rows.T @ rows


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_the_matrices_they_stand_for(name, dtype):
    operator, reference = WRAPPERS[name](dense(dtype=dtype))
    assert operator.shape == torch.Size((N, N))
    assert operator.dtype == dtype
    assert operator.device == torch.device("cpu")
    vectors = torch.randn(N, 5, generator=seeded(1), dtype=dtype)
    tolerance = 100 * torch.finfo(dtype).eps
    for given in (vectors, vectors[:, 0], vectors[:, :1], vectors.T.contiguous().T):
        product = operator @ given
        assert product.shape == given.shape
        assert product.dtype == dtype
        torch.testing.assert_close(product, reference @ given, rtol=0, atol=tolerance * given.abs().max().item() * 5)


def test_counting_counts_vectors():
    operator = Counting(dense())
    operator @ torch.ones(N, dtype=torch.float64)
    assert operator.products == 1
    operator @ torch.ones(N, 7, dtype=torch.float64)
    assert operator.products == 8
    Shifted(Deflated(operator, basis(2)), 1.0) @ torch.ones(N, 1, dtype=torch.float64)
    assert operator.products == 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64], ids=str)
def test_no_vector_of_another_dtype_is_multiplied(dtype):
    """The product would be rounded to it: as with tensors, both dtypes are named in place of an answer."""
    hessian = Curvature(BY_NAME["mlp"].problem(), "hessian")
    n, leaves = hessian.shape[0], len(hessian.problem.leaves)
    blocks = [torch.arange(3), torch.arange(3, n)]
    operators = [
        hessian,
        Wrapper(hessian),
        Counting(hessian),
        Shifted(hessian, 1.0),
        Deflated(hessian, torch.empty(0, n, dtype=hessian.dtype)),
        Deflated(hessian, torch.empty(0, n, dtype=torch.float32)),
        BlockDiagonal(hessian, blocks),
        LeafBlocks(hessian.problem, "hessian", [slice(0, leaves)]),
        Difference(hessian, Curvature(hessian.problem, "ggn")),
        CheckpointedOperator(hessian, journal=None),
    ]
    for operator in operators:
        for vectors in (torch.ones(n, dtype=dtype), torch.zeros(n, 2, dtype=dtype)):
            with pytest.raises(TypeError, match=rf"dtype torch\.float64, got {dtype}; convert them with vectors\.to\("):
                operator @ vectors


def test_deflation_leaves_no_more_than_rounding_of_what_it_removes():
    u = basis(4, torch.float32)
    projected = Deflated(dense(dtype=torch.float32), u).project(1e6 * u[0] + u[1])
    assert norm(u @ projected) <= 1e-3
    vector = Deflated(dense(dtype=torch.float32), u).project(torch.ones(N))
    assert norm(u @ vector) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scipy_sees_the_same_matrix(dtype):
    given = matrix("network")
    operator = to_scipy(given.matrix.to(dtype))
    assert operator.shape == (given.n, given.n)
    assert operator.dtype == (given.matrix.to(dtype)).numpy().dtype
    values = eigsh(operator, 4, tol=1e-8 if dtype == torch.float64 else 1e-4, return_eigenvectors=False)
    want = expected(given.spectrum, 4, "LM")
    atol = 1e-8 if dtype == torch.float64 else 1e-2
    torch.testing.assert_close(torch.tensor(values).double().sort(descending=True).values, want, rtol=0, atol=atol)


def test_scipy_multiplies_blocks_and_arrays_that_may_not_be_written():
    a = dense()
    operator = to_scipy(a)
    block = torch.randn(N, 3, generator=seeded(), dtype=torch.float64).numpy()
    block.flags.writeable = False
    torch.testing.assert_close(torch.tensor(operator @ block), a @ torch.tensor(block))
    torch.testing.assert_close(torch.tensor(operator.T @ block[:, 0]), a @ torch.tensor(block[:, 0]))
    torch.testing.assert_close(torch.tensor(operator @ block[::-1, 0]), a @ torch.tensor(block[::-1, 0].copy()))
    start = torch.randn(N, 2, generator=seeded(), dtype=torch.float64).numpy()
    values = lobpcg(operator, start, tol=1e-6, maxiter=200)[0]
    assert values.max() == pytest.approx(5, abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6, 0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["network", "softmax", "low rank", "one by one", "identity"])
def test_check_accepts_symmetric_matrices(name, dtype, scale):
    operator = Counting((matrix(name).matrix * scale).to(dtype))
    for seed in range(5):
        assert 0 <= check_operator(operator, seeded(seed)) <= 1e3 * torch.finfo(dtype).eps
    assert operator.products == 15


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [40, 100_000])
def test_check_refuses_asymmetry_whatever_the_size(n, dtype):
    """Two in a hundred of the matrix is a cyclic shift."""
    diagonal = torch.linspace(1, 2, n, dtype=dtype)
    operator = Products(lambda v: diagonal * v + 0.02 * v.roll(1), n, dtype)
    for seed in range(3):
        with pytest.raises(SpectraError, match="not symmetric"):
            check_operator(operator, seeded(seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_check_refuses_what_changes_from_product_to_product(dtype):
    a, noise = dense(dtype=dtype), seeded(3)
    keep = [1 + 0.01 * torch.randn(N, generator=noise, dtype=dtype) for _ in range(9)]
    operator = Products(lambda v: a @ v * keep.pop(), N, dtype)
    with pytest.raises(SpectraError, match="changes from product to product"):
        check_operator(operator, seeded())


@pytest.mark.parametrize("asymmetry", [1e-6, 1e-4])
@pytest.mark.parametrize("inside", [torch.float32, torch.float64])
def test_check_follows_the_precision_in_which_products_are_made(inside, asymmetry):
    """Rounding to single precision inside is no asymmetry; what is more than that is refused all the same."""
    a, generator = dense().to(inside), seeded(1)
    wrong = torch.randn(N, N, generator=generator, dtype=torch.float64)
    rounded = Counting(Products(lambda v: (a @ v.to(inside)).double(), N))
    noise = check_operator(rounded, seeded())
    assert (1e-9 < noise < 1e-6) if inside == torch.float32 else noise < 1e-13
    size = asymmetry * a.norm() / wrong.norm()
    off = Products(lambda v: (a @ v.to(inside)).double() + size * (wrong @ v), N)
    if inside == torch.float64 or asymmetry > 1e-5:
        with pytest.raises(SpectraError, match="not symmetric"):
            check_operator(off, seeded())
    else:
        assert check_operator(off, seeded()) == pytest.approx(asymmetry, rel=10)


def test_check_leaves_what_is_not_finite_to_the_methods():
    operator = Products(lambda v: v * float("nan"), N)
    noise = check_operator(operator, seeded())
    assert noise != noise


def test_random_vectors_depend_on_the_generator_alone():
    a = dense()
    one = random_vectors(a, 3, seeded(4))
    generator = seeded(4)
    again = torch.stack([random_vectors(a.float(), 1, generator)[0] for _ in range(3)])
    assert torch.equal(one.float(), again)


def test_norm_and_dot_accumulate_in_float64():
    ones = torch.full((2**20,), 1e-3, dtype=torch.float32)
    assert norm(ones) == pytest.approx(float(ones[0].double()) * 2**10, rel=1e-9)
    assert dot(ones, ones) == pytest.approx(float(ones[0].double()) ** 2 * 2**20, rel=1e-9)
    assert norm(torch.full((4,), 1e-30, dtype=torch.float32)) == pytest.approx(2e-30, rel=1e-6)
