"""Train games x seeds, on this machine or on a Ray cluster, and score every network: python sweep.py --help"""

from runtime.exits import RunError, UsageError, exit_with  # isort: skip  # first: runtime/ says which Python is needed
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cluster.settings import VARIED, TrainingFlags, command_line, locked
from runtime.files import write_csv
from runtime.flags import Bounds, flag
from runtime.run_config import RunConfig, arguments_for, with_arguments


@dataclass
class SweepConfig(TrainingFlags):
    """Train games x seeds, each a run in a folder of its own, and score their networks by the paper's protocol.
    Stopped or killed, the same command resumes it. The other flags are those of q_agent_train.py, for all runs.
    """

    seeds: Annotated[int, Bounds(1, 1_000)] = 1
    """Runs of each game, with seeds 0, 1 and so on."""
    vary: tuple[str, ...] = ()
    """A flag of training and two or more values for it; every game and seed is trained with each of them."""

    @property
    def varied(self) -> str:
        """The field that --vary names; none without it."""
        return "".join(self.vary[:1]).lstrip("-").replace("-", "_")

    def settings(self) -> list[RunConfig]:
        """The config of each game's first run with each varied value; raises `UsageError` for one that is wrong."""
        values, configs = self.vary[1:], []
        if self.vary and len({*values}) < max(2, len(values)):
            raise UsageError("--vary needs a flag and two or more values, as in --vary learning-rate 0.0001 0.00025")
        if self.varied in vars(self) and self.varied not in VARIED:
            raise UsageError(f"--vary {self.vary[0]} is the same for all runs of a sweep; vary a hyperparameter")
        for arguments in [arguments_for(self.varied, value) for value in values] or [[]]:
            for rom in self.roms:
                configs.append(with_arguments(self.run(rom, 0), arguments, "--vary"))
                configs[-1].check()
                configs[-1].check_new()
        return configs

    def name(self, trial: Any) -> str:
        """The name of a trial's run: pong-seed0, pong-seed0-learning-rate-0.0001."""
        varied = f"-{flag(self.varied)[2:]}-{trial.config[self.varied]}" if self.vary else ""
        return f"{trial.config['game']}-seed{trial.config['seed']}{varied}"


def write_scores(folder: Path, varied: str) -> None:
    """scores.csv: a row per finished run and network, in the columns of evaluate.py, with network, seed and value."""
    rows: list[dict[str, Any]] = []
    for file in sorted((folder / "scores").glob("*.csv")):
        config = json.loads((folder / "configs" / f"{file.stem}.json").read_text())
        more = {"seed": config["seed"], "value": config.get(varied, "")}
        for row in csv.DictReader(file.read_text().splitlines()):
            rows.append(row | {"network": Path(row["state_dict"]).stem} | more)
    if rows:
        write_csv(folder / "scores.csv", [*rows[0]], rows)


def sweep(config: SweepConfig) -> Path:
    """Train and score every run that is not finished; returns the folder. Raises `UsageError` and `RunError`."""
    replay_size = max(each.replay_size for each in config.settings())
    with locked(config, "sweep.json") as file:
        from cluster.tuning import run_all

        grid = {"game": config.roms, "seed": [*range(config.seeds)], config.varied: [*config.vary[1:]]}
        space = {name: {"grid_search": values} for name, values in grid.items() if values}
        more = {"file": str(file), "roms": [], "stages": 1, "networks": ["best.pt", "model.pt"]}
        try:
            results, failed = run_all(config, file.parent, replay_size, space | more, trial_name_creator=config.name)
        finally:
            write_scores(file.parent, config.varied)
    if failed:
        raise RunError(failed)
    print(f"{len(results)} runs are finished; draw them: python figures.py aggregate {config.run_dir}")
    return file.parent


def main() -> None:
    sweep(command_line(SweepConfig))


if __name__ == "__main__":
    exit_with(main)
