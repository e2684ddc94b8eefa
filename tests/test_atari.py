"""The paper's table: its printed percentages come out of it, for every name that a game goes by."""

import ale_py.roms
import pytest

from atari import PaperScores, game_key, paper_scores, paper_table


def _paper(game: str) -> PaperScores:
    scores = paper_scores(game)
    assert scores is not None
    return scores


# Fig. 3 prints whole percents, some rounded down: Space Invaders is 121.5 in the table.
@pytest.mark.parametrize(
    ("game", "percent"),
    [
        ("breakout", 1327),
        ("pong", 132),
        ("space_invaders", 121),
        ("video_pinball", 2539),
        ("boxing", 1707),
        ("ms_pacman", 13),
        ("montezuma_revenge", 0),
    ],
)
def test_normalised_score_of_dqn_is_the_one_the_paper_prints(game: str, percent: int) -> None:
    scores = _paper(game)
    assert scores.normalised(scores.dqn_nature) == pytest.approx(percent, abs=0.6)


def test_random_play_is_0_and_the_human_of_the_5_minute_condition_is_100() -> None:
    for scores in paper_table().values():
        assert scores.normalised(scores.random) == 0
        assert scores.normalised(scores.human) == pytest.approx(100)


def test_29_of_49_games_reach_75_percent_of_the_human_score() -> None:
    percents = [scores.normalised(scores.dqn_nature) for scores in paper_table().values()]
    assert len(percents) == 49
    assert sum(percent >= 75 for percent in percents) == 29


def test_the_seven_games_of_2013_have_its_scores() -> None:
    earlier = {row.game: row.dqn_nips2013 for row in paper_table().values() if row.dqn_nips2013 is not None}
    sevens = ("BeamRider", "Breakout", "Enduro", "Pong", "Qbert", "Seaquest", "SpaceInvaders")
    assert earlier == dict(zip(sevens, (4092, 168, 470, 20, 1952, 1705, 581), strict=True))
    breakout = _paper("breakout")
    assert (breakout.random_nips2013, breakout.human_nips2013) == (1.2, 31)


def test_every_game_of_the_paper_is_one_rom() -> None:
    keys = [game_key(rom) for rom in ale_py.roms.get_all_rom_ids()]
    assert all(keys.count(key) == 1 for key in paper_table())


def test_a_game_outside_the_paper_has_no_scores() -> None:
    assert paper_scores("pacman") is None
    assert paper_scores("tetris") is None
