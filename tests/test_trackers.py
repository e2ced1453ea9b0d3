"""Where recordings go besides files: each kind of tracker is told the numbers that the recording holds."""

import sys
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import make_record, save, seeded
from torch import nn

import spectra
from spectra.cli import run
from spectra.errors import SpectraError
from spectra.inputs.checkpoint_file import digest_of
from spectra.inputs.spec import resolve
from spectra.krylov.results import Eigenpairs, TraceEstimate
from spectra.records.precondition import PreconditionRecord
from spectra.records.sweep import Evolution, Row
from spectra.sweeps.plan import read_plan
from spectra.sweeps.tracked import scalars_by_step
from spectra.training.trackers import scalars, tracker

X = torch.randn(20, 4, generator=seeded(1), dtype=torch.float64)
Y = torch.randn(20, 1, generator=seeded(2), dtype=torch.float64)
VALUES, STEP = {"spectra/loss": 0.5, "spectra/hessian/eigenvalue_1": 2.0}, 7


class Run:
    """As a run of wandb: `step` may be left out, and is given by its name."""

    def __init__(self):
        self.told = []

    def log(self, data, step=None, commit=None):
        self.told.append((dict(data), step))


class Positional(Run):
    def log(self, values, number, /):
        super().log(values, number)


class AnyName(Run):
    def log(self, values, **more):
        super().log(values, more["step"])


class Logger(Run):
    """As a logger of Lightning's, whose `log` is another matter."""

    def log_metrics(self, metrics, step=None):
        self.told.append((dict(metrics), step))

    def log(self, *_):
        raise AssertionError


class Writer(Run):
    """As TensorBoard's SummaryWriter."""

    def add_scalar(self, tag, scalar_value, global_step=None):
        values, step = self.told.pop() if self.told else ({}, global_step)
        assert step == global_step
        self.told.append((values | {tag: scalar_value}, step))

    log = None


@pytest.mark.parametrize("kind", [Run, Positional, AnyName, Logger, Writer])
def test_a_tracker_is_told_the_values_and_the_step(kind):
    log = kind()
    tracker(log)(VALUES, STEP)
    assert log.told == [(VALUES, STEP)]


def test_a_module_whose_log_comes_later():
    """`wandb.log` is put in place by `wandb.init()`, which may be called after the tracker was made."""

    def refuse(*arguments, **more):
        raise RuntimeError("You must call wandb.init() before wandb.log()")

    refuse.__wrapped__ = Run.log
    module, run = SimpleNamespace(log=refuse), Run()
    tell = tracker(module)
    with pytest.raises(RuntimeError, match="init"):
        tell(VALUES, STEP)
    module.log = run.log
    tell(VALUES, STEP)
    assert run.told == [(VALUES, STEP)]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (3, "`log`: int is not a tracker; give an object with .log"),
        ("runs/a", "`log`: str is not a tracker"),
        (Run, "`log`: Run is a class; call it first: Run"),
    ],
)
def test_what_is_no_tracker(log, message, tmp_path):
    model, loss = nn.Linear(4, 1).double(), nn.MSELoss()
    with pytest.raises(SpectraError, match=message):
        spectra.watch(model, loss, (X, Y), tmp_path, every=1, log=log)


def test_the_names_of_a_recording():
    """Eigenvalues of both ends by rank, each with its error; beside a threshold, what they are over that."""
    numbers = torch.tensor([-9.0, 5.0, 4.0, -3.0], dtype=torch.float64), torch.tensor([0.4, 0.3, 0.2, 0.1])
    pairs = Eigenpairs(numbers[0], torch.zeros(4, 6), numbers[1].double(), numbers[1], 30, True)
    estimate = {"hessian": TraceEstimate(7.0, 0.5, 12, True)}
    found = scalars(1.5, 0.25, 42, {"hessian": pairs}, estimate, {"hessian": 30})
    expected = {"loss": 1.5, "seconds": 0.25, "products": 42, "hessian/trace": 7.0, "hessian/trace_error": 0.5}
    expected |= {"hessian/eigenvalue_1": 5.0, "hessian/eigenvalue_2": 4.0, "hessian/searched": 30}
    expected |= {"hessian/residual_1": 0.3, "hessian/residual_2": 0.2}
    expected |= {"hessian/smallest_eigenvalue_1": -9.0, "hessian/smallest_eigenvalue_2": -3.0}
    expected |= {"hessian/smallest_residual_1": 0.4, "hessian/smallest_residual_2": 0.1}
    assert_named(found, expected)
    by = PreconditionRecord(spec="AdamW", optimizer="AdamW", rate=0.1, threshold=10.0)
    met = {name.replace("hessian/", "hessian_preconditioned/"): value for name, value in expected.items()}
    for quantity in ("over_threshold", "over_threshold_error"):
        like = "eigenvalue" if quantity == "over_threshold" else "residual"
        for end in ("1", "2"):
            for sign in ("", "smallest_"):
                met[f"hessian_preconditioned/{sign}{quantity}_{end}"] = expected[f"hessian/{sign}{like}_{end}"] / 10
    met["hessian_preconditioned/threshold"] = 10
    assert_named(scalars(1.5, 0.25, 42, {"hessian": pairs}, estimate, {"hessian": 30}, by), met)
    assert "spectra/fisher-empirical_preconditioned/threshold" not in scalars(
        1, 1, 1, {"fisher-empirical": pairs}, {}, {}, by
    )


def test_gradients_have_no_threshold(tmp_path):
    """Of a matrix of their products the threshold of an optimizer says nothing."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1).double()
    optimizer, log = torch.optim.SGD(model.parameters(), 0.1), Run()
    names = ("hessian", "fisher-empirical")
    options = {"curvature": names, "products": 30, "k": 1, "optimizer": optimizer, "log": log}
    found = spectra.watch(model, nn.MSELoss(), (X, Y), tmp_path, every=1, **options)(0)
    assert list(found.edge) == ["hessian"]
    assert found.edge["hessian"].item() == found.eigenpairs["hessian"].values.item() / 20
    ((values, _),) = log.told
    assert values["spectra/hessian_preconditioned/threshold"] == pytest.approx(20)
    assert values["spectra/hessian_preconditioned/over_threshold_1"] == found.edge["hessian"].item()
    assert not [name for name in values if name.startswith("spectra/fisher") and "threshold" in name]


def assert_named(found: dict[str, float], expected: dict[str, float]) -> None:
    assert {name.removeprefix("spectra/"): value for name, value in found.items()} == pytest.approx(expected, rel=1e-6)
    assert all(type(value) is float for value in found.values())


def test_what_is_not_finite_is_left_out():
    missing = torch.full((1,), torch.nan, dtype=torch.float64)
    pairs = Eigenpairs(missing, torch.zeros(1, 6), missing, missing, 3, False)
    estimate = TraceEstimate(torch.nan, torch.inf, 3, False)
    found = scalars(1.0, 2.0, 6, {"hessian": pairs}, {"hessian": estimate})
    assert found == {"spectra/loss": 1.0, "spectra/seconds": 2.0, "spectra/products": 6.0}


def watched(place, log, **more):
    torch.manual_seed(0)
    model = nn.Linear(4, 1).double()
    return spectra.watch(model, nn.MSELoss(), (X, Y), place, every=2, products=30, k=2, log=log, **more)


def test_watch_tells_its_tracker_what_it_records(tmp_path):
    """The mean of (w'x + b - y)^2 has the Hessian 2 Z'Z / N, with Z = (x, 1)."""
    run = Run()
    watch = watched(tmp_path, run, curvature=("hessian", "ggn"))
    recordings = [watch(step) for step in range(4)]
    assert [step for _, step in run.told] == [0, 2]
    z = torch.cat([X, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    spectrum = torch.linalg.eigvalsh(2 * z.T @ z / 20)
    for values, recording in zip([values for values, _ in run.told], recordings[::2], strict=True):
        assert values == recording.scalars()
        for name in ("hessian", "ggn"):
            for rank in (1, 2):
                error = abs(values[f"spectra/{name}/eigenvalue_{rank}"] - spectrum[-rank].item())
                assert error <= values[f"spectra/{name}/residual_{rank}"] + 1e-12
            assert values[f"spectra/{name}/trace"] == pytest.approx(spectrum.sum().item(), rel=1e-6)
        assert 2 * 4 <= values["spectra/products"] == recording.products <= 30  # the second starts from the first
        assert values["spectra/loss"] == recording.loss
        assert values["spectra/seconds"] == recording.seconds


def test_a_tracker_that_fails_is_one_line_and_chance_stays(tmp_path, caplog):
    def draws_and_fails(values, step):
        torch.rand(3)
        raise ConnectionError("no route to the server\nat all")

    watch = watched(tmp_path, draws_and_fails)
    state = torch.get_rng_state()
    assert watch(2).directory == tmp_path / "step-000002"
    assert torch.equal(torch.get_rng_state(), state)
    assert caplog.messages == ["spectra.watch: step 2 is not logged: ConnectionError: no route to the server"]


@pytest.mark.parametrize("package", ["lightning", "transformers"])
def test_a_callback_whose_package_is_not_installed(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.pytorch", None)
    monkeypatch.delitem(sys.modules, f"spectra.integrations.{package}", raising=False)
    with pytest.raises(ImportError, match=f"spectra.integrations.{package}: .* pip install {package}$"):
        import_module(f"spectra.integrations.{package}")


def test_parameters_that_deepspeed_has_sharded(tmp_path):
    model = nn.Linear(4, 1)
    model.weight.ds_tensor = torch.zeros(2)
    with pytest.raises(SpectraError, match="`model`: its parameters are sharded over processes"):
        spectra.watch(model, nn.MSELoss(), (X, Y), tmp_path, every=1)


def scalars_of_tensorboard(folder) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader finds in a directory."""
    with warnings.catch_warnings(action="ignore"):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = EventAccumulator(str(folder)).Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings(action="ignore"):
        from torch.utils.tensorboard import SummaryWriter
    with SummaryWriter(tmp_path / "log") as writer:
        watch = watched(tmp_path, writer)
        recordings = {step: recording.scalars() for step in range(5) if (recording := watch(step))}
    found = scalars_of_tensorboard(tmp_path / "log")
    assert set(found) == set(recordings[0])
    for name, series in found.items():
        assert series == [(step, pytest.approx(recordings[step][name], rel=1e-6)) for step in (0, 2, 4)]


MODEL = "torch.nn:Linear?in_features=2&out_features=1&bias=false"
SWEEP = """
from types import SimpleNamespace

told = []

def function(values, step):
    told.append((step, values))

run = SimpleNamespace(log=lambda values, step: function(values, step))
nothing = 3

def fails(values, step):
    raise ConnectionError("no route")
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Results of two matrices at steps 3 and 20 of a training, as `spectra sweep run` leaves them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("mine.py").write_text(SWEEP)
    for name in ("step-3", "step-20"):
        torch.save({"weight": torch.ones(1, 2)}, f"{name}.pt")
    text = f'[problem]\nmodel = "{MODEL}"\ncheckpoint = "step-*.pt"'
    text += '\ndata = "digits"\ncurvature = ["hessian", "ggn"]\n[eig]\nk = 2\n[trace]\n'
    Path("plan.toml").write_text(text)
    for task in read_plan(Path("plan.toml")).tasks:
        step = int(task.name.split("/")[0].removeprefix("step-"))
        known = {"model": MODEL, "params": [], "checkpoint_key": None, "seed": 0, "which": "LM"}
        problem = {"seed": 0, "loss_value": 1 / step, "checkpoint_sha256": digest_of(task.checkpoint), "options": known}
        task.directory.mkdir(parents=True)
        spent = {"curvature": task.curvature, "converged": True, "seconds": 1.0}
        pairs = {"eigenvalues": [-5.0 * step, 2.0 * step], "residuals": [0.5, None], "method": "lanczos", "products": 7}
        trace = {"trace": 4.0 * step, "standard_error": 0.25, "method": "xtrace", "products": 9}
        save(task.directory, make_record("eig", problem, [spent | pairs]), {"eigenvalues": np.zeros(2)})
        save(task.directory, make_record("trace", problem, [spent | trace]), {})
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """What is written beside the results, which takes long: here nothing, but the directory is noted."""
    folders = []
    monkeypatch.setattr(
        "spectra.plots.evolution_files.evolution_files", lambda _table, out, _width: [folders.append(out), []][1]
    )
    return folders


def numbers(step: int) -> dict[str, float]:
    found = {"spectra/loss": 1 / step, "spectra/products": 2 * (7 + 9)}
    for name in ("hessian", "ggn"):
        found |= {f"spectra/{name}/trace": 4 * step, f"spectra/{name}/trace_error": 0.25}
        found |= {f"spectra/{name}/smallest_eigenvalue_1": -5 * step, f"spectra/{name}/smallest_residual_1": 0.5}
        found |= {f"spectra/{name}/eigenvalue_1": 2 * step}
    return found


@pytest.mark.parametrize("name", ["function", "run"])
def test_collect_tells_a_tracker_of_the_users(name, plan, drawn):
    assert run(["sweep", "collect", "plan.toml", "--log", f"mine.py:{name}"]) == 0
    told = resolve("mine.py:told", "`log`")
    assert told == [(step, pytest.approx(numbers(step), rel=1e-12)) for step in (3, 20)]


def test_collect_tells_tensorboard(plan):
    pytest.importorskip("tensorboard")
    assert run(["sweep", "collect", "plan.toml", "--log", "tensorboard:runs/all"]) == 0
    found = scalars_of_tensorboard("runs/all")
    assert set(found) == set(numbers(3))
    for name, series in found.items():
        assert series == [(step, pytest.approx(numbers(step)[name], rel=1e-6)) for step in (3, 20)]


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_collect_tells_a_tracker_of_a_package(kind, plan, drawn, monkeypatch):
    """A run is opened in the project, told of each checkpoint, and closed."""
    calls = []
    package = ModuleType(kind)
    package.init = lambda project: [calls.append(("init", project)), Run()][1]
    package.log = lambda data, step=None: calls.append((step, data))
    package.finish = lambda: calls.append("finish")
    monkeypatch.setitem(sys.modules, kind, package)
    assert run(["sweep", "collect", "plan.toml", "--log", f"{kind}:spectra"]) == 0
    told = [(step, pytest.approx(numbers(step), rel=1e-12)) for step in (3, 20)]
    assert calls == [("init", "spectra"), *told, "finish"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wandb:spectra", "the package wandb is not installed"),
        ("tensorboard:", "the directory is missing; write tensorboard:DIR"),
        ("trackio", "the project is missing; write trackio:PROJECT"),
        ("mine.py:nothing", "--log: int is not a tracker"),
        ("mine.py:other", "mine.py has no other"),
        ("mine.py:fails", "--log mine.py:fails: it failed with ConnectionError: no route"),
    ],
)
def test_a_tracker_that_cannot_be_had_is_one_line(spec, message, plan, drawn, capsys, monkeypatch):
    """The files are written all the same."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run(["sweep", "collect", "plan.toml", "--log", spec]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert message in err
    assert [folder.name for folder in drawn] == ["plan"]


def test_preconditioned_matrices_have_names_of_their_own():
    rows = [
        Row("a", 5, "hessian", 0, "eigenvalue", 1, 30.0, 0.5, products=9, converged=True, command="eig"),
        Row("a", 5, "hessian", 0, "threshold", None, 40.0, command="eig"),
        Row("a", 5, "hessian", 0, "over_threshold", 1, 0.75, 0.0125, products=9, converged=True, command="eig"),
    ]
    ((step, found),) = scalars_by_step(Evolution(axis="training step", precondition=("AdamW",), rows=tuple(rows)))
    assert step == 5
    by = "spectra/hessian_preconditioned"
    assert found == {
        "spectra/products": 9,
        f"{by}/eigenvalue_1": 30,
        f"{by}/residual_1": 0.5,
        f"{by}/threshold": 40,
    } | {
        f"{by}/over_threshold_1": 0.75,
        f"{by}/over_threshold_error_1": 0.0125,
    }


def test_steps_that_are_no_whole_numbers_count_checkpoints():
    """And what has no gap that residuals could tell says nothing."""
    rows = [
        Row("a", 0.5, None, 0, "loss", None, 2.0),
        Row("b", 1.25, "hessian", 0, "overlap_next", 2, 0.9, 0.1, converged=True),
        Row("b", 1.25, "hessian", 1, "overlap_next", 2, 0.8, 0.1, converged=False),
        Row("b", 1.25, "hessian", 1, "negative_share", None, 0.2, None, 0.1, 0.4, 30, False, "density"),
    ]
    share = {
        f"spectra/hessian/seed-1/negative_share{end}": x for end, x in {"": 0.2, "_lower": 0.1, "_upper": 0.4}.items()
    }
    assert scalars_by_step(Evolution(axis="epoch", rows=tuple(rows))) == [
        (0, {"spectra/epoch": 0.5, "spectra/products": 0, "spectra/seed-0/loss": 2.0}),
        (
            1,
            {"spectra/epoch": 1.25, "spectra/products": 30, "spectra/hessian/seed-0/overlap_next_2": 0.9}
            | {"spectra/hessian/seed-0/overlap_next_error_2": 0.1}
            | share,
        ),
    ]
