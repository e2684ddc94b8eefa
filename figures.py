"""Files on disk -> the paper's figures, as PNG and SVG: python figures.py --help"""

from runtime.exits import UsageError, exit_with  # isort: skip  # first: runtime/ says which Python is needed
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

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


# What a command draws: the file's name unless --output says another, the picture once it is asked for, and the texts
# that are written with it, by suffix.
Picture = tuple[str, Callable[[], Figure], dict[str, str]]


@dataclass(kw_only=True)
class Command(ABC):
    """A kind of picture with its options."""

    output: str = "."
    """A folder, or a base name to which .png and .svg are added."""

    @abstractmethod
    def load(self) -> Picture:
        """Read what is to be drawn; raises `UsageError`."""


@dataclass(kw_only=True)
class Played(Command):
    """A picture for which a network plays its game."""

    state_dict: Path
    """State dict file of the network, such as runs/.../model.pt."""
    seed: Annotated[int, Bounds(0, MAX_EMULATOR_SEED - 1)] = 0
    """Seed of the games, the random actions and the map; another seed, other games."""


@dataclass
class Curves(Command):
    """Score and average action value over training, from the files of runs (paper, Fig. 2)."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, all of one game; of several the mean and its 95% interval across runs are drawn."""

    def load(self) -> Picture:
        if not self.runs:
            raise UsageError("name one or more run folders: python figures.py runs/...")
        runs = [read_run(path) for path in self.runs]
        keys = {game_key(run.game): run.game for run in runs}
        if len(keys) > 1:
            raise UsageError(f"the runs are of different games ({', '.join(keys.values())}); draw one game at a time")
        return f"curves-{next(iter(keys))}", lambda: draw_curves(runs), {}


@dataclass
class Scores(Command):
    """Normalised scores next to the paper's, a group of bars per game, best first (paper, Fig. 3)."""

    table: tyro.conf.Positional[Path]
    """What evaluate.py --csv wrote: a CSV file with the columns game and mean."""

    def load(self) -> Picture:
        bars, left_out = read_bars(self.table)
        if left_out:
            print(f"left out: {', '.join(left_out)}")
        return "scores", lambda: draw_scores(bars), {}


@dataclass
class Aggregate(Command):
    """What sweeps say as a whole: aggregate scores with intervals, profiles, and a table with the paper's scores."""

    sweeps: tyro.conf.Positional[tuple[Path, ...]]
    """One or more folders of sweep.py; settings, sweeps or the values of one that varies a flag, are compared."""

    def load(self) -> Picture:
        from viewing.figures_aggregate import draw_aggregate, import_rliable, read_sweep, tables

        if not self.sweeps:
            raise UsageError("name one or more folders of sweep.py: python figures.py aggregate sweeps/...")
        import_rliable()
        read = [read_sweep(path) for path in self.sweeps]
        settings = [setting for of_sweep, _ in read for setting in of_sweep]
        print(*(note for _, notes in read for note in notes), sep="\n")
        return "aggregate", lambda: draw_aggregate(settings), tables(settings)


@dataclass
class Embedding(Played):
    """A map (t-SNE) of the last hidden layer over states met in play, coloured by value (paper, Fig. 4)."""

    # Below three times t-SNE's perplexity, 30, a map has no meaning; more states take hours, and gigabytes of screens.
    states: Annotated[int, Bounds(90, 10_000)] = 2_000
    """States on the map; every fourth that the network meets at epsilon 0.05 is taken."""

    def load(self) -> Picture:
        from viewing.figures_played import Watched, draw_embedding

        player = Watched(self.state_dict, self.seed)
        return f"embedding-{game_key(player.game)}", lambda: draw_embedding(player, self.states), {}


@dataclass
class Value(Played):
    """The value of the states along one played game, with the screens at its peaks (Ext. Data Fig. 2)."""

    def load(self) -> Picture:
        from viewing.figures_played import Watched, draw_value

        player = Watched(self.state_dict, self.seed)
        return f"value-{game_key(player.game)}", lambda: draw_value(player), {}


COMMANDS: dict[str, Any] = {kind.__name__.lower(): kind for kind in (Curves, Scores, Aggregate, Embedding, Value)}


def output_paths(output: str, name: str, tables: Iterable[str] = ()) -> list[Path]:
    """The PNG, the SVG and the tables to write, before anything is drawn; raises `UsageError`.

    output: a folder, known by being there or by a slash at its end, for files called `name`; else their base name.
    """
    base = Path(output)
    if base.is_dir() or output.endswith("/"):
        base /= name
    elif base.suffix in (".png", ".svg"):
        base = base.with_suffix("")
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to --output {output}: {error.strerror}") from None
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
    name, draw, texts = command.load()
    paths = output_paths(command.output, name, texts)
    with mpl.rc_context(STYLE):
        save(draw(), paths, texts)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_with(main, smaller="--states")
