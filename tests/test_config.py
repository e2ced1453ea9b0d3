"""Commands take up what is there: --config of a TOML file or a result, and the eigenvectors of an earlier eig."""

import json
import shlex
import sys

import numpy as np
import pytest
import torch

from spectra.cli import run
from spectra.demo import mlp
from spectra.krylov.streams import BESIDE_EIGENVECTORS, METHOD, stream
from spectra.operator import random_signs

NETS = """
from torch import nn

def build(width=5):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))
"""
PROBLEM = "--model nets.py:build --checkpoint weights.pt --data points.npz --dtype float64"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    np.savez("points.npz", x=draw.normal(size=(23, 4)), y=draw.integers(0, 3, 23))
    save_weights(1)
    return tmp_path


def save_weights(seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    torch.save(network.state_dict(), "weights.pt")


@pytest.fixture
def call(capfd):
    def call(line: str) -> tuple[int, str, str]:
        capfd.readouterr()
        return run(shlex.split(line)), *capfd.readouterr()

    return call


@pytest.fixture
def good(call):
    def good(line: str) -> dict:
        status, out, err = call(f"{line} --json")
        assert (status, err) == (0, "")
        return json.loads(out)

    return good


@pytest.fixture
def refused(call):
    def refused(line: str, *fragments: str) -> None:
        status, out, err = call(line)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        for fragment in fragments:
            assert fragment in err

    return refused


def numbers(record: dict) -> list[dict]:
    return [{k: v for k, v in r.items() if "seconds" not in k} for r in record["results"]]


TOML = """
model = "nets.py:build?width=5"
checkpoint = "weights.pt"
data = "points.npz"
dtype = "float64"
curvature = ["ggn", "hessian"]
batch-size = 7
weight_decay = 0.5
json = true

[eig]
k = 4
tol = 1e-6

[trace]
method = "dense"
"""


def test_a_toml_file_stands_for_its_options(call, good):
    with open("run.toml", "w") as file:
        file.write(TOML)
    common = f"{PROBLEM.replace('build', 'build?width=5')} --curvature ggn --curvature hessian --batch-size 7"
    common += " --weight-decay 0.5"
    status, out, err = call("eig --config run.toml")
    assert (status, err) == (0, "")
    by_file, typed = json.loads(out), good(f"eig {common} -k 4 --tol 1e-6")
    assert numbers(by_file) == numbers(typed)
    assert by_file["problem"] == typed["problem"]
    assert good("trace --config run.toml")["results"][0]["method"] == "dense"


def test_the_command_line_overrides_the_file(good):
    with open("run.toml", "w") as file:
        file.write(TOML)
    record = good("eig --config run.toml --curvature fisher -k 2 --weight-decay 0")
    assert [r["curvature"] for r in record["results"]] == ["fisher"]
    assert len(record["results"][0]["eigenvalues"]) == 2
    assert record["problem"]["weight_decay"] == 0
    assert record["problem"]["batch_size"] == 7


def test_one_name_stands_for_a_list_of_one(good):
    with open("run.toml", "w") as file:
        file.write(TOML.replace('["ggn", "hessian"]', '"fisher-mc"'))
    assert [r["curvature"] for r in good("eig --config run.toml")["results"]] == ["fisher-mc"]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("k = ", ["run.toml", "not valid TOML"]),
        ("kk = 3", ["no option kk", "did you mean k"]),
        ("config = 'run.toml'", ["no option config"]),
        ("[foo]\na = 1", ["[foo]", "eig"]),
        ("k = 'x'", ['k = "x"', "eig --help"]),
        ("k = 0", ["k = 0", "x>=1"]),
        ("k = true", ["k = true"]),
        ("k = [1, 2]", ["k = [1, 2]"]),
        ("k = 2000-01-01", ["k = "]),
        ("json = 1", ["json = 1", "true nor false"]),
        ("curvature = ['hess']", ["hess", "hessian"]),
        ("curvature = [['ggn']]", ["curvature"]),
        ("tol = nan", ["tol = NaN", "finite"]),
        ("\udcff", ["not valid TOML"]),
    ],
)
def test_a_toml_file_to_put_right(text, fragments, refused):
    with open("run.toml", "w", errors="surrogateescape") as file:
        file.write(text)
    refused(f"eig {PROBLEM} --config run.toml", "--config run.toml", *fragments)


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("gone.toml", ["cannot be read"]),
        ("gone.json", ["cannot be read"]),
        ("weights.pt", [".toml", ".json"]),
        ("text.json", ["not valid JSON"]),
        ("other.json", ["not a result"]),
        ("old.json", ["does not list its options"]),
        ("newer.json", ["newer"]),
    ],
)
def test_a_config_that_is_none(name, fragments, refused):
    with open("text.json", "w") as file:
        file.write("eigenvalues")
    for file, content in (
        ("other.json", {"k": 3}),
        ("old.json", {"schema": 1, "command": "eig", "problem": {}, "results": []}),
        ("newer.json", {"schema": 99, "command": "eig", "problem": {}, "results": []}),
    ):
        with open(file, "w") as opened:
            json.dump(content, opened)
    refused(f"eig {PROBLEM} --config {name}", f"--config {name}", *fragments)


LINES = {
    "eig": "-k 4 --which BE --tol 1e-5 --curvature fisher-mc --curvature hessian --seed 3 --mc-samples 2",
    "trace": "--method hutchinson --probes 20 --curvature fisher-empirical --seed 5",
    "density": "--steps 7 --probes 3 --curvature gradient-covariance --samples 19 --seed 2 --params '2.*'",
    "compare": "-k 3 --probes 4 --steps 6 --subsample 8,16 --curvature hessian --curvature ggn --seed 4",
    "layers": "--by channel -k 1 --sort trace --method hutchinson --rtol 0.5 --density --steps 3 --curvature ggn",
    "landscape": "--along 1 --along random,2 --points 5 --radius 0.3 --curvature ggn --seed 1",
    "step": "-k 2 --tol 1e-2 --curvature ggn --curvature fisher --seed 3",
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("command", LINES)
def test_a_result_repeats_itself(command, good):
    first = good(f"{command} {PROBLEM} {LINES[command]} --batch-size 5 --out first")
    again = good(f"{command} --trust --config first/{command}.json --out again")
    for result in (*first["results"], *again["results"]):
        result.pop("figure", None)
    assert numbers(again) == numbers(first)
    settled = {"device": first["problem"]["device"], "batch_size": 5}
    assert again["problem"] == first["problem"] | {"options": first["problem"]["options"] | settled}


def test_the_batch_size_that_memory_chose_is_kept(good, monkeypatch):
    first = good(f"eig {PROBLEM} --out first")
    monkeypatch.setattr("spectra.inputs.problem.fitting_batch_size", lambda *_: 1)
    assert good("eig --trust --config first/eig.json")["problem"]["batch_size"] == first["problem"]["batch_size"] == 23


def test_another_command_takes_the_problem_of_a_result(good):
    good(f"eig {PROBLEM} -k 3 --method dense --max-products 400 --curvature ggn --samples 9 --out first")
    record = good("trace --trust --config first/eig.json")
    assert record["problem"]["samples"] == 9
    assert record["results"][0]["curvature"] == "ggn"
    assert record["results"][0]["method"] == "xtrace"
    assert record["problem"]["options"]["max_products"] is None


def test_a_checkpoint_that_has_changed_since(good, refused):
    good(f"eig {PROBLEM} -k 3 --out first")
    save_weights(2)
    refused("eig --trust --config first/eig.json", "--config", "weights.pt", "SHA-256", "--checkpoint")
    assert good("eig --trust --config first/eig.json --checkpoint weights.pt")["results"][0]["converged"]


@pytest.mark.parametrize("changed", ["data", "model"])
def test_data_or_code_that_have_changed_since(changed, good, refused, folder):
    good(f"eig {PROBLEM} -k 3 --out first")
    if changed == "data":
        draw = np.random.default_rng(1)
        np.savez("points.npz", x=draw.normal(size=(23, 4)), y=draw.integers(0, 3, 23))
    else:
        (folder / "nets.py").write_text(NETS.replace("Tanh", "Softplus"))
        for name in [name for name in sys.modules if name.startswith("spectra_user_nets")]:
            del sys.modules[name]
    refused("eig --trust --config first/eig.json", "--config", "mean loss", "changed")
    good("eig --trust --config first/eig.json --seed 1")  # another problem in any case


def test_every_option_is_recorded_as_typed(good):
    record = good(f"trace {PROBLEM} --curvature ggn --params '0.*' --params '2.*' --rtol 0.5")
    options = record["problem"]["options"]
    assert options["model"] == "nets.py:build"
    assert options["checkpoint"] == "weights.pt"
    assert options["params"] == ["0.*", "2.*"]
    assert options["curvature"] == ["ggn"]
    assert options["rtol"] == 0.5
    assert options["device"] == "auto"
    assert options["samples"] is options["batch_size"] is None
    assert {"config", "out", "json"}.isdisjoint(options)


DIGITS = "--model spectra.demo:mlp --checkpoint digits.pt --data digits --samples 300 --curvature hessian"


@pytest.fixture
def digits():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(mlp().state_dict(), "digits.pt")


@pytest.mark.parametrize("command", ["trace", "density"])
def test_eigenvectors_in_out_serve_later_commands(command, digits, good, call):
    options = "--rtol 0.3" if command == "trace" else "--steps 12 --probes 2"
    good(f"eig {DIGITS} -k 6 --out both")
    alone = good(f"{command} {DIGITS} {options} --out alone")["results"][0]
    beside = good(f"{command} {DIGITS} {options} --out both")["results"][0]
    assert "projected_out" not in alone
    assert beside["projected_out"] == 6
    assert beside["projected_from"] == "both/eig.npz"
    if command == "trace":
        spread = np.hypot(alone["standard_error"], beside["standard_error"])
        assert abs(alone["trace"] - beside["trace"]) < 4 * spread
    else:
        assert beside["deflated"] >= max(6, alone["deflated"])
    status, out, err = call(f"{command} {DIGITS} {options} --out both")
    assert (status, err) == (0, "")
    assert "hessian: 6 eigenpairs of both/eig.npz projected out" in out


def test_what_was_projected_out_is_part_of_a_repeated_result(digits, good):
    good(f"eig {DIGITS} -k 6 --out both")
    first = good(f"trace {DIGITS} --rtol 0.3 --out both")
    again = good("trace --config both/trace.json --out elsewhere")
    assert numbers(again) == numbers(first)


def test_probes_beside_eigenvectors_have_a_stream_of_their_own(digits, good, monkeypatch):
    """Of the same seed: those of eig began as the first numbers of the stream of the seed itself."""
    streams = []

    def signs(operator, count, generator):
        streams.append(generator.initial_seed())
        return random_signs(operator, count, generator)

    monkeypatch.setattr("spectra.krylov.hutchinson.random_signs", signs)
    line = f"trace {DIGITS} --method hutchinson --probes 3"
    good(f"eig {DIGITS} -k 6 --out here")
    for more, seed in (("", 0), ("--out here", stream(0, BESIDE_EIGENVECTORS).initial_seed())):
        streams.clear()
        good(f"{line} {more}")
        assert set(streams) == {seed}
    assert stream(0).initial_seed() == 0
    drawn = [torch.rand(1000, generator=stream(seed, use)) for seed in (0, 1) for use in (METHOD, BESIDE_EIGENVECTORS)]
    correlations = torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0)
    assert correlations.abs().max() < 0.15


def test_eigenvectors_elsewhere_are_named_by_deflate(digits, good, refused):
    good(f"eig {DIGITS} -k 6 --out earlier")
    for place in ("earlier", "earlier/eig.json"):
        assert good(f"trace {DIGITS} --rtol 0.3 --deflate {place}")["results"][0]["projected_out"] == 6
    refused(f"trace {DIGITS} --deflate gone", "--deflate gone")
    refused(f"trace {DIGITS} --deflate digits.pt", "--deflate digits.pt")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ("--weight-decay 1", "no converged eigenpairs of this matrix"),
        ("--seed 1 --samples 200", "no converged eigenpairs of this matrix"),
        ("--params '1.*'", "no converged eigenpairs of this matrix"),
        ("--curvature ggn", "ggn: "),
    ],
)
def test_eigenvectors_of_another_problem_are_left_alone(change, cause, digits, good, call):
    good(f"eig {DIGITS} -k 6 --out both")
    line = DIGITS.replace("--samples 300", "") if "--samples" in change else DIGITS
    status, out, err = call(f"trace {line} {change} --method xtrace --rtol 0.5 --out both --json")
    assert status == 0
    assert cause in err
    assert err.count("\n") == 1
    assert "projected_out" not in json.loads(out)["results"][-1]


def test_a_damaged_file_of_eigenvectors_is_left_alone(digits, good, call, folder):
    good(f"eig {DIGITS} -k 6 --out both")
    content = (folder / "both" / "eig.npz").read_bytes()
    (folder / "both" / "eig.npz").write_bytes(content[: len(content) // 2])
    status, _, err = call(f"trace {DIGITS} --rtol 0.5 --out both")
    assert status == 0
    assert "both/eig.npz" in err


def test_a_result_of_eig_brings_its_eigenvectors(digits, good):
    good(f"eig {DIGITS} -k 6 --out earlier")
    for config in ("earlier/eig.json", "earlier"):
        assert good(f"trace --config {config} --rtol 0.3")["results"][0]["projected_out"] == 6
    (direction,) = good("landscape --config earlier/eig.json --points 3")["results"][0]["directions"]
    assert direction["from"] == "earlier/eig.json"


def test_of_a_directory_a_command_takes_its_own_result(digits, good):
    good(f"eig {DIGITS} -k 6 --out both")
    good(f"trace {DIGITS} --rtol 0.4 --out both")
    assert good("trace --config both")["problem"]["options"]["rtol"] == 0.4
    assert good("eig --config both")["problem"]["options"]["k"] == 6


def test_a_directory_without_results(folder, refused):
    (folder / "empty").mkdir()
    names = "eig.json, compare.json, density.json, inspect.json, landscape.json, layers.json, step.json, trace.json"
    refused("eig --config empty", f"--config empty: the directory has none of {names}; give")
