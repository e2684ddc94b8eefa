"""The life of a run: begun or resumed, recorded, evaluated, saved, ended."""

import dataclasses
import datetime
import math
import shlex
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm.auto import tqdm

from atari import FinishedGame, game_key
from runtime.checkpoint import save_state_dict, to_cpu
from runtime.devices import choose_device, platform_fingerprint, set_up_torch, threads_wanted
from runtime.exits import RunError, StopSignal, UsageError, is_out_of_memory
from runtime.flags import check_bounds, parse
from runtime.networks import load_network
from runtime.progress import Progress, bar_of_actions
from runtime.run_config import FLAGS, MAY_CHANGE, AnyConfig, RunConfig, with_file
from runtime.run_folder import RunFolder, check_is_run_or_new, make_new_folder, read_config
from runtime.tables import evaluation_row, game_row, training_row
from runtime.training_state import is_finite, log_values, restore, state_of
from runtime.webhook import Webhook, checked_address
from training import Training, multiples_crossed
from viewing.evaluator import BackgroundEvaluator, Evaluator

BACKGROUND_ON = ("cuda",)  # where evaluations run in the background: the CPU's cores wait for the GPU there
LOG_EVERY_STEPS = 10_000  # agent steps between rows of training.csv, and TensorBoard's values that are not a game's
HELP = """python q_agent_train.py --config quick  # Breakout: learns within minutes, ends after an hour

python q_agent_train.py --game Pong --seed 1  # another game, the paper's constants

Train the DQN of Mnih et al., Nature 2015, on an Atari game. The defaults are the paper's."""
WHAT_TO_EXPECT = (
    "These are the paper's constants: on Breakout the score stays at a random agent's level for about the first "
    "1.4 million agent steps, which takes hours. --config quick learns within minutes."
)
SAME_VALUE = 1e-6  # of the mean, at least of 1: float32 rounds by 1e-7; on Breakout's plateau values differ by 1e-4


def prepare(config: AnyConfig, saved: AnyConfig | None = None) -> tuple[torch.device, Path]:
    """Check all that can be known before anything is made; the device, and the folder: the one named, or a new one.

    saved: the config of the run in its folder, where that has been read.
    """
    if config.config is not None:
        raise UsageError("--config is for the command line; in Python, set the fields themselves")
    if config.run_dir and saved is None:
        saved = config_of_run(type(config), config.run_dir)
    config.check()
    checked_address(config.webhook)
    device = choose_device(config.device)
    if saved:
        config.check_continues(saved)
    config.check_device(device)
    if not saved:
        config.check_new()
    set_up_torch(config.deterministic)
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return device, config.run_dir or make_new_folder(Path(f"runs/{config.rom}-{now}-seed{config.seed}"))


def config_of_run(kind: type[AnyConfig], run_dir: Path) -> AnyConfig | None:
    """The config that a run folder was made with; None for a new one. Raises `UsageError` where it is neither."""
    check_is_run_or_new(run_dir)
    values = read_config(run_dir, kind().as_json().keys())  # type: ignore[call-arg]
    if values is None:
        return None
    config = kind(**values, run_dir=run_dir)
    try:
        check_bounds(config)
    except UsageError as error:
        raise UsageError(f"{run_dir / 'config.json'}: {error}") from None
    return config


class Run:
    """A training with its files: what is saved, logged, evaluated and shown, and when."""

    def __init__(self, config: RunConfig, training: Training, folder: RunFolder, stop: StopSignal, webhook: Webhook):
        self.config = config
        self.training = training
        self.folder = folder
        self.stop = stop
        self.webhook = webhook
        self.best_mean = -math.inf
        self.seconds_before = 0.0  # spent on this run by processes before this one
        self.last_saved = "nothing yet"
        self._folder_typed = shlex.quote(folder.path.as_posix())  # with / on Windows, too, where it means the same
        self._command = f"python q_agent_train.py --run-dir {self._folder_typed}"
        self._began = self._checkpoint_written = time.monotonic()
        self._steps_recorded = 0
        self._progress: Progress | None = None
        self._dead_is_reported = False
        self._evaluator = Evaluator(config.evaluation_games)
        self._background: BackgroundEvaluator | None = None
        self._evaluation: dict[str, Any] | None = None  # the one that runs in the background
        self._evaluated = folder.path / "evaluated.pt"  # its network
        self._threads_before = torch.get_num_threads()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        for part in (self._background, self._progress, self._evaluator):
            if part:
                part.close()
        torch.set_num_threads(self._threads_before)  # in a notebook the next run is not this run's matter
        if isinstance(error, OSError) and not (isinstance(error, BrokenPipeError) or is_out_of_memory(error)):
            what = f"cannot write in {self.folder.path}: {error.strerror or error}"
            raise RunError(f"{what}; last good checkpoint: {self.last_saved}; then resume: {self._command}") from None

    def begin(self) -> bool:
        """Start anew or from the newest sound checkpoint; False when there is nothing to do or a signal came."""
        training = self.training
        if self.folder.checkpoints.exists():
            if not self._restore():
                return False
        else:
            self.folder.write_config(self.config.as_json())
            self.folder.cut_back({})
            if network := self.config.initial_network():
                training.agent.load_weights(network)
            training.begin()
            self._write_checkpoint()
            self._save_network("model.pt")
            print(f"Watch it from another terminal: python play.py --follow {self._folder_typed}")
            if not self.config.yaml_lines():
                print(WHAT_TO_EXPECT)
            until = f"{self.config.steps:,} agent steps or {self.config.games:,} games"
            self.webhook.send(f"begins on {training.memory.device}, seed {self.config.seed}, until {until}")
        self._steps_recorded = training.agent_steps
        self._progress = Progress(
            training.agent_steps,
            training.games_finished,
            learning_begins=self.config.replay_start_size,
            steps_limit=self.config.steps,
            games_limit=self.config.games,
        )
        return True

    def _restore(self) -> bool:
        """Take over the newest sound checkpoint and play its action log; False when there is nothing to do."""
        checkpoint, fault = self.folder.checkpoints.load()
        if fault:
            print(f"The newest checkpoint is not usable ({fault}); resuming from the one before it.")
        try:
            return self._take_over(checkpoint)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            what = f"the checkpoint in {self.folder.path} does not fit this version ({error!r:.200})"
            raise RunError(f"{what}; use the version that wrote it, or choose another --run-dir") from error

    def _take_over(self, checkpoint: dict[str, Any]) -> bool:
        self._check_config(checkpoint["config"])
        state, evaluation = checkpoint["training"], checkpoint["evaluation"]  # the one in the background
        if self._is_finished(state, evaluation):
            print(f"{self.folder.path} is finished; a larger --steps or --games continues it.")
            return False
        if not torch.isfinite(state["agent"]["online"]).all():
            raise RunError(f"the checkpoint in {self.folder.path} has weights that are NaN or infinite")
        self.folder.check(checkpoint["lengths"])
        if not threads_wanted():  # as many as it began with, on any machine: its bits depend on that
            torch.set_num_threads(checkpoint["machine"]["threads"])
        if not self._play_actions_again(checkpoint):
            print(f"Stopped while the action log was playing; nothing was changed. Resume: {self._command}")
            return False
        self.best_mean = checkpoint["best_mean"]
        self.seconds_before = checkpoint["seconds"]
        self.folder.write_config(self.config.as_json())
        self.folder.cut_back(checkpoint["lengths"])
        self.last_saved = f"agent step {self.training.agent_steps:,}"
        if evaluation:
            self._begin_evaluation(evaluation)
        print(f"Resuming at game {self.training.games_finished:,}, {self.last_saved}: {self.folder.path}")
        where = f"{self.training.memory.device}, seed {self.config.seed}"
        self.webhook.send(f"resumes at {self.last_saved} of {self.config.steps:,} on {where}")
        return True

    def _is_finished(self, state: dict[str, Any], evaluation: dict[str, Any] | None) -> bool:
        played_all = state["agent_steps"] >= self.config.steps or state["games_finished"] >= self.config.games
        evaluated_all = state["evaluations"] >= self.config.evaluations_until(state["agent_steps"]) and not evaluation
        return played_all and evaluated_all

    def _check_config(self, saved: dict[str, Any]) -> None:
        """Raise `UsageError` where the checkpoint was made with another config than config.json holds."""
        config = self.config.as_json()
        names = [name for name in saved if name not in MAY_CHANGE and config.get(name) != saved[name]]
        if "game" in names and game_key(config["game"]) == game_key(saved["game"]):
            names.remove("game")
        if names:
            file = self.folder.path / "config.json"
            differ = ", ".join(f"{name} is {config.get(name)!r}, {saved[name]!r} in the checkpoint" for name in names)
            raise UsageError(f"{file} and the checkpoint belong to different runs: {differ}; restore the right file")

    def _play_actions_again(self, checkpoint: dict[str, Any]) -> bool:
        """Fill the memory again, and report where the run will not be bit for bit the same; False at a signal."""
        state = checkpoint["training"]
        total = sum(len(actions) for actions in state["action_log"]["actions"])
        with bar_of_actions(total) as bar:

            def watch(steps: int) -> bool:
                bar.update(steps)
                return not self.stop

            played_true = restore(self.training, state, watch)
        if played_true is None:
            return False
        here = platform_fingerprint(self.training.memory.device, self.config.precision)
        if not played_true or checkpoint["machine"] != here:
            where = "another processor, thread count, torch or ale-py"
            print(f"The checkpoint is from {where}: the run continues, but not bit for bit as it would have there.")
        return True

    def save_checkpoint(self) -> None:
        """Write model.pt and a checkpoint of this step, which `_restore` reads; raises `OSError`."""
        self._save_network("model.pt")
        self._write_checkpoint()

    def end(self) -> None:
        """Save; wait for an evaluation in the background, unless a signal comes, and save that, too."""
        self.save_checkpoint()
        if self._evaluation and not self.stop:
            tqdm.write(f"Waiting for the evaluation at agent step {self._evaluation['agent_steps']:,}.")
            if self.finish_evaluation():
                self.save_checkpoint()

    def _write_checkpoint(self) -> None:
        self.folder.checkpoints.save(
            {
                "machine": platform_fingerprint(self.training.memory.device, self.config.precision),
                "config": self.config.as_json(),
                "training": state_of(self.training),
                "lengths": self.folder.lengths(),
                "best_mean": self.best_mean,
                "evaluation": self._evaluation,
                "seconds": self._seconds(),
            }
        )
        self.last_saved = f"agent step {self.training.agent_steps:,}"
        self._checkpoint_written = time.monotonic()

    def save_checkpoint_when_due(self) -> None:
        """Save once --checkpoint-minutes have passed since the last time."""
        if time.monotonic() - self._checkpoint_written >= self.config.checkpoint_minutes * 60:
            self.save_checkpoint()

    def record(self, games: list[FinishedGame]) -> None:
        """Write the games that ended, the log, and the state dict when its turn has come; refresh the progress line."""
        training, steps, epsilon = self.training, self.training.agent_steps, float(self.training.epsilon[0])
        assert self._progress, "begin first"
        first = training.games_finished - len(games) + 1
        for number, game in enumerate(games, start=first):
            row = game_row(number, steps, steps * self.config.frames_per_step, game, epsilon, self._seconds())
            self.folder.add_row("games.csv", row)
            self.folder.add_scalars(steps, score=game.score, epsilon=epsilon)
            if multiples_crossed(number - 1, number, self.config.save_every_games):
                self._save_network(f"state_dicts/game_{number:06d}.pt")
                self._save_network("model.pt")
        if multiples_crossed(self._steps_recorded, steps, LOG_EVERY_STEPS):
            self._check_finite()
            values = log_values(training) | {"steps_per_second": self._progress.steps_per_second(steps)}
            self.folder.add_scalars(steps, **values)
            rates = {"learning_rate": self.config.learning_rate_at(steps), "epsilon": epsilon}
            self.folder.add_row("training.csv", training_row(steps, values | rates))
            self._report_when_dead(values)
        self.finish_evaluation(wait=False)
        self._steps_recorded = steps
        self._progress.show(steps, training.games_finished, training.recent_scores, epsilon)

    def evaluate(self) -> bool:
        """Have the paper's protocol played, on a GPU in the background, else now; False when a signal broke it off.

        The network is kept if it is the best so far.
        """
        began = time.monotonic()
        if not self.finish_evaluation():  # the one before
            return False
        self._check_finite()
        training, network, seed = self.training, self.training.agent.online_network, self.training.evaluation_seed()
        evaluation: dict[str, Any] = {"agent_steps": training.agent_steps, "mean_max_q": training.mean_max_q()}
        if training.agent.device.type in BACKGROUND_ON:
            self._begin_evaluation(evaluation | {"seed": seed, "network": to_cpu(network.state_dict())})
        elif played := self._evaluator.play(network, seed, lambda _: not self.stop):
            self._note_evaluation(evaluation | {"network": network.state_dict()}, played)
        else:
            return False
        training.evaluations += 1
        if self._progress:
            self._progress.evaluated(time.monotonic() - began)
        return True

    def _begin_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Begin one in the background; checkpoints hold it until it has ended."""
        self._evaluation = evaluation
        save_state_dict(evaluation["network"], self._evaluated)
        if self.training.agent.device.type in BACKGROUND_ON:
            if not self._background:
                device, games = str(self.training.agent.device), self.config.evaluation_games
                self._background = BackgroundEvaluator(games, device=device, deterministic=self.config.deterministic)
            self._background.begin(self._evaluated, evaluation["seed"])

    def finish_evaluation(self, *, wait: bool = True) -> bool:
        """Record the result of the evaluation that was begun; False when it has not ended.

        It is waited for until a signal comes. Where it failed, or the run resumed on another device, it is played now.
        """
        if not self._evaluation:
            return True
        while self._background and not self._background.ended(0.1 if wait else 0.0):
            if self.stop or not wait:
                return False
        if self.stop:  # it may have ended the other process, too
            return False
        played = self._background.take() if self._background else None
        if not isinstance(played, list):
            if self._background:
                tqdm.write(f"The evaluation in the background failed ({played}); playing it here instead.")
                self._background.close()
                self._background = None
            network = load_network(self._evaluated, self.training.agent.device)
            played = self._evaluator.play(network, self._evaluation["seed"], lambda _: not self.stop)
        if played is None:
            return False
        self._note_evaluation(self._evaluation, played)
        self._evaluation = None
        self._evaluated.unlink(missing_ok=True)
        return True

    def _note_evaluation(self, evaluation: dict[str, Any], played: list[FinishedGame]) -> None:
        """Record the result of an evaluation, and keep its network if it is the best so far."""
        scores, steps = np.array([game.score for game in played]), evaluation["agent_steps"]
        self.folder.add_row("evaluations.csv", evaluation_row(steps, scores, evaluation["mean_max_q"]))
        self.folder.add_scalars(steps, evaluation_mean=scores.mean())
        note = ""
        if scores.mean() > self.best_mean:
            self.best_mean = float(scores.mean())
            save_state_dict(evaluation["network"], self.folder.path / "best.pt")
            note = f", the best so far; film it: {self._script('trained_model_video_generation', 'best.pt')}"
        mean = f"mean score {scores.mean():.1f} of {len(scores)} games"
        when = f"agent step {steps:,}, after {datetime.timedelta(seconds=round(self._seconds()))}"
        tqdm.write(f"Evaluation at {when}: {mean}{note}")
        best = "the best so far" if note else f"best {self.best_mean:.1f}"
        self.webhook.send(f"mean score {scores.mean():.1f} at agent step {steps:,}, {best}")

    def _check_finite(self) -> None:
        if not is_finite(self.training):
            what = f"the loss is NaN or infinite at agent step {self.training.agent_steps:,}"
            kept = f"the checkpoint of {self.last_saved} and model.pt in {self.folder.path}"
            raise RunError(f"{what}: the learning rate may be too large; last good files: {kept}")

    def _report_when_dead(self, values: dict[str, float]) -> None:
        """Report once per process that the network has one value for all states: often a layer's units are all 0."""
        deviation, mean = values.get("deviation_q_held_out", math.inf), values.get("mean_q_held_out", 0.0)
        if deviation <= SAME_VALUE * max(1.0, abs(mean)) and not self._dead_is_reported:
            self._dead_is_reported = True
            found = f"network gives the same value to every state at agent step {self.training.agent_steps:,}"
            what = "a layer is probably dead, and recovers late or never"
            tqdm.write(f"The {found}: {what}. A new run with a smaller --learning-rate may prevent it.")
            self.webhook.send(f"its {found}")

    def _save_network(self, name: str) -> None:
        self._check_finite()
        save_state_dict(self.training.agent.online_network.state_dict(), self.folder.path / name)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self._began

    def _script(self, name: str, network: str) -> str:
        """The command that runs a script with one of the networks, ready to paste."""
        return f"python {name}.py --state-dict {self._folder_typed}/{network}"

    def say_where_things_are(self) -> None:
        """Print where everything is, and the commands that come next."""
        training, path, config = self.training, self.folder.path, self.config
        steps_reached = training.agent_steps >= config.steps
        played_all = steps_reached or training.games_finished >= config.games
        evaluated_all = not (training.evaluation_is_due or self._evaluation)
        how = "Finished" if played_all and evaluated_all else "Stopped"
        best = "best.pt" if (path / "best.pt").exists() else "model.pt"
        done = f"after {training.games_finished:,} games and {training.agent_steps:,} agent steps"
        score = f", best mean score {self.best_mean:.1f}" if best == "best.pt" else ""
        self.webhook.send(f"{how.lower()} {done}{score}")
        print(f"{how} {done}.")
        if best == "best.pt":
            print(f"  best network     {path}/best.pt, mean score {self.best_mean:.1f} over its evaluation")
        print(f"  newest network   {path}/model.pt, earlier ones in {path}/state_dicts")
        print(f"  scores           {path}/games.csv")
        print(f"  film it          {self._script('trained_model_video_generation', best)}")
        print(f"  watch it play    {self._script('play', best)}")
        print(f"  score it         {self._script('evaluate', best)}")
        print(f"  draw its curves  python figures.py {self._folder_typed}")
        longer = f" --steps {2 * config.steps}" if steps_reached else f" --games {2 * config.games}"
        print(f"  resume           {self._command}{longer if how == 'Finished' else ''}")


def command_line(kind: type[AnyConfig]) -> tuple[AnyConfig, AnyConfig | None]:
    """The config that the flags mean, and that of the run that they name, if it exists.

    What is not typed comes from the --config file, or from the run.
    """
    typed = parse(kind, groups=FLAGS, about=HELP)
    saved = config_of_run(kind, typed.run_dir) if typed.run_dir else None
    if not (saved or typed.config):
        return typed, None
    begun = saved or kind()  # type: ignore[call-arg]
    defaults = with_file(dataclasses.replace(begun, run_dir=typed.run_dir, config=typed.config))
    return dataclasses.replace(parse(kind, default=defaults, groups=FLAGS), config=None), saved
