"""Limits of memory and cores, in trees of /proc and /sys as systemd, Slurm and Docker make them."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT

from runtime.devices import RESERVE_BYTES, available_bytes
from runtime.limits import free_bytes, usable_cores

GB = 10**9
FREE = 100 * GB  # of the machine
SLURM, DOCKER = "system.slice/slurmstepd.scope/job_7/step_0/user/task_0", "docker/4f2a"
NONE = 9223372036854771712  # version 1 has no word for it

# proc/self/cgroup, the files under sys/fs/cgroup, cores, free memory
TREES: dict[str, tuple[str, dict[str, object], int, int]] = {
    "no limit": ("0::/", {}, 8, FREE),
    "version 2, none said": ("0::/", {"memory.max": "max", "cpu.max": "max 100000"}, 8, FREE),
    "no control groups": ("", {}, 8, FREE),
    "a container of version 2": (
        "0::/",
        {"memory.max": 8 * GB, "memory.stat": f"anon {GB}\nfile {6 * GB}", "cpu.max": "250000 100000"},
        3,
        7 * GB,
    ),
    "systemd's slice, which throttles": (
        "0::/user.slice/run-7.scope",
        {"user.slice/memory.high": 5 * GB, "user.slice/run-7.scope/memory.max": 9 * GB, "user.slice/cpu.max": "5 10"},
        1,
        5 * GB,
    ),
    "Slurm's job, above the step": (
        f"0::/{SLURM}",
        {
            "system.slice/slurmstepd.scope/job_7/memory.max": 4 * GB,
            "system.slice/slurmstepd.scope/job_7/memory.stat": f"anon {GB // 2}",
            f"{SLURM}/memory.max": "max",
            "system.slice/slurmstepd.scope/job_7/cpu.max": "200000 100000",
            f"{SLURM}/cpu.max": "max 100000",
        },
        2,
        4 * GB - GB // 2,
    ),
    "version 1, the parent's is less": (
        "9:name=systemd:/\n4:memory:/slurm/job_7/step_0\n2:cpu,cpuacct:/slurm/job_7\n0::/",
        {
            "memory/memory.limit_in_bytes": NONE,
            "memory/slurm/job_7/memory.limit_in_bytes": 6 * GB,
            "memory/slurm/job_7/memory.stat": f"rss 7\ntotal_rss {2 * GB}",
            "memory/slurm/job_7/step_0/memory.limit_in_bytes": 16 * GB,
            "cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": 150000,
            "cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": 100000,
            "cpu,cpuacct/cpu.cfs_quota_us": -1,
            "cpu,cpuacct/cpu.cfs_period_us": 100000,
        },
        2,
        4 * GB,
    ),
    "Docker of version 1, its group mounted as the root": (
        f"4:memory:/{DOCKER}\n2:cpu,cpuacct:/{DOCKER}",
        {
            "memory/memory.limit_in_bytes": 3 * GB,
            "cpu/cpu.cfs_quota_us": 100000,
            "cpu/cpu.cfs_period_us": 100000,
        },
        1,
        3 * GB,
    ),
    "both versions, the second without controllers": (
        "4:memory:/a\n0::/b",
        {"memory/a/memory.limit_in_bytes": 2 * GB, "unified/b/memory.max": 7 * GB},
        8,
        2 * GB,
    ),
    "used up": ("0::/", {"memory.max": GB, "memory.stat": f"anon {2 * GB}"}, 8, 0),
}


@pytest.mark.parametrize("name", TREES)
def test_the_least_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    groups, files, cores, free = TREES[name]
    for path, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": files[name] for name in files}}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{text}\n")
    monkeypatch.setattr("runtime.limits.ROOT", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": FREE}))
    assert (usable_cores(), free_bytes()) == (cores, free)
    assert available_bytes(torch.device("cpu")) == max(free - RESERVE_BYTES, 0)


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_AS"), reason="no such limits here")
@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_what_the_shell_allows_counts(name: str) -> None:
    code = f"import psutil; psutil.Process().rlimit(psutil.{name}, ({GB}, {GB})); import runtime.limits as l"
    command = [sys.executable, "-c", f"{code}; print(l.free_bytes())"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert 0 < int(result.stdout) < GB, result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs bash, and a limit that holds")
def test_a_training_under_a_limit_is_refused_in_one_line(tmp_path: Path) -> None:
    line = f"ulimit -v 6000000; exec {sys.executable} {ROOT}/q_agent_train.py --device cpu"
    result = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --replay-size 1,000,000 needs 7.1 GB, and cpu has ")
    assert "; choose --replay-size" in line
