"""spectra demo."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spectra.cli.layout import Command
from spectra.cli.options import Named

if TYPE_CHECKING:
    from torch import nn

MATRICES = ("hessian", "ggn", "fisher", "fisher-empirical")
LOOKED_ALONG = ("--along", "1", "--along", "lowest", "--along", "random", "--along", "1,2")


@click.command(
    cls=Command,
    examples=(
        "spectra demo",
        "spectra demo --out results/first",
    ),
)
@click.option("--out", metavar="DIR", type=Named(path_type=Path, file_okay=False), default=Path("results/demo"), show_default=True, help="Directory for checkpoints, results, figures and the page.")  # fmt: skip
def demo(out) -> int:
    """Train a small network on digits, and analyse it.

    The demo saves checkpoints at the start, in the middle and at the end of
    training. On the last one it runs eig, trace and density for four matrices,
    layers for two and landscape for one. It collects the results in one page,
    report.html. This takes about a minute.
    """
    from spectra.cli.density import density
    from spectra.cli.eig import eig
    from spectra.cli.landscape import landscape
    from spectra.cli.layers import layers
    from spectra.cli.report import report
    from spectra.cli.trace import trace
    from spectra.demo import train
    from spectra.inputs.data import digits
    from spectra.records.files import prepare_directory

    prepare_directory(out)
    images, labels = digits()
    trained = train(images, labels.long())
    checkpoints = [saved(network, loss, out / f"{name}.pt") for name, network, loss in trained]
    problem = [
        "--model",
        "spectra.demo:mlp",
        "--checkpoint",
        str(checkpoints[-1]),
        "--data",
        "digits",
        "--out",
        str(out),
    ]
    lines = [(command, [*problem, *named(MATRICES)]) for command in (eig, trace, density)]
    lines.append((layers, [*problem, *named(MATRICES[:2]), "--density"]))
    lines.append((landscape, [*problem, *LOOKED_ALONG]))
    lines.append((report, [str(out), "--out", str(out / "report.html")]))
    status = 0
    for command, arguments in lines:
        print(f"\n$ spectra {command.name} {shlex.join(arguments)}\n", flush=True)
        status = max(status, command.main(arguments, prog_name=f"spectra {command.name}", standalone_mode=False))
    return status


def saved(network: nn.Module, loss: float, path: Path) -> Path:
    """Save the network's weights, print its loss to standard error, and return the path."""
    import torch

    from spectra.atomic import write_atomically

    weights = network.state_dict()
    write_atomically(path, lambda file: torch.save(weights, file))
    print(f"{path}: cross entropy {loss:.4f}", file=sys.stderr)
    return path


def named(matrices: Sequence[str]) -> list[str]:
    """The options that select these matrices."""
    return [word for name in matrices for word in ("--curvature", name)]
