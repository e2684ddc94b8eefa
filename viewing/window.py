"""A window on the screen, and its keys."""

import os
import sys

import numpy as np

from runtime.exits import UsageError

# Named, so that SDL does not fall back to a driver without a screen where the display does not answer.
DRIVERS = {"WAYLAND_DISPLAY": "wayland", "DISPLAY": "x11"}


class Window:
    """A window on the screen, with its keys by name ("space", "left", "q"); closing it is the key "q"."""

    def __init__(self, title: str):
        if sys.platform.startswith("linux") and not os.environ.get("SDL_VIDEODRIVER"):
            named = [driver for name, driver in DRIVERS.items() if os.environ.get(name)]
            if "wayland" in named and not os.environ.get("XDG_RUNTIME_DIR"):
                named.remove("wayland")  # its socket lies there
            if not named:
                raise _no_display("neither DISPLAY nor WAYLAND_DISPLAY, with XDG_RUNTIME_DIR, is set")
            os.environ["SDL_VIDEODRIVER"] = ",".join(named)
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        import pygame  # only who opens a window waits for it

        self._pygame = pygame
        try:
            pygame.display.init()
        except pygame.error as error:
            raise _no_display(str(error)) from None
        pygame.display.set_caption(title)
        self._clock = pygame.time.Clock()
        self.held: list[str] = []
        """The keys that are down now, in the order in which they were pressed."""

    def show(self, picture: np.ndarray, frames_per_second: float) -> None:
        """Show a picture (height, width, 3) uint8 when its time has come."""
        pygame, size = self._pygame, (picture.shape[1], picture.shape[0])
        surface = pygame.display.get_surface()
        try:
            if surface is None or surface.get_size() != size:
                surface = pygame.display.set_mode(size)
        except pygame.error as error:
            raise _no_display(str(error)) from None
        surface.blit(pygame.image.frombuffer(picture.tobytes(), size, "RGB"), (0, 0))
        pygame.display.flip()
        self._clock.tick(frames_per_second)

    def pressed(self) -> list[str]:
        """The keys that went down since the last call."""
        pygame = self._pygame
        if pygame.display.get_surface() is None:
            return []
        names = []
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                names.append("q")
            elif event.type == pygame.WINDOWFOCUSLOST:
                self.held.clear()  # their release goes to another window
            elif event.type in (pygame.KEYDOWN, pygame.KEYUP):
                name = pygame.key.name(event.key)
                self.held = [key for key in self.held if key != name]
                if event.type == pygame.KEYDOWN:
                    self.held.append(name)
                    names.append(name)
        return names

    def close(self) -> None:
        self._pygame.display.quit()


def _no_display(reason: str) -> UsageError:
    way_out = "make a film instead: python trained_model_video_generation.py --state-dict MODEL.pt"
    return UsageError(f"there is no display to open a window on ({reason}); {way_out}")
