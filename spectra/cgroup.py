"""The memory that Linux allows this process: the limits of its control groups (containers, Slurm jobs, systemd slices).

See https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/memory.html. Only files are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Version(NamedTuple):
    """The names of the files of a control group."""

    limits: tuple[str, ...]
    used: str
    reclaimable: str  # key of memory.stat: cached files that the kernel drops when memory gets short


V1 = Version(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
V2 = Version(("memory.max", "memory.high"), "memory.current", "inactive_file")  # beyond `high` all work is throttled


class GroupMemory(NamedTuple):
    """The memory limit of a process's control groups and what is left of it now, in bytes; infinite without a limit."""

    limit: float
    free: float


def group_memory(root: Path = Path("/")) -> GroupMemory:
    """The memory that the process's own group and the groups around it allow.

    Args:
        root: the directory that holds `proc/self` and the mounted groups.
    """
    limit = free = math.inf
    for group, version in memory_groups(root):
        allowed = min(filter(None, (number(group / name) for name in version.limits)), default=math.inf)
        if math.isfinite(allowed):
            used = (number(group / version.used) or 0) - reclaimable(group, version)
            limit, free = min(limit, allowed), min(free, max(0, allowed - used))
    return GroupMemory(limit, free)


def memory_groups(root: Path) -> Iterator[tuple[Path, Version]]:
    """Yield the directories of the process's group and of its ancestors, up to the mount point of the groups."""
    for version, top, mount in mounts(root):
        own = own_group(root, version)
        if own is None:
            continue
        below = PurePosixPath(own)
        inside = below.relative_to(top) if below.is_relative_to(top) else PurePosixPath(own.lstrip("/"))
        places = [inside, *inside.parents] if ".." not in inside.parts else [PurePosixPath()]
        yield from ((mount / place, version) for place in places)


def mounts(root: Path) -> Iterator[tuple[Version, str, Path]]:
    """Yield each mounted hierarchy: its version, the group that is mounted, and the mount point."""
    for line in lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        mount, system = before.split(), after.split()
        if len(mount) < 5 or len(system) < 3:
            continue
        if system[0] == "cgroup2":
            yield V2, mount[3], root / mount[4].lstrip("/")
        elif system[0] == "cgroup" and "memory" in system[2].split(","):
            yield V1, mount[3], root / mount[4].lstrip("/")


def own_group(root: Path, version: Version) -> str | None:
    """The path of the process's group in the hierarchy of this version that counts memory."""
    for line in lines(root / "proc/self/cgroup"):
        hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
        if (hierarchy == "0" and not controllers) if version is V2 else "memory" in controllers.split(","):
            return path
    return None


def reclaimable(group: Path, version: Version) -> int:
    """The bytes of cached files that the kernel drops when memory gets short."""
    words = (line.split() for line in lines(group / "memory.stat"))
    return next((int(pair[1]) for pair in words if pair[0] == version.reclaimable), 0)


def number(file: Path) -> int | None:
    """The number in a file; None for `max`, or where the file has no number."""
    text = "".join(lines(file)).strip()
    return int(text) if text.isdecimal() else None


def lines(file: Path) -> list[str]:
    """The lines of a file; an empty list where it cannot be read."""
    try:
        return file.read_text().splitlines()
    except (OSError, ValueError):
        return []
