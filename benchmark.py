"""Speed, side by side: python benchmark.py, python benchmark.py parts, python benchmark.py scaling"""

import importlib.util
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import ale_py
import numpy as np
import torch
import tyro
from tqdm import tqdm

from checkpoint import write_text
from errors import UsageError, exit_with
from q_agent import choose_device, keep_freed_memory
from replay_memory import ReplayMemory
from training import Hyperparameters, Training

GAME = "Breakout"
EPSILON = 0.1  # for both: where a run spends most of its time
WARM_UP_STEPS = 1_000  # agent steps of random play, then as many seconds as --warm-up-seconds of learning, untimed
MEMORY_SIZES = (10_000, 100_000, 1_000_000)
ENVIRONMENTS = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class Config:
    """Measure agent steps per second: this project beside its peer, its parts, or how it scales."""

    what: tyro.conf.Positional[Literal["compare", "parts", "scaling"]] = "compare"
    """compare: beside Stable-Baselines3's DQN. parts: where the time goes. scaling: environments and memory sizes."""
    rounds: int = 5
    """Rounds of the comparison; in each, every program is measured once, in a process of its own."""
    seconds: float = 20.0
    """Seconds of each measurement, after the warm-up."""
    warm_up_seconds: float = 5.0
    """Seconds of learning before each measurement."""
    num_envs: int = 32
    """Games that this project plays side by side."""
    replay_size: int = 48_000
    """Transitions in the replay memory of every program that is compared."""
    device: str = "auto"
    """Where the networks live: cuda, mps, cpu, or auto."""
    json: Path | None = None
    """Also write the result to this file: an object with ours, stable_baselines3 and ratio, or the rows."""
    figure: Path | None = None
    """With scaling: also draw it, to this PNG."""


@dataclass
class Rate:
    """Agent steps per second over the rounds."""

    median: float
    minimum: float
    maximum: float


def hyperparameters(num_envs: int, replay_size: int) -> Hyperparameters:
    """The paper's, but for a short warm-up and the final epsilon from the start."""
    return Hyperparameters(
        game=GAME,
        num_envs=num_envs,
        replay_size=replay_size,
        replay_start_size=WARM_UP_STEPS,
        epsilon_start=EPSILON,
        epsilon_end=EPSILON,
    )


def measure_ours(config: Config) -> float:
    """Agent steps per second of this project's training loop."""
    device = choose_device(config.device)
    keep_freed_memory()
    training = Training(hyperparameters(config.num_envs, config.replay_size), device)
    training.begin()
    while training.agent_steps <= WARM_UP_STEPS:
        training.step()
    _steps_in(config.warm_up_seconds, training)
    rate = _steps_in(config.seconds, training)
    training.close()
    return rate


def _steps_in(seconds: float, training: Training) -> float:
    began, steps = time.perf_counter(), training.agent_steps
    while time.perf_counter() - began < seconds:
        training.step()
    training.agent.is_finite()  # waits for a device that is still computing
    return (training.agent_steps - steps) / (time.perf_counter() - began)


def measure_stable_baselines3(config: Config) -> float:
    """Agent steps per second of Stable-Baselines3's DQN with its own preprocessing."""
    import gymnasium
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)

    class Clock(BaseCallback):
        began_learning = began = rate = 0.0
        steps = 0

        def _on_step(self) -> bool:
            now = time.perf_counter()
            if self.num_timesteps <= WARM_UP_STEPS:
                self.began_learning = now
            elif not self.began and now - self.began_learning >= config.warm_up_seconds:
                self.began, self.steps = now, self.num_timesteps
            elif self.began and now - self.began >= config.seconds:
                self.rate = (self.num_timesteps - self.steps) / (now - self.began)
                return False
            return True

    model = DQN(
        "CnnPolicy",
        VecFrameStack(make_atari_env(f"{GAME}NoFrameskip-v4", n_envs=1, seed=0), n_stack=4),
        buffer_size=config.replay_size,
        learning_starts=WARM_UP_STEPS,
        batch_size=32,
        train_freq=4,
        gradient_steps=1,
        target_update_interval=10_000,
        exploration_initial_eps=EPSILON,
        exploration_final_eps=EPSILON,
        device=str(choose_device(config.device)),
    )
    clock = Clock()
    model.learn(10**9, callback=clock)
    return clock.rate


PROGRAMS: dict[str, Callable[[Config], float]] = {
    "ours": measure_ours,
    "stable_baselines3": measure_stable_baselines3,
}


def _alone(measure: Callable[[Config], float], config: Config) -> float:
    """Run a measurement in a fresh process, so that nothing of one program helps or hinders another."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (config,))


def compare(config: Config) -> dict[str, Any]:
    """Measure every program in turn, round by round, and print the table; returns the result as an object."""
    programs = dict(PROGRAMS)
    if importlib.util.find_spec("stable_baselines3") is None:
        print("stable_baselines3 is not installed and left out: pip install -r requirements-benchmark.txt")
        del programs["stable_baselines3"]
    rates: dict[str, list[float]] = {name: [] for name in programs}
    turns = itertools.product(range(config.rounds), programs)
    for _, name in tqdm(list(turns), desc="measuring", leave=False):
        rates[name].append(_alone(programs[name], config))
    result: dict[str, Any] = {
        name: asdict(Rate(statistics.median(values), min(values), max(values))) for name, values in rates.items()
    }
    print(f"{'agent steps per second':24} {'median':>8} {'minimum':>8} {'maximum':>8}")
    for name, rate in result.items():
        print(f"{name:24} {rate['median']:8.1f} {rate['minimum']:8.1f} {rate['maximum']:8.1f}")
    if "stable_baselines3" in result:
        result["ratio"] = result["ours"]["median"] / result["stable_baselines3"]["median"]
        ratios = [ours / peer for ours, peer in zip(*rates.values(), strict=True)]
        print(f"ratio of the medians {result['ratio']:.2f}; round by round {min(ratios):.2f} to {max(ratios):.2f}")
    return result


def _milliseconds(function: Callable[[], Any], training: Training, repeats: int = 30) -> float:
    """The median time of a call, in ms, with the device waited for."""
    times = []
    for number in range(repeats + 3):
        began = time.perf_counter()
        function()
        training.agent.is_finite()
        if number >= 3:
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def update_gigaflops(minibatch_size: int = 32) -> float:
    """Floating-point operations, in 1e9, of one update: both networks forward, the online network backward."""
    first = 20 * 20 * 32 * (4 * 8 * 8)
    others = 9 * 9 * 64 * (32 * 4 * 4) + 7 * 7 * 64 * (64 * 3 * 3) + 7 * 7 * 64 * 512 + 512 * 4
    multiplications = 2 * (first + others) + first + 2 * others  # the first layer's input needs no gradient
    return 2 * multiplications * minibatch_size / 1e9


def matrix_gigaflops(device: torch.device) -> float:
    """What the hardware does in a large float32 matrix product, in 1e9 operations per second."""
    size = 2048
    matrix = torch.randn(size, size, device=device)
    times = []
    for _ in range(10):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times) / 1e9


def parts(config: Config) -> list[dict[str, Any]]:
    """Time the parts of one vector step, each alone, and print them beside what the hardware could do."""
    keep_freed_memory()
    device = choose_device(config.device)
    training = Training(hyperparameters(config.num_envs, config.replay_size), device)
    training.begin()
    while training.agent_steps <= WARM_UP_STEPS + 50 * config.num_envs:
        training.step()
    agent, memory, games = training.agent, training.memory, training.games
    generator = np.random.default_rng(0)
    updates = max(1, config.num_envs // 4)
    drawn = memory.sample(updates * 32, generator)
    windows = torch.from_numpy(drawn.frame_indices).to(device)
    actions = generator.integers(games.num_actions, size=config.num_envs)

    def emulate() -> None:
        games.send(actions)
        games.receive()

    def target_pass() -> None:
        with torch.no_grad():
            agent.target_network(memory.gather(windows)[:, 1:])

    rows = [
        ("emulators alone", _milliseconds(emulate, training)),
        ("acting", _milliseconds(lambda: agent.act(np.zeros(config.num_envs), generator), training)),
        ("sampling", _milliseconds(lambda: memory.sample(updates * 32, generator), training)),
        (f"learning, {updates} updates", _milliseconds(lambda: agent.learn(drawn), training)),
        ("  of which target pass", _milliseconds(target_pass, training)),
        ("  of which optimizer", updates * _milliseconds(agent.optimizer.step, training)),
        ("whole vector step", _milliseconds(training.step, training)),
    ]
    whole = rows[-1][1]
    print(f"{f'one step of {config.num_envs} environments':28} {'ms':>8} {'share':>7}")
    for name, milliseconds in rows:
        print(f"{name:28} {milliseconds:8.2f} {milliseconds / whole:7.0%}")
    rate = matrix_gigaflops(device)
    learning = rows[3][1] / updates
    floor = update_gigaflops() / rate * 1e3
    print(f"matrix products: {rate:,.0f} GFLOP/s; one update is {update_gigaflops():.2f} GFLOP, so {floor:.2f} ms")
    print(f"one update takes {learning:.2f} ms, {learning / floor:.2f} times that")
    emulators, everything = (config.num_envs / milliseconds * 1e3 for milliseconds in (rows[0][1], whole))
    print(f"agent steps per second: emulators alone {emulators:,.0f}, everything {everything:,.0f}")
    training.close()
    return [{"part": name.strip(), "milliseconds": milliseconds} for name, milliseconds in rows]


def measure_sampling(size: int) -> tuple[float, float]:
    """Bytes per transition and ms to draw and gather 8 minibatches, of a full memory of `size` transitions."""
    memory = ReplayMemory(size, 16)
    frames = np.random.default_rng(0).integers(256, size=(16, 84, 84), dtype=np.uint8)
    memory.start(0, frames)
    nothing = np.zeros(16, np.bool_)
    for _ in range(memory.num_rows):
        memory.append(np.zeros(16, np.int64), np.zeros(16), nothing, nothing, frames)
    generator = np.random.default_rng(0)
    times = []
    for _ in range(50):
        began = time.perf_counter()
        memory.gather(torch.from_numpy(memory.sample(256, generator).frame_indices))
        times.append(1e3 * (time.perf_counter() - began))
    arrays = [memory.frames.numpy(), *(value for value in vars(memory).values() if isinstance(value, np.ndarray))]
    return sum(array.nbytes for array in arrays) / size, statistics.median(times)


def scaling(config: Config) -> dict[str, Any]:
    """Steps/s against the number of environments; bytes and sampling time against the memory's size."""
    keep_freed_memory()
    result: dict[str, Any] = {"environments": [], "memory": []}
    print(f"{'environments':>14} {'agent steps/s':>14}")
    for count in ENVIRONMENTS:
        result["environments"].append((count, _alone(measure_ours, _with(config, num_envs=count))))
        print(f"{count:14} {result['environments'][-1][1]:14.1f}")
    print(f"{'memory':>14} {'bytes each':>14} {'ms for 256':>14}")
    for size in MEMORY_SIZES:
        result["memory"].append((size, *measure_sampling(size)))
        print(f"{size:14,} {result['memory'][-1][1]:14.1f} {result['memory'][-1][2]:14.2f}")
    if config.figure:
        _draw(config.figure, result)
    return result


def _with(config: Config, **changes: Any) -> Config:
    return Config(**{**vars(config), **changes})


def _draw(path: Path, result: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(*zip(*result["environments"], strict=True), "o-", color="#0072B2")
    left.set(xscale="log", xlabel="environments", ylabel="agent steps per second")
    left.set_xticks(ENVIRONMENTS, [str(count) for count in ENVIRONMENTS])
    right.plot([row[0] for row in result["memory"]], [row[2] for row in result["memory"]], "o-", color="#D55E00")
    right.set(xscale="log", xlabel="transitions in the memory", ylabel="ms to sample 256")
    for panel in (left, right):
        panel.set_ylim(0, 1.1 * panel.dataLim.ymax)
    figure.savefig(path, dpi=110)


def hardware(device: torch.device) -> str:
    """One line that says what ran: processor or GPU, cores, threads, versions, date."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        name = next((s.split(":")[1].strip() for s in cpuinfo.read_text().splitlines() if "model name" in s), name)
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, {name}"
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "ale-py", "numpy"))
    if importlib.util.find_spec("stable_baselines3"):
        packages += f", stable-baselines3 {version('stable-baselines3')}"
    threads = torch.get_num_threads()
    return f"{name}, {os.cpu_count()} cores, {threads} threads, Python {platform.python_version()}, {packages}"


def main() -> None:
    """The command line."""
    config = tyro.cli(Config)
    if config.rounds < 1 or not config.seconds > 0 or not config.warm_up_seconds >= 0:
        raise UsageError("--rounds must be 1 or more, --seconds above 0 and --warm-up-seconds 0 or more")
    print(hardware(choose_device(config.device)), time.strftime("%Y-%m-%d"), sep=", ")
    result = {"compare": compare, "parts": parts, "scaling": scaling}[config.what](config)
    if config.json:
        write_text(config.json, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    exit_with(main)
