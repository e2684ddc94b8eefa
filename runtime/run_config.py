"""What belongs to a run in addition to its hyperparameters, and files of flags (configs/)."""

import dataclasses
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import torch
import yaml

from config import Hyperparameters
from model import QNetwork
from runtime.devices import bfloat16_instructions
from runtime.exits import UsageError
from runtime.flags import MOST, Bounds, Count, Positive, flag, parse, take_numbers_as_meant
from runtime.memory_size import check_size
from runtime.networks import architecture_of, load_network
from wrappers import choose_actions, rom_name

# Of each transition: its frames and the target network's layers; the online network's, twice.
BYTES_DRAWN, BYTES_LEARNING = 200_000, 400_000
CONFIGS = Path(__file__).parent.parent / "configs"
NOT_KEPT = ("run_dir", "config", "webhook")  # flags that config.json does not hold
MAY_GROW = ("games", "steps")  # the flags that lengthen a run
MAY_CHANGE = (*NOT_KEPT, *MAY_GROW, "device", "save_every_games", "checkpoint_minutes")  # learning does not use them


AnyConfig = TypeVar("AnyConfig", bound="RunConfig")


@dataclass
class RunConfig(Hyperparameters):
    """A run: what is learned, how long, where, and what is saved."""

    games: Count = 15_000
    """Whole games to play; the run ends at this or at --steps, whichever comes first."""
    steps: Count = 50_000_000
    """Agent steps to play, of 4 frames each in the paper (run_gpu: steps)."""
    device: str = "auto"
    """Where the network and the memory live: cuda, mps, cpu, or auto for the first of them that the machine has."""
    run_dir: Path | None = None
    """Folder of the run: a new one, or one to resume. Default: runs/<game>-<date>-<time>-seed<seed>."""
    config: str | None = None
    """A YAML file of flags, a run's config.json, or the name of a file in configs/; typed flags override it."""
    save_every_games: Annotated[int, Bounds(0, MOST)] = 50
    """Finished games between state dicts in state_dicts/, 0 for none."""
    checkpoint_minutes: Positive = 5.0
    """Minutes of wall time between checkpoints."""
    webhook: str | None = dataclasses.field(default=None, repr=False)
    """Address (https) of a Slack or Discord webhook that receives news of the run. Default: DQN_WEBHOOK_URL."""

    def __post_init__(self) -> None:
        take_numbers_as_meant(self)  # a notebook or a file may give numbers, names and lists in other types
        self.run_dir = Path(self.run_dir) if isinstance(self.run_dir, str) else self.run_dir
        path = self.initial_state_dict
        self.initial_state_dict = Path(path) if isinstance(path, str) else path
        self.actions = tuple(self.actions) if isinstance(self.actions, list) else self.actions

    def check_device(self, device: torch.device) -> None:
        """Raise `UsageError` unless a device can compute with --precision, and memory and minibatches fit on it."""
        if self.precision == "bfloat16" and not bfloat16_instructions(device):
            raise UsageError(f"this {device} has no instructions for --precision bfloat16; leave the flag out")
        free = check_size(self.replay_size, self.num_envs, device, self.n_steps)
        updates = -(-self.num_envs // self.update_frequency)  # of one vector step: their minibatches are drawn at once
        gigabytes = (updates * BYTES_DRAWN + BYTES_LEARNING) * self.minibatch_size / 1e9
        if gigabytes > free:
            needs = f"--minibatch-size {self.minibatch_size} needs about {gigabytes:.1f} GB for {updates} update(s)"
            rest = f"--replay-size {self.replay_size} leaves {free:.1f} GB"
            raise UsageError(f"{needs}, and {rest}; choose smaller ones")

    def check_new(self) -> None:
        """Raise `UsageError` for a new run that would never learn, or lose transitions before it does."""
        warm_up = f"--replay-start-size {self.replay_start_size}"
        if self.replay_start_size > self.replay_size:
            raise UsageError(f"{warm_up} must be at most --replay-size {self.replay_size}")
        if self.replay_start_size >= self.steps:
            raise UsageError(f"{warm_up} must be below --steps {self.steps}, or nothing is learned")
        _ = self.initial_network

    @functools.cached_property
    def initial_network(self) -> QNetwork | None:
        """The network that --initial-state-dict names, loaded once; raises `UsageError` where it does not fit."""
        if (path := self.initial_state_dict) is None:
            return None
        network = load_network(path)
        there = architecture_of(network), choose_actions(rom_name(network.game), network.rules.actions)[0]
        here = self.architecture, choose_actions(self.rom, self.rules.actions)[0]
        if there != here:
            raise UsageError(f"--initial-state-dict {path} does not fit: it is for {there}; this run has {here}")
        return network

    def as_json(self) -> dict[str, Any]:
        """The config as config.json holds it; the folder of that file is its run_dir."""
        kept = {name: value for name, value in dataclasses.asdict(self).items() if name not in NOT_KEPT}
        path = self.initial_state_dict
        return kept | {"actions": [*self.actions], "initial_state_dict": None if path is None else str(path)}

    def yaml_lines(self) -> list[str]:
        """The hyperparameters, without game and seed, as lines of a file for --config; defaults are left out."""
        kept, changed = self.as_json(), {}
        for field in dataclasses.fields(Hyperparameters):
            if field.name not in ("game", "seed") and getattr(self, field.name) != field.default:
                changed[flag(field.name)[2:]] = kept[field.name]
        return yaml.safe_dump(changed, sort_keys=False, default_flow_style=None).splitlines() if changed else []

    def check_continues(self, saved: Self) -> None:
        """Raise `UsageError` where this differs from the `saved` config with which the run was begun."""
        for field in dataclasses.fields(self):
            name, before, now = flag(field.name), getattr(saved, field.name), getattr(self, field.name)
            if field.name in MAY_GROW and now < before:
                raise UsageError(f"{name} must be at least the {before} of {self.run_dir}, got {now}")
            same = saved.rom == self.rom if field.name == "game" else now == before
            if field.name not in MAY_CHANGE and not same:
                way_out = "to resume it, leave the flag out or restore config.json; else choose another --run-dir"
                raise UsageError(f"{self.run_dir} was started with {name} {before}, not {now}; {way_out}")


def arguments_of_file(name: str) -> list[str]:
    """The arguments that a YAML or JSON file means, or the file in configs/ of this name; raises `UsageError`."""
    path = Path(name) if os.path.exists(name) or Path(name).suffix else CONFIGS / f"{name}.yaml"
    if path.parent == CONFIGS and not os.path.exists(path):
        there = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        raise UsageError(f"--config must be a file or one of {there}, got {name}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # texts alone, as on a command line
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read --config {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"--config {path} holds no flags; write lines such as learning-rate: 0.0001")
    arguments: list[str] = []
    for key, value in values.items():
        name = str(key).replace("_", "-")
        if name.replace("-", "_") in NOT_KEPT:
            raise UsageError(f"--config {path} may not hold {name}; type it on the command line")
        if isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        elif value not in ("", "null"):
            arguments += arguments_for(name, str(value))
    return arguments


def arguments_for(name: str, value: str) -> list[str]:
    """The arguments that give a flag this value."""
    typed = flag(name)
    switches = {"true": typed, "false": f"--no-{typed[2:]}"}
    return [switches[value.lower()]] if value.lower() in switches else [typed, value]


def with_file(config: AnyConfig) -> AnyConfig:
    """The config with the values of its --config file; raises `UsageError` that names the file."""
    if config.config is None:
        return config
    changed = with_arguments(config, arguments_of_file(config.config), f"--config {config.config}")
    return dataclasses.replace(changed, config=None)


def with_arguments(config: AnyConfig, arguments: list[str], source: str) -> AnyConfig:
    """The config with the values of a piece of a command line; raises `UsageError` that names its source."""
    try:
        return parse(type(config), default=config, arguments=arguments)
    except SystemExit:  # tyro has printed what is wrong
        raise UsageError(f"{source} is wrong as shown above; correct it") from None
