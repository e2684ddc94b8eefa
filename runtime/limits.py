"""What this process may use: the least of every limit from its own control group up to the whole machine.

psutil ignores control groups. Version 1 of them, which Linux distributions have left since 2021, is not read.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

ROOT = Path("/")  # above proc and sys, which Linux alone has


def usable_cores() -> int:
    """Cores that this process may use: those it may run on, and no more than its control group's share of them.

    Never a function of how busy they are: the number of threads decides the bits of a run.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups():
        quota, _, period = _read(group / "cpu.max").partition(" ")  # microseconds of all cores together
        if quota.isdigit():  # else "max"
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def free_bytes() -> int:
    """Bytes of the machine's memory that this process may still take."""
    free = [int(psutil.virtual_memory().available)]
    for group in _groups():
        numbers = dict(line.split(maxsplit=1) for line in _read(group / "memory.stat").splitlines())
        used = int(numbers.get("anon", 0))  # without cached files, which give way
        limits = [_read(group / name) for name in ("memory.max", "memory.high")]
        free += [int(limit) - used for limit in limits if limit.isdigit()]
    process = psutil.Process()
    if hasattr(process, "rlimit"):  # ulimit -v and -d
        memory = process.memory_info()
        for limit, used in ((psutil.RLIMIT_AS, memory.vms), (psutil.RLIMIT_DATA, memory.data)):
            if (most := process.rlimit(limit)[0]) != psutil.RLIM_INFINITY:
                free.append(most - used)
    return max(min(free), 0)


def _groups() -> Iterator[Path]:
    """The folders of this process's control group, and of those above it, up to the root."""
    for line in _read(ROOT / "proc/self/cgroup").splitlines():
        if line.startswith("0::"):  # version 2; in a container its own group is mounted as the root
            own = PurePosixPath(line[3:].lstrip("/"))
            yield from (ROOT / "sys/fs/cgroup" / group for group in (own, *own.parents))


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
