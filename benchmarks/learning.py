"""What is learned in an hour: a config, the README's example, and Stable-Baselines3 with its zoo's constants."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from atari import FRAMES_PER_MINUTE, paper_scores
from benchmarks.common import (
    PEER,
    PROGRAMS,
    BenchmarkConfig,
    alone,
    changes_of_file,
    in_turn,
    peer_is_there,
    save_figure,
    spread,
)
from benchmarks.compare import measure_ours, measure_stable_baselines3, peer_games
from runtime.devices import choose_device
from runtime.exits import RunError, UsageError
from runtime.files import failing_clearly, lock_folder, write_csv, write_text
from runtime.flags import MOST, flag
from runtime.tables import EVALUATION_COLUMNS, evaluation_row, number_in, read_rows
from viewing.episodes import EPSILON, GAMES, MINUTES
from viewing.figures_tables import BLUE, GREY, ORANGE, VERMILLION
from wrappers import rom_name

HOUR_SECONDS = 3_600
EVALUATIONS = 10  # in the hour, evenly
SCRIPT = Path(__file__).parent.parent / "q_agent_train.py"
EXAMPLE = {
    "min_squared_gradient": 1e-10,
    "replay_size": 200_000,
    "replay_start_size": 10_000,
    "epsilon_decay_steps": 100_000,
}
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
AT_START = (  # constants of ours and of the peer's that a measurement of the rate has of its own
    *("replay_start_size", "epsilon_start", "epsilon_end"),
    *("learning_starts", "exploration_fraction", "exploration_final_eps"),
)
LOOKS = {  # what each is called, and its colour; a config is `--config NAME`, and blue
    "example": ("the README's example", ORANGE),
    PEER: ("Stable-Baselines3, its zoo's constants", VERMILLION),
}


def learning(config: BenchmarkConfig) -> dict[str, Any]:
    """Train each program for the agent steps that it makes in an hour, print what it scores, return it all.

    The rates are measured once, on the first game, and kept in the folder, so that the steps of the hour may be made at
    any pace.
    """
    rom = rom_name(config.game)
    programs = [*([config.config] if config.config else []), *PROGRAMS]
    chosen = [name for name in programs if name in (config.programs or programs)]
    if PEER in chosen and not peer_is_there():
        chosen.remove(PEER)
    rates, rows = _rates(config, programs, chosen), []
    for name in [name for name in programs if name in rates]:
        steps, folder = round(rates[name] * HOUR_SECONDS), config.run_dir / f"{rom}-seed{config.seed}-{Path(name).stem}"
        if name in chosen:
            (_train_peer if name == PEER else _train)(name, rom, folder, steps, config)
        end = (EVALUATIONS + 1) * (steps // EVALUATIONS)  # a run may have been made longer than its hour
        means = [(step, mean) for step, mean in _evaluations(folder) if step < end]
        rows.append({"program": name, "steps_per_second": rates[name], "agent_steps": steps, "evaluations": means})
    _print(rom, rows)
    if config.figure:
        save_figure(draw(rom, rows), config.figure)
    return {"learning": rows, "game": rom, "seed": config.seed}


def _constants(program: str) -> dict[str, Any]:
    """What a program learns with; our own by field of `Hyperparameters`."""
    return {"example": EXAMPLE, PEER: ZOO}.get(program) or changes_of_file(program)


def _rates(config: BenchmarkConfig, programs: list[str], chosen: list[str]) -> dict[str, float]:
    """Agent steps per second that the folder has, those of `chosen` measured where missing; raises `UsageError`."""
    file, device = config.run_dir / "rates.json", str(choose_device(config.device))
    known = json.loads(file.read_text()) if file.exists() else {}
    made_with = {name: json.dumps({"device": device, **_constants(name)}, default=str) for name in programs}
    if differing := [name for name in programs if name in known and known[name]["made_with"] != made_with[name]]:
        what = f"other constants of {differing[0]}, or on another device than {device}"
        raise UsageError(f"{file} was measured with {what}; choose another --run-dir")
    if missing := {name: _measurement(name, config.game) for name in chosen if name not in known}:
        for name, values in in_turn(missing, config).items():
            known[name] = {"made_with": made_with[name], **spread(values)}
        with failing_clearly(file):
            config.run_dir.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(known, indent=2) + "\n")
    return {name: row["median"] for name, row in known.items()}


def _measurement(program: str, game: str) -> Callable[[BenchmarkConfig], float]:
    """What measures its rate: its constants, but learning from the start, at the epsilon of every measurement."""
    constants = {name: value for name, value in _constants(program).items() if name not in AT_START}
    if program == PEER:
        return partial(measure_stable_baselines3, changes=constants)
    return partial(measure_ours, changes=constants | {"game": game})


def _train(program: str, rom: str, folder: Path, steps: int, config: BenchmarkConfig) -> None:
    """Make the steps of one of our programs, or those that are missing."""
    settings: dict[str, Any] = EXAMPLE if program == "example" else {"config": program}
    settings = settings | {"game": rom, "seed": config.seed, "steps": steps, "games": MOST, "device": config.device}
    settings |= {"evaluate_every": steps // EVALUATIONS, "run_dir": folder, "save_every_games": 0}
    flags = (word for name, value in settings.items() for word in (flag(name), str(value)))
    if status := subprocess.run([sys.executable, SCRIPT, *flags], check=False).returncode:
        refused = "see the line above" if status == 2 else "the same command resumes it"
        raise RunError(f"{folder} ended with status {status}; {refused}")


def _train_peer(_program: str, rom: str, folder: Path, steps: int, config: BenchmarkConfig) -> None:
    """Make the peer's steps; it does not resume, but begins anew."""
    made, last = _evaluations(folder), EVALUATIONS * (steps // EVALUATIONS)
    if made and made[-1][0] != last:
        raise UsageError(f"{folder} had {made[-1][0]:,.0f} agent steps, not {steps:,}; remove it to begin anew")
    if not made:
        with lock_folder(folder):
            alone(_train_stable_baselines3, rom, folder, steps, config.seed, config.device)


def _train_stable_baselines3(rom: str, folder: Path, steps: int, seed: int, device: str) -> None:
    """Train the peer as its zoo does; evaluate it on whole games with all their points, through its own wrappers."""
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


def _evaluations(folder: Path) -> list[tuple[float, float]]:
    """Agent step and mean score of each evaluation; none where the program has not begun."""
    file, columns = folder / "evaluations.csv", ("agent_step", "mean")
    if not file.exists():
        return []
    return read_rows(file, columns, lambda _, row: (number_in(row, "agent_step"), number_in(row, "mean")))


def _print(rom: str, rows: list[dict[str, Any]]) -> None:
    print(f"{rom:18} {'steps/s':>8} {'in an hour':>11} {'evaluated at':>12} {'last':>9} {'best':>9}")
    for row in rows:
        means = [mean for _, mean in row["evaluations"]]
        made = f"{row['evaluations'][-1][0]:12,.0f} {means[-1]:9.1f} {max(means):9.1f}" if means else f"{'not yet':>12}"
        print(f"{row['program']:18} {row['steps_per_second']:8.1f} {row['agent_steps']:11,} {made}")


def draw(rom: str, rows: list[dict[str, Any]]) -> Figure:
    """The evaluations of each program that has any, against the minutes at which its rate reaches them."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    panel = figure.subplots()
    for row in [row for row in rows if row["evaluations"]]:
        label, color = LOOKS.get(row["program"], (f"--config {row['program']}", BLUE))
        steps, means = np.array(row["evaluations"]).T
        panel.plot(steps / row["steps_per_second"] / 60, means, "o-", ms=4, color=color, label=label, clip_on=False)
    paper = paper_scores(rom)
    for name, score in (("human", paper.human), ("random agent", paper.random)) if paper else ():
        panel.axhline(score, color=GREY, linestyle=":", linewidth=1)
        panel.annotate(name, (0, score), (2, 2), textcoords="offset points", color=GREY, fontsize=9)
    panel.set(xlim=(0, 60), title=paper.game if paper else rom)
    panel.set(xlabel="minutes, at the rate of learning that was measured", ylabel="mean score of 30 games, ε 0.05")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(edgecolor="none")
    return figure
