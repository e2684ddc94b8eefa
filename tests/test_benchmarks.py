"""What the measurements print and draw of numbers that are known, and how an hour of learning is trained."""

import multiprocessing.dummy
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import common, inference, learning, parts, rates
from benchmarks.common import BenchmarkConfig
from q_agent_train import Config
from runtime.architecture import Architecture
from runtime.exits import RunError
from runtime.flags import parse

pytestmark = pytest.mark.slow


def test_rates_have_their_median_and_range_and_their_ratio_to_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = SimpleNamespace(get_context=lambda _: multiprocessing.dummy)  # they start at once
    monkeypatch.setattr(common, "multiprocessing", threads)
    peers, ours = iter((100.0, 90.0, 130.0)), iter((1250.0, 5.0, 200.0))
    programs = {"peer": lambda _: next(peers), "ours": lambda _: next(ours)}
    table = common.rates_in_turn(programs, BenchmarkConfig(rounds=3))
    assert table.loc["ours"].to_dict() == {"median": 200, "min": 5, "max": 1250, "ratio": 2}
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:] == [["peer", "100.00", "90.00", "130.00", "1.00"], ["ours", "200.00", "5.00", "1,250.00", "2.00"]]


@pytest.mark.parametrize("instructions", [["avx512_bf16"], []])
def test_compare_measures_bfloat16_or_says_why_not(
    instructions: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: dict[str, Any] = {}
    monkeypatch.setattr(rates, "bfloat16_instructions", lambda _device: instructions)
    monkeypatch.setattr(rates, "rates_in_turn", lambda programs, _config: measured.update(programs))
    monkeypatch.setattr(rates, "peer_is_there", lambda: True)
    rates.compare(BenchmarkConfig(device="cpu"))
    assert list(measured) == ["stable_baselines3", "ours", *["ours, bfloat16"] * len(instructions)]
    assert ("no instructions" in capsys.readouterr().out) == (not instructions)


def test_a_rate_leaves_out_its_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [0.0]  # after each step; a step is slower while the program warms up
    monkeypatch.setattr("time.perf_counter", lambda: times[-1])
    advance = lambda: times.append(times[-1] + (1.0 if times[-1] < 5 else 0.5))  # noqa: E731
    assert common.rate(advance, lambda: len(times), BenchmarkConfig(seconds=20)) == 2


# Multiply-accumulates of the first convolution, which grows with the history, and of those behind it.
NATURE = 20 * 20 * 32 * (4 * 8 * 8), 9 * 9 * 64 * (32 * 4 * 4) + 7 * 7 * 64 * (64 * 3 * 3)
SEPARABLE = 20 * 20 * 4 * (8 * 8 + 32), 9 * 9 * 32 * (4 * 4 + 64) + 7 * 7 * 64 * (3 * 3 + 64)
NIPS2013 = 20 * 20 * 16 * (4 * 8 * 8), 9 * 9 * 32 * (16 * 4 * 4)


@pytest.mark.parametrize(
    ("layers", "parameters", "convolutions", "fully_connected"),
    [
        (Architecture(), 1_686_180, NATURE, 7 * 7 * 64 * 512 + 512 * 4),
        (Architecture(dueling=True), 3_292_837, NATURE, 7 * 7 * 64 * 1024 + 512 * 5),
        (Architecture(separable=True), 1_615_812, SEPARABLE, 7 * 7 * 64 * 512 + 512 * 4),
        (Architecture("nips2013"), 677_172, NIPS2013, 9 * 9 * 32 * 256 + 256 * 4),
    ],
)
def test_multiply_accumulates_are_those_counted_by_hand(
    layers: Architecture, parameters: int, convolutions: tuple[int, int], fully_connected: int
) -> None:
    macs = sum(convolutions) + fully_connected
    for batch in (32, 1024):  # they are those of one state
        point = inference.BASE | {"batch": batch}
        assert inference.count(layers, point) == {"parameters": parameters, "macs": macs}
    assert inference.count(layers, inference.BASE | {"history": 8})["macs"] == macs + convolutions[0]


def test_inference_has_a_row_for_each_point_and_a_line_for_each_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [inference.BASE | {"batch": 4}, inference.BASE | {"history": 2}, inference.BASE]
    networks, drawn = [Architecture("nips2013"), Architecture("nips2013", dueling=True, separable=True)], list[Any]()
    monkeypatch.setattr(inference, "ARCHITECTURES", networks)
    monkeypatch.setattr(inference, "POINTS", points)
    monkeypatch.setattr(inference, "save_figure", lambda figure, path: drawn.append(figure))
    inference.inference(BenchmarkConfig("inference", device="cpu", figure=Path("figure.png")))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 1 + 6
    assert rows[5][:6] == ["nips2013", "dueling", "separable", "32", "2", "84"]
    parameters = [[inference.count(layers, point)["parameters"] for point in points[1:]] for layers in networks]
    panel = drawn[0].axes[4]  # parameters by history
    assert [[*line.get_xdata()] for line in panel.lines] == [[2, 4]] * 2
    assert [[*line.get_ydata()] for line in panel.lines] == parameters


def test_the_operations_of_an_update_are_those_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "WARM_UP_STEPS", 100)
    layers = (20 * 20 * 32 * 4 * 64, 9 * 9 * 64 * 32 * 16, 7 * 7 * 64 * 64 * 9, 3136 * 512, 512 * 4)
    update = 2 * 32 * (4 * sum(layers) - layers[0]) / 1e9  # two passes forward, one back to all but the pixels
    assert parts.update_gigaflops(BenchmarkConfig()) == pytest.approx(update)


def test_the_hour_is_trained_as_typed_and_evaluated_ten_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    typed: list[str] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        typed.extend(command[2:])
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(subprocess, "run", run)
    config, status = BenchmarkConfig("learning", game="pong", seed=7, device="cpu", config="quick"), 0
    learning.train_ours(config, tmp_path, 805)
    trained = parse(Config, arguments=typed)
    assert (trained.game, trained.seed, trained.steps, trained.evaluate_every) == ("pong", 7, 805, 80)
    assert (trained.run_dir, trained.device, trained.config) == (tmp_path, "cpu", "quick")
    status = 2
    with pytest.raises(RunError, match="ended with status 2; the same command resumes it"):
        learning.train_ours(config, tmp_path, 805)
