"""The command line: the only place that imports click, prints, or exits. One file a command; none imports torch."""

from __future__ import annotations

import atexit
import os
import sys
import traceback

import click

from spectra import __version__
from spectra.cli.compare import compare
from spectra.cli.demo import demo
from spectra.cli.density import density
from spectra.cli.eig import eig
from spectra.cli.inspect import inspect
from spectra.cli.landscape import landscape
from spectra.cli.layers import layers
from spectra.cli.plot import plot
from spectra.cli.report import report
from spectra.cli.signals import INTERRUPTED, TERMINATED, Terminated, end_by_signals, ignore_signals
from spectra.cli.sweep import sweep
from spectra.cli.trace import trace
from spectra.cluster import ranks
from spectra.errors import SpectraError

ALONE = ("plot", "report", "sweep")  # commands that spend no products: of several ranks the first does all


class Interrupted(Exception):
    """Ctrl-C, out of reach of click, which would print an empty line first."""


class Group(click.Group):
    def invoke(self, context):
        try:
            return super().invoke(context)
        except KeyboardInterrupt as error:
            raise Interrupted from error


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80}, no_args_is_help=False
)
@click.version_option(__version__, prog_name="spectra")
def spectra() -> None:
    """Spectral analysis of loss landscapes.

    Eigenvalues, trace and spectral density of the Hessian, the Gauss-Newton and
    the Fisher matrices of a network, each with its error and its cost.
    """


for command in (eig, trace, density, inspect, plot, demo, sweep, compare, layers, landscape, report):
    spectra.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 a tolerance not met, 2 an input to put right, 130 interrupted, 143 terminated."""
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115, some are closed
    sys.stdout.reconfigure(errors="replace")  # tables hold ± and λ, which not every locale can write
    if "GOMP_SPINCOUNT" not in os.environ:
        # Threads that wait for each other then sleep: where another job shares a core, spinning makes a product of 2 ms
        # one of 300, sleeping one of 4. Read by OpenMP as torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    end_by_signals()
    arguments = sys.argv[1:] if arguments is None else arguments
    if ranks.rank():
        if arguments[:1] and arguments[0] in ALONE:
            sys.exit(0)
        be_quiet()
    status = run(arguments)
    ignore_signals()
    # The answer stands: what user code still prints at exit must not follow it.
    sys.stdout = sys.stderr
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if status in (INTERRUPTED, TERMINATED) or ranks.world() > 1:
        # CPython ends by the signal itself, not by our status, where Ctrl-C came in code that `exec` ran (dataclasses do).
        # And threads that talk to other ranks may not be heard out: one of those may have ended.
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def be_quiet() -> None:
    """Of several ranks the first prints; others do where they fail (`complain`)."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os.dup2(sys.stdout.fileno(), 1)


def run(arguments: list[str]) -> int:
    try:
        status = spectra.main(arguments or ["--help"], prog_name="spectra", standalone_mode=False) or 0
        ranks.finish()
        return status
    except (Interrupted, click.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__ or error
        terminated = isinstance(cause, Terminated)
        complain("; ".join(filter(None, ["terminated" if terminated else "interrupted", str(cause)])))
        return TERMINATED if terminated else INTERRUPTED
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "spectra"
        complain(f"{error.format_message().rstrip('.')}; see '{path} --help'")
    except SpectraError as error:
        show_traceback()
        complain(str(error))
    except Exception as error:  # a defect of ours, or of a model in a place nobody thought of
        show_traceback()
        first = str(error).strip().partition("\n")[0]
        complain(f"{type(error).__name__}: {first} (SPECTRA_TRACEBACK=1 shows where)", ranks.missing_another(error))
    return 2


def complain(message: str, lost: bool = False) -> None:
    """One printable line: names and messages of others may hold anything, and be of any length.

    Of several ranks one speaks; `lost` tells that this one only misses another.
    """
    if ranks.world() > 1:
        ignore_signals()  # what started the ranks ends all where one has left
    if (message := ranks.wording(message, lost)) is not None:
        line = "".join(character for character in " ".join(message.split()) if character.isprintable())
        middle = f"{line[:250]} ... {line[-250:]}" if len(line) > 550 else line
        print("spectra:", middle, file=sys.__stderr__ if ranks.rank() else sys.stderr, flush=True)
    if not lost:
        ranks.leave()


def show_traceback() -> None:
    if os.environ.get("SPECTRA_TRACEBACK"):
        traceback.print_exc(file=sys.__stderr__ if ranks.rank() else sys.stderr)
