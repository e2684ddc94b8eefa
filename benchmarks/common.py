"""What the measurements share: flags, a training to measure, two clocks, tables and figures."""

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
import torch.utils.benchmark
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

from config import MAX_ENVS, Hyperparameters
from q_agent_train import set_up, step
from runtime.devices import choose_device, set_up_torch
from runtime.exits import UsageError
from runtime.files import check_output, writing_output
from runtime.flags import Bounds, Count, Positive, check_bounds
from runtime.run_config import RunConfig, with_file
from training import Training
from wrappers import rom_name

GAME = "Breakout"
EPSILON = 0.1  # of every program: where a run spends most of its time
MINIBATCH = 32  # transitions per update, as in the paper
WARM_UP_STEPS = 1_000  # agent steps of a random agent; then a quarter of --seconds of learning that is not counted
DRAWN = ("scaling", "inference", "learning")


@dataclass
class BenchmarkConfig:
    """Measure speed: training next to its peer, in its parts, as it scales; or the networks alone."""

    what: tyro.conf.Positional[Literal["compare", "parts", "scaling", "inference", "relatives", "learning"]] = "compare"
    """compare: next to Stable-Baselines3's DQN. parts: where the time goes. scaling: environments and memory sizes.
    inference: each network forward, by batch, history frames and resolution. relatives: training with each option.
    learning: scores after the agent steps of an hour, next to Stable-Baselines3's."""
    rounds: Count = 5
    """With compare, scaling, relatives, learning: rounds, in each every program once, in a process of its own."""
    seconds: Positive = 20.0
    """With the same: seconds of each measurement, after a quarter as long that is not counted."""
    num_envs: Annotated[int, Bounds(1, MAX_ENVS)] = 32
    """With compare, parts, relatives: games that this project plays side by side."""
    replay_size: Count = 48_000
    """With compare, parts, scaling, relatives: transitions in the replay memory of every program."""
    game: str = GAME
    """With learning: the game, by any of its names."""
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0
    """With learning: of every program."""
    config: str | None = None
    """With learning: a file of flags, or the name of one in configs/, for this project. Default: the paper's."""
    run_dir: Path = Path("runs/hour")
    """With learning: the folder of all runs and of the rates, measured once; the same command resumes them."""
    device: str = "auto"
    """Where the networks live: cuda, mps, cpu, or auto."""
    figure: Path | None = None
    """With scaling, inference, learning: also draw it, to this PNG."""

    def check(self) -> None:
        """Raise `UsageError` for values out of their bounds, or an output that is not writable."""
        check_bounds(self)
        rom_name(self.game)
        if self.config:
            values_of_file(self.config)
        if self.figure and self.what not in DRAWN:
            way_out = f"leave it out, or measure {', '.join(DRAWN)}"
            raise UsageError(f"--figure has no effect on {self.what}; {way_out}")
        if self.figure:
            check_output(self.figure, ".png")


def values_of_file(name: str) -> dict[str, Any]:
    """What is learned by a file of flags, by field of `Hyperparameters`; raises `UsageError` where there is no such."""
    config = with_file(RunConfig(GAME, config=name))
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(Hyperparameters)}


def started(config: BenchmarkConfig, **changes: Any) -> Training:
    """A training that has begun to learn, with a short warm-up and the last epsilon from the start.

    changes: other values than the paper's, by field of `Hyperparameters`.
    """
    set_up_torch(deterministic=False)
    values: dict[str, Any] = {"game": GAME, "num_envs": config.num_envs, "replay_size": config.replay_size} | changes
    parameters = replace(
        Hyperparameters(**values), replay_start_size=WARM_UP_STEPS, epsilon_start=EPSILON, epsilon_end=EPSILON
    )
    parameters.check()
    training = set_up(parameters, choose_device(config.device))
    training.begin()
    while training.agent_steps <= WARM_UP_STEPS:
        step(training)
    return training


def rate(advance: Callable[[], object], steps: Callable[[], int], config: BenchmarkConfig) -> float:
    """Agent steps per second of a program that `advance` moves on and waits for, after the warm-up."""
    for seconds in (config.seconds / 4, config.seconds):
        began, before = time.perf_counter(), steps()
        while time.perf_counter() - began < seconds:
            advance()
    return (steps() - before) / (time.perf_counter() - began)


def measure_ours(config: BenchmarkConfig, changes: Mapping[str, Any] = {}) -> float:
    """Agent steps per second of this project's training loop, with these changes to the paper's values."""
    with closing(started(config, **changes)) as training:
        return rate(lambda: step(training), lambda: training.agent_steps, config)


def rates_in_turn(programs: Mapping[Any, Callable[[BenchmarkConfig], float]], config: BenchmarkConfig) -> pd.DataFrame:
    """Measure every program round by round, each in a fresh process, so that none helps or hinders another.

    Prints and returns a row of agent steps per second for each; ratios are to the first program.
    """
    rates: dict[Any, list[float]] = {name: [] for name in programs}
    for name in tqdm([*programs] * config.rounds, desc="measuring", leave=False, disable=None):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rates[name].append(pool.apply(programs[name], (config,)))
    table = pd.DataFrame(rates).agg(["median", "min", "max"]).T
    table["ratio"] = table["median"] / table["median"].iloc[0]
    print_table(table.rename_axis("agent steps per second").reset_index())
    return table


def milliseconds_of(function: Callable[[], Any], device: torch.device, seconds: float = 1.0) -> float:
    """The median time of a call, in ms, with the device waited for, of calls for so many seconds after a warm-up."""
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    timer = torch.utils.benchmark.Timer(
        "function(); wait()", globals={"function": function, "wait": wait}, num_threads=torch.get_num_threads()
    )
    return timer.blocked_autorange(min_run_time=seconds).median * 1e3


def print_table(table: pd.DataFrame) -> None:
    """Print all rows and columns, numbers with a fraction with two digits of it."""
    print(table.to_string(index=False, float_format="{:,.2f}".format))


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG, whole or not at all; raises `RunError` where it cannot."""
    with writing_output(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
