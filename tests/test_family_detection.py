"""Detection with torchvision's RetinaNet, which draws nothing: images of different sizes, targets as mappings.

The loss is the network's own in training mode, so that its file has the lines that call it. Networks that sample
proposals by chance, as Faster R-CNN does in training, have no fixed loss, and are refused for that.
"""

import shlex
import sys
from pathlib import Path

import pytest
import torch
from dense import Dense, eigenvalues, largest
from torch import Tensor, nn
from torch.utils.data import DataLoader

import spectra
from spectra.cli import run

pytest.importorskip("torchvision")

FILE = '''
import torch
from torch import nn
from torch.utils.data import Dataset
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

class Body(nn.Sequential):
    out_channels = 2

def body():
    torch.manual_seed(1)
    return Body(nn.Conv2d(3, 2, 3, stride=4, padding=1), FrozenBatchNorm2d(2), nn.SiLU())

def shaken(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    return model

SIZES = {"min_size": 16, "max_size": 24}

def net():
    anchors = AnchorGenerator(sizes=((8, 16),), aspect_ratios=((1.0,),))
    return shaken(RetinaNet(body(), num_classes=2, anchor_generator=anchors, **SIZES))

def sampling():
    anchors = AnchorGenerator(sizes=((8, 16),), aspect_ratios=((1.0,),))
    pool = MultiScaleRoIAlign(["0"], output_size=2, sampling_ratio=1)
    more = {"rpn_batch_size_per_image": 4, "box_batch_size_per_image": 4}
    return shaken(FasterRCNN(body(), 2, rpn_anchor_generator=anchors, box_roi_pool=pool, **SIZES, **more))

class Scenes(Dataset):
    """Six images, of two sizes, with one box or two; or with one in each."""

    def __init__(self, most=2):
        self.most = most

    def __len__(self):
        return 6

    def __getitem__(self, i):
        draw = torch.Generator().manual_seed(i)
        corner = 8 * torch.rand(1 + i % self.most, 2, generator=draw)
        boxes = torch.cat([corner, corner + 4 + 4 * torch.rand(len(corner), 2, generator=draw)], 1)
        image = torch.rand(3, 16, 16 + 4 * (i % 2), generator=draw)
        return image, {"boxes": boxes, "labels": torch.arange(len(boxes)) % 2}

def loss(model, batch):
    images, targets = batch
    model.train()
    try:
        return model(images, targets)
    finally:
        model.eval()
'''
COLLATED = """
from scenes import *

def collate_fn(items):
    return tuple(zip(*items))
"""
CHOSEN = ("backbone.0.*", "head.classification_head.cls_logits.*")


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch) -> dict:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("scenes.py").write_text(FILE)
    Path("collated.py").write_text(COLLATED)
    names: dict = {}
    exec(FILE, names)
    return names


def built(user: dict, name: str = "net") -> nn.Module:
    """The network in float64, its other parameters frozen."""
    with torch.random.fork_rng():
        model = user[name]().double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(pattern.rstrip("*") for pattern in CHOSEN)))
    return model


def dense(user: dict, most: int, sizes: list[int], part: str | None = None) -> Dense:
    items = [user["Scenes"](most)[i] for i in range(6)]
    images = [image.double() for image, _ in items]
    targets = [{"boxes": t["boxes"].double(), "labels": t["labels"]} for _, t in items]
    model = built(user).train()

    def outputs(call) -> Tensor:
        first, values = 0, []
        for size in sizes:
            found = call(images[first : first + size], targets[first : first + size])
            values.append(size / 6 * (sum(found.values()) if part is None else found[part]))
            first += size
        return torch.stack(values)

    return Dense(model, outputs, torch.sum)


def params() -> str:
    return " ".join(f"--params '{pattern}'" for pattern in CHOSEN)


@pytest.mark.parametrize("file", ["scenes", "collated"])
@pytest.mark.parametrize(
    ("most", "batch_size", "part"),
    [(2, 6, None), (2, 4, None), (1, 4, None), (2, 6, "classification"), (1, 3, "bbox_regression")],
)
@pytest.mark.sampled(2)
def test_images_of_different_sizes(user, file, most, batch_size, part, capfd):
    sizes = [min(batch_size, 6 - first) for first in range(0, 6, batch_size)]
    expected = largest(dense(user, most, sizes, part).hessian(), 4)
    line = f"--model {file}.py:net --data {file}.py:Scenes?most={most} --loss {file}.py:loss {params()}"
    line += f" --batch-size {batch_size} -k 4" + (f" --loss-part {part}" if part else "")
    record = eigenvalues(capfd, *shlex.split(line))
    assert record["results"][0]["eigenvalues"] == pytest.approx(expected, rel=1e-6)
    (note,) = [note for note in record["problem"]["notes"] if "takes whole batches" in note]
    assert f"belong to {len(sizes)} batch" in note
    assert record["problem"]["examples"] == 6


def test_a_loader_in_python(user):
    model = built(user).eval()
    loader = DataLoader(user["Scenes"](), batch_size=4, collate_fn=lambda items: tuple(zip(*items, strict=True)))
    found = spectra.eig(model, user["loss"], loader, k=3, tolerance=1e-8)
    assert list(found.values) == pytest.approx(largest(dense(user, 2, [4, 2]).hessian(), 3), rel=1e-6)
    assert not model.training


def test_gradients_of_batches(user, capfd):
    reference, rows = dense(user, 2, [4, 2]), []
    for i, size in enumerate((4, 2)):
        point = reference.point.clone().requires_grad_()
        rows.append(torch.autograd.grad(reference.at(point)[i] * (6 / size) ** 0.5, point)[0])
    g = torch.stack(rows)
    line = f"--model scenes.py:net --data scenes.py:Scenes --loss scenes.py:loss {params()} --batch-size 4 -k 2"
    record = eigenvalues(capfd, *shlex.split(f"{line} --curvature fisher-batch"))
    assert record["results"][0]["eigenvalues"] == pytest.approx(largest(g @ g.T, 2), rel=1e-6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--model scenes.py:sampling --loss scenes.py:loss",
            "--loss scenes.py:loss: its value changes from call to call",
        ),
        ("--model scenes.py:net --loss scenes.py:loss --loss-part boxes", "available: classification, bbox_regression"),
        ("--model scenes.py:net --loss scenes.py:loss --curvature ggn", "--curvature ggn: a loss of (model, batch)"),
        ("--model scenes.py:net --loss model", "without a loss"),
    ],
)
def test_a_line_for_what_cannot_be(line, message, capfd):
    capfd.readouterr()
    assert run(shlex.split(f"eig {line} --data scenes.py:Scenes -k 2 --params backbone.0.* --dtype float64")) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert message in err
