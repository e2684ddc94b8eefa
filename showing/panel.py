"""One picture from an emulator screen: the game, crisp, and beside it what the player saw, valued and did."""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from atari import FRAME_SIZE, HISTORY_FRAMES

SCALE = 3  # 160x210 emulator pixels become 480x630
MARGIN, FRAME_GAP, VALUE_WIDTH, LARGEST_ROW = 12, 4, 58, 30
PANEL_WIDTH = 2 * MARGIN + HISTORY_FRAMES * FRAME_SIZE + (HISTORY_FRAMES - 1) * FRAME_GAP
TITLE_HEIGHT, CAPTION_HEIGHT, NOTE_HEIGHT = 40, 22, 24
SPREAD_DECAY = 0.998  # per agent step: the bars' scale follows the largest spread of the last half minute or so

BACKGROUND, ROW, DIM, BRIGHT = (20, 20, 24), (52, 52, 62), (165, 165, 172), (245, 245, 245)
BLUE, ORANGE = (0, 114, 178), (230, 159, 0)  # Okabe and Ito's colours, which differ in lightness too

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Panel:
    """Draws pictures (height, width, 3) uint8 of one game; height and width are even, as H.264 wants them.

    `update` once per agent step, `picture` once per emulator screen. A plain panel is none: the game alone.
    """

    def __init__(self, game: str, action_names: list[str], *, scale: int = SCALE, plain: bool = False):
        self._game = game
        self._action_names = action_names
        self._scale = scale
        self._plain = plain
        self._spread = 0.0
        self._canvas: np.ndarray | None = None
        self._outdated = True
        self._shown: tuple[np.ndarray, np.ndarray | None, int, float, str] | None = None

    def update(self, state: np.ndarray, q_values: np.ndarray | None, action: int, score: float, note: str = "") -> None:
        """Show from now on: `state` (4, 84, 84) uint8, `q_values` (num_actions,) float32 or None, what was done."""
        if q_values is not None and np.isfinite(q_values).all():
            self._spread = max(float(np.ptp(q_values)), self._spread * SPREAD_DECAY)
        self._shown = (state, q_values, action, score, note)
        self._outdated = True

    def picture(self, screen: np.ndarray) -> np.ndarray:
        """The picture (height, width, 3) uint8 of a screen (210 or so, 160, 3) uint8; good until the next call."""
        height, width = ((length * self._scale + 1) // 2 * 2 for length in screen.shape[:2])
        if self._canvas is None:
            self._canvas = np.zeros((height, width if self._plain else width + PANEL_WIDTH, 3), np.uint8)
        wide = screen.repeat(self._scale, axis=1)
        for row in range(self._scale):
            self._canvas[row : len(wide) * self._scale : self._scale, : wide.shape[1]] = wide
        if self._outdated and not self._plain:
            self._canvas[:, width:] = self._draw(height)
            self._outdated = False
        return self._canvas

    def _draw(self, height: int) -> np.ndarray:
        assert self._shown is not None, "update before the first picture"
        state, q_values, action, score, note = self._shown
        image = Image.new("RGB", (PANEL_WIDTH, height), BACKGROUND)
        draw = ImageDraw.Draw(image)
        title = _fitting_font(self._game, 24, PANEL_WIDTH // 2)
        middle = MARGIN + TITLE_HEIGHT // 2
        draw.text((MARGIN, middle), self._game, BRIGHT, title, anchor="lm")
        draw.text((PANEL_WIDTH - MARGIN, middle), f"score {score:,.0f}", BRIGHT, _font(24), anchor="rm")
        frames_top = height - MARGIN - NOTE_HEIGHT - FRAME_SIZE
        self._draw_actions(draw, MARGIN + TITLE_HEIGHT, frames_top - CAPTION_HEIGHT, q_values, action)
        self._draw_frames(image, draw, frames_top, state)
        draw.text((MARGIN, height - MARGIN), note, ORANGE, _font(15), anchor="ls")
        return np.asarray(image)

    def _draw_actions(
        self, draw: ImageDraw.ImageDraw, top: int, bottom: int, q_values: np.ndarray | None, action: int
    ) -> None:
        full_bar = _round_up(self._spread)
        caption = "actions" if q_values is None else f"Q-values; a full bar is {full_bar:g} above the lowest"
        draw.text((MARGIN, top + CAPTION_HEIGHT // 2), caption, DIM, _font(13), anchor="lm")
        top += CAPTION_HEIGHT
        row_height = min((bottom - top - 6) // len(self._action_names), LARGEST_ROW)
        font = _font(min(16, row_height - 2))
        names_width = max(font.getlength(name) for name in self._action_names)
        left = round(MARGIN + 16 + names_width + 10)  # where the bars begin, behind a mark and the name
        for index, name in enumerate(self._action_names):
            y = top + index * row_height
            middle = y + row_height // 2
            if index == action:
                draw.rectangle((MARGIN - 6, y, PANEL_WIDTH - MARGIN + 5, y + row_height - 1), ROW)
                draw.polygon(((MARGIN, middle - 5), (MARGIN, middle + 5), (MARGIN + 8, middle)), BRIGHT)
            draw.text((MARGIN + 16, middle), name, BRIGHT if index == action else DIM, font, anchor="lm")
            if q_values is None:
                continue
            greedy = index == q_values.argmax()
            share = np.nan_to_num((q_values[index] - q_values.min()) / full_bar)
            right = left + 2 + round((PANEL_WIDTH - MARGIN - VALUE_WIDTH - left - 2) * float(share))
            draw.rectangle((left, y + 3, right, y + row_height - 4), ORANGE if greedy else BLUE)
            colour = BRIGHT if greedy or index == action else DIM
            draw.text((PANEL_WIDTH - MARGIN, middle), f"{q_values[index]:.3f}", colour, font, anchor="rm")

    def _draw_frames(self, image: Image.Image, draw: ImageDraw.ImageDraw, top: int, state: np.ndarray) -> None:
        caption = f"what the network sees, {FRAME_SIZE}x{FRAME_SIZE}, the newest at the right"
        draw.text((MARGIN, top - CAPTION_HEIGHT // 2), caption, DIM, _font(13), anchor="lm")
        for index, frame in enumerate(state):
            image.paste(Image.fromarray(frame), (MARGIN + index * (FRAME_SIZE + FRAME_GAP), top))


@functools.cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _fitting_font(text: str, largest: int, width: int) -> Font:
    return next((f for f in map(_font, range(largest, 9, -1)) if f.getlength(text) <= width), _font(9))


def _round_up(spread: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that holds `spread`: a scale that seldom changes."""
    power = 10.0 ** np.floor(np.log10(max(spread, 1e-3)))
    return float(next((step * power for step in (1, 2, 5) if step * power >= spread), 10 * power))
