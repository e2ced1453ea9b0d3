"""Graphs of torch_geometric: batches of its loaders, data sets, single graphs, graphs of several kinds of nodes.

The reference is PyTorch's dense second derivative over one batch of all graphs.
"""

import json
import shlex
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

import spectra
from spectra.cli import run
from spectra.curvature.engine.batches import joined, kind
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.inputs.graphs import batch_of
from spectra.inputs.problem import load_problem

with warnings.catch_warnings(action="ignore"):
    geometric = pytest.importorskip("torch_geometric")
    from torch_geometric.data import Batch, Data, HeteroData
    from torch_geometric.loader import DataLoader
    from torch_geometric.nn import (
        GCN,
        GATConv,
        GCNConv,
        GINConv,
        HeteroConv,
        SAGEConv,
        global_add_pool,
        global_mean_pool,
    )

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning", "ignore:Sparse:UserWarning")
CLASSES = nn.CrossEntropyLoss()


def graph(nodes: int, seed: int, targets: int = 1) -> Data:
    draw = torch.Generator().manual_seed(seed)
    edges = torch.randint(nodes, (2, 2 * nodes), generator=draw)
    x = torch.randn(nodes, 3, generator=draw, dtype=torch.float64)
    return Data(x=x, edge_index=edges, y=torch.randint(2, (targets,), generator=draw))


GRAPHS = [graph(3 + i % 3, i) for i in range(8)]
NODES = graph(7, 9, targets=7)


class OfGraphs(nn.Module):
    """Two convolutions and a pool, of named arguments."""

    def __init__(self, first=GCNConv, pool=global_mean_pool):
        super().__init__()
        self.first, self.second, self.head = first(3, 4), GINConv(nn.Linear(4, 4)), nn.Linear(4, 2)
        self.pool = pool

    def forward(self, x, edge_index, batch):
        hidden = self.first(x, edge_index).tanh()
        return self.head(self.pool(self.second(hidden, edge_index).tanh(), batch))


class OfWhole(OfGraphs):
    """The same of one object."""

    def forward(self, batch):
        return super().forward(batch.x, batch.edge_index, batch.batch)


class Molecules(nn.Module):
    """The energy of each molecule, and the mean square of the forces on its atoms, by a derivative inside."""

    def __init__(self):
        super().__init__()
        self.kinds, self.radial, self.head = nn.Embedding(3, 4), nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, z, pos, batch):
        pos.requires_grad_()
        square = (pos[:, None] - pos).square().sum(-1) + torch.eye(len(pos), dtype=pos.dtype)
        near = (batch[:, None] == batch) & ~torch.eye(len(pos), dtype=torch.bool)
        shells = torch.exp(-(square.sqrt()[..., None] - torch.arange(3)).square())
        messages = self.radial(shells).tanh() * near[..., None] * self.kinds(z)
        energy = global_add_pool(self.head(messages.sum(1).tanh()), batch)
        (slope,) = torch.autograd.grad(energy.sum(), pos, create_graph=True)
        return torch.cat([energy, global_mean_pool(slope.square().sum(-1, keepdim=True), batch)], 1)


class Sparse(nn.Module):
    """Two convolutions by a sparse matrix."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x, adj_t):
        return self.second(adj_t @ self.first(adj_t @ x).tanh())


def built(make) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval()


def reference(model: nn.Module, arguments, mean_loss) -> tuple[torch.Tensor, torch.Tensor]:
    """The Hessian and the GGN."""
    parameters = dict(model.named_parameters())
    theta = torch.cat([p.detach().flatten() for p in parameters.values()])

    def output(theta):
        parts = theta.split([p.numel() for p in parameters.values()])
        point = {name: part.view_as(parameters[name]) for name, part in zip(parameters, parts, strict=True)}
        return functional_call(model, point, arguments)

    found = output(theta).detach()
    outward = jacobian(output, theta).flatten(0, -2)
    bend = hessian(mean_loss, found).reshape(found.numel(), -1)
    return hessian(lambda theta: mean_loss(output(theta)), theta), outward.T @ bend @ outward


def whole() -> Batch:
    return Batch.from_data_list(GRAPHS)


def assert_same(problem, expected, **way) -> None:
    eye = torch.eye(problem.size, dtype=torch.float64)
    for name, matrix in zip(("hessian", "ggn"), expected, strict=True):
        found = Curvature(problem, name, **way) @ eye
        assert (found - matrix).norm() < 1e-12 * matrix.norm()


DATA = {
    "loader": lambda: DataLoader(GRAPHS, batch_size=3),
    "list": lambda: GRAPHS,
    "batch": whole,
    "batches": lambda: [Batch.from_data_list(GRAPHS[:5]), Batch.from_data_list(GRAPHS[5:])],
}
WAYS = {"kept": {}, "anew": {"memory": 0}, "traced": {"products": 10**9}}
MODELS = {
    "named arguments": OfGraphs,
    "one object": OfWhole,
    "attention": lambda: OfGraphs(GATConv),
    "sums": lambda: OfGraphs(SAGEConv, global_add_pool),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("make", MODELS)
def test_graphs_are_examples(make, data, way):
    batch = whole()
    model, plain = built(MODELS[make]), built(OfGraphs if make == "one object" else MODELS[make])
    expected = reference(plain, (batch.x, batch.edge_index, batch.batch), lambda f: F.cross_entropy(f, batch.y))
    problem = load_problem(model=model, data=DATA[data](), loss=CLASSES).problem
    assert problem.examples == len(GRAPHS)
    assert_same(problem, expected, **WAYS[way])


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"batch_size": 8}, {}], ids=str)
def test_a_list_of_graphs_is_cut_as_asked(options):
    problem = load_problem(model=built(OfGraphs), data=GRAPHS, loss=CLASSES, **options).problem
    assert sum(map(len, problem.batches)) == 8
    assert max(map(len, problem.batches)) == options.get("batch_size", 8)


def test_parts_of_a_batch_are_those_graphs_and_join_to_it():
    batch = batch_of(whole(), 0, "data")
    for cut in (slice(2, 5), torch.tensor([6, 1]), torch.arange(8) % 3 == 0):
        part = batch.part(cut)
        expected = Batch.from_data_list([GRAPHS[i] for i in torch.arange(8)[cut].tolist()])
        found = part.inputs.whole()
        for name in ("x", "edge_index", "batch", "ptr", "y"):
            assert torch.equal(found[name], expected[name])
        assert torch.equal(part.targets, expected.y)
    parts = [batch.part(slice(0, 3)), batch.part(slice(3, 8))]
    assert kind(parts[0]) == kind(parts[1])
    again = joined(parts)
    assert torch.equal(again.inputs.whole().edge_index, whole().edge_index)
    assert torch.equal(again.indices, torch.arange(8))


def test_some_graphs_are_chosen_by_the_seed():
    loaded = load_problem(model=built(OfGraphs), data=GRAPHS, loss=CLASSES, samples=3, seed=1).problem
    (batch,) = loaded.batches
    chosen = batch.indices.tolist()
    assert len(set(chosen)) == 3
    expected = Batch.from_data_list([GRAPHS[i] for i in chosen])
    assert torch.equal(batch.inputs.whole().x, expected.x)
    with pytest.raises(SpectraError, match=r"^`samples` 9: list has 8 examples; choose from 1 to 8$"):
        load_problem(model=built(OfGraphs), data=GRAPHS, loss=CLASSES, samples=9)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("masked", [False, True])
def test_nodes_are_examples(masked, way):
    """Those of `train_mask`, where there is one: the loss is the mean over these."""
    data, model = NODES.clone(), built(lambda: GCN(3, 4, 2, 2))
    mask = torch.tensor([1, 1, 0, 1, 0, 0, 1]).bool() if masked else torch.ones(7, dtype=torch.bool)
    if masked:
        data.train_mask = mask
    expected = reference(model, (data.x, data.edge_index), lambda f: F.cross_entropy(f[mask], data.y[mask]))
    for given in (data, [data]):
        loaded = load_problem(model=model, data=given, loss=CLASSES, batch_size=2 if given is data else None)
        problem, (called, note) = loaded.problem, loaded.record.notes
        assert called == "the model is called with x, edge_index, batch of the graphs"
        assert ("train_mask" in note) is masked
        assert problem.examples == mask.sum()
        assert len(problem.batches) == 1
        assert_same(problem, expected, **WAYS[way])


@pytest.mark.sampled(5)
@pytest.mark.parametrize("layout", ["coo", "edges"])
@pytest.mark.parametrize("name", ["ggn", "fisher", "fisher-empirical", "gradient-covariance", "fisher-mc"])
def test_gram_matrices_of_nodes(name, layout):
    """Their rows are gradients of single nodes, which others take part in."""
    data, model = NODES, built(lambda: GCN(3, 4, 2, 2))
    if layout == "coo":
        adjacency = torch.sparse_coo_tensor(NODES.edge_index, torch.ones(14, dtype=torch.float64), (7, 7)).coalesce()
        data, model = Data(x=NODES.x, adj_t=adjacency, y=NODES.y), built(Sparse)
    for method in (None, "gram"):
        found = spectra.trace(model, CLASSES, data, curvature=name, method=method)
        expected = spectra.trace(model, CLASSES, data, curvature=name, method="dense")
        assert found.trace == pytest.approx(expected.trace, rel=1e-9 if method else 0.1)
    top = spectra.eig(model, CLASSES, data, curvature=name, method="gram", k=3)
    dense = spectra.eig(model, CLASSES, data, curvature=name, method="dense", k=3)
    assert top.values == pytest.approx(dense.values, rel=1e-9)


def test_nodes_are_not_cut():
    with pytest.raises(SpectraError, match=r"^`data`: examples are nodes of one graph, which cannot be cut; leave out"):
        load_problem(model=built(lambda: GCN(3, 4, 2, 2)), data=NODES, loss=CLASSES, samples=3)


def test_graphs_with_targets_of_their_nodes():
    """As in PPI: each graph has a y for each node, and a batch of them stays whole."""
    graphs, model = [graph(n, n, targets=n) for n in (3, 4, 5)], built(lambda: GCN(3, 4, 2, 2))
    batch = Batch.from_data_list(graphs)
    expected = reference(model, (batch.x, batch.edge_index), lambda f: F.cross_entropy(f, batch.y))
    for data in (graphs, DataLoader(graphs, batch_size=2)):
        assert_same(load_problem(model=model, data=data, loss=CLASSES).problem, expected)


def test_sparse_adjacency_in_the_graph():
    """A torch.sparse matrix as `adj_t`, in place of edge_index."""

    model = built(Sparse)
    for layout in (torch.sparse_csr, torch.sparse_coo):
        ones = torch.ones(NODES.num_edges, dtype=torch.float64)
        dense = torch.sparse_coo_tensor(NODES.edge_index, ones, (7, 7)).to_dense()
        data = Data(x=NODES.x, adj_t=dense.to_sparse(layout=layout), y=NODES.y)
        expected = reference(model, (NODES.x, dense), lambda f: F.cross_entropy(f, NODES.y))
        assert_same(load_problem(model=model, data=data, loss=CLASSES).problem, expected)


def test_graphs_of_several_kinds_of_nodes():
    class Hetero(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = HeteroConv({("a", "to", "b"): SAGEConv((3, 2), 4), ("b", "to", "a"): SAGEConv((2, 3), 4)})
            self.head = nn.Linear(4, 2)

        def forward(self, x_dict, edge_index_dict):
            return self.head(self.layer(x_dict, edge_index_dict)["b"].tanh())

    data, draw = HeteroData(), torch.Generator().manual_seed(0)
    data["a"].x = torch.randn(4, 3, generator=draw, dtype=torch.float64)
    data["b"].x = torch.randn(5, 2, generator=draw, dtype=torch.float64)
    data["b"].y = torch.tensor([0, 1, 1, 0, 1])
    data["a", "to", "b"].edge_index = torch.tensor([[0, 1, 2, 3, 3], [0, 1, 2, 3, 4]])
    data["b", "to", "a"].edge_index = torch.tensor([[0, 2, 4], [0, 1, 2]])
    model = built(Hetero)
    expected = reference(model, (data.x_dict, data.edge_index_dict), lambda f: F.cross_entropy(f, data["b"].y))
    assert_same(load_problem(model=model, data=data, loss=CLASSES).problem, expected)


def test_energies_and_forces_of_molecules():
    draw = torch.Generator().manual_seed(0)
    molecules = [
        Data(
            z=torch.randint(3, (n,), generator=draw),
            pos=torch.randn(n, 3, generator=draw, dtype=torch.float64),
            y=torch.randn(1, 2, generator=draw, dtype=torch.float64),
        )
        for n in (2, 4, 3, 3)
    ]
    model, batch = built(Molecules), Batch.from_data_list(molecules)
    expected = reference(model, (batch.z, batch.pos, batch.batch), lambda f: F.mse_loss(f, batch.y))
    problem = load_problem(model=model, data=DataLoader(molecules, batch_size=3), loss="mse").problem
    assert problem.examples == 4
    assert_same(problem, expected)
    assert not any(molecule.pos.requires_grad for molecule in molecules)


WRONG = {
    "y": (
        lambda data: data.update({"y": torch.zeros(5)}),
        r"has y of shape \(5,\) for 1 graph of 7 nodes in all; give",
    ),
    "x": (lambda data: data.update({"x": NODES.x / 0}), r"^`data`: x of .* is not finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_graph_is_named(name):
    change, expected = WRONG[name]
    change(data := NODES.clone())
    with pytest.raises(SpectraError, match=expected):
        load_problem(model=built(lambda: GCN(3, 4, 2, 2)), data=data, loss=CLASSES)


def test_graphs_that_change_between_reads_are_refused():
    class Noisy(geometric.data.Dataset):
        def len(self):
            return 8

        def get(self, index):
            changed = GRAPHS[index].clone()
            changed.x = changed.x + torch.rand(1)
            return changed

    for data in (Noisy(), torch.utils.data.Subset(Noisy(), [3, 4])):
        with pytest.raises(SpectraError, match=r"^`data`: graph 0 of .* is different when it is read again"):
            load_problem(model=built(OfGraphs), data=data, loss=CLASSES)


def test_a_model_that_mixes_graphs_is_refused():
    class Mixing(OfGraphs):
        def forward(self, x, edge_index, batch):
            return super().forward(x - x.mean(0), edge_index, batch)

    with pytest.raises(SpectraError, match=r"its output for an example depends on the other examples"):
        spectra.eig(built(Mixing), CLASSES, DataLoader(GRAPHS, batch_size=4), k=1)


FILE = """
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GCN, GCNConv, global_mean_pool

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = GCNConv(3, 4), nn.Linear(4, 2)

    def forward(self, x, edge_index, batch):
        return self.head(global_mean_pool(self.layer(x, edge_index).tanh(), batch))

def graph(nodes, seed, targets):
    draw = torch.Generator().manual_seed(seed)
    edges = torch.randint(nodes, (2, 2 * nodes), generator=draw)
    x = torch.randn(nodes, 3, generator=draw, dtype=torch.float64)
    return Data(x=x, edge_index=edges, y=torch.randint(2, (targets,), generator=draw))

def same(x):
    return x

def graphs():
    return [graph(3 + i % 3, i, 1) for i in range(8)]

def nodes():
    return graph(7, 9, 7)

def of_nodes():
    return GCN(3, 4, 2, 2)
"""


def test_a_transform_is_the_data_sets_own(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(FILE)
    assert run(shlex.split("eig --model net.py:Net --data net.py:graphs --transform net.py:same")) == 2
    assert "does not apply to graphs" in capfd.readouterr().err


@pytest.mark.parametrize(("model", "data", "examples"), [("Net", "graphs", 8), ("of_nodes", "nodes", 7)])
@pytest.mark.parametrize("command", ["eig -k 1", "trace --method dense", "density --steps 5 --probes 2"])
def test_by_the_command(model, data, examples, command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(FILE)
    line = f"{command} --model net.py:{model} --data net.py:{data} --dtype float64 --curvature ggn --json"
    assert run(shlex.split(line)) == 0, capfd.readouterr().err
    found = json.loads(capfd.readouterr().out)
    assert found["problem"]["examples"] == examples
    space: dict = {}
    exec(FILE, space)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = space[model]().double().eval()
    batch = Batch.from_data_list(space[data]()) if data == "graphs" else space[data]()
    arguments = (batch.x, batch.edge_index) + ((batch.batch,) if data == "graphs" else ())
    ggn = reference(network, arguments, lambda f: F.cross_entropy(f, batch.y))[1]
    (result,) = found["results"]
    values = torch.linalg.eigvalsh(ggn)
    if command.startswith("eig"):
        assert result["eigenvalues"][0] == pytest.approx(values[-1].item(), rel=1e-4)
    elif command.startswith("trace"):
        assert result["trace"] == pytest.approx(values.sum().item(), rel=1e-10)
    else:
        assert max(result["nodes"][0]) == pytest.approx(values[-1].item(), rel=1e-2)
