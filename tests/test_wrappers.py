"""The games: names, the training's bytes against the film's, lives, scores and seeds."""

import csv
import re
import subprocess
import sys

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from ale_py import roms
from conftest import ROOT

from atari import OTHER_NAMES, GameOptions, game_key, paper_scores
from replay_memory import ReplayMemory
from runtime.exits import UsageError
from viewing.episodes import play_games
from viewing.filmed_game import FilmedGame
from wrappers import AtariGames, rom_name


def paper_games() -> list[str]:
    with open(ROOT / "data" / "nature_scores.csv", newline="") as file:
        return [row["game"] for row in csv.DictReader(file)]


# As printed in the paper's Extended Data Table 2, which has the games in the order of data/nature_scores.csv.
PRINTED = """
    Alien, Amidar, Assault, Asterix, Asteroids, Atlantis, Bank Heist, Battle Zone, Beam Rider, Bowling, Boxing,
    Breakout, Centipede, Chopper Command, Crazy Climber, Demon Attack, Double Dunk, Enduro, Fishing Derby,
    Freeway, Frostbite, Gopher, Gravitar, H.E.R.O., Ice Hockey, James Bond, Kangaroo, Krull, Kung-Fu Master,
    Montezuma\N{RIGHT SINGLE QUOTATION MARK}s Revenge, Ms. Pacman, Name This Game, Pong, Private Eye, Q*Bert,
    River Raid, Road Runner, Robotank, Seaquest, Space Invaders, Star Gunner, Tennis, Time Pilot, Tutankham,
    Up and Down, Venture, Video Pinball, Wizard of Wor, Zaxxon
"""


def test_every_name_of_the_papers_table_is_known() -> None:
    for game, printed in zip(paper_games(), PRINTED.split(","), strict=True):
        rom, words = rom_name(game), re.sub(r"(?<=[a-z])(?=[A-Z])", " ", game)
        same = [words, words.lower(), words.upper(), words.replace(" ", "_"), words.replace(" ", "-"), printed]
        assert [rom_name(name) for name in same] == [rom] * len(same)
        for name in same:
            paper = paper_scores(name)
            assert paper is not None, name
            assert paper.game == game


def test_every_name_that_the_emulators_register_is_known() -> None:
    registered = [spec for spec in gym.registry.values() if "game" in spec.kwargs and "ale_py" in str(spec.entry_point)]
    assert len(registered) > 300
    assert {spec.id: rom_name(spec.id) for spec in registered} == {spec.id: spec.kwargs["game"] for spec in registered}


@pytest.mark.parametrize(
    ("name", "rom"),
    [
        ("Yar's Revenge", "yars_revenge"),
        ("Yar\N{RIGHT SINGLE QUOTATION MARK}s Revenge", "yars_revenge"),
        ("Montezumas Revenge", "montezuma_revenge"),
        ("MontezumasRevengeNoFrameskip-v4", "montezuma_revenge"),
        ("Montezuma`s Revenge", "montezuma_revenge"),
        ("Up'n Down", "up_n_down"),
        ("Up 'n' Down", "up_n_down"),
        ("Up & Down", "up_n_down"),
        ("HERO", "hero"),
        ("James Bond 007", "jamesbond"),
        ("Robot Tank", "robotank"),
        ("Kung Fu", "kung_fu_master"),
        ("Kung\N{NON-BREAKING HYPHEN}Fu Master", "kung_fu_master"),
        ("Pitfall!", "pitfall"),
        ("Pitfall II", "pitfall2"),
        ("3-D Tic-Tac-Toe", "tic_tac_toe_3d"),
        ("E.T.", "et"),
        ("Mr. Do!", "mr_do"),
    ],
)
def test_common_spellings_are_known(name: str, rom: str) -> None:
    assert rom_name(name) == rom


def test_other_names_are_of_games_that_are_there_and_take_no_game_its_own() -> None:
    for other, key in OTHER_NAMES.items():
        assert game_key(rom_name(key)) == key
        assert other not in {game_key(rom) for rom in roms.get_all_rom_ids()}


@pytest.mark.parametrize("name", ["Breakot", "BreakoutNoFrameskip-v4x", "ale/", "", "Combat"])
def test_an_unknown_game_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown game"):
        rom_name(name)


def test_the_nearest_names_are_offered() -> None:
    for name, hint in (("Brekout", "did you mean Breakout?"), ("xyzzy", "try Breakout")):
        with pytest.raises(UsageError, match=re.escape(f'unknown game "{name}"; {hint}') + "$"):
            rom_name(name)


RULES = {
    "breakout": GameOptions(),
    "pong": GameOptions(frames_per_step=3, actions=("RIGHT", "LEFT")),
    "seaquest": GameOptions(frames_per_step=1),
    "space_invaders": GameOptions(frames_per_step=8, actions=("LEFTFIRE", "NOOP", "FIRE")),
}


@pytest.mark.parametrize("game", RULES)
def test_training_sees_the_bytes_that_the_film_sees(game: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a whole game, states read from the memory equal those that a player is given in front of a filmed game."""
    for module in ("wrappers", "viewing.filmed_game"):
        monkeypatch.setattr(f"{module}.NOOP_MAX_FRAMES", 0)  # each draws its own number of no-ops
    generator = np.random.default_rng(0)
    filmed, games = FilmedGame(game, RULES[game]), AtariGames(game, 1, RULES[game])
    assert filmed.num_actions == games.num_actions
    memory = ReplayMemory(2_000, 1)
    memory.start(0, games.reset(0))
    steps = 0
    for moment in play_games(lambda states: generator.integers(filmed.num_actions, size=1), filmed, seed=0):
        state = memory.latest_states()[0].numpy()
        assert np.array_equal(moment.states[0], state)
        games.send(moment.actions)
        step = games.receive()
        assert np.array_equal(step.rewards, moment.step.rewards)
        assert np.array_equal(step.terminals, moment.step.terminals)
        assert step.finished == moment.step.finished
        memory.append(moment.actions, step)
        steps += 1
    assert steps > 100
    filmed.close()
    games.close()


def test_an_action_is_the_one_that_its_name_says_for_as_many_frames_as_the_rules_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against the bare emulator, which knows actions by their numbers."""
    monkeypatch.setattr("viewing.filmed_game.NOOP_MAX_FRAMES", 0)
    names, generator = ("LEFT", "FIRE", "RIGHTFIRE"), np.random.default_rng(0)
    filmed = FilmedGame("pong", GameOptions(frames_per_step=5, actions=names))
    filmed.reset(0)
    filmed.take_screens()
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("random_seed", 0)
    path = roms.get_rom_path("pong")
    assert path
    ale.loadROM(path)
    for _ in range(60):
        action = int(generator.integers(3))
        filmed.send(np.array([action]))
        reward = filmed.receive().rewards[0]
        rewards = [ale.act(getattr(ale_py.Action, names[action])) for _ in range(5)]
        screens = filmed.take_screens()
        assert len(screens) == 5
        assert np.array_equal(screens[-1], ale.getScreenRGB())
        assert reward == sum(rewards)
    filmed.close()


@pytest.mark.parametrize("sticky", [0.0, 1.0])
def test_a_filmed_game_has_the_sticky_actions_of_its_rules(sticky: float) -> None:
    """Where every action is the one before it, nobody ever does anything."""
    last = []
    for action in ("NOOP", "RIGHT"):
        filmed = FilmedGame("breakout", GameOptions(actions=(action,), sticky_actions=sticky))
        filmed.reset(0)
        for _ in range(20):
            filmed.send(np.zeros(1, np.int64))
            step = filmed.receive()
        last.append(step.frames)
        filmed.close()
    assert np.array_equal(last[0], last[1]) == (sticky == 1)


def test_lost_lives_and_scores_are_those_of_the_bare_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wrappers.NOOP_MAX_FRAMES", 0)
    games = AtariGames("space_invaders", 1)
    games.reset(0)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    path = roms.get_rom_path("space_invaders")
    assert path
    ale.loadROM(path)
    ale.reset_game()
    actions = ale.getMinimalActionSet()
    generator = np.random.default_rng(3)
    score, length_steps, lost = 0.0, 0, 0
    while True:
        action = int(generator.integers(len(actions)))
        lives = ale.lives()
        reward = sum(ale.act(actions[action]) for _ in range(4) if not ale.game_over())
        games.send(np.array([action]))
        step = games.receive()
        score, length_steps, lost = score + reward, length_steps + 1, lost + int(step.terminals[0])
        assert step.rewards[0] == reward
        assert step.terminals[0] == (ale.lives() < lives or ale.game_over())
        assert step.game_starts[0] == ale.game_over() == bool(step.finished)
        if ale.game_over():
            break
    assert lost == 3
    assert score > 0
    assert (step.finished[0].score, step.finished[0].length_steps) == (score, length_steps)
    games.close()


def test_a_time_limit_ends_a_game_without_a_terminal() -> None:
    games = AtariGames("pong", 2, max_frames_per_game=400)
    games.reset(0)
    finished = []
    for _ in range(100):
        games.send(np.zeros(2, np.int64))
        step = games.receive()
        assert not step.terminals.any()
        assert {game.environment for game in step.finished} == set(np.flatnonzero(step.game_starts))
        finished += step.finished
    assert {game.environment for game in finished} == {0, 1}
    assert all(game.length_steps <= 100 for game in finished)
    games.close()


def test_environment_i_plays_from_seed_plus_i() -> None:
    games = AtariGames("seaquest", 2)
    together = games.reset(7)
    apart = [games.reset(7 + i)[0] for i in range(2)]
    assert np.array_equal(together, np.stack(apart))
    assert not np.array_equal(together[0], together[1])
    games.close()


def test_wrong_actions_and_no_environments_are_refused() -> None:
    with pytest.raises(UsageError, match="--num-envs must be at least 1, got 0"):
        AtariGames("pong", 0)
    games = AtariGames("pong", 2)
    games.reset(0)
    for actions in ([0, 6], [-1, 0], [0]):
        with pytest.raises(ValueError, match="actions must be"):
            games.send(np.array(actions))
    games.close()


PLAY_ALL = """
import hashlib, sys
import numpy as np
from wrappers import AtariGames, rom_name
for game in sys.argv[1:]:
    games = AtariGames(rom_name(game), 1)
    digest = hashlib.sha256(games.reset(5).tobytes())
    generator = np.random.default_rng(1)
    for _ in range(25):
        games.send(generator.integers(games.num_actions, size=1))
        step = games.receive()
        digest.update(step.frames.tobytes() + step.rewards.tobytes() + step.terminals.tobytes())
    print(game, digest.hexdigest(), flush=True)
    games.close()
"""


@pytest.mark.slow
def test_the_same_seeds_and_actions_give_the_same_bytes_in_all_49_games_of_the_paper() -> None:
    """Twice, in two processes at once: what lets a checkpoint keep an action log instead of the frames."""
    command = [sys.executable, "-c", PLAY_ALL, *paper_games()]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (process.communicate()[0].splitlines() for process in processes)
    assert len(first) == 49
    assert len({line.split()[1] for line in first}) == 49
    assert first == second
