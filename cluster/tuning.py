"""Ray Tune as sweeps and searches use it: joining a cluster, what a trial asks for, running all trials."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

# No usage reports to Ray's makers; a table of chosen columns, and no files of them; Ctrl-C as everywhere.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
# Else Ray kills a training with its driver, before it saves. A cluster that is started elsewhere does not see it.
os.environ.setdefault("RAY_kill_child_processes_on_worker_exit", "false")

import ray
from ray import tune

from cluster.settings import TrainingFlags
from cluster.trials import run_trial
from runtime.devices import available_bytes, choose_device, usable_cores
from runtime.exits import UsageError
from runtime.memory_size import BYTES_PER_TRANSITION

PROCESS_BYTES = 700_000_000  # of a training, without its replay memory
CONNECT_SECONDS, MAX_FAILURES = 20, 2  # a run that fails is tried so many times more


def connect(address: str | None) -> None:
    """Join a cluster, or start one on this machine; raises `UsageError` where none answers."""
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        options |= {"_memory": available_bytes(choose_device("cpu")), "object_store_memory": 80 * 2**20}
        options |= {"num_cpus": usable_cores(), "include_dashboard": False}
    else:  # ray.init itself waits for minutes.
        command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
        try:
            subprocess.run(command, capture_output=True, timeout=CONNECT_SECONDS, check=True)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
            what = f"no Ray cluster answers at --address {address} within {CONNECT_SECONDS} seconds"
            raise UsageError(f"{what}; ray start begins one, and prints its address") from None
    ray.init(address=address or "local", **options)


def resources(config: TrainingFlags, replay_size: int) -> dict[str, float]:
    """What a trial asks Ray for: cores, GPUs, bytes of memory; raises `UsageError` where no node has that."""
    nodes, gpus = [node["Resources"] for node in ray.nodes() if node["Alive"]], config.gpus_per_run
    if gpus is None:
        gpus = float(config.device != "cpu" and any(node.get("GPU") for node in nodes))
    # On a GPU the replay memory is the GPU's, and an evaluation in training has a process of its own.
    memory = 2 * PROCESS_BYTES if gpus else PROCESS_BYTES + replay_size * BYTES_PER_TRANSITION
    needs = {"CPU": config.cpus_per_run, "GPU": gpus, "memory": float(memory)}
    if gpus % 1 * (gpus > 1) or not any(all(node.get(name, 0) >= needs[name] for name in needs) for node in nodes):
        what = f"{config.cpus_per_run:g} cores, {gpus:g} GPUs and {memory / 1e9:.1f} GB of memory"
        raise UsageError(f"no node has room for a run, which needs {what}; choose a smaller --replay-size")
    return needs


def search_tools(folder: Path, seed: int, first_stage: int) -> dict[str, Any]:
    """For Tune: Optuna's study as the search algorithm, and what stops trials from the stage `first_stage` on."""
    import optuna
    from ray.tune.schedulers import MedianStoppingRule
    from ray.tune.search.optuna import OptunaSearch

    warnings.simplefilter("ignore")  # Optuna's, of its pictures and of what a trial reports again after a restart
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    # No trial pauses for others, because Tune would begin it anew.
    rule: dict[str, Any] = {"grace_period": first_stage, "min_samples_required": 5, "min_time_slice": float("inf")}
    scheduler = MedianStoppingRule("training_iteration", **rule)
    named = {"trial_name_creator": lambda trial: f"trial-{trial.trial_id}", "metric": "score", "mode": "max"}
    return {"search_alg": OptunaSearch(storage=storage, study_name="search", seed=seed), "scheduler": scheduler} | named


def run_all(config: TrainingFlags, folder: Path, replay_size: int, space: dict[str, Any], **more: Any) -> Any:
    """Run all trials, or resume them; gives Tune's results, and which failed why. space, more: for Tune."""
    connect(config.address)
    try:
        trainable = tune.with_resources(run_trial, resources(config, replay_size))
        if tune.Tuner.can_restore(str(folder / "tune")):
            tuner = tune.Tuner.restore(str(folder / "tune"), trainable, restart_errored=True)
        else:
            reporter = tune.CLIReporter(metric_columns=["score", "time_total_s"], max_report_frequency=30)
            run: dict[str, Any] = {"name": "tune", "storage_path": str(folder), "progress_reporter": reporter}
            run_config = tune.RunConfig(**run, verbose=1, failure_config=tune.FailureConfig(max_failures=MAX_FAILURES))
            tuning = tune.TuneConfig(trial_dirname_creator=more["trial_name_creator"], **more)
            tuner = tune.Tuner(trainable, param_space=space, tune_config=tuning, run_config=run_config)
        grid = tuner.fit()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the runs save and end; the same command resumes them") from None
    finally:
        ray.shutdown()
    results = [grid[number] for number in range(len(grid))]
    whys = {Path(one.path).name: str(one.error).split("RuntimeError: ")[-1].strip() for one in results if one.error}
    named = "; ".join(f"{name} ({why})" for name, why in whys.items())
    return results, f"{len(whys)} of {len(results)} failed: {named}; the same command retries them" if whys else ""
