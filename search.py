"""Search for constants with Optuna, every trial a training run, in parallel on Ray: python search.py --help"""

from machine.exits import RunError, StopSignal, UsageError, exit_with  # isort: skip  # first: Ctrl-C is one line now
import csv
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atari import paper_scores
from cluster.board import Board, Row
from cluster.jobs import Cluster, Crew, Ended, Job, import_ray
from cluster.runs import TrainingFlags, command_line, held, roms_of
from config import RunConfig, with_words
from machine.files import replacing, write_csv, write_text
from machine.flags import Count, flag

POLL_SECONDS = 2.0
STAGES = 5  # a trial is evaluated at each fifth of its agent steps, and may be pruned there
EVALUATION_SEED = 2015  # of every trial: the same games
LOGARITHMIC_FROM = 30  # a range that spans such a factor is searched by its logarithm
SYNTAX = "--over wants a range or choices for each flag: learning-rate=0.00003..0.001 optimizer=rmsprop,adam"
NOT_SEARCHED = ("game", "games", "seed", "run_dir", "config", "steps", "device", "webhook", "save_every_games")
MAY_CHANGE = ("trials", "device", "save_every_games", "checkpoint_minutes")
OWN = {
    "search": ("games", "over", "trials", "seed", "run_dir", "config", "initial_state_dict", "steps"),
    "machines": ("address", "cpus_per_run", "gpus_per_run", "device", "deterministic"),
}


def import_optuna() -> Any:
    """Optuna, or a `UsageError` that says how to install it."""
    try:
        import optuna
    except ImportError:
        raise UsageError("Optuna is not installed: pip install -r requirements-cluster.txt") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass
class SearchConfig(Cluster, TrainingFlags):
    """Search for the constants with the best score, by trials: training runs, each scored by the paper's protocol.

    A trial is scored at each fifth of its agent steps, on the same 30 games as all others, and given up where it is
    worse than most. Stopped or killed, the same command goes on. The other flags hold for all trials.
    """

    games: tuple[str, ...] = ()
    """The games of each trial, by any of their names; of several, the mean of the normalised scores counts."""
    over: tuple[str, ...] = ()
    """What is searched: a range or choices for a flag, learning-rate=0.00003..0.001 optimizer=rmsprop,adam.
    A range that spans a factor of 30 is searched by its logarithm."""
    trials: Count = 40
    """Trials, those that are given up among them."""

    def spaces(self) -> dict[str, Any]:
        """Optuna's distribution for each flag of --over; raises `UsageError` for one that cannot be searched."""
        kinds = {field.name: field.type for field in dataclasses.fields(RunConfig)}
        spaces = {}
        for each in self.over:
            name, _, space = each.lstrip("-").partition("=")
            name = name.replace("-", "_")
            if not space:
                raise UsageError(f"{SYNTAX}; '{each}' has neither")
            if name not in kinds or name in NOT_SEARCHED or name in spaces:
                why = "comes twice" if name in spaces else "cannot be searched"
                raise UsageError(f"--over: {flag(name)} {why}; {SYNTAX}")
            spaces[name] = self._space(name, space)
        if not spaces:
            raise UsageError(SYNTAX)
        return spaces

    def _space(self, name: str, space: str) -> Any:
        distributions = import_optuna().distributions
        ends = space.split("..")
        for value in ends if len(ends) == 2 else space.split(","):
            with_words(self.run("Breakout", 0), words_for(name, value), "--over").check()  # type and bounds
        if len(ends) != 2:
            choices = space.split(",")
            if len({*choices}) < max(2, len(choices)):
                raise UsageError(f"{SYNTAX}; '{name}={space}' has fewer than two, or one twice")
            return distributions.CategoricalDistribution(choices)
        low, high = map(float, ends)
        if low >= high:
            raise UsageError(f"--over {name}={space}: the lower end comes first")
        logarithmic = low > 0 and high / low >= LOGARITHMIC_FROM
        whole = isinstance(getattr(with_words(self.run("Breakout", 0), words_for(name, ends[0]), ""), name), int)
        if whole:
            return distributions.IntDistribution(int(low), int(high), log=logarithmic)
        return distributions.FloatDistribution(low, high, log=logarithmic)

    def trial_run(self, rom: str, parameters: dict[str, Any], stage: int) -> RunConfig:
        """The config of a trial's run up to one of its fifths; raises `UsageError` where it cannot be."""
        config = self.run(rom, self.seed)
        for name, value in parameters.items():
            config = with_words(config, words_for(name, str(value)), "--over")
        return dataclasses.replace(config, steps=self.steps * stage // STAGES)

    def described(self) -> dict[str, Any]:
        """What search.json holds: all that the trials depend on."""
        left_out = {"run_dir", "config", *(field.name for field in dataclasses.fields(Cluster))}
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}
        start = self.initial_state_dict and str(self.initial_state_dict)
        return json.loads(json.dumps(values | {"initial_state_dict": start}))  # lists, as the file gives them back


def words_for(name: str, value: str) -> list[str]:
    """The command line that gives a flag this value."""
    typed = flag(name)
    switches = {"true": typed, "false": f"--no-{typed[2:]}"}
    return [switches[value.lower()]] if value.lower() in switches else [typed, value]


def normalised(rom: str, mean: float) -> float:
    """The objective's share of a game: its mean score, in percent of the human tester's where the paper has one."""
    paper = paper_scores(rom)
    return paper.normalised(mean) if paper else mean


class Search:
    """The trials under way: training to a fifth, its evaluation, what Optuna says to that."""

    def __init__(self, config: SearchConfig, folder: Path, study: Any, spaces: dict[str, Any]):
        self.config = config
        self.folder = folder
        self.study = study
        self.spaces = spaces
        self.roms = roms_of(config.games)
        self.rows: dict[str, Row] = {}
        self.failed: list[str] = []
        self._trials: dict[int, Any] = {}  # those under way, Optuna's own objects
        self._scores: dict[int, dict[str, float]] = {}  # of each, what its games gave at this fifth
        for part in ("logs", "scores"):
            (folder / part).mkdir(exist_ok=True)

    def go_on(self, crew: Crew) -> None:
        """Take up the trials that were under way when the search was stopped or killed."""
        for frozen in self.study.get_trials(deepcopy=False):
            for rom in self.roms:
                self._row(frozen.number, frozen.params, rom).state = frozen.state.name.lower()
            if frozen.state.name == "RUNNING":
                # Optuna makes the object that reports from the trial's id alone.
                trial = import_optuna().trial.Trial(self.study, frozen._trial_id)
                self._begin(trial, len(frozen.intermediate_values) + 1, crew)

    def begin_more(self, crew: Crew) -> None:
        """Begin new trials while there is room."""
        at_a_time = max(1, crew.room() // len(self.roms))
        while len(self._trials) < at_a_time and len(self.study.get_trials(deepcopy=False)) < self.config.trials:
            number = len(self.study.get_trials(deepcopy=False))
            # A new one for each trial: what is drawn hangs on the number and on what is known, not on who was killed.
            seed = int(np.random.SeedSequence((self.config.seed, number)).generate_state(1)[0])
            self.study.sampler = import_optuna().samplers.TPESampler(seed=seed)
            self._begin(self.study.ask(self.spaces), 1, crew)

    def _row(self, number: int, parameters: dict[str, Any], rom: str) -> Row:
        name = f"trial{number:03}-{rom}"
        values = ", ".join(f"{key.replace('_', '-')}={_short(value)}" for key, value in parameters.items())
        return self.rows.setdefault(name, Row(name, rom, self.config.seed, values))

    def _begin(self, trial: Any, stage: int, crew: Crew) -> None:
        self._trials[trial.number], self._scores[trial.number] = trial, {}
        for rom in self.roms:
            row = self._row(trial.number, trial.params, rom)
            row.state = "waiting"
            words = self.config.trial_run(rom, trial.params, stage).words()
            flags = ["--run-dir", str(self.folder / row.run), *words]
            crew.add(self._job(row.run, (trial.number, stage, rom), "q_agent_train.py", flags), first=stage > 1)

    def _job(self, run: str, key: tuple[int, int, str], script: str, flags: list[str]) -> Job:
        return Job(run, script, flags, self.folder / "logs" / f"{run}.txt", key)

    def take(self, ended: Ended, crew: Crew) -> None:
        """Note what became of a job, and start what follows it."""
        number, stage, rom = ended.job.key
        if (trial := self._trials.get(number)) is None:
            return  # it has failed in another game
        row = self._row(number, trial.params, rom)
        scores = self.folder / "scores" / f"{row.run}-{stage}.csv"
        if not ended.done:
            self.failed.append(f"{row.run} ({ended.last_line})")
            self._tell(trial, "FAIL", ended.last_line)
        elif ended.job.script == "q_agent_train.py":
            flags = ["--state-dict", str(self.folder / row.run / "model.pt"), "--csv", str(scores)]
            seed = ["--seed", str(EVALUATION_SEED)]
            crew.add(self._job(row.run, ended.job.key, "evaluate.py", [*flags, *seed]), first=True)
        else:
            with open(scores, newline="") as file:
                (scored,) = csv.DictReader(file)
            self._scores[number][rom] = normalised(rom, float(scored["mean"]))
            row.message = f"fifth {stage}: {float(scored['mean']):.1f}"
            if len(self._scores[number]) == len(self.roms):
                self._end_stage(trial, stage, crew)

    def _end_stage(self, trial: Any, stage: int, crew: Crew) -> None:
        value = float(np.mean([*self._scores[trial.number].values()]))
        trial.report(value, stage)
        if stage == STAGES:
            self._tell(trial, "COMPLETE", value=value)
        elif trial.should_prune():
            self._tell(trial, "PRUNED")
        else:
            self._begin(trial, stage + 1, crew)

    def _tell(self, trial: Any, state: str, message: str = "", value: float | None = None) -> None:
        self.study.tell(trial, value, import_optuna().trial.TrialState[state])
        del self._trials[trial.number]
        for rom in self.roms:
            row = self._row(trial.number, trial.params, rom)
            row.state, row.message = state.lower(), message or row.message

    def look(self, crew: Crew) -> None:
        """Bring the row of every trial under way up to date."""
        scripts = {job.name: job.script for job in crew.running}
        states = {None: "waiting", "q_agent_train.py": "training", "evaluate.py": "evaluating"}
        for trial in self._trials.values():
            for rom in self.roms:
                row = self._row(trial.number, trial.params, rom)
                row.state = states[scripts.get(row.run)]
                row.look(self.folder / row.run, self.config.steps)


def search(config: SearchConfig) -> Path:
    """Make every trial that is not yet; returns the folder. Raises `UsageError`, and `RunError` that names the failed.

    KeyboardInterrupt at a signal, when all have saved.
    """
    config.check()
    assert config.run_dir
    optuna, folder, spaces = import_optuna(), config.run_dir.resolve(), config.spaces()
    lacking = [rom for rom in roms_of(config.games) if len(config.games) > 1 and paper_scores(rom) is None]
    if lacking:
        raise UsageError(f"--games: {lacking[0]} has no score in the paper to be normalised by; search it alone")
    for rom in roms_of(config.games):
        first = config.run(rom, config.seed)
        first.check()
        dataclasses.replace(first, steps=config.steps // STAGES).check_new()
    import_ray()
    with held(folder, "search.json", config.described(), MAY_CHANGE):
        study = optuna.create_study(
            storage=f"sqlite:///{folder / 'study.db'}", study_name="search", direction="maximize", load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(),
        )  # fmt: skip
        work = Search(config, folder, study, spaces)
        ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        if len(ended) < config.trials:
            go_through(work, config)
        report(work)
    if work.failed:
        raise RunError(f"{len(work.failed)} trials failed: {'; '.join(work.failed)}")
    return folder


def go_through(work: Search, config: SearchConfig) -> None:
    """Make the trials; KeyboardInterrupt at a signal, when all have saved."""
    with (
        StopSignal() as stop,
        Crew(config, device=config.device, bytes_per_run=config.bytes_of_a_run()) as crew,
    ):
        print(f"{config.trials} trials over {', '.join(work.spaces)}; {crew.room()} runs at a time, by {crew.limits()}")
        with Board(work.rows, work.folder / "search.csv") as board:
            work.go_on(crew)
            while not stop:
                work.begin_more(crew)
                if crew.idle:
                    break
                for ended in crew.poll(POLL_SECONDS):
                    work.take(ended, crew)
                work.look(crew)
                board.show()
            crew.stop()
            work.look(crew)
            board.show()
        if stop:
            raise KeyboardInterrupt("every run has saved; the same command goes on")


def report(work: Search) -> None:
    """Write and print the table of all trials, the best as YAML, and Optuna's pictures."""
    trials = work.study.get_trials(deepcopy=False)
    names = [name.replace("_", "-") for name in work.spaces]
    fifths = [f"fifth_{stage}" for stage in range(1, STAGES + 1)]
    rows = []
    for trial in trials:
        values = {fifth: trial.intermediate_values.get(stage) for stage, fifth in enumerate(fifths, start=1)}
        parameters = {name.replace("_", "-"): value for name, value in trial.params.items()}
        rows.append({"trial": trial.number, "state": trial.state.name.lower()} | values | parameters)
    columns = ["trial", "state", *fifths, *names]
    write_csv(work.folder / "trials.csv", columns, rows)
    for row in [dict(zip(columns, columns, strict=True)), *rows]:
        print(*(f"{_short(row.get(column)):>12}" for column in columns))
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if not complete:
        return
    best = max(complete, key=lambda trial: trial.value)
    config = work.config.trial_run(work.roms[0], best.params, STAGES)
    after = f"{best.value:.1f} after {work.config.steps:,} agent steps"
    head = f"# Trial {best.number} of {len(trials)} on {', '.join(work.roms)}: {after}.\n"
    write_text(work.folder / "best.yaml", head + "".join(f"{line}\n" for line in config.yaml_lines()))
    print(f"the best: trial {best.number}, {best.value:.1f}; python q_agent_train.py --config {work.folder}/best.yaml")
    draw(work, complete)


def draw(work: Search, complete: list[Any]) -> None:
    """Optuna's pictures: the history, the importance of each flag, a slice along each."""
    import matplotlib as mpl

    mpl.use("agg")
    pictures = import_optuna().visualization.matplotlib
    drawn = {"history": pictures.plot_optimization_history, "slices": pictures.plot_slice}
    if len(complete) > 1 and len({trial.value for trial in complete}) > 1:
        drawn["importances"] = pictures.plot_param_importances
    for name, plot in drawn.items():
        axes = np.ravel(plot(work.study))
        with replacing(work.folder / f"{name}.png") as temporary:
            axes[0].figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    search(command_line(SearchConfig, OWN))


if __name__ == "__main__":
    exit_with(main)
