"""What is learned in an hour by this project and by Stable-Baselines3 with its zoo's constants."""

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from atari import paper_scores
from benchmarks.common import BenchmarkConfig, measure_ours, print_table, rates_in_turn, save_figure, values_of_file
from benchmarks.peer import EVALUATIONS, PEER, measure_peer, peer_is_there, train_peer
from runtime.exits import RunError
from runtime.files import write_text
from runtime.flags import MOST
from wrappers import rom_name

HOUR_SECONDS = 3_600
SCRIPT = Path(__file__).parent.parent / "q_agent_train.py"


def learning(config: BenchmarkConfig) -> None:
    """Train each program for the agent steps that it makes in an hour, and print what it scores.

    The rates are measured once and kept in the folder, so that the steps of the hour may be made at any pace.
    """
    changes = (values_of_file(config.config) if config.config else {}) | {"game": config.game}
    ours = Path(config.config).stem if config.config else "paper"
    programs: dict[str, Any] = {ours: partial(measure_ours, changes=changes)}
    if peer_is_there():
        programs[PEER] = measure_peer
    file, rom = config.run_dir / "rates.json", rom_name(config.game)
    rates = json.loads(file.read_text()) if file.exists() else {}
    if missing := {name: measure for name, measure in programs.items() if name not in rates}:
        rates |= rates_in_turn(missing, config)["median"].to_dict()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(rates) + "\n")
    scores, rows = {}, []
    for name in programs:
        steps, folder = round(rates[name] * HOUR_SECONDS), config.run_dir / f"{rom}-seed{config.seed}-{name}"
        (train_peer if name == PEER else train_ours)(config, folder, steps)
        evaluations = pd.read_csv(folder / "evaluations.csv")
        scores[name] = evaluations["mean"].set_axis(evaluations["agent_step"] / rates[name] / 60)
        rows.append((name, steps, scores[name].iloc[-1], scores[name].max()))
    print_table(pd.DataFrame(rows, columns=[f"{rom}, seed {config.seed}", "agent steps", "last", "best"]))
    if config.figure:
        save_figure(draw_learning(rom, scores), config.figure)


def train_ours(config: BenchmarkConfig, folder: Path, steps: int) -> None:
    """Make the steps, or those that are missing, with the training script."""
    command = [sys.executable, SCRIPT, "--game", config.game, "--seed", config.seed, "--device", config.device]
    command += ["--steps", steps, "--games", MOST, "--evaluate-every", steps // EVALUATIONS]
    command += ["--run-dir", folder, "--save-every-games", 0]
    if config.config:
        command += ["--config", config.config]
    if status := subprocess.run([str(word) for word in command], check=False).returncode:
        raise RunError(f"the training in {folder} ended with status {status}; the same command resumes it")


def draw_learning(rom: str, scores: Mapping[str, pd.Series]) -> Figure:
    """The mean scores of each program, against the minutes at which its rate reaches them."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    panel = figure.subplots()
    for name, means in scores.items():
        panel.plot(means.index, means, "o-", label=name)
    if paper := paper_scores(rom):
        panel.axhline(paper.human, color="gray", linestyle="--", label="human")
        panel.axhline(paper.random, color="gray", linestyle=":", label="random agent")
    panel.set(title=rom, xlabel="minutes, at the rate that was measured", ylabel="mean score of 30 games, ε 0.05")
    panel.legend()
    return figure
