"""Run tasks as one job array of Slurm, submitted with submitit; `plan_run` describes the keys of [run].

A job runs its task like a local sweep. When its time limit is near or it is preempted, the command saves its state, and
the job is queued again and resumes. The states of jobs come from squeue alone, which every cluster has.
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
from spectra.sweeps.tasks import BatchJob, file_lock, record_path, task_state

# The signal that Slurm sends before the time limit; commands that receive it directly save their state at once.
SIGNAL = "USR1"
NOTICE = 120  # seconds before the limit
REQUEUES = 50  # of a task that exceeds its time limit; a bound for tasks that make no progress


@dataclass
class Job:
    """A callable that submitit pickles, calls on a node, and asks for a `checkpoint` when the job is to end."""

    plan: Plan  # with this task alone
    task: Task

    def __call__(self) -> None:
        threads = self.plan.run.threads or self.plan.run.cpus
        self.runner = Runner(self.plan, self.task, {"OMP_NUM_THREADS": str(threads)} if threads else {})
        self.runner.run()
        now = task_state(self.plan, self.task)
        if now.state == "failed":
            raise SpectraError(f"{self.task.name}: {now.reason}")  # so that Slurm counts the job as failed

    def checkpoint(self):
        """Stop the command, which saves its state, and let submitit queue the job again, if the plan allows."""
        from submitit.helpers import DelayedSubmission

        self.runner.stop()
        self.runner.wait()
        return DelayedSubmission(Job(self.plan, self.task)) if self.plan.run.requeue else None


def submit(plan: Plan, tasks: Sequence[Task]) -> dict[str, str]:
    """Submit the tasks as one array of jobs, and return the job of each task."""
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = SIGNAL  # read when submitit is imported
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError as error:
        text = "needs submitit, which is not installed; install it with: pip install submitit"
        raise SpectraError(f'PLAN {plan.path}: [run] on = "slurm" {text}') from error
    if not (shutil.which("sbatch") and shutil.which("srun")):
        text = 'needs sbatch and srun, which this machine lacks; use a login node, or write on = "local"'
        raise SpectraError(f'PLAN {plan.path}: [run] on = "slurm" {text}')
    executor = submitit.SlurmExecutor(folder(plan), max_num_timeout=REQUEUES)
    executor.update_parameters(**parameters(plan))
    jobs = [Job(replace(plan, tasks=(task,)), task) for task in tasks]
    try:
        with redirect_stderr(io.StringIO()), executor.batch():  # submitit also prints its errors
            submitted = [executor.submit(job) for job in jobs]
    except FailedJobError as error:
        reason = "; ".join(line.split("error: ")[-1] for line in str(error).splitlines() if line.strip())
        raise SpectraError(f"PLAN {plan.path}: [run] Slurm rejects the job ({reason}); correct [run]") from error
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
    """Submit the tasks that `choose()` returns, under a lock that excludes other sweeps. Raises SpectraError."""
    with file_lock(plan.records / "submit.lock") as lock:
        if lock is None:
            raise SpectraError(
                f"PLAN {plan.path}: is being submitted by another `spectra sweep run`; see `spectra sweep status`"
            )
        tasks = choose()
        jobs = submit(plan, tasks) if tasks else {}
        for task in tasks:
            record_path(plan, task, "json").unlink(missing_ok=True)  # an earlier attempt is no longer relevant
        text = json.dumps(submitted(plan) | jobs)
        write_atomically(plan.records / "jobs.json", lambda file: file.write(text.encode()))
    return jobs


def folder(plan: Plan) -> Path:
    """The directory of submitit: scripts, pickles, and the output of jobs."""
    return plan.records / "slurm"


def submitted(plan: Plan) -> dict[str, str]:
    """The last job of each task. Raises SpectraError if the list of jobs is damaged."""
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
    """The last job of each submitted task, with its state from squeue. Raises SpectraError if squeue fails."""
    jobs = submitted(plan)
    if not jobs:
        return {}
    command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--user={getpass.getuser()}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or error
        raise SpectraError(f"squeue: failed ({' '.join(str(reason).split())}); try again on a login node") from error
    states = dict(line.split() for line in done.stdout.splitlines())
    return {
        name: BatchJob(job, job_state(states.get(job)), folder(plan) / f"{job}_0_log.err") for name, job in jobs.items()
    }


def job_state(state: str | None) -> str:
    """Convert Slurm's state of a job to gone, queued or running."""
    if state is None:
        return "gone"
    return "queued" if state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED") else "running"
