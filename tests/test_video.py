"""Films of one game and of many, and PNG files, each compared with the game played by hand; and every bad input."""

import math
import os
import re
import signal
from collections.abc import Callable
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from conftest import refused, run_script, save_network, start_script
from PIL import Image

import trained_model_video_generation as video
from runtime.exits import RunError
from runtime.networks import load_network
from viewing.episodes import EpsilonGreedyPlayer, open_game, rendered_steps
from viewing.film import write_film
from viewing.filmed_game import FilmedGame
from viewing.panel import CAPTION_HEIGHT, PANEL_WIDTH, TILE_GAP, Panel, grid_picture

SCRIPT = Path(video.__file__)
ORANGE, BLUE = (230, 159, 0), (0, 114, 178)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "model.pt")


def frames_of(path: Path) -> tuple[dict[str, object], list[np.ndarray]]:
    reader: Any = {"plugin": "FFMPEG", "extension": ".mp4"}  # ffmpeg for a GIF too
    with iio.imopen(path, "r", **reader) as file:
        return file.metadata(), list(file.iter())


def steps_of(model: Path, seed: int) -> tuple[list[list[np.ndarray]], list[float]]:
    """The screens and the score of each step of the game that the film must show, played once more by hand."""
    game = FilmedGame("breakout")
    player = EpsilonGreedyPlayer(load_network(model), epsilon=1.0, seed=seed)
    game.reset(seed)
    opening, steps, scores = game.take_screens(), [], [0.0]
    while True:
        game.send(player(np.zeros((1, 4, 84, 84), np.uint8)))  # with epsilon 1 it does not matter what it sees
        step = game.receive()
        steps.append(game.take_screens())
        scores.append(scores[-1] + float(step.rewards[0]))
        if step.finished:
            game.close()
            assert step.finished[0].score == scores[-1]
            return [opening + steps[0], *steps[1:]], scores[1:]


def test_film_shows_every_frame_of_the_game(model: Path, tmp_path: Path) -> None:
    result = run_script(SCRIPT.name, "--state-dict", str(model), "--epsilon", "1", "--seed", "16", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    steps, scores = steps_of(model, seed=16)
    screens = [screen for step in steps for screen in step]
    assert f"game 1, seed 16: score {scores[-1]:.0f}\n" in result.stdout
    assert f"breakout.mp4: {len(screens)} frames" in result.stdout
    assert os.listdir(tmp_path) == ["breakout.mp4"]
    meta, frames = frames_of(tmp_path / "breakout.mp4")
    assert meta["codec"] == "h264"
    assert str(meta["pix_fmt"]).startswith("yuv420p")
    assert meta["fps"] == 60
    assert meta["size"] == (480 + PANEL_WIDTH, 630)
    assert PANEL_WIDTH % 2 == 0
    assert len(frames) == len(screens)
    for frame, screen in zip(frames[::40], screens[::40], strict=True):
        shown = frame[1::3, 1:480:3].astype(int)  # the middle of each enlarged pixel
        assert np.abs(shown - screen).mean() < 3


def test_a_plain_film_is_the_games_alone_and_only_the_first_one_starts_later(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "two.mp4"
    config = video.FilmConfig(model, episodes=2, seed=9, epsilon=1.0, from_seconds=1.0, plain=True, output=path)
    video.make_film(config)
    games = [steps_of(model, seed) for seed in (9, 10)]
    meta, frames = frames_of(path)
    assert meta["size"] == (480, 630)
    assert len(frames) == sum(map(len, [*games[0][0][15:], *games[1][0]]))
    scores = re.findall(r"score (\d+)", capsys.readouterr().out)
    assert [float(score) for score in scores] == [points[-1] for _, points in games]


def offset_of(frames: list[np.ndarray], screens: list[np.ndarray], start: int) -> int:
    """Where in these screens the frames come from, as steps behind `start`."""

    def difference(offset: int) -> float:
        there = screens[start + offset :]
        pairs = zip(frames[::5], there[::5], strict=False)
        return float(np.mean([np.abs(frame[::2, :320:2].astype(int) - screen).mean() for frame, screen in pairs]))

    return min(range(-3, 4), key=difference)


def test_gif_is_short_and_small_and_of_the_best_moments(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "readme.gif"
    video.make_film(video.FilmConfig(model, epsilon=1.0, seed=6, episodes=2, gif=True, output=path))
    meta, frames = frames_of(path)
    assert str(meta["codec"]).startswith("gif")
    assert len(frames) == video.GIF_SECONDS * 15 == 225
    assert abs(float(str(meta["duration"])) - video.GIF_SECONDS) < 0.5
    assert path.stat().st_size < 4e6
    games = [steps_of(model, seed) for seed in (6, 7)]
    gains = np.subtract(games[1][1][224:], [0, *games[1][1][:-225]])
    assert games[0][1][-1] == 0
    assert np.flatnonzero(gains == gains.max()).tolist() == list(range(34, 60))
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [f"game {n + 1}, seed {n + 6}: score {games[n][1][-1]:.0f}" for n in range(2)]
    assert re.search(r": 225 frames, \d\.\d MB: game 2, from second 3\.1$", last)
    screens = [np.maximum.reduce(step[-2:]) for step in games[1][0]]
    assert offset_of(frames, screens, start=47) == 0  # in the middle of 34 to 59: 3.1 seconds


@pytest.mark.parametrize(
    ("games", "expected"),
    [
        ([{}, {}], (0, 0)),
        ([{300: -1}, {100: -1}], (0, 0)),  # no points to be gained
        ([{}, {300: 1}], (1, 188)),  # the middle of 76 to 300
        ([{300: 1, 310: 1, 590: 1}, {300: 2}], (0, 193)),  # of 86 to 300, and the earlier game
        ([{20: 1, 500: 1}], (0, 10)),  # of 0 to 20
        ([{100: 3}, {100: 2, 120: 2}], (1, 50)),  # of 0 to 100
    ],
)
def test_the_best_moments_have_the_most_points(games: list[dict[int, float]], expected: tuple[int, int]) -> None:
    """`games` are the points of each game, by the agent step that gains them."""
    scores = [np.cumsum([0.0, *(points.get(step, 0.0) for step in range(600))]).tolist() for points in games]
    assert video.best_moments(scores, 225) == expected


def png(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def tile_of(frame: np.ndarray, index: int, scale: int = 1) -> np.ndarray:
    """What a film of a grid of two columns shows of a game, (210 * scale, 160 * scale, 3) uint8."""
    top, left = index // 2 * (210 * scale + CAPTION_HEIGHT), index % 2 * (160 * scale + TILE_GAP)
    return frame[top : top + 210 * scale, left : left + 160 * scale]


def assert_shows(picture: np.ndarray, screen: np.ndarray) -> None:
    assert np.abs(picture.astype(int) - screen).mean() < 3


def test_a_grid_shows_every_frame_of_each_game_until_the_last_one_ends(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(video, "GRID_WIDTH", 320)  # four times as fast
    path = tmp_path / "grid.mp4"
    video.make_film(video.FilmConfig(model, grid=3, seed=16, epsilon=1.0, output=path))
    games = [steps_of(model, seed) for seed in (16, 17, 18)]
    screens = [[screen for step in steps for screen in step] for steps, _ in games]
    meta, frames = frames_of(path)
    assert (meta["codec"], meta["fps"], meta["size"]) == ("h264", 60, (320 + TILE_GAP, 2 * (210 + CAPTION_HEIGHT)))
    lengths = [len(each) for each in screens]
    assert len(frames) == max(lengths)
    assert len({*lengths}) == 3
    for index, each in enumerate(screens):
        for number in [*range(0, len(each), 60), len(each) - 1]:
            assert_shows(tile_of(frames[number], index), each[number])
        for frame in frames[len(each) :: 60]:  # it stays where it ended, and one sees that it did
            assert_shows(tile_of(frame, index), each[-1] // 3)
    assert np.ptp(tile_of(frames[99], 3)) < 8  # there is no fourth game
    *lines, _ = capsys.readouterr().out.splitlines()
    assert sorted(lines) == [f"game {n + 1}, seed {n + 16}: score {games[n][1][-1]:.0f}" for n in range(3)]


def test_frames_are_the_screens_and_the_states_byte_for_byte(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("viewing.episodes.FRAMES_PER_MINUTE", 20)
    folder = tmp_path / "frames"
    folder.mkdir()  # an empty one will do
    config = video.FilmConfig(model, episodes=2, seed=16, epsilon=1.0, plain=True, frames=folder)
    config.output = tmp_path / "x.mp4"
    video.make_film(config)
    assert sorted(os.listdir(tmp_path)) == ["frames", "x.mp4"]
    assert sorted(os.listdir(folder)) == ["game_001", "game_002"]
    network = load_network(model)
    for number, seed in enumerate((16, 17)):
        game = open_game(model, network)
        found = folder / f"game_{number + 1:03}"
        screens = states = 0
        for rendered in rendered_steps(EpsilonGreedyPlayer(network, epsilon=1.0, seed=seed), game, seed=seed):
            for screen in rendered.screens:
                np.testing.assert_array_equal(png(found / f"screen_{screens:06}.png"), screen)
                screens += 1
            state = png(found / f"state_{states:06}.png")
            assert state.shape == (84, 336)
            for index, frame in enumerate(rendered.state):
                np.testing.assert_array_equal(state[:, 84 * index : 84 * (index + 1)], frame)
            states += 1
        assert len(os.listdir(found)) == screens + states
        game.close()


@pytest.mark.parametrize("num_games", [2, 4, 5, 64])
@pytest.mark.parametrize("height", [210, 250])
def test_a_grid_has_even_sides_and_is_no_wider_than_it_should_be(num_games: int, height: int) -> None:
    screens = [np.full((height, 160, 3), 100 + index, np.uint8) for index in range(num_games)]
    picture = grid_picture(screens, ["game 1: 1,000,000, ended"] * num_games, 1280)
    columns = math.ceil(num_games**0.5)
    gaps = (columns - 1) * TILE_GAP
    scale = (picture.shape[1] - gaps) // columns // 160
    assert picture.shape[1] == columns * scale * 160 + gaps
    assert picture.shape[1] <= 1280 + gaps
    assert scale == 3 or (scale + 1) * columns * 160 > 1280
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    assert (np.bincount(picture[..., 1].ravel())[100 : 100 + num_games] >= height * 160 * scale**2).all()


def test_a_full_disk_leaves_neither_film_nor_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(picture: Image.Image, path: Path) -> None:
        if path.name == "screen_000050.png":
            raise OSError(28, "No space left on device")
        path.write_bytes(b"")

    monkeypatch.setattr(Image.Image, "save", save)
    config = video.FilmConfig(model, output=tmp_path / "x.mp4", frames=tmp_path / "new")
    with pytest.raises(RunError, match=r"^cannot write .*x.mp4: No space left on device$"):
        video.make_film(config)
    assert os.listdir(tmp_path) == []


def drawn(panel: Panel, *q_values: float, height: int = 210) -> np.ndarray:
    """The panel after an agent step with these Q-values, (height, PANEL_WIDTH, 3) uint8."""
    panel.update(np.full((4, 84, 84), 77, np.uint8), np.array(q_values, np.float32), 0, 1234)
    return panel.picture(np.zeros((height, 160, 3), np.uint8))[:, -PANEL_WIDTH:].copy()


@pytest.mark.parametrize("num_actions", [3, 6, 18])
@pytest.mark.parametrize(("scale", "height"), [(2, 210), (3, 250)])
def test_panel_shows_the_largest_value_and_the_action(num_actions: int, scale: int, height: int) -> None:
    rows = []
    for greedy in range(num_actions):
        panel = Panel("NameThisGame", ["DOWNRIGHTFIRE"] * num_actions, scale=scale)
        panel.say("a note", "a line", "and another")
        picture = drawn(panel, *np.eye(num_actions)[greedy], height=height)
        assert picture.shape == (height * scale, PANEL_WIDTH, 3)
        assert (picture == 77).all(axis=2).sum() >= 4 * 84 * 84
        orange = np.flatnonzero((picture == ORANGE).all(axis=2).sum(axis=1) > 20)
        assert len(orange)
        rows.append((orange[0], orange[-1]))
    assert all(before[1] < after[0] for before, after in pairwise(rows)), "bars overlap"


def test_bars_are_as_long_as_the_advantages() -> None:
    picture = drawn(Panel("Pong", ["NOOP", "FIRE", "RIGHT"]), 5, 5.5, 6.75)  # -0.75, -0.25 and 1 beside their mean
    blue = (picture == BLUE).all(axis=2)
    lengths = np.unique(blue.sum(axis=1))
    orange = (picture == ORANGE).all(axis=2)[: np.flatnonzero(blue)[-1] // PANEL_WIDTH + 33]  # above the curve
    assert len(lengths) == 3
    assert lengths[1] * 3 == pytest.approx(lengths[2], abs=3)
    assert orange.sum(axis=1).max() == pytest.approx(lengths[1] * 4, abs=4)
    assert np.flatnonzero(blue.any(axis=0))[-1] < np.flatnonzero(orange.sum(axis=0) > 20)[0]


def test_the_value_is_drawn_over_ten_seconds_on_an_axis_that_only_grows() -> None:
    panel = Panel("Pong", ["NOOP", "FIRE", "RIGHT"])

    def curve(value: float) -> list[float]:
        """The height of the curve, in rows from the top, at each column from the left."""
        picture = drawn(panel, value, value - 0.1, value - 0.1)
        orange = (picture[200:, 14:294] == ORANGE).all(axis=2)  # below the actions
        return [float(np.flatnonzero(column).mean()) if column.any() else np.nan for column in orange.T]

    first = [curve(value) for value in (2.0, 2.4, 3.0)][-1]
    assert np.isfinite(first[-1])
    assert np.isnan(first[:-5]).all()
    early = [curve(2.4) for _ in range(147)][-1]
    assert np.nanmin(early) < early[-1] - 100  # the 3 at the left
    late = [curve(2.4) for _ in range(5)][-1]
    assert set(late) == {early[-1]}  # the 3 is out of sight, and its axis is still there


@pytest.fixture
def error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the script says to flags that it refuses; it leaves nothing new behind."""

    def say(*flags: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        line = refused(monkeypatch, capfd, video.main, *map(str, flags))
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return say


def test_bad_state_dicts(model: Path, tmp_path: Path, error: Callable[..., str]) -> None:
    def say(path: Path) -> str:
        return error("--state-dict", path, "--output", tmp_path / "x.mp4")

    truncated, other = tmp_path / "truncated.pt", tmp_path / "other.pt"
    truncated.write_bytes(model.read_bytes()[:-1000])
    assert "truncated" in say(truncated)
    torch.save(torch.load(model) | {"hidden.weight": torch.zeros(7, 7)}, other)
    assert "another network" in say(other)
    assert "18 actions" in say(save_network(tmp_path / "actions.pt", num_actions=18))
    assert 'unknown game "brakeout"' in say(save_network(tmp_path / "game.pt", game="brakeout"))


def test_bad_flags(model: Path, tmp_path: Path, error: Callable[..., str]) -> None:
    def say(*flags: object) -> str:
        output = () if "--output" in flags else ("--output", tmp_path / "x.mp4")
        return error("--state-dict", model, *output, *flags)

    for seconds in (-1.0, 300.0, float("nan")):
        assert f"--from must be from 0 to below 300, got {seconds}" in say("--from", seconds)
    assert "game 1 ends after 8.3 seconds" in say("--from", 9, "--epsilon", 1, "--seed", 16)
    assert "films one game" in say("--output", tmp_path / "x.gif", "--gif", "--from", 0, "--episodes", 2)
    assert "must end in .gif" in say("--gif")
    (tmp_path / "folder.mp4").mkdir()
    assert "is a folder" in say("--output", tmp_path / "folder.mp4")


@pytest.mark.parametrize(
    ("ffmpeg", "said"),
    [
        (None, "ffmpeg does not start: .*No such file or directory: '.*/ffmpeg'; IMAGEIO_FFMPEG_EXE may"),
        (
            "echo \"Unknown encoder 'libx264'\" >&2; exit 8",
            "x.mp4 could not be written whole, so nothing was: ffmpeg ended with status 8: Unknown encoder 'libx264'$",
        ),
        (  # it takes all pictures, and fails behind them
            "cat > /dev/null; echo 'Error writing trailer: Permission denied' >&2; exit 1",
            "x.mp4 could not be written whole, so nothing was: ffmpeg ended with status 1: Error writing trailer",
        ),
    ],
)
def test_what_ffmpeg_fails_at_is_said_and_an_older_film_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ffmpeg: str | None, said: str
) -> None:
    exe, path = tmp_path / "ffmpeg", tmp_path / "films" / "x.mp4"
    if ffmpeg:
        exe.write_text(f"#!/bin/sh\n{ffmpeg}\n")
        exe.chmod(0o755)
    path.parent.mkdir()
    path.write_text("an older film")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(exe))

    with pytest.raises(RunError, match=said):
        write_film(path, repeat(np.zeros((210, 160, 3), np.uint8), 100))
    assert os.listdir(path.parent) == ["x.mp4"]
    assert path.read_text() == "an older film"


@pytest.mark.parametrize(
    ("number", "flags"),
    [
        (signal.SIGHUP, ("--plain", "--episodes", "1000")),  # the terminal was closed
        (signal.SIGINT, ("--gif", "--episodes", "1000")),  # while it looks for the best moments
        (signal.SIGTERM, ("--grid", "2", "--seed", "16", "--frames", "frames")),  # the second game is longer
    ],
)
def test_interrupted_film_leaves_nothing(
    model: Path, tmp_path: Path, number: signal.Signals, flags: tuple[str, ...]
) -> None:
    process = start_script(SCRIPT.name, "--state-dict", str(model), "--epsilon", "1", *flags, cwd=tmp_path)
    assert process.stdout
    assert process.stdout.readline().startswith("game 1, ")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.splitlines()[-1] == "Stopped before the end: no film was written."
    assert "Traceback" not in errors
    assert os.listdir(tmp_path) == []
