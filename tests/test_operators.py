"""--operator: matrices of the user's own by the commands, against SciPy and closed forms; and what is refused."""

import json
import pickle
import shlex
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from helpers import WHOLE, arrays_of
from scipy import sparse
from scipy.sparse.linalg import eigsh
from test_ranks import run_ranks
from test_resume import Cut

import spectra
from spectra.cli import run
from spectra.run.operators import GivenMatrix
from spectra.run.session import file_name

OBJECTS = """
import numpy as np, torch
from scipy.sparse import load_npz
from scipy.sparse.linalg import LinearOperator

S = load_npz("laplacian.npz")
A = S.toarray()
T = torch.from_numpy(A)
L = LinearOperator(A.shape, matvec=lambda v: A @ v, dtype=A.dtype)
pair = (len(A), lambda v: S @ v)
skew = A + np.triu(np.full_like(A, 0.01), 1)
askew = (len(A), lambda v: skew @ v)
chance = (len(A), lambda v: S @ v + np.random.default_rng().normal(size=len(v)))


def sized(vector):
    return S @ vector

sized.size = len(A)


def build(scale=1.0):
    return scale * A


def wants_size(vector):
    return vector


def fails(vector):
    raise ValueError("no such vector")

fails.size = 5


class Estimate:
    '''A matrix that is itself an estimate, from samples.'''

    name, notes = "estimate / kT", ["from 100 samples"]
    shape, dtype, device = T.shape, T.dtype, T.device

    def __matmul__(self, vectors):
        return T @ vectors

    def standard_errors(self, vectors):
        return 0.01 * vectors.square().sum(dim=0) + 0.001 * vectors[0].abs()

    def trace_error(self):
        return 0.5
"""


def laplacian(n=60, seed=0):
    """The Laplacian of a random graph whose nodes are linked in a ring too."""
    links = np.triu(np.random.default_rng(seed).random((n, n)) < 0.05, 1) | np.roll(np.eye(n, dtype=bool), 1, axis=1)
    links = (links | links.T) & ~np.eye(n, dtype=bool)
    return sparse.csr_matrix(np.diag(links.sum(0)) - links.astype(float))


def ising(spins=8, field=0.9):
    """The Hamiltonian of a ring of spins in a transverse field: - sum z_i z_(i+1) - field sum x_i."""
    x, z = sparse.csr_matrix([[0.0, 1], [1, 0]]), sparse.diags([1.0, -1.0])

    def at(matrices):
        whole = sparse.identity(1)
        for i in range(spins):
            whole = sparse.kron(whole, matrices.get(i, sparse.identity(2)), format="csr")
        return whole

    return -sum(at({i: z, (i + 1) % spins: z}) for i in range(spins)) - field * sum(at({i: x}) for i in range(spins))


def tight_binding(n=90, hop=-1.0):
    """A chain of n sites, whose energies are 2 hop cos(pi k / (n + 1))."""
    return sparse.diags([np.full(n - 1, hop)] * 2, [-1, 1], format="coo")


def covariance(n=30, samples=200):
    data = np.random.default_rng(0).normal(size=(samples, n)) * np.arange(1, n + 1) ** -0.5
    return np.cov(data, rowvar=False)


def indefinite(n=120):
    matrix = sparse.random_array((n, n), density=0.05, rng=np.random.default_rng(3))
    return sparse.csc_array(matrix + matrix.T - sparse.eye_array(n))


MATRICES = {
    "laplacian": laplacian,
    "ising": ising,
    "chain": tight_binding,
    "covariance": covariance,
    "indefinite": indefinite,
}
CLOSED_FORMS = {  # eigenvalues at the ends of the spectrum; Pfeuty (1970) for the ring of spins
    "chain": lambda which: (1 if which == "LA" else -1) * 2 * np.cos(np.pi / 91),
    "ising": lambda which: (
        (1 if which == "LA" else -1)
        * sum(np.sqrt(1 + 0.9**2 - 2 * 0.9 * np.cos((2 * m + 1) * np.pi / 8)) for m in range(8))
    ),
}
FILES = ("laplacian.npz", "dense.npy", "dense.npz", "several.npz?key=A", "symmetric.mtx", "general.mtx.gz")
FORMS = (*FILES, *(f"objects.py:{name}" for name in ("S", "A", "T", "L", "pair", "sized", "build")))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A directory with one graph Laplacian in many files, and a module that knows it."""
    monkeypatch.chdir(tmp_path)
    matrix = laplacian()
    sparse.save_npz("laplacian.npz", matrix)
    np.save("dense.npy", matrix.toarray())
    np.savez("dense.npz", matrix.toarray())
    np.savez("several.npz", A=matrix.toarray(), b=np.ones(3))
    scipy.io.mmwrite("symmetric.mtx", matrix, symmetry="symmetric")
    scipy.io.mmwrite("general.mtx", matrix, symmetry="general")
    compressed(Path("general.mtx"))
    Path("objects.py").write_text(OBJECTS)
    return tmp_path


def compressed(path):
    import gzip

    Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))


def found(capsys, line, status=0):
    """The record that a command prints."""
    assert run([*shlex.split(line), "--json", "--device", "cpu"]) == status, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def saved(name):
    """A matrix of MATRICES in a file, its spectrum, rising, and itself."""
    matrix = MATRICES[name]()
    if isinstance(matrix, np.ndarray):
        np.save(f"{name}.npy", matrix)
        return f"{name}.npy", np.linalg.eigvalsh(matrix), matrix
    scipy.io.mmwrite(f"{name}.mtx", matrix, precision=17)
    return f"{name}.mtx", np.linalg.eigvalsh(matrix.toarray()), matrix


@pytest.mark.parametrize("name", MATRICES)
def test_eigenvalues_are_those_of_scipy(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file, exact, matrix = saved(name)
    for which in ("LA", "SA"):
        record = found(capsys, f"eig --operator {file} -k 3 --which {which} --tol 1e-9")
        (result,) = record["results"]
        theirs = np.sort(eigsh(matrix.astype(float), 3, which=which, tol=1e-12)[0])
        wanted = theirs[::-1] if which == "LA" else theirs
        np.testing.assert_allclose(result["eigenvalues"], wanted, rtol=1e-8, atol=1e-8 * abs(exact).max())
        assert result["curvature"] == name
        closed = CLOSED_FORMS[name](which) if name in CLOSED_FORMS else exact[-1 if which == "LA" else 0]
        assert result["eigenvalues"][0] == pytest.approx(closed, abs=1e-8 * abs(exact).max())


@pytest.mark.parametrize("name", MATRICES)
def test_the_trace_and_moments_of_the_density_are_those_of_the_spectrum(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file, exact, _ = saved(name)
    (result,) = found(capsys, f"trace --operator {file} --method dense")["results"]
    assert result["trace"] == pytest.approx(exact.sum(), abs=1e-9 * abs(exact).sum())
    (diagonal,) = found(capsys, f"trace --operator {file}")["results"]
    assert diagonal["trace"] == pytest.approx(exact.sum(), abs=1e-9 * abs(exact).sum())
    assert (diagonal["method"], diagonal["standard_error"], diagonal["products"]) == ("diagonal", 0.0, 3)
    (estimate,) = found(capsys, f"trace --operator {file} --rtol 0.5 --method xtrace")["results"]
    assert abs(estimate["trace"] - exact.sum()) <= 5 * estimate["standard_error"] + 1e-9 * abs(exact).sum()
    (measure,) = found(capsys, f"density --operator {file} --probes 20 --steps 30 --out d")["results"]
    nodes, weights = np.array(measure["nodes"]), np.array(measure["weights"])
    for power in (1, 2, 4):  # by probes; Gauss quadrature is exact for each, and their mean estimates the spectrum's
        each = (weights * nodes**power).sum(axis=1)
        error = each.std(ddof=1) / np.sqrt(len(each))
        assert abs(each.mean() - (exact**power).mean()) <= 5 * error + 1e-9 * abs(exact).max() ** power
    assert Path("d/density.png").stat().st_size > 1000


def test_every_form_gives_the_same_numbers(folder, capsys):
    exact = np.linalg.eigvalsh(laplacian().toarray())[:-4:-1]
    for form in FORMS:
        record = found(capsys, f"eig --operator {form} -k 3 --tol 1e-8")
        np.testing.assert_allclose(record["results"][0]["eigenvalues"], exact, rtol=1e-9)
        problem = record["problem"]
        assert (problem["operator"], problem["parameters"], problem["dtype"]) == (form, 60, "float64")
        assert problem["operators"][0]["spec"] == form


def test_a_record_says_what_the_matrix_is(folder, capsys):
    record = found(capsys, "eig --operator laplacian.npz -k 1 --seed 3")
    problem = record["problem"]
    import hashlib

    about = {"spec": "laplacian.npz", "name": "laplacian", "kind": "sparse", "size": 60, "dtype": "float64"}
    about |= {"entries": laplacian().nnz, "sha256": hashlib.sha256(Path("laplacian.npz").read_bytes()).hexdigest()}
    assert problem["operators"] == [about]
    assert {"parameters", "device", "seed", "versions", "notes"} <= problem.keys()
    assert not {"model", "data", "loss", "checkpoint", "weight_decay"} & problem.keys()
    assert problem["seed"] == 3
    assert not {"model", "curvature", "mc_samples", "precision"} & problem["options"].keys()
    assert record["results"][0]["path"] == "sparse matrix"
    assert run(["eig", "--operator", "laplacian.npz", "-k", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"laplacian.npz: 60 x 60, sparse, {laplacian().nnz} entries stored, float64\n")


def test_integers_are_converted_and_that_is_told(folder, capsys):
    np.save("whole.npy", laplacian().toarray().astype(np.int16))
    record = found(capsys, "eig --operator whole.npy -k 1")
    assert record["problem"]["notes"] == ["its entries of int16 were converted to float64"]
    record = found(capsys, "eig --operator dense.npy -k 1 --dtype float32")
    assert record["problem"]["dtype"] == "float32"
    assert record["problem"]["notes"] == ["its entries of float64 were converted to float32"]
    np.save("single.npy", laplacian().toarray().astype(np.float32))
    assert found(capsys, "eig --operator single.npy -k 1")["problem"]["dtype"] == "float32"


def refusals(matrix):
    """Files that are no symmetric matrix, and what is said of each."""
    changed = matrix.copy()
    changed[3, 8] += 0.5
    np.save("askew.npy", changed)
    sparse.save_npz("askew.npz", sparse.csr_matrix(changed))
    scipy.io.mmwrite("askew.mtx", sparse.coo_matrix(changed))
    np.save("rect.npy", matrix[:4])
    changed = matrix.copy()
    changed[0, 0] = np.inf
    np.save("infinite.npy", changed)
    np.save("complex.npy", matrix + 0j)
    np.save("objects.npy", matrix.astype(object), allow_pickle=True)
    Path("pickled.npy").write_bytes(pickle.dumps(matrix))
    np.save("empty.npy", np.zeros((0, 0)))
    np.save("text.npy", np.array([["a"]]))
    np.savez("many.npz", a=matrix, b=matrix)
    Path("damaged.npy").write_bytes(Path("askew.npy").read_bytes()[:500])
    Path("damaged.npz").write_bytes(b"PK\x03\x04 nothing")
    Path("damaged.mtx").write_text("%%MatrixMarket matrix coordinate real general\n3 3 9\n1 1 1.0\n")
    held = sparse.csr_matrix(matrix)
    held.indices[0] = 10**6
    sparse.save_npz("beyond.npz", held)
    far = "not symmetric: it differs from its transpose by 0.5 at row 4, column 9"
    return {
        "askew.npy": far,
        "askew.npz": far,
        "askew.mtx": far,
        "objects.py:skew": "by 0.01 at row 1, column 2",
        "objects.py:askew": "the matrix is not symmetric (by",
        "objects.py:chance": "the matrix changes from product to product (by",
        "rect.npy": "expected a square matrix, (n, n) with n >= 1, got the shape (4, 60)",
        "infinite.npy": "1 entry of the matrix is not finite, the first at row 1, column 1",
        "complex.npy": "the matrix is complex (complex128); give its real part",
        "objects.npy": "it holds Python objects, which are never unpickled",
        "pickled.npy": "it holds Python objects, which are never unpickled",
        "empty.npy": "got the shape (0, 0)",
        "text.npy": "expected a matrix of real numbers, got dtype",
        "many.npz": "it holds a, b; name one of its arrays, as many.npz?key=NAME",
        "many.npz?key=c": "it has no array c; choose from a, b",
        "many.npz?name=a": "it has no option name",
        "dense.npy?key=a": "it takes no options",
        "damaged.npy": "it is damaged, or not a .npy file of numbers",
        "damaged.npz": "it is damaged, or not a .npz file of numbers",
        "damaged.mtx": "it is damaged, or not a Matrix Market file of numbers",
        "beyond.npz": "it is damaged, or not a .npz file of numbers",
        "missing.npy": "there is no such file; check the path",
        ".": "is not a known kind of matrix",
        "matrix": "is not a known kind of matrix; name a file.npy, .npz or .mtx, or file.py:name",
        "objects.py:nothing": "objects.py has no nothing",
        "objects.py": "the name of the object in it is missing",
        "objects.py:wants_size": "it is a function of a vector without a size",
        "objects.py:fails": "a product failed (ValueError: no such vector)",
        "objects.py:OBJECTS.x": "objects.py has no OBJECTS",
    }


def test_what_is_no_symmetric_matrix_is_refused(folder, capfd):
    told = refusals(laplacian().toarray())
    for spec, text in told.items():
        assert run(["eig", "--operator", spec, "-k", "1"]) == 2, spec
        out, error = capfd.readouterr()
        assert out == ""
        assert text in error, spec
        assert error.startswith("spectra: ")
        assert len(error.splitlines()) == 1
        assert "`" not in error


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("eig --model a.py:b", "--model: describes a network, but --operator names a matrix; leave one of them out"),
        ("eig --data digits", "--data: describes a network"),
        ("trace --weight-decay 0", "--weight-decay: describes a network"),
        ("density --params x", "--params: describes a network"),
        ("eig --curvature ggn", "--curvature: describes a network"),
        ("eig --checkpoint a.pt", "--checkpoint: describes a network"),
        ("eig --no-check", "--no-check: describes a network"),
        ("eig --precision bf16", "--precision: describes a network"),
        ("compare --held-out digits", "--held-out: describes a network"),
        ("eig --method gram", "--method gram: needs a factor of the matrix"),
        ("trace --method gram", "--method gram: needs a factor of the matrix"),
        ("eig -k 61", "-k 61: the matrix has only 60 rows; ask for at most 60"),
        ("compare", "--operator dense.npy: there is no second matrix to compare with; give --operator again"),
        ("compare --operator other.npy", "--operator: the operators differ in size (dense 60, other 61 rows)"),
        (
            "eig --method dense --max-products 9",
            "--max-products: --method dense needs 60 products, one per row, and 6 are left; raise --max-products",
        ),
    ],
)
def test_what_does_not_go_with_an_operator_is_refused(line, text, folder, capfd):
    np.save("other.npy", np.eye(61))
    command, *more = line.split()
    assert run([command, "--operator", "dense.npy", *more]) == 2
    error = capfd.readouterr().err
    assert text in error
    assert len(error.splitlines()) == 1


def test_several_operators_are_compared_pair_by_pair(folder, capsys):
    matrix = laplacian().toarray()
    np.save("double.npy", (2 * matrix).astype(np.float32))
    line = "compare --operator dense.npy --operator double.npy --operator laplacian.npz -k 2 --probes 4 --steps 20"
    record = found(capsys, f"{line} --out c")
    pairs = {(pair["first"], pair["second"]): pair for pair in record["pairs"]}
    assert [*pairs] == [("dense", "double"), ("dense", "laplacian"), ("double", "laplacian")]
    assert pairs["dense", "double"]["distance"]["value"] == pytest.approx(1)
    assert pairs["dense", "double"]["scale"]["value"] == pytest.approx(0.5)
    assert pairs["dense", "laplacian"]["distance"]["value"] < 1e-12
    assert record["problem"]["operator"] == "dense.npy, double.npy, laplacian.npz"
    assert record["problem"]["options"]["operator"] == ["dense.npy", "double.npy", "laplacian.npz"]
    assert "double: its entries of float32 were converted to float64" in record["problem"]["notes"]
    again = found(capsys, "compare --config c/compare.json")
    assert again["pairs"] == record["pairs"]
    assert run(["compare", "--operator", "dense.npy", "--operator", "./dense.npy", "-k", "1"]) == 0
    assert "dense (2)" in capsys.readouterr().out  # of one name, the second is numbered


def test_a_result_is_repeated_drawn_and_shown(folder, capsys):
    for command in ("eig -k 3", "trace --method xtrace", "density --steps 20"):
        found(capsys, f"{command} --operator laplacian.npz --out r")
    first, again = (found(capsys, line) for line in ("eig --config r/eig.json", "eig --config r/eig.json"))
    assert first["results"][0]["eigenvalues"] == again["results"][0]["eigenvalues"]
    assert first["problem"]["options"] == spectra.load_result("r/eig.json").problem.options
    assert arrays_of("r/eig.npz").keys() == {"eigenvalues_laplacian", "residuals_laplacian", "eigenvectors_laplacian"}
    assert spectra.load_result("r/trace.json").results[0].projected_out == 3
    assert run(["plot", "r/eig.json", "r/density.json", "--out", "p.png"]) == 2  # each kind by itself
    capsys.readouterr()
    for command in ("eig", "trace", "density"):
        assert run(["plot", f"r/{command}.json", "--out", f"{command}.png"]) == 0
    assert run(["report", "r", "--out", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert "<h1>Spectrum of laplacian.npz</h1>" in page
    assert "laplacian.npz, 60 x 60, sparse" in page
    assert "<span>--operator laplacian.npz</span>" in page
    for absent in ("Checkpoint", "Batch size", "as built with seed"):
        assert absent not in page


def test_a_matrix_that_has_changed_is_not_repeated_unasked(folder, capfd):
    assert run(["eig", "--operator", "dense.npy", "-k", "1", "--out", "r"]) == 0
    np.save("dense.npy", 2 * laplacian().toarray())
    capfd.readouterr()
    assert run(["eig", "--config", "r/eig.json"]) == 2
    assert "dense.npy has changed since that result (its SHA-256 was" in capfd.readouterr().err
    assert run(["eig", "--config", "r/eig.json", "--operator", "dense.npy"]) == 0


def test_code_that_a_result_names_is_not_run_unasked(folder, capfd):
    assert run(["eig", "--operator", "objects.py:pair", "-k", "1", "--out", "r"]) == 0
    capfd.readouterr()
    assert run(["eig", "--config", "r/eig.json"]) == 2
    assert "names --operator objects.py:pair, which would run as code" in capfd.readouterr().err
    assert run(["eig", "--config", "r/eig.json", "--trust"]) == 0
    assert run(["eig", "--config", "r/eig.json", "--operator", "objects.py:pair"]) == 0


@pytest.mark.parametrize("spec", ["laplacian.npz", "objects.py:sized"])
def test_a_run_that_is_cut_off_goes_on(spec, folder, capfd, monkeypatch):
    line = ["eig", "--operator", spec, "-k", "3", "--tol", "1e-8", "--json", "--out"]
    assert run([*line, "whole"]) == 0
    whole = json.loads(capfd.readouterr().out)["results"][0]
    calls, multiply = 0, GivenMatrix.__matmul__

    def cut(self, vectors):
        nonlocal calls
        calls += 1
        if calls == 12:
            raise Cut
        return multiply(self, vectors)

    with monkeypatch.context() as patched:
        patched.setattr(GivenMatrix, "__matmul__", cut)
        with pytest.raises(Cut):
            run([*line, "cut"])
    capfd.readouterr()
    assert run([*line, "cut", "--seed", "1"]) == 2
    assert "an unfinished run of another problem is there (seed was 0, is 1)" in capfd.readouterr().err
    if spec == "laplacian.npz":
        kept = Path(spec).read_bytes()
        sparse.save_npz(spec, 2 * laplacian())
        assert run([*line, "cut"]) == 2
        assert "an unfinished run of another problem is there" in capfd.readouterr().err
        Path(spec).write_bytes(kept)
    assert run([*line, "cut"]) == 0
    out, error = capfd.readouterr()
    again = json.loads(out)["results"][0]
    assert "resumes after" in error
    for key in ("eigenvalues", "residuals", "products"):
        assert again[key] == whole[key]
    assert not Path("cut/eig.state").exists()


def test_a_matrix_that_is_an_estimate_shows_the_errors_of_its_sample(folder, capsys):
    matrix = laplacian().toarray()
    vectors = np.linalg.eigh(matrix)[1]
    record = found(capsys, "eig --operator objects.py:Estimate -k 2 --tol 1e-9 --out e")
    (result,) = record["results"]
    assert result["curvature"] == "estimate / kT"
    wanted = 0.01 + 0.001 * abs(vectors[0, :-3:-1])
    np.testing.assert_allclose(result["sampling_errors"], wanted, rtol=1e-6)
    assert record["problem"]["notes"] == ["from 100 samples"]
    (trace,) = found(capsys, "trace --operator objects.py:Estimate --method dense --out f")["results"]
    assert trace["trace"] == pytest.approx(matrix.trace())
    assert (trace["standard_error"], trace["sampling_error"]) == (0.5, 0.5)
    (trace,) = found(capsys, "trace --operator objects.py:Estimate --probes 16 --out f")["results"]
    (own,) = found(capsys, "trace --operator objects.py:T --probes 16")["results"]
    assert "sampling_error" not in own
    assert trace["standard_error"] == pytest.approx(np.hypot(own["standard_error"], 0.5))
    for line in ("eig --operator objects.py:Estimate -k 2", "trace --operator objects.py:Estimate"):
        assert run(line.split()) == 0
        assert "is itself an estimate" in capsys.readouterr().out
    loaded = spectra.load_result("e/eig.json").results[0]
    np.testing.assert_array_equal(loaded.sampling_errors, result["sampling_errors"])
    assert run(["plot", "e/eig.json", "--out", "e.png"]) == 0


@pytest.mark.skipif(not WHOLE, reason="two processes; tests/test_ranks.py has the operators themselves")
def test_two_ranks_find_what_one_does(folder, capsys):
    line = ["eig", "--operator", "objects.py:S", "-k", "2", "--tol", "1e-8", "--json", "--device", "cpu"]
    assert run(line) == 0
    alone = json.loads(capsys.readouterr().out)
    first, second = run_ranks(2, "-m", "spectra", *line, cwd=folder)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    together = json.loads(first.stdout)
    assert together["problem"]["ranks"] == 2
    np.testing.assert_allclose(together["results"][0]["eigenvalues"], alone["results"][0]["eigenvalues"], rtol=1e-10)
    assert together["results"][0]["products"] == alone["results"][0]["products"]


def test_names_of_files_are_of_plain_characters():
    assert file_name("hessian") == "hessian"
    assert file_name("ggn, residual") == "ggn, residual"
    names = ["a/b", "a_b", "../x", "é" * 300, "a\0b", "", ".", "a/b "]
    files = [file_name(name) for name in names]
    assert len({*files}) == len(names)
    for file in files:
        assert "/" not in file
        assert 0 < len(file) < 100
        assert not file.startswith(".")


def test_a_dense_matrix_stays_in_its_file(folder):
    from spectra.inputs.operators import load_operator

    operator = load_operator("dense.npy").operator
    assert isinstance(operator, torch.Tensor)
    changed = np.load("dense.npy", mmap_mode="r+")
    changed[0, 0] = 77.0
    changed.flush()
    assert float(operator[0, 0]) == 77.0


ODD = """
import numpy as np, torch

def pair(v): return np.triu(np.ones((4, 4))) @ v
def ends(v): raise SystemExit(3)
def infinite(v): return v * np.inf
pair.size = ends.size = infinite.size = 4


class Estimate:
    shape, dtype, device = (4, 4), torch.float64, torch.device("cpu")

    def __init__(self, errors):
        self.errors = errors

    def __matmul__(self, vectors):
        return vectors

    def standard_errors(self, vectors):
        return self.errors(vectors)

    def trace_error(self):
        return self.errors(torch.ones(1, 1))[0]


wide = Estimate(lambda vectors: torch.ones(7))
below = Estimate(lambda vectors: -torch.ones(vectors.shape[1]))
fails = Estimate(lambda vectors: 1 / 0)
"""


@pytest.mark.parametrize(
    ("command", "name", "message"),
    [
        ("eig -k 1", "pair", "--operator odd.py:pair: the matrix is not symmetric"),
        ("eig -k 1", "ends", "--operator: your code called sys.exit("),
        ("eig -k 1", "infinite", "or check what the operator returns"),
        ("eig -k 2", "wide", "--operator: its standard_errors returned errors of shape (7,)"),
        ("eig -k 1", "below", "--operator: its standard_errors returned a negative error, -1"),
        ("trace", "below", "--operator: its trace_error returned a negative error, -1"),
        ("eig -k 1", "fails", "--operator: its standard_errors failed with ZeroDivisionError"),
    ],
)
def test_faults_of_an_operator_are_named(command, name, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("odd.py").write_text(ODD)
    assert run([*command.split(), "--operator", f"odd.py:{name}"]) == (1 if name == "infinite" else 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_long_name_leaves_room_for_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "covariances_of_all_measured_features_of_the_second_run.npy"
    np.save(name, np.diag([3.0, 2.0, 1.0]))
    assert run(["eig", "--operator", name, "-k", "1"]) == 0
    shown = capsys.readouterr().out
    assert "products  time (s)  setup (s)  converged  complete" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert name in shown


def test_the_trace_of_products_with_noise_is_not_called_exact(tmp_path, monkeypatch, capsys):
    """Products with all vectors of a basis have no spread, but for the noise of the products themselves."""
    monkeypatch.chdir(tmp_path)
    Path("noisy.py").write_text(
        "import numpy as np\n"
        "chance = np.random.default_rng(0)\n"
        "A = np.diag(np.arange(1.0, 31)) + np.outer(w := chance.normal(size=30), w)\n"
        "def noisy(v): return A @ v + 1e-4 * np.linalg.norm(v) * chance.normal(size=30)\n"
        "def single(v): return (A @ v).astype(np.float32)\n"
        "noisy.size = single.size = 30\n"
    )
    for name in ("noisy", "single"):
        assert run(["trace", "--operator", f"noisy.py:{name}", "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["results"]
        exact = 465 + np.sum(np.random.default_rng(0).normal(size=30) ** 2)
        assert 0 < abs(found["trace"] - exact) <= 3 * found["standard_error"] <= 0.01 * exact


@pytest.mark.parametrize("command", ["eig", "trace", "density", "compare"])
def test_without_a_network_the_other_way_is_named(command, folder, capfd):
    assert run([command]) == 2
    assert "Missing option '--model', or '--operator' for a matrix in place of a network; " in capfd.readouterr().err
