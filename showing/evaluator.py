"""The evaluations of a training, one after the other: in its own process, or in another one beside it."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from atari import FRAMES_PER_MINUTE, FinishedGame
from machine.devices import choose_device, set_up_torch
from machine.networks import load_network
from model import QNetwork
from showing.episodes import EPSILON, MINUTES, EpsilonGreedyPlayer, play_protocol
from wrappers import AtariGames, rom_name

ROOT = Path(__file__).parent.parent


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
        self._pipe, theirs = Pipe()
        told = [str(os.getpid()), str(theirs.fileno()), str(games), device, str(int(deterministic))]
        command = [sys.executable, "-m", "showing.evaluator", *told]
        # In a session of its own: Ctrl-C in a terminal is for the training.
        quiet = {"stdin": subprocess.DEVNULL, "cwd": ROOT, "start_new_session": True}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], **quiet)  # type: ignore[call-overload]
        theirs.close()

    def begin(self, state_dict: Path, seed: int) -> None:
        """Have the network of a file played; `take` comes before the next."""
        with suppress(OSError):  # it is gone, as `take` says
            self._pipe.send((state_dict.resolve(), seed))

    def ended(self, seconds: float) -> bool:
        """Whether there is something to take, waited for so long at most."""
        return self._pipe.poll(seconds)

    def take(self) -> list[FinishedGame] | str:
        """The games that were played, or why they were not."""
        try:
            played: list[FinishedGame] | str = self._pipe.recv()
        except (EOFError, OSError):
            played = "its process ended"
        return played

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._pipe.close()


def main() -> None:
    """What the process does: an evaluation for each file that it is told of, until the training is gone."""
    training, descriptor, games, device, deterministic = sys.argv[1:]
    with Connection(int(descriptor)) as pipe, closing(Evaluator(int(games))) as evaluator, suppress(EOFError, OSError):
        while True:
            state_dict, seed = pipe.recv()
            try:
                set_up_torch(bool(int(deterministic)))
                network = load_network(state_dict, choose_device(device))
                played = evaluator.play(network, seed, lambda _: os.getppid() == int(training))
            except Exception as error:  # of many kinds: the GPU's memory, a GPU that is for one process, the file
                pipe.send(" ".join(f"{type(error).__name__}: {error}".split())[:300])
            else:
                pipe.send(played)


if __name__ == "__main__":
    main()
