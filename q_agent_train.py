"""Train the DQN of Mnih et al., Nature 2015, on an Atari game: python q_agent_train.py --help"""

import dataclasses
import datetime
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

from checkpoint import CheckpointFile, save_state_dict
from errors import RunError, UsageError, exit_with
from evaluate import EPSILON, FRAMES_PER_MINUTE, MINUTES, EpsilonGreedyPlayer, play_protocol
from progress import Pace
from q_agent import choose_device, keep_freed_memory
from run_folder import RunFolder, read_config
from training import Hyperparameters, Training, multiples_crossed
from wrappers import FRAMES_PER_STEP, AtariGames, FinishedGame, rom_name

GAME = "BreakoutNoFrameskip-v4"  # edit this line to change the game, or name another with --game

CHECKPOINT_FORMAT = 1
LOG_EVERY_STEPS = 10_000  # agent steps between the values in TensorBoard that belong to no game
MAY_CHANGE = ("games", "steps", "device", "run_dir")  # the flags that lengthen a run or move it


@dataclass
class Config(Hyperparameters):
    """Train the DQN of Mnih et al., Nature 2015, on an Atari game. The defaults are the paper's."""

    game: str = GAME
    """The game, by any of its names: BreakoutNoFrameskip-v4, ALE/Breakout-v5, Breakout, breakout."""
    games: int = 15_000
    """Whole games to play; the run ends at this or at --steps, whichever comes first."""
    steps: int = 50_000_000
    """Agent steps to play, of 4 frames each (run_gpu: steps)."""
    device: str = "auto"
    """Where the network and the memory live: cuda, mps, cpu, or auto for the first of them that is there."""
    run_dir: Path | None = None
    """Folder of the run: a new one, or one to go on with. Default: runs/<game>-<date>-<time>-seed<seed>."""
    save_every_games: int = 50
    """Finished games between state dicts in state_dicts/."""
    checkpoint_minutes: float = 5.0
    """Minutes of wall time between checkpoints."""

    def check(self) -> None:
        """Raise `UsageError` for a value that cannot be, before anything is made."""
        rom_name(self.game)
        for name in ("games", "steps", "save_every_games"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)} cannot be: it must be 1 or more")
        if not (math.isfinite(self.checkpoint_minutes) and self.checkpoint_minutes > 0):
            raise UsageError(f"--checkpoint-minutes {self.checkpoint_minutes} cannot be: it must be above 0")
        super().check()

    def as_json(self) -> dict[str, Any]:
        """The config as config.json holds it; the folder it stands in is its run_dir."""
        values = dataclasses.asdict(self)
        del values["run_dir"]
        return values


def config_of_run(run_dir: Path) -> Config | None:
    """The config that a run folder was made with; None for a folder without one. Raises `RunError` if broken."""
    values = read_config(run_dir)
    if values is None:
        return None
    known = {field.name for field in dataclasses.fields(Config)} - {"run_dir"}
    if values.keys() != known:
        odd = ", ".join(sorted(values.keys() ^ known))
        raise RunError(f"{run_dir}/config.json is from another version of this project ({odd}); use that version")
    return Config(**values, run_dir=run_dir)


def check_continuation(saved: Config, config: Config) -> None:
    """Raise `UsageError` where `config` asks a run for something else than it was begun with."""
    for field in dataclasses.fields(Config):
        before, now = getattr(saved, field.name), getattr(config, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        if field.name in ("games", "steps") and now < before:
            raise UsageError(f"{flag} {now} would shorten {config.run_dir}, which was begun with {before}; it may grow")
        if field.name not in MAY_CHANGE and now != before:
            raise UsageError(
                f"{flag} {now} contradicts {config.run_dir}, which was begun with {before}; leave the flag out to go "
                "on with the run, or choose another --run-dir"
            )


def train(config: Config) -> Path:
    """Train as `config` says, or go on with the run in its folder; returns the run folder.

    Raises `UsageError` for what cannot be done and `RunError` for what fails on the way.
    """
    config.check()
    device = choose_device(config.device)
    run_dir = config.run_dir or _new_run_dir(config)
    saved = config_of_run(run_dir)
    if saved:
        check_continuation(saved, config)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = False  # the paper's arithmetic is float32; convolutions would round to tf32
    keep_freed_memory()
    training = Training(config, device)  # before the folder: what cannot be leaves nothing behind
    try:
        folder = RunFolder(run_dir)
        try:
            folder.write_config(config.as_json())
            Run(config, training, folder).go()
        finally:
            folder.close()
    finally:
        training.close()
    return run_dir


def _new_run_dir(config: Config) -> Path:
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{rom_name(config.game)}-{now}-seed{config.seed}"


class Run:
    """A training with its files: what is saved, logged and shown, and when."""

    def __init__(self, config: Config, training: Training, folder: RunFolder):
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
                    f"{self.last_saved}. Make room, then: {self._go_on_command()}"
                ) from None
            finally:
                if self._evaluation_games:
                    self._evaluation_games.close()
        self._say_where_things_are()

    def _begin(self) -> bool:
        """Start anew or from the newest sound checkpoint; False when a signal came meanwhile."""
        self.started = time.monotonic()
        if not self.checkpoints.exists():
            self.folder.cut_back({})
            self.training.begin()
            print(f"Training on {rom_name(self.config.game)}, device {self.training.memory.device}: {self.folder.path}")
            return True
        state, fault = self.checkpoints.load()
        if fault:
            print(f"The newest checkpoint cannot be used ({fault}); going on from the one before it.")
        if state["format"] > CHECKPOINT_FORMAT:
            raise RunError(
                f"the checkpoint in {self.folder.path} has format {state['format']}, this version knows "
                f"{CHECKPOINT_FORMAT}; use the version that wrote it"
            )
        for _ in self._with_bar(self.training.load_state_dict(state["training"]), state):
            if self._stop_signal:
                print("Stopped while the tape was playing; nothing was changed.")
                return False
        if not self.training.tape_played_true():
            print(
                "The tape did not play back to the same frames: another processor or another ale-py. "
                "The run goes on, but not bit for bit."
            )
        self.folder.cut_back(state["lengths"])
        self.best_mean = state["best_mean"]
        self.seconds_before = state["seconds"]
        self.last_saved = f"agent step {self.training.agent_steps:,}"
        print(f"Going on at game {self.training.games_finished:,}, {self.last_saved}: {self.folder.path}")
        return True

    def _with_bar(self, played: Iterator[int], state: dict[str, Any]) -> Iterator[int]:
        total = sum(len(actions) for actions in state["training"]["tape"]["actions"])
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
                if training.reseed_is_due:
                    if config.evaluate_every and not self._evaluate():
                        break  # interrupted: the evaluation is still due when the run goes on
                    training.reseed()
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

    def _record(self, games: list[FinishedGame]) -> None:
        """Write the games that ended, and the state dict when its turn has come."""
        steps, count = self.training.agent_steps, self.training.games_finished
        epsilon = float(self.config.epsilon(np.array([steps]))[0])
        for number, game in enumerate(games, start=count - len(games) + 1):
            frames = steps * FRAMES_PER_STEP
            row = (number, steps, frames, game.score, game.length_steps, epsilon, round(self._seconds(), 1))
            self.folder.add_row("games.csv", row)
            self.folder.add_scalars(steps, score=game.score, epsilon=epsilon)
        if multiples_crossed(count - len(games), count, self.config.save_every_games):
            number = count - count % self.config.save_every_games
            self._check_finite()
            self._save_network(f"state_dicts/game_{number:06d}.pt")
            self._save_network("model.pt")

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
        return True

    def _check_finite(self) -> None:
        if not self.training.agent.is_finite():
            raise RunError(
                f"the loss is not a finite number any more at agent step {self.training.agent_steps:,}: the learning "
                f"rate may be too large. Last good files in {self.folder.path}: checkpoint of {self.last_saved}, "
                "model.pt"
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


def main() -> None:
    """The command line: flags, or the config of the run that --run-dir names."""
    config = tyro.cli(Config)
    saved = config_of_run(config.run_dir) if config.run_dir else None
    if saved:
        config = tyro.cli(Config, default=saved)
    train(config)


if __name__ == "__main__":
    exit_with(main)
