"""Train games x seeds, on this machine or on a Ray cluster, and score every network: python sweep.py --help"""

from machine.exits import RunError, StopSignal, UsageError, exit_with  # isort: skip  # first: Ctrl-C is one line now
import csv
import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from atari import paper_table
from cluster.board import Board, Row
from cluster.jobs import Cluster, Crew, Ended, Job, import_ray
from cluster.runs import TrainingFlags, command_line, held, roms_of
from config import RunConfig, with_words
from machine.files import failing_clearly, write_csv
from machine.flags import Bounds

PAPER49 = "paper49"
POLL_SECONDS = 2.0
EVALUATION_SEED = 2015  # of all networks: games that no run was trained or chosen on
MAY_CHANGE = ("steps", "device", "save_every_games", "checkpoint_minutes")  # of a sweep that goes on
NOT_VARIED = ("game", "games", "seed", "seeds", "run_dir", "config", "steps", "webhook", *MAY_CHANGE)
# For the estimate of what a run writes: networks and optimizer, networks alone, agent steps of a long game.
CHECKPOINT_BYTES, NETWORK_BYTES, GAME_STEPS = 30_000_000, 7_000_000, 1_000
OWN = {
    "sweep": ("games", "seeds", "vary", "run_dir", "config", "initial_state_dict", "steps"),
    "machines": ("address", "cpus_per_run", "gpus_per_run", "device", "deterministic"),
}


@dataclass
class SweepConfig(Cluster, TrainingFlags):
    """Train games x seeds, each a run in a folder of its own, and score their networks by the paper's protocol.

    Stopped or killed, the same command goes on with it; what is finished is not touched. The other flags are those of
    q_agent_train.py, and hold for all runs.
    """

    games: tuple[str, ...] = ()
    """Games to train on, by any of their names; paper49 stands for the 49 of the paper."""
    seeds: Annotated[int, Bounds(1, 1_000)] = 1
    """Runs of each game, with seeds 0, 1 and so on."""
    vary: tuple[str, ...] = ()
    """A flag of training and two or more values for it; every game and seed is trained with each of them."""

    def runs(self) -> dict[str, tuple[RunConfig, str]]:
        """The config and the varied value of each run, by its name; raises `UsageError` for one that cannot be."""
        games = tuple(paper.game for paper in paper_table().values()) if self.games == (PAPER49,) else self.games
        runs = {}
        for rom in roms_of(games):
            for value, words in self._varied().items():
                for seed in range(self.seeds):
                    config = with_words(self.run(rom, seed), words, "--vary")
                    config.check()
                    config.check_new()
                    varied = f"-{words[0].lstrip('-')}-{value.replace('/', '_')}" if words else ""
                    runs[f"{rom}-seed{seed}{varied}"] = config, value
        return runs

    def _varied(self) -> dict[str, list[str]]:
        """The command line for each value of --vary; one empty one without it."""
        if not self.vary:
            return {"": []}
        name, *values = self.vary[0].lstrip("-").replace("_", "-"), *self.vary[1:]
        if len({*values}) < max(2, len(values)):
            raise UsageError("--vary needs a flag and two or more values: --vary learning-rate 0.0001 0.00025")
        if name.replace("-", "_") in NOT_VARIED:
            raise UsageError(f"--vary {name}: runs of one sweep all have the same; vary what is learned")
        switches = {"true": f"--{name}", "false": f"--no-{name}"}
        return {
            value: [switches[value.lower()]] if value.lower() in switches else [f"--{name}", value] for value in values
        }

    def described(self) -> dict[str, Any]:
        """What sweep.json holds: all that the runs depend on."""
        left_out = {"run_dir", "config", *(field.name for field in dataclasses.fields(Cluster))}
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}
        start = self.initial_state_dict and str(self.initial_state_dict)
        return json.loads(json.dumps(values | {"initial_state_dict": start}))  # lists, as the file gives them back


class Sweep:
    """The runs of a sweep, on their way from training to a row of scores.csv."""

    def __init__(self, config: SweepConfig, folder: Path, runs: dict[str, tuple[RunConfig, str]]):
        self.folder = folder
        self.steps = config.steps
        self.configs = {name: run for name, (run, _) in runs.items()}
        self.rows = {name: Row(name, run.rom, run.seed, value) for name, (run, value) in runs.items()}
        for part in ("logs", "scores"):
            (folder / part).mkdir(exist_ok=True)

    def scores_of(self, name: str) -> Path:
        return self.folder / "scores" / f"{name}.csv"

    def networks_of(self, name: str) -> list[Path]:
        return [path for path in (self.folder / name / file for file in ("best.pt", "model.pt")) if path.exists()]

    def is_finished(self, name: str) -> bool:
        """Whether a run was trained and scored to the end that is asked for now, by an earlier start of this sweep."""
        scores, saved = self.scores_of(name), self.folder / name / "config.json"
        if not (scores.exists() and saved.exists() and self.networks_of(name)):
            return False
        newest = max(path.stat().st_mtime for path in self.networks_of(name))
        return bool(json.loads(saved.read_text()).get("steps") == self.steps and newest <= scores.stat().st_mtime)

    def training(self, name: str) -> Job:
        flags = ["--run-dir", str(self.folder / name), *self.configs[name].words()]
        return Job(name, "q_agent_train.py", flags, self.folder / "logs" / f"{name}.txt")

    def evaluation(self, name: str) -> Job:
        networks = map(str, self.networks_of(name))
        flags = ["--state-dict", *networks, "--csv", str(self.scores_of(name)), "--seed", str(EVALUATION_SEED)]
        return Job(name, "evaluate.py", flags, self.folder / "logs" / f"{name}-evaluation.txt")

    def take(self, ended: Ended, crew: Crew) -> None:
        """Note what became of a job, and start the next for its run."""
        row, trained = self.rows[ended.job.name], ended.job.script == "q_agent_train.py"
        if not ended.done:
            row.state, row.message = "failed", ended.last_line
        elif trained:
            crew.add(self.evaluation(row.run), first=True)
        else:
            row.state = "finished"
            self.write_scores()

    def look(self, crew: Crew) -> None:
        """Bring every row up to date."""
        scripts = {job.name: job.script for job in crew.running}
        for name, row in self.rows.items():
            if row.state not in ("finished", "failed"):
                states = {None: "waiting", "q_agent_train.py": "training", "evaluate.py": "evaluating"}
                row.state = states[scripts.get(name)]
                row.look(self.folder / name, self.steps)

    def write_scores(self) -> None:
        """scores.csv: a row per finished run and network, in the columns of evaluate.py, with network and seed."""
        rows: list[dict[str, Any]] = []
        for name, row in self.rows.items():
            if row.state == "finished":
                with open(self.scores_of(name), newline="") as file:
                    of_run = [*csv.DictReader(file)]
                more = {"seed": row.seed, "value": row.value}
                rows += [scored | {"network": Path(scored["state_dict"]).stem} | more for scored in of_run]
        if rows:
            with failing_clearly(self.folder / "scores.csv"):
                write_csv(self.folder / "scores.csv", [*rows[0]], rows)


def sweep(config: SweepConfig) -> Path:
    """Train and score every run that is not yet; returns the folder. Raises `UsageError`, `RunError`, at a signal both.

    A `RunError` names the runs that failed; KeyboardInterrupt says how to go on.
    """
    config.check()
    assert config.run_dir
    runs, folder = config.runs(), config.run_dir.resolve()
    import_ray()
    with held(folder, "sweep.json", config.described(), MAY_CHANGE):
        work = Sweep(config, folder, runs)
        for name, row in work.rows.items():
            if work.is_finished(name):
                row.state = "finished"
                row.look(folder / name, config.steps)
        waiting = [name for name, row in work.rows.items() if row.state == "waiting"]
        if waiting:
            go_through(work, waiting, config)
        work.write_scores()
    failed = [f"{row.run} ({row.message})" for row in work.rows.values() if row.state == "failed"]
    print(f"{len(runs) - len(failed)} of {len(runs)} runs are finished: {folder / 'scores.csv'}")
    if failed:
        raise RunError(f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}; the same command tries again")
    print(f"  draw them  python figures.py aggregate {config.run_dir}")
    return folder


def go_through(work: Sweep, waiting: list[str], config: SweepConfig) -> None:
    """Train and score these runs; KeyboardInterrupt at a signal, when all have saved."""
    file = work.folder / "sweep.csv"
    with (
        StopSignal() as stop,
        Crew(config, device=config.device, bytes_per_run=config.bytes_of_a_run()) as crew,
        Board(work.rows, file) as board,
    ):
        say_plan(work, waiting, config, crew)
        for name in waiting:
            crew.add(work.training(name))
        while not crew.idle and not stop:
            for ended in crew.poll(POLL_SECONDS):
                work.take(ended, crew)
            work.look(crew)
            board.show()
        if stop:
            crew.stop()
            work.look(crew)
            board.show()
            raise KeyboardInterrupt("every run has saved; the same command goes on")


def say_plan(work: Sweep, waiting: list[str], config: SweepConfig, crew: Crew) -> None:
    """What will be done, how much of it at a time, and what it takes."""
    done, room = len(work.rows) - len(waiting), crew.room()
    networks = config.steps // GAME_STEPS // config.save_every_games if config.save_every_games else 0
    each = 2 * (CHECKPOINT_BYTES + min(config.replay_size, config.steps)) + (2 + networks) * NETWORK_BYTES
    free = shutil.disk_usage(work.folder).free
    print(f"{len(waiting)} runs to make, {done} finished; {room} at a time, limited by {crew.limits()}")
    print(f"each needs {config.cpus_per_run:g} cores, {config.bytes_of_a_run() / 1e9:.1f} GB of memory", end="")
    print(f" and about {each / 1e9:.1f} GB of disk: {each * len(waiting) / 1e9:.1f} GB of {free / 1e9:.1f} GB free")


def main() -> None:
    sweep(command_line(SweepConfig, OWN))


if __name__ == "__main__":
    exit_with(main)
