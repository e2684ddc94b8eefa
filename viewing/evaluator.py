"""The evaluations of a training, one after the other: in its own process, or in another one in the background."""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from atari import FRAMES_PER_MINUTE, FinishedGame
from model import QNetwork
from runtime.devices import choose_device, set_up_torch
from runtime.networks import load_network
from viewing.episodes import EPSILON, MINUTES, EpsilonGreedyPlayer, play_protocol
from wrappers import AtariGames, rom_name


class Evaluator:
    """Plays the paper's protocol, again and again in the same emulators."""

    def __init__(self, games: int):
        """games: of each evaluation, side by side."""
        self._games = games
        self._emulators: AtariGames | None = None

    def play(self, network: QNetwork, seed: int, watch: Callable[[int], bool]) -> list[FinishedGame] | None:
        """`play_protocol`, with a network of the same game each time."""
        if not self._emulators:
            limit = MINUTES * FRAMES_PER_MINUTE
            self._emulators = AtariGames(rom_name(network.game), self._games, network.rules, max_frames_per_game=limit)
        player = EpsilonGreedyPlayer(network, epsilon=EPSILON, seed=seed)
        return play_protocol(player, self._emulators, seed=seed, watch=watch)

    def close(self) -> None:
        if self._emulators:
            self._emulators.close()


class BackgroundEvaluator:
    """The same in a process of its own, so that a GPU trains meanwhile; it ends with that training."""

    def __init__(self, games: int, *, device: str, deterministic: bool):
        """device: as --device names it; both as for the training, so that the scores are the same."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=evaluate_all, args=(theirs, games, device, deterministic), daemon=True)
        with interrupts_ignored():
            self._process.start()
        theirs.close()

    def begin(self, state_dict: Path, seed: int) -> None:
        """Have the network of a file played; `take` comes before the next."""
        with suppress(OSError):  # the process has died, as `take` says
            self._pipe.send((state_dict.resolve(), seed))

    def ended(self, seconds: float) -> bool:
        """Whether there is something to take, waited for so long at most."""
        try:
            return self._pipe.poll(seconds)
        except OSError:  # on Windows, where the process has died
            return True

    def take(self) -> list[FinishedGame] | str:
        """The games that were played, or why they were not."""
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            return "its process ended"

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """A process that is started in the block never hears of Ctrl-C: in a terminal it is for the training."""
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def evaluate_all(pipe: Connection, games: int, device: str, deterministic: bool) -> None:
    """What the process does: an evaluation for each file that it is told of, until the training is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Windows it does not inherit that
    training = multiprocessing.parent_process()
    assert training
    with pipe, closing(Evaluator(games)) as evaluator, suppress(EOFError, OSError):
        while True:
            state_dict, seed = pipe.recv()
            try:
                set_up_torch(deterministic)
                network = load_network(state_dict, choose_device(device))
                played = evaluator.play(network, seed, lambda _: training.is_alive())
            except Exception as error:  # of many kinds: the GPU's memory, a GPU that is for one process, the file
                pipe.send(" ".join(f"{type(error).__name__}: {error}".split())[:300])
            else:
                pipe.send(played)
