"""Search for constants with Optuna, every trial a training run, in parallel on Ray: python search.py --help"""

from runtime.exits import RunError, UsageError, exit_with  # isort: skip  # first: runtime/ says which Python is needed
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from atari import paper_scores
from cluster.settings import VARIED, TrainingFlags, command_line, locked, require
from runtime.files import replacing, write_text
from runtime.flags import Bounds, Count
from runtime.run_config import RunConfig, arguments_for, with_arguments

STAGES = 5  # a trial is scored at each fifth of its agent steps ...
PRUNED_FROM = 3  # ... and may be stopped from this one on: before it most are near the random agent's score
LOGARITHMIC_FROM = 30  # a range that spans this factor is searched by its logarithm
SYNTAX = "--over needs a range or choices for each flag, as in learning-rate=0.00003..0.001 optimizer=rmsprop,adam"


@dataclass
class SearchConfig(TrainingFlags):
    """Search for the constants with the best score, by trials: training runs, each scored by the paper's protocol.

    A trial is scored at each fifth of its agent steps; from the third on, after its warm-up, it is stopped where it is
    worse than most. With several games the mean of the normalised scores counts. Stopped or killed, the same command
    resumes it. The other flags hold for all trials.
    """

    over: tuple[str, ...] = ()
    """What is searched: a range or choices for a flag, learning-rate=0.00003..0.001 optimizer=rmsprop,adam.
    A range that spans a factor of 30 is searched by its logarithm."""
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0
    """Seed of the search, and of the run of each trial."""
    trials: Count = 40
    """Trials, including those that are stopped early."""

    def spaces(self) -> tuple[dict[str, Any], list[RunConfig]]:
        """Tune's domain for each flag of --over, and the runs at its corners; raises `UsageError` for a wrong one."""
        from ray import tune

        kinds = {int: (tune.randint, tune.lograndint), float: (tune.uniform, tune.loguniform)}
        domains: dict[str, Any] = {}
        ends: dict[str, list[Any]] = {}
        for each in self.over or [""]:
            name, _, space = each.lstrip("-").partition("=")
            name, texts = name.replace("-", "_"), space.split(".." if ".." in space else ",")
            if name not in VARIED or name in domains or len({*texts}) < max(2, len(texts)):
                raise UsageError(f"{SYNTAX}, got '{each}', or its flag is there twice or is not a hyperparameter")
            values = [getattr(self.with_values("Breakout", {name: text}), name) for text in texts]
            domains[name], ends[name] = tune.choice(texts), texts
            if ".." in space:
                low, high, kind = values[0], values[-1], type(values[0])
                if kind not in kinds or len(values) > 2 or low >= high:
                    raise UsageError(f"{SYNTAX}; a range goes from a number to a larger one, got '{each}'")
                draw = kinds[kind][low > 0 and high / low >= LOGARITHMIC_FROM]
                domains[name], ends[name] = draw(low, high + (kind is int)), values
        corners = [dict(zip(ends, corner, strict=True)) for corner in itertools.product(*ends.values())]
        configs = [self.with_values("Breakout", corner) for corner in corners]
        for config in configs:
            config.check()
            config.check_new()
        return domains, configs

    def with_values(self, rom: str, values: dict[str, Any]) -> RunConfig:
        """The config of a trial's run; raises `UsageError` for a value of another type than its flag's."""
        arguments = [each for name, value in values.items() for each in arguments_for(name, str(value))]
        return with_arguments(self.run(rom, self.seed), arguments, "--over")


def search(config: SearchConfig) -> Path:
    """Run every trial that is not finished; returns the folder. Raises `UsageError` and `RunError`."""
    require("ray", "optuna")
    (domains, corners), roms = config.spaces(), config.roms
    if len(roms) > 1 and (lacking := [rom for rom in roms if paper_scores(rom) is None]):
        raise UsageError(f"--games: {lacking[0]} has no score in the paper to normalise by; search it alone")
    with locked(config, "search.json") as file:
        from cluster.tuning import run_all, search_tools

        warm_up = max(corner.replay_start_size for corner in corners)
        more = search_tools(file.parent, config.seed, max(PRUNED_FROM, STAGES * warm_up // config.steps + 1))
        space = domains | {"file": str(file), "roms": roms, "stages": STAGES, "networks": ["model.pt"]}
        largest = max(corner.replay_size for corner in corners)
        results, failed = run_all(config, file.parent, largest, space, num_samples=config.trials, **more)
        report(config, file.parent, results)
    if failed:
        raise RunError(failed)
    return file.parent


def report(config: SearchConfig, folder: Path, results: list[Any]) -> None:
    """Write the best of the trials that were not stopped as a config, and draw Optuna's pictures of the study."""
    import matplotlib as mpl
    import optuna

    complete = [result for result in results if result.metrics.get("training_iteration") == STAGES]
    if not complete:
        return
    mpl.use("agg")
    best = max(complete, key=lambda result: result.metrics["score"])
    head = f"# {Path(best.path).name} on {', '.join(config.roms)}: {best.metrics['score']:.1f}"
    values = {name: value for name, value in best.config.items() if name in VARIED}
    write_text(folder / "best.yaml", "\n".join([head, *config.with_values(config.roms[0], values).yaml_lines(), ""]))
    print(f"{head[2:]}; python q_agent_train.py --config {folder}/best.yaml")
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'study.db'}")
    several = len({result.metrics["score"] for result in complete}) > 1  # else no flag is more important than another
    for name in ("optimization_history", "slice", *["param_importances"] * several):
        axes = np.ravel(getattr(optuna.visualization.matplotlib, f"plot_{name}")(study))
        with replacing(folder / f"{name}.png") as temporary:
            axes[0].figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")


def main() -> None:
    search(command_line(SearchConfig))


if __name__ == "__main__":
    exit_with(main)
