"""Stable-Baselines3's DQN, measured and trained with the constants of its zoo."""

import importlib.util
from pathlib import Path
from typing import Any

import ale_py

from atari import FRAMES_PER_MINUTE, display_name
from benchmarks.common import EPSILON, GAME, WARM_UP_STEPS, BenchmarkConfig, rate
from runtime.devices import choose_device
from runtime.files import write_csv
from viewing.episodes import EPSILON as EVALUATION_EPSILON
from viewing.episodes import GAMES, MINUTES
from wrappers import rom_name

PEER = "stable_baselines3"
EVALUATIONS = 10  # in the hour, evenly
# rl-baselines3-zoo, hyperparams/dqn.yml, atari; its wrapper and stacked frames stand in `peer_games`, and the rest are
# the defaults of the version that requirements-benchmark.txt pins.
ZOO: dict[str, Any] = {
    "buffer_size": 100_000,
    "learning_starts": 100_000,
    "target_update_interval": 1_000,
    "exploration_final_eps": 0.01,
}


def peer_is_there() -> bool:
    """Whether Stable-Baselines3 is installed; says how where it is not."""
    there = importlib.util.find_spec(PEER) is not None
    if not there:
        print(f"{PEER} is not installed and left out: pip install -r requirements-benchmark.txt")
    return there


def peer_games(game: str, count: int, seed: int, **more: Any) -> Any:
    """Games as Stable-Baselines3 plays them, side by side, four frames a state; `more` for its `make_atari_env`."""
    import gymnasium
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)
    name = f"{display_name(rom_name(game))}NoFrameskip-v4"
    return VecFrameStack(make_atari_env(name, n_envs=count, seed=seed, **more), n_stack=4)


def measure_peer(config: BenchmarkConfig) -> float:
    """Its agent steps per second, with its own preprocessing, and the memory and epsilon of ours."""
    from stable_baselines3 import DQN

    epsilons: dict[str, Any] = {"exploration_initial_eps": EPSILON, "exploration_final_eps": EPSILON}
    sizes = {"buffer_size": config.replay_size, "learning_starts": WARM_UP_STEPS}
    games, device = peer_games(GAME, 1, seed=0), str(choose_device(config.device))
    model = DQN("CnnPolicy", games, device=device, **sizes, **epsilons)
    model.learn(WARM_UP_STEPS)
    return rate(lambda: model.learn(100, reset_num_timesteps=False), lambda: model.num_timesteps, config)


def train_peer(config: BenchmarkConfig, folder: Path, steps: int) -> None:
    """Train it as its zoo does; evaluate it on whole games with all their points, through its own wrappers.

    The evaluations are written at the end; a run that was interrupted begins anew.
    """
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback, EveryNTimesteps
    from stable_baselines3.common.evaluation import evaluate_policy

    file = folder / "evaluations.csv"
    if file.exists():
        return
    whole = {"clip_reward": False, "terminal_on_life_loss": False}
    limit = {"max_num_frames_per_episode": MINUTES * FRAMES_PER_MINUTE}
    rows: list[dict[str, float]] = []

    class Evaluation(BaseCallback):
        def _on_step(self) -> bool:
            # Seeds that no training has: its own count from `seed`.
            seed = 1_000_000 + 1_000 * len(rows)
            games = peer_games(config.game, GAMES, seed, wrapper_kwargs=whole, env_kwargs=limit)
            model: Any = self.model
            explored, model.exploration_rate = model.exploration_rate, EVALUATION_EPSILON
            mean, _ = evaluate_policy(model, games, GAMES, deterministic=False)
            model.exploration_rate = explored
            games.close()
            rows.append({"agent_step": self.num_timesteps, "mean": float(mean)})
            print(f"{PEER}: {mean:.1f} after {self.num_timesteps:,} of {steps:,} agent steps", flush=True)
            return True

    games, device = peer_games(config.game, 1, config.seed), str(choose_device(config.device))
    model = DQN("CnnPolicy", games, seed=config.seed, device=device, **ZOO)
    model.learn(steps, callback=EveryNTimesteps(steps // EVALUATIONS, Evaluation()))
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(file, ("agent_step", "mean"), rows)
