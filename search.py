"""Search for constants with Optuna, every trial a training run, in parallel on Ray: python search.py --help"""

from machine.exits import RunError, UsageError, exit_with  # isort: skip  # first: Ctrl-C is one line now
import dataclasses
import itertools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atari import paper_scores
from cluster.board import Row
from cluster.jobs import Crew, Ended, import_ray
from cluster.runs import MACHINES, VARIED, TrainingFlags, Work, command_line, held, roms_of, scores_in
from machine.files import failing_clearly, replacing, write_csv, write_text
from machine.flags import Count, flag
from machine.run_config import RunConfig, with_words, words_for

STAGES = 5  # a trial is scored at each fifth of its agent steps ...
PRUNED_FROM = 3  # ... and may be given up from this one on: before it most are near random play
LOGARITHMIC_FROM = 30  # a range that spans such a factor is searched by its logarithm
SYNTAX = "--over wants a range or choices for each flag: learning-rate=0.00003..0.001 optimizer=rmsprop,adam"
OWN_FLAGS = {
    "search": ("games", "over", "trials", "seed", "run_dir", "config", "initial_state_dict", "steps"),
    "machines": MACHINES,
}


def import_optuna() -> Any:
    """Optuna, or a `UsageError` that says how to install it."""
    try:
        import optuna
    except ImportError:
        raise UsageError("Optuna is not installed: pip install -r requirements-cluster.txt") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of its pictures, which are as pinned
    return optuna


def median_pruner() -> Any:
    """What gives a trial up at a fifth, from `PRUNED_FROM` on, where it is worse than the median of those before."""
    return import_optuna().pruners.MedianPruner(n_warmup_steps=PRUNED_FROM)


@dataclass
class SearchConfig(TrainingFlags):
    """Search for the constants with the best score, by trials: training runs, each scored by the paper's protocol.

    A trial is scored at each fifth of its agent steps, on the same games as all others; from the third on, behind its
    warm-up, it is given up where it is worse than most. Stopped or killed, the same command goes on. The other flags
    hold for all trials.
    """

    games: tuple[str, ...] = ()
    """The games of each trial, by any of their names; of several, the mean of the normalised scores counts."""
    over: tuple[str, ...] = ()
    """What is searched: a range or choices for a flag, learning-rate=0.00003..0.001 optimizer=rmsprop,adam.
    A range that spans a factor of 30 is searched by its logarithm."""
    trials: Count = 40
    """Trials, those that are given up among them."""

    def spaces(self) -> dict[str, Any]:
        """Optuna's distribution for each flag of --over; raises `UsageError` for what cannot be searched."""
        spaces: dict[str, Any] = {}
        for each in self.over:
            name, _, space = each.lstrip("-").partition("=")
            name = name.replace("-", "_")
            if not space:
                raise UsageError(f"{SYNTAX}; '{each}' has neither")
            if name not in VARIED or name in spaces:
                why = "comes twice" if name in spaces else "cannot be searched"
                raise UsageError(f"--over: {flag(name)} {why}; {SYNTAX}")
            spaces[name] = self._space(name, space)
        if not spaces:
            raise UsageError(SYNTAX)
        self._check_corners(spaces)
        return spaces

    def _space(self, name: str, space: str) -> Any:
        distributions, is_range = import_optuna().distributions, ".." in space
        texts = space.split("..") if is_range else space.split(",")
        values = [getattr(with_words(self.run("Breakout", 0), words_for(name, text), "--over"), name) for text in texts]
        if len({*texts}) < max(2, len(texts)):
            raise UsageError(f"{SYNTAX}; '{name}={space}' has fewer than two, or one twice")
        if not is_range:
            return distributions.CategoricalDistribution(texts)
        if len(values) > 2 or any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
            raise UsageError(f"{SYNTAX}; '{name}={space}' is no range of numbers")
        low, high = values
        if low >= high:
            raise UsageError(f"--over {name}={space}: the lower end comes first")
        logarithmic = low > 0 and high / low >= LOGARITHMIC_FROM
        kind = distributions.IntDistribution if isinstance(low, int) else distributions.FloatDistribution
        return kind(low, high, log=logarithmic)

    def _check_corners(self, spaces: dict[str, Any]) -> None:
        """Raise `UsageError` where choices and ends of ranges make a run that cannot be."""
        ends = [getattr(space, "choices", None) or (space.low, space.high) for space in spaces.values()]
        for values in itertools.product(*ends):
            config = self.with_values("Breakout", dict(zip(spaces, values, strict=True)))
            try:
                config.check()
                config.check_new()
            except UsageError as error:
                said = ", ".join(f"{flag(name)} {value}" for name, value in zip(spaces, values, strict=True))
                raise UsageError(f"--over: no run can have {said}: {error}") from None

    def with_values(self, rom: str, values: dict[str, Any]) -> RunConfig:
        """The config of a trial's run."""
        words = [word for name, value in values.items() for word in words_for(name, str(value))]
        return with_words(self.run(rom, self.seed), words, "--over")


class Search(Work):
    """The trials under way: training to a fifth, its evaluation, what Optuna says to that."""

    def __init__(self, config: SearchConfig, folder: Path, study: Any, spaces: dict[str, Any]):
        super().__init__(folder, config)
        self.config = config
        self.study = study
        self.spaces = spaces
        self.roms = roms_of(config.games)
        self._trials: dict[int, Any] = {}  # those under way, Optuna's own objects
        self._scores: dict[int, dict[str, float]] = {}  # of each, what its games gave at this fifth
        self._gone_on = False

    def trials(self) -> list[Any]:
        """All trials; but for those that were killed while Optuna wrote down what they are."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.params.keys() == self.spaces.keys()]

    def begin(self, crew: Crew) -> None:
        if not self._gone_on:
            self._go_on(crew)
        at_a_time = max(1, crew.room() // len(self.roms))
        while len(self._trials) < at_a_time and len(self.trials()) < self.config.trials:
            number = len(self.study.get_trials(deepcopy=False))
            # A new one for each trial: what is drawn hangs on its number and on what is known, not on who was killed.
            seed = int(np.random.SeedSequence((self.config.seed, number)).generate_state(1)[0])
            self.study.sampler = import_optuna().samplers.TPESampler(seed=seed)
            trial = self.study.ask(self.spaces)
            self._train(trial, 0, crew)

    def _go_on(self, crew: Crew) -> None:
        """Take up the trials that were under way when the search was stopped or killed."""
        self._gone_on = True
        for frozen in self.trials():
            for rom in self.roms:
                row = self._row(frozen, rom)
                row.state = _state(frozen)
                row.look(self.folder / row.run, self.steps)
            if _state(frozen) == "running":
                # Optuna makes the object that reports from the trial's id alone.
                trial = import_optuna().trial.Trial(self.study, frozen._trial_id)
                if reported := frozen.intermediate_values:
                    self._go_from(trial, max(reported), reported[max(reported)], crew)
                else:
                    self._train(trial, 0, crew)

    def _row(self, trial: Any, rom: str) -> Row:
        name = f"trial{trial.number:03}-{rom}"
        values = ", ".join(f"{flag(key)[2:]}={_short(value)}" for key, value in trial.params.items())
        return self.rows.setdefault(name, Row(name, rom, self.config.seed, values))

    def _train(self, trial: Any, stage: int, crew: Crew) -> None:
        """Train a trial on from one of its fifths, 0 for its start, to the next."""
        self._trials[trial.number], self._scores[trial.number] = trial, {}
        for rom in self.roms:
            config = self.config.with_values(rom, trial.params)
            steps = max(self._fifth(stage + 1), config.replay_start_size + 1)  # no run ends in its warm-up
            row = self._row(trial, rom)
            row.state = "waiting"
            config = dataclasses.replace(config, steps=steps)
            self.train(crew, config, row.run, (trial.number, stage + 1, rom), first=stage > 0)

    def _fifth(self, stage: int) -> int:
        """The agent steps at which a fifth of a trial ends."""
        return self.steps * stage // STAGES

    def take(self, ended: Ended, crew: Crew) -> None:
        number, stage, rom = ended.job.key
        if (trial := self._trials.get(number)) is None:
            return  # it has failed in another game
        row, scores = self._row(trial, rom), self.folder / "scores" / f"{ended.job.run}-{stage}.csv"
        if not ended.done:
            self._tell(trial, "FAIL", message=ended.why)
        elif ended.job.doing == "training":
            self.evaluate(crew, [self.folder / row.run / "model.pt"], scores, row.run, ended.job.key)
        else:
            mean = float(scores_in(scores)[0]["mean"])
            paper = paper_scores(rom) if len(self.roms) > 1 else None
            self._scores[number][rom] = paper.normalised(mean) if paper else mean
            row.message = f"{mean:.1f} after fifth {stage}"
            if len(self._scores[number]) == len(self.roms):
                value = float(np.mean([*self._scores[number].values()]))
                trial.report(value, stage)
                self._go_from(trial, stage, value, crew)

    def _go_from(self, trial: Any, stage: int, value: float, crew: Crew) -> None:
        """What follows a fifth whose value is reported: the end, pruning, or training to the next."""
        self._trials[trial.number] = trial
        warm_up = self.config.with_values(self.roms[0], trial.params).replay_start_size
        if stage == STAGES:
            self._tell(trial, "COMPLETE", value=value)
        elif self._fifth(stage) > warm_up and trial.should_prune():
            self._tell(trial, "PRUNED")
        else:
            self._train(trial, stage, crew)

    def _tell(self, trial: Any, state: str, *, value: float | None = None, message: str = "") -> None:
        if message:
            trial.set_user_attr("why", message)
        frozen = self.study.tell(trial, value, import_optuna().trial.TrialState[state])
        del self._trials[trial.number]
        for rom in self.roms:
            row = self._row(trial, rom)
            row.state, row.message = _state(frozen), message or row.message

    def say_plan(self, crew: Crew) -> None:
        what = f"{self.config.trials} trials over {', '.join(flag(name)[2:] for name in self.spaces)}"
        print(f"{what}, {len(self.trials())} begun; {crew.room()} runs at a time, limited by {crew.limits()}")


def _state(trial: Any) -> str:
    return {"FAIL": "failed"}.get(trial.state.name, str(trial.state.name).lower())


def search(config: SearchConfig) -> Path:
    """Make every trial that is not yet; returns the folder. Raises `UsageError`, and `RunError` that names the failed.

    KeyboardInterrupt, at a signal, says how to go on.
    """
    config.check()
    assert config.run_dir
    optuna, folder, spaces = import_optuna(), config.run_dir.resolve(), config.spaces()
    roms = roms_of(config.games)
    if len(roms) > 1 and (lacking := [rom for rom in roms if paper_scores(rom) is None]):
        raise UsageError(f"--games: {lacking[0]} has no score in the paper to be normalised by; search it alone")
    import_ray()
    largest = max([config.replay_size, *(int(s.high) for name, s in spaces.items() if name == "replay_size")])
    with held(folder, "search.json", config.described(), may_grow="trials"):
        try:
            file, pruner = f"sqlite:///{folder / 'study.db'}", median_pruner()
            named = {"study_name": "search", "direction": "maximize", "load_if_exists": True}
            work = Search(config, folder, optuna.create_study(storage=file, pruner=pruner, **named), spaces)
            if sum(trial.state.is_finished() for trial in work.trials()) < config.trials:
                work.go_through(config, largest, "search.csv")
        except optuna.exceptions.StorageInternalError as error:
            raise RunError(f"{folder / 'study.db'} cannot be used: {str(error).splitlines()[0]}") from None
        with failing_clearly(folder):
            report(work)
    failed = [trial for trial in work.trials() if _state(trial) == "failed"]
    if failed:
        why = "; ".join(f"trial {trial.number} ({trial.user_attrs.get('why')})" for trial in failed)
        raise RunError(f"{len(failed)} of {len(work.trials())} trials failed: {why}")
    return folder


def report(work: Search) -> None:
    """Write and print the table of all trials, the best as YAML, and Optuna's pictures; raises `OSError`."""
    fifths = [f"fifth_{stage}" for stage in range(1, STAGES + 1)]
    columns = ["trial", "state", *fifths, *(flag(name)[2:] for name in work.spaces)]
    rows: list[dict[str, Any]] = []
    for trial in work.trials():
        values = [trial.intermediate_values.get(stage) for stage in range(1, STAGES + 1)]
        parameters = [trial.params[name] for name in work.spaces]
        rows.append(dict(zip(columns, [trial.number, _state(trial), *values, *parameters], strict=True)))
    write_csv(work.folder / "trials.csv", columns, rows)
    for row in [dict(zip(columns, columns, strict=True)), *rows]:
        print(*(f"{_short(row[column]):>12}" for column in columns))
    complete = [trial for trial in work.trials() if _state(trial) == "complete"]
    if not complete:
        return
    best = max(complete, key=lambda trial: trial.value)
    after = f"{best.value:.1f} after {work.steps:,} agent steps"
    head = f"# Trial {best.number} of {len(rows)} on {', '.join(work.roms)}: {after}.\n"
    lines = work.config.with_values(work.roms[0], best.params).yaml_lines()
    write_text(work.folder / "best.yaml", head + "".join(f"{line}\n" for line in lines))
    print(f"the best: trial {best.number}, {best.value:.1f}; python q_agent_train.py --config {work.folder}/best.yaml")
    draw(work, complete)


def draw(work: Search, complete: list[Any]) -> None:
    """Optuna's pictures: the history, the importance of each flag, a slice along each."""
    import matplotlib as mpl

    mpl.use("agg")
    pictures = import_optuna().visualization.matplotlib
    drawn = {"history": pictures.plot_optimization_history, "slices": pictures.plot_slice}
    if len({trial.value for trial in complete}) > 1:
        drawn["importances"] = pictures.plot_param_importances
    for name, plot in drawn.items():
        axes = np.ravel(plot(work.study))
        with replacing(work.folder / f"{name}.png") as temporary:
            axes[0].figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    search(command_line(SearchConfig, OWN_FLAGS))


if __name__ == "__main__":
    exit_with(main)
