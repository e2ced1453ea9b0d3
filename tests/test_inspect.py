"""spectra inspect: layers, checkpoints and estimates, as a user meets them."""

import json
import math

import pytest
import torch
from torch import nn

from spectra.cli import run
from spectra.cli.inspect import inspect
from spectra.curvature.evaluation import cut_batches
from spectra.curvature.factor.forecast import gram_seconds
from spectra.curvature.factor.gram import Factor
from spectra.curvature.operator import Curvature
from spectra.demo import mlp
from spectra.errors import SpectraError
from spectra.inputs.data import load_data
from spectra.operator import Counting
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.parameter_selection import select_parameters
from spectra.problem.problem import Problem
from spectra.records.inspect import CommandCost
from spectra.records.problem import LayerRecord
from spectra.run.inspection import forecast_commands, layers
from spectra.tables.inspection import competitive, grouped, in_bytes, in_time

PROBLEM = "--model spectra.demo:mlp --data digits --samples 120"


class Tied(nn.Module):
    """An embedding that serves as head too, and a scale of the model's own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.embedding = nn.Embedding(5, 3)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.norm.bias.requires_grad_(False)


@pytest.fixture
def call(capfd, monkeypatch, tmp_path):
    """(status, standard output, standard error) of the command, in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def call(line: str):
        capfd.readouterr()
        status = inspect.main(line.split(), prog_name="spectra inspect", standalone_mode=False)
        return status, *capfd.readouterr()

    return call


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    """What was printed for each line so far."""
    return {}


@pytest.fixture
def record(call, told):
    """The record that a line prints; the same line is asked once."""

    def record(line: str) -> dict:
        if line not in told:
            status, out, err = call(f"{line} --json")
            assert (status, err) == (0, "")
            assert out.count("\n") == 1
            told[line] = out
        return json.loads(told[line])

    return record


def test_layers_add_up_to_the_parameters():
    model = Tied()
    found = {layer.name: layer for layer in layers(model, select_parameters(model))}
    assert sum(layer.parameters for layer in found.values()) == sum(p.numel() for p in model.parameters())
    assert [found[name].parameters for name in ("", "embedding", "norm", "head")] == [3, 15, 6, 0]
    assert (found["norm"].trainable, found["norm"].chosen) == (3, 3)
    assert found["head"].tied == ["embedding.weight"]


def test_layers_know_what_params_chose():
    model = mlp()
    chosen = select_parameters(model, ["5.*"])
    assert [(layer.name, layer.chosen) for layer in layers(model, chosen)] == [("1", 0), ("3", 0), ("5", 330)]


def test_without_data_it_tells_of_layers_and_keys_alone(record):
    torch.save({"state_dict": {f"module.{name}": value for name, value in mlp().state_dict().items()}}, "last.pt")
    told = record("--model spectra.demo:mlp --checkpoint last.pt")
    problem = told["problem"]
    assert told["results"] == []
    assert problem["parameters"] == sum(layer["parameters"] for layer in problem["layers"]) == 3466
    match = problem["checkpoint_match"]
    assert (match["key"], match["prefix"], match["tensors"]) == ("state_dict", "module.", 6)


def test_with_data_it_tells_loss_accuracy_and_gradient(record):
    problem = record(PROBLEM)["problem"]
    assert problem["loss_value"] == pytest.approx(math.log(10), rel=0.1)  # an untrained network of ten classes
    assert 0 <= problem["accuracy"] <= 0.5
    assert problem["gradient_norm"] > 0


def test_each_matrix_has_an_estimate_of_each_command(record):
    results = record(f"{PROBLEM} --curvature ggn --curvature fisher-empirical")["results"]
    assert [r["curvature"] for r in results] == ["ggn", "fisher-empirical"]
    for result in results:
        assert result["products"] == 23
        ways = [("eig", "lanczos"), ("eig", "gram"), ("trace", "gram"), ("density", "lanczos")]
        assert [(e["command"], e["method"]) for e in result["estimates"]] == ways
        for estimate in result["estimates"]:
            assert estimate["bytes"] > result["kept_bytes"] > 0
            if estimate["method"] == "lanczos":
                assert estimate["seconds"] > estimate["products"] * result["seconds_per_product"]


@pytest.mark.parametrize(("command", "options"), [("eig", "-k 2 --method gram"), ("trace", "")])
@pytest.mark.parametrize("curvature", ["ggn", "fisher-empirical", "gradient-covariance", "fisher-batch"])
def test_products_of_exact_ways_are_told(record, capfd, curvature, command, options):
    line = f"{PROBLEM} --batch-size 50 --curvature {curvature} --dtype float64"
    estimates = record(f"{line} -k 2")["results"][0]["estimates"]
    told = next(e["products"] for e in estimates if (e["command"], e["method"]) == (command, "gram"))
    run([command, *f"{line} {options} --json".split()])
    assert told == json.loads(capfd.readouterr().out)["results"][0]["products"]


def test_a_hessian_has_no_exact_ways(record):
    estimates = record(PROBLEM)["results"][0]["estimates"]
    assert [e["method"] for e in estimates] == ["lanczos", "xtrace", "lanczos"]


def test_too_many_rows_for_a_gram_matrix_leave_the_trace(record, monkeypatch):
    monkeypatch.setattr("spectra.curvature.factor.gram.LARGEST", 119)
    estimates = record(f"{PROBLEM} --curvature fisher-empirical")["results"][0]["estimates"]
    assert [(e["command"], e["method"]) for e in estimates if e["method"] == "gram"] == [("trace", "gram")]


def test_exact_ways_are_shown_where_they_are_quicker():
    def estimate(command, method, seconds):
        return CommandCost.known(command=command, method=method, seconds=seconds)

    lanczos, density = estimate("eig", "lanczos", 2), estimate("density", "lanczos", 9)
    quick, slow, trace = estimate("eig", "gram", 1), estimate("eig", "gram", 3), estimate("trace", "gram", 5)
    assert competitive([lanczos, quick, trace, density]) == [lanczos, quick, trace, density]
    assert competitive([lanczos, slow, trace, density]) == [lanczos, trace, density]


def test_the_sample_that_foretells_a_gram_matrix_is_small():
    """Whatever the number of examples: of the model's calls, only those that count rows see all of them."""
    seen = []
    for count in (300, 900):
        data = load_data("digits", count, 0)
        model = mlp().eval()
        problem = Problem(model, CrossEntropy(), cut_batches(data.inputs, data.targets, torch.arange(count), 300))
        with model.register_forward_hook(lambda module, inputs, output: seen.append(len(output))):
            gram_seconds(Factor(problem, "fisher-empirical"))
        seen.append(0)
    first, second = seen[: seen.index(0)], seen[seen.index(0) + 1 : -1]
    assert sum(second) - sum(first) == 600


def test_memory_of_products_counts_in_full():
    data = load_data("digits", 60, 0)
    problem = Problem(mlp().eval(), CrossEntropy(), cut_batches(data.inputs, data.targets, torch.arange(60), 60))
    costs = {}
    for memory in (0, None):
        matrix = Curvature(problem, "ggn", memory=memory)
        outlook = forecast_commands(Counting(matrix), generator=torch.Generator().manual_seed(0))
        costs[memory] = [e.bytes - matrix.peak_bytes for e in outlook.estimates if e.method == "lanczos"]
    assert matrix.kept_bytes > 0
    assert costs[0] == costs[None]


@pytest.mark.parametrize(("options", "command"), [("-k 5 --tol 0.01", "eig"), ("--rtol 0.03", "trace")])
def test_estimates_are_within_a_factor_of_two_of_the_commands(record, capfd, options, command):
    result = record(f"{PROBLEM} --curvature ggn {options}")["results"][0]
    estimate = next(e for e in result["estimates"] if e["command"] == command)
    assert run([command, *f"{PROBLEM} --curvature ggn {options} --json".split()]) == 0
    spent = json.loads(capfd.readouterr().out)["results"][0]["products"]
    assert spent / 2 <= estimate["products"] <= 2 * spent


def test_products_of_density_are_exact(record):
    estimates = record(f"{PROBLEM} --curvature ggn")["results"][0]["estimates"]
    assert estimates[-1]["products"] == 3 + (10 + 1) * 80


def test_max_products_shortens_the_pilot(record):
    assert record(f"{PROBLEM} --max-products 12")["results"][0]["products"] == 12


@pytest.mark.parametrize("model", ["resnet50", "vit_b_16"])
def test_large_models_fit_a_screen(call, model):
    status, out, err = call(f"--model torchvision:{model}")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert 10 < len(lines) <= 48
    assert max(map(len, lines)) <= 80


def test_tables_are_80_columns_and_say_all(call):
    status, out, _ = call(f"{PROBLEM} --curvature hessian --curvature fisher-empirical")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    for word in ("3,466", "no checkpoint", "Linear", "cross_entropy", "accuracy", "gradient", "eig", "883", "MiB"):
        assert word in out


@pytest.mark.parametrize(
    ("params", "told"), [("", "3,466 parameters"), ("--params 5.*", "330 parameters chosen of 3,466")]
)
def test_the_first_line_tells_of_parameters_left_out(call, params, told):
    assert call(f"--model spectra.demo:mlp {params}")[1].splitlines()[0] == f"spectra.demo:mlp: {told}"


@pytest.mark.parametrize(("beside", "told"), [(["a"], "1 other ignored (a)"), (["b", "a"], "2 others ignored (a, b)")])
def test_names_beside_the_models_are_counted(call, beside, told):
    state = {f"net.{name}": value for name, value in mlp().state_dict().items()}
    torch.save(state | {name: torch.ones(1) for name in beside}, "last.pt")
    assert told in " ".join(call("--model spectra.demo:mlp --checkpoint last.pt")[1].split())


def test_the_data_line_tells_of_the_transform_and_notes_follow(call, monkeypatch):
    monkeypatch.setattr("spectra.inputs.problem.notes", lambda _: ["y equals x"])
    images = "--model spectra.demo:mlp --data torchvision:FakeData?size=5&image_size=1,8,8"
    assert "transform: to tensor\ny equals x\n" in call(images)[1]


def test_a_file_is_written_whole_where_out_says(record, tmp_path):
    told = record(f"{PROBLEM} --out here")
    assert json.loads((tmp_path / "here/inspect.json").read_text()) == told


@pytest.mark.parametrize("data", ["", "--data digits --samples 50"])
def test_what_does_not_fit_is_refused(call, data):
    for line, named in (
        ("--model spectra.demo:mlp --checkpoint none.pt", "`checkpoint` none.pt"),
        ("--model spectra.demo:mlp --checkpoint-key ema", "`checkpoint_key` ema"),
        ("--model spectra.demo:mlp --params 9.*", "`params` 9.*"),
    ):
        with pytest.raises(SpectraError) as error:
            call(f"{line} {data}")
        assert str(error.value).startswith(named)


def test_groups_hold_every_layer_once():
    entries = [LayerRecord.known(name=name) for name in ("stem", "layer.0.conv", "layer.0.norm", "layer.1.conv")]
    assert {name: len(group) for name, group in grouped(entries, 2).items()} == {"stem": 1, "layer.0": 2, "layer.1": 1}


def test_units():
    assert [in_time(s) for s in (0.0123, 59, 99.6, 150, 7300)] == ["0.012 s", "59 s", "100 s", "2 min", "2 h"]
    assert in_time(200_000) == "2 days"
    assert [in_bytes(b) for b in (12, 2048, 3 * 2**30)] == ["12 bytes", "2 KiB", "3 GiB"]
