"""The figures for which a network plays: the map of its last hidden layer, and the value along one game."""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from matplotlib.ticker import Formatter
from matplotlib.transforms import Transform
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from scipy.spatial.distance import cdist  # type: ignore[import-untyped]
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE

from atari import MAX_EMULATOR_SEED, display_name
from runtime.exits import UsageError
from runtime.networks import load_network
from viewing.episodes import EPSILON, EpsilonGreedyPlayer, open_game, play_games

MAP_EVERY_STEPS = 4  # neighbouring states are too alike to spend points of the map on
PERPLEXITY = 30  # scikit-learn's default
SCREENS_ON_MAP = 8
SCREENS_ON_CURVE = 5
BATCH_STATES = 256
BLUE, GREY = "#0072B2", "#8C8C8C"  # of Okabe and Ito's colours


@dataclass
class Sight:
    """One agent step of play: the state (4, 84, 84) uint8, its value max Q, the screen it shows, what came of it."""

    state: np.ndarray
    value: float
    compressed_screen: bytes
    life_lost: bool

    @property
    def screen(self) -> np.ndarray:
        """The screen in colour, (height, 160, 3) uint8; 210 high in most games."""
        return np.frombuffer(zlib.decompress(self.compressed_screen), np.uint8).reshape(-1, 160, 3)


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
        screen = b""

        def act(states: np.ndarray) -> np.ndarray:
            nonlocal screen
            # Here the film still shows this very state; sprites that are drawn every other frame are in one of the two.
            screen = zlib.compress(np.maximum.reduce(self._filmed.take_screens()[-2:]).tobytes(), 1)
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
        batches = (sights[begin : begin + BATCH_STATES] for begin in range(0, len(sights), BATCH_STATES))
        states = (torch.from_numpy(np.stack([sight.state for sight in batch])) for batch in batches)
        return np.concatenate([self.network.features(batch).numpy() for batch in states])

    def close(self) -> None:
        self._filmed.close()


def embed(features: np.ndarray, seed: int) -> np.ndarray:
    """The t-SNE of features (count, size): points (count, 2) float64, a function of both arguments."""
    tsne = TSNE(perplexity=PERPLEXITY, init="pca", random_state=seed)
    # The map does not depend on the features' unit; of some, squares overflow or are 0, and scikit-learn crashes.
    return np.asarray(tsne.fit_transform(features / np.abs(features).max()), np.float64)


def spread_points(points: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Indices (number,) of points (count, 2) that stand for all parts of the map: those nearest to k-means' centres."""
    number = min(number, len(np.unique(points, axis=0)))  # k-means has no more centres
    centres = KMeans(number, n_init=4, random_state=seed).fit(points).cluster_centers_
    return np.array([((points - centre) ** 2).sum(axis=1).argmin() for centre in centres])


def draw_embedding(player: Watched, number: int) -> Figure:
    """The map of `number` states, coloured by value, with screens; raises `UsageError` where there is none."""
    sights = player.states_for_map(number)
    features = player.features(sights)
    if not np.ptp(features, axis=0).any():
        raise UsageError("the last hidden layer is the same in every state: there is no map of this network to draw")
    points = embed(features, player.seed)
    figure = Figure(figsize=(10.5, 8.4), layout="constrained")
    figure.suptitle(f"{display_name(player.game)}: last hidden layer over {number:,} states (t-SNE)")
    rows = SCREENS_ON_MAP // 2
    grid = figure.add_gridspec(rows, 3, width_ratios=[1, 4.6, 1])
    panel = figure.add_subplot(grid[:, 1])
    values = [sight.value for sight in sights]
    low, high = np.percentile(values, [3, 97])  # the few states at a game's very start must not take all the colours
    style = {"cmap": "viridis", "vmin": low, "vmax": high, "linewidths": 0, "rasterized": True}
    drawn = panel.scatter(points[:, 0], points[:, 1], c=values, s=11, **style)
    panel.set_axis_off()
    bar = figure.colorbar(drawn, ax=panel, location="bottom", shrink=0.7, aspect=40, extend="both")
    bar.set_label("value (max Q)")
    bar.ax.locator_params(nbins=6)
    digits = _digits(np.array(values))
    chosen = spread_points(points, SCREENS_ON_MAP, player.seed)
    # Where connectors begin, in fractions of the map; those that are shortest together do not cross each other.
    corners = [(column, 1 - (row + 0.5) / rows) for column in (0, 1) for row in range(rows)]
    panel.autoscale_view()
    thumbs, order = linear_sum_assignment(cdist(corners, panel.transLimits.transform(points[chosen])))
    for corner, index in zip(thumbs, chosen[order], strict=True):
        column, row = divmod(corner, rows)
        thumb = figure.add_subplot(grid[row, 2 * column])
        _show_screen(thumb, sights[index], f"value {_number(values[index], digits)}")
        _connect(thumb, (1 - column, 0.5), tuple(points[index]), panel.transData)
        panel.plot(*points[index], "o", markersize=8, markerfacecolor="none", markeredgecolor="black")
    return figure


def turning_points(values: np.ndarray, number: int) -> np.ndarray:
    """Indices, in order, of up to `number` points that the straight lines between them need most to follow `values`.

    One by one the point farthest from the lines so far is taken, never one near another; (number,) int64.
    """
    indices = np.arange(len(values))
    taken = np.array([0, len(values) - 1])
    for _ in range(number):
        distances = np.abs(values - np.interp(indices, taken, values[taken]))
        distances[np.abs(indices[:, None] - taken).min(axis=1) <= len(values) // 20] = 0
        if not distances.any():
            break
        taken = np.sort(np.append(taken, distances.argmax()))
    return taken[1:-1]


def draw_value(player: Watched) -> Figure:
    """The value of every state along one game, with the screens at the curve's turning points."""
    sights = list(player.play())
    values = np.array([sight.value for sight in sights])
    lost_lives = [step for step, sight in enumerate(sights) if sight.life_lost]
    chosen = turning_points(values, SCREENS_ON_CURVE)
    if not len(chosen):  # the value is always the same
        chosen = np.unique(np.linspace(0, len(values) - 1, SCREENS_ON_CURVE + 2).astype(int)[1:-1])
    digits = _digits(values)
    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    note = " (dotted: a life is lost)" if lost_lives else ""
    figure.suptitle(f"{display_name(player.game)}: value along one game{note}")
    grid = figure.add_gridspec(3, len(chosen), height_ratios=[1, 0.15, 1.3])
    panel = figure.add_subplot(grid[2, :])
    panel.plot(values, color=BLUE, linewidth=1.3)
    for step in lost_lives:
        panel.axvline(step, color=GREY, linestyle=":", linewidth=1.3, zorder=0)
    panel.plot(chosen, values[chosen], "o", markersize=8, markerfacecolor="none", markeredgecolor="black")
    panel.margins(x=0.01, y=0.12)
    low, high = panel.get_ylim()
    # From above to the point, straight down: a line that meets the curve there and nowhere else.
    panel.vlines(chosen, values[chosen], high, color="black", linewidth=0.7, alpha=0.6)
    panel.set_ylim(low, high)
    for column, step in enumerate(chosen):
        thumb = figure.add_subplot(grid[0, column])
        _show_screen(thumb, sights[step], f"step {step:,}: {_number(values[step], digits)}")
        _connect(thumb, (0.5, 0), (step, 1), panel.get_xaxis_transform())
    rate = player.rules.steps_per_second
    panel.set(xlabel=f"agent steps ({rate:g} per second of play)", ylabel="value (max Q)")
    panel.spines["top"].set_visible(False)
    return figure


def _digits(values: np.ndarray) -> int:
    """Decimals that tell the values apart: two digits of how far they spread."""
    spread = float(np.ptp(np.percentile(values, [3, 97])))
    return min(6, max(0, 1 - math.floor(math.log10(spread)))) if spread > 0 else 3


def _number(value: float, digits: int) -> str:
    return Formatter.fix_minus(f"{value:z.{digits}f}" if abs(value) < 1e6 else f"{value:.4g}")


def _show_screen(thumb: Axes, sight: Sight, title: str) -> None:
    thumb.imshow(sight.screen)
    thumb.set_title(title, fontsize=11)
    thumb.set(xticks=[], yticks=[])


def _connect(thumb: Axes, corner: tuple[float, float], point: tuple[float, float], transform: Transform) -> None:
    # Below the axes, so that a line does not hide the map's marks.
    line = ConnectionPatch(corner, point, thumb.transAxes, transform, linewidth=0.7, alpha=0.6, zorder=-1)
    thumb.figure.add_artist(line)
