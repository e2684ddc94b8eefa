"""Scores by the paper's protocol: its limits, its epsilon, its seeds; and that evaluating changes nothing learned."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import ale_py
import numpy as np
import pytest
import torch
from ale_py import roms
from conftest import run_script, save_network
from soak import SMALL

from atari import PAPER_OPTIONS, FinishedGame, GameOptions
from evaluate import EvaluationConfig, bootstrap_interval, main
from model import QNetwork
from q_agent_train import train
from relatives.networks import build_network
from runtime.checkpoint import CheckpointFile, save_state_dict
from runtime.networks import load_network
from viewing.episodes import EpsilonGreedyPlayer, Player, play_games, play_protocol
from viewing.figures_tables import read_bars
from wrappers import AtariGames

FIRE_LEFT_RIGHT = GameOptions(frames_per_step=8, actions=("FIRE", "LEFT", "RIGHT"))


NAMES = ("state_dict", "game", "other_condition")
COLUMNS = (
    "state_dict game games mean standard_deviation minimum median maximum interval_low interval_high dqn_nature human "
    "random normalised cut mean_first_life mean_length_steps mean_length_seconds dqn_nips2013 human_nips2013 "
    "random_nips2013 minutes other_condition stopped"
)


def random_player(num_actions: int, *, seed: int) -> Player:
    generator = np.random.default_rng(seed)
    return lambda states: generator.integers(num_actions, size=len(states))


def test_each_environments_first_game_counts() -> None:
    games, first = AtariGames("road_runner", 4), dict[int, FinishedGame]()
    for moment in play_games(random_player(games.num_actions, seed=0), games, seed=3):
        for game in moment.step.finished:
            first.setdefault(game.environment, game)
    played = play_protocol(random_player(games.num_actions, seed=0), games, seed=3)
    games.close()
    assert played is not None
    assert dict(enumerate(played)) == first


def bare_game(rom: str, rules: GameOptions, actions: np.ndarray, limit_frames: int) -> tuple[float, int, float, bool]:
    """Score, agent steps, score up to the first lost life, and whether the limit cut it, by the emulator alone."""
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("max_num_frames_per_episode", limit_frames)
    path = roms.get_rom_path(rom)
    assert path
    ale.loadROM(path)
    ale.reset_game()
    names = rules.actions or [action.name for action in ale.getMinimalActionSet()]
    lives, score, at_first_loss = ale.lives(), 0.0, None
    for steps, action in enumerate(actions, start=1):
        for _ in range(rules.frames_per_step):
            if not ale.game_over():
                score += ale.act(ale_py.Action.__members__[names[action]])
        if at_first_loss is None and ale.lives() < lives:
            at_first_loss = score
        if ale.game_over():
            return score, steps, score if at_first_loss is None else at_first_loss, ale.game_truncated()
    raise AssertionError("the emulator plays on")


@pytest.mark.parametrize(
    ("rom", "rules", "limit_frames", "cuts"),
    [
        ("breakout", FIRE_LEFT_RIGHT, 18_000, {False}),
        ("space_invaders", PAPER_OPTIONS, 1_500, {False, True}),
        ("pong", PAPER_OPTIONS, 1_500, {True}),  # has no lives
    ],
)
def test_scores_lengths_and_first_lives_are_those_of_the_bare_emulator(
    monkeypatch: pytest.MonkeyPatch, rom: str, rules: GameOptions, limit_frames: int, cuts: set[bool]
) -> None:
    monkeypatch.setattr("wrappers.NOOP_MAX_FRAMES", 0)
    games = AtariGames(rom, 8, rules, max_frames_per_game=limit_frames)
    random, actions = random_player(games.num_actions, seed=4), []

    def play(states: np.ndarray) -> np.ndarray:
        actions.append(random(states))
        return actions[-1]

    # Broken off where some have lost lives: the games below begin anew all the same.
    assert play_protocol(random_player(games.num_actions, seed=0), games, seed=1, watch=lambda done: done < 1) is None
    played = play_protocol(play, games, seed=0)
    games.close()
    assert played is not None
    for game, taken in zip(played[::2], np.transpose(actions)[::2], strict=True):
        expected = bare_game(rom, rules, taken, limit_frames)
        assert (game.score, game.length_steps, game.first_life_score, game.cut) == expected
    assert any(0 < game.first_life_score < game.score for game in played) == (rom != "pong")
    assert {game.cut for game in played} == cuts


def test_a_player_explores_with_its_epsilon_and_is_greedy_otherwise() -> None:
    def player(epsilon: float) -> EpsilonGreedyPlayer:
        torch.manual_seed(1)
        return EpsilonGreedyPlayer(QNetwork("road_runner", 18), epsilon=epsilon, seed=0)

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
    assert [*rows[0]] == COLUMNS.split()
    games = AtariGames("road_runner", 3, max_frames_per_game=72)
    seeds = EvaluationConfig((first,), games=3).emulator_seeds()
    played = play_protocol(EpsilonGreedyPlayer(load_network(first), epsilon=0.05, seed=0), games, seed=seeds)
    games.close()
    assert played is not None
    scores = np.array([game.score for game in played])
    assert int(rows[0]["cut"]) == sum(game.cut for game in played) == 3
    row = {name: float(value) for name, value in rows[0].items() if value and name not in NAMES}
    assert row["mean"] == scores.mean()
    assert row["standard_deviation"] == scores.std()
    assert (row["minimum"], row["median"], row["maximum"]) == (scores.min(), np.median(scores), scores.max())
    assert rows[0]["normalised"] == rows[1]["normalised"] == ""
    _, *lines = result.stdout.splitlines()
    assert f"{scores.mean():,.1f}" in lines[0]
    assert lines[0].endswith(str(first))
    assert lines[1].split()[-8:-2] == ["-", "-", "-", "-", "0.02", "minutes"]
    assert lines[1].endswith(str(second))
    assert lines[2].startswith("cut: games not over after 0.02 minutes")


def evaluated(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> list[dict[str, str]]:
    """The rows of the CSV file that evaluate.py, run in this process, wrote, behind one look at the JSON file."""
    files = folder / "s.csv", folder / "s.json"
    monkeypatch.setattr("sys.argv", ["evaluate.py", *arguments, "--csv", str(files[0]), "--json", str(files[1])])
    main()
    with open(files[0], newline="") as file:
        rows = list(csv.DictReader(file))
    result = json.loads(files[1].read_text())
    assert [*result] == ["epsilon", "minutes", "seed", "rows"]
    as_text = [{name: "" if value is None else str(value) for name, value in row.items()} for row in result["rows"]]
    assert as_text == rows
    return rows


def test_random_play_is_a_row_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--random", "--game", "BreakoutNoFrameskip-v4", "Pooyan", "--games", "4", "--seed", "3")
    for name in ("s.csv", "s.json"):
        (tmp_path / name).write_text("of an earlier evaluation, to be replaced")
    breakout, pooyan = evaluated(monkeypatch, tmp_path, *arguments)
    assert [row["state_dict"] for row in (breakout, pooyan)] == ["random", "random"]
    assert [row["game"] for row in (breakout, pooyan)] == ["breakout", "pooyan"]
    games, generator = AtariGames("breakout", 4, max_frames_per_game=18_000), np.random.default_rng(3)
    seeds = EvaluationConfig(games=4, seed=3).emulator_seeds()
    played = play_protocol(lambda states: generator.integers(4, size=4), games, seed=seeds)
    games.close()
    assert played is not None
    assert float(breakout["mean"]) == np.mean([game.score for game in played]) > 0
    assert float(breakout["mean_first_life"]) == np.mean([game.first_life_score for game in played])
    assert float(breakout["mean_length_steps"]) == np.mean([game.length_steps for game in played])
    assert float(breakout["mean_length_seconds"]) == pytest.approx(float(breakout["mean_length_steps"]) / 15)
    result = json.loads((tmp_path / "s.json").read_text())
    assert (result["epsilon"], result["minutes"], result["seed"]) == (1.0, 5, 3)
    assert [breakout[f"{who}_nips2013"] for who in ("dqn", "human", "random")] == ["168.0", "31.0", "1.2"]
    assert [pooyan[f"{who}_nips2013"] for who in ("dqn", "human", "random")] == ["", "", ""]
    header, line, _ = capsys.readouterr().out.splitlines()[-3:]
    assert header.endswith("DQN  DQN 2013  human  random  normalised  cut  state dict")
    assert line.split()[-7:-3] == ["401.2", "168.0", "31.8", "1.7"]
    bars, left_out = read_bars(tmp_path / "s.csv")
    assert [(bar.game, bar.measured[0][0]) for bar in bars] == [("Breakout", "random")]
    assert bars[0].measured[0][1] == float(breakout["normalised"])
    assert left_out == ["pooyan (not among the paper's 49 games)"]
    assert breakout["other_condition"] == ""


# The score that its games are said to have had, and what the row has then: the percentage, the human, the paper's DQN.
BEAM_RIDER = 7_644.0
DIAGONALS = "UPRIGHT", "UPLEFT", "RIGHTFIRE", "LEFTFIRE"  # with the others all that this game knows
UNDER_A_CONDITION: list[tuple[tuple[str, ...], GameOptions, str, tuple[str, str, str]]] = [
    ((), PAPER_OPTIONS, "", ("135%", "5775.0", "6846.0")),
    ((), GameOptions(actions=("NOOP", "FIRE", "UP", "RIGHT", "LEFT", *DIAGONALS)), "", ("135%", "5775.0", "6846.0")),
    (("--minutes", "30"), PAPER_OPTIONS, "", ("44%", "16926.5", "")),
    (("--epsilon", "0", "--minutes", "10"), PAPER_OPTIONS, "epsilon 0, 10 minutes", ("", "", "")),
    ((), GameOptions(sticky_actions=0.25), "sticky actions 0.25", ("", "", "")),
    ((), GameOptions(frames_per_step=8), "8 frames per step", ("", "", "")),
    (("--minutes", "30"), GameOptions(actions=("LEFT", "RIGHT", "FIRE")), "3 actions", ("", "", "")),
]


@pytest.mark.parametrize(("flags", "rules", "said", "expected"), UNDER_A_CONDITION)
def test_a_score_is_compared_with_references_of_its_own_condition_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    rules: GameOptions,
    said: str,
    expected: tuple[str, str, str],
) -> None:
    network = build_network("beam_rider", len(rules.actions) or 9, rules=rules)
    save_state_dict(network.state_dict(), tmp_path / "net.pt")
    monkeypatch.setattr("evaluate.play", lambda *_: [FinishedGame(0, BEAM_RIDER, 4_000, BEAM_RIDER)])
    (row,) = evaluated(monkeypatch, tmp_path, "--state-dict", str(tmp_path / "net.pt"), "--games", "1", *flags)
    percent = f"{float(row['normalised']):.0f}%" if row["normalised"] else ""
    assert (percent, row["human"], row["dqn_nature"]) == expected
    assert row["other_condition"] == said
    _, line, *more = capsys.readouterr().out.splitlines()
    assert f"  {percent or said}  " in line
    assert [note.split(":")[0] for note in more] == (["normalised"] if said or "30" in flags else [])


@pytest.mark.parametrize(
    ("game", "rules", "length_steps", "stopped"),
    [
        ("breakout", PAPER_OPTIONS, 16_384, 0),
        ("breakout", PAPER_OPTIONS, 16_385, 1),
        ("breakout", GameOptions(frames_per_step=8), 8_193, 1),
        ("video_pinball", PAPER_OPTIONS, 27_000, 1),
        ("beam_rider", PAPER_OPTIONS, 27_000, 0),
    ],
)
def test_games_that_went_on_after_they_stopped_responding_are_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    game: str,
    rules: GameOptions,
    length_steps: int,
    stopped: int,
) -> None:
    network = build_network(game, {"breakout": 4}.get(game, 9), rules=rules)
    save_state_dict(network.state_dict(), tmp_path / "net.pt")
    played = [FinishedGame(0, 1.0, length_steps, 1.0), FinishedGame(1, 1.0, 1_000, 1.0)]
    monkeypatch.setattr("evaluate.play", lambda *_: played)
    (row,) = evaluated(
        monkeypatch, tmp_path, "--state-dict", str(tmp_path / "net.pt"), "--games", "2", "--minutes", "30"
    )
    assert row["stopped"] == str(stopped)
    lines = [line for line in capsys.readouterr().out.splitlines() if "beyond frame 65,536" in line]
    assert [line.endswith(f": 1 of {game}") for line in lines] == [True] * stopped


def test_a_network_is_evaluated_by_the_rules_that_it_learned_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_network("breakout", 3, rules=FIRE_LEFT_RIGHT)
    save_state_dict(network.state_dict(), tmp_path / "net.pt")
    flags = ("--games", "4", "--epsilon", "1", "--minutes", "0.5")
    (row,) = evaluated(monkeypatch, tmp_path, "--state-dict", str(tmp_path / "net.pt"), *flags)
    games = AtariGames("breakout", 4, FIRE_LEFT_RIGHT, max_frames_per_game=1_800)
    seeds = EvaluationConfig(games=4).emulator_seeds()
    played = play_protocol(EpsilonGreedyPlayer(network, epsilon=1.0, seed=0), games, seed=seeds)
    games.close()
    assert played is not None
    assert float(row["mean"]) == np.mean([game.score for game in played]) > 0
    assert float(row["mean_length_steps"]) == np.mean([game.length_steps for game in played])
    assert float(row["mean_length_seconds"]) == pytest.approx(float(row["mean_length_steps"]) * 8 / 60)
    assert json.loads((tmp_path / "s.json").read_text())["epsilon"] == 1.0


def test_evaluation_leaves_what_is_learned_unchanged_bit_for_bit(tmp_path: Path) -> None:
    """However often a run is evaluated, it learns the same."""
    ends = []
    for every in (0, 500):
        config = replace(SMALL, steps=1_000, checkpoint_minutes=60.0, evaluate_every=every, evaluation_games=2)
        state, _ = CheckpointFile(train(replace(config, run_dir=tmp_path / str(every)))).load()
        ends.append(state["training"])
    without, evaluated = ends
    assert evaluated["fingerprint"] == without["fingerprint"]
    assert evaluated["generators"] == without["generators"]
    for name, value in without["agent"].items():
        assert torch.equal(torch.as_tensor(evaluated["agent"][name]), torch.as_tensor(value)), name


def test_the_best_network_is_the_one_with_the_best_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([1.0, 3.0, 2.0, 1.0, 3.0])  # of the evaluations of the whole run, then of one until the best
    monkeypatch.setattr("runtime.run.Evaluator.play", lambda *_: [FinishedGame(0, next(scores), 1, 0.0)])
    whole = train(replace(SMALL, steps=1_800, run_dir=tmp_path / "whole"))
    with open(whole / "evaluations.csv", newline="") as file:
        assert [(row["agent_step"], row["mean"]) for row in csv.DictReader(file)] == [
            ("600", "1.0"),
            ("1200", "3.0"),
            ("1800", "2.0"),
        ]
    until = train(replace(SMALL, steps=1_200, run_dir=tmp_path / "until"))
    assert (whole / "best.pt").read_bytes() == (until / "model.pt").read_bytes()
