"""What each relative of the network costs: agent steps per second of training with one flag after the other."""

from functools import partial
from typing import Any

from benchmarks.common import RATE_HEADER, BenchmarkConfig, alone, changes_of_file, in_turn, rate_columns, spread
from benchmarks.compare import measure_ours
from benchmarks.parts import limit

PAPER = "the paper's"
OPTIONS: dict[str, dict[str, Any]] = {
    PAPER: {},
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
CONFIGS = ("d3qn", "efficient-d3qn")  # with their own minibatch and updates per step
OWN_SIZES = ("game", "num_envs", "replay_size", "replay_start_size", "epsilon_start", "epsilon_end")


def relatives(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure every option in turn, round by round, and print the table."""
    options = dict(OPTIONS)
    for name in CONFIGS:
        changes = changes_of_file(name)
        options[f"--config {name}"] = {key: value for key, value in changes.items() if key not in OWN_SIZES}
    rates = in_turn({name: partial(measure_ours, changes=changes) for name, changes in options.items()}, config)
    result = {name: spread(values) | {"limit": alone(limit, config, options[name])} for name, values in rates.items()}
    print(f"{'agent steps per second':24} {RATE_HEADER} {'ratio':>6}")
    for name, row in result.items():
        print(f"{name:24} {rate_columns(row)} {row['median'] / result[PAPER]['median']:6.2f}")
    return {"relatives": result}
