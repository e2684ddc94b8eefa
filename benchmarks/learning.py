"""What is learned in an hour: a config, the README's example, and Stable-Baselines3 with its zoo's constants."""

import json
import subprocess
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from atari import FRAMES_PER_MINUTE, paper_scores
from benchmarks.common import PEER, PROGRAMS, ROOT, BenchmarkConfig, alone, in_turn, peer_is_there, save_figure, spread
from benchmarks.compare import measure_ours, measure_stable_baselines3, peer_games
from config import Hyperparameters, RunConfig, with_words, words_of_file
from machine.devices import choose_device
from machine.exits import RunError, UsageError
from machine.files import failing_clearly, lock_folder, write_csv, write_text
from machine.flags import MOST
from machine.tables import EVALUATION_COLUMNS, evaluation_row, number_in, read_rows
from showing.episodes import EPSILON, GAMES, MINUTES
from showing.figures_tables import BLUE, GREY, ORANGE, VERMILLION
from wrappers import rom_name

HOUR_SECONDS = 3_600
EVALUATIONS = 10  # in the hour, evenly
EXAMPLE = (
    *("--rmsprop-minimum", "1e-10", "--replay-size", "200000", "--replay-start-size", "10000"),
    *("--epsilon-decay-steps", "100000"),
)
# rl-baselines3-zoo, hyperparams/dqn.yml, atari; its wrapper and stacked frames stand in `_train_stable_baselines3`.
ZOO: dict[str, Any] = {
    "policy": "CnnPolicy",
    "buffer_size": 100_000,
    "learning_rate": 1e-4,
    "batch_size": 32,
    "learning_starts": 100_000,
    "target_update_interval": 1_000,
    "train_freq": 4,
    "gradient_steps": 1,
    "exploration_fraction": 0.1,
    "exploration_final_eps": 0.01,
    "optimize_memory_usage": False,
}
LOOKS = {  # what each is called, and its colour; a config is `--config NAME`, and blue
    "example": ("the README's example", ORANGE),
    PEER: ("Stable-Baselines3, its zoo's constants", VERMILLION),
}


def learning(config: BenchmarkConfig) -> dict[str, Any]:
    """Train each program for the agent steps that it makes in an hour, print what it scores, return it all.

    The rates are measured once and kept in the folder, so that the steps of the hour may be made at any pace.
    """
    rom = rom_name(config.game)
    there = [name for name in PROGRAMS if name != PEER or peer_is_there()]
    programs = [*([config.config] if config.config else []), *there]
    constants = {name: _constants(name) for name in programs}
    rates, rows = _rates(config, constants), []
    for name in programs:
        steps, folder = round(rates[name] * HOUR_SECONDS), config.run_dir / f"{rom}-seed{config.seed}-{Path(name).stem}"
        if not config.programs or name in config.programs:
            _train(name, constants[name], rom, folder, steps, config)
        means = _evaluations(folder / "evaluations.csv")
        rows.append({"program": name, "steps_per_second": rates[name], "agent_steps": steps, "evaluations": means})
    _print(rom, rows)
    if config.figure:
        save_figure(draw(rom, rows), config.figure)
    return {"learning": rows, "game": rom, "seed": config.seed}


def _constants(program: str) -> list[str]:
    """The command line of our own programs, the constants of the peer."""
    if program == PEER:
        return [f"{name}={value}" for name, value in ZOO.items()]
    return [*EXAMPLE] if program == "example" else words_of_file(program)


def _rates(config: BenchmarkConfig, constants: dict[str, list[str]]) -> dict[str, float]:
    """Agent steps per second of each program: what the folder says, else measured now; raises `UsageError`."""
    file = config.run_dir / "rates.json"
    try:
        known = json.loads(file.read_text()) if file.exists() else {}
        differing = [name for name in constants if name in known and known[name]["constants"] != constants[name]]
        rates = {name: float(row["median"]) for name, row in known.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} does not say the rates ({error!r}); remove it to measure them again") from None
    if differing:
        raise UsageError(f"{file} was measured with other constants of {differing[0]}; choose another --run-dir")
    missing = {name: _measurement(name, words, config) for name, words in constants.items() if name not in rates}
    if missing:
        measured = {name: spread(values) for name, values in in_turn(missing, config).items()}
        known |= {name: {"constants": constants[name], **row} for name, row in measured.items()}
        rates |= {name: row["median"] for name, row in measured.items()}
        with failing_clearly(file):
            config.run_dir.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(known, indent=2) + "\n")
    return rates


def _measurement(program: str, words: list[str], config: BenchmarkConfig) -> Any:
    if program == PEER:
        return measure_stable_baselines3
    parsed = with_words(RunConfig(config.game), words, program)
    changes = {field.name: getattr(parsed, field.name) for field in fields(Hyperparameters)}
    for name in ("replay_start_size", "epsilon_start", "epsilon_end"):  # measured where it learns, at its usual epsilon
        del changes[name]
    return partial(measure_ours, changes=changes)


def _train(program: str, constants: list[str], rom: str, folder: Path, steps: int, config: BenchmarkConfig) -> None:
    """Make a program's steps, or those that are missing; the peer, which cannot go on, begins anew."""
    every = steps // EVALUATIONS
    if program == PEER:
        if not (folder / "evaluations.csv").exists():
            with lock_folder(folder):
                alone(_train_stable_baselines3, rom, folder, steps, config.seed, config.device)
        return
    words = ["--game", rom, "--seed", config.seed, "--steps", steps, "--games", MOST, "--evaluate-every", every]
    more = ["--run-dir", folder, "--save-every-games", 0, "--device", config.device]
    command = [sys.executable, ROOT / "q_agent_train.py", *constants, *words, *more]
    if status := subprocess.run([*map(str, command)], check=False).returncode:
        raise RunError(f"{folder} ended with status {status}; the same command goes on with it")


def _train_stable_baselines3(rom: str, folder: Path, steps: int, seed: int, device: str) -> None:
    """Train the peer as its zoo does; evaluate it on whole games with all their points, behind its own wrappers."""
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback, EveryNTimesteps
    from stable_baselines3.common.evaluation import evaluate_policy

    whole = {"clip_reward": False, "terminal_on_life_loss": False}
    limit = {"max_num_frames_per_episode": MINUTES * FRAMES_PER_MINUTE}
    rows: list[dict[str, Any]] = []

    class Evaluation(BaseCallback):
        def _on_step(self) -> bool:
            # Seeds that no training has: its own count from `seed`.
            seed_here = 1_000_000 + 1_000 * len(rows)
            games = peer_games(rom, GAMES, seed_here, wrapper_kwargs=whole, env_kwargs=limit)
            model: Any = self.model
            explored, model.exploration_rate = model.exploration_rate, EPSILON
            scores, _ = evaluate_policy(model, games, GAMES, deterministic=False, return_episode_rewards=True)
            model.exploration_rate = explored
            games.close()
            row = evaluation_row(self.num_timesteps, np.array(scores), None)
            rows.append(dict(zip(EVALUATION_COLUMNS, row, strict=True)))
            print(f"{rom}: {rows[-1]['mean']:.1f} after {self.num_timesteps:,} of {steps:,} agent steps", flush=True)
            return True

    model = DQN(env=peer_games(rom, 1, seed), seed=seed, device=str(choose_device(device)), **ZOO)
    model.learn(steps, callback=EveryNTimesteps(steps // EVALUATIONS, Evaluation()))
    write_csv(folder / "evaluations.csv", EVALUATION_COLUMNS, rows)


def _evaluations(file: Path) -> list[tuple[float, float]]:
    """Agent step and mean score of each evaluation; none where the program has not begun."""
    if not file.exists():
        return []
    return read_rows(
        file, ("agent_step", "mean"), lambda _, row: (number_in(row, "agent_step"), number_in(row, "mean"))
    )


def _print(rom: str, rows: list[dict[str, Any]]) -> None:
    print(f"{rom:18} {'steps/s':>8} {'in an hour':>11} {'last':>9} {'best':>9}")
    for row in rows:
        means = [mean for _, mean in row["evaluations"]]
        last, best = (f"{value:9.1f}" for value in (means[-1], max(means))) if means else (" not made", "")
        print(f"{row['program']:18} {row['steps_per_second']:8.1f} {row['agent_steps']:11,} {last} {best}")


def draw(rom: str, rows: list[dict[str, Any]]) -> Figure:
    """The evaluations of each program that has any, against the minutes at which its rate reaches them."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    panel = figure.subplots()
    for row in [row for row in rows if row["evaluations"]]:
        label, color = LOOKS.get(row["program"], (f"--config {row['program']}", BLUE))
        steps, means = np.array(row["evaluations"]).T
        panel.plot(steps / row["steps_per_second"] / 60, means, "o-", ms=4, color=color, label=label)
    paper = paper_scores(rom)
    for name, score in (("human tester", paper.human), ("random play", paper.random)) if paper else ():
        panel.axhline(score, color=GREY, linestyle=":", linewidth=1)
        panel.annotate(name, (0, score), (2, 2), textcoords="offset points", color=GREY, fontsize=9)
    panel.set(xlim=(0, 60), title=paper.game if paper else rom)
    panel.set(xlabel="minutes, at the rate of learning that was measured", ylabel="mean score of 30 games, ε 0.05")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(edgecolor="none")
    return figure
