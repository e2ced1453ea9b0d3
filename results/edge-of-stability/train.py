"""Full-batch gradient descent on a Chebyshev polynomial (Cohen et al. 2021): writes checkpoints/step-0000.pt and so on.

python train.py        # some seconds; spectra sweep run plan.toml then looks at every checkpoint
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

LEARNING_RATE = 0.02
STEPS, EVERY = 8000, 200
DEGREE, POINTS, WIDTH = 4, 20, 100


def network() -> nn.Module:
    """1-100-100-1 with tanh: 10,401 parameters, in float64."""
    layers = [nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)]
    return nn.Sequential(*layers).double()


def data() -> tuple[Tensor, Tensor]:
    """20 evenly spaced points x of [-1, 1] and the Chebyshev polynomial T_4(x) = cos(4 arccos x), as columns."""
    x = torch.linspace(-1, 1, POINTS, dtype=torch.float64)[:, None]
    return x, torch.cos(DEGREE * torch.acos(x))


def main() -> None:
    torch.manual_seed(0)
    net, (x, y) = network(), data()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    folder = Path(__file__).parent / "checkpoints"
    folder.mkdir(exist_ok=True)
    for step in range(STEPS + 1):
        loss = mse_loss(net(x), y)
        if step % EVERY == 0:
            torch.save({"model": net.state_dict(), "step": step}, folder / f"step-{step:04d}.pt")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{STEPS} steps of {LEARNING_RATE}, loss {loss.item():.3g}; 2 / learning rate is {2 / LEARNING_RATE:g}")


if __name__ == "__main__":
    main()
