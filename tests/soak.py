"""Kill a training run again and again, and compare its end with an uninterrupted one: python tests/soak.py --help"""

import csv
import hashlib
import os
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

os.environ.pop("DQN_WEBHOOK_URL", None)  # no chat is told of these runs

import runtime.run
import training
from q_agent_train import Config, train
from runtime.checkpoint import CheckpointFile

# Past the memory's wrap-around, across several evaluations with their fresh seeds, a checkpoint every half second.
SMALL = Config(
    game="RoadRunner",  # its games are short
    network="nips2013",  # a third of the large one, to compute and to save
    num_envs=4,
    replay_size=480,
    replay_start_size=240,
    minibatch_size=4,
    target_update_frequency=300,
    epsilon_decay_steps=1_000,
    evaluate_every=600,
    evaluation_games=1,
    save_every_games=1,
    steps=2_000,
    games=1_000,
    checkpoint_minutes=0.5 / 60,
    device="cpu",
)


RESEED_STEPS = 400  # instead of 250,000, so that a small run crosses several fresh seeds
LOG_EVERY_STEPS = 100  # instead of 10,000, so that it has rows in training.csv


def flags(config: Config) -> list[str]:
    """The config as command line flags."""
    usual = Config().as_json()
    values = {name: value for name, value in config.as_json().items() if value != usual[name]}
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in values.items())
    return [*(each for pair in pairs for each in pair), "--run-dir", str(config.run_dir)]


def start(config: Config) -> int:
    """Run `train(config)` in a child process that also leaves the digest of its memory; returns its process id."""
    process = os.fork()
    if process:
        return process
    sys.stdout = sys.stderr = open(os.devnull, "w")
    training.RESEED_STEPS = RESEED_STEPS
    runtime.run.LOG_EVERY_STEPS = LOG_EVERY_STEPS
    close = training.Training.close

    def close_and_tell(self: training.Training) -> None:
        arrays = {"frames": self.memory.frames.cpu().numpy()} | vars(self.memory)
        digest = hashlib.sha256()
        for name in sorted(name for name, array in arrays.items() if isinstance(array, np.ndarray)):
            digest.update(name.encode() + arrays[name].tobytes())
        assert config.run_dir
        (config.run_dir / "memory.sha256").write_text(digest.hexdigest())
        close(self)

    training.Training.close = close_and_tell  # type: ignore[method-assign]
    status = 1
    try:
        train(config)
        status = 0
    finally:
        os._exit(status)


def hashed(value: Any) -> Any:
    """The same with every tensor in it replaced by its digest, so that == compares all of it."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: hashed(item) for key, item in value.items()}
    return [hashed(item) for item in value] if isinstance(value, list) else value


def end_of(run_dir: Path) -> dict[str, Any]:
    """All that a run ended with and that must not depend on interruptions."""
    state, fault = CheckpointFile(run_dir).load()
    assert fault is None
    end = {name: hashed(value) for name, value in state["training"].items()}
    for name, of_the_clock in (("games.csv", "seconds"), ("training.csv", "steps_per_second")):
        with open(run_dir / name, newline="") as file:
            end[name] = [{**row, of_the_clock: ""} for row in csv.DictReader(file)]
    files = ("evaluations.csv", "memory.sha256", "model.pt", "best.pt")
    return end | {name: hashlib.sha256((run_dir / name).read_bytes()).hexdigest() for name in files}


def differences(run: Path, other: Path) -> list[str]:
    """Names of what two runs ended with differently."""
    first, second = end_of(run), end_of(other)
    return [name for name in first if first[name] != second[name]]


def interrupt(config: Config, kills: int, generator: np.random.Generator, longest_seconds: float) -> int:
    """Run to the end through up to `kills` SIGKILLs, half of them while a checkpoint is written; returns how many."""
    assert config.run_dir
    appearing = config.run_dir / ".checkpoint.pt.tmp"
    for done in range(kills):
        process = start(config)
        deadline = time.monotonic() + generator.uniform(0.1, longest_seconds)
        patience = 2.0 if generator.random() < 0.5 else 0.0  # so long it waits for a write to kill
        while time.monotonic() < deadline + patience * (not appearing.exists()):
            finished, status = os.waitpid(process, os.WNOHANG)
            if finished:
                assert status == 0, f"the run failed with status {status}"
                return done
            time.sleep(0.0005 if time.monotonic() > deadline else 0.01)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert os.waitpid(start(config), 0)[1] == 0, "the run failed"
    return kills


def soak(kills: int = 100, seed: int = 0) -> None:
    """Kill small runs at random moments, half of them inside the writing of a checkpoint, and resume them each time.

    Prints what differed from an uninterrupted run; exit status 1 if anything did.

    Args:
        kills: SIGKILLs in all; when a run ends before them, another one starts, with another seed.
        seed: Seed of the first run and of the moments of the kills.
    """
    generator, done, run = np.random.default_rng(seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        while done < kills:
            whole, killed = Path(folder) / f"whole{run}", Path(folder) / f"killed{run}"
            config = replace(SMALL, seed=seed + run)
            assert os.waitpid(start(replace(config, run_dir=whole)), 0)[1] == 0, "the uninterrupted run failed"
            done += interrupt(replace(config, run_dir=killed), kills - done, generator, longest_seconds=6.0)
            different = differences(whole, killed)
            run += 1
            print(f"run {run}, {done} kills: different at the end: {', '.join(different) or 'nothing'}", flush=True)
            if different:
                sys.exit(1)


if __name__ == "__main__":
    tyro.cli(soak)
