"""The figures for which a network plays: the map of its last hidden layer, and the value along one game."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.signal import find_peaks  # type: ignore[import-untyped]
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE

from atari import MAX_EMULATOR_SEED, display_name
from runtime.exits import UsageError
from runtime.networks import load_network
from viewing.episodes import EPSILON, EpsilonGreedyPlayer, open_game, play_games
from viewing.figures_tables import BLUE, GREY

MAP_EVERY_STEPS = 4  # neighbouring states are too alike to spend points of the map on
SCREENS_ON_MAP = 8
SCREENS_ON_CURVE = 5
BATCH_STATES = 256


@dataclass
class Sight:
    """One agent step of play: the state (4, 84, 84) uint8, its value max Q, the screen it shows, what came of it.

    screen: in colour, (height, 160, 3) uint8; 210 high in most games.
    """

    state: np.ndarray
    value: float
    screen: np.ndarray
    life_lost: bool


class Watched:
    """A network that plays its game by the paper's protocol (epsilon 0.05, 5 minutes), and what it sees."""

    def __init__(self, state_dict: Path, seed: int):
        self.network = load_network(state_dict)
        self.rules = self.network.rules
        self.seed = seed
        self._filmed = open_game(state_dict, self.network)
        self.game = self._filmed.rom
        self._player = EpsilonGreedyPlayer(self.network, epsilon=EPSILON, seed=seed)

    def play(self, game: int = 0) -> Iterator[Sight]:
        """Play one game, game after game from other seeds, a `Sight` per agent step."""
        screen = np.zeros(0)

        def act(states: np.ndarray) -> np.ndarray:
            nonlocal screen
            # Here the film still shows this very state; sprites that are drawn every other frame are in one of the two.
            screen = np.maximum.reduce(self._filmed.take_screens()[-2:])
            return self._player(states)

        for played in play_games(act, self._filmed, seed=(self.seed + game) % MAX_EMULATOR_SEED):
            value = float(self._player.q_values.max())
            yield Sight(played.states[0], value, screen, bool(played.step.terminals[0]))

    def states_for_map(self, number: int) -> list[Sight]:
        """Every fourth state of as many games as are needed for `number` of them."""
        sights = (sight for game in count() for sight in self.play(game))
        return list(islice(sights, 0, number * MAP_EVERY_STEPS, MAP_EVERY_STEPS))

    @torch.no_grad()
    def features(self, sights: list[Sight]) -> np.ndarray:
        """The last hidden layer, (count, 512) float32."""
        states = torch.from_numpy(np.stack([sight.state for sight in sights]))
        return torch.cat([self.network.features(batch) for batch in states.split(BATCH_STATES)]).numpy()


def embed(features: np.ndarray, seed: int) -> np.ndarray:
    """The t-SNE of features (count, size): points (count, 2) float64, a function of both arguments."""
    # The map does not depend on the features' unit; of some, squares overflow or are 0, and scikit-learn crashes.
    points = TSNE(init="pca", random_state=seed).fit_transform(features / np.abs(features).max())
    return np.asarray(points, np.float64)


def spread_points(points: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Indices (number,) of points (count, 2) for all parts of the map, left to right: nearest to k-means' centres."""
    centres = KMeans(number, n_init=4, random_state=seed).fit(points).cluster_centers_
    return np.array(
        [((points - centre) ** 2).sum(axis=1).argmin() for centre in sorted(centres, key=lambda centre: centre[0])]
    )


def draw_embedding(player: Watched, number: int) -> Figure:
    """The map of `number` states, coloured by value, with screens; raises `UsageError` where there is none."""
    sights = player.states_for_map(number)
    features = player.features(sights)
    if not np.ptp(features, axis=0).any():
        raise UsageError("the last hidden layer is the same in every state: there is no map of this network to draw")
    points = embed(features, player.seed)
    values = [sight.value for sight in sights]
    figure = Figure(figsize=(10.5, 9), layout="constrained")
    figure.suptitle(f"{display_name(player.game)}: last hidden layer over {number:,} states (t-SNE)")
    panel = _draw_screens(figure, sights, points, spread_points(points, SCREENS_ON_MAP, player.seed), 4.5)
    low, high = np.percentile(values, [3, 97])  # the few states at a game's very start must not take all the colours
    style = {"cmap": "viridis", "vmin": low, "vmax": high, "linewidths": 0, "rasterized": True}
    drawn = panel.scatter(points[:, 0], points[:, 1], c=values, s=11, **style)
    panel.set_axis_off()
    figure.colorbar(drawn, ax=panel, location="bottom", shrink=0.7, aspect=40, extend="both", label="value (max Q)")
    return figure


def peaks_of(values: np.ndarray, number: int) -> np.ndarray:
    """Indices, in order, of up to `number` peaks that rise most above what is around them, none near another.

    Without a peak, as in a curve that only rises, the index of the largest value.
    """
    peaks, found = find_peaks(values, distance=max(1, len(values) // 20), prominence=0)
    highest = peaks[np.argsort(-found["prominences"], kind="stable")[:number]]
    return np.sort(highest) if len(highest) else np.array([values.argmax()])


def draw_value(player: Watched) -> Figure:
    """The value of every state along one game, with the screens at the curve's peaks."""
    sights = list(player.play())
    values = np.array([sight.value for sight in sights])
    points = np.column_stack([np.arange(len(values)), values])
    lost_lives = [step for step, sight in enumerate(sights) if sight.life_lost]
    note = " (dotted: a life is lost)" if lost_lives else ""
    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    figure.suptitle(f"{display_name(player.game)}: value along one game{note}")
    panel = _draw_screens(figure, sights, points, peaks_of(values, SCREENS_ON_CURVE), 1.3)
    panel.plot(values, color=BLUE, linewidth=1.3)
    for step in lost_lives:
        panel.axvline(step, color=GREY, linestyle=":", linewidth=1.3, zorder=0)
    panel.margins(x=0.01, y=0.15)
    rate = player.rules.steps_per_second
    panel.set(xlabel=f"agent steps ({rate:g} per second of play)", ylabel="value (max Q)")
    panel.spines["top"].set_visible(False)
    return figure


def _draw_screens(
    figure: Figure, sights: Sequence[Sight], points: np.ndarray, chosen: np.ndarray, height: float
) -> Axes:
    """Draw a row of numbered screens; returns a panel, `height` times as high, with the numbers at their points."""
    grid = figure.add_gridspec(2, len(chosen), height_ratios=[1, height])
    panel = figure.add_subplot(grid[1, :])
    style = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "alpha": 0.8}
    for column, index in enumerate(chosen):
        thumb = figure.add_subplot(grid[0, column], xticks=[], yticks=[])
        thumb.imshow(sights[index].screen)
        thumb.set_title(f"{column + 1}: value {sights[index].value:.3g}", fontsize=11)
        panel.annotate(str(column + 1), points[index], (0, 9), textcoords="offset points", ha="center", bbox=style)
        panel.plot(*points[index], "o", markersize=8, markerfacecolor="none", markeredgecolor="black")
    return panel
