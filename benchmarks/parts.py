"""Where the time of a vector step goes, next to what the hardware could do."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import BenchmarkConfig, milliseconds_of, print_table, started
from q_agent_train import step
from training import Training

PROFILED_STEPS = 5


def parts(config: BenchmarkConfig) -> None:
    """Time the parts of one vector step, each alone, and print them next to what the hardware could do."""
    with closing(started(config)) as training:
        device, begun, times = training.memory.device, training.agent.state_dict(), {}
        for name, function in parts_of(training).items():
            times[name] = milliseconds_of(function, device)
            training.agent.load_state_dict(begun)  # the optimizer alone would drive the weights out of all bounds
        table = pd.DataFrame(times.items(), columns=["part", "ms"])
        emulators, acting, sampling, learning, _, _, whole = table["ms"]
        table["share"] = table["ms"] / whole
        print_table(table)
        matrix, update = torch.randn(2048, 2048, device=device), update_gigaflops(config)
        gigaflops = 2 * 2048**3 / milliseconds_of(lambda: matrix @ matrix, device) / 1e6
        print(f"matrix products: {gigaflops:,.0f} GFLOP/s; one update has {update:.2f} GFLOP")
        ideal = updates_of(training) * update / gigaflops * 1e3
        print(f"learning would take {ideal:.2f} ms at that rate, and takes {learning:.2f} ms")
        least = emulators + acting + sampling + ideal
        rate, limit = config.num_envs / whole * 1e3, config.num_envs / least * 1e3
        print(f"agent steps per second: {rate:,.0f}, {rate / limit:.0%} of the {limit:,.0f} with learning at that rate")
        with torch.profiler.profile() as profile:
            for _ in range(PROFILED_STEPS):
                step(training)
    where, rows = ("cpu", 12) if device.type == "cpu" else ("device", 40)
    listed = profile.key_averages().table(f"self_{where}_time_total", row_limit=rows, max_name_column_width=60)
    print(f"PyTorch's profiler, {PROFILED_STEPS} vector steps:", listed, sep="\n")


def updates_of(training: Training) -> int:
    """Updates that a vector step makes together, where it makes any."""
    return max(1, training.parameters.num_envs // training.parameters.update_frequency)


def parts_of(training: Training) -> dict[str, Callable[[], Any]]:
    """The parts of a vector step, each to be timed alone, and the whole."""
    games, memory, agent, generator = training.games, training.memory, training.agent, np.random.default_rng(0)
    actions, greedy = generator.integers(games.num_actions, size=games.num_envs), np.zeros(games.num_envs)
    updates = updates_of(training)
    count = updates * training.parameters.minibatch_size
    batch = memory.sample(count, generator)

    def emulate() -> None:
        games.send(actions)
        games.receive()

    def target_pass() -> None:
        with torch.no_grad():
            agent.target_network(batch.next_states)

    return {
        "emulators alone": emulate,
        "acting": lambda: agent.act(memory.latest_states(), greedy, generator),
        "sampling": lambda: memory.sample(count, generator),
        f"learning, {updates} updates": lambda: agent.learn(batch),
        "of which target pass": target_pass,
        "of which optimizer": lambda: [agent.optimizer.step() for _ in range(updates)],
        "whole vector step": lambda: step(training),
    }


def update_gigaflops(config: BenchmarkConfig) -> float:
    """Floating-point operations, in 1e9, of the multiplications of one update; counted on the CPU, on any device."""
    with closing(started(replace(config, num_envs=4, replay_size=4_000, device="cpu"))) as training:
        batch = training.memory.sample(training.parameters.minibatch_size, np.random.default_rng(0))
        with FlopCounterMode(display=False) as counter:
            training.agent.learn(batch)
    return counter.get_total_flops() / 1e9
