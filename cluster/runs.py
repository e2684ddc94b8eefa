"""What sweeps and searches share: the flags of training, the folder that one driver holds, how far a run is."""

import csv
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np

from config import FLAGS, Hyperparameters, RunConfig, with_file
from machine.exits import UsageError
from machine.files import write_text
from machine.flags import MOST, Bounds, Count, Positive, check_bounds, flag, parse
from replay_memory import BYTES_PER_TRANSITION
from wrappers import rom_name

PROCESS_BYTES = 700_000_000  # of a training, beside its replay memory
TAIL_BYTES = 16_384  # of games.csv hold its last 100 rows
RECENT_GAMES = 100
OWN = ("game", "seed", "run_dir", "initial_state_dict")  # of each run

Flags = TypeVar("Flags", bound="TrainingFlags")


@dataclass
class TrainingFlags(Hyperparameters):
    """The flags of training that all runs have in common."""

    game: str = ""
    run_dir: Path | None = None
    """Folder of all runs: a new one, or one to go on with."""
    config: str | None = None
    """A YAML file of flags, a run's config.json, or the name of a file in configs/; what is typed beside it counts."""
    steps: Count = 50_000_000
    """Agent steps of each run."""
    device: str = "auto"
    """Where networks and memories live: cuda, mps, cpu, or auto for the first of them that is there."""
    save_every_games: Annotated[int, Bounds(0, MOST)] = 50
    """Finished games between state dicts in state_dicts/, 0 for none: they are most of what a run takes on the disk."""
    checkpoint_minutes: Positive = 5.0
    """Minutes of wall time between checkpoints."""

    def run(self, game: str, seed: int) -> RunConfig:
        """The config of one run; it ends at its agent steps, whatever number of games they are."""
        names = [field.name for field in dataclasses.fields(TrainingFlags) if field.name not in OWN]
        values = {name: getattr(self, name) for name in names if name != "config"}
        start = self.initial_state_dict and self.initial_state_dict.resolve()
        return RunConfig(**values, game=game, seed=seed, games=MOST, initial_state_dict=start)

    def bytes_of_a_run(self) -> int:
        """What a run takes of the memory of its node, with its replay memory full."""
        return PROCESS_BYTES + self.replay_size * BYTES_PER_TRANSITION

    def check(self) -> None:
        check_bounds(self)
        if self.run_dir is None:
            raise UsageError("--run-dir is missing: the folder of all runs, a new one or one to go on with")


def command_line(kind: type[Flags], own: dict[str, tuple[str, ...]]) -> Flags:
    """The flags that the command line means; what is not typed is as the --config file says.

    own: headings of --help with the flags that `kind` adds to training's.
    """
    groups = own | {
        heading: tuple(name for name in names if name not in ("game", "webhook"))
        for heading, names in FLAGS.items()
        if heading != "run"
    }
    typed = parse(kind, groups=groups)
    if typed.config is None:
        return typed
    file = with_file(RunConfig("", config=typed.config))  # whose game and seed, if any, are not for all runs
    names = [field.name for field in dataclasses.fields(TrainingFlags) if field.name not in (*OWN[:3], "config")]
    return parse(kind, default=kind(**{name: getattr(file, name) for name in names}), groups=groups)


def roms_of(games: tuple[str, ...]) -> list[str]:
    """The ROMs that games' names mean, each once; raises `UsageError`."""
    roms = [rom_name(game) for game in games]
    if not roms:
        raise UsageError("--games is missing: one or more games, such as --games Pong Breakout")
    if twice := [game for game, rom in zip(games, roms, strict=True) if roms.count(rom) > 1]:
        raise UsageError(f"--games: {twice[0]} comes twice; leave one of them out")
    return roms


@contextmanager
def held(folder: Path, name: str, described: dict[str, Any], may_change: tuple[str, ...]) -> Iterator[None]:
    """Hold the folder of a sweep or a search, alone, and note in it as `name` what it is for.

    Raises `UsageError` where another process holds it, or it is not new, not empty and was begun for something else.
    """
    try:
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if there - {"lock"} and name not in there:
            raise UsageError(f"{folder} is neither new nor empty, and holds no {name}; choose another --run-dir")
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "a")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        before = json.loads((folder / name).read_text()) if name in there else described
        odd = [key for key in described if key not in may_change and before.get(key) != described[key]]
        if odd:
            was, now = (f"{flag(odd[0])} {values.get(odd[0])}" for values in (before, described))
            raise UsageError(f"{folder} was begun with {was}, not {now}; type that, or choose another --run-dir")
        write_text(folder / name, json.dumps(described, indent=2) + "\n")
    except BlockingIOError:
        raise UsageError(f"{folder} is in use by another process; wait for it, or choose another --run-dir") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} cannot be used ({error}); choose another --run-dir") from None
    with lock:
        yield


def progress_of(run: Path) -> tuple[int, int, float | None]:
    """Agent steps and games up to the last finished game of a run, and the mean score of the last 100."""
    try:
        with open(run / "games.csv", "rb") as file:
            file.seek(max(0, os.path.getsize(run / "games.csv") - TAIL_BYTES))
            rows = list(csv.reader(file.read().decode(errors="replace").splitlines()[1:]))
        rows = [row for row in rows if len(row) > 3][-RECENT_GAMES:]
        return int(rows[-1][1]), int(rows[-1][0]), float(np.mean([float(row[3]) for row in rows]))
    except (OSError, ValueError, IndexError):
        return 0, 0, None
