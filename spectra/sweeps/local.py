"""Run tasks on this machine: one at a time per GPU, or per `threads` cores."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from spectra.errors import SpectraError
from spectra.sweeps.plan import Plan, Task
from spectra.sweeps.runner import Runner


def run_local(plan: Plan, tasks: Sequence[Task], ended: Callable[[Task], None]) -> None:
    """Run tasks, and call `ended` after each. On KeyboardInterrupt they save their state, and it is raised again."""
    if not tasks:
        return
    places = environments(plan)
    free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for environment in places:
        free.put(environment)
    runners = [Runner(plan, task, {}) for task in tasks]

    def run(runner: Runner) -> Task:
        runner.environment = free.get()
        try:
            runner.run()
        finally:
            free.put(runner.environment)
        return runner.task

    with ThreadPoolExecutor(len(places)) as pool:
        try:
            for done in as_completed([pool.submit(run, runner) for runner in runners]):
                ended(done.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop(runners)
            raise


def stop(runners: Sequence[Runner]) -> None:
    """Ask all runners to save their state and end; kill them at a second KeyboardInterrupt."""
    for runner in runners:
        runner.stop()
    try:
        for runner in runners:
            runner.wait()
    except KeyboardInterrupt:
        for runner in runners:
            runner.send(signal.SIGKILL)
        raise


def environments(plan: Plan) -> list[dict[str, str]]:
    """The environments of the tasks that run at the same time: number of threads and, if there are GPUs, one GPU."""
    cores, gpus = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        devices(plan),
    )
    jobs = plan.run.jobs or len(gpus) or max(1, cores // (plan.run.threads or 1))
    threads = plan.run.threads or max(1, cores // jobs)
    return [
        {"OMP_NUM_THREADS": str(threads), **({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})}
        for i in range(jobs)
    ]


def devices(plan: Plan) -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them; empty if every command uses the CPU."""
    if all(options.get("device") == "cpu" for options in plan.options.values()):
        return []
    named = [str(options["device"]) for options in plan.options.values() if ":" in str(options.get("device"))]
    if named:
        text = "a sweep assigns a GPU to each task; give `device` cuda, and choose GPUs with CUDA_VISIBLE_DEVICES"
        raise SpectraError(f"`device` {named[0]}: {text}")
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
