"""Where the time of a vector step goes, next to what the hardware could do; and the limit that this sets to speed."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import BenchmarkConfig, milliseconds_of, started
from q_agent_train import step
from training import Training

PROFILED_STEPS = 5


def updates_at_once(training: Training) -> int:
    """Updates that a vector step makes together, where it makes any."""
    return max(1, training.parameters.num_envs // training.parameters.update_frequency)


def without_learning(training: Training) -> dict[str, Callable[[], Any]]:
    """The parts of a vector step but for learning, each to be timed alone."""
    games, memory, parameters = training.games, training.memory, training.parameters
    count, generator = updates_at_once(training) * parameters.minibatch_size, np.random.default_rng(0)
    actions = generator.integers(games.num_actions, size=parameters.num_envs)
    greedy = np.zeros(parameters.num_envs)

    def emulate() -> None:
        games.send(actions)
        games.receive()

    return {
        "emulators alone": emulate,
        "acting": lambda: training.agent.act(memory.latest_states(), greedy, generator),
        "sampling": lambda: memory.sample(count, generator),
    }


def update_gigaflops(config: BenchmarkConfig, changes: Mapping[str, Any] = {}) -> float:
    """Floating-point operations, in 1e9, of the multiplications of one update; counted on the CPU, on any device."""
    with closing(started(replace(config, device="cpu"), **changes)) as training:
        updates = updates_at_once(training)
        drawn = training.memory.sample(updates * training.parameters.minibatch_size, np.random.default_rng(0))
        with FlopCounterMode(display=False) as counter:
            training.agent.learn(drawn)
    return counter.get_total_flops() / updates / 1e9


def matrix_gigaflops(device: torch.device) -> float:
    """What the hardware does in a large float32 matrix product, in 1e9 operations per second."""
    matrix = torch.randn(2048, 2048, device=device)
    return 2 * 2048**3 / milliseconds_of(lambda: matrix @ matrix, device) / 1e6


def limit(config: BenchmarkConfig, changes: Mapping[str, Any] = {}) -> float:
    """Agent steps per second of this project if its updates took no longer than a matrix product of as many operations.

    Emulators, acting and sampling take what they take, one after the other.
    """
    with closing(started(config, **changes)) as training:
        device, parameters = training.memory.device, training.parameters
        emulators, acting, sampling = (milliseconds_of(each, device) for each in without_learning(training).values())
    sampling /= updates_at_once(training)  # of one update
    learning = update_gigaflops(config, changes) / matrix_gigaflops(device) * 1e3
    updates = parameters.gradient_steps / parameters.update_frequency  # of one agent step
    return 1e3 / ((emulators + acting) / parameters.num_envs + updates * (sampling + learning))


def parts(config: BenchmarkConfig) -> list[dict[str, Any]]:
    """Time the parts of one vector step, each alone, and print them next to what the hardware could do."""
    training = started(config)
    agent, memory, device, updates = training.agent, training.memory, training.memory.device, updates_at_once(training)
    drawn = memory.sample(updates * training.parameters.minibatch_size, np.random.default_rng(0))

    def target_pass() -> None:
        with torch.no_grad():
            agent.target_network(drawn.next_states)

    timed: dict[str, Callable[[], Any]] = without_learning(training) | {
        f"learning, {updates} updates": lambda: agent.learn(drawn),
        "  of which target pass": target_pass,
        "  of which optimizer": lambda: [agent.optimizer.step() for _ in range(updates)],
        "whole vector step": lambda: step(training),
    }
    begun, times = agent.state_dict(), {}
    for name, function in timed.items():
        times[name] = milliseconds_of(function, device)
        agent.load_state_dict(begun)  # the optimizer alone would drive the weights out of all bounds
    emulators, acting, sampling, learning, _, _, whole = times.values()
    print(f"{f'one step of {config.num_envs} environments':28} {'ms':>8} {'share':>7}")
    for name, milliseconds in times.items():
        print(f"{name:28} {milliseconds:8.2f} {milliseconds / whole:7.0%}")
    rate, update = matrix_gigaflops(device), update_gigaflops(config)
    print(f"matrix products: {rate:,.0f} GFLOP/s; one update is {update:.2f} GFLOP, so {update / rate * 1e3:.2f} ms")
    print(f"one update takes {learning / updates:.2f} ms, {learning / updates / (update / rate * 1e3):.2f} times that")
    least = emulators + acting + sampling + updates * update / rate * 1e3
    alone, together, at_most = (config.num_envs / milliseconds * 1e3 for milliseconds in (emulators, whole, least))
    print(f"agent steps per second: emulators alone {alone:,.0f}, everything {together:,.0f}", end="")
    print(f", which is {together / at_most:.0%} of the limit of {at_most:,.0f} with updates at the matrix rate")
    with torch.profiler.profile() as profile:
        for _ in range(PROFILED_STEPS):
            step(training)
    where, rows = ("cpu", 12) if device.type == "cpu" else ("device", 40)
    table = profile.key_averages().table(f"self_{where}_time_total", row_limit=rows, max_name_column_width=60)
    print(f"PyTorch's profiler, {PROFILED_STEPS} vector steps:", table, sep="\n")
    training.close()
    return [{"part": name.strip(), "milliseconds": milliseconds} for name, milliseconds in times.items()]
