"""What a sweep says as a whole: which scores are put together, and what is left out and named."""

from pathlib import Path

import numpy as np
import pytest
from test_figures import make_run

from runtime.exits import UsageError
from viewing.figures_aggregate import read_sweep

HEADER = "state_dict,game,mean,network,seed,value,minutes,other_condition\n"


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
    left_out = "Breakout seed 0 (sticky actions 0.25), Pong seed 1 (30 minutes)"
    assert f"{tmp_path.name}: left out, not compared with the paper's scores: {left_out}" in notes
    (tmp_path / "scores.csv").write_text(HEADER + lines[1])
    with pytest.raises(UsageError, match=r"no score that compares with the paper's: Breakout seed 0 \(sticky actions"):
        read_sweep(tmp_path)


def sweep_of(folder: Path, runs: dict[str, tuple[list[float], bool]]) -> Path:
    """A finished sweep of Pong, whose runs, a seed each, have these scores of games and evaluations or none."""
    for name, (scores, evaluations) in runs.items():
        make_run(folder / name, scores, game="pong", evaluations=evaluations)
    rows = (f"{folder / run}/model.pt,pong,9.3,model,{seed},,5.0,\n" for seed, run in enumerate(runs))
    (folder / "scores.csv").write_text(HEADER + "".join(rows))
    return folder


def test_a_run_that_finished_no_game_of_training_has_its_score_and_its_curve(tmp_path: Path) -> None:
    runs: dict[str, tuple[list[float], bool]] = {"a": ([1.0], True), "b": ([], True)}
    (setting,), notes = read_sweep(sweep_of(tmp_path, runs))
    np.testing.assert_allclose(setting.scores, [[1.0], [1.0]])
    assert setting.curves is not None
    assert setting.curves.shape == (2, 1, 3)
    assert not [note for note in notes if "curve" in note]


def test_a_run_without_evaluations_takes_the_curve_away_and_not_the_score(tmp_path: Path) -> None:
    (setting,), notes = read_sweep(sweep_of(tmp_path, {"a": ([1.0], True), "b": ([], False)}))
    assert (len(setting.scores), setting.curves) == (2, None)
    assert any("no curve of evaluations" in note for note in notes)
