"""The pictures of docs/how_it_works.md: python -m docs.pictures FOLDER AGENT_STEPS (40,000 for those that are there)"""

import sys
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
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
    figure = Figure((10, 3.4), dpi=110, layout="constrained")
    for panel, (title, picture) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
        panel.imshow(picture, cmap="gray", vmin=0, vmax=255)
        panel.set_title(title)
        panel.set_axis_off()
    return figure


def draw_lines(table: pd.DataFrame, **labels: str) -> Figure:
    figure = Figure((10, 3.2), dpi=110, layout="constrained")
    table.plot(ax=figure.subplots(), **labels)
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


def train(steps: int) -> pd.DataFrame:
    """Mean max Q of both networks by agent steps; `quick`, its periods shortened to `steps`."""
    config = with_file(Config(config="quick"))
    config.replay_size, config.replay_start_size, config.target_update_frequency = 40_000, steps // 4, steps // 10
    rows = {}
    with closing(set_up(config, torch.device("cpu"))) as training:
        training.begin()
        while training.agent_steps < steps:
            step(training)
            if (states := training.held_out_states) is not None and training.agent_steps // 32 % 8 == 0:
                target = training.agent.target_network(states).amax(1).mean().item()
                rows[training.agent_steps] = (training.mean_max_q(), target)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["online network", "target network"])


def main(folder: Path, steps: int) -> None:
    screen, action_names, memory, q_values = play()
    titles = ("three steps ago", "two steps ago", "one step ago", "now, 84x84")
    state = {"screen, 160x210": screen, **dict(zip(titles, memory.latest_states()[0].numpy(), strict=True))}
    draw_pictures(state).savefig(folder / "state.png")
    draw_pictures(transition_rows(memory, action_names)).savefig(folder / "transition.png")
    values = pd.DataFrame(q_values, index=np.arange(STEPS) / 15, columns=action_names)
    draw_lines(values, xlabel="seconds of play", ylabel="Q-value").savefig(folder / "q_values.png")
    labels = {"xlabel": "agent steps", "ylabel": "mean of max Q over 500 states"}
    draw_lines(train(steps), **labels).savefig(folder / "target_network.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
