"""The command line: the only place that imports click, prints, or exits. One file a command; none imports torch."""

from __future__ import annotations

import atexit
import io
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from spectra import __version__
from spectra.cli.flags import with_flags
from spectra.cli.layout import Group
from spectra.cli.signals import INTERRUPTED, TERMINATED, Terminated, end_by_signals, ignore_signals
from spectra.cli.terminal import note
from spectra.cli.watchdog import Watchdog
from spectra.cluster import ranks
from spectra.commands import COMMANDS, cli_command
from spectra.errors import SpectraError
from spectra.quoting import LINE, quoted
from spectra.register import NameClash

ALONE = [name for name, command in COMMANDS.items() if not command.spends_products]  # run on the first rank only


class Interrupted(Exception):
    """Raised for Ctrl-C in place of KeyboardInterrupt, for which click would print an empty line first."""


class Program(Group):
    """The group of all commands; it passes Ctrl-C on to `run` as `Interrupted`."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error


@click.group(
    cls=Program,
    headings={name: command.group for name, command in COMMANDS.items()},
    examples=(
        "spectra demo",
        "spectra eig --model spectra.demo:mlp --data digits",
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    no_args_is_help=False,
)
@click.version_option(__version__, prog_name="spectra")
def spectra() -> None:
    """Spectral analysis of loss landscapes.

    Spectra computes eigenvalues, trace and spectral density of the Hessian,
    Gauss-Newton and Fisher matrices of a network. Every number comes with its
    error and its cost. 'spectra COMMAND --help' explains a command.
    """


for name in COMMANDS:
    spectra.add_command(cli_command(name))


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 a tolerance was not met, 2 invalid input, 130 interrupted, 143 terminated."""
    open_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # tables hold ± and λ, which not every locale can write
    if "GOMP_SPINCOUNT" not in os.environ:
        # Let waiting OpenMP threads sleep instead of spin: on a core shared with another job, spinning slows a product
        # of 2 ms to 300 ms, sleeping to 4 ms. OpenMP reads this when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    end_by_signals()
    arguments = sys.argv[1:] if arguments is None else arguments
    if ranks.rank():
        if arguments[:1] and arguments[0] in ALONE:
            sys.exit(0)
        silence_output()
    if ranks.world() > 1 and arguments[:1] and arguments[0] not in ALONE:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # else a lost store is reported with C++ stack frames
        Watchdog(end).start()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")  # users can do nothing about them
    warnings.showwarning = partial(show_warning, warnings.showwarning)
    status = run(arguments)
    ignore_signals()
    # The answer is complete: what user code prints at exit must not follow it.
    sys.stdout = sys.stderr
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if status in (INTERRUPTED, TERMINATED) or ranks.world() > 1:
        # After a Ctrl-C inside `exec` (as in dataclasses) CPython ends by the signal instead of with our status. Threads
        # that talk to other ranks cannot be joined, since one of those ranks may have ended.
        if status in (0, 1) or ranks.world() == 1:  # else an exit function may wait for a lost rank
            atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def show_warning(usual: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Show a name clash in a register as a note, and other warnings as Python does."""
    note(str(message)) if issubclass(category, NameClash) else usual(message, category, *where)


def end(message: str, lost: bool, status: int) -> None:
    """Print the message and end the process; a thread calls this when the main thread cannot end."""
    print_error(message, lost)
    os._exit(status)


def open_streams() -> None:
    """Redirect closed standard streams to the null device, and ignore errors of writing to standard error."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest descriptor, which is this one
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    raw = ErrorTolerantFile(2, "w", closefd=False)
    settings = {"encoding": getattr(sys.stderr, "encoding", "utf-8"), "errors": "backslashreplace"}
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=True, **settings)


class ErrorTolerantFile(io.FileIO):
    """A file that ignores errors of writing, such as a full disk or a closed pipe."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError:
            return len(data)


def silence_output() -> None:
    """Discard the output of this rank: only the first rank prints, except for errors (`print_error`)."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os.dup2(sys.stdout.fileno(), 1)


def run(arguments: list[str]) -> int:
    """Run a command, print its error if it has one, and return the exit status."""
    try:
        status = spectra.main(arguments or ["--help"], prog_name="spectra", standalone_mode=False) or 0
        ranks.finish()
        return status
    except (Interrupted, click.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__ or error
        terminated = isinstance(cause, Terminated)
        if lost := ranks.lost_one():  # then torchrun ends the other ranks
            print_error(ranks.SILENT, lost)
        else:
            print_error("; ".join(filter(None, ["terminated" if terminated else "interrupted", str(cause)])))
        return TERMINATED if terminated else INTERRUPTED
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "spectra"
        print_error(f"{error.format_message().rstrip('.')}; see '{path} --help'")
    except SpectraError as error:
        show_traceback()
        print_error(with_flags(str(error), spectra))
    except Exception as error:  # a bug in spectra, or an unforeseen error in user code
        show_traceback()
        if lost := ranks.world() > 1 and ranks.missing_another(error):
            print_error(ranks.SILENT, lost)
        elif short := out_of_memory(error):
            print_error(short)
        else:
            first = str(error).strip().partition("\n")[0]
            print_error(f"{type(error).__name__}: {first} (SPECTRA_TRACEBACK=1 shows where)")
    return 2


def out_of_memory(error: BaseException) -> str:
    """The message for an out-of-memory error that names no argument; empty for other errors."""
    if isinstance(error, MemoryError) or "torch" in sys.modules:
        from spectra.errors import describe
        from spectra.memory import out_of_memory_cause

        if cause := out_of_memory_cause(error):
            way_out = "reduce --batch-size, --memory or --samples; with saved results, name fewer or smaller ones"
            return f"--batch-size: out of memory ({describe(cause)}); {way_out}"
    return ""


_speaking = threading.Lock()  # with several ranks: taken once, by the thread that ends the process


def print_error(message: str, lost: bool = False) -> None:
    """Print an error as one line on standard error, of limited length and with control characters escaped.

    Only one of several ranks prints; `lost` means that this rank fails because another one is missing.
    """
    if ranks.world() > 1:
        _speaking.acquire()
        if threading.current_thread() is threading.main_thread():
            ignore_signals()  # torchrun ends all ranks once one has left
    if (said := ranks.wording(message, lost)) is not None:
        line = quoted(" ".join(said.splitlines()), LINE)
        print("spectra:", line, file=sys.__stderr__ if ranks.rank() else sys.stderr, flush=True)
    if not lost or said is not None:
        ranks.leave(lost)


def show_traceback() -> None:
    """Print the traceback of the current error if SPECTRA_TRACEBACK is set."""
    if os.environ.get("SPECTRA_TRACEBACK"):
        traceback.print_exc(file=sys.__stderr__ if ranks.rank() else sys.stderr)
