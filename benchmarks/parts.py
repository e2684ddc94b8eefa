"""Where the time of a vector step goes, beside what the hardware could do."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from atari import FRAME_SIZE, HISTORY_FRAMES
from benchmarks.common import GAME, MINIBATCH, BenchmarkConfig, milliseconds_of, started
from model import QNetwork
from q_agent_train import step

PROFILED_STEPS = 5


def update_gigaflops() -> float:
    """Floating-point operations, in 1e9, of one update: both networks forward, the online network backward."""
    network = QNetwork(GAME, 4)
    states = torch.zeros((MINIBATCH, HISTORY_FRAMES, FRAME_SIZE, FRAME_SIZE), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        network(states).sum().backward()
        with torch.no_grad():
            network(states)
    return counter.get_total_flops() / 1e9


def matrix_gigaflops(device: torch.device) -> float:
    """What the hardware does in a large float32 matrix product, in 1e9 operations per second."""
    matrix = torch.randn(2048, 2048, device=device)
    return 2 * 2048**3 / milliseconds_of(lambda: matrix @ matrix, device) / 1e6


def parts(config: BenchmarkConfig) -> list[dict[str, Any]]:
    """Time the parts of one vector step, each alone, and print them beside what the hardware could do."""
    training = started(config)
    agent, memory, games, device = training.agent, training.memory, training.games, training.memory.device
    generator = np.random.default_rng(0)
    updates = max(1, config.num_envs // 4)
    drawn = memory.sample(updates * MINIBATCH, generator)
    actions, greedy = generator.integers(games.num_actions, size=config.num_envs), np.zeros(config.num_envs)

    def emulate() -> None:
        games.send(actions)
        games.receive()

    def target_pass() -> None:
        with torch.no_grad():
            agent.target_network(drawn.windows[:, 1:])

    timed: dict[str, Callable[[], Any]] = {
        "emulators alone": emulate,
        "acting": lambda: agent.act(memory.latest_states(), greedy, generator),
        "sampling": lambda: memory.sample(updates * MINIBATCH, generator),
        f"learning, {updates} updates": lambda: agent.learn(drawn),
        "  of which target pass": target_pass,
        "  of which optimizer": lambda: [agent.optimizer.step() for _ in range(updates)],
        "whole vector step": lambda: step(training),
    }
    begun, times = agent.state_dict(), {}
    for name, function in timed.items():
        times[name] = milliseconds_of(function, device)
        agent.load_state_dict(begun)  # the optimizer alone would drive the weights out of all bounds
    emulators, _, _, learning, _, _, whole = times.values()
    print(f"{f'one step of {config.num_envs} environments':28} {'ms':>8} {'share':>7}")
    for name, milliseconds in times.items():
        print(f"{name:28} {milliseconds:8.2f} {milliseconds / whole:7.0%}")
    rate, update = matrix_gigaflops(device), update_gigaflops()
    print(f"matrix products: {rate:,.0f} GFLOP/s; one update is {update:.2f} GFLOP, so {update / rate * 1e3:.2f} ms")
    print(f"one update takes {learning / updates:.2f} ms, {learning / updates / (update / rate * 1e3):.2f} times that")
    alone, together = (config.num_envs / milliseconds * 1e3 for milliseconds in (emulators, whole))
    print(f"agent steps per second: emulators alone {alone:,.0f}, everything {together:,.0f}")
    with torch.profiler.profile() as profile:
        for _ in range(PROFILED_STEPS):
            step(training)
    where, rows = ("cpu", 12) if device.type == "cpu" else ("device", 40)
    table = profile.key_averages().table(f"self_{where}_time_total", row_limit=rows, max_name_column_width=60)
    print(f"PyTorch's profiler, {PROFILED_STEPS} vector steps:", table, sep="\n")
    training.close()
    return [{"part": name.strip(), "milliseconds": milliseconds} for name, milliseconds in times.items()]
