"""The window on SDL's dummy display, with key events as a keyboard makes them; and every bad input."""

import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pygame
import pytest
from conftest import refused, save_network

import play
from model import QNetwork
from runtime.checkpoint import save_state_dict
from runtime.exits import StopSignal, UsageError
from viewing.filmed_game import FilmedGame
from viewing.window import Window

BREAKOUT = ["NOOP", "FIRE", "RIGHT", "LEFT"]
SEAQUEST = [
    *("NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT"),
    *("UPFIRE", "RIGHTFIRE", "LEFTFIRE", "DOWNFIRE", "UPRIGHTFIRE", "UPLEFTFIRE", "DOWNRIGHTFIRE", "DOWNLEFTFIRE"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "model.pt")


class Typist(Window):
    """A window at which somebody types: behind so many pictures, a key goes down or up. It waits for nobody."""

    def __init__(self, script: list[tuple[int, str]]):
        super().__init__("a test")
        self.script = script
        self.pictures = 0
        self.rates: list[float] = []

    def show(self, picture: np.ndarray, frames_per_second: float) -> None:
        super().show(picture, 0)
        self.pictures += 1
        self.rates.append(frames_per_second)
        for _, key in (entry for entry in self.script if entry[0] == self.pictures):
            kind = pygame.KEYUP if key.startswith("release ") else pygame.KEYDOWN
            pygame.event.post(pygame.Event(kind, key=pygame.key.key_code(key.removeprefix("release "))))
        assert self.pictures < 5_000, "nobody quit"


class NotedGame(FilmedGame):
    """The real game, with a note of what it was told."""

    def __init__(self) -> None:
        super().__init__("breakout")
        self.seeds: list[int | np.ndarray | None] = []
        self.actions: list[int] = []

    def reset(self, seed: int | np.ndarray | None = None) -> np.ndarray:
        self.seeds.append(seed)
        return super().reset(seed)

    def send(self, actions: np.ndarray) -> None:
        self.actions.append(int(actions[0]))
        super().send(actions)


@pytest.fixture(autouse=True)
def dummy_display(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.chdir(tmp_path)


def run_session(config: play.PlayConfig, script: list[tuple[int, str]]) -> tuple[play.Session, Typist, NotedGame, int]:
    """The last is the number of pictures that a recording has."""
    with closing(NotedGame()) as game, closing(Typist(script)) as window:
        session = play.Session(config, window, game, StopSignal())
        recorded = sum(1 for _ in session.pictures())
    return session, window, game, recorded


def frames_in(path: Path) -> int:
    return int(imageio_ffmpeg.count_frames_and_secs(str(path))[0])


def test_pause_and_single_steps(model: Path) -> None:
    script = [(40, "p"), (60, "n"), (80, "n"), (100, "q")]
    _, window, game, recorded = run_session(play.PlayConfig(model), script)
    assert window.pictures == 100
    opening = recorded - 4 * len(game.actions)
    assert 1 <= opening <= 31  # of the reset
    assert 40 + 8 <= recorded <= 43 + 8  # the agent step in which p came, and two more


def test_games_follow_one_another_and_scores_are_said(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    config = play.PlayConfig(model, epsilon=1.0, seed=15)
    _, _, game, _ = run_session(config, [(50, "r"), (600, "q")])
    assert game.seeds == [15, 16, 17]  # the one of the key ends at once, and has no score
    assert re.fullmatch(r"game 2, seed 16: score \d+\n", capsys.readouterr().out)


def test_a_person_plays_with_the_keys() -> None:
    script = [(60, "space"), (61, "release space"), (80, "left"), (120, "right"), (160, "release right"), (200, "q")]
    _, _, game, _ = run_session(play.PlayConfig(human=True, game="breakout"), script)
    runs = re.sub(r"(.)\1*", r"\1", "".join(BREAKOUT[action][0] for action in game.actions))
    assert runs == "NFNLRL"  # the tap, LEFT, the newer RIGHT, and LEFT again, which was still held
    assert game.actions.count(BREAKOUT.index("FIRE")) == 1


def test_taking_over_and_handing_back(model: Path) -> None:
    _, _, alone, _ = run_session(play.PlayConfig(model, epsilon=1.0), [(300, "q")])
    script = [(100, "t"), (101, "left"), (200, "release left"), (201, "t"), (300, "q")]
    session, _, both, _ = run_session(play.PlayConfig(model, epsilon=1.0), script)
    assert len(alone.actions) == len(both.actions)
    same = [a == b for a, b in zip(alone.actions, both.actions, strict=True)]
    taken = [index for index, equal in enumerate(same) if not equal]
    # The agent draws as it would have, so what it does before and after is what it does alone.
    assert taken[0] >= (100 - 31) // 4
    assert taken[-1] <= 201 // 4
    assert set(both.actions[taken[0] : taken[-1] + 1]) == {BREAKOUT.index("LEFT")}
    assert not session.person_plays


def test_following_a_run_takes_the_newest_network(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = play.PlayConfig(follow=run, epsilon=0.0)
    with pytest.raises(UsageError, match=r"run/model.pt is not there"):
        play.play(config)
    save_network(run / "model.pt")
    with closing(NotedGame()) as game, closing(Typist([(30, "r"), (60, "r"), (90, "q")])) as window:
        session = play.Session(config, window, game, StopSignal())
        networks = []

        def show(picture: np.ndarray, frames_per_second: float) -> None:
            if window.pictures == 20:  # the training goes on: it favours LEFT now
                state_dict = QNetwork("breakout", 4).state_dict()
                state_dict["values.bias"][3] += 9
                save_state_dict(state_dict, run / "model.pt")
            networks.append(session.agent)
            Typist.show(window, picture, frames_per_second)

        window.show = show  # type: ignore[method-assign]
        deque(session.pictures(), maxlen=0)
    assert len({id(network) for network in networks}) == 3
    assert set(game.actions[-5:]) == {BREAKOUT.index("LEFT")}


def test_keys_become_the_nearest_action() -> None:
    def names(held: list[str], actions: list[str]) -> str:
        return actions[play.action_of(held, actions)]

    assert names([], BREAKOUT) == "NOOP"
    assert names(["up"], BREAKOUT) == "NOOP"
    assert names(["x", "left"], BREAKOUT) == "LEFT"
    assert names(["left", "space"], BREAKOUT) == "FIRE"
    assert names(["space", "left"], BREAKOUT) == "LEFT"
    assert names(["up", "right", "space"], SEAQUEST) == "UPRIGHTFIRE"
    assert names(["space", "down", "left"], SEAQUEST) == "DOWNLEFTFIRE"
    assert names(["left", "right"], SEAQUEST) == "RIGHT"
    assert names(["up", "right", "left"], SEAQUEST) == "UPLEFT"


def test_a_person_alone_as_a_user_starts_it(tmp_path: Path) -> None:
    """The script itself: Ctrl-C keeps the recording, whole."""
    flags = ["--human", "--game", "BreakoutNoFrameskip-v4", "--record", "mine.mp4"]
    command = [sys.executable, "-u", play.__file__, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "actions here: NOOP, FIRE, RIGHT, LEFT\n"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert out == f"mine.mp4: {frames_in(tmp_path / 'mine.mp4')} frames\n"


@pytest.fixture
def error(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the script says to flags that it refuses."""
    return lambda *flags: refused(monkeypatch, capfd, play.main, *map(str, flags))


def test_bad_flags(model: Path, tmp_path: Path, error: Callable[..., str]) -> None:
    assert "who plays?" in error()
    assert "who plays?" in error("--state-dict", model, "--human", "--game", "Breakout")
    assert "needs the game" in error("--human")
    assert "a network knows its game" in error("--state-dict", model, "--game", "Pong")
    assert "--epsilon" in error("--state-dict", model, "--epsilon", "nan")
    assert "--follow: nothing/model.pt is not there" in error("--follow", "nothing")
    assert "must end in .mp4" in error("--state-dict", model, "--record", "x.gif")


def test_without_a_display(model: Path, error: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    assert "trained_model_video_generation.py" in error("--state-dict", model)
    monkeypatch.setenv("SDL_VIDEODRIVER", "nonsense")
    assert "trained_model_video_generation.py" in error("--state-dict", model)
