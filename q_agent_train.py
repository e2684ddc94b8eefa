"""Train the DQN of Mnih et al., Nature 2015, on an Atari game: python q_agent_train.py --help"""

import dataclasses
import datetime
import math
import numbers
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from errors import RunError, UsageError, exit_with
from q_agent import choose_device, keep_freed_memory
from replay_memory import check_size
from run import Run
from run_folder import RunFolder, read_config
from training import Hyperparameters, Training
from wrappers import rom_name

GAME = "BreakoutNoFrameskip-v4"  # edit this line to change the game, or name another with --game

MAY_CHANGE = ("games", "steps", "device", "run_dir")  # the flags that lengthen a run or move it


@dataclass
class Config(Hyperparameters):
    """Train the DQN of Mnih et al., Nature 2015, on an Atari game. The defaults are the paper's."""

    game: str = GAME
    """The game, by any of its names: BreakoutNoFrameskip-v4, ALE/Breakout-v5, Breakout, breakout."""
    games: int = 15_000
    """Whole games to play; the run ends at this or at --steps, whichever comes first."""
    steps: int = 50_000_000
    """Agent steps to play, of 4 frames each (run_gpu: steps)."""
    device: str = "auto"
    """Where the network and the memory live: cuda, mps, cpu, or auto for the first of them that is there."""
    run_dir: Path | None = None
    """Folder of the run: a new one, or one to go on with. Default: runs/<game>-<date>-<time>-seed<seed>."""
    save_every_games: int = 50
    """Finished games between state dicts in state_dicts/."""
    checkpoint_minutes: float = 5.0
    """Minutes of wall time between checkpoints."""

    def __post_init__(self) -> None:
        # In a notebook 1 may stand for 1.0, 1e6 for 1_000_000, and NumPy's numbers for Python's.
        for field in dataclasses.fields(self):
            kind, value = type(field.default), getattr(self, field.name)
            is_number = isinstance(value, numbers.Real) and math.isfinite(value)
            if kind in (int, float) and is_number and kind(value) == value:
                setattr(self, field.name, kind(value))

    def check(self) -> None:
        """Raise `UsageError` for a value that cannot be, before anything is made."""
        rom_name(self.game)
        for name in ("games", "steps", "save_every_games"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)} cannot be: it must be 1 or more")
        if not (math.isfinite(self.checkpoint_minutes) and self.checkpoint_minutes > 0):
            raise UsageError(f"--checkpoint-minutes {self.checkpoint_minutes} cannot be: it must be above 0")
        super().check()

    def as_json(self) -> dict[str, Any]:
        """The config as config.json holds it; the folder it stands in is its run_dir."""
        values = dataclasses.asdict(self)
        del values["run_dir"]
        return values


def config_of_run(run_dir: Path) -> Config | None:
    """The config that a run folder was made with; None for a folder without one. Raises `RunError` if broken."""
    values = read_config(run_dir)
    if values is None:
        return None
    known = Config().as_json()
    odd = values.keys() ^ known.keys() or {name for name in known if type(values[name]) is not type(known[name])}
    if odd:
        names = ", ".join(sorted(odd))
        raise RunError(f"{run_dir}/config.json is from another version of this project ({names}); use that version")
    return Config(**values, run_dir=run_dir)


def check_continuation(saved: Config, config: Config) -> None:
    """Raise `UsageError` where `config` asks a run for something else than it was begun with."""
    for field in dataclasses.fields(Config):
        before, now = getattr(saved, field.name), getattr(config, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        if field.name in ("games", "steps") and now < before:
            raise UsageError(f"{flag} {now} would shorten {config.run_dir}, which was begun with {before}; it may grow")
        if field.name == "game" and rom_name(now) == rom_name(before):
            continue
        if field.name not in MAY_CHANGE and now != before:
            raise UsageError(
                f"{flag} {now} contradicts {config.run_dir}, which was begun with {before}; leave the flag out to go "
                "on with the run, or choose another --run-dir"
            )


def train(config: Config) -> Path:
    """Train as `config` says, or go on with the run in its folder; returns the run folder.

    Raises `UsageError` for what cannot be done and `RunError` for what fails on the way.
    """
    config.check()
    device = choose_device(config.device)
    run_dir = Path(config.run_dir) if config.run_dir else _new_run_dir(config)
    saved = config_of_run(run_dir)
    if saved:
        check_continuation(saved, config)
    check_size(config.replay_size, config.num_envs, device)
    _set_up_torch(config)
    folder = RunFolder(run_dir)
    try:
        training = Training(config, device)
        try:
            Run(config, training, folder).go()
        finally:
            training.close()
    finally:
        folder.close()
    return run_dir


def _set_up_torch(config: Config) -> None:
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.allow_tf32 = False  # the paper's arithmetic is float32; convolutions would round to tf32
    keep_freed_memory()


def _new_run_dir(config: Config) -> Path:
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{rom_name(config.game)}-{now}-seed{config.seed}"


def main() -> None:
    """The command line: flags, or the config of the run that --run-dir names."""
    config = tyro.cli(Config)
    saved = config_of_run(config.run_dir) if config.run_dir else None
    if saved:
        config = tyro.cli(Config, default=saved)
    train(config)


if __name__ == "__main__":
    exit_with(main)
