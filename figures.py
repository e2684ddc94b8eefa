"""Files on disk -> the paper's figures, as PNG and SVG: python figures.py --help"""

import os
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import matplotlib as mpl
import tyro
from matplotlib.figure import Figure

from errors import UsageError, exit_with
from figures_tables import draw_curves, draw_scores, read_bars, read_run
from nature_scores import game_key

# figures_played brings torch and scikit-learn: only the commands that play a network import it.


class Command(Protocol):
    """A kind of picture with its options."""

    output: str

    def draw(self) -> tuple[Figure, str]:
        """The picture, and the file name it goes by unless --output says another."""
        ...


@dataclass
class Curves:
    """Score and average action value over training, from the files of runs (paper, Fig. 2)."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, all of one game; of several the mean and its 95% interval across runs are drawn."""
    output: str = "."
    """A folder, or a base name to which .png and .svg are added."""

    def draw(self) -> tuple[Figure, str]:
        """See `draw_curves`."""
        if not self.runs:
            raise UsageError("name one or more run folders: python figures.py runs/...")
        runs = [read_run(path) for path in self.runs]
        keys = {game_key(run.game): run.game for run in runs}
        if len(keys) > 1:
            raise UsageError(f"the runs are of different games ({', '.join(keys.values())}); draw one game at a time")
        return draw_curves(runs), f"curves-{next(iter(keys))}"


@dataclass
class Scores:
    """Normalised scores beside the paper's, a group of bars per row, best first (paper, Fig. 3)."""

    table: tyro.conf.Positional[Path]
    """What evaluate.py --csv wrote: a CSV file with the columns game and mean."""
    output: str = "."
    """A folder, or a base name to which .png and .svg are added."""

    def draw(self) -> tuple[Figure, str]:
        """See `draw_scores`."""
        bars, left_out = read_bars(self.table)
        if left_out:
            print(f"left out, not among the paper's 49 games: {', '.join(left_out)}")
        return draw_scores(bars), "scores"


@dataclass
class Embedding:
    """A map (t-SNE) of the last hidden layer over states met in play, coloured by value (paper, Fig. 4)."""

    state_dict: Path
    """State dict file of the network, such as runs/.../model.pt."""
    states: int = 2_000
    """States on the map; every fourth that the network meets at epsilon 0.05 is taken."""
    seed: int = 0
    """Seed of the games, the random actions and the map."""
    output: str = "."
    """A folder, or a base name to which .png and .svg are added."""

    def draw(self) -> tuple[Figure, str]:
        """See `figures_played.draw_embedding`."""
        from figures_played import Watched, draw_embedding

        with closing(Watched(self.state_dict, self.seed)) as player:
            return draw_embedding(player, self.states), f"embedding-{game_key(player.game)}"


@dataclass
class Value:
    """The value of the states along one played game, with the screens at its turning points (Ext. Data Fig. 2)."""

    state_dict: Path
    """State dict file of the network, such as runs/.../model.pt."""
    seed: int = 0
    """Seed of the game and of the random actions; another seed, another game."""
    output: str = "."
    """A folder, or a base name to which .png and .svg are added."""

    def draw(self) -> tuple[Figure, str]:
        """See `figures_played.draw_value`."""
        from figures_played import Watched, draw_value

        with closing(Watched(self.state_dict, self.seed)) as player:
            return draw_value(player), f"value-{game_key(player.game)}"


COMMANDS: dict[str, Callable[..., Command]] = {
    "curves": Curves,
    "scores": Scores,
    "embedding": Embedding,
    "value": Value,
}


def save(figure: Figure, output: str, name: str) -> list[Path]:
    """Write the figure as PNG and SVG, each whole or not at all; raises `UsageError` when that cannot be done.

    output: a folder, known by being there or by a slash at its end, for files called `name`; else their base name.
    """
    base = Path(output)
    if os.path.isdir(base) or output.endswith("/"):
        base /= name
    elif base.suffix in (".png", ".svg"):
        base = base.with_suffix("")
    paths = [base.with_name(base.name + suffix) for suffix in (".png", ".svg")]
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        for path in paths:
            _write_atomically(figure, path)
    except OSError as error:
        raise UsageError(f"--output {output} cannot be written: {error.strerror or error}") from None
    return paths


def _write_atomically(figure: Figure, path: Path) -> None:
    # checkpoint.py has the same for tensors, and with them torch.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def main() -> None:
    """The command line; `figures.py RUN ...` is short for `figures.py curves RUN ...`."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] not in (*COMMANDS, "-h", "--help"):
        arguments.insert(0, "curves")
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        args=arguments,
        description="Draw the paper's figures from files on disk, as PNG and SVG. "
        "figures.py RUN ... is short for figures.py curves RUN ...",
    )
    style = mpl.rc_context(
        {
            "font.size": 12,
            "axes.spines.right": False,
            "legend.edgecolor": "none",
            "legend.fontsize": 10.5,
            "figure.dpi": 110,
            "svg.hashsalt": "figures",  # the same data, the same bytes
        }
    )
    with style:
        figure, name = command.draw()
        for path in save(figure, command.output, name):
            print(path)


if __name__ == "__main__":
    exit_with(main)
