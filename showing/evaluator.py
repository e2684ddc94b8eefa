"""The evaluations of a training, one after the other: in its own process, or in another one beside it."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from atari import FRAMES_PER_MINUTE, FinishedGame
from machine.devices import choose_device, set_up_torch
from machine.exits import RunError
from model import QNetwork, load_network
from showing.episodes import EPSILON, MINUTES, EpsilonGreedyPlayer, play_protocol
from wrappers import AtariGames, rom_name

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}  # which a terminal or a scheduler may send to both processes


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


class EvaluatorBeside:
    """The same in a process of its own, so that a training on a GPU goes on meanwhile; it ends with that training."""

    def __init__(self, games: int, *, device: str, deterministic: bool):
        """device: as --device names it; it and `deterministic` as for the training, so that the scores are the same."""
        context = get_context("spawn")  # a forked process could not use the GPU
        self._pipe, theirs = context.Pipe()
        told = theirs, games, device, deterministic, os.getpid()
        self._process = context.Process(target=_play_what_comes, args=told, daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # which the new process inherits
        self._process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def begin(self, state_dict: Path, seed: int) -> None:
        """Have the network of a file played; `take` comes before the next."""
        with suppress(ConnectionError):  # it is gone, as `take` says
            self._pipe.send((state_dict, seed))

    def ended(self, seconds: float) -> bool:
        """Whether there is something to take, waited for so long at most."""
        return self._pipe.poll(seconds)

    def take(self) -> list[FinishedGame]:
        """The games that were played; raises `RunError` where it failed."""
        try:
            played = self._pipe.recv()
        except (EOFError, ConnectionError):
            played = "its process was killed"
        if isinstance(played, str):
            raise RunError(f"the evaluation beside the training failed: {played}; the run goes on from its checkpoint")
        assert isinstance(played, list)
        return played

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _play_what_comes(pipe: Connection, games: int, device: str, deterministic: bool, training: int) -> None:
    """What the process does: an evaluation for each file that it is told of, until the training is gone."""
    evaluator = Evaluator(games)
    try:
        where = choose_device(device)
        set_up_torch(deterministic)
        while True:
            state_dict, seed = pipe.recv()
            played = evaluator.play(load_network(state_dict, where), seed, lambda _: os.getppid() == training)
            pipe.send(played)
    except (EOFError, ConnectionError):
        pass
    except Exception as error:  # of many kinds: the GPU's memory, the disk, the emulators
        pipe.send(" ".join(f"{type(error).__name__}: {error}".split())[:300])
    finally:
        evaluator.close()
