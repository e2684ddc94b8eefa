"""The line that a training shows: what is in it, and how long it says is left."""

from collections.abc import Callable

import pytest

from runtime.progress import Progress
from runtime.run import note_of_dead
from runtime.run_config import RunConfig

Show = Callable[[float, int, int], str]


@pytest.fixture
def progress(clock: list[float]) -> Progress:
    """That of a run of 10,000 steps or 100 games that learns from step 1,000 on."""
    return Progress(0, 0, RunConfig("pong", replay_start_size=1_000, steps=10_000, games=100))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The second that the clock shows."""
    shown = [0.0]
    monkeypatch.setattr("runtime.progress.time.monotonic", lambda: shown[0])
    return shown


@pytest.fixture
def show(clock: list[float], progress: Progress) -> Show:
    """Show the progress at a second, with so many steps and games; returns the line's text."""

    def at(second: float, steps: int, games: int) -> str:
        clock[0] = second
        progress.show(steps, games, [3.0] * games, 0.5)
        return f"{progress._bar.n}%, {progress._bar.desc}"

    return at


def test_before_the_first_game_there_is_no_mean(show: Show) -> None:
    line = "2%, game 0, epsilon 0.500, step 200, 100 steps/s, 0:00:08 until learning begins"
    assert show(2, 200, 0) == line
    assert show(4, 400, 1).startswith("4%, game 1, mean of last 1: 3.0, epsilon 0.500, step 400, ")


def test_the_time_left_follows_the_phase(show: Show) -> None:
    """Random actions are 15 times as fast as learning: their rate tells when learning begins, but not the end."""
    assert show(9, 900, 1).endswith("100 steps/s, 0:00:01 until learning begins")
    assert show(11, 1_010, 1).endswith("measuring its speed")
    assert show(21, 1_110, 1).endswith("10 steps/s, 0:14:49 left to --steps 10,000")


def test_it_names_the_limit_that_ends_the_run(show: Show) -> None:
    show(1, 1_000, 0)
    assert show(11, 1_100, 20).endswith("0:00:40 left to --games 100")
    assert show(21, 9_100, 21).endswith("left to --steps 10,000")
    assert show(31, 10_000, 22).startswith("100%, ")


def test_in_a_file_there_is_a_line_a_minute_and_one_at_the_end(show: Show, capsys: pytest.CaptureFixture[str]) -> None:
    for second in range(1, 131):
        show(second, 10 * second, 0)
    show(131, 10_000, 0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", step ")[1].split(", ")[0] for line in lines] == ["10", "610", "1,210", "10,000"]
    assert lines[-1].startswith("100% game 0, ")


def test_evaluations_count_for_the_time_left_and_not_for_the_speed(clock: list[float]) -> None:
    config = RunConfig("pong", replay_start_size=1_000, steps=10_000, evaluate_every=2_000)
    progress = Progress(0, 0, config)

    def at(second: float, steps: int) -> str:
        clock[0] = second
        progress.show(steps, 0, [], 0.5)
        return progress._bar.desc.split(", ", 3)[-1]

    for second in range(1, 102, 10):
        line = at(second, 1_000 + 10 * (second - 1))
    assert line.startswith("10 steps/s, 0:13:20 left to ")
    clock[0] = 201.0
    progress.evaluated(100.0)
    assert progress.steps_per_second(2_000) == pytest.approx(10)
    # 7,900 steps at 10 a second, and 100 seconds for the evaluation at each of 4,000, 6,000, 8,000 and 10,000.
    assert at(211, 2_100).startswith("10 steps/s, 0:19:50 left to ")
    assert at(221, 2_200).startswith("10 steps/s, 0:19:40 left to ")


def test_a_time_beyond_all_bounds_is_no_traceback(clock: list[float]) -> None:
    progress = Progress(0, 0, RunConfig("pong", replay_start_size=1, steps=10**15, games=10**15))
    progress.show(1, 0, [], 1.0)
    clock[0] = 1e6
    progress.show(2, 0, [], 1.0)
    assert progress._bar.desc.endswith("11574 days, 1:46:40 left to --steps 1,000,000,000,000,000")
    progress.close()


@pytest.mark.parametrize(
    ("deviation", "mean", "is_dead"), [(1e-8, 0.5, True), (1e-5, 20.0, True), (1e-5, 0.5, False), (0.3, 9.0, False)]
)
def test_a_network_that_has_one_value_for_all_states_is_noted_in_the_line(
    deviation: float, mean: float, is_dead: bool
) -> None:
    note = note_of_dead({"deviation_q_held_out": deviation, "mean_q_held_out": mean})
    assert note.startswith("; every state has the same value") == is_dead
    assert note_of_dead({}) == ""
