"""One game with every emulator frame in colour, for the eye."""

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AtariPreprocessing, RenderCollection

from atari import FRAME_SIZE, PAPER_OPTIONS, GameOptions, Step, display_name
from wrappers import MAX_FRAMES_PER_GAME, NOOP_MAX_FRAMES, AtariGames, ScoreKeeper, choose_actions


class FilmedGame:
    """One game through Gymnasium's own wrappers, with every emulator frame in colour.

    Its observations equal `AtariGames`' byte for byte. `action_names` says what the actions mean.
    """

    num_envs = 1

    def __init__(self, rom: str, rules: GameOptions = PAPER_OPTIONS, *, max_frames_per_game: int = MAX_FRAMES_PER_GAME):
        self.rom = rom
        self.rules = rules
        self.action_names, self._emulator_actions = choose_actions(rom, rules.actions)
        self.num_actions = len(self.action_names)
        emulator = gym.make(
            f"ALE/{display_name(self.rom)}-v5",
            render_mode="rgb_array",
            frameskip=1,
            repeat_action_probability=rules.sticky_actions,
            full_action_space=False,
            max_num_frames_per_episode=max_frames_per_game,
            disable_env_checker=True,
        )
        self._every_frame = RenderCollection(emulator)  # inside the preprocessing, which skips frames
        self._game = AtariPreprocessing(
            self._every_frame, noop_max=NOOP_MAX_FRAMES, frame_skip=rules.frames_per_step, screen_size=FRAME_SIZE
        )
        self._keeper = ScoreKeeper(1)
        self._action = 0

    def reset(self, seed: int | np.ndarray | None = None) -> np.ndarray:
        """Start a new game, from a seed or going on from the last; returns its first frame (1, 84, 84) uint8."""
        frame, info = self._game.reset(seed=None if seed is None else int(np.ravel(seed)[0]))
        self._keeper.restart(np.array([info["lives"]]))
        return np.asarray(frame)[None]

    def send(self, actions: np.ndarray) -> None:
        """Keep the action (1,) for `receive`."""
        self._action = int(self._emulator_actions[actions[0]])

    def receive(self) -> Step:
        """Play the step; the caller must `reset` after one that ends the game."""
        frame, reward, over, cut, info = self._game.step(self._action)
        cut = cut and not over
        values = (np.array([value]) for value in (reward, over, cut, info["lives"]))
        return self._keeper.step(np.asarray(frame)[None], *values)

    def take_screens(self) -> list[np.ndarray]:
        """The frames (210, 160, 3) uint8 that were shown since the last call or `reset`."""
        return self._every_frame.render()  # type: ignore[return-value]

    def close(self) -> None:
        self._game.close()


# What plays: the one for speed, the other for the eye. Both show a network the same bytes.
Games = AtariGames | FilmedGame
