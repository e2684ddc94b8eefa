"""Everything that a user can get wrong: one clear line, the right exit status, and no file changed.

Each row is a command, as typed behind `python`, in a folder with networks, tables, pictures and a run.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import save_network
from soak import SMALL

import benchmark
import evaluate
import figures
import play
import q_agent_train
import trained_model_video_generation as film
from runtime.checkpoint import CheckpointFile, save_state_dict
from runtime.devices import set_up_torch
from runtime.exits import UsageError, exit_with
from runtime.flags import parse
from runtime.run_config import FLAGS

SCRIPTS = {
    "q_agent_train.py": q_agent_train.main,
    "evaluate.py": evaluate.main,
    "trained_model_video_generation.py": film.main,
    "play.py": play.main,
    "figures.py": figures.main,
    "benchmark.py": benchmark.main,
}
TRAIN, EVALUATE, FILM = "q_agent_train.py", "evaluate.py --state-dict", "trained_model_video_generation.py --state-dict"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound files and broken ones, what is another program's, and a run that may go on."""
    folder = tmp_path_factory.mktemp("world")
    network = torch.load(save_network(folder / "net.pt"), weights_only=True)
    for name, value in (("nan.pt", float("nan")), ("inf.pt", float("-inf"))):
        broken = network["values.bias"].clone()
        broken[1] = value
        save_state_dict(network | {"values.bias": broken}, folder / name)
    flipped = bytearray((folder / "net.pt").read_bytes())
    flipped[3_000_000] ^= 1
    (folder / "flipped.pt").write_bytes(flipped)
    (folder / "half.pt").write_bytes(flipped[: len(flipped) // 2])
    torch.save({"epoch": 3}, folder / "other.pt")
    torch.save({name: tensor for name, tensor in network.items() if name != "conv1.bias"}, folder / "lacking.pt")
    save_network(folder / "many.pt", num_actions=18)
    save_network(folder / "unknown.pt", game="tetris_of_mine")
    for name in ("notes.txt", "film.mp4", "film.gif", "picture.png", "picture.svg", "table.csv", "data.json"):
        (folder / name).write_text(f"mine: {name}\n")
    (folder / "scores.csv").write_text("game,mean\nbreakout,12\n")
    (folder / "evaluated.csv").write_text(f"{','.join(evaluate.COLUMNS)}\n")
    (folder / "evaluated.json").write_text('{\n  "epsilon": 0.05,\n  "minutes": 5,\n  "seed": 0,\n  "rows": []\n}\n')
    (folder / "huge.csv").write_text("game,mean\nbreakout,1e308\nbreakout,-1e308\n")
    (folder / "words.csv").write_text("game,mean\nbreakout,many\n")
    for name in ("models", "folder.csv", "folder.mp4", "folder.png"):
        (folder / name).mkdir()
    (folder / "models" / "model.pt").write_text("mine\n")
    config = q_agent_train.Config(
        **{**vars(SMALL), "steps": 1_200, "save_every_games": 1_000, "run_dir": folder / "run"}
    )
    q_agent_train.train(config)
    return folder


@functools.cache
def digest_of(path: Path, *_version: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, once for each version of it; folders by name; the lock that a run leaves aside."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.name != "lock"):
        now = path.lstat()
        version = now.st_mtime_ns, now.st_size, now.st_ino
        found[str(path.relative_to(folder))] = digest_of(path, *version) if path.is_file() else ""
    return found


def run_here(command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and all that was printed, by the emulator too, of a script run in this process."""
    script, *arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    capfd.readouterr()
    status = 0
    try:
        exit_with(SCRIPTS[script])
    except SystemExit as end:
        status = int(end.code or 0)
    output = capfd.readouterr()
    return status, output.out + output.err


ROWS = [
    # a file of another kind is never replaced
    (f"{EVALUATE} net.pt --csv net.pt", 2, "net.pt must end in .csv"),
    (f"{EVALUATE} net.pt --csv run/games.csv", 2, "games.csv is the name of a run's own file"),
    (f"{EVALUATE} net.pt --csv run/config.json", 2, "config.json must end in .csv"),
    (f"{EVALUATE} net.pt --csv /dev/null", 2, "/dev/null must end in .csv"),
    (f"{EVALUATE} net.pt --csv folder.csv", 2, "folder.csv is a folder"),
    (f"{EVALUATE} net.pt --csv ''", 2, ". must end in .csv"),
    (f"{EVALUATE} net.pt --csv missing/scores.csv", 2, "the folder missing"),
    (f"{EVALUATE} net.pt --csv notes.txt/scores.csv", 2, "the folder notes.txt"),
    (f"{EVALUATE} net.pt --csv /proc/scores.csv", 2, "/proc/scores.csv cannot be written"),
    (f"{EVALUATE} net.pt --csv {'long' * 80}.csv", 2, "File name too long"),
    (f"{EVALUATE} net.pt --json run/config.json", 2, "config.json is the name of a run's own file"),
    (f"{EVALUATE} net.pt --json evaluated.csv", 2, "evaluated.csv must end in .json"),
    (f"{EVALUATE} net.pt --json net.pt", 2, "net.pt must end in .json"),
    (f"{EVALUATE} net.pt --json missing/scores.json", 2, "the folder missing"),
    (f"{EVALUATE} net.pt --json folder.csv", 2, "folder.csv must end in .json"),
    (f"{EVALUATE} net.pt --csv new.csv --json ./new.csv", 2, "new.csv must end in .json"),
    (f"{FILM} net.pt --output folder.mp4", 2, "folder.mp4 is a folder"),
    (f"{FILM} net.pt --output missing/film.mp4", 2, "the folder missing"),
    (f"{FILM} net.pt --output /proc/film.mp4", 2, "/proc/film.mp4 cannot be written"),
    (f"{FILM} net.pt --output film.avi", 2, "must end in .mp4"),
    (f"{FILM} net.pt --gif --output new.mp4", 2, "must end in .gif"),
    (f"{FILM} net.pt --frames models", 2, "models cannot be made: Directory not empty; name a folder that is new or"),
    (f"{FILM} net.pt --frames notes.txt", 2, "notes.txt cannot be made: Not a directory"),
    (f"{FILM} net.pt --frames missing/frames", 2, "the folder missing of frames is not there"),
    (f"{FILM} net.pt --frames notes.txt/frames", 2, "the folder notes.txt"),
    (f"{FILM} net.pt --frames /proc/frames", 2, "/proc/frames cannot be made"),
    (f"{FILM} net.pt --frames {'long' * 80}", 2, "File name too long"),
    (f"{FILM} net.pt --frames ''", 2, ". cannot be made"),
    (f"{FILM} net.pt --frames ..", 2, ".. cannot be made"),
    (f"{FILM} net.pt --frames new.mp4 --output new.mp4", 2, "--frames new.mp4 is where the film new.mp4 goes"),
    (f"{FILM} net.pt --frames breakout.mp4", 2, "--frames breakout.mp4 is where the film breakout.mp4 goes"),
    (f"{FILM} net.pt --frames folder.mp4 --output folder.mp4/x.mp4", 2, "is where the film folder.mp4/x.mp4 goes"),
    (f"{FILM} nan.pt --frames new", 2, "nan.pt holds weights that are no finite numbers"),
    ("play.py --state-dict net.pt --record missing/film.mp4", 2, "the folder missing"),
    ("play.py --state-dict net.pt --record net.pt", 2, "must end in .mp4"),
    ("figures.py scores scores.csv --output folder", 2, "folder.png is a folder"),
    ("figures.py run --output notes.txt/curves", 2, "--output notes.txt/curves cannot be written"),
    ("figures.py run --output /proc/curves", 2, "/proc/curves.png cannot be written"),
    ("figures.py embedding --state-dict net.pt --output /proc/map", 2, "/proc/map.png cannot be written"),
    ("benchmark.py --json run/config.json", 2, "config.json is the name of a run's own file"),
    ("benchmark.py --json missing/result.json", 2, "the folder missing"),
    (
        "benchmark.py --figure new.png",
        2,
        "--figure does nothing with compare; leave it out, or type python benchmark.py",
    ),
    ("benchmark.py inference --seconds 1", 2, "or type python benchmark.py compare or scaling"),
    ("benchmark.py learning --game Pongg", 2, 'unknown game "Pongg"'),
    (
        "benchmark.py learning --config quickk --run-dir hour",
        2,
        "--config quickk is neither a file nor one of configs/",
    ),
    ("benchmark.py learning --programs dqn", 2, "there is no dqn; there are example"),
    ("benchmark.py parts --rounds 3", 2, "--rounds does nothing with parts"),
    ("benchmark.py scaling --num-envs 8", 2, "--num-envs does nothing with scaling"),
    ("benchmark.py --point-seconds 1", 2, "or type python benchmark.py inference"),
    # a run folder is new, empty, or a run
    (f"{TRAIN} --run-dir models", 2, "models is neither new, nor empty, nor a run: it holds model.pt"),
    (f"{TRAIN} --run-dir ''", 2, "is neither new, nor empty, nor a run"),
    (f"{TRAIN} --run-dir .", 2, "is neither new, nor empty, nor a run"),
    (f"{TRAIN} --run-dir runs/...", 2, "the dots stand for a run's name"),
    (f"{TRAIN} --run-dir notes.txt", 2, "notes.txt"),
    (f"{TRAIN} --run-dir notes.txt/run", 2, "notes.txt/run"),
    (f"{TRAIN} --run-dir /proc/run --replay-size 1600 --replay-start-size 320", 2, "/proc/run cannot be written"),
    (f"{TRAIN} --run-dir run --learning-rate 0.1", 2, "--learning-rate 0.1 contradicts run"),
    (f"{TRAIN} --run-dir run --game Pong", 2, "--game Pong contradicts run"),
    (f"{TRAIN} --run-dir run --steps 1000", 2, "would shorten run"),
    # a network is whole and finite wherever one is read
    (f"{EVALUATE} nan.pt", 2, "nan.pt holds weights that are no finite numbers"),
    (f"{EVALUATE} net.pt inf.pt", 2, "inf.pt holds weights that are no finite numbers"),
    (f"{FILM} nan.pt", 2, "nan.pt holds weights that are no finite numbers"),
    ("play.py --state-dict nan.pt", 2, "nan.pt holds weights that are no finite numbers"),
    ("figures.py value --state-dict inf.pt", 2, "inf.pt holds weights that are no finite numbers"),
    ("figures.py embedding --state-dict nan.pt", 2, "nan.pt holds weights that are no finite numbers"),
    (f"{EVALUATE} flipped.pt", 2, "flipped.pt is damaged, its checksum does not match"),
    (f"{FILM} flipped.pt", 2, "flipped.pt is damaged, its checksum does not match"),
    (f"{EVALUATE} half.pt", 2, "half.pt is truncated or was not written by this project"),
    (f"{EVALUATE} notes.txt", 2, "notes.txt is truncated or was not written by this project"),
    (f"{EVALUATE} other.pt", 2, "other.pt is not a state dict of this project"),
    (f"{EVALUATE} run/checkpoint.pt", 2, "checkpoint.pt is not a state dict of this project"),
    (f"{EVALUATE} lacking.pt", 2, "lacking.pt is a state dict of another network"),
    (f"{EVALUATE} many.pt", 2, "many.pt is for 18 actions, and breakout has 4"),
    (f"{FILM} many.pt", 2, "many.pt is for 18 actions, and breakout has 4"),
    (f"{FILM} unknown.pt", 2, 'unknown game "tetris_of_mine"'),
    (f"{EVALUATE} unknown.pt", 2, 'unknown game "tetris_of_mine"'),
    (f"{EVALUATE} missing.pt", 2, "missing.pt is not there"),
    (f"{EVALUATE} models", 2, "models is no file"),
    (f"{EVALUATE} /dev/zero", 2, "/dev/zero is no file"),
    # values that cannot be
    (f"{TRAIN} --steps 1000000000000000000", 2, "--steps 1000000000000000000 cannot be"),
    (f"{TRAIN} --steps -1", 2, "--steps -1 cannot be"),
    (f"{TRAIN} --steps 1.5", 2, "--steps: '1.5' is not a whole number"),
    (f"{TRAIN} --steps 1e400", 2, "--steps: '1e400' is not a whole number"),
    (f"{TRAIN} --minibatch-size 1000000000000", 2, "--minibatch-size 1000000000000 needs about"),
    (f"{TRAIN} --minibatch-size 1000000", 2, "--minibatch-size 1000000 needs about"),
    (f"{TRAIN} --learning-rate 1e300", 2, "--learning-rate 1e+300 cannot be"),
    (f"{TRAIN} --min-squared-gradient 1e300", 2, "--min-squared-gradient 1e+300 cannot be"),
    (f"{TRAIN} --epsilon-decay-steps {10**40}", 2, "--epsilon-decay-steps"),
    (f"{TRAIN} --evaluate-every {10**40}", 2, "--evaluate-every"),
    (f"{TRAIN} --replay-size {10**40}", 2, "--replay-size"),
    (f"{TRAIN} --num-envs 257", 2, "--num-envs 257 cannot be"),
    (f"{TRAIN} --seed -1", 2, "--seed -1 cannot be"),
    (f"{TRAIN} --discount nan", 2, "--discount nan cannot be"),
    (f"{TRAIN} --replay-start-size 2000000", 2, "--replay-start-size 2000000 is more than --replay-size 1000000 holds"),
    (f"{TRAIN} --replay-start-size 50000 --steps 40000", 2, "nothing would be learned"),
    (f"{TRAIN} --steps 50000", 2, "nothing would be learned"),
    (f"{TRAIN} --epsilon-end 0.5 --epsilon-start 0.1", 2, "--epsilon-end 0.5 lies above --epsilon-start 0.1"),
    (f"{TRAIN} --game ''", 2, 'unknown game ""'),
    (f"{TRAIN} --device cuda:99", 2, "--device cuda:99 is not there"),
    ("figures.py embedding --state-dict net.pt --states 89", 2, "--states 89 cannot be"),
    ("figures.py embedding --state-dict net.pt --states 1e9", 2, "--states 1000000000 cannot be"),
    (f"{EVALUATE} net.pt --games 1001", 2, "--games 1001 cannot be"),
    (f"{EVALUATE} net.pt --minutes 31", 2, "--minutes 31.0 cannot be"),
    (f"{FILM} net.pt --episodes 0", 2, "--episodes 0 cannot be"),
    ("benchmark.py inference --point-seconds 0", 2, "--point-seconds 0.0 cannot be"),
    ("benchmark.py --seconds 1e308", 2, "--seconds 1e+308 cannot be"),
    ("figures.py scores huge.csv", 2, "huge.csv, line 2: mean is '1e308'"),
    ("figures.py scores words.csv", 2, "words.csv, line 2 is broken"),
    ("figures.py scores run/games.csv", 2, "games.csv has no column"),
    ("figures.py models", 2, "models is not the folder of a run"),
    # flags that are none, each with the nearest that is one
    (f"{TRAIN} --learningrate 1", 2, "--learningrate is no flag here; did you mean --learning-rate?"),
    (f"{TRAIN} --replay-sise 1", 2, "--replay-sise is no flag here; did you mean --replay-size?"),
    (f"{TRAIN} Pong", 2, "'Pong' belongs to no flag"),
    (f"{TRAIN} --seed", 2, "--seed: it needs a value"),
    (f"{TRAIN} --xyz", 2, "--xyz is no flag here; --help lists the flags"),
    (f"{TRAIN} --deterministic yes", 2, "'yes' belongs to no flag"),
    ("evaluate.py net.pt", 2, "'net.pt' belongs to no flag"),
    ("evaluate.py --statedict net.pt", 2, "--statedict is no flag here; did you mean --state-dict?"),
    ("evaluate.py", 2, "who plays? Name one of --state-dict MODEL.pt and --random --game Breakout"),
    ("evaluate.py --state-dict", 2, "who plays?"),
    (f"{EVALUATE} net.pt --random --game Breakout", 2, "who plays?"),
    ("evaluate.py --game Breakout", 2, "who plays?"),
    ("evaluate.py --random", 2, "--random needs the game: --random --game Breakout"),
    ("evaluate.py --random --game", 2, "--random needs the game"),
    ("evaluate.py --random --game Pong Pnog", 2, "did you mean Pong"),
    ("evaluate.py --random --game Pong --epsilon 0.1", 2, "--epsilon 0.1 does nothing with --random"),
    (f"{EVALUATE} net.pt --game Breakout Pong", 2, "--game Breakout Pong is for --random: a state dict knows its game"),
    (f"{EVALUATE} net.pt --epsilon half", 2, "--epsilon: 'half' is not a number"),
    (f"{FILM} net.pt --ouput x.mp4", 2, "--ouput is no flag here; did you mean --output?"),
    ("play.py --humen", 2, "--humen is no flag here; did you mean --human?"),
    ("play.py --human --game Pnog", 2, "did you mean Pong"),
    ("play.py", 2, "who plays?"),
    ("figures.py value --state-dikt net.pt", 2, "--state-dikt is no flag here; did you mean --state-dict?"),
    ("figures.py value", 2, "--state-dict is missing"),
    ("figures.py", 2, "name one or more run folders"),
    ("figures.py curves run --states 100", 2, "--states is no flag here"),
    (f"{FILM} net.pt --from 300", 2, "--from 300.0 cannot be: it must be from 0 to below 300"),
    (f"{FILM} net.pt --gif --from 3 --episodes 2", 2, "--gif --from films one game"),
    (f"{FILM} net.pt --grid 1", 2, "--grid 1 cannot be: it must be from 2 to 64"),
    (f"{FILM} net.pt --grid 65", 2, "--grid 65 cannot be"),
    (f"{FILM} net.pt --grid 4 --episodes 2", 2, "--grid films its games at once and without panels: leave --episodes"),
    (f"{FILM} net.pt --grid 4 --plain", 2, "leave --episodes and --plain out"),
    (f"{FILM} net.pt --grid 2 --from 12 --epsilon 1 --seed 16", 2, "game 1 ends after 8.3 seconds of play"),
    (f"{EVALUATE} net.pt many.pt", 2, "many.pt is for 18 actions, and breakout has 4"),
    (f"{TRAIN} --game 'a\nb'", 2, 'unknown game "a b"'),
    ("benchmark.py parts --num-envs 1e8", 2, "--num-envs 100000000 cannot be"),
    ("benchmark.py part", 2, "'part' cannot be chosen; there are compare, parts, scaling, inference"),
    ("benchmark.py --round 3", 2, "--round is no flag here; did you mean --rounds?"),
]


@pytest.mark.parametrize(("command", "status", "words"), ROWS, ids=[row[0] for row in ROWS])
def test_it_is_one_clear_line_and_no_file_changes(
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: str,
    status: int,
    words: str,
) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    before = digests(world)
    ended, output = run_here(command, monkeypatch, capfd)
    assert len(output.splitlines()) == 1, output
    assert output.startswith("error: ")
    assert words in output
    assert ended == status
    assert digests(world) == before


def edit(**changes: object) -> Callable[[Path], object]:
    """Change values in config.json."""

    def attack(run: Path) -> None:
        file = run / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return attack


def remove(*names: str) -> Callable[[Path], object]:
    def attack(run: Path) -> None:
        for name in names:
            (run / name).unlink()

    return attack


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(text)


def become_folder(name: str) -> Callable[[Path], object]:
    def attack(run: Path) -> None:
        (run / name).unlink()
        (run / name).mkdir()

    return attack


def lead_nowhere(*names: str) -> Callable[[Path], object]:
    def attack(run: Path) -> None:
        for name in names:
            (run / name).unlink()
            (run / name).symlink_to("nowhere")

    return attack


def make_file(name: str) -> Callable[[Path], object]:
    def attack(run: Path) -> None:
        shutil.rmtree(run / name)
        (run / name).write_text("mine\n")

    return attack


def cut_table(run: Path) -> None:
    os.truncate(run / "games.csv", 100)


def edit_table(run: Path) -> None:
    rows = (run / "games.csv").read_text().splitlines(keepends=True)
    (run / "games.csv").write_text("".join([*rows[:1], *reversed(rows[1:])]))


def change_checkpoint(change: Callable[[dict], object]) -> Callable[[Path], object]:  # type: ignore[type-arg]
    """Write the newest checkpoint anew, whole, behind a change; as another version, or another run, would have."""

    def attack(run: Path) -> None:
        checkpoints = CheckpointFile(run)
        state, _ = checkpoints.load()
        change(state)
        checkpoints.save(state)

    return attack


def take_seed_1(state: dict) -> None:  # type: ignore[type-arg]
    state["config"]["seed"] = 1


ATTACKS = {
    "config.json is missing": (remove("config.json"), 2, 'put it back; the checkpoint was made with {"game": '),
    "its learning rate is edited": (edit(learning_rate=1.0), 2, '"learning_rate": 1.0 here, "learning_rate": 0.00025'),
    "its memory is edited": (edit(replay_size=960), 2, '"replay_size": 960 here'),
    "its environments are edited": (edit(num_envs=8), 2, '"num_envs": 8 here'),
    "its game is edited": (edit(game="Pong"), 2, '"game": "Pong" here'),
    "its seed is edited": (edit(seed=1), 2, '"seed": 1 here, "seed": 0 there'),
    "a key of config.json is lost": (
        lambda run: write("config.json", '{"game": "Pong"}')(run),
        2,
        "config.json has too many keys or too few (actions, adam_epsilon,",
    ),
    "a key that this version does not know": (
        edit(teacher="me"),
        2,
        "config.json has too many keys or too few (teacher)",
    ),
    "config.json is brackets": (write("config.json", "[" * 200_000), 2, "config.json cannot be read"),
    "config.json is a list": (write("config.json", "[]"), 2, "is not a run's configuration"),
    "config.json is a folder": (become_folder("config.json"), 2, "config.json is a folder"),
    "the checkpoint is another run's": (change_checkpoint(take_seed_1), 2, "or the checkpoint is another run's"),
    "the checkpoint lacks a key": (change_checkpoint(lambda state: state.pop("lengths")), 1, "(lengths)"),
    "the checkpoint lacks a tensor": (
        change_checkpoint(lambda state: state["training"]["agent"].pop("target")),
        1,
        "(training agent target)",
    ),
    "the checkpoint has another network's tensors": (
        change_checkpoint(lambda state: state["training"]["agent"].update(online=torch.zeros(9))),
        1,
        "(training agent online)",
    ),
    "an edited value cannot be": (edit(num_envs=257), 2, "config.json: --num-envs 257 cannot be"),
    "an edited game is none": (edit(game="Pnog"), 2, 'unknown game "Pnog"; did you mean Pong?'),
    "config.json leads nowhere": (lead_nowhere("config.json"), 2, "config.json cannot be read"),
    "the checkpoints lead nowhere": (
        lead_nowhere("checkpoint.pt", "checkpoint.previous.pt"),
        1,
        "no checkpoint in run can be used",
    ),
    "the checkpoint knows no table": (change_checkpoint(lambda state: state.update(lengths={})), 2, "games.csv"),
    "the checkpoint is not finite": (
        change_checkpoint(lambda state: state["training"]["agent"]["online"].fill_(float("nan"))),
        1,
        "holds weights that are no finite numbers",
    ),
    "state_dicts is a file": (make_file("state_dicts"), 2, "state_dicts is a file"),
    "the checkpoints are gone": (remove("checkpoint.pt", "checkpoint.previous.pt"), 2, "but no checkpoint"),
    "all but config.json and the network are gone": (
        remove("checkpoint.pt", "checkpoint.previous.pt", "games.csv", "evaluations.csv", "best.pt"),
        2,
        "but no checkpoint",
    ),
    "both checkpoints are damaged": (
        lambda run: [write(name, "x")(run) for name in ("checkpoint.pt", "checkpoint.previous.pt")],
        1,
        "no checkpoint in run can be used",
    ),
    "games.csv is missing": (remove("games.csv"), 2, "games.csv has lost rows"),
    "games.csv is cut": (cut_table, 2, "games.csv has lost rows"),
    "games.csv is another run's": (edit_table, 2, "games.csv is not the table with which"),
    "games.csv is a folder": (become_folder("games.csv"), 2, "games.csv is a folder"),
    "model.pt is a folder": (become_folder("model.pt"), 2, "model.pt is a folder"),
    "checkpoint.pt is a folder": (become_folder("checkpoint.pt"), 2, "checkpoint.pt is a folder"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_run_that_was_tampered_with_is_refused_and_stays_as_it_is(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    attack, status, words = ATTACKS[name]
    shutil.copytree(world / "run", tmp_path / "run")
    attack(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    before = digests(tmp_path)
    ended, output = run_here(f"{TRAIN} --run-dir run --steps 1600", monkeypatch, capfd)
    *others, line = output.splitlines()
    assert line.startswith("error: ")
    assert words in line, output
    assert not others
    assert ended == status
    assert digests(tmp_path) == before


def test_what_may_change_changes(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Other minutes and another spelling of the game are no other run, however often it is killed in between."""
    shutil.copytree(world / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    edit(checkpoint_minutes=10, game="road_runner")(tmp_path / "run")
    status, output = run_here(f"{TRAIN} --run-dir run --steps 1280 --save-every-games 7", monkeypatch, capfd)
    assert status == 0, output
    assert len((tmp_path / "run" / "games.csv").read_text().splitlines()) > 9


def test_a_lost_tensorboard_file_is_said_and_the_run_goes_on(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (events,) = (tmp_path / "run").glob("events*")
    events.unlink()
    status, output = run_here(f"{TRAIN} --run-dir run --steps 1240", monkeypatch, capfd)
    assert (status, output.count(f"run/{events.name} is lost or cut")) == (0, 1), output
    assert len(list((tmp_path / "run").glob("events*"))) == 1


def test_a_foreign_lock_keeps_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lock").write_text("mine\n")
    flags = "--replay-size 1600 --replay-start-size 320 --num-envs 4 --steps 324 --device cpu --evaluate-every 0"
    assert run_here(f"{TRAIN} --run-dir {tmp_path} {flags}", monkeypatch, capfd)[0] == 0
    assert (tmp_path / "lock").read_text() == "mine\n"


def test_a_notebook_is_told_the_same() -> None:
    with pytest.raises(UsageError, match="--steps '100' cannot be: it must be a whole number"):
        q_agent_train.train(q_agent_train.Config(steps="100"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--deterministic 1 cannot be"):
        q_agent_train.train(q_agent_train.Config(deterministic=1))  # type: ignore[arg-type]
    assert q_agent_train.Config(run_dir="runs/mine").run_dir == Path("runs/mine")  # type: ignore[arg-type]


def test_a_whole_number_may_be_typed_as_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [TRAIN, "--steps", "1e6", "--seed", "3"])
    config = parse(q_agent_train.Config, groups=FLAGS)
    assert (config.steps, config.seed, type(config.steps)) == (1_000_000, 3, int)


def test_every_flag_stands_under_one_heading_of_help() -> None:
    named = [name for names in FLAGS.values() for name in names]
    assert sorted(named) == sorted(field.name for field in dataclasses.fields(q_agent_train.Config))


def test_the_compiler_is_imported_only_where_determinism_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []
    monkeypatch.setattr("torch.use_deterministic_algorithms", called.append)
    set_up_torch(False)
    assert called == []
    set_up_torch(True)
    assert called == [True]
