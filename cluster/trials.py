"""What a trial of Ray Tune does on its node: it runs scripts of the project, each in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from atari import paper_scores
from machine.files import write_text
from machine.tables import read_rows

ROOT = Path(__file__).parent.parent
LOOK_SECONDS, REPORT_SECONDS = 0.2, 10.0
EVALUATION_SEED = 2015  # of all networks: games that no run was trained or chosen on


def run_trial(trial: dict[str, Any]) -> None:
    """Train and score the runs of a trial, one per ROM, to the end of each of its stages; what is done is not repeated.

    trial: file, the sweep.json or search.json whose flags hold for all runs; roms; stages; networks, those to be
    scored; the others are flags of this trial. The score of several games is the mean of the normalised scores.
    """
    own = {name: value for name, value in trial.items() if name not in ("file", "roms", "stages", "networks")}
    for stage in range(1, trial["stages"] + 1):
        scores = []
        for rom in trial["roms"] or [trial["game"]]:
            config = json.loads(Path(trial["file"]).read_text())["run"] | own | {"game": rom}
            # No run ends in its warm-up.
            end = max(config["steps"] * stage // trial["stages"], int(config["replay_start_size"]) + 1)
            run = Path(trial["file"]).parent / (tune.get_context().get_trial_name() + f"-{rom}" * bool(trial["roms"]))
            score = score_of(run, config | {"steps": end}, trial, f"-{stage}" * (trial["stages"] > 1))
            paper = paper_scores(rom)
            scores.append(paper.normalised(score) if paper and len(trial["roms"]) > 1 else score)
        tune.report(progress(run) | {"score": float(np.mean(scores))})


def score_of(run: Path, config: dict[str, Any], trial: dict[str, Any], stage: str) -> float:
    """Train a run as its config says, or resume it, and score its networks; returns the first one's mean score."""
    scores = run.parent / "scores" / f"{run.name}{stage}.csv"
    if not scores.exists():
        file = run.parent / "configs" / f"{run.name}.json"
        write_text(file, json.dumps(config))
        for _ in run_script(run, "q_agent_train.py", "--run-dir", str(run), "--config", str(file)):
            if trial["stages"] == 1:  # Between stages there is no score to report to a search.
                tune.report(progress(run))
        networks = [str(run / name) for name in trial["networks"] if (run / name).exists()]
        flags = "--seed", str(EVALUATION_SEED), "--games", str(config["evaluation_games"]), "--csv", str(scores)
        _ = [*run_script(run, "evaluate.py", *flags, "--state-dict", *networks)]
    return float(scores_in(scores)[0]["mean"])


def scores_in(file: Path) -> list[dict[str, str]]:
    """The rows that evaluate.py wrote; raises `UsageError`."""
    return read_rows(file, ("state_dict", "mean"), lambda _line, row: row)


def run_script(run: Path, script: str, *flags: str) -> Iterator[None]:
    """Run a script, what it prints appended to the run's log; yields every `REPORT_SECONDS` until it has ended.

    Raises `RuntimeError` with the last line that it printed where its exit status is not 0.
    """
    cpus, gpus = (tune.get_context().get_trial_resources().required_resources.get(name, 0) for name in ("CPU", "GPU"))
    # Ray sets OMP_NUM_THREADS for its workers, too; the number of threads decides the bits of a run.
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, int(cpus))), "PYTHONUNBUFFERED": "1"}
    if not gpus:  # Ray hides GPUs from those that ask for some, from others it does not.
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "cluster.supervised", str(os.getpid()), str(ROOT / script), *flags]
    log = run.parent / "logs" / f"{run.name}.txt"
    with open(log, "ab") as out:
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
        # It has a session of its own, because Ctrl-C in a terminal is for the driver.
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **quiet)
    reported = time.monotonic()
    while process.poll() is None:
        time.sleep(LOOK_SECONDS)
        if time.monotonic() - reported >= REPORT_SECONDS:
            yield
            reported = time.monotonic()
    if process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or [f"exit status {process.returncode}"]
        raise RuntimeError(lines[-1].rsplit("\r", 1)[-1].strip())


def progress(run: Path) -> dict[str, float]:
    """How far a run is, by the rows of its games.csv that are written to their ends."""
    text = (run / "games.csv").read_text() if (run / "games.csv").exists() else ""
    games = [line.split(",") for line in text.split("\n")[1:-1]]
    mean = float(np.mean([float(row[3]) for row in games[-100:]])) if games else float("nan")
    return {"agent_steps": int(games[-1][1]) if games else 0, "mean_of_100": mean}
