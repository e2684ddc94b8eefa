"""What sweeps and searches share on the command line, and the folder that one of them holds."""

import dataclasses
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from atari import games_named
from config import Hyperparameters
from runtime.exits import UsageError
from runtime.files import lock_folder, write_text
from runtime.flags import MOST, Bounds, Positive, check_bounds, flag, parse
from runtime.run_config import NOT_KEPT, RunConfig, with_file
from wrappers import rom_name

MAY_CHANGE = {"run", "device", "save_every_games", "checkpoint_minutes"}  # between two starts, as in a run
# What sweeps and searches may give other values: all that is learned with, but for what names or moves a run.
VARIED = {field.name for field in dataclasses.fields(Hyperparameters)}
VARIED -= {"game", "seed", "actions", "initial_state_dict", "deterministic"}
Flags = TypeVar("Flags", bound="TrainingFlags")


@dataclass
class TrainingFlags(RunConfig):
    """The flags of training that all runs have in common, and where they are made."""

    game: tyro.conf.Suppress[tyro.conf.Fixed[str]] = ""
    webhook: tyro.conf.Suppress[tyro.conf.Fixed[str | None]] = None
    games: tuple[str, ...] = ()  # type: ignore[assignment]  # of a run it is a number; these runs end at their steps
    """The games, by any of their names; paper49 means the 49 of the paper."""
    run_dir: Path | None = None
    """Folder of all runs: a new one, or one to resume."""
    address: str | None = None
    """A Ray cluster to join, host:port or auto, whose nodes see the same folders. Default: this machine alone."""
    cpus_per_run: Positive = 1.0
    """Cores for each run, its threads; a fraction lets several share one."""
    gpus_per_run: Annotated[float | None, Bounds(0, 64)] = None
    """GPUs for each run; a fraction lets several share one. Default: 1 where there are GPUs and --device allows it."""

    @property
    def roms(self) -> list[str]:
        """The ROMs of the games, each once; raises `UsageError`."""
        if not self.games:
            raise UsageError("--games is missing: one or more games, such as --games Pong Breakout")
        return [*dict.fromkeys(rom_name(game) for game in games_named(self.games))]

    def run(self, rom: str, seed: int) -> RunConfig:
        """The config of one run; it ends at its agent steps, whatever number of games they are."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(RunConfig)}
        start = self.initial_state_dict and self.initial_state_dict.resolve()
        own = {"game": rom, "seed": seed, "games": MOST, "initial_state_dict": start}
        return RunConfig(**values | own | dict.fromkeys(NOT_KEPT))


def command_line(kind: type[Flags]) -> Flags:
    """The flags that the command line means; what is not typed is taken from the --config file."""
    typed = parse(kind)
    if typed.config is None:
        return typed
    file = with_file(RunConfig("", config=typed.config))  # Its game, games and seed, if any, are one run's.
    names = {field.name for field in dataclasses.fields(RunConfig)} - {"game", "games", "seed", *NOT_KEPT}
    return parse(kind, default=kind(**{name: getattr(file, name) for name in names}))


def require(*packages: str) -> None:
    """Raise `UsageError`, which says how to install it, where a package is missing."""
    if missing := [package.capitalize() for package in packages if importlib.util.find_spec(package) is None]:
        raise UsageError(f"{missing[0]} is not installed: pip install -r requirements-cluster.txt")


@contextmanager
def locked(config: TrainingFlags, name: str) -> Iterator[Path]:
    """Lock a folder, and note in its file `name` what it is for; gives that. `UsageError` for a folder of others."""
    check_bounds(config)
    if config.run_dir is None:
        raise UsageError("--run-dir is missing: the folder of all runs, a new one or one to resume")
    require("ray")
    folder = config.run_dir.resolve()
    names = ("games", "cpus_per_run", "gpus_per_run", *type(config).__annotations__)
    flags = {each: getattr(config, each) for each in names}
    text = json.dumps(flags | {"run": config.run("", config.seed).as_json()}, indent=2)
    try:
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if there - {"lock", f".{name}.tmp"} and name not in there:
            raise UsageError(f"{folder} holds other files and no {name}; choose another --run-dir")
        lock = lock_folder(folder)
        now, was = (json.loads(each) for each in (text, (folder / name).read_text() if name in there else text))
        now, was = now["run"] | now, was["run"] | was
        for each in now:
            if each not in MAY_CHANGE and was.get(each) != now[each]:
                odd = f"{flag(each)} {was.get(each)}, not {now[each]}"
                raise UsageError(f"{folder} was started with {odd}; type that, or choose another --run-dir")
        write_text(folder / name, text + "\n")
        for part in ("configs", "logs", "scores"):
            (folder / part).mkdir(exist_ok=True)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{folder} is not usable ({error}); choose another --run-dir") from None
    with lock:
        yield folder / name
