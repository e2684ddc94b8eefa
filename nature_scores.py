"""The paper's table of scores (Extended Data Table 2), and its normalised score."""

import csv
import functools
import re
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).parent / "data" / "nature_scores.csv"


@dataclass(frozen=True)
class PaperScores:
    """What the paper reports for one game: mean raw scores per game.

    human_30min and pfrl_dqn are from later work: the human tester under the 30-minute condition, and the six-seed
    reproduction of PFRL.
    """

    game: str
    random: float
    best_linear: float
    sarsa_contingency: float
    human: float
    """The human tester under the paper's own 5-minute condition: the one that normalises."""
    dqn_nature: float
    dqn_nature_std: float
    human_30min: float
    pfrl_dqn: float

    def normalised(self, score: float) -> float:
        """The score in percent, random play at 0 and the human tester at 100 (paper, Fig. 3)."""
        return 100 * (score - self.random) / (self.human - self.random)


def game_key(game: str) -> str:
    """What is common to all names of a game: ms_pacman, MsPacman, ALE/MsPacman-v5 and MsPacmanNoFrameskip-v4."""
    bare = re.sub(r"(NoFrameskip|Deterministic)?(-v\d+)?$", "", game.strip().removeprefix("ALE/"))
    return bare.replace("_", "").lower()


@functools.cache
def paper_table() -> dict[str, PaperScores]:
    """The scores of the paper's 49 games, by `game_key`, in the order of its table."""
    with open(TABLE, newline="") as file:
        rows = [
            PaperScores(row.pop("game"), **{name: float(value) for name, value in row.items()})
            for row in csv.DictReader(file)
        ]
    return {game_key(row.game): row for row in rows}


def paper_scores(game: str) -> PaperScores | None:
    """The paper's scores of a game, by its ROM's name or any other; None when it is not one of the paper's 49."""
    return paper_table().get(game_key(game))
