"""Files on disk -> the paper's figures, as PNG and SVG: python figures.py --help"""

from runtime.exits import UsageError, exit_with  # isort: skip  # first: runtime/ says which Python is needed
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import matplotlib as mpl
import tyro
from matplotlib.figure import Figure

from atari import MAX_EMULATOR_SEED, game_key
from runtime.files import check_output, writing_output
from runtime.flags import Bounds, check_bounds, plain_numbers
from viewing.figures_tables import draw_curves, draw_scores, read_bars, read_run

# viewing.figures_played brings torch and scikit-learn: only the commands that play a network import it.


STYLE: Any = {
    "font.size": 12,
    "axes.spines.right": False,
    "legend.edgecolor": "none",
    "legend.fontsize": 10.5,
    "figure.dpi": 110,
    "text.parse_math": False,  # names of files and games may hold dollar signs
    "svg.hashsalt": "figures",  # the same data, the same bytes
}


@dataclass(kw_only=True)
class Command(ABC):
    """A kind of picture with its options."""

    output: str = "."
    """A folder, or a base name to which .png and .svg are added."""
    tables: ClassVar[tuple[str, ...]] = ()
    """The kinds of text that are written with the picture, by suffix."""

    @abstractmethod
    def load(self) -> str:
        """Read what is to be drawn; returns the file name it goes by unless --output says another."""

    @abstractmethod
    def draw(self) -> Figure:
        """The picture, after `load`."""

    def texts(self) -> dict[str, str]:
        """What is written with the picture, by suffix."""
        return {}


@dataclass(kw_only=True)
class Played(Command):
    """A picture for which a network plays its game."""

    state_dict: Path
    """State dict file of the network, such as runs/.../model.pt."""
    seed: Annotated[int, Bounds(0, MAX_EMULATOR_SEED - 1)] = 0
    """Seed of the games, the random actions and the map; another seed, other games."""

    def load(self) -> str:
        from viewing.figures_played import Watched

        self._player = Watched(self.state_dict, self.seed)
        return f"{type(self).__name__.lower()}-{game_key(self._player.game)}"


@dataclass
class Curves(Command):
    """Score and average action value over training, from the files of runs (paper, Fig. 2)."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, all of one game; of several the mean and its 95% interval across runs are drawn."""

    def load(self) -> str:
        if not self.runs:
            raise UsageError("name one or more run folders: python figures.py runs/...")
        self._runs = [read_run(path) for path in self.runs]
        keys = {game_key(run.game): run.game for run in self._runs}
        if len(keys) > 1:
            raise UsageError(f"the runs are of different games ({', '.join(keys.values())}); draw one game at a time")
        return f"curves-{next(iter(keys))}"

    def draw(self) -> Figure:
        return draw_curves(self._runs)


@dataclass
class Scores(Command):
    """Normalised scores next to the paper's, a group of bars per game, best first (paper, Fig. 3)."""

    table: tyro.conf.Positional[Path]
    """What evaluate.py --csv wrote: a CSV file with the columns game and mean."""

    def load(self) -> str:
        self._bars, left_out = read_bars(self.table)
        if left_out:
            print(f"left out: {', '.join(left_out)}")
        return "scores"

    def draw(self) -> Figure:
        return draw_scores(self._bars)


@dataclass
class Aggregate(Command):
    """What sweeps say as a whole: aggregate scores with intervals, profiles, and a table with the paper's scores."""

    tables: ClassVar[tuple[str, ...]] = (".md", ".csv")
    sweeps: tyro.conf.Positional[tuple[Path, ...]]
    """One or more folders of sweep.py; settings, sweeps or the values of one that varies a flag, are compared."""

    def load(self) -> str:
        from viewing.figures_aggregate import import_rliable, read_sweep

        if not self.sweeps:
            raise UsageError("name one or more folders of sweep.py: python figures.py aggregate sweeps/...")
        import_rliable()
        read = [read_sweep(path) for path in self.sweeps]
        self._settings = [setting for settings, _ in read for setting in settings]
        print(*(note for _, notes in read for note in notes), sep="\n")
        return "aggregate"

    def draw(self) -> Figure:
        from viewing.figures_aggregate import draw_aggregate

        return draw_aggregate(self._settings)

    def texts(self) -> dict[str, str]:
        from viewing.figures_aggregate import tables

        return tables(self._settings)


@dataclass
class Embedding(Played):
    """A map (t-SNE) of the last hidden layer over states met in play, coloured by value (paper, Fig. 4)."""

    # Below three times the perplexity, 30, that has no meaning; t-SNE of more than 20,000 takes hours.
    states: Annotated[int, Bounds(90, 20_000)] = 2_000
    """States on the map; every fourth that the network meets at epsilon 0.05 is taken."""

    def draw(self) -> Figure:
        from viewing.figures_played import draw_embedding

        with closing(self._player) as player:
            return draw_embedding(player, self.states)


@dataclass
class Value(Played):
    """The value of the states along one played game, with the screens at its turning points (Ext. Data Fig. 2)."""

    def draw(self) -> Figure:
        from viewing.figures_played import draw_value

        with closing(self._player) as player:
            return draw_value(player)


KINDS: tuple[type[Command], ...] = (Curves, Scores, Aggregate, Embedding, Value)
COMMANDS: dict[str, Any] = {kind.__name__.lower(): kind for kind in KINDS}


def output_paths(output: str, name: str, tables: tuple[str, ...]) -> list[Path]:
    """The PNG, the SVG and the tables to write, before anything is drawn; raises `UsageError`.

    output: a folder, known by being there or by a slash at its end, for files called `name`; else their base name.
    """
    base = Path(output)
    if os.path.isdir(base) or output.endswith("/"):
        base /= name
    elif base.suffix in (".png", ".svg"):
        base = base.with_suffix("")
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output} cannot be written: {error.strerror}") from None
    paths = [base.with_name(base.name + suffix) for suffix in (".png", ".svg", *tables)]
    for path in paths:
        check_output(path, path.suffix)
    return paths


def save(figure: Figure, paths: list[Path], texts: Mapping[str, str]) -> None:
    """Write figure or text to each path, as its suffix says, whole or not at all; raises `RunError` where it cannot."""
    for path in paths:
        with writing_output(path) as temporary:
            if path.suffix in texts:
                temporary.write_text(texts[path.suffix], encoding="utf-8")
            else:
                metadata = {"Date": None} if path.suffix == ".svg" else {}
                figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in (*COMMANDS, "-h", "--help"):
        arguments.insert(0, "curves")
    about = "Draw the paper's figures, as PNG and SVG. figures.py RUN ... is short for figures.py curves RUN ..."
    command = tyro.extras.subcommand_cli_from_dict(COMMANDS, args=plain_numbers(arguments), description=about)
    check_bounds(command)
    paths = output_paths(command.output, command.load(), command.tables)
    with mpl.rc_context(STYLE):
        save(command.draw(), paths, command.texts())
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_with(main, smaller="--states")
