"""A film as a user makes it, opened again and compared with the game; and every bad input."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pygame
import pytest
import torch
from conftest import refused, run_script, save_network

import trained_model_video_generation as video
from machine.exits import StopSignal, UsageError
from model import load_network
from showing.episodes import EpsilonGreedyPlayer
from showing.film import filming
from showing.panel import PANEL_WIDTH, Panel
from showing.window import Window
from wrappers import FilmedGame

SCRIPT = Path(video.__file__)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "model.pt")


def frames_of(path: Path) -> tuple[dict[str, object], list[np.ndarray]]:
    reader: Any = {"plugin": "FFMPEG", "extension": ".mp4"}  # ffmpeg for a GIF too
    with iio.imopen(path, "r", **reader) as file:
        return file.metadata(), list(file.iter())


def game_of(model: Path, seed: int) -> tuple[list[np.ndarray], float]:
    """The screens and the score of the game that the film must show, played once more by hand."""
    game = FilmedGame("breakout")
    player = EpsilonGreedyPlayer(load_network(model), epsilon=1.0, seed=seed)
    game.reset(seed)
    screens = game.take_screens()
    while True:
        game.send(player(np.zeros((1, 4, 84, 84), np.uint8)))  # with epsilon 1 it does not matter what it sees
        step = game.receive()
        screens += game.take_screens()
        if step.finished:
            game.close()
            return screens, step.finished[0].score


def test_film_shows_every_frame_of_the_game(model: Path, tmp_path: Path) -> None:
    result = run_script(SCRIPT.name, "--state-dict", str(model), "--epsilon", "1", "--seed", "16", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    screens, score = game_of(model, seed=16)
    assert f"game 1, seed 16: score {score:.0f}\n" in result.stdout
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


def test_plain_film_of_two_games_is_the_games_alone(model: Path, tmp_path: Path, capsys: object) -> None:
    path = tmp_path / "two.mp4"
    video.make_film(video.FilmConfig(model, episodes=2, seed=9, epsilon=1.0, plain=True, output=path))
    games = [game_of(model, seed) for seed in (9, 10)]
    meta, frames = frames_of(path)
    assert meta["size"] == (480, 630)
    assert len(frames) == sum(len(screens) for screens, _ in games)
    out = capsys.readouterr().out  # type: ignore[attr-defined]
    assert [float(score) for score in re.findall(r"score (\d+)", out)] == [score for _, score in games]


def test_gif_is_short_and_small(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "readme.gif"
    video.make_film(video.FilmConfig(model, epsilon=1.0, episodes=3, gif=True, output=path))
    meta, frames = frames_of(path)
    assert str(meta["codec"]).startswith("gif")
    assert len(frames) == video.GIF_FRAMES
    assert abs(float(str(meta["duration"])) - video.GIF_SECONDS) < 0.5
    assert path.stat().st_size < 4e6


@pytest.mark.parametrize("num_actions", [3, 4, 18])
@pytest.mark.parametrize("scale", [2, 3])
def test_panel_shows_the_largest_value_and_the_action(num_actions: int, scale: int) -> None:
    panel = Panel("NameThisGame", ["DOWNRIGHTFIRE"] * num_actions, scale=scale)
    screen = np.zeros((210, 160, 3), np.uint8)
    state = np.full((4, 84, 84), 77, np.uint8)
    q_values = np.zeros(num_actions, np.float32)
    rows = []
    for greedy in range(num_actions):
        q_values[:] = 0
        q_values[greedy] = 1
        panel.update(state, q_values, greedy, 1234)
        picture = panel.picture(screen)
        assert picture.shape == (210 * scale, 160 * scale + PANEL_WIDTH, 3)
        assert (picture == 77).all(axis=2).sum() >= state.size
        orange = np.flatnonzero((picture == (230, 159, 0)).all(axis=2).sum(axis=1) > 30)
        assert len(orange)
        rows.append((orange[0], orange[-1]))
    assert all(before[1] < after[0] for before, after in pairwise(rows)), "bars overlap"
    panel.update(state, None, 0, 0)  # a person plays: no values, no bars
    assert not (panel.picture(screen) == (230, 159, 0)).all(axis=2).any()


def test_bars_are_as_long_as_the_differences() -> None:
    panel = Panel("Pong", ["NOOP", "FIRE", "RIGHT"])
    panel.update(np.zeros((4, 84, 84), np.uint8), np.array([5, 5.5, 6], np.float32), 0, 0)
    picture = panel.picture(np.zeros((210, 160, 3), np.uint8))
    orange = (picture == (230, 159, 0)).all(axis=2).sum(axis=1).max()
    blue = np.unique((picture == (0, 114, 178)).all(axis=2).sum(axis=1))
    assert abs((blue[-1] - 3) * 2 - (orange - 3)) <= 2
    assert 1 <= blue[1] <= 4  # the lowest has a stub


def test_taller_screens_fit() -> None:
    panel = Panel("Pong", ["NOOP"] * 6)
    panel.update(np.zeros((4, 84, 84), np.uint8), None, 0, 0)
    assert panel.picture(np.zeros((250, 160, 3), np.uint8)).shape == (750, 480 + PANEL_WIDTH, 3)


@pytest.fixture
def error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the script says to flags that cannot be; it leaves nothing new behind."""

    def say(*flags: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        line = refused(monkeypatch, capfd, video.main, *map(str, flags))
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return say


def test_bad_state_dicts(model: Path, tmp_path: Path, error: Callable[..., str]) -> None:
    def say(path: Path) -> str:
        return error("--state-dict", path, "--output", tmp_path / "x.mp4")

    assert "is not there" in say(tmp_path / "missing.pt")
    assert "cannot be read: File name too long" in say(tmp_path / ("long" * 100 + ".pt"))
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes(model.read_bytes()[:-1000])
    assert "truncated" in say(truncated)
    text = tmp_path / "text.pt"
    text.write_text("no tensors here")
    assert "text.pt" in say(text)
    other = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(3)}, other)
    assert "not a state dict of this project" in say(other)
    wrong = torch.load(model)
    wrong["hidden.weight"] = torch.zeros(7, 7)
    torch.save(wrong, other)
    assert "another network" in say(other)
    assert "18 actions" in say(save_network(tmp_path / "actions.pt", num_actions=18))
    assert "unknown game 'brakeout'" in say(save_network(tmp_path / "game.pt", game="brakeout"))


def test_bad_flags(model: Path, tmp_path: Path, error: Callable[..., str]) -> None:
    def say(*flags: object) -> str:
        output = () if "--output" in flags else ("--output", tmp_path / "x.mp4")
        return error("--state-dict", model, *output, *flags)

    for epsilon in (1.5, -0.1, "nan"):
        assert "--epsilon" in say("--epsilon", epsilon)
    assert "--episodes" in say("--episodes", 0)
    assert "--seed" in say("--seed", -1)
    assert "--seed" in say("--seed", 2**31)
    assert "must end in .mp4" in say("--output", tmp_path / "film.avi")
    assert "must end in .gif" in say("--gif")
    assert "is not there" in say("--output", tmp_path / "nowhere" / "x.mp4")
    assert "cannot be written: File name too long" in say("--output", "long" * 100 + ".mp4")
    (tmp_path / "folder.mp4").mkdir()
    assert "is a folder" in say("--output", tmp_path / "folder.mp4")


def test_a_game_that_reaches_the_time_limit_is_not_called_over(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("showing.episodes.FRAMES_PER_MINUTE", 24)
    video.make_film(video.FilmConfig(model, output=tmp_path / "x.mp4", plain=True))
    assert "after 5 minutes, the paper's limit; the game is not over" in capsys.readouterr().out


def test_show_without_a_display(
    model: Path, tmp_path: Path, error: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    assert "no display" in error("--state-dict", model, "--output", tmp_path / "x.mp4", "--show")


def test_full_disk_leaves_the_old_film_alone(model: Path, tmp_path: Path) -> None:
    def no_large_files() -> None:  # writing further fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    old = tmp_path / "breakout.mp4"
    old.write_text("an older film")
    command = [sys.executable, str(SCRIPT), "--state-dict", str(model), "--epsilon", "1", "--seed", "16", "--plain"]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=100, preexec_fn=no_large_files
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: breakout.mp4 could not be written whole")
    assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == ["breakout.mp4"]
    assert old.read_text() == "an older film"


def test_film_with_a_frame_missing_is_no_film(tmp_path: Path) -> None:
    block = filming(tmp_path / "x.mp4")
    film = block.__enter__()
    for _ in range(5):
        film.add(np.zeros((210, 160, 3), np.uint8))
    film.frames += 1
    with pytest.raises(UsageError, match="could not be written whole"):
        block.__exit__(None, None, None)
    assert os.listdir(tmp_path) == []


def test_closing_the_window_stops_the_film(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    config = video.FilmConfig(model, show=True)
    window, game = Window("a test"), FilmedGame("breakout")
    pygame.event.post(pygame.Event(pygame.QUIT))
    with pytest.raises(KeyboardInterrupt), filming(tmp_path / "x.mp4") as film:
        video.film_game(config, load_network(model), game, 0, film, window, StopSignal())
    assert film.frames == 2  # the window opened with the first
    assert os.listdir(tmp_path) == []
    window.close()
    game.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_film_leaves_nothing(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, str(SCRIPT), "--state-dict", str(model), "--epsilon", "1", "--episodes", "1000"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )
    while not any(path.stat().st_size for path in tmp_path.iterdir()):  # until the encoder writes
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "Stopped before the end: no film was written."
    assert "Traceback" not in errors
    assert os.listdir(tmp_path) == []
