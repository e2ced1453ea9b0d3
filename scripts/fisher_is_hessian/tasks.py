"""What is learned: digits under two losses, with clean labels, random labels, and labels that a teacher drew."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from spectra.inputs.data import load_data

LOSSES = ("cross_entropy", "mse")
LABELS = ("clean", "random", "teacher")
CLASSES = 10
RATE = 0.01  # of Adam, falling to zero as a cosine
TEACHER_STEPS = {"cross_entropy": 100, "mse": 200}  # few for cross entropy, so that the teacher is unsure
TEACHER_SCALE = {"cross_entropy": 1, "mse": 10}  # outputs of one-hot size would drown in noise of variance K/2 = 5


@dataclass(frozen=True)
class Sizes:
    """Of one run: the defaults are those of the page, tests take less."""

    width: int = 16
    examples: int = 120  # so few that 10 outputs each are less than the parameters: they can be fitted
    random: float = 0.2  # share of examples whose labels are drawn at random
    teacher_inputs: int = 250
    draws: int = 64  # labels that the teacher draws for each input
    batch: int = 10  # examples, of fisher-batch
    steps: tuple[int, ...] = (0, 10, 32, 100, 316, 1000, 3162, 10_000)  # where matrices are taken


@dataclass(frozen=True)
class Task:
    """Inputs (N, 64) and, for each, M labels (N, M, K): one-hot for cross entropy, real for mse. N M examples."""

    loss: str
    inputs: Tensor
    labels: Tensor
    teacher: nn.Module | None = None  # whose own distribution the labels are drawn from

    @property
    def examples(self) -> int:
        return self.labels.shape[0] * self.labels.shape[1]

    def mean_loss(self, outputs: Tensor) -> Tensor:
        """The mean over examples, but for a constant that the spread of labels adds to mse."""
        return mean_loss(self.loss, outputs, self.labels.mean(dim=1))


def mean_loss(loss: str, outputs: Tensor, targets: Tensor) -> Tensor:
    if loss == "mse":
        return mse_loss(outputs, targets)
    return -(targets * outputs.log_softmax(dim=1)).sum(dim=1).mean()


def make_network(width: int, seed: int) -> nn.Module:
    """64-width-width-10 with tanh in float64: 1,482 parameters for width 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, CLASSES)]
    return nn.Sequential(*layers).double()


def make_task(loss: str, labels: str, sizes: Sizes, seed: int) -> Task:
    generator = torch.Generator().manual_seed(seed)
    images, digits = all_digits()
    if labels == "teacher":
        teacher = train_teacher(loss, sizes, seed)
        inputs = images[torch.randperm(len(images), generator=generator)[: sizes.teacher_inputs]]
        return drawn_by(teacher, loss, inputs, sizes.draws, generator)
    chosen = torch.randperm(len(images), generator=generator)[: sizes.examples]
    targets = digits[chosen]
    if labels == "random":
        some = torch.randperm(len(chosen), generator=generator)[: round(sizes.random * len(chosen))]
        targets[some] = torch.randint(CLASSES, (len(some),), generator=generator)
    return Task(loss, images[chosen], one_hot(targets, CLASSES).double()[:, None])


def all_digits() -> tuple[Tensor, Tensor]:
    data = load_data("digits", None, 0)
    return data.inputs.double().flatten(1), data.targets


def train_teacher(loss: str, sizes: Sizes, seed: int) -> nn.Module:
    """A network trained on all digits for some steps, another than the student at its start."""
    images, digits = all_digits()
    task = Task(loss, images, one_hot(digits, CLASSES).double()[:, None])
    teacher = make_network(sizes.width, seed + 1000)
    for _ in training(teacher, task, TEACHER_STEPS[loss]):
        pass
    with torch.no_grad():
        teacher[-1].weight *= TEACHER_SCALE[loss]
        teacher[-1].bias *= TEACHER_SCALE[loss]
    return teacher


def drawn_by(
    teacher: nn.Module,
    loss: str,
    inputs: Tensor,
    draws: int,
    generator: torch.Generator,
    variance: float = CLASSES / 2,
) -> Task:
    """Labels from the teacher's own distribution: under the mean over K outputs mse is Gaussian of variance K/2."""
    with torch.no_grad():
        outputs = teacher(inputs)
    if loss == "mse":
        noise = torch.randn(len(inputs), draws, CLASSES, generator=generator, dtype=torch.float64)
        labels = outputs[:, None] + math.sqrt(variance) * noise
    else:
        drawn = torch.multinomial(outputs.softmax(dim=1), draws, replacement=True, generator=generator)
        labels = one_hot(drawn, CLASSES).double()
    return Task(loss, inputs, labels, teacher)


def training(network: nn.Module, task: Task, steps: int) -> Iterator[int]:
    """Adam on all examples at once; yields each step before it is made, the last one after."""
    task = replace(task, labels=task.labels.mean(dim=1, keepdim=True))  # whose gradient is the same
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    for step in range(steps):
        yield step
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        task.mean_loss(network(task.inputs)).backward()
        optimizer.step()
    yield steps
