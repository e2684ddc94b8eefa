"""One picture from an emulator screen, with what the player saw, valued, did and won; or of many games at once."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from atari import FRAME_SIZE, HISTORY_FRAMES, PAPER_OPTIONS

SCALE = 3  # 160x210 emulator pixels become 480x630
MARGIN, FRAME_GAP, NUMBER_WIDTH = 12, 4, 58
PANEL_WIDTH = 2 * MARGIN + HISTORY_FRAMES * FRAME_SIZE + (HISTORY_FRAMES - 1) * FRAME_GAP
NUMBERS_LEFT = PANEL_WIDTH - MARGIN - NUMBER_WIDTH
CAPTION_HEIGHT, LINE_HEIGHT = 20, 18
TILE_GAP = 2
LARGEST_ROW, LEAST_CURVE = 11, 16  # heights, in emulator pixels
CURVE_SECONDS = 10

BACKGROUND, ROW, DIM, BRIGHT = (20, 20, 24), (52, 52, 62), (165, 165, 172), (245, 245, 245)
BLUE, ORANGE = (0, 114, 178), (230, 159, 0)  # Okabe and Ito's colours, which differ in lightness too

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Panel:
    """Draws pictures (height, width, 3) uint8 of one game; height and width are even, as H.264 wants them.

    `update` once per agent step, `picture` once per emulator screen. A plain panel is none: the game alone.
    """

    def __init__(
        self,
        game: str,
        action_names: list[str],
        *,
        steps_per_second: float = PAPER_OPTIONS.steps_per_second,
        scale: int = SCALE,
        plain: bool = False,
    ):
        self._game = game
        self._curve_steps = round(CURVE_SECONDS * steps_per_second)
        self._action_names = action_names
        self._scale = scale
        self._plain = plain
        self._largest_advantages: list[float] = []  # of each agent step
        self._full_bar = _round_up(0)
        self._curve: list[float] = []  # the value, or where nobody values anything the score, of each agent step
        self._low, self._high = np.inf, -np.inf  # the curve's axis
        self._lines: tuple[str, ...] = ()
        self._canvas: np.ndarray | None = None
        self._outdated = True
        self._shown: tuple[np.ndarray, np.ndarray | None, int, float] | None = None

    def update(self, state: np.ndarray, q_values: np.ndarray | None, action: int, score: float) -> None:
        """Show from now on: `state` (4, 84, 84) uint8, `q_values` (num_actions,) float32 or None, what was done."""
        if q_values is None:
            self._extend_curve(score, least_span=5)
        else:
            self._extend_curve(float(q_values.max()), least_span=0.05)  # it adds up rewards of 1
            self._fit_bars(_advantages(q_values))
        self._shown = (state, q_values, action, score)
        self._outdated = True

    def say(self, *lines: str) -> None:
        """Show these lines at the bottom from now on, the first one bright."""
        self._lines = lines
        self._outdated = True

    def _fit_bars(self, advantages: np.ndarray) -> None:
        """Give the largest bar of the game's median step 1/8 to 2/3 of the room; a few steps have ten times as much.

        After the first seconds the scale only ever grows, and seldom.
        """
        self._largest_advantages.append(np.abs(advantages).max())
        typical = float(np.median(self._largest_advantages))
        beginning = len(self._largest_advantages) <= self._curve_steps
        if self._full_bar < 1.5 * typical or (beginning and self._full_bar > 8 * typical):
            self._full_bar = _round_up(2 * typical)

    def _extend_curve(self, value: float, least_span: float) -> None:
        """Append to the curve; its axis only ever grows, in round steps of a fifth of what it must hold."""
        self._curve.append(value)
        if not self._low <= value < self._high:
            low, high = min(value, self._low), max(value, self._high)
            unit = _round_up(max(high - low, abs(value) / 1000, least_span)) / 5
            self._low, self._high = np.floor(low / unit) * unit, (np.floor(high / unit) + 1) * unit

    def picture(self, screen: np.ndarray) -> np.ndarray:
        """The picture (height, width, 3) uint8 of a screen (210 or so, 160, 3) uint8; good until the next call."""
        height, width = ((length * self._scale + 1) // 2 * 2 for length in screen.shape[:2])
        if self._canvas is None:
            self._canvas = np.zeros((height, width if self._plain else width + PANEL_WIDTH, 3), np.uint8)
        _enlarge(screen, self._scale, self._canvas)
        if self._outdated and not self._plain:
            self._canvas[:, width:] = self._draw(height)
            self._outdated = False
        return self._canvas

    def _draw(self, height: int) -> np.ndarray:
        assert self._shown is not None, "update before the first picture"
        state, q_values, action, score = self._shown
        image = Image.new("RGB", (PANEL_WIDTH, height), BACKGROUND)
        draw = ImageDraw.Draw(image)
        top = MARGIN + height // 12
        frames_top = height - MARGIN - len(self._lines) * LINE_HEIGHT - FRAME_SIZE
        room = frames_top - top - 3 * CAPTION_HEIGHT  # for the actions' rows and the curve
        share = (room - LEAST_CURVE * self._scale) // len(self._action_names)
        row_height = min(share, LARGEST_ROW * self._scale)
        self._draw_title(draw, MARGIN, top, score)
        self._draw_actions(draw, top, row_height, q_values, action)
        curve_top = top + CAPTION_HEIGHT + row_height * len(self._action_names)
        self._draw_curve(draw, curve_top, frames_top - CAPTION_HEIGHT - 1, q_values)
        self._draw_frames(image, draw, frames_top, state)
        for index, line in enumerate(self._lines):
            bottom = frames_top + FRAME_SIZE + (index + 1) * LINE_HEIGHT
            draw.text((MARGIN, bottom), line, DIM if index else ORANGE, _font(14), anchor="ls")
        return np.asarray(image)

    def _draw_title(self, draw: ImageDraw.ImageDraw, top: int, bottom: int, score: float) -> None:
        middle, room, number = (top + bottom) // 2, PANEL_WIDTH // 2 - 40, f"{score:,.0f}"
        draw.text((MARGIN, middle), self._game, BRIGHT, _fitting_font(self._game, 24, room), anchor="lm")
        font = _fitting_font(number, bottom - top - 6, room)
        draw.text((PANEL_WIDTH - MARGIN, middle), number, BRIGHT, font, anchor="rm")
        draw.text((PANEL_WIDTH - MARGIN - font.getlength(number) - 8, middle), "score", DIM, _font(14), anchor="rm")

    def _draw_actions(
        self, draw: ImageDraw.ImageDraw, top: int, row_height: int, q_values: np.ndarray | None, action: int
    ) -> None:
        caption = "actions" if q_values is None else f"advantage (a full bar: {self._full_bar:g} or more) and Q-value"
        _draw_caption(draw, top, caption)
        font_size = min(15, row_height - 1)
        font = _font(font_size)
        left = round(MARGIN + 16 + max(font.getlength(name) for name in self._action_names)) + 8  # where bars may begin
        zero, longest = (left + NUMBERS_LEFT) // 2, (NUMBERS_LEFT - left) // 2
        for index, name in enumerate(self._action_names):
            y = top + CAPTION_HEIGHT + index * row_height
            middle, colour = y + row_height // 2, BRIGHT if index == action else DIM
            if index == action:
                draw.rectangle((MARGIN - 6, y, PANEL_WIDTH - MARGIN + 5, y + row_height - 1), ROW)
                draw.polygon(((MARGIN, middle - 4), (MARGIN, middle + 4), (MARGIN + 7, middle)), BRIGHT)
            draw.text((MARGIN + 16, middle), name, colour, font, anchor="lm")
            if q_values is not None:
                share = np.clip(_advantages(q_values)[index] / self._full_bar, -1, 1)
                start, end = sorted((zero, zero + round(longest * float(share))))
                draw.rectangle((start, y + 2, end, y + row_height - 3), ORANGE if index == q_values.argmax() else BLUE)
                draw.line((zero, y, zero, y + row_height - 1), DIM)
                _draw_number(draw, middle, "m", _q_text(q_values[index]), colour, font_size)

    def _draw_curve(self, draw: ImageDraw.ImageDraw, top: int, bottom: int, q_values: np.ndarray | None) -> None:
        values = np.array(self._curve if q_values is None else self._curve[-self._curve_steps :])
        caption = "score so far" if q_values is None else f"value (max Q), the last {CURVE_SECONDS} seconds"
        _draw_caption(draw, top, caption)
        if q_values is not None:
            _draw_number(draw, top + CAPTION_HEIGHT // 2, "m", _q_text(values[-1]), ORANGE, 15)
        top += CAPTION_HEIGHT
        draw.rectangle((MARGIN, top, NUMBERS_LEFT, bottom), ROW)
        x = np.linspace(NUMBERS_LEFT, MARGIN, max(len(values), self._curve_steps))[len(values) - 1 :: -1]
        y = bottom - (values - self._low) / (self._high - self._low) * (bottom - top)
        draw.line([*zip(x.tolist(), y.tolist(), strict=True)], ORANGE, 2)
        _draw_number(draw, top, "a", f"{self._high:,.6g}", DIM, 13)
        _draw_number(draw, bottom, "s", f"{self._low:,.6g}", DIM, 13)

    def _draw_frames(self, image: Image.Image, draw: ImageDraw.ImageDraw, top: int, state: np.ndarray) -> None:
        caption = f"what the network sees, {FRAME_SIZE}x{FRAME_SIZE}, the newest at the right"
        _draw_caption(draw, top - CAPTION_HEIGHT, caption)
        for index, frame in enumerate(state):
            image.paste(Image.fromarray(frame), (MARGIN + index * (FRAME_SIZE + FRAME_GAP), top))


class Tile(NamedTuple):
    """One game of a grid: a screen (210 or so, 160, 3) uint8, the score so far, whether it has ended."""

    screen: np.ndarray
    score: float
    ended: bool


def grid_picture(tiles: Sequence[Tile], largest_width: int) -> np.ndarray:
    """Games side by side, row by row, each above its number and score, dimmed where it has ended.

    (height, width, 3) uint8; height and width are even. The gaps between the games come on top of the largest width,
    and so does what does not fit even at the emulator's own size.
    """
    columns = math.ceil(math.sqrt(len(tiles)))
    scale = max(1, min(SCALE, largest_width // (columns * tiles[0].screen.shape[1])))
    height, width = ((length * scale + 1) // 2 * 2 for length in tiles[0].screen.shape[:2])
    down, right = height + CAPTION_HEIGHT, width + TILE_GAP
    canvas = np.full((math.ceil(len(tiles) / columns) * down, columns * right - TILE_GAP, 3), BACKGROUND, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * down, index % columns * right
        cell = canvas[top : top + down, left : left + width]
        _enlarge(tile.screen // 3 if tile.ended else tile.screen, scale, cell)
        cell[height:] = _tile_caption(width, index + 1, tile.score, tile.ended)
    return canvas


@functools.lru_cache(maxsize=256)
def _tile_caption(width: int, number: int, score: float, ended: bool) -> np.ndarray:
    image = Image.new("RGB", (width, CAPTION_HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(image)
    name, points = f"game {number}" + ", ended" * ended, f"{score:,.0f}"
    room = width - 16 - round(_font(13).getlength(name))
    draw.text((4, CAPTION_HEIGHT // 2), name, DIM, _font(13), anchor="lm")
    draw.text((width - 4, CAPTION_HEIGHT // 2), points, BRIGHT, _fitting_font(points, 15, room), anchor="rm")
    return np.asarray(image)


def _enlarge(screen: np.ndarray, scale: int, canvas: np.ndarray) -> None:
    """Draw a screen into the upper left of a canvas, each of its pixels `scale` times as wide and high."""
    wide = screen.repeat(scale, axis=1)
    for row in range(scale):
        canvas[row : len(wide) * scale : scale, : wide.shape[1]] = wide


def _draw_caption(draw: ImageDraw.ImageDraw, top: int, caption: str) -> None:
    draw.text((MARGIN, top + CAPTION_HEIGHT // 2), caption, DIM, _font(13), anchor="lm")


def _draw_number(draw: ImageDraw.ImageDraw, y: int, anchor: str, text: str, colour: tuple[int, ...], size: int) -> None:
    font = _fitting_font(text, size, NUMBER_WIDTH - 6)
    draw.text((PANEL_WIDTH - MARGIN, y), text, colour, font, anchor="r" + anchor)


def _advantages(q_values: np.ndarray) -> np.ndarray:
    """How much more each action is worth than the mean of all."""
    return q_values - q_values.mean(dtype=np.float64)


def _q_text(q_value: float) -> str:
    return f"{q_value:.3f}" if abs(q_value) < 10_000 else f"{q_value:.1e}"


@functools.cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _fitting_font(text: str, largest: int, width: int) -> Font:
    return next((f for f in map(_font, range(largest, 9, -1)) if f.getlength(text) <= width), _font(9))


def _round_up(spread: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that holds `spread`: a scale that seldom changes."""
    power = 10.0 ** np.floor(np.log10(max(spread, 1e-3)))
    return float(next((step * power for step in (1, 2, 5) if step * power >= spread), 10 * power))
