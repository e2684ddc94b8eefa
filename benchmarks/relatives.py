"""What each relative of the network costs: agent steps per second of training with one flag after the other."""

from dataclasses import fields
from functools import partial
from typing import Any

from benchmarks.common import BenchmarkConfig, alone, in_turn, spread
from benchmarks.compare import measure_ours
from benchmarks.parts import limit
from config import Hyperparameters
from q_agent_train import Config
from runtime.run_config import with_file

OPTIONS: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "--network nips2013": {"network": "nips2013"},
    "--dueling": {"dueling": True},
    "--separable": {"separable": True},
    "--double": {"double": True},
    "--prioritized": {"prioritized": True},
    "--no-target-network": {"target_network": False},
    "--optimizer adam": {"optimizer": "adam"},
    "--learning-rate-end": {"learning_rate_end": 1e-5, "learning_rate_steps": 1_000_000},
    "--gradient-steps 4": {"gradient_steps": 4},
    "--frames-per-step 8": {"frames_per_step": 8},
}
OWN_SIZES = ("game", "num_envs", "replay_size", "replay_start_size", "epsilon_start", "epsilon_end")


def relatives(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure every option in turn, round by round, and print the table; configs with their own minibatch and ratio."""
    options = dict(OPTIONS)
    for name in ("d3qn", "efficient-d3qn"):
        config_of_file = vars(with_file(Config(config=name)))
        learned = {field.name for field in fields(Hyperparameters)}.difference(OWN_SIZES)
        options[f"--config {name}"] = {key: config_of_file[key] for key in learned}
    rates = in_turn({name: partial(measure_ours, changes=changes) for name, changes in options.items()}, config)
    print(f"{'agent steps per second':24} {'median':>8} {'minimum':>8} {'maximum':>8} {'ratio':>6} {'of limit':>9}")
    result = {name: spread(values) | {"limit": alone(limit, config, options[name])} for name, values in rates.items()}
    for name, row in result.items():
        ratio = row["median"] / result["the paper's"]["median"]
        print(f"{name:24} {row['median']:8.1f} {row['minimum']:8.1f} {row['maximum']:8.1f} {ratio:6.2f}", end="")
        print(f" {row['median'] / row['limit']:9.0%}")
    return {"relatives": result}
