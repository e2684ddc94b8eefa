"""A training with its files: what is saved, logged, evaluated and shown, and when; how it stops and goes on."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from checkpoint import CheckpointFile, save_state_dict
from errors import RunError, UsageError
from evaluate import EPSILON, FRAMES_PER_MINUTE, MINUTES, EpsilonGreedyPlayer, play_protocol
from progress import Pace
from run_folder import RunFolder
from training import Training, multiples_crossed
from wrappers import FRAMES_PER_STEP, AtariGames, FinishedGame, rom_name

if TYPE_CHECKING:
    from q_agent_train import Config

CHECKPOINT_FORMAT = 1
LOG_EVERY_STEPS = 10_000  # agent steps between the values in TensorBoard that belong to no game


class Run:
    """A training with its files: what is saved, logged and shown, and when."""

    def __init__(self, config: "Config", training: Training, folder: RunFolder):
        self.config = config
        self.training = training
        self.folder = folder
        self.checkpoints = CheckpointFile(folder.path)
        self.best_mean = -math.inf
        self.seconds_before = 0.0  # spent on this run by processes before this one
        self.last_saved = "nothing yet"
        self._evaluation_games: AtariGames | None = None
        self._stop_signal: int | None = None

    def go(self) -> None:
        """Begin or go on, until the end or a signal; raises `RunError`."""
        with self._signals_noted():
            try:
                if not self._begin():
                    return
                self._loop()
                self.save()
            except OSError as error:
                raise RunError(
                    f"cannot write in {self.folder.path}: {error.strerror or error}. Last good checkpoint: "
                    f"{self.last_saved}. When that is mended: {self._go_on_command()}"
                ) from None
            finally:
                if self._evaluation_games:
                    self._evaluation_games.close()
        self._say_where_things_are()

    def _begin(self) -> bool:
        """Start anew or from the newest sound checkpoint; False when a signal came meanwhile."""
        self.started = time.monotonic()
        if self.checkpoints.exists():
            return self._go_on()
        if self.folder.holds_games():
            raise UsageError(
                f"{self.folder.path} holds games but no checkpoint: put checkpoint.pt back, or choose another --run-dir"
            )
        self.folder.write_config(self.config.as_json())
        self.folder.cut_back({})
        self.training.begin()
        self.save()
        print(f"Training on {rom_name(self.config.game)}, device {self.training.memory.device}: {self.folder.path}")
        return True

    def _go_on(self) -> bool:
        """Take over the newest sound checkpoint and play its tape; False when there is nothing to do."""
        state, fault = self.checkpoints.load()
        if fault:
            print(f"The newest checkpoint cannot be used ({fault}); going on from the one before it.")
        self._check_format(state)
        training = state["training"]
        if training["agent_steps"] >= self.config.steps or training["games_finished"] >= self.config.games:
            print(f"{self.folder.path} is finished; a larger --steps or --games goes on with it.")
            return False
        for _ in self._with_bar(self.training.load_state_dict(training), training):
            if self._stop_signal:
                print("Stopped while the tape was playing; nothing was changed.")
                return False
        if not self.training.tape_played_true() or state["machine"] != self._machine():
            print(
                "The checkpoint is from another processor, thread count, torch or ale-py: the run goes on, but "
                "not bit for bit."
            )
        self.folder.write_config(self.config.as_json())
        self.folder.cut_back(state["lengths"])
        self.best_mean = state["best_mean"]
        self.seconds_before = state["seconds"]
        self.last_saved = f"agent step {self.training.agent_steps:,}"
        print(f"Going on at game {self.training.games_finished:,}, {self.last_saved}: {self.folder.path}")
        return True

    def _check_format(self, state: dict[str, Any]) -> None:
        if state["format"] > CHECKPOINT_FORMAT:
            raise RunError(
                f"the checkpoint in {self.folder.path} has format {state['format']}, this version knows "
                f"{CHECKPOINT_FORMAT}; use the version that wrote it"
            )

    def _machine(self) -> list[Any]:
        """What the bits depend on besides the config, as far as a program can know it."""
        device = self.training.memory.device
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        kernels = torch.backends.cpu.get_cpu_capability()
        return [device.type, gpu, kernels, torch.get_num_threads(), str(torch.__version__)]

    def _with_bar(self, played: Iterator[int], training: dict[str, Any]) -> Iterator[int]:
        total = sum(len(actions) for actions in training["tape"]["actions"])
        with tqdm(total=total, desc="Playing the tape", unit=" steps", unit_scale=True) as bar:
            for steps in played:
                bar.update(steps)
                yield steps

    def _loop(self) -> None:
        config, training = self.config, self.training
        saved_at = time.monotonic()
        pace = Pace(training, config.steps, config.games)
        with tqdm(total=100, bar_format="{percentage:3.0f}% |{bar:10}| {postfix}") as bar:
            while True:
                if training.evaluation_is_due and not self._evaluate():
                    break  # interrupted: the evaluation is still due when the run goes on
                training.reseed_when_due()
                finished = training.agent_steps >= config.steps or training.games_finished >= config.games
                if finished or self._stop_signal:
                    break
                before = training.agent_steps
                games = training.step()
                if games:
                    self._record(games)
                if multiples_crossed(before, training.agent_steps, LOG_EVERY_STEPS):
                    self._log(pace.steps_per_second)
                pace.show(bar, float(config.epsilon(np.array([before]))[0]))
                if time.monotonic() - saved_at >= config.checkpoint_minutes * 60:
                    self.save()
                    saved_at = time.monotonic()
            pace.show(bar, float(config.epsilon(np.array([training.agent_steps]))[0]), at_once=True)

    def _record(self, games: list[FinishedGame]) -> None:
        """Write the games that ended, and the state dict when its turn has come."""
        steps, count = self.training.agent_steps, self.training.games_finished
        epsilon = float(self.config.epsilon(np.array([steps]))[0])
        numbers = range(count - len(games) + 1, count + 1)
        frames = steps * FRAMES_PER_STEP
        for number, game in zip(numbers, games, strict=True):
            row = (number, steps, frames, game.score, game.length_steps, epsilon, round(self._seconds(), 1))
            self.folder.add_row("games.csv", row)
            self.folder.add_scalars(steps, score=game.score, epsilon=epsilon)
        due = [number for number in numbers if number % self.config.save_every_games == 0]
        if due:
            self._check_finite()
            for name in (*(f"state_dicts/game_{number:06d}.pt" for number in due), "model.pt"):
                self._save_network(name)

    def _log(self, steps_per_second: float) -> None:
        self._check_finite()
        self.folder.add_scalars(
            self.training.agent_steps,
            loss=self.training.agent.take_mean_loss(),
            mean_q_held_out=self.training.mean_max_q(),
            steps_per_second=steps_per_second,
        )

    def _evaluate(self) -> bool:
        """Evaluate the online network, keep it if it is the best so far; False when a signal came meanwhile."""
        self._check_finite()
        if not self._evaluation_games:
            self._evaluation_games = AtariGames(
                self.config.game,
                self.config.evaluation_games,
                sticky_actions=self.config.sticky_actions,
                max_frames_per_game=MINUTES * FRAMES_PER_MINUTE,
            )
        seed = self.training.evaluation_seed()
        player = EpsilonGreedyPlayer(self.training.agent.online_network, epsilon=EPSILON, seed=seed)
        scores = play_protocol(player, self._evaluation_games, seed=seed, watch=lambda _: not self._stop_signal)
        if scores is None:
            return False
        row = (scores.mean(), scores.std(), scores.min(), scores.max(), self.training.mean_max_q())
        self.folder.add_row("evaluations.csv", (self.training.agent_steps, *row))
        self.folder.add_scalars(self.training.agent_steps, evaluation_mean=scores.mean())
        if scores.mean() > self.best_mean:
            self.best_mean = float(scores.mean())
            self._save_network("best.pt")
        self.training.evaluations += 1
        return True

    def _check_finite(self) -> None:
        if not self.training.agent.is_finite():
            raise RunError(
                f"the loss is no finite number any more, noticed at agent step {self.training.agent_steps:,}: the "
                f"learning rate may be too large. Last good files: the checkpoint of {self.last_saved} and model.pt in "
                f"{self.folder.path}"
            )

    def _save_network(self, name: str) -> None:
        save_state_dict(self.training.agent.online_network.state_dict(), self.folder.path / name)

    def save(self) -> None:
        """Write model.pt and a checkpoint of this very step; raises `OSError`."""
        self._check_finite()
        self._save_network("model.pt")
        self.checkpoints.save(
            {
                "format": CHECKPOINT_FORMAT,
                "machine": self._machine(),
                "training": self.training.state_dict(),
                "lengths": self.folder.lengths(),
                "best_mean": self.best_mean,
                "seconds": self._seconds(),
            }
        )
        self.last_saved = f"agent step {self.training.agent_steps:,}"

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """Turn Ctrl-C and SIGTERM into a wish to stop after this step; a second Ctrl-C ends at once."""

        def note(number: int, _frame: FrameType | None) -> None:
            self._stop_signal = number
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

        if threading.current_thread() is not threading.main_thread():
            yield  # Python lets only the main thread handle signals
            return
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _go_on_command(self) -> str:
        return f"python q_agent_train.py --run-dir {self.folder.path}"

    def _say_where_things_are(self) -> None:
        training, path = self.training, self.folder.path
        how = "Stopped" if self._stop_signal else "Finished"
        print(f"{how} after {training.games_finished:,} games and {training.agent_steps:,} agent steps.")
        print(f"  newest network   {path}/model.pt, earlier ones in {path}/state_dicts")
        if self.best_mean > -math.inf:
            print(f"  best network     {path}/best.pt, mean score {self.best_mean:.1f} over its evaluation")
        print(f"  scores           {path}/games.csv; curves: tensorboard --logdir {path}")
        print(f"  film it          python trained_model_video_generation.py --state-dict {path}/model.pt")
        print(f"  go on            {self._go_on_command()}" + ("" if self._stop_signal else " --games ... --steps ..."))
