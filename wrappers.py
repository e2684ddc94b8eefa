"""Atari as the paper plays it: many games at once, lost lives, scores."""

import difflib
import functools

import gymnasium as gym
import numpy as np
from ale_py import ALEInterface, LoggerMode, roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from atari import FRAME_SIZE, FRAMES_PER_MINUTE, PAPER_OPTIONS, FinishedGame, GameOptions, Step, display_name, game_key
from runtime.devices import threads_wanted, usable_cores
from runtime.exits import UsageError

MAX_FRAMES_PER_GAME = 30 * FRAMES_PER_MINUTE  # ALE's own limit in training
LAST_LIVE_FRAME = 65_536  # from here on no action scores or loses a life (docs/fidelity.md) ...
STOPPING_GAMES = ("breakout", "video_pinball")  # ... in these games
ALEInterface.setLoggerMode(LoggerMode.Warning)  # warnings, but not two lines of banner for each emulator
NOOP_MAX_FRAMES = 30  # run_gpu: random_starts; ale-py draws 0 to 29, the released code 1 to 30


@functools.cache
def rom_name(game: str) -> str:
    """The ROM that any of a game's names means (ALE/Breakout-v5); raises `UsageError` with the nearest names."""
    # The few ROMs that Gymnasium does not register are for two players only.
    single_player = (rom for rom in roms.get_all_rom_ids() if f"ALE/{display_name(rom)}-v5" in gym.registry)
    known = {game_key(rom): rom for rom in single_player}
    key = game_key(game)
    if key in known:
        return str(known[key])
    nearest = difflib.get_close_matches(key, known)
    hint = " or ".join(display_name(known[name]) for name in nearest)
    raise UsageError(f'unknown game "{game}"; {f"did you mean {hint}?" if hint else "try Breakout"}')


@functools.cache
def action_names(rom: str) -> list[str]:
    """The names of the actions that a game knows, in the emulator's order."""
    emulator = ALEInterface()
    path = roms.get_rom_path(rom)
    assert path, rom
    emulator.loadROM(path)
    return [action.name for action in emulator.getMinimalActionSet()]


def choose_actions(rom: str, chosen: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Names of the actions to play with, and the emulator's number of each; none chosen: all that the game knows.

    Raises `UsageError` for a name that the game does not know, or that comes twice.
    """
    known = action_names(rom)
    odd = [name for name in chosen if name not in known or chosen.count(name) > 1]
    if odd:
        why = "comes twice" if odd[0] in known else f"is no action of {display_name(rom)}"
        raise UsageError(f"--actions: {odd[0]} {why}; there are {', '.join(known)}")
    names = [*(chosen or known)]
    return names, np.array([known.index(name) for name in names])


class ScoreKeeper:
    """Follows the games: lives, scores and lengths. A lost life is terminal in training; the game continues."""

    def __init__(self, num_envs: int):
        self._lives = np.zeros(num_envs, np.int64)
        self._scores = np.zeros(num_envs, np.float64)
        self._lengths_steps = np.zeros(num_envs, np.int64)
        self._first_life_scores = np.zeros(num_envs, np.float64)
        self._in_first_life = np.ones(num_envs, np.bool_)

    def restart(self, lives: np.ndarray) -> None:
        """All games begin anew, with so many lives (num_envs,)."""
        self._lives = lives.copy()
        self._scores[:] = self._lengths_steps[:] = 0
        self._in_first_life[:] = True

    def step(
        self, frames: np.ndarray, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray, lives: np.ndarray
    ) -> Step:
        """What one agent step of every environment gave, now with its terminals and the games that ended."""
        self._scores += rewards
        self._lengths_steps += 1
        np.copyto(self._first_life_scores, self._scores, where=self._in_first_life)
        # Where a game ended, `lives` already counts the next game's. A time limit is no terminal.
        terminals = terminated | (~truncated & (lives < self._lives))
        self._lives = lives.copy()
        ended = terminated | truncated
        self._in_first_life = self._in_first_life & ~terminals | ended  # the next game's begins where one ended
        finished = []
        for e in np.flatnonzero(ended).tolist():
            played = (values[e].item() for values in (self._scores, self._lengths_steps, self._first_life_scores))
            score, length_steps, first_life_score = played
            finished.append(FinishedGame(e, score, length_steps, first_life_score, cut=not terminated[e]))
        self._scores[ended] = self._lengths_steps[ended] = 0
        return Step(frames, rewards.astype(np.float32), terminals, ended, finished)


class AtariGames:
    """Many games of one ROM, stepping in their own C++ threads between `send` and `receive`.

    A function of the seeds and actions alone, whatever the number of threads. `rom` is what `rom_name` gives.
    """

    def __init__(
        self,
        rom: str,
        num_envs: int,
        rules: GameOptions = PAPER_OPTIONS,
        *,
        max_frames_per_game: int = MAX_FRAMES_PER_GAME,
    ):
        if num_envs < 1:  # ale-py would crash the process
            raise UsageError(f"--num-envs must be at least 1, got {num_envs}")
        self.rom = rom
        self.num_envs = num_envs
        self.action_names, self._emulator_actions = choose_actions(rom, rules.actions)
        self.num_actions = len(self.action_names)
        # Every argument is set: ale-py's defaults clip rewards and press FIRE. stack_num=1: the memory stacks.
        self._environments = AtariVectorEnv(
            self.rom,
            num_envs,
            num_threads=threads_wanted() or usable_cores(),
            stack_num=1,
            frameskip=rules.frames_per_step,
            maxpool=True,
            grayscale=True,
            img_height=FRAME_SIZE,
            img_width=FRAME_SIZE,
            noop_max=NOOP_MAX_FRAMES,
            use_fire_reset=False,
            reward_clipping=False,
            episodic_life=False,
            life_loss_info=False,
            full_action_space=False,
            repeat_action_probability=rules.sticky_actions,
            max_num_frames_per_episode=max_frames_per_game,
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        self._keeper = ScoreKeeper(num_envs)

    def reset(self, seed: int | np.ndarray) -> np.ndarray:
        """Start new games; returns their first frames (num_envs, 84, 84) uint8.

        seed: of environment 0, environment i gets seed + i; or one of each, (num_envs,) int64.
        """
        observations, info = self._environments.reset(seed=seed)
        self._keeper.restart(info["lives"])
        return np.asarray(observations)[:, 0]

    def send(self, actions: np.ndarray) -> None:
        """Begin an agent step with actions (num_envs,) and return at once; raises `ValueError` for a wrong action."""
        actions = np.asarray(actions, np.int64)
        if actions.shape != (self.num_envs,) or actions.min() < 0 or actions.max() >= self.num_actions:
            # ale-py would wait for ever.
            raise ValueError(f"actions must be {self.num_envs} integers below {self.num_actions}, not {actions}")
        self._environments.send(self._emulator_actions[actions])

    def receive(self) -> Step:
        """Wait for the step that `send` began."""
        observations, rewards, terminated, truncated, info = self._environments.recv()
        return self._keeper.step(np.asarray(observations)[:, 0], rewards, terminated, truncated, info["lives"])

    def close(self) -> None:
        self._environments.close()
        del self._environments
