"""Speed, side by side: python benchmark.py, python benchmark.py parts, python benchmark.py scaling"""

from machine.exits import UsageError, exit_with  # isort: skip  # first: Ctrl-C is one line now
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import ale_py
import numpy as np
import torch
import torch.utils.benchmark
import tyro
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from atari import FRAME_SIZE, HISTORY_FRAMES, Step
from config import MAX_ENVS, Hyperparameters
from machine.devices import choose_device, keep_freed_memory
from machine.files import PNG, Kind, check_output, writing_output
from machine.flags import Bounds, Count, Positive, check_bounds, parse
from model import QNetwork
from q_agent_train import set_up, step
from replay_memory import ReplayMemory
from training import Training

GAME = "Breakout"
EPSILON = 0.1  # for both: where a run spends most of its time
MINIBATCH = 32  # transitions per update, as in the paper
WARM_UP_STEPS = 1_000  # agent steps of random play, then as many seconds as --warm-up-seconds of learning, untimed
MEMORY_SIZES = (10_000, 100_000, 1_000_000)
RESULT = Kind("a benchmark's result", rb'\{\s*"(ours|rounds|environments)"|\[\s*\{\s*"part"')
ENVIRONMENTS = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class BenchmarkConfig:
    """Measure agent steps per second: this project beside its peer, its parts, or how it scales."""

    what: tyro.conf.Positional[Literal["compare", "parts", "scaling"]] = "compare"
    """compare: beside Stable-Baselines3's DQN. parts: where the time goes. scaling: environments and memory sizes."""
    rounds: Count = 5
    """Rounds of the comparison, in each every program once, in a process of its own; with scaling, of each point."""
    seconds: Positive = 20.0
    """Seconds of each measurement, after the warm-up."""
    warm_up_seconds: Annotated[float, Bounds(0)] = 5.0
    """Seconds of learning before each measurement."""
    num_envs: Annotated[int, Bounds(1, MAX_ENVS)] = 32
    """Games that this project plays side by side."""
    replay_size: Count = 48_000
    """Transitions in the replay memory of every program that is compared."""
    device: str = "auto"
    """Where the networks live: cuda, mps, cpu, or auto."""
    json: Path | None = None
    """Also write the result to this file: an object with ours, stable_baselines3 and ratio, or the rows."""
    figure: Path | None = None
    """With scaling: also draw it, to this PNG."""

    def check(self) -> None:
        check_bounds(self)
        if self.json:
            check_output(self.json, RESULT)
        if self.figure:
            if self.what != "scaling":
                raise UsageError(
                    f"--figure draws what scaling measures: python benchmark.py scaling --figure {self.figure}"
                )
            check_output(self.figure, PNG)


def _started(config: BenchmarkConfig) -> Training:
    """A training that has begun to learn: the paper's, but for a short warm-up and the last epsilon from the start."""
    keep_freed_memory()
    parameters = Hyperparameters(GAME, num_envs=config.num_envs, replay_size=config.replay_size)
    parameters = replace(parameters, replay_start_size=WARM_UP_STEPS, epsilon_start=EPSILON, epsilon_end=EPSILON)
    training = set_up(parameters, choose_device(config.device))
    training.begin()
    while training.agent_steps <= WARM_UP_STEPS:
        step(training)
    return training


def _rate(advance: Callable[[], object], steps: Callable[[], int], config: BenchmarkConfig) -> float:
    """Agent steps per second of a program that `advance` moves on and waits for, after the warm-up."""
    for seconds in (config.warm_up_seconds, config.seconds):
        began, before = time.perf_counter(), steps()
        while time.perf_counter() - began < seconds:
            advance()
    return (steps() - before) / (time.perf_counter() - began)


def measure_ours(config: BenchmarkConfig) -> float:
    """Agent steps per second of this project's training loop."""
    with closing(_started(config)) as training:
        return _rate(lambda: step(training), lambda: training.agent_steps, config)


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
    return _rate(lambda: model.learn(100, reset_num_timesteps=False), lambda: model.num_timesteps, config)


PROGRAMS = {"ours": measure_ours, "stable_baselines3": measure_stable_baselines3}


def _alone(measure: Callable[[BenchmarkConfig], float], config: BenchmarkConfig) -> float:
    """Run a measurement in a fresh process, so that nothing of one program helps or hinders another."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (config,))


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "minimum": min(values), "maximum": max(values)}


def compare(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure every program in turn, round by round, and print the table; returns the result as an object."""
    programs = dict(PROGRAMS)
    if importlib.util.find_spec("stable_baselines3") is None:
        print("stable_baselines3 is not installed and left out: pip install -r requirements-benchmark.txt")
        del programs["stable_baselines3"]
    rates: dict[str, list[float]] = {name: [] for name in programs}
    for name in tqdm([*programs] * config.rounds, desc="measuring", leave=False):
        rates[name].append(_alone(programs[name], config))
    result: dict[str, Any] = {}
    print(f"{'agent steps per second':24} {'median':>8} {'minimum':>8} {'maximum':>8}")
    for name, values in rates.items():
        result[name] = row = _spread(values)
        print(f"{name:24} {row['median']:8.1f} {row['minimum']:8.1f} {row['maximum']:8.1f}")
    if "stable_baselines3" in result:
        result["ratio"] = result["ours"]["median"] / result["stable_baselines3"]["median"]
        ratios = [ours / peer for ours, peer in zip(*rates.values(), strict=True)]
        print(f"ratio of the medians {result['ratio']:.2f}; round by round {min(ratios):.2f} to {max(ratios):.2f}")
    return result


def _milliseconds(function: Callable[[], Any], device: torch.device) -> float:
    """The median time of a call, in ms, with the device waited for."""
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    timer = torch.utils.benchmark.Timer(
        "function(); wait()", globals={"function": function, "wait": wait}, num_threads=torch.get_num_threads()
    )
    return timer.blocked_autorange(min_run_time=1.0).median * 1e3


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
    return 2 * 2048**3 / _milliseconds(lambda: matrix @ matrix, device) / 1e6


def parts(config: BenchmarkConfig) -> list[dict[str, Any]]:
    """Time the parts of one vector step, each alone, and print them beside what the hardware could do."""
    training = _started(config)
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
    times = {name: _milliseconds(function, device) for name, function in timed.items()}
    emulators, _, _, learning, _, _, whole = times.values()
    print(f"{f'one step of {config.num_envs} environments':28} {'ms':>8} {'share':>7}")
    for name, milliseconds in times.items():
        print(f"{name:28} {milliseconds:8.2f} {milliseconds / whole:7.0%}")
    rate, update = matrix_gigaflops(device), update_gigaflops()
    print(f"matrix products: {rate:,.0f} GFLOP/s; one update is {update:.2f} GFLOP, so {update / rate * 1e3:.2f} ms")
    print(f"one update takes {learning / updates:.2f} ms, {learning / updates / (update / rate * 1e3):.2f} times that")
    alone, together = (config.num_envs / milliseconds * 1e3 for milliseconds in (emulators, whole))
    print(f"agent steps per second: emulators alone {alone:,.0f}, everything {together:,.0f}")
    training.close()
    return [{"part": name.strip(), "milliseconds": milliseconds} for name, milliseconds in times.items()]


def measure_sampling(size: int) -> tuple[float, float]:
    """Bytes per transition and ms to sample 8 minibatches, of a full memory of `size` transitions."""
    memory, generator = ReplayMemory(size, 16), np.random.default_rng(0)
    frames = generator.integers(256, size=(16, FRAME_SIZE, FRAME_SIZE), dtype=np.uint8)
    nothing = Step(frames, np.zeros(16, np.float32), np.zeros(16, np.bool_), np.zeros(16, np.bool_), [])
    memory.start(0, frames)
    for _ in range(memory.num_rows):
        memory.append(np.zeros(16, np.int64), nothing)
    arrays = [memory.frames.numpy(), *(value for value in vars(memory).values() if isinstance(value, np.ndarray))]
    milliseconds = _milliseconds(lambda: memory.sample(8 * MINIBATCH, generator), memory.device)
    return sum(array.nbytes for array in arrays) / size, milliseconds


def scaling(config: BenchmarkConfig) -> dict[str, Any]:
    """Steps/s against the number of environments; bytes and sampling time against the memory's size."""
    result: dict[str, Any] = {"rounds": config.rounds, "environments": [], "memory": []}
    print(f"{'environments':>14} {'agent steps/s':>14} {'minimum':>9} {'maximum':>9}")
    for count in ENVIRONMENTS:
        row = _spread([_alone(measure_ours, replace(config, num_envs=count)) for _ in range(config.rounds)])
        result["environments"].append({"environments": count, **row})
        print(f"{count:14} {row['median']:14.1f} {row['minimum']:9.1f} {row['maximum']:9.1f}")
    print(f"{'memory':>14} {'ms for 256':>14} {'minimum':>9} {'maximum':>9} {'bytes each':>14}")
    for size in MEMORY_SIZES:
        sizes, times = zip(*(measure_sampling(size) for _ in range(config.rounds)), strict=True)
        row = _spread(list(times))
        result["memory"].append({"transitions": size, **row, "bytes_each": sizes[0]})
        print(f"{size:14,} {row['median']:14.2f} {row['minimum']:9.2f} {row['maximum']:9.2f} {sizes[0]:14.1f}")
    if config.figure:
        with writing_output(config.figure) as temporary:
            _draw(result).savefig(temporary, format="png", dpi=110)
    return result


def _draw(result: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figure.suptitle(f"median, minimum and maximum; measurements of each point: {result['rounds']}", fontsize=11)
    left, right = figure.subplots(1, 2)
    for panel, part, color in ((left, "environments", "#0072B2"), (right, "memory", "#D55E00")):
        rows = [list(row.values())[:4] for row in result[part]]  # where, then the spread
        places, medians, low, high = np.array(rows).T
        panel.errorbar(places, medians, yerr=[medians - low, high - medians], fmt="o-", capsize=4, color=color)
        panel.set_xscale("log")
        panel.set_xticks(places, [f"{place:,.0f}" for place in places])
        panel.minorticks_off()
        panel.set_ylim(0, 1.1 * high.max())
    left.set(title="Speed of training", xlabel="environments side by side", ylabel="agent steps per second")
    right.set(title="Time to sample 256 transitions", xlabel="transitions in the memory", ylabel="milliseconds")
    return figure


def hardware(device: torch.device) -> str:
    """One line that says what ran: processor or GPU, cores, threads, versions, date."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    models = [line.split(":")[1].strip() for line in cpuinfo.splitlines() if "model name" in line]
    gpu = [torch.cuda.get_device_name(device)] if device.type == "cuda" else []
    names = ", ".join([*gpu, (models or [platform.machine()])[0]])
    peer = ["stable-baselines3"] if importlib.util.find_spec("stable_baselines3") else []
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "ale-py", "numpy", *peer))
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{names}, {cores}, Python {platform.python_version()}, {packages}"


def main() -> None:
    config = parse(BenchmarkConfig)
    config.check()
    keep_freed_memory()
    print(hardware(choose_device(config.device)), time.strftime("%Y-%m-%d"), sep=", ")
    result = {"compare": compare, "parts": parts, "scaling": scaling}[config.what](config)
    if config.json:
        with writing_output(config.json) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    exit_with(main)
