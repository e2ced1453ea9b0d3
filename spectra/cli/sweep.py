"""spectra sweep run|status|collect."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from spectra.cli.inspect import inspect
from spectra.cli.layout import Command, Group
from spectra.cli.options import JSON, WIDTH, Named
from spectra.cli.plan_options import checked_plan
from spectra.cli.terminal import answer, note
from spectra.cli.trust import TRUST_PLAN, refuse_untrusted_plan
from spectra.errors import SpectraError
from spectra.quoting import quoted
from spectra.wording import counted

TO_RUN, TO_RETRY = ("waiting", "interrupted"), ("failed", "interrupted")

PLAN = click.argument("path", metavar="PLAN", type=Named(path_type=Path))


@click.group(
    cls=Group,
    examples=(
        "spectra sweep run plan.toml --dry-run",
        "spectra sweep run plan.toml",
    ),
    no_args_is_help=False,
)
def sweep() -> None:
    """Run commands on many checkpoints, here or on Slurm.

    PLAN is a TOML file. Paths in it are relative to its directory.

    \b
    [problem]                           # options of all commands
    model = "train.py:network"
    data = "train.py:data"
    checkpoint = "checkpoints/*.pt"     # each combination of checkpoint,
    curvature = ["hessian", "ggn"]      # curvature and seed is a task
    [eig]                               # commands, and their own options
    k = 5
    [trace]
    [run]
    on = "local"                        # or "slurm": partition, time, ...
    jobs = 2
    [collect]
    learning_rate = 0.05                # draws the line 2/learning_rate
    """


@sweep.command(
    cls=Command,
    examples=(
        "spectra sweep run plan.toml",
        "spectra sweep run plan.toml --retry",
    ),
)
@PLAN
@click.option("--retry", is_flag=True, help="Run only the tasks that failed or were interrupted.")
@click.option("--dry-run", is_flag=True, help="Print the tasks and their expected cost without running them.")
@TRUST_PLAN
def run(path, retry, dry_run, trust) -> int:
    """Run the tasks that are not finished, or submit them to Slurm.

    Finished tasks are not run again, and failed ones only with --retry.
    Interrupted tasks resume where they stopped. On Ctrl-C, all running tasks save
    their state.
    """
    from spectra.records.files import prepare_directory

    plan = checked_plan(path)
    if not trust:
        refuse_untrusted_plan(path, plan.options)
    wanted = TO_RETRY if retry else TO_RUN
    if dry_run:
        answer(dry_run_report(plan, wanted))
        return 0
    prepare_directory(plan.records)
    return (run_on_slurm if plan.run.on == "slurm" else run_locally)(plan, wanted)


@sweep.command(
    cls=Command,
    examples=(
        "spectra sweep status plan.toml",
        "spectra sweep status plan.toml --json",
    ),
)
@PLAN
@JSON
def status(path, as_json) -> int:
    """Show the state of each task, and why tasks failed."""
    from spectra.sweeps.tasks import status_of
    from spectra.tables.sweep import status_text

    plan = checked_plan(path)
    found = status_of(plan, task_states(plan, patient=True))
    answer(found.to_json() if as_json else status_text(found))
    return 0


@sweep.command(
    cls=Command,
    examples=(
        "spectra sweep collect plan.toml",
        "spectra sweep collect plan.toml --log tensorboard:logs",
    ),
)
@PLAN
@click.option(
    "--log",
    metavar="SPEC",
    help="Log the table to a tracker, each checkpoint as a step: tensorboard:DIR, wandb:PROJECT, trackio:PROJECT, or file.py:name of a function (values, step) or of an object with .log(values, step).",
)
@WIDTH
@JSON
def collect(path, log, width, as_json) -> int:
    """Collect the finished tasks in one table and figures.

    The files table.csv, table.json, evolution.png and evolution.pdf are written
    beside the results.
    """
    from spectra.plots.evolution_files import evolution_files
    from spectra.sweeps.evolution import collect as collected
    from spectra.tables.evolution import evolution_text

    plan = checked_plan(path)
    evolution = collected(plan)
    files = evolution_files(evolution, plan.out, width)
    if log:
        track(evolution, log)
    for text in evolution.notes:
        note(text)
    if evolution.unfinished:
        note(f"{len(evolution.unfinished)} of {counted(len(plan.tasks), 'task')} not finished yet")
    paths = "\n".join(quoted(os.path.relpath(file), None) for file in files)
    answer(evolution.to_json() if as_json else f"{evolution_text(evolution)}\n\n{paths}")
    return 0


def track(evolution, log: str) -> None:
    """Log the numbers of each checkpoint to the tracker of this name."""
    from spectra.sweeps.tracked import scalars_by_step
    from spectra.training.trackers import named_tracker

    with named_tracker(log) as tell:
        for step, values in scalars_by_step(evolution):
            tell(values, step)


def task_states(plan, patient: bool = False) -> list:
    """The states of all tasks; `patient` falls back to files alone if Slurm does not answer."""
    from spectra.sweeps.slurm import batch_jobs
    from spectra.sweeps.tasks import task_state

    jobs = {}
    try:
        jobs = batch_jobs(plan)
    except SpectraError as error:
        if not patient:
            raise
        note(f"{error}; the states below come from files alone")
    return [task_state(plan, task, jobs.get(task.name)) for task in plan.tasks]


def dry_run_report(plan, wanted: Sequence[str]) -> str:
    """Text on the tasks and the expected cost of those that would run. Raises SpectraError as their commands would."""
    from spectra.sweeps.cost import estimate
    from spectra.sweeps.plan import typed
    from spectra.sweeps.tasks import status_of
    from spectra.tables.sweep import counts, dry_run_text

    standings = task_states(plan, patient=True)
    left = [s.task for s in standings if s.state in wanted]
    if not left:
        return counts(s.state for s in standings)
    known = {spelled for option in inspect.params for spelled in (option.name, *(o.lstrip("-") for o in option.opts))}
    options = {key: value for own in plan.options.values() for key, value in own.items() if key in known}
    first = {"checkpoint": str(left[0].checkpoint)} if left[0].checkpoint else {}
    arguments = tuple(typed(options | first | {"seed": left[0].seed}))
    return dry_run_text(status_of(plan, standings), plan.commands, estimate(plan, left, arguments))


def run_locally(plan, wanted: Sequence[str]) -> int:
    """Run tasks on this machine; return 0 if the whole plan is finished with every tolerance met, else 1."""
    from spectra.sweeps.local import run_local
    from spectra.sweeps.tasks import status_of, task_state
    from spectra.tables.sweep import counts, status_text

    before = task_states(plan, patient=True)
    tasks = [s.task for s in before if s.state in wanted]
    note(f"{counts(s.state for s in before)}; {len(tasks)} to run")
    done = 0

    def tell(task) -> None:
        nonlocal done
        done += 1
        now = task_state(plan, task)
        unmet = f", tolerance not met: {', '.join(now.unmet)}" if now.unmet else ""
        note(f"{done}/{len(tasks)} {task.name} {now.state}{f': {now.reason}' if now.reason else ''}{unmet}")

    try:
        run_local(plan, tasks, tell)
    except KeyboardInterrupt as error:
        error.args = (f"finished tasks are kept and running ones saved; 'spectra sweep run {plan.path}' resumes",)
        raise
    after = task_states(plan, patient=True)
    answer(status_text(status_of(plan, after)))
    hint(after)
    return 0 if all(s.state == "finished" and not s.unmet for s in after) else 1


def run_on_slurm(plan, wanted: Sequence[str]) -> int:
    """Submit tasks to Slurm, and print the states of all tasks."""
    from spectra.sweeps.slurm import submit_once
    from spectra.sweeps.tasks import status_of
    from spectra.tables.sweep import counts, status_text

    before = []

    def choose() -> list:
        before.extend(task_states(plan))
        return [s.task for s in before if s.state in wanted]

    jobs = submit_once(plan, choose)
    if jobs:
        arrays = sorted({job.partition("_")[0] for job in jobs.values()})
        answer(f"{counts(s.state for s in before)}; {len(jobs)} submitted as job {', '.join(arrays)}")
    else:
        answer(f"{status_text(status_of(plan, before))}\n\nnothing submitted")
    hint(before)
    return 0


def hint(standings: Sequence) -> None:
    """Print a note on how to run failed tasks again, if there are any."""
    if failed := sum(s.state == "failed" for s in standings):
        note(f"{failed} failed; correct the errors above and run these tasks again with --retry")
