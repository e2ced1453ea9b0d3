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
    if not found.name.endswith("__main__") and "integrations." not in found.name:  # their packages, as rich above
        importlib.import_module(found.name)
"""
COMMANDS = """
import shlex
from spectra.cli import run
for line in sys.argv[1:]:
    assert run(shlex.split(line)) == 0, line
    print("END", flush=True)
"""
EIG = "eig --model spectra.demo:mlp --data digits --samples 50 -k 2 --out"


def run(script, *arguments):
    done = subprocess.run([sys.executable, "-c", WITHOUT + script, *arguments], capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode()


def test_every_module_imports():
    run(IMPORT_ALL)


def test_help_and_version_are_printed_and_eigenvalues_found_and_written(tmp_path):
    out = tmp_path / "out"
    help, version, eig, _ = run(COMMANDS, "--help", "--version", f"{EIG} {out}").split("END\n")
    assert "Spectral analysis" in help
    assert __version__ in version
    assert "residual" in eig
    assert sorted(path.name for path in out.iterdir()) == ["eig.json", "eig.npz"]
