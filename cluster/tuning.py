"""Ray Tune as sweeps and searches use it: joining a cluster, what a trial asks for, running all trials."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Ray reads these when it is imported: no word to its makers; a table of chosen columns; no tables beside the runs' own;
# Ctrl-C as everywhere; its state on the disk each second, so that a kill loses none of the trials that were begun.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
os.environ |= {"TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_GLOBAL_CHECKPOINT_S": "1"}
# Else Ray kills a training with its driver, before cluster/supervised.py has it save. Other clusters are started with
# that (docs/cluster.md): their workers do not see what is set here.
os.environ.setdefault("RAY_kill_child_processes_on_worker_exit", "false")

import ray
from ray import tune

from cluster.settings import TrainingFlags
from cluster.trials import run_trial
from machine.devices import available_bytes, choose_device, usable_cores
from machine.exits import RunError, UsageError
from replay_memory import BYTES_PER_TRANSITION

PROCESS_BYTES = 700_000_000  # of a training, beside its replay memory
OBJECT_STORE_BYTES = 80 * 2**20  # nothing is sent through it; Ray's own choice is a third of the memory
CONNECT_SECONDS = 20
MAX_FAILURES = 2  # a run that fails is tried so many times more
TABLE_SECONDS = 30


def connect(address: str | None) -> None:
    """Join a cluster, or start one on this machine; raises `UsageError` where none answers."""
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        local = {"_memory": available_bytes(choose_device("cpu")), "object_store_memory": OBJECT_STORE_BYTES}
        ray.init(address="local", num_cpus=usable_cores(), include_dashboard=False, **local, **quiet)
        return
    try:  # ray.init waits for minutes.
        command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
        subprocess.run(command, capture_output=True, timeout=CONNECT_SECONDS, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        what = f"--address {address}: no Ray cluster answers there within {CONNECT_SECONDS} seconds"
        raise UsageError(f"{what}; ray start begins one, and prints its address") from None
    ray.init(address=address, **quiet)


def resources(config: TrainingFlags, replay_size: int) -> dict[str, float]:
    """What a trial asks Ray for: cores, GPUs, bytes of memory; raises `UsageError` where no node has that.

    On a GPU the replay memory is the GPU's, and an evaluation in training has a process of its own.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = config.gpus_per_run
    if gpus is None:
        gpus = float(config.device != "cpu" and any(node.get("GPU") for node in nodes))
    if (gpus and config.device == "cpu") or (not gpus and config.device.startswith("cuda")) or (gpus > 1 and gpus % 1):
        what = f"--gpus-per-run {gpus:g} does not go with --device {config.device}"
        raise UsageError(f"{what}: it is below 1 or whole, 0 with cpu alone")
    memory = 2 * PROCESS_BYTES if gpus else PROCESS_BYTES + replay_size * BYTES_PER_TRANSITION
    needs = {"CPU": config.cpus_per_run, "GPU": gpus, "memory": float(memory)}
    if not any(all(node.get(name, 0) >= need for name, need in needs.items()) for node in nodes):
        words = f"{config.cpus_per_run:g} cores, {gpus:g} GPUs and {memory / 1e9:.1f} GB of memory"
        raise UsageError(f"no node has room for a run, which needs {words}; a smaller --replay-size needs less")
    return needs


def run_all(
    config: TrainingFlags, file: Path, replay_size: int, space: dict[str, Any], name: Callable[[Any], str], **more: Any
) -> Any:
    """Run all trials to their ends, or resume them; returns Tune's results. A `RunError` names those that failed.

    space: Tune's param_space. name: gives the name of Tune's object of a trial. more: for `TuneConfig`.
    """
    try:
        connect(config.address)
        trainable = tune.with_resources(run_trial, resources(config, replay_size))
        if tune.Tuner.can_restore(str(file.parent / "tune")):
            tuner = tune.Tuner.restore(str(file.parent / "tune"), trainable, restart_errored=True)
        else:
            columns = {"agent_steps": "agent steps", "mean_of_100": "mean of 100", "score": "score"}
            run_config = tune.RunConfig(
                name="tune",
                storage_path=str(file.parent),
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                verbose=1,
                progress_reporter=tune.CLIReporter(metric_columns=columns, max_report_frequency=TABLE_SECONDS),
            )
            tuning = tune.TuneConfig(trial_name_creator=name, trial_dirname_creator=name, **more)
            tuner = tune.Tuner(trainable, param_space=space, tune_config=tuning, run_config=run_config)
        return tuner.fit()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the runs save and end; the same command resumes them") from None
    finally:
        ray.shutdown()


def check_results(results: Any) -> None:
    """Raise a `RunError` that names the trials that failed."""
    failed = {Path(result.path).name: str(result.error).strip().splitlines()[-1] for result in results if result.error}
    if failed:
        named = "; ".join(f"{name} ({why.removeprefix('RuntimeError: ')})" for name, why in failed.items())
        raise RunError(f"{len(failed)} of {len(results)} runs failed: {named}; the same command tries again")
