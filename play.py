"""Watch a trained network play in a window, take over from it, or play yourself: python play.py --help"""

from runtime.exits import StopSignal, UsageError, exit_with  # isort: skip  # first: runtime/ says which Python is needed
import itertools
import os
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from atari import FRAMES_PER_SECOND, MAX_EMULATOR_SEED, display_name
from runtime.files import check_output
from runtime.flags import Bounds, Probability, check_bounds, parse
from runtime.networks import load_network
from viewing.episodes import EPSILON, EpsilonGreedyPlayer, RenderedStep, open_game, rendered_steps
from viewing.film import write_film
from viewing.filmed_game import FilmedGame
from viewing.panel import Panel
from viewing.window import Window
from wrappers import rom_name

KEY_HINTS = ("p pause · n step · + - speed · r new game · q quit", "t take over · arrows and space: play")
CONTROLS = {"up": "UP", "down": "DOWN", "left": "LEFT", "right": "RIGHT", "space": "FIRE"}
FASTER, SLOWER = ("+", "=", "[+]"), ("-", "[-]")  # also without shift, and on the keypad
SPEEDS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16)


@dataclass
class PlayConfig:
    """Watch a trained network play in a window, at the game's speed, take over from it, or play yourself.

    Name one of --state-dict, --follow and --human. Keys: p pause, n next step, + and - speed, r new game, t take over
    and hand back, q quit; arrow keys and space play.
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
        if self.game is not None and not self.human:
            raise UsageError(f"--game {self.game} is for --human: a network knows its game; leave it out")
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


class Session:
    """Games in a window, one after the other, until someone quits; called as a player, too: the agent or a person."""

    def __init__(self, config: PlayConfig, window: Window, game: FilmedGame, stop: StopSignal):
        self.config = config
        self.agent: EpsilonGreedyPlayer | None = None
        self.person_plays = config.human
        self._window = window
        self._game = game
        self._stop = stop
        self._tapped: list[str] = []  # keys since the last action: a short tap between two agent steps counts
        self._speed = SPEEDS.index(1)
        self._paused = self._step_asked = self._restart_asked = self._quit = False

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """The action (1,) int64 in states (1, 4, 84, 84) uint8."""
        keys = self._window.held + [key for key in self._tapped if key not in self._window.held]
        self._tapped.clear()
        actions = None if self.agent is None else self.agent(states)  # it draws, and says its Q-values, in any case
        if actions is None or self.person_plays:
            return np.array([action_of(keys, self._game.action_names)])
        return actions

    def pictures(self) -> Iterator[np.ndarray]:
        """Play until someone quits; yields what was shown. Raises `UsageError` when the network to follow has gone."""
        for number in itertools.count():
            seed = (self.config.seed + number) % MAX_EMULATOR_SEED
            if path := self.config.network_path():
                self.agent = EpsilonGreedyPlayer(load_network(path), epsilon=self.config.epsilon, seed=seed)
            names, rate = self._game.action_names, self._game.rules.steps_per_second
            self._panel = Panel(display_name(self._game.rom), names, steps_per_second=rate)
            self._restart_asked = False
            for rendered in rendered_steps(self, self._game, seed=seed):
                yield from self._show(rendered)
                if self._game_is_left:
                    break
            else:
                print(f"game {number + 1}, seed {seed}: score {rendered.score:,.0f}", flush=True)
            if self._quit or self._stop:
                return

    @property
    def _game_is_left(self) -> bool:
        return self._restart_asked or self._quit or bool(self._stop)

    def _show(self, rendered: RenderedStep) -> Iterator[np.ndarray]:
        """Show an agent step, and wait after it while paused."""
        q_values = None if self.agent is None else self.agent.q_values[0]
        self._panel.update(rendered.state, q_values, rendered.action, rendered.score)
        self._say_notes()
        for screen in rendered.screens:
            picture = self._panel.picture(screen)
            yield picture
            self._show_picture(picture, FRAMES_PER_SECOND * SPEEDS[self._speed])
            if self._game_is_left:
                return
        self._step_asked = False
        while self._paused and not (self._step_asked or self._game_is_left):
            self._show_picture(self._panel.picture(rendered.screens[-1]), FRAMES_PER_SECOND)

    def _show_picture(self, picture: np.ndarray, frames_per_second: float) -> None:
        self._window.show(picture, frames_per_second)
        for key in self._window.pressed():
            self._obey(key)
            self._say_notes()

    def _say_notes(self) -> None:
        note = f"{'you play' if self.person_plays else 'the agent plays'}, speed x{SPEEDS[self._speed]:g}"
        self._panel.say(note + ", paused" * self._paused, *KEY_HINTS)

    def _obey(self, key: str) -> None:
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
            self.person_plays = not self.person_plays or self.agent is None
        elif key in FASTER:
            self._speed = min(self._speed + 1, len(SPEEDS) - 1)
        elif key in SLOWER:
            self._speed = max(self._speed - 1, 0)
        else:
            self._tapped.append(key)


def play(config: PlayConfig) -> None:
    """Open the window and play until someone quits; raises `UsageError`."""
    config.check()
    path = config.network_path()
    game = open_game(path, load_network(path)) if path else FilmedGame(rom_name(str(config.game)))
    with closing(game), closing(Window(display_name(game.rom))) as window, StopSignal(patient=True) as stop:
        print(f"actions here: {', '.join(game.action_names)}", flush=True)
        pictures = Session(config, window, game, stop).pictures()  # a signal quits like the key: the recording is kept
        if config.record:
            print(f"{config.record}: {write_film(config.record, pictures):,} frames")
        else:
            deque(pictures, maxlen=0)


def main() -> None:
    play(parse(PlayConfig))


if __name__ == "__main__":
    exit_with(main)
