"""The life of a run: begun or resumed, recorded, evaluated, saved, ended."""

import dataclasses
import datetime
import json
import math
import shlex
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm.auto import tqdm

from atari import FinishedGame, game_key
from runtime.checkpoint import find_mismatch, save_state_dict, to_cpu
from runtime.devices import choose_device, platform_fingerprint, set_up_torch, threads_of, threads_wanted
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

# What a checkpoint holds beside the training's own state.
FORMAT: dict[str, Any] = {"machine": [], "config": {}, "lengths": {}, "digests": {}, "best_mean": 0.0, "seconds": 0.0}
BACKGROUND_ON = ("cuda",)  # where an evaluation goes on beside the training: cores wait there, on a CPU they do not
LOG_EVERY_STEPS = 10_000  # agent steps between rows of training.csv, and the values in TensorBoard that are no game's
SAME_VALUE = 1e-6  # of the mean, at least of 1: float32 rounds by 1e-7; on Breakout's plateau values differ by 1e-4


def prepare(config: AnyConfig, saved: AnyConfig | None = None) -> tuple[torch.device, Path]:
    """Check all that can be known before anything is made; the device, and the folder: the one named, or a new one.

    saved: the config of the run in its folder, where that has been read.
    """
    if config.config is not None:
        raise UsageError("--config is for the command line; here, name the flags themselves")
    if config.run_dir and saved is None:
        saved = config_of_run(type(config), config.run_dir)
    config.check()
    device = choose_device(config.device)
    rom = config.rom  # with --run-dir, too: an unknown game is refused here
    checked_address(config.webhook)
    if saved:
        config.check_continues(saved)
    config.check_device(device)
    if not saved:
        config.check_new()
    set_up_torch(config.deterministic)
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return device, config.run_dir or make_new_folder(Path(f"runs/{rom}-{now}-seed{config.seed}"))


def config_of_run(kind: type[AnyConfig], run_dir: Path) -> AnyConfig | None:
    """The config that a run folder was made with; None for a new one. Raises `UsageError` where it is neither."""
    check_is_run_or_new(run_dir)
    values = read_config(run_dir, kind().as_json().keys())  # type: ignore[call-arg]
    return None if values is None else checked(kind(**values, run_dir=run_dir), run_dir / "config.json")


def checked(config: AnyConfig, file: Path | str | None) -> AnyConfig:
    """The config, unless a value of the file that it comes from is not one of its flag: a `UsageError`."""
    try:
        check_bounds(config)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
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
        path = folder.path.as_posix()  # with / on Windows, too, where it means the same
        self._folder_typed = shlex.quote(f"./{path}" if path.startswith("-") else path)
        self._command = f"python q_agent_train.py --run-dir {self._folder_typed}"
        self._began = self._checkpoint_written = time.monotonic()
        self._steps_recorded = 0
        self._progress: Progress | None = None
        self._said_dead = False
        self._evaluator = Evaluator(config.evaluation_games)
        self._beside: BackgroundEvaluator | None = None
        self._evaluation: dict[str, Any] | None = None  # the one that goes on beside the training
        self._evaluated = folder.path / "evaluated.pt"  # its network

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        for part in (self._beside, self._progress, self._evaluator):
            if part:
                part.close()
        if isinstance(error, OSError) and not (isinstance(error, BrokenPipeError) or is_out_of_memory(error)):
            what = f"cannot write in {self.folder.path}: {error.strerror or error}"
            raise RunError(f"{what}. Last good checkpoint: {self.last_saved}. Once mended: {self._command}") from None

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
            until = f"{self.config.steps:,} agent steps or {self.config.games:,} games"
            self.webhook.send(f"begins on {training.memory.device}, seed {self.config.seed}, until {until}")
        self._steps_recorded = training.agent_steps
        begins, limits = self.config.replay_start_size, (self.config.steps, self.config.games)
        reached = training.agent_steps, training.games_finished
        ends = {"steps_limit": limits[0], "games_limit": limits[1], "evaluate_every": self.config.evaluate_every}
        self._progress = Progress(*reached, learning_begins=begins, **ends)
        return True

    def _restore(self) -> bool:
        """Take over the newest sound checkpoint and play its action log; False when there is nothing to do."""
        checkpoint, fault = self.folder.checkpoints.load()
        what = f"the checkpoint in {self.folder.path}"
        state = state_of(self.training)
        if "priorities" in state:
            state["priorities"] = None  # of any size
        if not find_mismatch(checkpoint, FORMAT):
            self._check_config(checkpoint["config"])
        if odd := find_mismatch(checkpoint, {**FORMAT, "evaluation": None, "training": state}):
            raise RunError(f"{what} is not what this version reads ({odd}); use the version that wrote it")
        if fault:
            print(f"The newest checkpoint cannot be used ({fault}); resuming from the one before it.")
        state = checkpoint["training"]
        evaluation = checkpoint["evaluation"]  # which went on beside the training
        played_all = state["agent_steps"] >= self.config.steps or state["games_finished"] >= self.config.games
        evaluated_all = state["evaluations"] >= self.config.evaluations_until(state["agent_steps"]) and not evaluation
        if played_all and evaluated_all:
            print(f"{self.folder.path} is finished; a larger --steps or --games goes on with it.")
            return False
        if not torch.isfinite(state["agent"]["online"]).all():
            raise RunError(f"{what} holds weights that are no finite numbers: its training failed")
        self.folder.check(checkpoint["lengths"], checkpoint["digests"])
        if (threads := threads_of(checkpoint["machine"])) and not threads_wanted():
            torch.set_num_threads(threads)  # as many as it began with, on any machine: its bits hang on that
        if not self._play_actions_again(checkpoint):
            print(f"Stopped while the action log was playing; nothing was changed. Go on: {self._command}")
            return False
        self.folder.write_config(self.config.as_json())
        self.folder.cut_back(checkpoint["lengths"])
        self.best_mean = checkpoint["best_mean"]
        self.seconds_before = checkpoint["seconds"]
        self.last_saved = f"agent step {self.training.agent_steps:,}"
        if evaluation:
            self._begin_evaluation(evaluation)
        print(f"Resuming at game {self.training.games_finished:,}, {self.last_saved}: {self.folder.path}")
        where = f"{self.training.memory.device}, seed {self.config.seed}"
        self.webhook.send(f"goes on at {self.last_saved} of {self.config.steps:,} on {where}")
        return True

    def _check_config(self, saved: dict[str, Any]) -> None:
        """Raise `UsageError` where the checkpoint was made with another config than config.json holds."""
        config = self.config.as_json()
        odd = [name for name in saved if name not in MAY_CHANGE and config.get(name) != saved[name]]
        if "game" in odd and game_key(config["game"]) == game_key(saved["game"]):
            odd.remove("game")
        if odd:
            here, there = (", ".join(f'"{n}": {json.dumps(v.get(n))}' for n in odd) for v in (config, saved))
            what = f"{self.folder.path / 'config.json'} was edited, or the checkpoint is another run's"
            way_out = "put back the one that is not this run's, or choose another --run-dir"
            raise UsageError(f"{what}: {here} here, {there} there; {way_out}")

    def _play_actions_again(self, checkpoint: dict[str, Any]) -> bool:
        """Fill the memory again, and say it where the run will not be bit for bit the same; False at a signal."""
        state = checkpoint["training"]
        total = sum(len(actions) for actions in state["action_log"]["actions"])
        with bar_of_actions(total) as bar:

            def watch(steps: int) -> bool:
                bar.update(steps)
                return not self.stop

            played_true = restore(self.training, state, watch)
        if played_true is None:
            return False
        if not played_true or checkpoint["machine"] != platform_fingerprint(
            self.training.memory.device, self.config.precision
        ):
            where = "another processor, thread count, torch or ale-py"
            print(f"The checkpoint is from {where}: the run goes on, but not bit for bit.")
        return True

    def save_checkpoint(self) -> None:
        """Write model.pt and a checkpoint of this very step, which `_restore` reads; raises `OSError`."""
        self._save_network("model.pt")
        self._write_checkpoint()

    def end(self) -> None:
        """Save; wait for an evaluation that goes on, unless a signal comes, and save that, too."""
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
                "digests": self.folder.digests(),
                "best_mean": self.best_mean,
                "evaluation": self._evaluation,
                "seconds": self._seconds(),
            }
        )
        self.last_saved = f"agent step {self.training.agent_steps:,}"
        self._checkpoint_written = time.monotonic()

    def save_checkpoint_when_due(self) -> None:
        """Save once --checkpoint-minutes have gone by since the last time."""
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
            self._say_when_dead(values)
        self.finish_evaluation(wait=False)
        self._steps_recorded = steps
        self._progress.show(steps, training.games_finished, training.recent_scores, epsilon)

    def evaluate(self) -> bool:
        """Have the paper's protocol played, on a GPU beside the training, else now; False when a signal broke it off.

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
        """Begin one that goes on beside the training; checkpoints hold it until it has ended."""
        self._evaluation = evaluation
        save_state_dict(evaluation["network"], self._evaluated)
        if self.training.agent.device.type in BACKGROUND_ON:
            if not self._beside:
                device, games = str(self.training.agent.device), self.config.evaluation_games
                self._beside = BackgroundEvaluator(games, device=device, deterministic=self.config.deterministic)
            self._beside.begin(self._evaluated, evaluation["seed"])

    def finish_evaluation(self, *, wait: bool = True) -> bool:
        """Note what the evaluation that was begun gave; False when it has not ended, waited for until a signal comes.

        Where it failed, or the run went on with another device, it is played now.
        """
        if not self._evaluation:
            return True
        while self._beside and not self._beside.ended(0.1 if wait else 0.0):
            if self.stop or not wait:
                return False
        if self.stop:  # it may have ended the other process, too
            return False
        played = self._beside.take() if self._beside else None
        if not isinstance(played, list):
            if self._beside:
                tqdm.write(f"The evaluation beside the training failed ({played}); it is played in its place.")
                self._beside.close()
                self._beside = None
            network = load_network(self._evaluated, self.training.agent.device)
            played = self._evaluator.play(network, self._evaluation["seed"], lambda _: not self.stop)
        if played is None:
            return False
        self._note_evaluation(self._evaluation, played)
        self._evaluation = None
        self._evaluated.unlink(missing_ok=True)
        return True

    def _note_evaluation(self, evaluation: dict[str, Any], played: list[FinishedGame]) -> None:
        """Write down what an evaluation gave, and keep its network if it is the best so far."""
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
            what = f"the loss is no finite number any more, noticed at agent step {self.training.agent_steps:,}"
            kept = f"the checkpoint of {self.last_saved} and model.pt in {self.folder.path}"
            raise RunError(f"{what}: the learning rate may be too large. Last good files: {kept}")

    def _say_when_dead(self, values: dict[str, float]) -> None:
        """Say once per process that the network has one value for all states: often a layer's units are all 0."""
        deviation, mean = values.get("deviation_q_held_out", math.inf), values.get("mean_q_held_out", 0.0)
        if deviation <= SAME_VALUE * max(1.0, abs(mean)) and not self._said_dead:
            self._said_dead = True
            found = f"network gives the same value to every state at agent step {self.training.agent_steps:,}"
            what = "a layer is probably dead, and comes back late or never"
            tqdm.write(f"The {found}: {what}. A new run with a smaller --learning-rate may keep it alive.")
            self.webhook.send(f"its {found}")

    def _save_network(self, name: str) -> None:
        self._check_finite()
        save_state_dict(self.training.agent.online_network.state_dict(), self.folder.path / name)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self._began

    def _script(self, name: str, network: str) -> str:
        """The command that runs a script with one of the networks, to be pasted."""
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
        print(f"  go on            {self._command}{longer if how == 'Finished' else ''}")


def command_line(kind: type[AnyConfig]) -> tuple[AnyConfig, AnyConfig | None]:
    """The config that the flags mean, and that of the run that they name, if it was begun.

    What is not typed is as the --config file says, or as the run was begun.
    """
    typed = parse(kind, groups=FLAGS)
    saved = config_of_run(kind, typed.run_dir) if typed.run_dir else None
    if not (saved or typed.config):
        return typed, None
    begun = saved or kind()  # type: ignore[call-arg]
    defaults = with_file(dataclasses.replace(begun, run_dir=typed.run_dir, config=typed.config))
    return dataclasses.replace(parse(kind, default=defaults, groups=FLAGS), config=None), saved
