"""Train games x seeds, on this machine or on a Ray cluster, and score every network: python sweep.py --help"""

from machine.exits import UsageError, exit_with  # isort: skip  # first: Ctrl-C is one line now
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cluster.settings import VARIED, TrainingFlags, command_line, locked, require
from config import RunConfig, with_words, words_for
from machine.files import write_csv
from machine.flags import Bounds, flag

OWN_FLAGS = ("seeds", "vary")


@dataclass
class SweepConfig(TrainingFlags):
    """Train games x seeds, each a run in a folder of its own, and score their networks by the paper's protocol.

    Stopped or killed, the same command resumes it; what is finished is not touched. The other flags are those of
    q_agent_train.py, and hold for all runs.
    """

    seeds: Annotated[int, Bounds(1, 1_000)] = 1
    """Runs of each game, with seeds 0, 1 and so on."""
    vary: tuple[str, ...] = ()
    """A flag of training and two or more values for it; every game and seed is trained with each of them."""

    def varied(self) -> tuple[str, list[str]]:
        """The field of --vary and its values; one of no name and no value without it. Raises `UsageError`."""
        name, *values = self.vary or ("", "")
        name = name.lstrip("-").replace("-", "_")
        if self.vary and len({*values}) < max(2, len(values)):
            raise UsageError("--vary needs a flag and two or more values: --vary learning-rate 0.0001 0.00025")
        if name in vars(self) and name not in VARIED:
            raise UsageError(f"--vary {self.vary[0]}: runs of one sweep all have the same; vary what is learned with")
        return name, values

    def runs(self) -> dict[str, tuple[RunConfig, str]]:
        """The config and the varied value of each run, by its name; raises `UsageError` for one that is wrong."""
        (name, values), runs = self.varied(), {}
        for rom, value, seed in itertools.product(self.roms, values, range(self.seeds)):
            config = with_words(self.run(rom, seed), words_for(name, value) if name else [], "--vary")
            config.check()
            config.check_new()
            runs[run_name({"game": rom, "seed": seed} | ({name: value} if name else {}))] = config, value
        return runs


def run_name(own: dict[str, Any]) -> str:
    """The name of the run with these flags of its own: pong-seed0, pong-seed0-learning-rate-0.0001."""
    varied = (f"-{flag(name)[2:]}-{own[name]}" for name in own if name in VARIED)
    return f"{own['game']}-seed{own['seed']}{''.join(varied)}"


def write_scores(folder: Path, runs: dict[str, tuple[RunConfig, str]]) -> None:
    """scores.csv: a row per finished run and network, in the columns of evaluate.py, with network, seed and value."""
    from cluster.trials import scores_in

    rows: list[dict[str, Any]] = []
    for run, (config, value) in runs.items():
        if (file := folder / "scores" / f"{run}.csv").exists():
            more = {"seed": config.seed, "value": value}
            rows += [row | {"network": Path(row["state_dict"]).stem} | more for row in scores_in(file)]
    if rows:
        write_csv(folder / "scores.csv", [*rows[0]], rows)


def sweep(config: SweepConfig) -> Path:
    """Train and score every run that is not finished; returns the folder.

    Raises `UsageError`, and a `RunError` that names the runs that failed; KeyboardInterrupt says how to resume.
    """
    runs, (varied, values) = config.runs(), config.varied()
    require("ray.tune")
    with locked(config, "sweep.json", OWN_FLAGS) as file:
        from cluster.tuning import check_results, run_all, tune

        seeds = [*range(config.seeds)]
        space = {"game": tune.grid_search(config.roms), "seed": tune.grid_search(seeds)}
        space |= {varied: tune.grid_search(values)} if varied else {}
        common = {"file": str(file), "roms": [], "stages": 1, "networks": ["best.pt", "model.pt"]}
        replay_size = max(run.replay_size for run, _ in runs.values())
        try:
            results = run_all(config, file, replay_size, space | common, lambda trial: run_name(trial.config))
        finally:
            write_scores(file.parent, runs)
        check_results(results)
    print(f"{len(runs)} runs are finished: {file.parent / 'scores.csv'}")
    print(f"  draw them  python figures.py aggregate {config.run_dir}")
    return file.parent


def main() -> None:
    sweep(command_line(SweepConfig, OWN_FLAGS))


if __name__ == "__main__":
    exit_with(main)
