"""Does the noise scale tell which batch to take? Measured over a training of the digits network, and by training it.

    python results/noise-scale/run.py

Trains the network with batches of 4 to 512 examples, each at its best of six learning rates, counts the steps to mean
losses of 0.5 and 0.1, and fits S (1 + B* / B) to them. Beside that it measures the noise scales at checkpoints of one
training. Writes steps.csv, noise.csv and noise.png.
"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib.style
import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn

import spectra
from spectra.demo import mlp
from spectra.plots.style import COLOURS, DASHES, STYLE, Figure, save_figure

HERE = Path(__file__).parent
BATCHES = [4, 8, 16, 32, 64, 128, 256, 512]
RATES = [0.08, 0.16, 0.32, 0.64, 1.28, 2.56]
SEEDS = 2
TARGETS = [0.5, 0.1]  # mean losses over all examples
MOST = 6000  # steps
CHECKPOINTS = [2.2, 1.9, 1.5, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1]  # mean losses at which noise is measured
RATE, BATCH = 0.32, 64  # of the training whose checkpoints these are


def many(seeds: list[int]) -> list[Tensor]:
    """The parameters of as many networks, each seed's own, stacked."""
    found = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.append([p.detach() for p in mlp().parameters()])
    return [torch.stack(some).requires_grad_() for some in zip(*found, strict=True)]


def losses(parameters: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The mean losses (M,) of M networks on batches x (M, B, 64), y (M, B)."""
    h = x
    for i in range(0, len(parameters), 2):
        h = torch.baddbmm(parameters[i + 1][:, None], h, parameters[i].mT)
        h = h.tanh() if i + 2 < len(parameters) else h
    values = nn.functional.cross_entropy(h.flatten(0, 1), y.flatten(), reduction="none")
    return values.view(len(h), -1).mean(dim=1)


def steps_to_target(batch: int, x: Tensor, y: Tensor) -> np.ndarray:
    """Steps to the targets (targets, rates, seeds), by SGD on batches drawn with replacement; inf where not reached."""
    count = len(RATES) * SEEDS
    parameters = many(list(range(SEEDS)) * len(RATES))
    rates = torch.tensor(RATES).repeat_interleave(SEEDS)
    reached, generator = torch.full((len(TARGETS), count), torch.inf), torch.Generator().manual_seed(batch)
    every = x.expand(count, -1, -1), y.expand(count, -1)
    check = 1
    for step in range(1, MOST + 1):
        drawn = torch.randint(len(y), (count, batch), generator=generator)
        slopes = torch.autograd.grad(losses(parameters, x[drawn], y[drawn]).sum(), parameters)
        with torch.no_grad():
            for p, slope in zip(parameters, slopes, strict=True):
                p.sub_(rates.view(-1, *[1] * (p.ndim - 1)) * slope)
            if step >= check:
                check = max(step + 1, int(step * 1.03))
                there = losses(parameters, *every) <= torch.tensor(TARGETS)[:, None]
                reached[there & reached.isinf()] = step
                slowest = reached[-1].view(len(RATES), SEEDS).mean(dim=1)
                if slowest.isfinite().any() and step > 1.2 * slowest.min():
                    break
    return reached.view(len(TARGETS), len(RATES), SEEDS).numpy()


def fitted(batches: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """S and B* of S (1 + B* / B), by least squares of the logarithms, and the standard errors of their logarithms."""

    def off(logs: np.ndarray) -> np.ndarray:
        return logs[0] + np.log1p(np.exp(logs[1]) / batches) - np.log(steps)

    found = least_squares(off, [np.log(steps.min()), np.log(64.0)])
    spread = np.square(found.fun).sum() / (len(steps) - 2)
    return np.exp(found.x), np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac)) * spread)


def noise_over_training(x: Tensor, y: Tensor) -> list[dict]:
    """Noise scales at checkpoints of one training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = mlp()
    data = [(x.view(-1, 1, 8, 8), y)]
    generator, rows, waiting = torch.Generator().manual_seed(0), [], [np.inf, *CHECKPOINTS]
    step = 0
    while waiting:
        with torch.no_grad():
            loss = nn.functional.cross_entropy(network(x), y).item()
        if loss <= waiting[0]:
            waiting.pop(0)
            problem = spectra.load_problem(model=network, loss="cross_entropy", data=data).problem
            row = {"step": step, "loss": loss}
            for kind, population in (("all", True), ("sample", False)):
                found = spectra.noise_scale(problem, "hessian", population=population)
                for scale in (found.simple, found.full):
                    name = f"{scale.kind}_{kind}"
                    low, high = scale.interval
                    row |= {name: scale.value, f"{name}_error": scale.standard_error}
                    row |= {f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
        drawn = torch.randint(len(y), (BATCH,), generator=generator)
        network.zero_grad()
        nn.functional.cross_entropy(network(x[drawn]), y[drawn]).backward()
        with torch.no_grad():
            for p in network.parameters():
                p.sub_(RATE * p.grad)
        step += 1
    return rows


def figure(steps: np.ndarray, fits: list[tuple[np.ndarray, np.ndarray]], rows: list[dict]) -> Figure:
    """Draw steps (targets, batches) against batch sizes with the fits, and noise scales against the loss."""
    batches, fine = np.array(BATCHES, dtype=float), np.geomspace(3, 700, 100)
    with matplotlib.style.context(STYLE):
        made = Figure(figsize=(6.5, 3.4), layout="constrained")
        left, right = made.subplots(1, 2)
        for i, (target, some, (best, errors)) in enumerate(zip(TARGETS, steps, fits, strict=True)):
            look = {"color": COLOURS[1 + 2 * i], "linestyle": DASHES[i]}
            left.plot(fine, best[0] * (1 + best[1] / fine), linewidth=1.2, **look)
            label = f"to a loss of {target}: B* = {best[1]:.0f}"
            left.plot(batches, some, **look | {"linestyle": "none", "marker": "^D"[i]}, markersize=5, label=label)
            low, high = best[1] * np.exp(np.array([-2, 2]) * errors[1])
            span = [rows[0]["loss"], target]
            right.fill_between(span, low, high, color=look["color"], alpha=0.2, linewidth=0)
            right.plot(span, [best[1]] * 2, label=f"B* by training to a loss of {target}", **look)
        left.set(xscale="log", yscale="log", xlabel="batch size (examples)", ylabel="training steps")
        for name, colour, marker in (("simple", COLOURS[0], "o"), ("full", COLOURS[2], "s")):
            known = [row for row in rows if row[f"{name}_all"] is not None]
            values = [row[f"{name}_all"] for row in known]
            at = [row["loss"] for row in known]
            right.plot(at, values, marker, ls="-", color=colour, markersize=4, linewidth=1, label=name)
        right.set(
            xscale="log", yscale="log", xlabel="mean loss, which falls in training", ylabel="noise scale (examples)"
        )
        right.invert_xaxis()
        for axes in (left, right):
            axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(-0.1, 1), borderaxespad=0.2)
    return made


def main() -> None:
    """Run everything and write the files."""
    torch.set_num_threads(1)
    held = np.load(Path(spectra.__file__).parent / "inputs" / "digits.npz")
    x, y = (torch.from_numpy(held[name]) for name in ("images", "labels"))
    x, y = x.flatten(1).float() / x.max(), y.long()
    table, best_steps = [], []
    for batch in BATCHES:
        found = np.mean(steps_to_target(batch, x, y), axis=2)
        places = found.argmin(axis=1)
        best_steps.append(found.min(axis=1))
        for target, place, steps in zip(TARGETS, places, best_steps[-1], strict=True):
            table.append({"target": target, "batch": batch, "rate": RATES[place], "steps": steps})
            print(table[-1], flush=True)
    steps = np.array(best_steps).T
    fits = [fitted(np.array(BATCHES, dtype=float), some) for some in steps]
    for target, (best, errors) in zip(TARGETS, fits, strict=True):
        print(f"{target}: S = {best[0]:.1f}, B* = {best[1]:.1f}, relative errors {errors}")
    rows = noise_over_training(x, y)
    for row in rows:
        print({key: value for key, value in row.items() if "_low" not in key and "_high" not in key})
    for name, lines in (("steps", table), ("noise", rows)):
        with (HERE / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows(lines)
    save_figure(figure(steps, fits, rows), HERE / "noise.png")


if __name__ == "__main__":
    main()
