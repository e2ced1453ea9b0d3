"""What users hand over as a matrix becomes an operator with the same products, or is refused with how far it is off."""

from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from helpers import Products, seeded, with_spectrum
from networks import BY_NAME
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, eigsh

import spectra
from spectra.curvature.finite_differences import FiniteDifferences
from spectra.entries import BLOCK
from spectra.errors import ArgumentError
from spectra.given_operator import as_operator
from spectra.inputs.operators import load_operator
from spectra.krylov.methods import EIG

N = 40
A = with_spectrum(np.linspace(-1, 3, N)).numpy()
TENSOR = torch.from_numpy(A)


class Multiplies:
    """A shape and @, on NumPy arrays."""

    shape = (N, N)

    def __matmul__(self, vectors):
        return A @ vectors


class Array:
    """What NumPy makes an array of, as pandas, CuPy's host copies or JAX arrays are."""

    shape = (N, N)

    def __array__(self, dtype=None, copy=None):
        return A.copy() if dtype is None else A.astype(dtype)


def sized(vector):
    return A @ vector


def on_tensors(vector):
    return TENSOR @ vector


def in_place(vector):
    """A product that writes over its vector, and gives the same buffer at every call."""
    in_place.buffer[:] = A @ vector
    vector[:] = np.nan
    return in_place.buffer


sized.size = N
on_tensors.shape, on_tensors.dtype = (N, N), torch.float64
in_place.size, in_place.buffer = N, np.zeros(N)

FORMS = {
    "array": A,
    "Fortran order": np.asfortranarray(A),
    "strided": np.repeat(np.repeat(A, 2, 0), 2, 1)[::2, ::2],
    "reversed": A[::-1, ::-1].copy()[::-1, ::-1],
    "big endian": A.astype(">f8"),
    "matrix": np.asmatrix(A),
    "masked, of which nothing is": np.ma.array(A),
    "read only": np.frombuffer(A.tobytes()).reshape(N, N),
    "tensor": TENSOR,
    "parameter": torch.nn.Parameter(TENSOR.clone()),
    "sparse tensor": TENSOR.to_sparse_coo(),
    "csr": sparse.csr_matrix(A),
    "csc": sparse.csc_array(A),
    "coo, twice": sparse.coo_array((np.tile(A.ravel() / 2, 2), np.tile(np.indices((N, N)).reshape(2, -1), 2)), (N, N)),
    "dia": sparse.dia_array(A),
    "linear operator": LinearOperator((N, N), matvec=lambda v: A @ v, dtype=np.float64),
    "linear operator of a matrix": sparse.linalg.aslinearoperator(A),
    "multiplies": Multiplies(),
    "has an array": Array(),
    "function": sized,
    "function of tensors": on_tensors,
    "function in place": in_place,
    "pair": (N, lambda v: A @ v),
    "pair with a shape": ((N, N), lambda v: (A @ v).tolist()),
    "our own": Products(lambda v: TENSOR @ v, N),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_products(form):
    with torch.no_grad():
        operator = as_operator(FORMS[form])
        assert tuple(operator.shape) == (N, N)
        assert operator.dtype == torch.float64
        vectors = torch.randn(N, 3, generator=seeded(), dtype=torch.float64)
        kept = vectors.clone()
        for given in (vectors, vectors[:, 0], vectors[:, 1:]):
            product = operator @ given
            assert product.shape == given.shape
            torch.testing.assert_close(product, TENSOR @ given, rtol=1e-12, atol=1e-12)
        first, second = operator @ vectors[:, 0], operator @ vectors[:, 1]
        torch.testing.assert_close(first, TENSOR @ vectors[:, 0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(second, TENSOR @ vectors[:, 1], rtol=1e-12, atol=1e-12)
        assert vectors.equal(kept)


METHODS = {
    "eigenpairs": lambda operator: spectra.eigenpairs(operator, 3).values,
    "xtrace": lambda operator: spectra.xtrace(operator, probes=8).value,
    "hutchinson": lambda operator: spectra.hutchinson(operator, probes=8).value,
    "hutch++": lambda operator: spectra.hutch_plus_plus(operator, probes=8).value,
    "spectral_measure": lambda operator: spectra.spectral_measure(operator, probes=2, steps=8).nodes,
    "check_operator": lambda operator: torch.tensor(spectra.check_operator(operator) < 1e-12),
    "to_scipy": lambda operator: torch.from_numpy(spectra.to_scipy(operator) @ np.ones(N)),
    "Counting": lambda operator: spectra.Counting(operator) @ torch.ones(N, dtype=torch.float64),
    "Shifted": lambda operator: spectra.Shifted(operator, 2.0) @ torch.ones(N, dtype=torch.float64),
    "Deflated": lambda operator: (
        spectra.Deflated(operator, torch.eye(N, dtype=torch.float64)[:2]) @ torch.ones(N, dtype=torch.float64)
    ),
    "compare": lambda operator: spectra.compare({"a": operator, "b": 2 * A}, k=2, probes=4, steps=8).pairs[0].largest,
    "eig": lambda operator: torch.from_numpy(spectra.eig(operator, k=3).values),
    "trace": lambda operator: spectra.trace(operator).trace,
    "density": lambda operator: torch.from_numpy(spectra.density(operator, probes=2, steps=8).nodes),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_anything(method):
    expected = METHODS[method](TENSOR)
    for form in ("array", "csr", "linear operator", "function", "pair"):
        torch.testing.assert_close(METHODS[method](FORMS[form]), expected, rtol=1e-9, atol=1e-9)


def test_eigenpairs_of_a_sparse_matrix_are_those_of_scipy():
    path = sparse.diags([[-1.0] * 199, [2.0] * 200, [-1.0] * 199], [-1, 0, 1], format="csr")
    pairs = spectra.eigenpairs(path, 4, which="LA", tolerance=1e-8)
    exact = 2 - 2 * np.cos(np.pi * np.arange(200, 196, -1) / 201)
    np.testing.assert_allclose(pairs.values, exact, rtol=1e-9)
    np.testing.assert_allclose(pairs.values, np.sort(eigsh(path, 4, which="LA")[0])[::-1], rtol=1e-9)


@pytest.mark.parametrize(
    ("given", "kept", "told"),
    [
        (np.eye(3, dtype=np.int32), torch.float64, "int32 were converted to float64"),
        (np.eye(3, dtype=bool), torch.float64, "bool were converted to float64"),
        (np.eye(3, dtype=np.float16), torch.float32, "float16 were converted to float32"),
        (np.eye(3, dtype=np.longdouble), torch.float64, "were converted to float64"),
        (torch.eye(3, dtype=torch.int64), torch.float64, "int64 were converted to float64"),
        (torch.eye(3, dtype=torch.bfloat16), torch.float32, "bfloat16 were converted to float32"),
        (sparse.eye_array(3, dtype=np.int8), torch.float64, "int8 were converted to float64"),
        (np.eye(3, dtype=np.float32), torch.float32, None),
        (sparse.eye_array(3, dtype=np.float32), torch.float32, None),
    ],
)
def test_other_numbers_are_converted_and_that_is_told(given, kept, told):
    notes = []
    operator = as_operator(given, tell=notes.append)
    assert operator.dtype == kept
    assert (operator @ torch.ones(3, dtype=kept)).tolist() == [1, 1, 1]
    assert [note for note in notes if not (told and note.endswith(told))] == []
    assert len(notes) == bool(told)


def test_a_dense_array_is_not_copied():
    given = A.copy()
    operator = as_operator(given)
    given[0, 0] += 1
    assert float(operator[0, 0]) == given[0, 0]


def off(matrix, i, j, by):
    changed = matrix.copy()
    changed[i, j] += by
    return changed


LARGE = np.eye(BLOCK + 60)
MANY = sparse.random_array((300, 300), density=0.02, rng=np.random.default_rng(0))
SPARSE = sparse.csr_array(MANY + MANY.T)
REFUSED = {
    "shape": (np.ones((3, 4)), "got the shape (3, 4)"),
    "one dimension": (np.ones(3), "expected a square matrix, (n, n) with n >= 1, got the shape (3,)"),
    "empty": (np.zeros((0, 0)), "got the shape (0, 0)"),
    "sparse shape": (sparse.csr_array((2, 5)), "got the shape (2, 5)"),
    "operator's shape": (LinearOperator((2, 5), matvec=lambda v: v, dtype=float), "got the shape (2, 5)"),
    "complex": (
        A + 0j,
        "the matrix is complex (complex128); give its real part if the imaginary part is zero, else [[Re, -Im], [Im, "
        "Re]]",
    ),
    "complex tensor": (torch.eye(2) + 0j, "is complex"),
    "complex sparse": (SPARSE.astype(complex), "is complex"),
    "complex operator": (LinearOperator((2, 2), matvec=lambda v: v, dtype=complex), "is complex"),
    "objects": (A.astype(object), "expected a matrix of real numbers, got dtype object"),
    "text": (np.array([["a"]]), "expected a matrix of real numbers, got dtype <U1"),
    "masked": (np.ma.array(A, mask=np.eye(N, dtype=bool)), "has masked entries; fill them"),
    "nan": (off(A, 7, 2, np.nan), "1 entry of the matrix is not finite, the first at row 8, column 3"),
    "infinite": (
        off(off(LARGE, 3, BLOCK + 5, np.inf), BLOCK + 7, 1, np.nan),
        f"2 entries of the matrix are not finite, the first at row 4, column {BLOCK + 6:,}",
    ),
    "sparse nan": (SPARSE * np.nan, f"{SPARSE.nnz:,} entries of the matrix are not finite"),
    "asymmetric": (
        off(np.eye(4) * 2, 3, 1, 1e-3),
        "not symmetric: it differs from its transpose by 0.001 at row 2, column 4, 5.0e-04 of its largest entry",
    ),
    "asymmetric, in another tile": (off(LARGE, 2, BLOCK + 3, 0.5), f"by 0.5 at row 3, column {BLOCK + 4:,}"),
    "asymmetric sparse": (sparse.csr_array(off(np.eye(4), 0, 2, 0.25)), "by 0.25 at row 1, column 3"),
    "list": ([[1.0]], "expected a NumPy array, a torch.Tensor, a SciPy sparse matrix"),
    "nothing": (None, "got None"),
    "size": ((2.5, sized), "2.5 is not a valid size"),
    "shape of a pair": (((3, 4), sized), "got the shape (3, 4)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_symmetric_matrix_is_refused(case):
    given, told = REFUSED[case]
    with pytest.raises(ArgumentError) as caught:
        spectra.eigenpairs(given, 1)
    assert str(caught.value).startswith("`operator`")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (np.ones(2), "is float64 of shape (2,); return real numbers of the vector's shape"),
        (np.ones(3) * 1j, "is complex128 of shape (3,)"),
    ],
)
def test_a_product_of_another_kind_is_refused(returned, told):
    with pytest.raises(spectra.SpectraError) as caught:
        as_operator((3, lambda v: returned)) @ torch.ones(3, dtype=torch.float64)
    assert told in str(caught.value)


def test_rounding_is_no_asymmetry():
    rough = A * (1 + 1e-13 * np.random.default_rng(0).normal(size=A.shape))
    assert spectra.eigenpairs(rough, 1, tolerance=1e-9).values[0] == pytest.approx(3.0, rel=1e-9)
    single = (A.astype(np.float32) * (1 + 1e-6 * np.random.default_rng(0).normal(size=A.shape))).astype(np.float32)
    assert load_operator(single).operator.dtype == torch.float32
    with pytest.raises(spectra.SpectraError, match="not symmetric"):  # which products in float64 would show
        load_operator(single.astype(np.float64))


def test_a_matrix_takes_the_place_of_a_network_in_calls(tmp_path):
    result = spectra.eig(A, k=2, out=tmp_path)
    assert (result.curvature, result.converged) == ("ndarray", True)
    assert spectra.load_result(tmp_path).problem.operators[0].spec == "ndarray given in Python"
    assert "ndarray given in Python (40 x 40, dense, float64)" in repr(spectra.load_result(tmp_path).problem)
    assert spectra.trace(A, deflate=tmp_path / "eig.json").projected_out == 2
    for more in ({"data": "digits"}, {"weight_decay": 0.1}, {"curvature": "ggn"}, {"precision": "bf16"}):
        with pytest.raises(TypeError, match=f"eig\\(\\) takes no {next(iter(more))} with a matrix; omit it"):
            spectra.eig(A, **more)
    with pytest.raises(spectra.SpectraError, match="`method` gram: needs a factor of the matrix"):
        spectra.eig(A, method="gram")
    with pytest.raises(spectra.SpectraError, match="`dtype` float32: this operator multiplies vectors of float64"):
        spectra.eig(sized, dtype="float32")
    assert spectra.eig(A, k=1, dtype="float32").values[0] == pytest.approx(3.0, rel=1e-5)


def noisy(kind):
    """A matrix of a network whose products are noisy, and which names what they are compared with."""
    problem = BY_NAME["mlp"].problem(dtype=torch.float32)
    exact, lower = spectra.Curvature(problem, "hessian"), spectra.Curvature(problem, "hessian", precision="bf16")
    return {"bf16": lower, "differences": FiniteDifferences(problem)}[kind], exact


@pytest.mark.parametrize("kind", ["bf16", "differences"])
def test_noisy_products_are_measured_as_those_of_a_network_are(kind):
    operator, exact = noisy(kind)
    result, trace = spectra.eig(operator, k=2, which="LA"), spectra.trace(operator, method="hutchinson", probes=20)
    expected = torch.linalg.eigvalsh(exact @ torch.eye(exact.shape[0]))
    assert result.values == pytest.approx(expected[[-1, -2]].numpy(), abs=result.residuals.max() + 1e-5)
    assert abs(trace.trace - expected.sum().item()) < 4 * trace.standard_error
    assert {result.precision, trace.precision} == {"bf16" if kind == "bf16" else "ieee"}


class OfParameters:
    """A matrix that is a parameter, so that its products have a place in autograd's graph."""

    shape, dtype, device = torch.Size((40, 40)), torch.float64, torch.device("cpu")

    def __init__(self):
        self.weight = torch.nn.Parameter(torch.from_numpy(A))

    def __matmul__(self, vectors):
        return self.weight @ vectors


@pytest.mark.parametrize("method", ["lanczos", "power", "dense"])
def test_eigenpairs_of_parameters_carry_no_graph(method):
    pairs = resolve_name(EIG[method])(OfParameters(), 2, generator=seeded())
    assert not any(value.requires_grad for value in vars(pairs).values() if isinstance(value, torch.Tensor))
    assert pairs.values[0].item() == pytest.approx(3.0)


def test_a_matrix_of_parameters_goes_through_every_call():
    operator, vector = OfParameters(), torch.ones(40, dtype=torch.float64)
    assert spectra.eig(operator, k=1).values[0] == pytest.approx(3.0)
    assert spectra.trace(operator, method="dense").trace == pytest.approx(np.trace(A))
    assert spectra.density(operator, steps=40).converged
    assert spectra.to_scipy(operator) @ vector.numpy() == pytest.approx(A @ np.ones(40))
    assert spectra.solve(operator, vector, method="minres", tolerance=1e-9).x.numpy() == pytest.approx(
        np.linalg.solve(A, np.ones(40)), rel=1e-6
    )
    assert spectra.compare({"one": operator, "other": A}, k=1).pairs[0].distance.value == pytest.approx(0, abs=1e-6)


def halves(vector):
    return vector


def returns_nothing(vector):
    return None


halves.size, halves.dtype = 4, torch.float16
returns_nothing.size = 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (halves, "too coarse for eigenvalues; multiply in torch.float32"),
        ((-3, lambda v: v), r"got the shape \(-3, -3\)"),
        (torch.zeros(3, 3, device="meta"), "is on the meta device"),
        (1e-200 * A, "the largest entry 1.7e-200 is not between 1e-100 and 1e.100"),
        (1e200 * A, "the largest entry 1.7e.200 is not between"),
    ],
)
def test_what_would_give_wrong_numbers_is_refused(given, message):
    with pytest.raises(ArgumentError, match=f"`operator`.*{message}"):
        spectra.eigenpairs(given, 1)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_products_beyond_the_range_of_squares_are_refused(scale):
    with pytest.raises(spectra.SpectraError, match="the matrix has products with a norm that is not between"):
        spectra.check_operator((N, lambda v: scale * (A @ v)))


def test_a_product_that_is_no_array_is_named():
    with pytest.raises(spectra.SpectraError, match="by function returns_nothing is NoneType; return real numbers"):
        spectra.eigenpairs(returns_nothing, 1)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, ">f8", np.longdouble, np.uint8], ids=str)
def test_products_may_come_in_any_real_type(kind):
    def diagonal(vector):
        made = np.arange(1, 5) * vector
        return torch.from_numpy(made).to(kind) if isinstance(kind, torch.dtype) else made.astype(kind)

    product = as_operator((4, diagonal)) @ torch.ones(4, dtype=torch.float64)
    assert product.tolist() == [1, 2, 3, 4]
    assert product.dtype == torch.float64


@pytest.mark.filterwarnings("ignore:Sparse")  # of a test that makes them
@pytest.mark.parametrize("form", ["to_sparse_bsr", "to_sparse_bsc"])
def test_blocks_of_torch(form):
    assert torch.equal(as_operator(getattr(TENSOR, form)((5, 5))).to_dense(), TENSOR)
