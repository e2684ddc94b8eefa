"""Many games in one film, and what was filmed as PNG files: each compared with the games played by hand."""

import hashlib
import math
import os
import re
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import save_network
from PIL import Image
from test_video import frames_of, offset_of, steps_of

import trained_model_video_generation as video
from atari import GameOptions
from relatives.networks import build_network
from runtime.checkpoint import save_state_dict
from runtime.exits import RunError
from runtime.networks import load_network
from viewing.episodes import EpsilonGreedyPlayer, open_game, rendered_steps
from viewing.film import collecting
from viewing.panel import CAPTION_HEIGHT, TILE_GAP, Tile, grid_picture

SCRIPT = Path(video.__file__)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "model.pt")


def png(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


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


def test_a_game_of_a_grid_is_the_game_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its own rules, with half of its actions the network's: same files, byte for byte, same score."""
    monkeypatch.setattr("viewing.episodes.FRAMES_PER_MINUTE", 20)
    rules = GameOptions(frames_per_step=3, actions=("FIRE", "LEFT"), sticky_actions=0.25)
    model = tmp_path / "model.pt"
    save_state_dict(build_network("breakout", 2, rules=rules).state_dict(), model)
    config = {"epsilon": 0.5, "output": tmp_path / "x.mp4"}
    together = tmp_path / "together"
    video.make_film(video.FilmConfig(model, grid=3, seed=5, frames=together, **config))  # type: ignore[arg-type]
    size = iio.immeta(tmp_path / "x.mp4", plugin="FFMPEG")["size"]
    assert size == (960 + TILE_GAP, 2 * (630 + CAPTION_HEIGHT))
    lines = sorted(capsys.readouterr().out.splitlines()[:-1])
    assert sorted(os.listdir(together)) == ["game_001", "game_002", "game_003"]
    for number in (1, 3):
        alone = tmp_path / f"alone{number}"
        video.make_film(video.FilmConfig(model, seed=4 + number, plain=True, frames=alone, **config))  # type: ignore[arg-type]
        assert digests(alone / "game_001") == digests(together / f"game_{number:03}")
        assert len(os.listdir(alone / "game_001")) > 100
        assert lines[number - 1] == capsys.readouterr().out.splitlines()[0].replace("game 1", f"game {number}")


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


def test_frames_of_a_gif_are_those_of_its_moments(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "best_moments", lambda *_: (1, 4.0))
    monkeypatch.setattr(video, "GIF_SECONDS", 2)
    path, folder = tmp_path / "x.gif", tmp_path / "frames"
    config = video.FilmConfig(model, epsilon=1.0, seed=15, episodes=2, gif=True, output=path, frames=folder)
    video.make_film(config)
    assert os.listdir(folder) == ["game_002"]
    screens = [screen for step in steps_of(model, seed=16)[0][60:90] for screen in step]
    names = sorted(os.listdir(folder / "game_002"))
    assert names == [f"screen_{n:06}.png" for n in range(len(screens))] + [f"state_{n:06}.png" for n in range(30)]
    for name, screen in zip(names, screens, strict=False):
        np.testing.assert_array_equal(png(folder / "game_002" / name), screen)


def test_a_gif_of_a_grid_is_small_and_has_an_agent_step_of_each_game_per_frame(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.gif"
    video.make_film(video.FilmConfig(model, grid=2, epsilon=1.0, seed=16, gif=True, from_seconds=6, output=path))
    games = [steps_of(model, seed)[0][90:] for seed in (16, 17)]
    meta, frames = frames_of(path)
    assert meta["size"] == (640 + TILE_GAP, 420 + CAPTION_HEIGHT)
    assert len(frames) == min(225, max(map(len, games)))
    assert len(games[0]) < len(frames)
    for index, steps in enumerate(games):
        screens = [np.maximum.reduce(step[-2:]) for step in steps]
        shown = [tile_of(frame, index, scale=2) for frame in frames[: len(steps)]]
        assert offset_of(shown, [screens[0]] * 3 + screens, start=3) == 0
    assert re.search(r": \d+ frames, \d\.\d MB, seconds 6\.0 to \d+\.\d\n$", capsys.readouterr().out)


@pytest.mark.parametrize("num_games", [2, 4, 5, 64])
@pytest.mark.parametrize("height", [210, 250])
def test_a_grid_has_even_sides_and_is_no_wider_than_it_should_be(num_games: int, height: int) -> None:
    tiles = [Tile(np.full((height, 160, 3), 100 + index, np.uint8), 1e6, False) for index in range(num_games)]
    picture = grid_picture(tiles, 1280)
    columns = math.ceil(num_games**0.5)
    gaps = (columns - 1) * TILE_GAP
    scale = (picture.shape[1] - gaps) // columns // 160
    assert picture.shape[1] == columns * scale * 160 + gaps
    assert picture.shape[1] <= 1280 + gaps
    assert scale == 3 or (scale + 1) * columns * 160 > 1280
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    assert (np.bincount(picture[..., 1].ravel())[100 : 100 + num_games] >= height * 160 * scale**2).all()


def test_the_line_under_a_game_says_its_score_and_that_it_has_ended() -> None:
    def line(score: float, ended: bool) -> np.ndarray:
        return grid_picture([Tile(np.zeros((210, 160, 3), np.uint8), score, ended)] * 2, 320)[210:, :160].astype(int)

    changed = [np.flatnonzero((line(0, False) != other).any(axis=(0, 2))) for other in (line(7, False), line(0, True))]
    assert changed[0].min() > 140  # the score, at the right
    assert 30 < changed[1].min() < changed[1].max() < 100  # "ended", between the number and the score
    longest = line(9_999_999, True)
    assert (longest[:, 94:100] == longest[0, 0]).all()  # the two do not touch


def test_a_full_disk_leaves_neither_film_nor_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(picture: Image.Image, path: Path) -> None:
        if path.name == "screen_000050.png":
            raise OSError(28, "No space left on device")
        path.write_bytes(b"")

    monkeypatch.setattr(Image.Image, "save", save)
    config = video.FilmConfig(model, output=tmp_path / "x.mp4", frames=tmp_path / "new")
    with pytest.raises(RunError, match="new cannot be written: No space left on device"):
        video.make_film(config)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_was_filled_meanwhile_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "frames"

    def collect() -> None:
        with collecting(folder) as album:
            album.add("screen", np.zeros((2, 2), np.uint8))
            folder.mkdir()
            (folder / "mine").write_text("mine")

    with pytest.raises(RunError, match="frames cannot be written: Directory not empty"):
        collect()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["frames", "mine"]
