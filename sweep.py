"""Train games x seeds, on this machine or on a Ray cluster, and score every network: python sweep.py --help"""

from machine.exits import RunError, UsageError, exit_with  # isort: skip  # first: Ctrl-C is one line now
import itertools
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from atari import games_named
from cluster.board import Row
from cluster.jobs import Crew, Ended, import_ray
from cluster.runs import MACHINES, VARIED, TrainingFlags, Work, command_line, held, roms_of, scores_in
from machine.files import write_csv
from machine.flags import Bounds, flag
from machine.run_config import RunConfig, with_words, words_for

# For the estimate of what a run writes: networks and optimizer, networks alone, agent steps of a long game.
CHECKPOINT_BYTES, NETWORK_BYTES, GAME_STEPS = 30_000_000, 7_000_000, 1_000
OWN_FLAGS = {
    "sweep": ("games", "seeds", "vary", "run_dir", "config", "initial_state_dict", "steps"),
    "machines": MACHINES,
}


@dataclass
class SweepConfig(TrainingFlags):
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
        roms, runs = roms_of(games_named(self.games)), {}
        for rom, (value, common), seed in itertools.product(roms, self._varied().items(), range(self.seeds)):
            config = replace(common, game=rom, seed=seed)
            config.check()
            config.check_new()
            varied = f"-{flag(self.vary[0].lstrip('-'))[2:]}-{value}" if self.vary else ""
            runs[f"{rom}-seed{seed}{varied}"] = config, value
        return runs

    def _varied(self) -> dict[str, RunConfig]:
        """What the runs with each value of --vary have in common; one, of no value, without it."""
        common = self.run("", 0)
        if not self.vary:
            return {"": common}
        name, *values = self.vary[0].lstrip("-").replace("-", "_"), *self.vary[1:]
        if len({*values}) < max(2, len(values)):
            raise UsageError("--vary needs a flag and two or more values: --vary learning-rate 0.0001 0.00025")
        if name in vars(self) and name not in VARIED:
            raise UsageError(f"--vary {self.vary[0]}: runs of one sweep all have the same; vary what is learned with")
        return {value: with_words(common, words_for(name, value), "--vary") for value in values}


class Sweep(Work):
    """The runs of a sweep, on their way from training to a row of scores.csv."""

    def __init__(self, config: SweepConfig, folder: Path, runs: dict[str, tuple[RunConfig, str]]):
        super().__init__(folder, config)
        self._config = config
        self.named_by = ("game", "seed", "value") if config.vary else ("game", "seed")
        self._configs = {name: run for name, (run, _) in runs.items()}
        self.rows = {name: Row(name, run.rom, run.seed, value) for name, (run, value) in runs.items()}
        for name, row in self.rows.items():
            if self._is_finished(name):
                row.state = "finished"
                row.look(folder / name, config.steps)
        self._to_begin = [name for name, row in self.rows.items() if row.state == "waiting"]

    def _scores(self, name: str) -> Path:
        return self.folder / "scores" / f"{name}.csv"

    def _networks(self, name: str) -> list[Path]:
        return [path for path in (self.folder / name / file for file in ("best.pt", "model.pt")) if path.exists()]

    def _is_finished(self, name: str) -> bool:
        """Whether a run was trained and scored, to the end that is asked for now, by an earlier start."""
        try:
            saved = json.loads((self.folder / name / "config.json").read_text())
            newest = max(path.stat().st_mtime for path in self._networks(name))
            return bool(saved["steps"] == self.steps and newest <= self._scores(name).stat().st_mtime)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def begin(self, crew: Crew) -> None:
        for name in self._to_begin:
            self._scores(name).unlink(missing_ok=True)  # of a shorter run
            self.train(crew, self._configs[name], name)
        self._to_begin = []

    def take(self, ended: Ended, crew: Crew) -> None:
        row = self.rows[ended.job.run]
        if not ended.done:
            row.state, row.message = "failed", ended.why
        elif ended.job.doing == "training":
            self.evaluate(crew, self._networks(row.run), self._scores(row.run), row.run)
        else:
            row.state = "finished"
            self.write_scores()

    def write_scores(self) -> None:
        """scores.csv: a row per finished run and network, in the columns of evaluate.py, with network and seed."""
        rows: list[dict[str, Any]] = []
        for row in self.rows.values():
            if row.state == "finished":
                more = {"seed": row.seed, "value": row.value}
                of_run = scores_in(self._scores(row.run))
                rows += [scored | {"network": Path(scored["state_dict"]).stem} | more for scored in of_run]
        if rows:
            write_csv(self.folder / "scores.csv", [*rows[0]], rows)

    def say_plan(self, crew: Crew) -> None:
        waiting, config, at_a_time = len(self._to_begin), self._config, crew.room()
        numbered = config.steps // GAME_STEPS // config.save_every_games if config.save_every_games else 0
        tape = min(max(run.replay_size for run in self._configs.values()), config.steps)
        disk = 2 * (CHECKPOINT_BYTES + tape) + (2 + numbered) * NETWORK_BYTES
        free = shutil.disk_usage(self.folder).free
        done = len(self.rows) - waiting
        print(f"{waiting} runs to make, {done} finished; {at_a_time} at a time, limited by {crew.limits()}")
        of_gpu = f", {_gigabytes(crew.gpu_bytes_per_run)} of a GPU" if crew.gpu_bytes_per_run else ""
        memory = f"{_gigabytes(crew.bytes_per_run)} of memory{of_gpu}"
        print(f"each needs {config.cpus_per_run:g} cores, {memory} and about {_gigabytes(disk)} of disk")
        together = _gigabytes(min(at_a_time, waiting) * crew.bytes_per_run)
        print(f"together {together} of memory at a time, {_gigabytes(disk * waiting)} of {_gigabytes(free)} of disk")


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def sweep(config: SweepConfig) -> Path:
    """Train and score every run that is not yet; returns the folder. Raises `UsageError`.

    A `RunError` names the runs that failed; KeyboardInterrupt, at a signal, says how to go on.
    """
    config.check()
    assert config.run_dir
    runs, folder = config.runs(), config.run_dir.resolve()
    import_ray()
    with held(folder, "sweep.json", config.described(), may_grow="steps"):
        work = Sweep(config, folder, runs)
        if any(row.state == "waiting" for row in work.rows.values()):
            work.go_through(config, max(run.replay_size for run, _ in runs.values()), "sweep.csv")
        work.write_scores()
    failed = [f"{row.run} ({row.message})" for row in work.rows.values() if row.state == "failed"]
    print(f"{len(runs) - len(failed)} of {len(runs)} runs are finished: {folder / 'scores.csv'}")
    if failed:
        raise RunError(f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}; the same command tries again")
    print(f"  draw them  python figures.py aggregate {config.run_dir}")
    return folder


def main() -> None:
    sweep(command_line(SweepConfig, OWN_FLAGS))


if __name__ == "__main__":
    exit_with(main)
