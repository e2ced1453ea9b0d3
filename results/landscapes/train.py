"""Train the demonstration network on digits by Adam, from one start with two orders of the examples, and from later on.

Writes checkpoints/first/step-*.pt, a training from its start to its end, and the ends of three others: from the same
start with the examples in another order (second.pt), from step 100 of the first on in another order (sibling.pt), and
from another start (stranger.pt).
"""

from pathlib import Path

import torch
from torch import nn

import spectra
from spectra.demo import mlp

STEPS, BATCH, RATE, SPLIT = 600, 128, 3e-3, 100
KEPT = sorted({0, 5, 10, 20, 40, 70, *range(SPLIT, STEPS + 1, 50)})


def main() -> None:
    (batch,) = spectra.load_problem(model="spectra.demo:mlp", data="digits", batch_size=2000).problem.batches
    images, labels = batch.inputs, batch.targets
    torch.manual_seed(0)
    start = {name: tensor.clone() for name, tensor in mlp().state_dict().items()}
    first = Path("checkpoints/first")
    train(images, labels, start, None, order=0, steps=range(STEPS), folder=first)
    train(images, labels, start, None, order=1, steps=range(STEPS), file=Path("checkpoints/second.pt"))
    torch.manual_seed(1)
    train(images, labels, mlp().state_dict(), None, order=0, steps=range(STEPS), file=Path("checkpoints/stranger.pt"))
    held = torch.load(first / f"step-{SPLIT}.pt", weights_only=True)
    steps = range(SPLIT, STEPS)
    train(images, labels, held["model"], held["optimizer"], order=2, steps=steps, file=Path("checkpoints/sibling.pt"))


def train(images, labels, weights, state, order, steps, folder=None, file=None) -> None:
    """Train from these weights and this state of Adam, with the examples in the order of a seed."""
    model, generator = mlp(), torch.Generator().manual_seed(order)
    model.load_state_dict(weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    if state:
        optimizer.load_state_dict(state)
    batches: list[torch.Tensor] = []
    for step in steps:
        if folder and step in KEPT:
            save(folder / f"step-{step}.pt", model, optimizer, step)
        if not batches:
            batches = list(torch.randperm(len(labels), generator=generator).split(BATCH))
        chosen = batches.pop()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    save(folder / f"step-{STEPS}.pt" if folder else file, model, optimizer, STEPS)


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write a checkpoint with the optimizer's state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path)


if __name__ == "__main__":
    main()
