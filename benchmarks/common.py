"""What the measurements share: flags, a training to measure, clocks, a process of its own, a table of rates."""

import dataclasses
import importlib.util
import multiprocessing
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

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
from runtime.flags import Bounds, Count, Positive, check_bounds, flag
from runtime.run_config import RunConfig, with_file
from training import Training
from wrappers import rom_name

GAME = "Breakout"
EPSILON = 0.1  # for both: where a run spends most of its time
MINIBATCH = 32  # transitions per update, as in the paper
WARM_UP_STEPS = 1_000  # agent steps of a random agent, then as many seconds as --warm-up-seconds of learning, untimed
RATE = ("rounds", "seconds", "warm_up_seconds")
TAKES = {  # the flags of each measurement; --device and --json are everyone's
    "compare": (*RATE, "num_envs", "replay_size"),
    "parts": ("num_envs", "replay_size"),
    "scaling": (*RATE, "replay_size", "figure"),
    "inference": ("figure",),
    "relatives": (*RATE, "num_envs", "replay_size"),
    "learning": (*RATE, "game", "seed", "config", "programs", "run_dir", "figure"),
}
PEER = "stable_baselines3"
PROGRAMS = ("example", PEER)  # of the hour of learning, next to a config
Result = TypeVar("Result")


@dataclass
class BenchmarkConfig:
    """Measure speed: training next to its peer, in its parts, as it scales; or the networks alone."""

    what: tyro.conf.Positional[Literal["compare", "parts", "scaling", "inference", "relatives", "learning"]] = "compare"
    """compare: next to Stable-Baselines3's DQN. parts: where the time goes. scaling: environments and memory sizes.
    inference: each network forward, by batch, history frames and resolution. relatives: training with each option.
    learning: scores after the agent steps of an hour, next to the README's example and Stable-Baselines3."""
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
    game: str = GAME
    """With learning: the game, by any of its names."""
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0
    """With learning: of every program."""
    config: str | None = None
    """With learning: a file of flags, or the name of one in configs/, to train next to the others."""
    programs: tuple[str, ...] = ()
    """With learning: those to train now (the config, example, stable_baselines3); the others count with what the folder
    has. Default: all."""
    run_dir: Path = Path("runs/hour")
    """With learning: the folder of the rates and of all runs; the same command resumes them."""
    device: str = "auto"
    """Where the networks live: cuda, mps, cpu, or auto."""
    json: Path | None = None
    """Also write the result to this file: an object with ours, stable_baselines3 and ratio, or the rows."""
    figure: Path | None = None
    """With scaling, inference and learning: also draw it, to this PNG."""

    def check(self) -> None:
        """Raise `UsageError` for flags that contradict each other or the measurement."""
        check_bounds(self)
        for field in dataclasses.fields(self):
            takers = [what for what, names in TAKES.items() if field.name in names]
            if takers and self.what not in takers and getattr(self, field.name) != field.default:
                way_out = f"leave it out, or type python benchmark.py {' or '.join(takers)}"
                raise UsageError(f"{flag(field.name)} has no effect on {self.what}; {way_out}")
        rom_name(self.game)
        known = (*([self.config] if self.config and changes_of_file(self.config) else []), *PROGRAMS)
        if odd := [name for name in self.programs if name not in known]:
            raise UsageError(f"--programs: there is no {odd[0]}; there are {', '.join(known)}")
        if self.json:
            check_output(self.json, ".json")
        if self.figure:
            check_output(self.figure, ".png")


def changes_of_file(config: str) -> dict[str, Any]:
    """What is learned by a file of flags, by field of `Hyperparameters`; raises `UsageError` where there is no such."""
    parsed = with_file(RunConfig(GAME, config=config))
    return {field.name: getattr(parsed, field.name) for field in dataclasses.fields(Hyperparameters)}


def started(config: BenchmarkConfig, **changes: Any) -> Training:
    """A training that has begun to learn: the paper's, but for a short warm-up and the last epsilon from the start.

    changes: other values for its flags.
    """
    set_up_torch(deterministic=False)
    parameters = Hyperparameters(GAME, num_envs=config.num_envs, replay_size=config.replay_size)
    parameters = replace(parameters, replay_start_size=WARM_UP_STEPS, epsilon_start=EPSILON, epsilon_end=EPSILON)
    parameters = replace(parameters, **changes)
    parameters.check()
    training = set_up(parameters, choose_device(config.device))
    training.begin()
    while training.agent_steps <= WARM_UP_STEPS:
        step(training)
    return training


def alone(measure: Callable[..., Result], *arguments: Any) -> Result:
    """Run a measurement in a fresh process, so that nothing of one program helps or hinders another."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def in_turn(
    programs: Mapping[str, Callable[[BenchmarkConfig], float]], config: BenchmarkConfig
) -> dict[str, list[float]]:
    """What each program measures, round by round, every one alone in each."""
    measured: dict[str, list[float]] = {name: [] for name in programs}
    for name in tqdm([*programs] * config.rounds, desc="measuring", leave=False, disable=None):
        measured[name].append(alone(programs[name], config))
    return measured


def peer_is_there() -> bool:
    """Whether Stable-Baselines3 is installed; says how where it is not."""
    there = importlib.util.find_spec(PEER) is not None
    if not there:
        print(f"{PEER} is not installed and left out: pip install -r requirements-benchmark.txt")
    return there


def spread(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum, by these names."""
    return {"median": statistics.median(values), "minimum": min(values), "maximum": max(values)}


def rate_columns(row: Mapping[str, float]) -> str:
    """A `spread` of agent steps per second with its limit, as the columns that `RATE_HEADER` names."""
    share = row["median"] / row["limit"]
    return f"{row['median']:8.1f} {row['minimum']:8.1f} {row['maximum']:8.1f} {share:9.0%}"


RATE_HEADER = f"{'median':>8} {'minimum':>8} {'maximum':>8} {'of limit':>9}"


def milliseconds_of(function: Callable[[], Any], device: torch.device, seconds: float = 1.0) -> float:
    """The median time of a call, in ms, with the device waited for, of calls for so many seconds after a warm-up."""
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    timer = torch.utils.benchmark.Timer(
        "function(); wait()", globals={"function": function, "wait": wait}, num_threads=torch.get_num_threads()
    )
    return timer.blocked_autorange(min_run_time=seconds).median * 1e3


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG, whole or not at all; raises `RunError` where it cannot."""
    with writing_output(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
