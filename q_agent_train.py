"""Train the DQN of Mnih et al., Nature 2015, on an Atari game: python q_agent_train.py --help"""

from runtime.exits import StopSignal, exit_with  # isort: skip  # first: runtime/ says which Python is needed
import socket
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from atari import FinishedGame
from config import Hyperparameters
from relatives.chosen import agent_for, attach_relatives, memory_for, network_for, optimizer_for
from runtime.cuda_graphs import capture_cuda_graphs
from runtime.run import Run, command_line, prepare
from runtime.run_config import RunConfig
from runtime.run_folder import RunFolder
from runtime.webhook import Webhook
from training import Training
from wrappers import AtariGames

GAME = "BreakoutNoFrameskip-v4"  # edit this line to change the game, or name another with --game


@dataclass
class Config(RunConfig):
    """Train the DQN of Mnih et al., Nature 2015, on an Atari game. The defaults are the paper's."""

    game: str = GAME
    """The game, by any of its names: BreakoutNoFrameskip-v4, ALE/Breakout-v5, Breakout, breakout."""


def set_up(parameters: Hyperparameters, device: torch.device) -> Training:
    """The network with random weights, the empty replay memory, the games: all that a training begins with."""
    games = AtariGames(parameters.rom, parameters.num_envs, parameters.rules)
    memory = memory_for(parameters, device)
    torch.manual_seed(parameters.seed)
    network = network_for(parameters, games).to(device)
    agent = agent_for(parameters, network, optimizer_for(parameters, network))
    if device.type == "cuda":
        capture_cuda_graphs(agent)
    training = Training(parameters, games, memory, agent)
    attach_relatives(training)
    return training


def step(training: Training) -> list[FinishedGame]:
    """One vector step: an agent step of every environment, as `perceive` orders it (paper, Algorithm 1).

    Act, learn from what is stored, then store; returns the games that ended. Play is random (epsilon 1) for
    `replay_start_size` agent steps. From then on there is an update for every 4 agent steps: 8 for 32 environments.
    """
    agent, memory, games, parameters = training.agent, training.memory, training.games, training.parameters
    training.hold_out_states_when_due()  # once, for the log: 500 states whose mean max Q is followed
    actions = agent.act(memory.latest_states(), training.epsilon, training.generators["exploration"])
    games.send(actions)  # the emulators run in threads of their own ...
    if updates := training.updates_due:  # ... while the network learns: all minibatches are drawn at once
        for _ in range(parameters.gradient_steps):  # 1 in the paper
            agent.learn(memory.sample(updates * parameters.minibatch_size, training.generators["sampling"]))
    played = games.receive()
    memory.append(actions, played)
    if training.target_copy_is_due:  # every 10,000 agent steps
        agent.copy_target()
    training.advance(actions, played)  # the action log, the counters, the clock: what is due in the next step
    return played.finished


def train(config: Config, saved: Config | None = None) -> Path:
    """Train as `config` says, or resume the run in its folder; returns it. Raises `UsageError` and `RunError`.

    saved: the config of that run, where it has been read.
    """
    device, run_dir = prepare(config, saved)
    subject = f"{run_dir.resolve().name} on {socket.gethostname()}: {config.rom}"
    with Webhook(config.webhook, subject) as webhook, RunFolder(run_dir) as folder:
        if not folder.checkpoints.exists():  # said first: starting the emulators takes seconds
            print(f"Training on {config.rom}, device {device}: {run_dir}")
        with (
            closing(set_up(config, device)) as training,
            StopSignal() as stop,
            Run(config, training, folder, stop, webhook) as run,
        ):
            if not run.begin():  # anew, or from the newest checkpoint
                return run_dir
            while True:
                if training.evaluation_is_due and not run.evaluate():  # the best network is kept
                    break  # a signal came; the evaluation is still due when the run is resumed
                training.reseed_when_due()
                if stop or training.agent_steps >= config.steps or training.games_finished >= config.games:
                    break
                run.record(step(training))  # a row per game, a state dict every 50 games
                run.save_checkpoint_when_due()
            run.end()
        run.say_where_things_are()
        return run_dir


def main() -> None:
    train(*command_line(Config))


if __name__ == "__main__":
    exit_with(main, smaller="--replay-size, --num-envs or --minibatch-size")
