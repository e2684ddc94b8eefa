"""The tables of a run, games.csv and so on: their columns, and a row of evaluations."""

from typing import Any

import numpy as np

GAME_COLUMNS = ("game", "agent_step", "frames", "score", "length_steps", "epsilon", "seconds")
EVALUATION_COLUMNS = ("agent_step", "mean", "standard_deviation", "minimum", "maximum", "mean_max_q")
TRAINING_COLUMNS = (
    *("agent_step", "loss", "mean_q", "deviation_q", "mean_q_held_out", "deviation_q_held_out"),
    *("learning_rate", "epsilon", "steps_per_second"),
)
COLUMNS = {"games.csv": GAME_COLUMNS, "evaluations.csv": EVALUATION_COLUMNS, "training.csv": TRAINING_COLUMNS}


def evaluation_row(agent_step: int, scores: np.ndarray, mean_max_q: float | None) -> tuple[Any, ...]:
    """A row of evaluations.csv, in the order of its columns."""
    return agent_step, scores.mean(), scores.std(), scores.min(), scores.max(), mean_max_q
