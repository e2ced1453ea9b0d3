"""What `scripts/demo` leaves in results/demo/, as far as commands on pages of documentation read it."""

from pathlib import Path

import pytest
import torch

from spectra.cli import run
from spectra.demo import train
from spectra.inputs.data import load_data

PROBLEM = "--model spectra.demo:mlp --checkpoint results/demo/final.pt --data digits --out results/demo"


def make_demo_run(place: Path) -> None:
    """Train the digits network, save its checkpoints, and run `eig` and `trace`, in results/demo/ of this directory."""
    (place / "results/demo").mkdir(parents=True)
    digits = load_data("digits", None, 0)
    for name, network, _ in train(digits.inputs, digits.targets):
        torch.save(network.state_dict(), place / f"results/demo/{name}.pt")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        for command in ("eig", "trace"):
            assert run(f"{command} {PROBLEM} --curvature hessian --curvature ggn".split()) == 0
