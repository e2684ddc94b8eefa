"""The pictures of docs/how_it_works.md: python -m docs.pictures FOLDER AGENT_STEPS (40,000 for those that are there)"""

import sys
from contextlib import closing
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from q_agent_train import Config, set_up, step
from replay_memory import ReplayMemory
from runtime.networks import load_network
from runtime.run_config import with_file
from viewing.episodes import EpsilonGreedyPlayer, open_game, play_games

AGENT = Path(__file__).parent.parent / "pretrained" / "breakout.pt"
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
STEPS = 240  # agent steps that are played for the first three pictures: 16 seconds


def play() -> tuple[np.ndarray, list[str], ReplayMemory, np.ndarray]:
    """Play with the shipped agent: the last screen, the action names, the memory, the Q-values (STEPS, actions)."""
    network, q_values = load_network(AGENT), list[np.ndarray]()
    player, memory = EpsilonGreedyPlayer(network, epsilon=0.05, seed=0), ReplayMemory(STEPS + 1, 1)
    with closing(open_game(AGENT, network)) as game:
        for number, played in enumerate(play_games(player, game, seed=0)):
            if number == 0:
                memory.start(0, played.states[:, -1])
            memory.append(played.actions, played.step)
            q_values.append(player.q_values[0])
            screen = game.take_screens()[-1]
            if number + 1 == STEPS:
                break
        return screen, game.action_names, memory, np.array(q_values)


def show(panel: Axes, picture: np.ndarray, title: str) -> None:
    panel.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    panel.set_title(title, fontsize=12)
    panel.set_xticks([])
    panel.set_yticks([])


def draw_state(screen: np.ndarray, memory: ReplayMemory) -> Figure:
    """What the emulator shows, and the four frames that the network is given."""
    figure = Figure((10, 2.9), layout="constrained")
    panels = figure.subplots(1, 5, width_ratios=[160 / 210, 1, 1, 1, 1])
    show(panels[0], screen, "screen, 160x210")
    titles = ("three steps ago", "two steps ago", "one step ago", "now, 84x84")
    for panel, frame, title in zip(panels[1:], memory.latest_states()[0].numpy(), titles, strict=True):
        show(panel, frame, title)
    return figure


def draw_transition(memory: ReplayMemory, action_names: list[str]) -> Figure:
    """The rows of the memory around the newest transition with a reward: frames, actions, rewards, terminals."""
    row = int(np.flatnonzero(memory.rewards[:, 0] * (memory.ages[:, 0] == 3))[-1])
    figure = Figure((10, 3.4), layout="constrained")
    for panel, offset in zip(figure.subplots(1, 5), range(-3, 2), strict=True):
        each, place = row + offset, {"transform": panel.transAxes, "clip_on": False}
        show(panel, memory.frames[each].numpy(), f"row t{offset:+}" if offset else "row t")
        action = action_names[memory.actions[each, 0]]
        text = f"action {action}\nreward {memory.rewards[each, 0]:g}\nterminal {bool(memory.terminals[each, 0])}"
        panel.text(0.5, -0.06, text, ha="center", va="top", color="gray" if offset else "black", **place)
        for height, colour, belongs in ((1.24, BLUE, offset <= 0), (1.34, ORANGE, offset >= -2)):
            panel.plot((-0.04, 1.04), (height, height), lw=5 * belongs, color=colour, **place)
    figure.suptitle("blue: the state s;  orange: the next state s'", fontsize=12)
    return figure


def draw_values(q_values: np.ndarray, action_names: list[str]) -> Figure:
    """The Q-value of each action along the play."""
    figure = Figure((10, 3.2), layout="constrained")
    panel = figure.subplots()
    for values, name, colour in zip(q_values.T, action_names, (BLUE, ORANGE, GREEN, RED), strict=True):
        panel.plot(np.arange(len(values)) / 15, values, color=colour, label=name)
    panel.set(xlabel="seconds of play", ylabel="Q-value")
    panel.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def draw_target(steps: int) -> Figure:
    """The average action value by the online and by the target network; `quick`, its periods shortened to `steps`."""
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
    figure = Figure((10, 3.2), layout="constrained")
    panel, (x, online, target) = figure.subplots(), np.array(rows, float).T
    panel.plot(x, online, color=BLUE, label="online network")
    panel.step(x, target, color=ORANGE, where="post", label="target network")
    panel.set(xlabel="agent steps", ylabel="mean of max Q over 500 states")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.legend(frameon=False)
    return figure


def main(folder: Path, steps: int) -> None:
    screen, action_names, memory, q_values = play()
    with mpl.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 110}):
        draw_state(screen, memory).savefig(folder / "state.png")
        draw_transition(memory, action_names).savefig(folder / "transition.png")
        draw_values(q_values, action_names).savefig(folder / "q_values.png")
        draw_target(steps).savefig(folder / "target_network.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
