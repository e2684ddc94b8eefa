"""What a sweep says as a whole: which scores are put together, and what is left out and named."""

from pathlib import Path

import numpy as np
import pytest
from test_figures import make_run

from machine.exits import UsageError
from showing.figures_aggregate import read_sweep

HEADER = "state_dict,game,mean,network,seed,value,minutes,other_condition\n"


@pytest.fixture(autouse=True)
def _no_rliable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that works out aggregates need not be installed here."""
    monkeypatch.setattr("showing.figures_aggregate.estimate", lambda *_: (np.zeros(4), np.zeros((2, 4))))


def test_scores_of_another_condition_are_left_out_and_named(tmp_path: Path) -> None:
    lines = []
    for run, game, seed, mean, condition in (
        ("a", "pong", 0, 9.3, "5.0,"),
        ("b", "breakout", 0, 31.8, "5.0,sticky actions 0.25"),
        ("c", "pong", 1, -20.7, "30.0,"),
    ):
        make_run(tmp_path / run, [1.0], game=game)
        lines.append(f"{tmp_path / run}/model.pt,{game},{mean},model,{seed},,{condition}\n")
    (tmp_path / "scores.csv").write_text(HEADER + "".join(lines))
    (setting,), notes = read_sweep(tmp_path)
    np.testing.assert_allclose(setting.scores, [[1.0]])
    left_out = "breakout seed 0 (sticky actions 0.25), pong seed 1 (30 minutes)"
    assert f"{tmp_path.name}: left out, not compared with the paper's scores: {left_out}" in notes
    (tmp_path / "scores.csv").write_text(HEADER + lines[1])
    with pytest.raises(UsageError, match=r"no score that compares with the paper's: breakout seed 0 \(sticky actions"):
        read_sweep(tmp_path)
