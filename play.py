"""Watch a trained network play in a window, take over from it, or play yourself: python play.py --help"""

from runtime.exits import StopSignal, UsageError, exit_with  # isort: skip  # first: runtime/ says which Python is needed
import itertools
import os
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image

from atari import FRAMES_PER_SECOND, MAX_EMULATOR_SEED, display_name
from runtime.files import check_output
from runtime.flags import Bounds, Probability, check_bounds, parse
from runtime.networks import load_network
from viewing.episodes import EPSILON, EpsilonGreedyPlayer, RenderedStep, open_game, rendered_steps
from viewing.film import Film, filming
from viewing.filmed_game import FilmedGame
from viewing.panel import Panel
from viewing.window import Window
from wrappers import rom_name

KEYS_HELP = """\
  p            pause, resume
  n            while paused: the next agent step (4 frames)
  + / -        faster / slower
  r            a new game
  t            take over from the agent, hand back
  s            save a screenshot
  q, escape    quit
  arrow keys   move, where you play; space is FIRE"""
KEY_HINTS = ("p pause · n step · + - speed · r new game · q quit", "t take over · s picture · arrows and space: play")
CONTROLS = {"up": "UP", "down": "DOWN", "left": "LEFT", "right": "RIGHT", "space": "FIRE"}
FASTER, SLOWER = ("+", "=", "[+]"), ("-", "[-]")  # also without shift, and on the keypad
SPEEDS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16)


@dataclass
class PlayConfig:
    """Watch a trained network play in a window, at the game's speed, take over from it, or play yourself.

    Name one of --state-dict, --follow and --human. Keys: p pause, n next step, + and - speed, r new game, t take over
    and hand back, s screenshot, q quit; arrow keys and space play.
    """

    state_dict: Path | None = None
    """Watch this network: a state dict that a training run wrote, such as runs/.../model.pt. It knows its game."""
    follow: Path | None = None
    """Watch a run that is still training: each game is played by the newest model.pt in this run folder."""
    human: bool = False
    """Play yourself the game that --game names."""
    game: str | None = None
    """The game, for --human: Breakout, BreakoutNoFrameskip-v4 or any other of its names."""
    epsilon: Probability = EPSILON
    """Probability that the agent's action is a random one (paper, evaluation: 0.05)."""
    seed: Annotated[int, Bounds(0, MAX_EMULATOR_SEED - 1)] = 0
    """Seed of the first game and of its random actions; the next game has the next seed."""
    record: Path | None = None
    """Keep every emulator frame that was shown in this MP4 file, at the game's speed."""

    def check(self) -> None:
        """Raise `UsageError` for flags out of bounds, or that contradict each other."""
        if (self.state_dict is not None) + (self.follow is not None) + self.human != 1:
            raise UsageError("who plays? Name one of --state-dict MODEL.pt, --follow RUN, and --human --game GAME")
        if self.human and self.game is None:
            raise UsageError("--human needs the game: --human --game Breakout")
        check_bounds(self)
        if self.record:
            check_output(self.record, ".mp4")

    def network_path(self) -> Path | None:
        """The state dict to play with now; None for a person alone. Raises `UsageError` when a run has none yet."""
        if self.follow is None:
            return self.state_dict
        path = self.follow / "model.pt"
        if not os.path.exists(path):
            raise UsageError(f"--follow: {path} is not there; name the folder of a run, which writes it at its start")
        return path


def action_of(held: list[str], action_names: list[str]) -> int:
    """The action that holds the most of these keys, oldest press first, and no other; between equals, of the newest."""
    wanted = [CONTROLS[key] for key in held if key in CONTROLS]

    def fit(action: int) -> tuple[int, list[int]]:
        parts = [part for part in CONTROLS.values() if part in action_names[action]]
        if not set(parts) <= set(wanted):
            return -1, []
        return len(parts), sorted((wanted.index(part) for part in parts), reverse=True)

    return max(range(len(action_names)), key=fit)


class Hands:
    """A player: the agent, or whoever sits at the keys; the agent says its Q-values to both."""

    def __init__(self, window: Window, action_names: list[str]):
        self.agent: EpsilonGreedyPlayer | None = None
        self.person_plays = False
        self.tapped: list[str] = []
        """Keys pressed since the last action: a short tap between two agent steps counts."""
        self._window = window
        self._action_names = action_names

    @property
    def q_values(self) -> np.ndarray | None:
        """The agent's (num_actions,) float32 in the last state; None without an agent."""
        return None if self.agent is None else self.agent.q_values[0]

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """The action (1,) int64 in states (1, 4, 84, 84) uint8."""
        keys = self._window.held + [key for key in self.tapped if key not in self._window.held]
        self.tapped.clear()
        actions = None if self.agent is None else self.agent(states)
        if actions is None or self.person_plays:
            return np.array([action_of(keys, self._action_names)])
        return actions


class Session:
    """Games in a window, one after the other, until someone quits."""

    def __init__(self, config: PlayConfig, window: Window, game: FilmedGame, film: Film | None, stop: StopSignal):
        self.config = config
        self.hands = Hands(window, game.action_names)
        self.hands.person_plays = config.human
        self.scores: list[float] = []
        self._window = window
        self._game = game
        self._recording = film
        self._stop = stop
        self._speed = SPEEDS.index(1)
        self._paused = self._step_asked = self._restart_asked = self._quit = False
        self._games_begun = 0

    def run(self) -> None:
        """Play until someone quits; raises `UsageError` when the network to follow has gone."""
        while not self._ended:
            self._play_game((self.config.seed + self._games_begun) % MAX_EMULATOR_SEED)

    @property
    def _ended(self) -> bool:
        return self._quit or bool(self._stop)

    def _play_game(self, seed: int) -> None:
        path = self.config.network_path()
        if path:
            self.hands.agent = EpsilonGreedyPlayer(load_network(path), epsilon=self.config.epsilon, seed=seed)
        names, rate = self._game.action_names, self._game.rules.steps_per_second
        self._panel = Panel(display_name(self._game.rom), names, steps_per_second=rate)
        self._games_begun += 1
        self._restart_asked = False
        for rendered in rendered_steps(self.hands, self._game, seed=seed):
            self._show(rendered)
            if self._ended or self._restart_asked:
                return
        self.scores.append(rendered.score)
        print(f"game {self._games_begun}, seed {seed}: score {rendered.score:,.0f}", flush=True)

    def _show(self, rendered: RenderedStep) -> None:
        """Show an agent step, and wait after it while paused."""
        self._panel.update(rendered.state, self.hands.q_values, rendered.action, rendered.score)
        self._say_notes()
        for screen in rendered.screens:
            picture = self._panel.picture(screen)
            if self._recording:
                self._recording.add(picture)
            self._show_picture(picture, FRAMES_PER_SECOND * SPEEDS[self._speed])
            if self._ended or self._restart_asked:
                return
        self._step_asked = False
        while self._paused and not (self._step_asked or self._ended or self._restart_asked):
            self._show_picture(self._panel.picture(rendered.screens[-1]), FRAMES_PER_SECOND)

    def _show_picture(self, picture: np.ndarray, frames_per_second: float) -> None:
        self._window.show(picture, frames_per_second)
        for key in self._window.pressed():
            self._obey(key, picture)
            self._say_notes()

    def _say_notes(self) -> None:
        speed = SPEEDS[self._speed]
        notes = ["you play" if self.hands.person_plays else "the agent plays"]
        if speed != 1:
            notes.append(f"speed x{speed:g}" if speed > 1 else f"speed 1/{1 / speed:g}")
        if self._paused:
            notes.append("paused")
        self._panel.say(", ".join(notes), *KEY_HINTS)

    def _obey(self, key: str, picture: np.ndarray) -> None:
        if key in ("q", "escape"):
            self._quit = True
        elif key == "p":
            self._paused = not self._paused
        elif key == "n":
            self._step_asked = True
        elif key == "r":
            self._restart_asked = True
        elif key == "t":
            # Without an agent there is nobody to hand back to.
            self.hands.person_plays = not self.hands.person_plays or self.hands.agent is None
        elif key == "s":
            self._save_screenshot(picture)
        elif key in FASTER:
            self._speed = min(self._speed + 1, len(SPEEDS) - 1)
        elif key in SLOWER:
            self._speed = max(self._speed - 1, 0)
        else:
            self.hands.tapped.append(key)

    def _save_screenshot(self, picture: np.ndarray) -> None:
        paths = (Path(f"{self._game.rom}-{number:03}.png") for number in itertools.count(1))
        path = next(path for path in paths if not os.path.lexists(path))
        try:
            Image.fromarray(picture).save(path)
        except OSError as error:
            print(f"no screenshot: {path} cannot be written: {error.strerror}", flush=True)
        else:
            print(f"screenshot: {path}", flush=True)


def play(config: PlayConfig) -> list[float]:
    """Open the window and play until someone quits; returns the scores of the games that ended; raises `UsageError`."""
    config.check()
    rom = None if config.game is None else rom_name(config.game)
    path = config.network_path()
    game = open_game(path, load_network(path)) if path else FilmedGame(str(rom))
    with ExitStack() as stack:
        stack.enter_context(closing(game))
        if rom not in (None, game.rom):
            raise UsageError(f"--game {config.game}: {path} plays {display_name(game.rom)}; leave --game out")
        window = stack.enter_context(closing(Window(display_name(game.rom))))
        film = stack.enter_context(filming(config.record)) if config.record else None
        print(KEYS_HELP, f"\n  actions here {', '.join(game.action_names)}", flush=True)
        stop = stack.enter_context(StopSignal(patient=True))  # it quits like the key: the recording is kept
        (session := Session(config, window, game, film, stop)).run()
    if film:
        print(f"{film.path}: {film.frames:,} frames")
    return session.scores


def main() -> None:
    play(parse(PlayConfig))


if __name__ == "__main__":
    exit_with(main)
