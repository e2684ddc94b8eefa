"""What sweeps and searches share: the flags of training, the folder that one driver holds, the work in it."""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cluster.board import GOING_ON, Board, Row
from cluster.jobs import Cluster, Crew, Ended, Job
from config import Hyperparameters
from machine.exits import StopSignal, UsageError
from machine.files import failing_clearly, lock_folder, write_text
from machine.flags import MOST, Bounds, Count, Positive, check_bounds, flag, parse
from machine.memory_size import BYTES_PER_TRANSITION
from machine.run_config import FLAGS, RunConfig, with_file
from machine.tables import read_rows
from wrappers import rom_name

PROCESS_BYTES = 700_000_000  # of a training, beside its replay memory
POLL_SECONDS = 2.0
EVALUATION_SEED = 2015  # of all networks: games that no run was trained or chosen on
OF_ONE_RUN = ("game", "seed", "run_dir", "initial_state_dict")
# What sweeps and searches may give other values: all that is learned with, but for what names or moves a run.
VARIED = {field.name for field in dataclasses.fields(Hyperparameters)} - {*OF_ONE_RUN, "deterministic"}
MACHINES = ("address", "cpus_per_run", "gpus_per_run", "device", "deterministic")
MAY_CHANGE = ("device", "save_every_games", "checkpoint_minutes")  # between two starts, as in a run

Flags = TypeVar("Flags", bound="TrainingFlags")


@dataclass
class TrainingFlags(Cluster, Hyperparameters):
    """The flags of training that all runs have in common, and where they are made."""

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
        names = [field.name for field in dataclasses.fields(RunConfig) if hasattr(self, field.name)]
        values = {name: getattr(self, name) for name in names if name not in (*OF_ONE_RUN, "config", "games")}
        start = self.initial_state_dict and self.initial_state_dict.resolve()
        return RunConfig(**values, game=game, seed=seed, games=MOST, initial_state_dict=start)

    def check(self) -> None:
        """Raise `UsageError` for flags that cannot be, or not together."""
        check_bounds(self)
        if self.run_dir is None:
            raise UsageError("--run-dir is missing: the folder of all runs, a new one or one to go on with")

    def described(self) -> dict[str, Any]:
        """All that the runs depend on, as JSON has it."""
        left_out = {"run_dir", "config", *(field.name for field in dataclasses.fields(Cluster))}
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}
        described: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return described


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
    names = [field.name for field in dataclasses.fields(TrainingFlags) if hasattr(file, field.name)]
    values = {name: getattr(file, name) for name in names if name not in ("game", "seed", "run_dir", "config")}
    return parse(kind, default=kind(**values), groups=groups)


def roms_of(games: Sequence[str]) -> list[str]:
    """The ROMs that games' names mean, each once; raises `UsageError`."""
    roms = [rom_name(game) for game in games]
    if not roms:
        raise UsageError("--games is missing: one or more games, such as --games Pong Breakout")
    if twice := [game for game, rom in zip(games, roms, strict=True) if roms.count(rom) > 1]:
        raise UsageError(f"--games: {twice[0]} comes twice; leave one of them out")
    return roms


@contextmanager
def held(folder: Path, name: str, described: dict[str, Any], may_grow: str) -> Iterator[None]:
    """Hold the folder of a sweep or a search, alone, and note in it as `name` what it is for.

    Raises `UsageError` where another process holds it, or it is not new, not empty and was begun for something else.
    """
    try:
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if there - {"lock", f".{name}.tmp"} and name not in there:
            raise UsageError(f"{folder} is neither new nor empty, and holds no {name}; choose another --run-dir")
        lock = lock_folder(folder)
        before = json.loads((folder / name).read_text()) if name in there else described
        for key, value in described.items():
            was = before.get(key, value)
            if key == may_grow and value < was:
                raise UsageError(f"{flag(key)} {value} would shorten {folder}, begun with {was}; it may grow")
            if key not in (may_grow, *MAY_CHANGE) and value != was:
                way_out = "type that, or choose another --run-dir"
                raise UsageError(f"{folder} was begun with {flag(key)} {was}, not {value}; {way_out}")
        write_text(folder / name, json.dumps(described, indent=2) + "\n")
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{folder} cannot be used ({error}); choose another --run-dir") from None
    with lock:
        yield


class Work(ABC):
    """Runs on their way through training and evaluation; what follows from what is the sweep's or the search's."""

    named_by: tuple[str, ...] = ("run",)  # the first columns of the table in the terminal

    def __init__(self, folder: Path, config: TrainingFlags):
        self.folder = folder
        self.steps = config.steps
        self._evaluation_games = config.evaluation_games
        self.rows: dict[str, Row] = {}
        for part in ("logs", "scores"):
            with failing_clearly(folder / part):
                (folder / part).mkdir(exist_ok=True)

    @abstractmethod
    def begin(self, crew: Crew) -> None:
        """Add the jobs that can be begun now."""

    @abstractmethod
    def take(self, ended: Ended, crew: Crew) -> None:
        """Note what became of a job, and add what follows."""

    def train(self, crew: Crew, config: RunConfig, run: str, key: Any = None, *, first: bool = False) -> None:
        """Have a run trained, or gone on with."""
        flags = ["--run-dir", str(self.folder / run), *config.words()]
        job = Job(run, "q_agent_train.py", flags, self._log(run), self.folder / run / "checkpoint.pt", key)
        crew.add(job, first=first)

    def evaluate(self, crew: Crew, networks: Sequence[Path], scores: Path, run: str, key: Any = None) -> None:
        """Have networks of a run scored by the paper's protocol."""
        flags = ["--state-dict", *map(str, networks), "--csv", str(scores), "--seed", str(EVALUATION_SEED)]
        flags += ["--games", str(self._evaluation_games)]
        crew.add(Job(run, "evaluate.py", flags, self._log(run), scores, key), first=True)

    def _log(self, run: str) -> Path:
        return self.folder / "logs" / f"{run}.txt"

    def look(self, doing: dict[str, str]) -> None:
        """Bring every row that is under way up to date."""
        for run, row in self.rows.items():
            if row.state in ("waiting", *GOING_ON):
                row.state = doing.get(run, "waiting")
                row.look(self.folder / run, self.steps)

    def go_through(self, config: TrainingFlags, replay_size: int, table: str) -> None:
        """Do all of the work, `table` showing it; KeyboardInterrupt at a signal, when all have saved."""
        sizes = {"replay_bytes": replay_size * BYTES_PER_TRANSITION, "process_bytes": PROCESS_BYTES}
        with (
            Crew(config, device=config.device, **sizes) as crew,
            StopSignal() as stop,  # within: Ray takes SIGTERM for itself when it starts
            Board(self.rows, self.folder / table, self.named_by) as board,
        ):
            self.say_plan(crew)
            while not stop:
                self.begin(crew)
                if crew.idle:
                    return
                for ended in crew.poll(POLL_SECONDS):
                    self.take(ended, crew)
                self.look(crew.doing)
                board.show()
            saved = "every run has saved" if crew.stop() else "some runs did not save in time and were killed"
            self.look({})
            board.show()
            raise KeyboardInterrupt(f"{saved}; the same command goes on")

    @abstractmethod
    def say_plan(self, crew: Crew) -> None:
        """Print what will be done, how much of it at a time, and what it takes."""


def scores_in(file: Path) -> list[dict[str, str]]:
    """The rows that evaluate.py wrote; raises `UsageError`."""
    return read_rows(file, ("state_dict", "mean"), lambda _line, row: row)
