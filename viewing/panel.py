"""One picture from an emulator screen, with what the player saw, valued, did and won; or of many games at once."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from atari import FRAME_SIZE, HISTORY_FRAMES, PAPER_OPTIONS

SCALE = 3  # 160x210 emulator pixels become 480x630
MARGIN, FRAME_GAP, NUMBER_WIDTH = 12, 4, 64
PANEL_WIDTH = 2 * MARGIN + HISTORY_FRAMES * FRAME_SIZE + (HISTORY_FRAMES - 1) * FRAME_GAP
RIGHT = PANEL_WIDTH - MARGIN
BARS_LEFT, BARS_RIGHT = 150, RIGHT - NUMBER_WIDTH
LINE_HEIGHT = CAPTION_HEIGHT = 20
TILE_GAP = 2
LARGEST_ROW, LEAST_CURVE = 11, 16  # heights, in emulator pixels
CURVE_SECONDS = 10

BACKGROUND, ROW, DIM, BRIGHT = (20, 20, 24), (52, 52, 62), (165, 165, 172), (245, 245, 245)
BLUE, ORANGE = (0, 114, 178), (230, 159, 0)  # Okabe and Ito's colours, which differ in lightness too


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
        self._curve: list[float] = []  # the value, or where nobody values anything the score, of each agent step
        self._lines: tuple[str, ...] = ()
        self._drawn: np.ndarray | None = None  # what stands beside the screens of this agent step

    def update(self, state: np.ndarray, q_values: np.ndarray | None, action: int, score: float) -> None:
        """Show from now on: `state` (4, 84, 84) uint8, `q_values` (num_actions,) float32 or None, what was done."""
        self._shown = state, q_values, action, score
        self._curve.append(score if q_values is None else float(q_values.max()))
        if q_values is not None:
            self._largest_advantages.append(float(np.abs(q_values - q_values.mean()).max()))
        self._drawn = None

    def say(self, *lines: str) -> None:
        """Show these lines at the bottom from now on, the first one bright."""
        self._lines = lines
        self._drawn = None

    def picture(self, screen: np.ndarray) -> np.ndarray:
        """The picture (height, width, 3) uint8 of a screen (210 or so, 160, 3) uint8."""
        game = np.asarray(_enlarged(screen, self._scale))
        if self._plain:
            return game
        if self._drawn is None:
            self._drawn = self._draw(len(game))
        return np.hstack([game, self._drawn])

    def _draw(self, height: int) -> np.ndarray:
        state, q_values, action, score = self._shown
        image = Image.new("RGB", (PANEL_WIDTH, height), BACKGROUND)
        draw = ImageDraw.Draw(image)
        _write(draw, MARGIN, 24, self._game, BRIGHT, 20)
        _write(draw, RIGHT, 24, f"score {score:,.0f}", BRIGHT, 20, "rm")
        top = 44
        frames_top = height - MARGIN - len(self._lines) * LINE_HEIGHT - FRAME_SIZE
        room = frames_top - top - 3 * CAPTION_HEIGHT - LEAST_CURVE * self._scale  # for the actions' rows
        row_height = min(room // len(self._action_names), LARGEST_ROW * self._scale)
        self._draw_actions(draw, top, row_height, q_values, action)
        curve_top = top + CAPTION_HEIGHT + row_height * len(self._action_names)
        self._draw_curve(draw, curve_top, frames_top - CAPTION_HEIGHT - 1, valued=q_values is not None)
        caption = f"what the network sees, {FRAME_SIZE}x{FRAME_SIZE}, the newest at the right"
        _write(draw, MARGIN, frames_top - CAPTION_HEIGHT // 2, caption)
        for index, frame in enumerate(state):
            image.paste(Image.fromarray(frame), (MARGIN + index * (FRAME_SIZE + FRAME_GAP), frames_top))
        for index, line in enumerate(self._lines):
            middle = frames_top + FRAME_SIZE + index * LINE_HEIGHT + LINE_HEIGHT // 2
            _write(draw, MARGIN, middle, line, DIM if index else ORANGE)
        return np.asarray(image)

    def _draw_actions(
        self, draw: ImageDraw.ImageDraw, top: int, row_height: int, q_values: np.ndarray | None, action: int
    ) -> None:
        # Twice the usual largest one, so that a few steps with ten times as much do not make slivers of all the others.
        full_bar = 2 * float(np.median(self._largest_advantages or [0])) or 1.0
        caption = "actions" if q_values is None else f"advantage (a full bar: {full_bar:.2g} or more) and Q-value"
        _write(draw, MARGIN, top + CAPTION_HEIGHT // 2, caption)
        zero, longest = (BARS_LEFT + BARS_RIGHT) // 2, (BARS_RIGHT - BARS_LEFT) // 2
        for index, name in enumerate(self._action_names):
            y = top + CAPTION_HEIGHT + index * row_height
            middle, bottom = y + row_height // 2, y + row_height - 1
            if index == action:
                draw.rectangle((MARGIN - 6, y, RIGHT + 5, bottom), ROW)
            colour, size = BRIGHT if index == action else DIM, min(13, row_height - 1)
            _write(draw, MARGIN, middle, name, colour, size)
            if q_values is not None:
                share = np.clip((q_values[index] - q_values.mean()) / full_bar, -1, 1)
                start, end = sorted((zero, zero + round(longest * float(share))))
                draw.rectangle((start, y + 2, end, bottom - 2), ORANGE if index == q_values.argmax() else BLUE)
                draw.line((zero, y, zero, bottom), DIM)
                _write(draw, RIGHT, middle, f"{q_values[index]:.3f}", colour, size, "rm")

    def _draw_curve(self, draw: ImageDraw.ImageDraw, top: int, bottom: int, *, valued: bool) -> None:
        values = np.array(self._curve[-self._curve_steps :] if valued else self._curve)
        low, high = min(self._curve), max(self._curve)  # of the whole game: the axis only ever grows
        caption = f"value (max Q), the last {CURVE_SECONDS} seconds" if valued else "score so far"
        _write(draw, MARGIN, top + CAPTION_HEIGHT // 2, caption)
        top += CAPTION_HEIGHT
        draw.rectangle((MARGIN, top, BARS_RIGHT, bottom), ROW)
        x = np.linspace(BARS_RIGHT, MARGIN, max(len(values), self._curve_steps))[len(values) - 1 :: -1]
        y = bottom - (values - low) / (high - low or 1.0) * (bottom - top)
        draw.line([*zip(x.tolist(), y.tolist(), strict=True)], ORANGE, 2)
        _write(draw, RIGHT, top, f"{high:,.2f}", anchor="ra")
        _write(draw, RIGHT, bottom, f"{low:,.2f}", anchor="rs")


def grid_picture(screens: Sequence[np.ndarray], captions: Sequence[str], largest_width: int) -> np.ndarray:
    """Games side by side, row by row, each above its caption: (height, width, 3) uint8, both even.

    The gaps between the games come on top of the largest width, and so does what does not fit even at the emulator's
    own size.
    """
    columns = math.ceil(math.sqrt(len(screens)))
    scale = max(1, min(SCALE, largest_width // (columns * screens[0].shape[1])))
    tiles = [_enlarged(screen, scale) for screen in screens]
    right, down = tiles[0].width + TILE_GAP, tiles[0].height + CAPTION_HEIGHT
    canvas = Image.new("RGB", (columns * right - TILE_GAP, math.ceil(len(tiles) / columns) * down), BACKGROUND)
    for index, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        left, top = index % columns * right, index // columns * down
        canvas.paste(tile, (left, top))
        canvas.paste(_tile_caption(caption, tile.width), (left, top + tile.height))
    return np.asarray(canvas)


@functools.lru_cache(maxsize=256)  # text is slow to draw
def _tile_caption(caption: str, width: int) -> Image.Image:
    image = Image.new("RGB", (width, CAPTION_HEIGHT), BACKGROUND)
    _write(ImageDraw.Draw(image), 4, CAPTION_HEIGHT // 2, caption)
    return image


def _enlarged(screen: np.ndarray, scale: int) -> Image.Image:
    size = screen.shape[1] * scale, (screen.shape[0] * scale + 1) // 2 * 2
    return Image.fromarray(screen).resize(size, Image.Resampling.NEAREST)


def _write(
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    text: str,
    colour: tuple[int, int, int] = DIM,
    size: int = 13,
    anchor: str = "lm",
) -> None:
    draw.text((x, y), text, colour, _font(size), anchor=anchor)


_font = functools.cache(ImageFont.load_default)
