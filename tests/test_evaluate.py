"""Scores by the paper's protocol: its limits, its epsilon, its seeds; and that evaluating changes nothing learned."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused, run_script, save_network
from soak import SMALL

from atari import FinishedGame
from evaluate import COLUMNS, EvaluationConfig, bootstrap_interval, main
from machine.checkpoint import CheckpointFile
from model import QNetwork, load_network
from q_agent_train import train
from showing.episodes import EpsilonGreedyPlayer, play_games, play_protocol
from wrappers import AtariGames


def player(epsilon: float = 0.05, seed: int = 0, game: str = "road_runner", actions: int = 18) -> EpsilonGreedyPlayer:
    torch.manual_seed(1)
    return EpsilonGreedyPlayer(QNetwork(game, actions), epsilon=epsilon, seed=seed)


def test_each_environments_first_game_counts_and_the_seed_decides() -> None:
    games = AtariGames("road_runner", 4)
    first: dict[int, FinishedGame] = {}
    for moment in play_games(player(), games, seed=3):
        for game in moment.step.finished:
            first.setdefault(game.environment, game)
    played = play_protocol(player(), games, seed=3)
    assert played is not None
    assert dict(enumerate(played)) == first
    plays = [[moment.actions.tolist() for moment in play_games(player(seed=s), games, seed=s)] for s in (3, 3, 4)]
    assert plays[0] == plays[1]
    assert plays[0] != plays[2]
    assert play_protocol(player(), games, seed=3, watch=lambda finished: finished < 2) is None
    games.close()


def test_a_game_lasts_five_minutes_at_most_and_lost_lives_do_not_end_it() -> None:
    games = AtariGames("breakout", 2, max_frames_per_game=5 * 60 * 60)
    # The first action is "do nothing": without FIRE a game of Breakout never begins, and never ends.
    lengths = []
    for moment in play_games(lambda states: np.zeros(2, np.int64), games, seed=0):
        lengths += [game.length_steps for game in moment.step.finished]
    assert len(lengths) == 2
    assert all(4_492 <= length <= 4_500 for length in lengths)  # 18,000 frames less the no-ops of the start
    lost = sum(int(moment.step.terminals[0]) for moment in play_games(player(1.0, 0, "breakout", 4), games, seed=0))
    assert lost >= 5
    games.close()


def test_a_player_explores_with_its_epsilon_and_is_greedy_otherwise() -> None:
    states = np.random.default_rng(0).integers(256, size=(500, 4, 84, 84), dtype=np.uint8)
    explorer = player(0.3)
    actions = np.concatenate([explorer(states) for _ in range(4)])
    greedy = np.tile(explorer.q_values.argmax(axis=1), 4)
    # A random action is the greedy one in one of 18 cases.
    assert abs((actions != greedy).mean() - 0.3 * 17 / 18) < 0.03
    assert np.array_equal(player(0.0)(states), greedy[:500])


def test_the_bootstrap_interval_is_that_of_a_naive_loop() -> None:
    scores = np.random.default_rng(1).normal(100, 20, size=30)
    generator = np.random.default_rng(5)
    means = sorted(np.mean([scores[generator.integers(30)] for _ in range(30)]) for _ in range(4_000))
    low, high = bootstrap_interval(scores)
    assert abs(low - means[100]) < 0.6
    assert abs(high - means[3_900]) < 0.6
    assert bootstrap_interval(np.array([7.0])) == (7.0, 7.0)


def test_the_script_prints_and_writes_a_row_for_each_network(tmp_path: Path) -> None:
    first = save_network(tmp_path / "a.pt", "road_runner", 18, seed=1)
    second = save_network(tmp_path / "b.pt", "pooyan", 6)
    arguments = ("--games", "3", "--minutes", "0.02", "--csv", str(tmp_path / "s.csv"))
    result = run_script("evaluate.py", "--state-dict", str(first), str(second), *arguments)
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "s.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["game"] for row in rows] == ["road_runner", "pooyan"]
    assert tuple(rows[0]) == COLUMNS
    games = AtariGames("road_runner", 3, max_frames_per_game=72)
    seeds = EvaluationConfig((first,), games=3).emulator_seeds()
    played = play_protocol(EpsilonGreedyPlayer(load_network(first), epsilon=0.05, seed=0), games, seed=seeds)
    games.close()
    assert played is not None
    scores = np.array([game.score for game in played])
    assert int(rows[0]["cut"]) == sum(game.cut for game in played) == 3
    row = {name: float(value) for name, value in rows[0].items() if name not in ("state_dict", "game")}
    assert row["mean"] == scores.mean()
    assert row["standard_deviation"] == scores.std()
    assert (row["minimum"], row["median"], row["maximum"]) == (scores.min(), np.median(scores), scores.max())
    assert row["normalised"] == pytest.approx(100 * (scores.mean() - 11.5) / (7_845 - 11.5))
    assert (row["dqn_nature"], row["human"], row["random"]) == (18_257, 7_845, 11.5)
    assert rows[1]["normalised"] == ""
    header, *lines = result.stdout.splitlines()
    assert "95% interval" in header
    assert f"{scores.mean():,.1f}" in lines[0]
    assert lines[0].endswith(str(first))
    assert lines[1].split()[-6:-2] == ["-", "-", "-", "-"]
    assert lines[1].endswith(str(second))
    assert lines[2].startswith("cut: games that were still going on at 0.02 minutes")


def test_another_seed_is_other_games_and_a_longer_evaluation_none_of_its_neighbours() -> None:
    """With seed + i for environment i, the seeds 0 and 1 would share 29 of 30 games."""
    drawn = [EvaluationConfig((), seed=seed).emulator_seeds() for seed in range(20)]
    assert all(len(set(seeds.tolist())) == 30 for seeds in drawn)
    assert len(set(np.concatenate(drawn).tolist())) == 20 * 30
    assert np.array_equal(drawn[3], EvaluationConfig((), seed=3).emulator_seeds())


def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = str(save_network(tmp_path / "good.pt", "pong", 6))
    (tmp_path / "text.pt").write_text("no network")
    wrong = str(save_network(tmp_path / "wrong.pt", "pong", 4))
    for arguments, expected in (
        (("--state-dict", str(tmp_path / "nowhere.pt")), "is not there"),
        (("--state-dict", str(tmp_path / "text.pt")), "was not written by this project"),
        (("--state-dict", wrong), "4 actions"),
        (("--state-dict",), "names no file"),
        (("--state-dict", good, "--games", "0"), "--games 0"),
        (("--state-dict", good, "--epsilon", "nan"), "--epsilon nan"),
        (("--state-dict", good, "--minutes", "0"), "--minutes 0"),
        (("--state-dict", good, "--seed", "-1"), "--seed -1"),
        (("--state-dict", good, "--csv", str(tmp_path / "no" / "s.csv")), "is not there"),
        (("--state-dict", good, "--csv", str(tmp_path)), "is a folder"),
    ):
        assert expected in refused(monkeypatch, capfd, main, *arguments)
    result = run_script("evaluate.py", "--state-dict", wrong)
    assert result.returncode == 2
    assert [line for line in result.stderr.splitlines() if "4 actions" in line] == [result.stderr.splitlines()[-1]]
    assert "Traceback" not in result.stderr


def test_evaluation_leaves_what_is_learned_unchanged_bit_for_bit(tmp_path: Path) -> None:
    """However often a run is evaluated, and on how many games, it learns the same."""
    config = replace(SMALL, steps=1_000, checkpoint_minutes=60.0)
    ends = []
    for number, (every, count) in enumerate(((0, 30), (600, 1), (500, 2))):
        run_dir = train(replace(config, evaluate_every=every, evaluation_games=count, run_dir=tmp_path / str(number)))
        state, _ = CheckpointFile(run_dir).load()
        ends.append(state["training"])
    for end in ends[1:]:
        assert end["fingerprint"] == ends[0]["fingerprint"]
        assert end["generators"] == ends[0]["generators"]
        for name, value in ends[0]["agent"].items():
            assert torch.equal(torch.as_tensor(end["agent"][name]), torch.as_tensor(value)), name


def test_the_best_network_is_the_one_with_the_best_mean(tmp_path: Path) -> None:
    run_dir = train(replace(SMALL, steps=1_800, evaluation_games=2, run_dir=tmp_path / "run"))
    with open(run_dir / "evaluations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["agent_step"]) for row in rows] == [600, 1_200, 1_800]
    best = max(range(3), key=lambda number: float(rows[number]["mean"]))
    until = train(replace(SMALL, steps=600 * (best + 1), evaluation_games=2, run_dir=tmp_path / "until"))
    same = torch.load(until / "model.pt", weights_only=True)
    for name, value in torch.load(run_dir / "best.pt", weights_only=True).items():
        assert value == same[name] if name == "_extra_state" else torch.equal(value, same[name])
