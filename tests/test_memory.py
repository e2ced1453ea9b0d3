"""The share of memory that a process may take: of the machine, and of the control groups that it runs in."""

import math
from pathlib import Path

import pytest
import torch

from spectra import memory
from spectra.cgroup import GroupMemory, group_memory

GIB = 2**30
V2_MOUNT = "30 23 0:26 {top} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "33 28 0:30 {top} /sys/fs/cgroup/memory rw,nosuid shared:12 - cgroup cgroup rw,memory\n"
OTHERS = "23 28 0:21 / /proc rw - proc proc rw\n34 28 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
SLURM = "/system.slice/slurmstepd.scope/job_7/step_0/user/task_0"


def tree(root: Path, own: str, mount: str, groups: dict[str, dict[str, str]], top: str = "/") -> Path:
    """A made-up machine: `own` is /proc/self/cgroup, `groups` the files of each directory below the mount."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own)
    (root / "proc/self/mountinfo").write_text(OTHERS + mount.format(top=top))
    for path, files in groups.items():
        directory = root / mount.split()[4].lstrip("/") / path.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(f"{text}\n")
    return root


def v2(limit, used=0, cache=0, **more):
    return {"memory.max": limit, "memory.current": used, "memory.stat": f"anon 1\ninactive_file {cache}\n"} | more


def v1(limit, used=0, cache=0):
    stat = f"cache 9\ninactive_file 5\ntotal_inactive_file {cache}"
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": stat}


def test_a_slurm_job_has_the_memory_of_its_own_group(tmp_path):
    """The limit stands at the job, between the task, which has none, and the node."""
    groups = {
        SLURM: v2("max"),
        "/system.slice/slurmstepd.scope/job_7": v2(8 * GIB, used=3 * GIB, cache=GIB),
        "/system.slice/slurmstepd.scope/job_8": v2(GIB),
        "/system.slice": v2(100 * GIB, used=90 * GIB),
    }
    root = tree(tmp_path, f"0::{SLURM}\n", V2_MOUNT, groups)
    assert group_memory(root) == (8 * GIB, 6 * GIB)


def test_what_is_left_may_be_least_further_up(tmp_path):
    groups = {"/a/b": v2(8 * GIB, used=GIB), "/a": v2(20 * GIB, used=18 * GIB)}
    assert group_memory(tree(tmp_path, "0::/a/b\n", V2_MOUNT, groups)) == (8 * GIB, 2 * GIB)


def test_a_throttled_group_is_full(tmp_path):
    groups = {"/a": v2(8 * GIB, used=5 * GIB, **{"memory.high": 4 * GIB})}
    assert group_memory(tree(tmp_path, "0::/a\n", V2_MOUNT, groups)) == (4 * GIB, 0)


def test_a_container_sees_its_group_at_the_mount(tmp_path):
    """In a name space of its own the group is `/`, or the mount shows nothing but it."""
    group = {"": v2(4 * GIB, used=GIB)}
    assert group_memory(tree(tmp_path / "a", "0::/\n", V2_MOUNT, group)) == (4 * GIB, 3 * GIB)
    assert group_memory(tree(tmp_path / "b", "0::/pods/x\n", V2_MOUNT, group, top="/pods/x")) == (4 * GIB, 3 * GIB)
    assert group_memory(tree(tmp_path / "c", "0::/../other\n", V2_MOUNT, group)) == (4 * GIB, 3 * GIB)
    assert group_memory(tree(tmp_path / "d", "0::/not/shown\n", V2_MOUNT, group)) == (4 * GIB, 3 * GIB)


def test_version_1(tmp_path):
    own = "11:cpu,cpuacct:/elsewhere\n4:memory:/slurm/uid_5/job_7\n0::/init.scope\n"
    groups = {
        "/slurm/uid_5/job_7": v1(6 * GIB, used=4 * GIB, cache=GIB),
        "": v1(9223372036854771712, used=50 * GIB),
        "/elsewhere": v1(1),
    }
    assert group_memory(tree(tmp_path, own, V1_MOUNT, groups)) == (6 * GIB, 3 * GIB)


def test_version_1_in_a_container(tmp_path):
    root = tree(tmp_path, "4:memory:/docker/ab\n", V1_MOUNT, {"": v1(2 * GIB, used=GIB)}, top="/docker/ab")
    assert group_memory(root) == (2 * GIB, GIB)


@pytest.mark.parametrize("own", ["", "0::/a\n", "rubbish\n", "1:name=systemd:/a\n"])
def test_without_a_limit_there_is_none(own, tmp_path):
    assert group_memory(tmp_path / "nothing") == (math.inf, math.inf)
    root = tree(tmp_path / "some", own, V2_MOUNT, {"/a": v2("max", used=GIB), "/b": v2(GIB)})
    assert group_memory(root) == (math.inf, math.inf)


@pytest.mark.parametrize(
    ("limit", "free", "share"), [(8, 8, 2), (8, 3, 1.5), (8, 0, 0), (1000, 1000, 16), (math.inf, math.inf, 16)]
)
def test_the_share_is_that_of_the_group(limit, free, share, monkeypatch):
    """A quarter of the memory that the process may have, and at most half of what is left of that."""
    monkeypatch.setattr(memory, "machine_memory", lambda: (64 * GIB, 40 * GIB))
    monkeypatch.setattr(memory, "group_memory", lambda: GroupMemory(limit * GIB, free * GIB))
    assert memory.memory_share(torch.device("cpu")) == share * GIB


def test_a_system_that_does_not_tell(monkeypatch):
    """As Windows, where os.sysconf is missing."""
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.physical_memory() == memory.UNKNOWN
