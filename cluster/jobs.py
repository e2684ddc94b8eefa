"""Jobs on a Ray cluster: each a script of the project in a process of its own, as many at a time as there is room."""

import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from cluster.guarded import STOP_SECONDS, run_guarded, smallest_gpu_bytes
from machine.devices import RESERVE_BYTES, available_bytes, choose_device, usable_cores
from machine.exits import UsageError
from machine.flags import Bounds, Positive

ROOT = Path(__file__).parent.parent
PAUSES_SECONDS = (10.0, 30.0)  # before the second and the third try: what is left of the one before may be saving
OBJECT_STORE_BYTES = 80 * 2**20  # nothing is sent through it; Ray's own choice is a third of the memory
CONNECT_SECONDS = 5.0
# What Ray speaks begins so (RFC 9113, 3.4), and the frame that answers has type 4.
HTTP2_HELLO, HTTP2_SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)), b"\x04"
ASK_SECONDS = 60.0  # a node for its GPUs
KILLED = (128 + signal.SIGKILL, 128 + signal.SIGTERM)  # statuses beside the negative ones
DOING = {"q_agent_train.py": "training", "evaluate.py": "evaluating"}


@dataclass
class Cluster:
    """Flags: where the runs are made, and what each may use."""

    address: str | None = None
    """A Ray cluster to join, host:port or auto, whose nodes see the same folders. Default: this machine alone."""
    cpus_per_run: Positive = 1.0
    """Cores for each run, its threads; a fraction lets several share one."""
    gpus_per_run: Annotated[float | None, Bounds(0, 64)] = None
    """GPUs for each run; a fraction lets as many share one as it has memory for.
    Default: 1 where there are GPUs and --device allows it."""


@dataclass
class Job:
    """A script with its flags for a run, and the file for what it prints.

    progress: a file that changes as the job gets on; key: what its owner knows it by.
    """

    run: str
    script: str
    flags: list[str]
    log: Path
    progress: Path
    key: Any = None
    tries: int = 0
    not_before: float = 0.0
    changed: int | None = None  # when `progress` last did before this try

    @property
    def doing(self) -> str:
        return DOING[self.script]

    def progress_changed(self) -> int | None:
        return self.progress.stat().st_mtime_ns if self.progress.exists() else None


@dataclass
class Ended:
    """A job that needs no more tries: done, or else why not, in a line."""

    job: Job
    done: bool
    why: str = ""


def import_ray() -> Any:
    """Ray, or a `UsageError` that says how to install it and what shows its work."""
    try:
        import ray
        import rich  # noqa: F401  # for cluster/board.py
    except ImportError as error:
        missing = str(error.name).capitalize()
        raise UsageError(f"{missing} is not installed: pip install -r requirements-cluster.txt") from None
    return ray


class Crew:
    """Runs jobs, in the order in which they are added; a context manager, behind which no process of them is left.

    Those of a lost worker may still be saving, for `guarded.GRACE_SECONDS`. A job that ends with another
    status than 0 is tried twice more. One that was killed, or whose worker or node was lost, is begun again, too; that
    counts as a try only where nothing had got on since it was begun.
    """

    def __init__(self, cluster: Cluster, *, device: str, replay_bytes: int, process_bytes: int):
        """Join the cluster, or start one on this machine; raises `UsageError` where there is none or no room.

        replay_bytes: of a run's replay memory, on the GPU where it has one.
        """
        self._ray = ray = import_ray()
        _connect(ray, cluster.address)
        try:
            self._gpu_limit, self.gpu_bytes_per_run = "GPUs", 0
            gpus = self._gpus_per_run(cluster.gpus_per_run, device, replay_bytes)
            of_gpu, of_cpu = 2 * process_bytes, process_bytes + replay_bytes  # there evaluations have their own process
            self.bytes_per_run = of_gpu if self.gpu_bytes_per_run else of_cpu
            self._needs = {"CPU": cluster.cpus_per_run, "GPU": gpus, "memory": float(self.bytes_per_run)}
            if not self.room():
                what = f"{cluster.cpus_per_run:g} cores, {gpus:g} GPUs and {self.bytes_per_run / 1e9:.1f} GB of memory"
                raise UsageError(f"no node has room for a run, which needs {what}; a smaller --replay-size needs less")
        except UsageError:
            ray.shutdown()
            raise
        self._threads = max(1, int(cluster.cpus_per_run))
        self._waiting: list[Job] = []
        self._running: dict[Any, Job] = {}
        self._task = ray.remote(max_retries=0)(run_guarded)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
        self._ray.shutdown()

    def room(self) -> int:
        """How many jobs there is room for at a time, on all nodes that are there now."""
        return sum(min(fits.values()) for fits in self._fits())

    def limits(self) -> str:
        """What keeps more jobs from running at a time, in words."""
        sums = {name: sum(fits[name] for fits in self._fits()) for name, need in self._needs.items() if need}
        return {"CPU": "cores", "GPU": self._gpu_limit, "memory": "memory"}[min(sums, key=lambda name: sums[name])]

    def _fits(self) -> list[dict[str, int]]:
        """For each node and resource, how many jobs fit."""
        needs = {name: need for name, need in self._needs.items() if need}
        nodes = [node["Resources"] for node in self._alive()]
        return [{name: _fit(name, node.get(name, 0), need) for name, need in needs.items()} for node in nodes]

    def _alive(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _gpus_per_run(self, asked: float | None, device: str, replay_bytes: int) -> float:
        """The GPUs that each run is given: what is asked for, and at least the share whose memory it needs."""
        there = self._ray.cluster_resources().get("GPU", 0)
        if asked and device == "cpu":
            raise UsageError(f"--gpus-per-run {asked:g} does nothing with --device cpu; leave one of them out")
        if asked and asked > 1 and asked % 1:
            raise UsageError(f"--gpus-per-run {asked:g} cannot be: it must be a whole number or below 1")
        gpus = float(there > 0 and device != "cpu") if asked is None else asked
        if device.startswith("cuda") and not gpus:
            raise UsageError(f"--device {device}: no run is given a GPU; the cluster has {there:g}, see --gpus-per-run")
        if sys.platform == "darwin":  # a GPU there shares the machine's memory
            return gpus
        self.gpu_bytes_per_run = replay_bytes + RESERVE_BYTES if gpus else 0
        if gpus < 1 and gpus and there:  # several share one
            size = self._smallest_gpu_bytes()
            if not (runs := size // self.gpu_bytes_per_run):
                what = f"a run needs {self.gpu_bytes_per_run / 1e9:.1f} GB of a GPU, and one has {size / 1e9:.1f} GB"
                raise UsageError(f"{what}; a smaller --replay-size needs less")
            share = int(10_000 / runs) / 10_000  # Ray rounds to such steps, and up would be one run fewer
            if share > gpus:
                gpus, self._gpu_limit = share, "GPU memory"
        return gpus

    def _smallest_gpu_bytes(self) -> int:
        """The memory of the cluster's smallest GPU, asked on every node: Ray does not know it. Raises `UsageError`."""
        on = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        ask = self._ray.remote(num_cpus=0, max_retries=0)(smallest_gpu_bytes)
        nodes = [node["NodeID"] for node in self._alive() if node["Resources"].get("GPU")]
        asked = [ask.options(scheduling_strategy=on(node, soft=False)).remote() for node in nodes]
        try:
            return int(min(self._ray.get(asked, timeout=ASK_SECONDS)))
        except self._ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1]
            raise UsageError(
                f"a node does not say how large its GPUs are ({why}); --gpus-per-run 1 asks none"
            ) from None

    def add(self, job: Job, *, first: bool = False) -> None:
        """Have a job run when its turn comes, behind the others or before them."""
        self._waiting.insert(0 if first else len(self._waiting), job)

    @property
    def doing(self) -> dict[str, str]:
        """What is done for each run at this moment."""
        return {job.run: job.doing for job in self._running.values()}

    @property
    def idle(self) -> bool:
        return not (self._running or self._waiting)

    def poll(self, seconds: float) -> list[Ended]:
        """Start what there is room for, wait so long or until a job ends; returns those that need no more tries."""
        self._start()
        if not self._running:
            time.sleep(seconds)
            return []
        running = [*self._running]
        self._ray.wait(running, timeout=seconds)
        ready, _ = self._ray.wait(running, num_returns=len(running), timeout=0)
        return [ended for ended in map(self._end, ready) if ended]

    def _start(self) -> None:
        due = [job for job in self._waiting if job.not_before <= time.monotonic()]
        for job in due[: max(0, self.room() - len(self._running))]:
            self._waiting.remove(job)
            job.changed = job.progress_changed()
            needs = {"num_cpus": self._needs["CPU"], "num_gpus": self._needs["GPU"], "memory": self._needs["memory"]}
            task = self._task.options(**needs, name=job.run)
            command = [str(ROOT / job.script), *job.flags]
            reference = task.remote(command, str(job.log), str(ROOT), self._threads, bool(self._needs["GPU"]))
            self._running[reference] = job

    def _end(self, reference: Any) -> Ended | None:
        job, status, error = self._running.pop(reference), None, ""
        try:
            status = self._ray.get(reference)
        except self._ray.exceptions.RayError as lost:  # the worker was killed, or its node is gone
            error = str(lost).strip().splitlines()[-1]
        if status == 0:
            return Ended(job, True)
        killed = status is None or status < 0 or status in KILLED
        if killed and job.progress_changed() != job.changed:
            job.tries = 0
        else:
            job.tries += 1
        if job.tries > len(PAUSES_SECONDS):
            return Ended(job, False, last_line(job.log) or error)
        job.not_before = time.monotonic() + PAUSES_SECONDS[max(0, job.tries - 1)]
        self.add(job)
        return None

    def stop(self) -> bool:
        """Have every running job save and end; returns whether all did in time."""
        self._waiting.clear()
        running = [*self._running]
        for reference in running:
            self._ray.cancel(reference)
        late = self._ray.wait(running, num_returns=len(running), timeout=STOP_SECONDS)[1] if running else []
        self._running.clear()
        return not late


def _fit(name: str, there: float, need: float) -> int:
    """How many runs fit into what a node has of a resource; one that shares a GPU does not lie across two."""
    return int(there) * int(1 / need) if name == "GPU" and need < 1 else int(there / need)


def _connect(ray: Any, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray tells its makers
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        # Else Ray kills a training with its driver, before cluster/guarded.py has it save. Other clusters are started
        # with that (docs/cluster.md): their workers do not see what is set here.
        os.environ.setdefault("RAY_kill_child_processes_on_worker_exit", "false")
        memory = available_bytes(choose_device("cpu"))
        local = {"_memory": memory, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        ray.init(address="local", num_cpus=usable_cores(), **local, **quiet)
        return
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            with socket.create_connection((host, int(port)), CONNECT_SECONDS) as probe:  # Ray itself tries for minutes
                if os.environ.get("RAY_USE_TLS", "0") == "0":
                    probe.sendall(HTTP2_HELLO)
                    if probe.makefile("rb").read(4)[3:] != HTTP2_SETTINGS:
                        raise ConnectionError("something else does")
        ray.init(address=address, **quiet)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        what = f"--address {address}: no Ray cluster answers there ({' '.join(str(error).split())[:200]})"
        raise UsageError(f"{what}; ray start begins one, and prints its address") from None


def last_line(log: Path) -> str:
    """The last line that a job printed, of what a terminal would show."""
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line.rsplit("\r", 1)[-1].strip() for line in text.strip().splitlines()]
    return lines[-1] if lines else ""
