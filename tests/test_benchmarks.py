"""What the measurements print and draw of numbers that are known, and how an hour of learning is trained."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_figures import lines_of

import benchmark
from benchmarks import compare, inference, learning, parts, scaling
from benchmarks.common import PEER, TAKES, BenchmarkConfig, milliseconds_of
from benchmarks.inference import LINES, POINTS, Point
from q_agent_train import Config
from runtime.architecture import Architecture
from runtime.exits import RunError, UsageError
from runtime.flags import parse

pytestmark = pytest.mark.slow


def test_the_scaling_figure_has_titles_and_the_spread_of_its_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates, times = iter([100.0, 90.0, 130.0, 400.0, 200.0, 210.0, 180.0, 250.0]), iter([0.5, 0.7, 0.4])
    monkeypatch.setattr(scaling, "ENVIRONMENTS", (1, 32))
    monkeypatch.setattr(scaling, "MEMORY_SIZES", (10_000,))
    monkeypatch.setattr(scaling, "alone", lambda measure, config: next(rates))
    monkeypatch.setattr(scaling, "measure_sampling", lambda size, device: (7063.5, next(times)))
    result = scaling.scaling(BenchmarkConfig("scaling", rounds=3, figure=tmp_path / "scaling.png"))
    assert (tmp_path / "scaling.png").stat().st_size
    assert result["environments"] == [
        {"environments": 1, "median": 100.0, "minimum": 90.0, "maximum": 130.0, "limit": 400.0},
        {"environments": 32, "median": 200.0, "minimum": 180.0, "maximum": 210.0, "limit": 250.0},
    ]
    memory = {"transitions": 10_000, "median": 0.5, "minimum": 0.4, "maximum": 0.7, "bytes_each": 7063.5}
    assert result["memory"] == [memory]
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[1:3] == [["1", "100.0", "90.0", "130.0", "25%"], ["32", "200.0", "180.0", "210.0", "80%"]]
    assert printed[4] == ["10,000", "0.50", "0.40", "0.70", "7063.5"]
    figure = scaling.draw(result)
    left, right = figure.axes
    assert all(panel.get_title() and panel.get_xlabel() and panel.get_ylabel() for panel in (left, right))
    assert "3" in figure.get_suptitle()
    spreads = left.containers[0].lines[2][0].get_segments()  # type: ignore[attr-defined]
    np.testing.assert_allclose(spreads, [[(1, 90), (1, 130)], [(32, 180), (32, 210)]])
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["10,000"]


# Multiply-accumulates of the first convolution, which grows with the history, and of those behind it.
NATURE = 20 * 20 * 32 * (4 * 8 * 8), 9 * 9 * 64 * (32 * 4 * 4) + 7 * 7 * 64 * (64 * 3 * 3)
SEPARABLE = 20 * 20 * 4 * (8 * 8 + 32), 9 * 9 * 32 * (4 * 4 + 64) + 7 * 7 * 64 * (3 * 3 + 64)
NIPS2013 = 20 * 20 * 16 * (4 * 8 * 8), 9 * 9 * 32 * (16 * 4 * 4)


@pytest.mark.parametrize(
    ("layers", "parameters", "convolutions", "fully_connected", "millions"),
    [
        (Architecture(), 1_686_180, NATURE, 7 * 7 * 64 * 512 + 512 * 4, (7.74, 9.35)),
        (Architecture(dueling=True), 3_292_837, NATURE, 7 * 7 * 64 * 1024 + 512 * 5, (7.74, 10.95)),
        (Architecture(separable=True), 1_615_812, SEPARABLE, 7 * 7 * 64 * 512 + 512 * 4, (0.59, 2.20)),
        (Architecture("nips2013"), 677_172, NIPS2013, 9 * 9 * 32 * 256 + 256 * 4, (2.30, 2.97)),
    ],
)
def test_multiply_accumulates_are_those_counted_by_hand(
    layers: Architecture,
    parameters: int,
    convolutions: tuple[int, int],
    fully_connected: int,
    millions: tuple[float, float],
) -> None:
    first, behind = convolutions
    macs = first + behind + fully_connected
    assert (round((first + behind) / 1e6, 2), round(macs / 1e6, 2)) == millions
    assert inference.count(layers, Point()) == (parameters, macs)
    assert inference.count(layers, Point(batch=1024)) == (parameters, macs)  # of one state
    assert inference.count(layers, Point(history_frames=8))[1] == macs + first


def test_the_device_is_waited_for_within_the_time_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("torch.accelerator.synchronize", lambda: calls.append("waited"))
    milliseconds_of(lambda: calls.append("called"), torch.device("cuda"), 0.001)
    assert calls == ["called", "waited"] * (len(calls) // 2) != []


def test_inference_writes_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layers, points = Architecture("nips2013", dueling=True, separable=True), [Point(), Point(4, 2, 128)]
    monkeypatch.setattr(inference, "LINES", {layers: LINES[layers]})
    monkeypatch.setattr(inference, "POINTS", dict.fromkeys(points))
    files = ["--json", str(tmp_path / "rows.json"), "--figure", str(tmp_path / "figure.png")]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "inference", "--device", "cpu", *files])
    benchmark.main()  # the measurement in a fresh process, which knows nothing of what is changed here
    assert (tmp_path / "figure.png").stat().st_size
    rows = json.loads((tmp_path / "rows.json").read_text())["inference"]
    times = [row.pop("milliseconds") for row in rows]
    variant = {"network": "nips2013", "dueling": True, "separable": True, "distributional": "off"}
    counts = [inference.count(layers, point) for point in points]
    assert rows == [
        variant | point._asdict() | {"parameters": parameters, "macs": macs}
        for point, (parameters, macs) in zip(points, counts, strict=True)
    ]
    assert 0 < times[0] < 10_000
    printed = capsys.readouterr().out.splitlines()[-1].split()
    numbers = [f"{times[1]:.3f}", f"{counts[1][0]:,}", f"{counts[1][1]:,}"]
    assert printed == ["nips2013", "dueling", "separable", "4", "2", "128", *numbers]


@pytest.mark.parametrize("instructions", [["avx512_bf16"], []])
def test_bfloat16_has_a_row_that_says_so_where_it_is_not_supported(
    instructions: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_turn(programs: dict[str, Any], _config: BenchmarkConfig) -> dict[str, list[float]]:
        assert ("ours, bfloat16" in programs) == bool(instructions)
        return {name: [10.0 * number, 30.0 * number] for number, name in enumerate(programs, 1)}

    monkeypatch.setattr(compare, "bfloat16_instructions", lambda _device: instructions)
    monkeypatch.setattr(compare, "in_turn", in_turn)
    monkeypatch.setattr(compare, "alone", lambda *_: 80.0)
    monkeypatch.setattr(compare, "peer_is_there", lambda: True)
    result = compare.compare(BenchmarkConfig(device="cpu"))
    rows = {line[:24].strip(): line[24:].split() for line in capsys.readouterr().out.splitlines()}
    assert rows["ours"] == ["20.0", "10.0", "30.0", "25%"]
    assert rows["ours, bfloat16"][0] == ("40.0" if instructions else "unsupported:")
    assert (result["limit"], result["ratio"]) == (80.0, 1 / 3 if instructions else 1 / 2)


def test_the_inference_figure_has_a_line_for_each_network() -> None:
    rows = [
        dataclasses.asdict(layers) | point._asdict() | {"milliseconds": 1.5, "parameters": 7, "macs": 8 + number}
        for number, layers in enumerate(LINES)
        for point in POINTS
    ]
    figure = inference.draw(rows)
    drawn = [panel for panel in figure.axes if panel.lines]
    assert len(drawn) == 7  # nothing but the time depends on the batch
    for panel in drawn:
        (varied,) = (name for name, label in inference.AXES.items() if label == panel.get_xlabel())
        assert len(panel.lines) == len(LINES) == 8
        assert len({(line.get_color(), line.get_marker()) for line in panel.lines}) == 8
        for line in panel.lines:
            np.testing.assert_array_equal(line.get_xdata(), inference.VARIED[varied])
    np.testing.assert_array_equal([line.get_ydata() for line in drawn[0].lines], [[1.5] * 7] * 8)
    np.testing.assert_array_equal([line.get_ydata() for line in drawn[3].lines], [[8 + n] * 6 for n in range(8)])
    legend = figure.axes[3].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [inference.name_of(layers) for layers in LINES]


def test_the_limit_of_the_speed_is_that_of_the_multiplications(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.common.WARM_UP_STEPS", 100)
    small = BenchmarkConfig(num_envs=8, replay_size=640, device="cpu")
    layers = (20 * 20 * 32 * 4 * 64, 9 * 9 * 64 * 32 * 16, 7 * 7 * 64 * 64 * 9, 3136 * 512, 512 * 4)
    update = 2 * 32 * (4 * sum(layers) - layers[0]) / 1e9  # two passes forward, one back to all but the pixels
    double = update + 2 * 32 * sum(layers) / 1e9
    assert parts.update_gigaflops(small) == pytest.approx(update)
    times = iter((16.0, 8.0, 2.0))  # emulators and acting for 8 environments, sampling for 2 updates
    monkeypatch.setattr(parts, "milliseconds_of", lambda function, device: next(times))
    monkeypatch.setattr(parts, "matrix_gigaflops", lambda device: 100.0)
    milliseconds = (16 + 8) / 8 + 2 / 4 * (1 + 10 * double)  # of an agent step, with two updates for every four
    assert parts.limit(small, {"double": True, "gradient_steps": 2}) == pytest.approx(1000 / milliseconds)


def test_an_hour_of_learning_is_counted_in_the_steps_of_rates_that_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, rates = list[tuple[str, int]](), {"example": [1.0, 3.0, 2.0], "d3qn": [0.5, 0.25, 0.75]}

    def train(program: str, _rom: str, folder: Path, steps: int, _config: BenchmarkConfig) -> None:
        trained.append((program, steps))
        folder.mkdir(exist_ok=True)
        means = {"example": (2.0, 9.5, 7.0), "d3qn": (1.5, 99.0)}[program]  # d3qn went on behind its 1,800 steps
        rows = "".join(f"{number * 1_000},{mean}\n" for number, mean in enumerate(means, 1))
        (folder / "evaluations.csv").write_text("agent_step,mean\n" + rows)

    monkeypatch.setattr(learning, "_train", train)
    monkeypatch.setattr(learning, "in_turn", lambda programs, _: {name: rates[name] for name in programs})
    monkeypatch.setattr(learning, "peer_is_there", lambda: False)
    alone = BenchmarkConfig("learning", game="ALE/Pong-v5", device="cpu", run_dir=tmp_path / "hour")
    learning.learning(alone)
    assert trained == [("example", 7_200)]
    rates["example"] = [100.0]  # what is kept counts; what is missing is measured
    config = dataclasses.replace(alone, config="d3qn", programs=("d3qn",), figure=tmp_path / "hour.png")
    result = learning.learning(config)
    assert trained[1:] == [("d3qn", 1_800)]
    assert result["learning"][1]["evaluations"] == [(1_000, 2.0), (2_000, 9.5), (3_000, 7.0)]
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [["d3qn", "0.5", "1,800", "1,000", "1.5", "1.5"], ["example", "2.0", "7,200", "3,000", "7.0", "9.5"]]
    assert table[-2:] == rows
    lines = lines_of(learning.draw("pong", result["learning"]), 0)
    np.testing.assert_allclose(lines["the README's example"][:, 0], [1_000 / 120, 2_000 / 120, 3_000 / 120])
    assert list(lines["--config d3qn"][0]) == [1_000 / 30, 1.5]
    made, unmade = result["learning"][0], result["learning"][1] | {"evaluations": []}
    assert "the README's example" not in lines_of(learning.draw("pong", [made, unmade]), 0)
    kept = tmp_path / "hour" / "rates.json"
    right = kept.read_text()
    for text, fault in (
        (right.replace("1e-10", "1e-09"), "other constants of example"),
        (right.replace("cpu", "cuda:0"), "on another device than cpu"),
    ):
        kept.write_text(text)
        with pytest.raises(UsageError, match=fault):
            learning.learning(config)
    with pytest.raises(UsageError, match="there is no quick; there are d3qn, example, stable_baselines3"):
        dataclasses.replace(config, programs=("quick",)).check()


def flags_of(monkeypatch: pytest.MonkeyPatch, train: Callable[[], None]) -> list[str]:
    """The command line with which a training is started, after the script's name; nothing is started."""
    typed: list[str] = []

    def note(command: list[Any], check: bool) -> subprocess.CompletedProcess[bytes]:
        assert not check
        typed.extend(map(str, command[2:]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", note)
    train()
    return typed


def test_the_example_of_the_hour_is_that_of_the_readme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = BenchmarkConfig("learning", seed=7, device="cpu")
    flags = flags_of(monkeypatch, lambda: learning._train("example", "pong", tmp_path, 805, config))
    typed = (ROOT / "README.md").read_text().replace("\\\n", " ").split()
    words, trained = flags[: 2 * len(learning.EXAMPLE)], parse(Config, arguments=flags)
    assert any(typed[start : start + len(words)] == words for start in range(len(typed)))
    assert (trained.game, trained.seed, trained.steps, trained.evaluate_every) == ("pong", 7, 805, 80)
    assert (trained.run_dir, trained.device) == (tmp_path, "cpu")


def test_a_training_that_fails_and_a_peer_of_other_steps_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BenchmarkConfig("learning", config="quick", device="cpu")
    monkeypatch.setattr(subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 2))
    with pytest.raises(RunError, match="status 2; see the line above"):
        learning._train("quick", "pong", tmp_path, 120, config)
    (tmp_path / "evaluations.csv").write_text("agent_step,mean\n60,1.0\n")
    with pytest.raises(UsageError, match="had 60 agent steps, not 80"):
        learning._train_peer(PEER, "pong", tmp_path, 80, config)
    learning._train_peer(PEER, "pong", tmp_path, 60, config)  # trained already


def test_every_flag_of_the_benchmark_belongs_to_a_measurement() -> None:
    taken = {name for names in TAKES.values() for name in names}
    assert taken | {"what", "device", "json"} == {field.name for field in dataclasses.fields(BenchmarkConfig)}
