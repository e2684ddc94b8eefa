"""Agent steps per second, beside Stable-Baselines3's DQN."""

import importlib.util
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import ale_py

from benchmarks.common import EPSILON, GAME, MINIBATCH, WARM_UP_STEPS, BenchmarkConfig, in_turn, spread, started
from machine.devices import choose_device
from q_agent_train import step


def rate(advance: Callable[[], object], steps: Callable[[], int], config: BenchmarkConfig) -> float:
    """Agent steps per second of a program that `advance` moves on and waits for, after the warm-up."""
    for seconds in (config.warm_up_seconds, config.seconds):
        began, before = time.perf_counter(), steps()
        while time.perf_counter() - began < seconds:
            advance()
    return (steps() - before) / (time.perf_counter() - began)


def measure_ours(config: BenchmarkConfig, changes: Mapping[str, Any] = {}) -> float:
    """Agent steps per second of this project's training loop, with these changes to its flags."""
    with closing(started(config, **changes)) as training:
        return rate(lambda: step(training), lambda: training.agent_steps, config)


def measure_stable_baselines3(config: BenchmarkConfig) -> float:
    """Agent steps per second of Stable-Baselines3's DQN with its own preprocessing."""
    import gymnasium
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)
    model = DQN(
        "CnnPolicy",
        VecFrameStack(make_atari_env(f"{GAME}NoFrameskip-v4", n_envs=1, seed=0), n_stack=4),
        buffer_size=config.replay_size,
        learning_starts=WARM_UP_STEPS,
        batch_size=MINIBATCH,
        train_freq=4,
        gradient_steps=1,
        target_update_interval=10_000,
        exploration_initial_eps=EPSILON,
        exploration_final_eps=EPSILON,
        device=str(choose_device(config.device)),
    )
    model.learn(WARM_UP_STEPS)
    return rate(lambda: model.learn(100, reset_num_timesteps=False), lambda: model.num_timesteps, config)


PROGRAMS = {"ours": measure_ours, "stable_baselines3": measure_stable_baselines3}


def compare(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure every program in turn, round by round, and print the table; returns the result as an object."""
    programs = dict(PROGRAMS)
    if importlib.util.find_spec("stable_baselines3") is None:
        print("stable_baselines3 is not installed and left out: pip install -r requirements-benchmark.txt")
        del programs["stable_baselines3"]
    rates = in_turn(programs, config)
    result: dict[str, Any] = {}
    print(f"{'agent steps per second':24} {'median':>8} {'minimum':>8} {'maximum':>8}")
    for name, values in rates.items():
        result[name] = row = spread(values)
        print(f"{name:24} {row['median']:8.1f} {row['minimum']:8.1f} {row['maximum']:8.1f}")
    if "stable_baselines3" in result:
        result["ratio"] = result["ours"]["median"] / result["stable_baselines3"]["median"]
        ratios = [ours / peer for ours, peer in zip(*rates.values(), strict=True)]
        print(f"ratio of the medians {result['ratio']:.2f}; round by round {min(ratios):.2f} to {max(ratios):.2f}")
    return result
