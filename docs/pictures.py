"""The pictures of docs/how_it_works.md: python -m docs.pictures FOLDER AGENT_STEPS (40,000 for those that are there)"""

import sys
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from q_agent_train import Config, set_up, step
from replay_memory import ReplayMemory
from runtime.networks import load_network
from runtime.run_config import with_file
from viewing.episodes import EpsilonGreedyPlayer, open_game, play_games

AGENT = Path(__file__).parent.parent / "pretrained" / "breakout.pt"
STEPS = 240  # agent steps that are played for the first three pictures: 16 seconds


def play() -> tuple[np.ndarray, list[str], ReplayMemory, np.ndarray]:
    """Play with the shipped agent: the last screen, the action names, the memory, the Q-values (STEPS, actions)."""
    network, q_values = load_network(AGENT), []
    player, memory = EpsilonGreedyPlayer(network, epsilon=0.05, seed=0), ReplayMemory(STEPS + 1, 1)
    with closing(open_game(AGENT, network)) as game:
        for number, played in enumerate(islice(play_games(player, game, seed=0), STEPS)):
            if number == 0:
                memory.start(0, played.states[:, -1])
            memory.append(played.actions, played.step)
            q_values.append(player.q_values[0])
            screen = game.take_screens()[-1]
        return screen, game.action_names, memory, np.array(q_values)


def draw_pictures(pictures: dict[str, np.ndarray]) -> Figure:
    """Pictures side by side, each with its title."""
    figure = Figure((10, 3.4), layout="constrained")
    for panel, (title, picture) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
        panel.imshow(picture, cmap="gray", vmin=0, vmax=255)
        panel.set_title(title)
        panel.set_axis_off()
    return figure


def draw_lines(x: np.ndarray, lines: dict[str, np.ndarray], xlabel: str, ylabel: str) -> Figure:
    figure = Figure((10, 3.2), layout="constrained")
    panel = figure.subplots()
    for name, values in lines.items():
        panel.plot(x, values, label=name)
    panel.set(xlabel=xlabel, ylabel=ylabel)
    panel.legend()
    return figure


def transition_rows(memory: ReplayMemory, action_names: list[str]) -> dict[str, np.ndarray]:
    """The frames of the rows around the newest transition with a reward, by what each row says."""
    newest = int(np.flatnonzero(memory.rewards[:, 0] * (memory.ages[:, 0] == 3))[-1])
    frames = {}
    for offset in range(-3, 2):
        row = newest + offset
        action, terminal = action_names[memory.actions[row, 0]], bool(memory.terminals[row, 0])
        states = ["state"] * (offset <= 0) + ["next state"] * (offset >= -2)
        lines = (f"row t{offset:+}", f"action {action}", f"reward {memory.rewards[row, 0]:g}", f"terminal {terminal}")
        frames["\n".join((*lines, f"in {', '.join(states)}"))] = memory.frames[row].numpy()
    return frames


def train(steps: int) -> np.ndarray:
    """Agent steps, and mean max Q by the online and the target network; `quick`, its periods shortened to `steps`."""
    config = with_file(Config(config="quick"))
    config.replay_size, config.replay_start_size, config.target_update_frequency = 40_000, steps // 4, steps // 10
    rows = []
    with closing(set_up(config, torch.device("cpu"))) as training:
        training.begin()
        while training.agent_steps < steps:
            step(training)
            if (states := training.held_out_states) is not None and training.agent_steps // 32 % 8 == 0:
                target = training.agent.target_network(states).amax(1).mean().item()
                rows.append((training.agent_steps, training.mean_max_q(), target))
    return np.array(rows, float).T


def main(folder: Path, steps: int) -> None:
    screen, action_names, memory, q_values = play()
    titles = ("three steps ago", "two steps ago", "one step ago", "now, 84x84")
    state = {"screen, 160x210": screen, **dict(zip(titles, memory.latest_states()[0].numpy(), strict=True))}
    values = dict(zip(action_names, q_values.T, strict=True))
    x, online, target = train(steps)
    networks = {"online network": online, "target network": target}
    figures = {
        "state": draw_pictures(state),
        "transition": draw_pictures(transition_rows(memory, action_names)),
        "q_values": draw_lines(np.arange(STEPS) / 15, values, "seconds of play", "Q-value"),
        "target_network": draw_lines(x, networks, "agent steps", "mean of max Q over 500 states"),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
