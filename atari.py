"""What every module knows: sizes and rates, what a step is, the names of games, the paper's scores."""

import csv
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FRAMES_PER_STEP = 4  # run_gpu: actrep
HISTORY_FRAMES = 4  # run_gpu: hist_len
FRAME_SIZE = 84  # run_gpu: preproc net_downsample_2x_full_y, 84x84
MAX_ACTIONS = 18  # the joystick's nine positions, each with and without the button
FRAMES_PER_SECOND = 60  # the emulator's
FRAMES_PER_MINUTE = 60 * FRAMES_PER_SECOND
MAX_EMULATOR_SEED = 2**31 - 2**16  # ale-py's seeds have 31 bits, and environment i gets seed + i

MAX_FRAMES_PER_STEP = FRAMES_PER_SECOND  # one decision a second is the slowest play

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class GameOptions:
    """How a game is played; the defaults are the paper's. A state dict holds those that differ.

    actions: names of those allowed, in the order of the network's outputs; none: all that the game knows.
    """

    frames_per_step: int = FRAMES_PER_STEP
    actions: tuple[str, ...] = ()
    sticky_actions: float = 0.0

    @property
    def steps_per_second(self) -> float:
        """Agent steps per second of play."""
        return FRAMES_PER_SECOND / self.frames_per_step


PAPER_OPTIONS = GameOptions()
PAPER_MINUTES = 5  # the limit of each game in the paper's evaluation ...
LONG_MINUTES = 30  # ... and in later work, where the human has other scores
PAPER49 = "paper49"  # means all games of the paper


@dataclass
class FinishedGame:
    """One whole game: which environment played it, its raw score, its length in agent steps, whether a limit cut it.

    first_life_score: the score so far when the first life was lost; the whole one where none was, or none counts.
    """

    environment: int
    score: float
    length_steps: int
    first_life_score: float
    cut: bool = False


@dataclass
class Step:
    """What one agent step (4 frames in the paper) did in each environment; (num_envs, ...) arrays.

    frames: (num_envs, 84, 84) uint8, the newest frame; where a game ended, the first of the next game.
    rewards: float32, raw, the sum over the frames. terminals: bool, a life or the game was lost.
    game_starts: bool, the frame is a new game's first. finished: the games that ended, by environment.
    """

    frames: np.ndarray
    rewards: np.ndarray
    terminals: np.ndarray
    game_starts: np.ndarray
    finished: list[FinishedGame]


@dataclass(frozen=True)
class PaperScores:
    """What Extended Data Table 2 reports for one game, mean raw scores; what follows it is from other work."""

    game: str
    random: float
    best_linear: float
    sarsa_contingency: float
    human: float  # under the paper's own limit of 5 minutes: the one that normalises
    dqn_nature: float
    dqn_nature_std: float
    human_30min: float
    pfrl_dqn: float  # the mean of six seeds
    random_nips2013: float | None = None  # Mnih et al. 2013, table 1, for the seven games that it has
    human_nips2013: float | None = None
    dqn_nips2013: float | None = None

    def human_of(self, minutes: float) -> float:
        """The human's score in games of at most so many minutes, `LONG_MINUTES` or the paper's 5."""
        return self.human_30min if minutes == LONG_MINUTES else self.human

    def normalised(self, score: float, minutes: float = PAPER_MINUTES) -> float:
        """The score in percent, the random agent at 0 and the human of the same limit at 100 (paper, Fig. 3).

        The random agent's score is that of 5 minutes for both limits, as in later work: its games rarely last longer.
        """
        return 100 * (score - self.random) / (self.human_of(minutes) - self.random)


# Names that people and the paper's tables have for a game, where ALE's differs in more than case, spaces and marks.
OTHER_NAMES = {
    "3dtictactoe": "tictactoe3d",
    "jamesbond007": "jamesbond",
    "koolaidman": "koolaid",
    "kungfu": "kungfumaster",
    "montezumasrevenge": "montezumarevenge",
    "pitfallii": "pitfall2",
    "robottank": "robotank",
    "updown": "upndown",
    "upanddown": "upndown",
}


def game_key(game: str) -> str:
    """What is common to all names of a game: ms_pacman, Ms. Pac-Man, ALE/MsPacman-v5 and MsPacmanNoFrameskip-v4."""
    suffix = r"[\s_-]*(NoFrameskip|Deterministic)?([\s_-]*v\d+)?$"
    bare = re.sub(rf"^ALE/|{suffix}", "", game.strip(), flags=re.IGNORECASE)
    key = re.sub(r"[^0-9a-z]", "", bare.lower())
    return OTHER_NAMES.get(key, key)


def display_name(rom: str) -> str:
    """The name people know a ROM by, as in the paper's tables: ms_pacman is MsPacman."""
    return "".join(word.title() for word in rom.split("_"))


def _scores_in(path: Path) -> dict[str, list[float]]:
    with open(path, newline="") as file:
        _, *rows = csv.reader(file)  # its columns are fields of `PaperScores`, in their order
    return {game: [*map(float, scores)] for game, *scores in rows}


@functools.cache
def paper_table() -> dict[str, PaperScores]:
    """The scores of the paper's 49 games, by `game_key`, in the order of its table."""
    nature, nips2013 = _scores_in(DATA / "nature_scores.csv"), _scores_in(DATA / "nips2013_scores.csv")
    return {game_key(game): PaperScores(game, *row, *nips2013.get(game, [])) for game, row in nature.items()}


def games_named(names: Sequence[str]) -> list[str]:
    """The games that these names mean: `PAPER49` alone all that the paper has, others themselves."""
    return [paper.game for paper in paper_table().values()] if [*names] == [PAPER49] else [*names]


def paper_scores(game: str) -> PaperScores | None:
    """The paper's scores of a game, by its ROM's name or any other; None when it is not one of the paper's 49."""
    return paper_table().get(game_key(game))
