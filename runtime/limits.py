"""What this process may use: the least of every limit from its own control groups up to the whole machine.

Own code: psutil knows no control groups, and the packages that do look at one version's, or at the root's alone.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

ROOT = Path("/")  # above proc and sys, which Linux alone has


def usable_cores() -> int:
    """Cores that this process may use: those it may run on, and no more than its control groups' share of them.

    Never a function of how busy they are: the number of threads decides the bits of a run.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu"):
        # Microseconds of all cores together, in so many of the clock; "max" or -1 is no limit.
        share = _read(group / "cpu.max") or f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"
        quota, _, period = share.partition(" ")
        if quota.isdigit() and period.isdigit():
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def free_bytes() -> int:
    """Bytes of the machine's memory that this process may still take."""
    free = [int(psutil.virtual_memory().available)]
    for group in _groups("memory"):
        numbers = dict(line.split(maxsplit=1) for line in _read(group / "memory.stat").splitlines())
        used = int(numbers.get("anon", numbers.get("total_rss", 0)))  # what caches files gives way
        limits = [_read(group / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        free += [int(limit) - used for limit in limits if limit.isdigit()]
    process = psutil.Process()
    if hasattr(process, "rlimit"):  # ulimit -v and -d
        memory = process.memory_info()
        for limit, used in ((psutil.RLIMIT_AS, memory.vms), (psutil.RLIMIT_DATA, memory.data)):
            if (most := process.rlimit(limit)[0]) != psutil.RLIM_INFINITY:
                free.append(most - used)
    return max(min(free), 0)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups, of version 1 or 2, from its own up to the root.

    In a container some are not there: its own group is mounted as the root.
    """
    mounted = ROOT / "sys/fs/cgroup"
    for line in (_read(ROOT / "proc/self/cgroup") or "0::/").splitlines():
        _, controllers, path = line.split(":", 2)
        own = PurePosixPath(path.lstrip("/"))
        version_1 = controller in controllers.split(",")
        for mount in {controllers, controller} if version_1 else () if controllers else ("", "unified"):
            yield from (mounted / mount / group for group in (own, *own.parents))


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
