"""Agent steps per second, next to Stable-Baselines3's DQN, and with the multiplications in bfloat16."""

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Any

import ale_py

from atari import display_name
from benchmarks.common import (
    EPSILON,
    MINIBATCH,
    PEER,
    RATE_HEADER,
    WARM_UP_STEPS,
    BenchmarkConfig,
    alone,
    in_turn,
    peer_is_there,
    rate_columns,
    spread,
    started,
)
from benchmarks.parts import limit
from q_agent_train import step
from runtime.devices import bfloat16_instructions, choose_device
from wrappers import rom_name

BFLOAT16 = "ours, bfloat16"


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


def peer_games(game: str, count: int, seed: int, **more: Any) -> Any:
    """Games as Stable-Baselines3 plays them, side by side, four frames a state; `more` for its `make_atari_env`."""
    import gymnasium
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)
    name = f"{display_name(rom_name(game))}NoFrameskip-v4"
    return VecFrameStack(make_atari_env(name, n_envs=count, seed=seed, **more), n_stack=4)


def measure_stable_baselines3(config: BenchmarkConfig, changes: Mapping[str, Any] = {}) -> float:
    """Agent steps per second of Stable-Baselines3's DQN with its own preprocessing, with these changes."""
    from stable_baselines3 import DQN

    constants: dict[str, Any] = {
        "policy": "CnnPolicy",
        "buffer_size": config.replay_size,
        "learning_starts": WARM_UP_STEPS,
        "batch_size": MINIBATCH,
        "train_freq": 4,
        "gradient_steps": 1,
        "target_update_interval": 10_000,
        "exploration_initial_eps": EPSILON,
        "exploration_final_eps": EPSILON,
        **changes,
    }
    model = DQN(env=peer_games(config.game, 1, seed=0), device=str(choose_device(config.device)), **constants)
    model.learn(WARM_UP_STEPS)
    return rate(lambda: model.learn(100, reset_num_timesteps=False), lambda: model.num_timesteps, config)


def compare(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure every program in turn, round by round, and print the table; returns the result as an object."""
    programs: dict[str, Callable[[BenchmarkConfig], float]] = {"ours": measure_ours}
    if has_bfloat16 := bool(bfloat16_instructions(choose_device(config.device))):
        programs[BFLOAT16] = partial(measure_ours, changes={"precision": "bfloat16"})
    if peer_is_there():
        programs[PEER] = measure_stable_baselines3
    rates, at_most = in_turn(programs, config), alone(limit, config)
    result: dict[str, Any] = {name: spread(values) for name, values in rates.items()}
    print(f"{'agent steps per second':24} {RATE_HEADER}")
    for name, row in result.items():
        print(f"{name:24} {rate_columns(row | {'limit': at_most})}")
    if not has_bfloat16:
        print(f"{BFLOAT16:24} unsupported: no instructions for it here")
    print(f"limit of this project, with updates at the rate of float32 matrix products: {at_most:.1f}")
    result["limit"] = at_most
    if PEER in rates:
        result["ratio"] = result["ours"]["median"] / result[PEER]["median"]
        ratios = [ours / peer for ours, peer in zip(rates["ours"], rates[PEER], strict=True)]
        print(f"ratio of the medians {result['ratio']:.2f}; round by round {min(ratios):.2f} to {max(ratios):.2f}")
    return result
