"""Full-batch training of one network by eight optimizers: writes checkpoints/adam-0.01/step-0250.pt and so on.

python train.py        # two minutes; spectra sweep run plan.toml then looks at every checkpoint
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adam, NAdam, Optimizer, RMSprop

STEPS, EVERY = 6000, 250
DEGREE, POINTS, WIDTH = 5, 20, 100
RUNS: dict[str, tuple[type[Optimizer], dict]] = {
    "gradient-descent": (SGD, {"lr": 0.03}),
    "heavy-ball-0.5": (SGD, {"lr": 0.04, "momentum": 0.5}),
    "heavy-ball-0.9": (SGD, {"lr": 0.014, "momentum": 0.9}),
    "nesterov-0.9": (SGD, {"lr": 0.0055, "momentum": 0.9, "nesterov": True}),
    "rmsprop-0.001": (RMSprop, {"lr": 0.001}),
    "adam-0.0003": (Adam, {"lr": 0.0003}),
    "adam-0.01": (Adam, {"lr": 0.01}),
    "nadam-0.001": (NAdam, {"lr": 0.001}),
}


def network() -> nn.Module:
    """1-100-100-1 with tanh: 10,401 parameters, in float64."""
    layers = [nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)]
    return nn.Sequential(*layers).double()


def data() -> tuple[Tensor, Tensor]:
    """20 evenly spaced points x of [-1, 1] and the Chebyshev polynomial T_5(x) = cos(5 arccos x), as columns."""
    x = torch.linspace(-1, 1, POINTS, dtype=torch.float64)[:, None]
    return x, torch.cos(DEGREE * torch.acos(x))


def train(name: str, folder: Path) -> float:
    """Train from the same start, and return the last loss."""
    torch.manual_seed(0)
    net, (x, y) = network(), data()
    kind, options = RUNS[name]
    optimizer = kind(net.parameters(), **options)
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss = mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
        if step % EVERY == 0:
            state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, folder / f"step-{step:04d}.pt")
    return loss.item()


def main() -> None:
    for name in RUNS:
        print(f"{name}: loss {train(name, Path(__file__).parent / 'checkpoints' / name):.2g}", flush=True)


if __name__ == "__main__":
    main()
