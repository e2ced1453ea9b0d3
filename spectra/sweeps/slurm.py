"""Tasks as jobs of Slurm: one array, submitted through submitit. The keys of [run] that set it up: `plan_run`.

A job runs its task as a sweep here would. Told that its time ends or that it is preempted, it has the command save its
state and is queued again; then it goes on. What Slurm says of jobs is asked of squeue alone, which every cluster has.
"""

from __future__ import annotations

import getpass
import io
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path

from spectra.atomic import write_atomically
from spectra.errors import SpectraError, describe
from spectra.files import WRITTEN_BY_US, read_bounded
from spectra.sweeps.plan import Plan, Task
from spectra.sweeps.runner import Runner
from spectra.sweeps.tasks import BatchJob, held, record_path, standing

# What Slurm sends before the time limit: commands know it, so that those it reaches at once save their state at once.
SIGNAL = "USR1"
NOTICE = 120  # seconds before the limit
REQUEUES = 50  # of a task that takes longer than its time; a bound for one that gets nowhere


@dataclass
class Job:
    """A callable that submitit pickles, calls on a node, and asks for a `checkpoint` when the job is to end."""

    plan: Plan  # of this task alone
    task: Task

    def __call__(self) -> None:
        threads = self.plan.run.threads or self.plan.run.cpus
        self.runner = Runner(self.plan, self.task, {"OMP_NUM_THREADS": str(threads)} if threads else {})
        self.runner.run()
        now = standing(self.plan, self.task)
        if now.state == "failed":
            raise SpectraError(f"{self.task.name}: {now.reason}")  # for Slurm to know it, too

    def checkpoint(self):
        """Stop the command, which saves its state, and have submitit queue the job again, if the plan allows."""
        from submitit.helpers import DelayedSubmission

        self.runner.stop()
        self.runner.wait()
        return DelayedSubmission(Job(self.plan, self.task)) if self.plan.run.requeue else None


def submit(plan: Plan, tasks: Sequence[Task]) -> dict[str, str]:
    """Submit the tasks as one array of jobs, and return the job of each task."""
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = SIGNAL  # read as submitit is imported
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError as error:
        text = "needs submitit, which is not installed; pip install 'loss-spectra[slurm]'"
        raise SpectraError(f'PLAN {plan.path}: [run] on = "slurm" {text}') from error
    if not (shutil.which("sbatch") and shutil.which("srun")):
        text = 'finds no sbatch and srun on this machine; go to a login node, or write on = "local"'
        raise SpectraError(f'PLAN {plan.path}: [run] on = "slurm" {text}')
    executor = submitit.SlurmExecutor(folder(plan), max_num_timeout=REQUEUES)
    executor.update_parameters(**parameters(plan))
    jobs = [Job(replace(plan, tasks=(task,)), task) for task in tasks]
    try:
        with redirect_stderr(io.StringIO()), executor.batch():  # submitit prints there what it raises
            submitted = [executor.submit(job) for job in jobs]
    except FailedJobError as error:
        reason = "; ".join(line.split("error: ")[-1] for line in str(error).splitlines() if line.strip())
        raise SpectraError(f"PLAN {plan.path}: [run] Slurm refuses it ({reason}); correct [run]") from error
    return {task.name: job.job_id for task, job in zip(tasks, submitted, strict=True)}


def parameters(plan: Plan) -> dict:
    """The parameters of submitit's executor, from the plan's table [run]."""
    run = plan.run
    given = {
        "partition": run.partition,
        "account": run.account,
        "gpus_per_node": run.gpus,
        "cpus_per_task": run.cpus,
        "mem": run.memory,
        "array_parallelism": run.throttle,
    }
    return {
        **{key: value for key, value in given.items() if value is not None},
        "job_name": f"spectra-{plan.path.stem}",
        "time": run.minutes,
        "signal_delay_s": min(NOTICE, (run.minutes or 0) * 60 // 4),
        "setup": [f"export SUBMITIT_PREEMPT_SIGNAL={SIGNAL}", *run.setup],
        "additional_parameters": {"requeue" if run.requeue else "no-requeue": True},
    }


def submit_once(plan: Plan, choose) -> dict[str, str]:
    """Submit those tasks that `choose()` gives, while no other sweep may submit. Raises SpectraError."""
    with held(plan.records / "submit.lock") as lock:
        if lock is None:
            raise SpectraError(
                f"PLAN {plan.path}: another `spectra sweep run` submits it now; see `spectra sweep status`"
            )
        tasks = choose()
        jobs = submit(plan, tasks) if tasks else {}
        for task in tasks:
            record_path(plan, task, "json").unlink(missing_ok=True)  # an earlier attempt says nothing any more
        text = json.dumps(submitted(plan) | jobs)
        write_atomically(plan.records / "jobs.json", lambda file: file.write(text.encode()))
    return jobs


def folder(plan: Plan) -> Path:
    """The directory of submitit: scripts, pickles, and what jobs print beside their tasks."""
    return plan.records / "slurm"


def submitted(plan: Plan) -> dict[str, str]:
    """The last job of each task. Raises SpectraError where the list of them is damaged."""
    path = plan.records / "jobs.json"
    try:
        jobs = json.loads(read_bounded(path, WRITTEN_BY_US))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise SpectraError(f"PLAN {plan.path}: {path} cannot be read ({describe(error)}); remove it") from error
    if not (isinstance(jobs, dict) and all(isinstance(job, str) for job in jobs.values())):
        raise SpectraError(f"PLAN {plan.path}: {path} does not list jobs; remove it")
    return jobs


def batch_jobs(plan: Plan) -> Mapping[str, BatchJob]:
    """The last job of each task that had one, as Slurm reports it. Raises SpectraError where it cannot be asked."""
    jobs = submitted(plan)
    if not jobs:
        return {}
    command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--user={getpass.getuser()}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or error
        raise SpectraError(
            f"squeue: does not answer ({' '.join(str(reason).split())}); ask again on a login node"
        ) from error
    states = dict(line.split() for line in done.stdout.splitlines())
    return {
        name: BatchJob(job, known(states.get(job)), folder(plan) / f"{job}_0_log.err") for name, job in jobs.items()
    }


def known(state: str | None) -> str:
    """The state of a job in our words: gone, queued or running."""
    if state is None:
        return "gone"
    return "queued" if state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED") else "running"
