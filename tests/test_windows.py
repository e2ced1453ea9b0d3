"""What Windows lacks: modules import, help is printed and eigenvalues are found without it."""

import subprocess
import sys

from spectra import __version__

WITHOUT = """
import importlib, os, pkgutil, signal, sys
import matplotlib.figure, rich.console, torch, torchvision  # what they need of the system is their affair
sys.modules["fcntl"] = None
for module, names in (
    (signal, ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGALRM")),
    (os, ("O_NONBLOCK", "O_NOFOLLOW", "sysconf")),
):
    for name in names:
        delattr(module, name)
import spectra
"""
IMPORT_ALL = """
for found in pkgutil.walk_packages(spectra.__path__, "spectra."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
"""
COMMAND = """
from spectra.cli import main
main(sys.argv[1:])
"""


def run(script, *arguments):
    done = subprocess.run([sys.executable, "-c", WITHOUT + script, *arguments], capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode()


def test_every_module_imports():
    run(IMPORT_ALL)


def test_help_and_version():
    assert "Spectral analysis" in run(COMMAND, "--help")
    assert __version__ in run(COMMAND, "--version")


def test_eigenvalues_are_found_and_written(tmp_path):
    line = ["--model", "spectra.demo:mlp", "--data", "digits", "--samples", "50", "-k", "2"]
    out = run(COMMAND, "eig", *line, "--out", str(tmp_path / "out"))
    assert "residual" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["eig.json", "eig.npz"]
