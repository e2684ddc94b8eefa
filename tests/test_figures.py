"""The numbers that the figures draw, the files they write, and what they say to bad input."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import cast

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, refused, save_network
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation

import figures
from atari import paper_table
from runtime.exits import UsageError
from runtime.tables import TRAINING_COLUMNS
from viewing.episodes import EpsilonGreedyPlayer
from viewing.figures_played import Watched, draw_embedding, embed, peaks_of, spread_points
from viewing.figures_tables import (
    BLUE,
    GREY,
    ORANGE,
    across_runs,
    draw_curves,
    draw_scores,
    read_bars,
    read_run,
    running_mean,
)
from viewing.filmed_game import FilmedGame

GAMES_HEADER = "game,agent_step,frames,score,length_steps,epsilon,seconds\n"
EVALUATIONS_HEADER = "agent_step,mean,standard_deviation,minimum,maximum,mean_max_q\n"
EVALUATIONS = [(1000, 5.0, 1.0), (2000, 7.0, 2.0), (3000, 6.0, 1.5)]
DOUBLE_ROWS = "state_dict,game,mean\nd.pt,ALE/Pong-v5,-23.7\nb.pt,tetris,100\nc.pt,breakout,16.75\nr/x/a.pt,pong,9.3\n"


def make_run(folder: Path, scores: list[float], *, game: str = "Breakout", evaluations: bool = True) -> Path:
    """A run folder whose games end every 100 agent steps, from 100 on."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"game": game, "seed": 0}))
    lines = [f"{i},{100 * i},{400 * i},{score},100,0.1,1.0\n" for i, score in enumerate(scores, start=1)]
    (folder / "games.csv").write_text(GAMES_HEADER + "".join(lines))
    rows = [f"{step},{mean},{std},0.0,9.0,\n" for step, mean, std in EVALUATIONS] if evaluations else []
    (folder / "evaluations.csv").write_text(EVALUATIONS_HEADER + "".join(rows))
    return folder


def check_pictures(base: Path) -> None:
    """Both files open, the PNG is wide enough to read, and nothing else was left behind."""
    assert {path.name for path in base.parent.iterdir()} >= {f"{base.name}.png", f"{base.name}.svg"}
    assert not list(base.parent.glob(".*"))
    height, width, _ = matplotlib.image.imread(f"{base}.png").shape
    assert 900 <= width <= 1600
    assert height >= 300
    svg = Path(f"{base}.svg").read_text()
    assert "<svg" in svg[:1000]
    assert svg.rstrip().endswith("</svg>")


def lines_of(figure: Figure, panel: int) -> dict[str, np.ndarray]:
    """The labelled lines of a panel, as (count, 2) arrays."""
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in figure.axes[panel].get_lines()}


def test_the_running_mean_is_that_of_a_naive_loop_after_the_last_of_games_that_ended_together() -> None:
    values = np.random.default_rng(0).normal(size=357) * 1000
    naive = [np.mean(values[max(0, i - 99) : i + 1]) for i in range(len(values))]
    steps = np.arange(357) // 3  # three at a time
    curve = running_mean(pd.Series(values, steps))
    np.testing.assert_array_equal(curve.index, np.unique(steps))
    np.testing.assert_allclose(curve, naive[2::3])


def test_mean_and_interval_across_runs_are_those_worked_out_by_hand() -> None:
    curves = [
        pd.Series([0.0, 10.0, 10.0], [0.0, 10.0, 20.0]),
        pd.Series([2.0, 4.0, 90.0], [0.0, 20.0, 40.0]),
        pd.Series([4.0, 7.0, 7.0], [5.0, 20.0, 30.0]),
    ]
    mean, half_width = across_runs(curves)
    np.testing.assert_array_equal(mean.index, [5, 10, 20])  # where all three have values
    values = np.array([[5.0, 2.5, 4.0], [10.0, 3.0, 5.0], [10.0, 4.0, 7.0]])
    np.testing.assert_allclose(mean, [23 / 6, 6, 7])
    # 4.302653 is the 97.5th percentile of Student's t with 2 degrees of freedom, from a printed table.
    np.testing.assert_allclose(half_width, 4.302653 * np.std(values, axis=1, ddof=1) / np.sqrt(3), rtol=1e-6)


def test_the_curves_of_one_run_hold_its_files_numbers(tmp_path: Path) -> None:
    scores = [float(score) for score in np.random.default_rng(0).integers(0, 50, 250)]
    figure = draw_curves([read_run(make_run(tmp_path / "run", scores))])
    panel = lines_of(figure, 0)
    assert figure.axes[0].get_lines()[0].get_rasterized()  # an SVG of tens of thousands of games stays small
    np.testing.assert_array_equal(panel["one game"], np.column_stack([np.arange(100, 25_001, 100), scores]))
    assert panel["mean of up to 100 games"][-1] == pytest.approx([25_000, np.mean(scores[150:])])
    np.testing.assert_array_equal(panel["evaluation"], [row[:2] for row in EVALUATIONS])
    (bars,) = (each for each in figure.axes[0].collections if isinstance(each, LineCollection))
    ends = [segment[:, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [[mean - spread, mean + spread] for _, mean, spread in EVALUATIONS])


def test_the_curves_of_several_runs_are_their_mean(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), [float(seed)] * 30) for seed in (1, 2, 6)]
    figure = draw_curves([read_run(run) for run in runs])
    np.testing.assert_allclose(lines_of(figure, 0)["mean of up to 100 games"][:, 1], 3)
    np.testing.assert_allclose(lines_of(figure, 0)["evaluation"], [row[:2] for row in EVALUATIONS])
    interval = figure.axes[0].collections[0].get_datalim(figure.axes[0].transData)
    half_width = 4.302653 * np.std([1, 2, 6], ddof=1) / np.sqrt(3)
    np.testing.assert_allclose([interval.y0, interval.y1], [3 - half_width, 3 + half_width], rtol=1e-6)
    low, high = figure.axes[0].get_ylim()  # the runs have scores from 1 to 7
    assert 0.5 < low < 1
    assert 7 < high < 7.5


def test_curves_are_written_without_torch_or_scikit_learn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1.0, 2.0, 3.0])
    program = (
        f"import sys; sys.argv = ['figures.py', {str(run)!r}, '--output', {str(tmp_path / 'out')!r} + '/']\n"
        "import figures; figures.main(); assert not {'torch', 'sklearn', 'ale_py'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    check_pictures(tmp_path / "out" / "curves-breakout")


def test_a_run_without_a_finished_game_has_its_evaluations_alone(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / "none", [])), read_run(make_run(tmp_path / "three", [1.0, 2.0, 3.0]))]
    labels = draw_curves(runs[:1]).axes[0].get_legend_handles_labels()[1]
    assert labels == ["evaluation", "its standard deviation"]
    assert {"mean of up to 100 games (1 of 2 runs)", "evaluation"} <= lines_of(draw_curves(runs), 0).keys()


@pytest.mark.parametrize("tail", ["4,400,16", "4,400,1600,9.0,100,0.1,1.0"])
def test_the_whole_lines_of_a_run_that_is_being_written_are_used(tmp_path: Path, tail: str) -> None:
    run = make_run(tmp_path / "run", [1.0, 2.0, 3.0])
    with open(run / "games.csv", "a") as file:
        file.write(tail)
    np.testing.assert_array_equal(read_run(run).scores, [1, 2, 3])


def test_bars_are_the_papers_percentages_best_first(tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    table.write_text("game,mean\n" + "".join(f"{row.game},{row.dqn_nature}\n" for row in paper_table().values()))
    games, left_out = read_bars(table)
    assert left_out == []
    assert len(games) == 49
    assert [game.game for game in games[:4]] == ["VideoPinball", "Boxing", "Breakout", "StarGunner"]
    assert [game.game for game in games[-2:]] == ["PrivateEye", "MontezumaRevenge"]
    assert all(game.measured[0][1] == game.papers[0] for game in games)
    breakout = games[2]
    assert [int(score) for score in breakout.papers] == [1327, 11]


def bars_of(panel: Axes) -> list[tuple[float, float, object]]:
    """Place, normalised score and colour of the bars of a panel, from above."""
    bars = [bar for container in panel.containers for bar in container]
    colors = {matplotlib.colors.to_rgba(color): color for color in (BLUE, ORANGE, GREY)}
    return [(bar.get_y() + bar.get_height() / 2, bar.get_width(), colors[bar.get_facecolor()]) for bar in bars]


def test_the_rows_of_a_game_stand_together_and_the_papers_bars_once(tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    table.write_text(DOUBLE_ROWS)
    games, left_out = read_bars(table)
    assert left_out == ["tetris (not among the paper's 49 games)"]
    assert [game.game for game in games] == ["Pong", "Breakout"]
    assert [bar.name for bar in games[0].measured] == ["x/a.pt", "d.pt"]
    panel = draw_scores(games).axes[0]
    places, scores, colors = zip(*bars_of(panel), strict=True)
    assert colors == (BLUE, BLUE, ORANGE, GREY, BLUE, ORANGE, GREY)
    np.testing.assert_allclose(scores[:2] + scores[4:5], [100, -300 / 30, 50], rtol=1e-3)
    assert panel.yaxis_inverted()
    assert (np.diff(places) >= panel.patches[0].get_height()).all()  # type: ignore[attr-defined]
    names = {tick.get_text(): place for tick, place in zip(panel.get_yticklabels(), panel.get_yticks(), strict=True)}
    np.testing.assert_allclose([names["Pong"], names["Breakout"]], [np.mean(places[:4]), np.mean(places[4:])])
    texts = [text.get_text() for text in panel.texts]
    assert all(text.xy[0] >= 0 for text in panel.texts if isinstance(text, Annotation))  # to the left are names
    expected = ["100%  x/a.pt", "-10%  d.pt", "132%", "6%", "50%", "1,327%", "12%"]
    assert texts[: len(expected)] == expected


def test_scores_are_compared_with_others_of_their_condition_alone(tmp_path: Path) -> None:
    table, header = tmp_path / "scores.csv", "game,mean,minutes,other_condition\n"
    table.write_text(f"{header}pong,3,5.0,\npong,4,5.0,sticky actions 0.25\npong,5,30.0,\n")
    games, left_out = read_bars(table)
    assert [round(bar.score) for bar in games[0].measured] == [79]
    assert left_out == ["pong (sticky actions 0.25)", "pong (30 minutes)"]


def test_the_scores_command_draws_names_as_they_are_and_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "scores.csv"
    table.write_text(DOUBLE_ROWS + f"$x_{{$.pt,pong,-20.71\n{'x' * 300}.pt,pong,-20.7\n")
    monkeypatch.setattr(sys, "argv", ["figures.py", "scores", str(table), "--output", str(tmp_path / "pictures")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.main()
    assert "left out: tetris (not among the paper's 49 games)" in capsys.readouterr().out
    check_pictures(tmp_path / "pictures")
    texts = [text.get_text() for text in draw_scores(read_bars(table)[0]).axes[0].texts]
    assert "0%  $x_{$.pt" in texts  # not -0%
    assert "0%  \N{HORIZONTAL ELLIPSIS}" + "x" * 33 + ".pt" in texts


@pytest.fixture
def error(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What figures.py says to arguments that it refuses, called in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: refused(monkeypatch, capfd, figures.main, *map(str, arguments))


def test_bad_runs_are_one_clear_line(tmp_path: Path, error: Callable[..., str]) -> None:
    breakout, pong = make_run(tmp_path / "a", [1.0, 2.0]), make_run(tmp_path / "b", [1.0], game="ALE/Pong-v5")
    assert "no-such-run is not a folder" in error("no-such-run")
    assert "different games (Breakout, ALE/Pong-v5)" in error(breakout, pong)
    assert "one or more run folders" in error("curves")
    with pytest.raises(UsageError, match="no stretch of agent steps in common"):
        across_runs([pd.Series(np.zeros(3), np.arange(start, start + 3.0)) for start in (0, 5)])
    (tmp_path / "empty").mkdir()
    assert "config.json" in error("empty")
    unfinished = make_run(tmp_path / "unfinished", [], evaluations=False)
    assert "no finished game yet" in error(unfinished)
    (unfinished / "games.csv").write_text("")
    assert "no finished game yet" in error(unfinished)
    (pong / "games.csv").write_text("agent_step,reward\n1,2\n")
    assert "games.csv has no column score" in error(pong)
    (breakout / "games.csv").write_text(GAMES_HEADER + "1,1,4,1.0,1,1,1\n2,2\n3,3,12,3.0,1,1,1\n")
    assert "games.csv, line 3: score is" in error(breakout)
    (breakout / "games.csv").write_text(GAMES_HEADER + "1,1,4,nan,1,1,1\n3,3,12,3.0,1,1,1\n")
    assert "line 2: score is 'nan', not a number" in error(breakout)
    assert not list(tmp_path.glob("*.png"))


def test_bad_tables_and_outputs_are_one_clear_line(tmp_path: Path, error: Callable[..., str]) -> None:
    table = tmp_path / "scores.csv"
    for content, expected in (
        ("game,score\npong,1\n", "no column mean"),
        ("", "no column mean, game"),
        ("game,mean\npong,1\npong,much\n", "line 3: mean is 'much', not a number"),
        ("game,mean\ntetris,1\n", "no score that compares with the paper's: tetris (not among the paper's 49 games)"),
        ("game,mean,other_condition\npong,1,epsilon 0.01\n", "paper's: pong (epsilon 0.01)"),
    ):
        table.write_text(content)
        assert expected in error("scores", table)
    assert "cannot read missing.csv: " in error("scores", "missing.csv")
    table.write_text("game,mean\npong,1\n")
    assert "cannot write to --output " in error("scores", table, "--output", table / "pictures")
    assert list(tmp_path.iterdir()) == [table]


@pytest.fixture(scope="module")
def state_dict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "model.pt")


def test_bad_networks_are_one_clear_line(tmp_path: Path, state_dict: Path, error: Callable[..., str]) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(state_dict.read_bytes()[:1000])
    other = save_network(tmp_path / "other.pt", num_actions=7)
    assert "broken.pt is damaged" in error("value", "--state-dict", broken)
    assert "7 actions" in error("embedding", "--state-dict", other)
    assert "--seed" in error("value", "--state-dict", state_dict, "--seed=-1")
    assert "--states" in error("embedding", "--state-dict", state_dict, "--states", "5")


def test_the_peaks_of_a_curve_are_those_that_rise_most() -> None:
    values = np.interp(np.arange(120), [0, 30, 50, 90, 100, 119], [0.0, 9.0, 2.0, 5.0, 1.0, 2.0])
    np.testing.assert_array_equal(peaks_of(values, 3), [30, 90])
    np.testing.assert_array_equal(peaks_of(values, 1), [30])
    assert len(peaks_of(values + np.sin(np.arange(120)), 5)) == 5
    np.testing.assert_array_equal(peaks_of(np.arange(3.0), 5), [2])


def test_spread_points_stand_for_every_cluster() -> None:
    centres = np.array([[0, 0], [100, 0], [0, 100], [100, 100]])
    points = np.repeat(centres, 20, axis=0) + np.random.default_rng(0).normal(size=(80, 2))
    assert sorted(spread_points(points, 4, seed=0) // 20) == [0, 1, 2, 3]


def test_what_is_seen_is_the_state_its_screen_and_its_value(tmp_path: Path) -> None:
    player = Watched(save_network(tmp_path / "model.pt", "space_invaders", 6), seed=3)
    sights = list(islice(player.play(), 60))
    features = player.features(sights)
    again = EpsilonGreedyPlayer(player.network, epsilon=0.05, seed=3)
    film = FilmedGame("space_invaders")
    frame = film.reset(3)[0]
    moving = 0
    for sight in sights:
        screens = film.take_screens()
        np.testing.assert_array_equal(sight.state[-1], frame)
        np.testing.assert_array_equal(sight.screen, np.maximum.reduce(screens[-2:]))
        moving += not np.array_equal(screens[0], screens[-1])
        film.send(again(sight.state[None]))
        frame = film.receive().frames[0]
    film.close()
    assert moving
    assert features.shape == (60, 512)
    weights = player.network.values.state_dict()
    values = features @ weights["weight"].numpy().T + weights["bias"].numpy()
    np.testing.assert_allclose([sight.value for sight in sights], values.max(axis=1), rtol=1e-4, atol=1e-6)


def test_the_map_is_a_function_of_the_states_and_the_seed() -> None:
    features = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    features[:50] += 10
    points = embed(features, seed=0)
    np.testing.assert_array_equal(points, embed(features, seed=0))
    nearest = np.linalg.norm(points[:, None] - points, axis=2) + np.diag([np.inf] * 100)
    assert ((nearest.argmin(axis=1) < 50) == (np.arange(100) < 50)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(embed(features * np.float32(1e30), seed=0)).all()


def test_the_map_shows_every_state_in_its_value_and_numbered_screens(state_dict: Path) -> None:
    name, draw, _ = figures.Embedding(state_dict=state_dict, states=100).load()
    assert name == "embedding-breakout"
    panel, *thumbs, _ = draw().axes
    sights = Watched(state_dict, seed=0).states_for_map(100)
    (scatter,) = panel.collections
    points = np.asarray(scatter.get_offsets())
    assert points.shape == (100, 2)
    np.testing.assert_array_equal(scatter.get_array(), [sight.value for sight in sights])
    assert [text.get_text() for text in panel.texts] == [*"12345678"]
    for mark, thumb in zip(panel.texts, thumbs, strict=True):
        (index,) = np.flatnonzero((points == mark.xy).all(axis=1))  # type: ignore[attr-defined]
        np.testing.assert_array_equal(thumb.images[0].get_array(), sights[index].screen)


def test_the_value_curve_is_the_game_that_was_played(state_dict: Path, tmp_path: Path) -> None:
    name, draw, _ = figures.Value(state_dict=state_dict, seed=16).load()
    assert name == "value-breakout"
    figure = draw()
    sights = list(Watched(state_dict, seed=16).play())
    lines = figure.axes[0].get_lines()
    curve = max(lines, key=lambda line: len(np.asarray(line.get_xydata())))
    np.testing.assert_array_equal(curve.get_ydata(), [sight.value for sight in sights])
    lives = [line.get_xdata()[0] for line in lines if line.get_linestyle() == ":"]  # type: ignore[index]
    assert lives == [step for step, sight in enumerate(sights) if sight.life_lost]
    assert len(lives) == 5
    figures.save(figure, figures.output_paths(f"{tmp_path}/", "value"), {})
    check_pictures(tmp_path / "value")


def test_a_hidden_layer_that_is_always_the_same_has_no_map(state_dict: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    player = Watched(state_dict, seed=0)
    monkeypatch.setattr(player, "features", lambda sights: np.full((len(sights), 8), 0.1, np.float32))
    with pytest.raises(UsageError, match="the same in every state"):
        draw_embedding(player, 100)


def test_the_log_is_drawn_with_scores_and_lengths_and_the_frames_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1.0, 3.0, 5.0])
    (run / "config.json").write_text(json.dumps({"game": "Breakout", "frames_per_step": 8}))
    values = {100: "0.004,0.1,0.01,0.3,0.02", 200: "0.003,0.2,0.02,0.4,0.04", 300: "0.002,0.3,0.04,0.5,"}
    rows = "".join(f"{step},{row},0.00025,0.9,70.0\n" for step, row in values.items())
    (run / "training.csv").write_text(",".join(TRAINING_COLUMNS) + "\n50,,,,,,0.00025,1.0,900.0\n" + rows)
    figure = draw_curves([read_run(run)])
    panels = {axes.get_ylabel(): lines_of(figure, number) for number, axes in enumerate(figure.axes)}
    expected: dict[str, list[list[float]]] = {
        "agent steps per game": [[100, 100], [200, 100], [300, 100]],
        "loss per transition": [[100, 0.004], [200, 0.003], [300, 0.002]],
        "mean Q-value": [[100, 0.1], [200, 0.2], [300, 0.3]],
        "average action value (max Q)": [[100, 0.3], [200, 0.4], [300, 0.5]],
    }
    for label, points in expected.items():
        (line,) = panels[label].values()
        np.testing.assert_allclose(line, points)
    deviations = panels["standard deviation of Q-values"]
    np.testing.assert_allclose(deviations["minibatches, of the actions taken"][:, 1], [0.01, 0.02, 0.04])
    np.testing.assert_allclose(deviations["held-out states, of max Q"], [[100, 0.02], [200, 0.04]])
    figure.draw_without_rendering()
    steps, (frames,) = figure.axes[0], figure.axes[0].child_axes
    low, high = steps.get_xlim()
    assert cast(Axes, frames).get_xlim() == pytest.approx((8 * low, 8 * high))
