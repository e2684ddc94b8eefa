"""Search for constants with Optuna, every trial a training run, in parallel on Ray: python search.py --help"""

from machine.exits import UsageError, exit_with  # isort: skip  # first: Ctrl-C is one line now
import itertools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atari import paper_scores
from cluster.settings import VARIED, TrainingFlags, command_line, locked, require
from config import RunConfig, with_words, words_for
from machine.files import replacing, write_text
from machine.flags import Count, flag

OWN_FLAGS = ("over", "trials", "seed")
STAGES = 5  # a trial is scored at each fifth of its agent steps ...
PRUNED_FROM = 3  # ... and may be given up from this one on: before it most are near random play
LOGARITHMIC_FROM = 30  # a range that spans such a factor is searched by its logarithm
SYNTAX = "--over wants a range or choices for each flag: learning-rate=0.00003..0.001 optimizer=rmsprop,adam"


@dataclass
class SearchConfig(TrainingFlags):
    """Search for the constants with the best score, by trials: training runs, each scored by the paper's protocol.

    A trial is scored at each fifth of its agent steps, on the same games as all others; from the third on, behind its
    warm-up, it is given up where it is worse than most. Stopped or killed, the same command resumes it. Of several
    games the mean of the normalised scores counts. The other flags hold for all trials.
    """

    over: tuple[str, ...] = ()
    """What is searched: a range or choices for a flag, learning-rate=0.00003..0.001 optimizer=rmsprop,adam.
    A range that spans a factor of 30 is searched by its logarithm."""
    trials: Count = 40
    """Trials, those that are given up among them."""

    def ends(self) -> dict[str, list[Any]]:
        """The two ends of the range, as numbers, or the choices, as texts, of each flag; raises `UsageError`."""
        ends: dict[str, list[Any]] = {}
        for each in self.over:
            name, _, space = each.lstrip("-").partition("=")
            name, separator = name.replace("-", "_"), ".." if ".." in space else ","
            if name not in VARIED or name in ends:
                why = "comes twice" if name in ends else "cannot be searched"
                raise UsageError(f"--over: {flag(name)} {why}; {SYNTAX}")
            ends[name] = space.split(separator)
            if len({*ends[name]}) < max(2, len(ends[name])):
                raise UsageError(f"{SYNTAX}; '{each}' has fewer than two, or one twice")
            values = [getattr(self.with_values("Breakout", {name: text}), name) for text in ends[name]]
            if separator == "..":
                if [type(value) for value in values] not in ([int, int], [float, float]) or values[0] >= values[1]:
                    raise UsageError(f"{SYNTAX}; '{each}' is not a range from a number to a larger one")
                ends[name] = values
        if not ends:
            raise UsageError(SYNTAX)
        for corner in itertools.product(*ends.values()):
            config = self.with_values("Breakout", dict(zip(ends, corner, strict=True)))
            config.check()
            config.check_new()
        return ends

    def with_values(self, rom: str, values: dict[str, Any]) -> RunConfig:
        """The config of a trial's run."""
        words = [word for name, value in values.items() for word in words_for(name, str(value))]
        return with_words(self.run(rom, self.seed), words, "--over")


def domain(ends: list[Any]) -> Any:
    """Tune's domain of a range, or of choices."""
    from ray import tune

    low, high = ends[0], ends[-1]
    if isinstance(low, str):
        return tune.choice(ends)
    logarithmic = low > 0 and high / low >= LOGARITHMIC_FROM
    if isinstance(low, int):
        return (tune.lograndint if logarithmic else tune.randint)(low, high + 1)
    return (tune.loguniform if logarithmic else tune.uniform)(low, high)


def tuning(config: SearchConfig, folder: Path, warm_up: int) -> dict[str, Any]:
    """The study in study.db as Tune's search algorithm, and what gives a trial up, never in its warm-up."""
    import optuna
    from ray.tune.schedulers import MedianStoppingRule
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # Optuna's, of its pictures, and of a score that is reported again after a restart
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    algorithm = OptunaSearch(storage=storage, study_name="search", seed=config.seed)
    # Of several trials none pauses for another, as Tune could not resume it where it was.
    rule = {"grace_period": max(PRUNED_FROM, STAGES * warm_up // config.steps + 1), "min_time_slice": float("inf")}
    scheduler = MedianStoppingRule("training_iteration", min_samples_required=5, **rule)
    goal = {"metric": "score", "mode": "max"}
    return {"search_alg": algorithm, "scheduler": scheduler, "num_samples": config.trials} | goal


def search(config: SearchConfig) -> Path:
    """Run every trial that is not finished; returns the folder.

    Raises `UsageError`, and a `RunError` that names the trials that failed; KeyboardInterrupt says how to resume.
    """
    ends, roms = config.ends(), config.roms
    if len(roms) > 1 and (lacking := [rom for rom in roms if paper_scores(rom) is None]):
        raise UsageError(f"--games: {lacking[0]} has no score in the paper to be normalised by; search it alone")
    require("ray.tune", "optuna")
    with locked(config, "search.json", OWN_FLAGS) as file:
        from cluster.tuning import check_results, run_all

        space = {name: domain(values) for name, values in ends.items()}
        common = {"file": str(file), "roms": roms, "stages": STAGES, "networks": ["model.pt"]}
        largest = [int(max(ends.get(name, [getattr(config, name)]))) for name in ("replay_size", "replay_start_size")]
        more = tuning(config, file.parent, largest[1])
        results = run_all(config, file, largest[0], space | common, lambda trial: f"trial-{trial.trial_id}", **more)
        report(config, file.parent, results, [*ends])
        check_results(results)
    return file.parent


def report(config: SearchConfig, folder: Path, results: Any, names: list[str]) -> None:
    """Write and print the table of all trials, the best as YAML, and Optuna's pictures."""
    import matplotlib as mpl
    import optuna

    mpl.use("agg")
    columns = {"trial_id": "trial", "training_iteration": "fifths", "score": "score"}
    table = results.get_dataframe().rename(columns=columns | {f"config/{name}": flag(name)[2:] for name in names})
    table = table.reindex(columns=[*columns.values(), *(flag(name)[2:] for name in names)])
    write_text(folder / "trials.csv", table.to_csv(index=False))
    print(table.to_string(index=False))
    complete = table[table["fifths"] == STAGES].sort_values("score")
    if complete.empty:
        return
    best = complete.iloc[-1]
    values = {name: best[flag(name)[2:]] for name in names}
    head = f"# Trial {best.trial} of {len(table)} on {', '.join(config.roms)}: {best.score:.1f}.\n"
    lines = config.with_values(config.roms[0], values).yaml_lines()
    write_text(folder / "best.yaml", head + "".join(f"{line}\n" for line in lines))
    print(f"the best: trial {best.trial}, {best.score:.1f}; python q_agent_train.py --config {folder}/best.yaml")
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'study.db'}")
    some = complete["score"].nunique() > 1  # else no flag is more important than another
    for name in ("optimization_history", "slice", *["param_importances"] * some):
        axes = np.ravel(getattr(optuna.visualization.matplotlib, f"plot_{name}")(study))
        with replacing(folder / f"{name}.png") as temporary:
            axes[0].figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")


def main() -> None:
    search(command_line(SearchConfig, OWN_FLAGS))


if __name__ == "__main__":
    exit_with(main)
