"""What sweeps and searches share on the command line, and the folder that one of them holds."""

import dataclasses
import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from atari import games_named
from config import FLAGS, NOT_KEPT, Hyperparameters, RunConfig, with_file
from machine.exits import UsageError
from machine.files import lock_folder, write_text
from machine.flags import MOST, Bounds, Positive, check_bounds, flag, parse
from wrappers import rom_name

MACHINES = ("address", "cpus_per_run", "gpus_per_run")
MAY_CHANGE = ("device", "save_every_games", "checkpoint_minutes")  # between two starts, as in a run
# What sweeps and searches may give other values: all that is learned with, but for what names or moves a run.
VARIED = {field.name for field in dataclasses.fields(Hyperparameters)}
VARIED -= {"game", "seed", "actions", "initial_state_dict", "deterministic"}

Flags = TypeVar("Flags", bound="TrainingFlags")


@dataclass
class TrainingFlags(RunConfig):
    """The flags of training that all runs have in common, and where they are made."""

    game: str = ""
    games: tuple[str, ...] = ()  # type: ignore[assignment]  # of a run it is a number; these runs end at their steps
    """The games, by any of their names; paper49 stands for the 49 of the paper."""
    run_dir: Path | None = None
    """Folder of all runs: a new one, or one to resume."""
    address: str | None = None
    """A Ray cluster to join, host:port or auto, whose nodes see the same folders. Default: this machine alone."""
    cpus_per_run: Positive = 1.0
    """Cores for each run, its threads; a fraction lets several share one."""
    gpus_per_run: Annotated[float | None, Bounds(0, 64)] = None
    """GPUs for each run; of a fraction, several share one, whose memory must hold all their replay memories.
    Default: 1 where there are GPUs and --device allows it."""

    @property
    def roms(self) -> list[str]:
        """The ROMs of the games, each once; raises `UsageError`."""
        names = games_named(self.games)
        roms = [rom_name(game) for game in names]
        if not roms:
            raise UsageError("--games is missing: one or more games, such as --games Pong Breakout")
        if twice := [game for game, rom in zip(names, roms, strict=True) if roms.count(rom) > 1]:
            raise UsageError(f"--games: {twice[0]} comes twice; leave one of them out")
        return roms

    def run(self, rom: str, seed: int) -> RunConfig:
        """The config of one run; it ends at its agent steps, whatever number of games they are."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(RunConfig)}
        start = self.initial_state_dict and self.initial_state_dict.resolve()
        own = {"game": rom, "seed": seed, "games": MOST, "initial_state_dict": start}
        return RunConfig(**values | own | dict.fromkeys(NOT_KEPT))


def command_line(kind: type[Flags], own: tuple[str, ...]) -> Flags:
    """The flags that the command line means; what is not typed is as the --config file says.

    own: the flags that `kind` has beside training's.
    """
    groups = {"runs": ("games", *own, "run_dir", "config", "initial_state_dict", "steps")}
    groups["machines"] = (*MACHINES, "device", "deterministic")
    for heading in [*FLAGS][1:]:
        groups[heading] = tuple(name for name in FLAGS[heading] if name not in ("game", "webhook"))
    typed = parse(kind, groups=groups)
    if typed.config is None:
        return typed
    file = with_file(RunConfig("", config=typed.config))  # Its game, games and seed, if any, are one run's.
    names = {field.name for field in dataclasses.fields(RunConfig)} - {"game", "games", "seed", *NOT_KEPT}
    return parse(kind, default=kind(**{name: getattr(file, name) for name in names}), groups=groups)


def require(*packages: str) -> None:
    """Raise `UsageError`, which says how to install it, where a package is missing."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            name = package.partition(".")[0].capitalize()
            raise UsageError(f"{name} is not installed: pip install -r requirements-cluster.txt") from None


@contextmanager
def locked(config: TrainingFlags, name: str, own: tuple[str, ...]) -> Iterator[Path]:
    """Lock the folder of a sweep or a search, and note in it as `name` what it is for; gives that file.

    Raises `UsageError` where another process holds it, or it is not new, not empty and was begun for something else.
    """
    check_bounds(config)
    if config.run_dir is None:
        raise UsageError("--run-dir is missing: the folder of all runs, a new one or one to resume")
    file = config.run_dir.resolve() / name
    asked: dict[str, Any] = {name: getattr(config, name) for name in ("games", *own)}
    text = json.dumps(asked | {"run": config.run("", config.seed).as_json()}, indent=2)
    try:
        there = {path.name for path in file.parent.iterdir()} if file.parent.is_dir() else set()
        if there - {"lock", f".{name}.tmp"} and name not in there:
            raise UsageError(f"{file.parent} is neither new nor empty, and holds no {name}; choose another --run-dir")
        lock = lock_folder(file.parent)
        was, now = (json.loads(each) for each in (file.read_text() if name in there else text, text))
        for key in sorted({**now, **now["run"]}.keys() - {"run", *MAY_CHANGE}):
            before, after = ({**each["run"], **each}[key] for each in (was, now))
            if before != after:
                what = f"{file.parent} was begun with {flag(key)} {before}, not {after}"
                raise UsageError(f"{what}; type that, or choose another --run-dir")
        write_text(file, text + "\n")
        for part in ("configs", "logs", "scores"):
            (file.parent / part).mkdir(exist_ok=True)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{file.parent} cannot be used ({error}); choose another --run-dir") from None
    with lock:
        yield file
