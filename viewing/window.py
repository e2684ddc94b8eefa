"""A window on the screen, and its keys."""

import os
import sys

import numpy as np

from runtime.exits import UsageError

DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")


class Window:
    """A window on the screen, with its keys by name ("space", "left", "q"); closing it is the key "q"."""

    def __init__(self, title: str):
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        import pygame  # only who opens a window waits for it

        self._pygame = pygame
        try:
            if sys.platform.startswith("linux") and not any(map(os.environ.get, DISPLAYS)):
                raise pygame.error(f"none of {', '.join(DISPLAYS)} is set")
            pygame.display.init()
            if pygame.display.get_driver() == "offscreen" and "SDL_VIDEODRIVER" not in os.environ:
                raise pygame.error("the display does not answer")  # SDL would draw where nobody looks
        except pygame.error as error:
            way_out = "make a film instead: python trained_model_video_generation.py --state-dict MODEL.pt"
            raise UsageError(f"there is no display to open a window on ({error}); {way_out}") from None
        pygame.display.set_caption(title)
        self._clock = pygame.time.Clock()
        self.held: list[str] = []
        """The keys that are down now, in the order in which they were pressed."""

    def show(self, picture: np.ndarray, frames_per_second: float) -> None:
        """Show a picture (height, width, 3) uint8 when its time has come."""
        display, size = self._pygame.display, (picture.shape[1], picture.shape[0])
        surface = display.get_surface() or display.set_mode(size)
        surface.blit(self._pygame.image.frombuffer(picture.tobytes(), size, "RGB"), (0, 0))
        display.flip()
        self._clock.tick(frames_per_second)

    def pressed(self) -> list[str]:
        """The keys that went down since the last call."""
        pygame, names = self._pygame, list[str]()
        if pygame.display.get_surface() is None:
            return names
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
