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

from atari import FinishedGame
from runtime.checkpoint import save_state_dict, to_cpu
from runtime.devices import choose_device, platform_fingerprint, set_up_torch, threads_wanted
from runtime.exits import RunError, StopSignal, UsageError, is_out_of_memory
from runtime.flags import check_bounds, parse
from runtime.networks import load_network
from runtime.progress import Progress, bar_of_actions
from runtime.run_config import AnyConfig, RunConfig, with_file
from runtime.run_folder import RunFolder, check_is_run_or_new, read_config
from runtime.tables import TRAINING_COLUMNS, evaluation_row
from runtime.training_state import is_finite, log_values, restore, state_of
from runtime.webhook import Webhook, checked_address
from training import Training, multiples_crossed
from viewing.evaluator import BackgroundEvaluator, Evaluator

BACKGROUND_ON = ("cuda",)  # where evaluations run in the background: the CPU's cores wait for the GPU there
LOG_EVERY_STEPS = 10_000  # agent steps between rows of training.csv, and TensorBoard's values that are not a game's
WHAT_TO_EXPECT = (
    "These are the paper's constants: on Breakout the score stays at a random agent's level for about the first "
    "1.4 million agent steps, which takes hours. --config quick learns within minutes."
)
EXAMPLES = """

python q_agent_train.py --config quick           a good agent within an hour on two CPU cores

python q_agent_train.py --game Pong --seed 1     the paper's constants, on another game"""
SAME_VALUE = 1e-6  # of the mean, at least of 1: float32 rounds by 1e-7; on Breakout's plateau values differ by 1e-4


def prepare(config: AnyConfig, saved: AnyConfig | None = None) -> tuple[torch.device, Path]:
    """Check all that can be known before anything is made; the device, and the folder: the one named, or a new one.

    saved: the config of the run in that folder, where it has been read.
    """
    if config.config is not None:
        raise UsageError("--config is for the command line; in Python, set the fields themselves")
    if config.run_dir and not saved:
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
    if config.run_dir:
        return device, config.run_dir
    return device, _claim_folder(f"runs/{config.rom}-{datetime.datetime.now():%Y%m%d-%H%M%S}-seed{config.seed}")


def _claim_folder(name: str) -> Path:
    """Make the folder of a new run, with a number behind its name where another run has taken that."""
    path, number = Path(name), 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
            path = Path(f"{name}-{number}")


def config_of_run(kind: type[AnyConfig], run_dir: Path) -> AnyConfig | None:
    """The config that a run folder was made with; None for a new one. Raises `UsageError` where it is neither."""
    check_is_run_or_new(run_dir)
    values = read_config(run_dir, kind().as_json().keys())  # type: ignore[call-arg]
    if values is None:
        return None
    config = kind(**values, run_dir=run_dir)
    check_bounds(config)
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
        self._typed = shlex.quote(folder.path.as_posix())  # with / on Windows, too, where it means the same
        self._command = f"python q_agent_train.py --run-dir {self._typed}"
        self._began = self._checkpoint_written = time.monotonic()
        self._steps_recorded = 0
        self._progress: Progress | None = None
        self._note = ""  # at the end of the progress line
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
            if network := self.config.initial_network:
                training.agent.load_weights(network)
            training.begin()
            self._write_checkpoint()  # before any table: rows without a checkpoint are not a run's
            self.folder.cut_back({})
            self._save_network("model.pt")
            print(f"Watch it from another terminal: python play.py --follow {self._typed}")
            if not self.config.yaml_lines():
                print(WHAT_TO_EXPECT)
            self.webhook.send(f"begins on {training.memory.device}, seed {self.config.seed}")
        self._steps_recorded = training.agent_steps
        self._progress = Progress(training.agent_steps, training.games_finished, self.config)
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
        config, state = self.config, checkpoint["training"]
        config.check_continues(type(config)(**checkpoint["config"]))  # config.json may have been edited
        if self._is_finished(state, checkpoint["evaluation"]):
            print(f"{self.folder.path} is finished; a larger --steps or --games continues it.")
            return False
        if not torch.isfinite(state["agent"]["online"]).all():
            raise RunError(f"the checkpoint in {self.folder.path} has weights that are NaN or infinite")
        self.folder.check(checkpoint["lengths"])
        if not threads_wanted():  # as many as it began with, on any machine: its bits depend on that
            torch.set_num_threads(checkpoint["machine"]["threads"])
        with bar_of_actions(sum(map(len, state["action_log"]["actions"]))) as bar:

            def watch(steps: int) -> bool:
                bar.update(steps)
                return not self.stop

            played_true = restore(self.training, state, watch)
        if played_true is None:
            print(f"Stopped while the action log was playing; nothing was changed. Resume: {self._command}")
            return False
        if not played_true or checkpoint["machine"] != self._machine():
            where = "another processor, thread count, torch or ale-py"
            print(f"The checkpoint is from {where}: the run continues, but not bit for bit as it would have there.")
        self.best_mean, self.seconds_before = checkpoint["best_mean"], checkpoint["seconds"]
        self.folder.write_config(config.as_json())
        self.folder.cut_back(checkpoint["lengths"])
        self.last_saved = f"agent step {self.training.agent_steps:,}"
        if checkpoint["evaluation"]:  # in the background, and not ended when the checkpoint was written
            self._begin_evaluation(checkpoint["evaluation"])
        print(f"Resuming at game {self.training.games_finished:,}, {self.last_saved}: {self.folder.path}")
        self.webhook.send(f"resumes at {self.last_saved} on {self.training.memory.device}, seed {config.seed}")
        return True

    def _is_finished(self, state: dict[str, Any], evaluation: dict[str, Any] | None) -> bool:
        played_all = state["agent_steps"] >= self.config.steps or state["games_finished"] >= self.config.games
        evaluated_all = state["evaluations"] >= self.config.evaluations_until(state["agent_steps"]) and not evaluation
        return played_all and evaluated_all

    def _machine(self) -> dict[str, Any]:
        return platform_fingerprint(self.training.memory.device, self.config.precision)

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
                "machine": self._machine(),
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
            frames, seconds = steps * self.config.frames_per_step, round(self._seconds(), 1)
            self.folder.add_row("games.csv", (number, steps, frames, game.score, game.length_steps, epsilon, seconds))
            self.folder.add_scalars(steps, score=game.score, epsilon=epsilon)
            if multiples_crossed(number - 1, number, self.config.save_every_games):
                self._save_network(f"state_dicts/game_{number:06d}.pt")
                self._save_network("model.pt")
        if multiples_crossed(self._steps_recorded, steps, LOG_EVERY_STEPS):
            self._check_finite()
            values = log_values(training) | {"steps_per_second": self._progress.steps_per_second(steps)}
            self.folder.add_scalars(steps, **values)
            row = values | {"agent_step": steps, "epsilon": epsilon}
            row["learning_rate"] = self.config.learning_rate_at(steps)
            self.folder.add_row("training.csv", tuple(row.get(column) for column in TRAINING_COLUMNS))
            self._note = note_of_dead(values)
        self.finish_evaluation(wait=False)
        self._steps_recorded = steps
        self._progress.show(steps, training.games_finished, training.recent_scores, epsilon, self._note)

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
        if isinstance(played, str) and self._background:
            tqdm.write(f"The evaluation in the background failed ({played}); playing it here instead.")
            self._background.close()
            self._background = None
        if not isinstance(played, list):
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
        best = f"best {self.best_mean:.1f}"
        if scores.mean() > self.best_mean:
            self.best_mean, best = float(scores.mean()), "the best so far"
            save_state_dict(evaluation["network"], self.folder.path / "best.pt")
        found = f"at agent step {steps:,}: mean score {scores.mean():.1f} of {len(scores)} games, {best}"
        tqdm.write(f"Evaluation {found}")
        self.webhook.send(f"evaluation {found}")

    def _check_finite(self) -> None:
        if not is_finite(self.training):
            what = f"the loss is NaN or infinite at agent step {self.training.agent_steps:,}"
            kept = f"the checkpoint of {self.last_saved} and model.pt in {self.folder.path}"
            raise RunError(f"{what}: the learning rate may be too large; last good files: {kept}")

    def _save_network(self, name: str) -> None:
        self._check_finite()
        save_state_dict(self.training.agent.online_network.state_dict(), self.folder.path / name)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self._began

    def say_where_things_are(self) -> None:
        """Print how the run ended, and the commands that come next."""
        training, network = self.training, "model.pt"
        is_finished = self._is_finished(vars(training), self._evaluation)
        done = f"after {training.games_finished:,} games and {training.agent_steps:,} agent steps"
        if self.best_mean > -math.inf:
            done, network = f"{done}, best mean score {self.best_mean:.1f}", "best.pt"
        self.webhook.send(f"{'finished' if is_finished else 'stopped'} {done}")
        print(f"{'Finished' if is_finished else 'Stopped'} {done}: {self.folder.path}")
        print(f"  film   python trained_model_video_generation.py --state-dict {self._typed}/{network}")
        print(f"  curves python figures.py {self._typed}")
        print(f"  resume {self._command}{', with a larger --steps or --games' if is_finished else ''}")


def note_of_dead(values: dict[str, float]) -> str:
    """Words for the progress line where the log says that the network gives one value to all held-out states."""
    deviation, mean = values.get("deviation_q_held_out", math.inf), values.get("mean_q_held_out", 0.0)
    if deviation > SAME_VALUE * max(1.0, abs(mean)):
        return ""
    return "; every state has the same value: a layer is probably dead, a smaller --learning-rate may prevent it"


def command_line(kind: type[AnyConfig]) -> tuple[AnyConfig, AnyConfig | None]:
    """The config that the flags mean, and that of the run they name, None for a new one.

    What is not typed comes from the --config file, or from that run.
    """
    typed = parse(kind, about=f"{kind.__doc__}{EXAMPLES}")
    saved = config_of_run(kind, typed.run_dir) if typed.run_dir else None
    if not (saved or typed.config):
        return typed, None
    begun = saved or kind()  # type: ignore[call-arg]
    defaults = with_file(dataclasses.replace(begun, run_dir=typed.run_dir, config=typed.config))
    return dataclasses.replace(parse(kind, default=defaults), config=None), saved
