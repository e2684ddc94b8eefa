"""What a trial of Ray Tune does on its node: it runs scripts of the project, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from atari import paper_scores
from machine.files import write_text
from machine.tables import read_rows

ROOT = Path(__file__).parent.parent
OF_TRIAL = ("file", "roms", "stages", "networks")
EVALUATION_SEED = 2015  # of all networks: games that no run was trained or chosen on


def run_trial(trial: dict[str, Any]) -> None:
    """Train and score the runs of a trial, to the end of each of its stages; what is done is not repeated.

    trial: file, with the flags of all runs; roms, each a run, or none for one run of the trial's own game; stages;
    networks to be scored; and flags of its own. The score of several runs is the mean of the normalised scores.
    """
    shared = json.loads(Path(trial["file"]).read_text())["run"] | trial
    config = {name: value for name, value in shared.items() if name not in OF_TRIAL}
    for stage in range(1, trial["stages"] + 1):
        scores = []
        config["steps"] = max(shared["steps"] * stage // trial["stages"], int(config["replay_start_size"]) + 1)
        for rom in trial["roms"] or [trial["game"]]:
            run = Path(trial["file"]).parent / (tune.get_context().get_trial_name() + f"-{rom}" * bool(trial["roms"]))
            scored = run.parent / "scores" / (run.name + f"-{stage}" * bool(trial["roms"]) + ".csv")
            if not scored.exists():
                train_and_score(run, config | {"game": rom}, trial["networks"], scored)
            score, paper = float(scores_in(scored)[0]["mean"]), paper_scores(rom)
            scores.append(paper.normalised(score) if paper and len(trial["roms"]) > 1 else score)
        tune.report({"score": float(np.mean(scores))})


def train_and_score(run: Path, config: dict[str, Any], networks: list[str], scored: Path) -> None:
    """Train a run as its config says, or resume it, and have its networks scored by the paper's protocol."""
    file = run.parent / "configs" / f"{run.name}.json"
    write_text(file, json.dumps(config))
    run_script(run, "q_agent_train.py", "--run-dir", str(run), "--config", str(file))
    flags = "--seed", str(EVALUATION_SEED), "--games", str(config["evaluation_games"]), "--csv", str(scored)
    there = [str(run / name) for name in networks if (run / name).exists()]
    run_script(run, "evaluate.py", *flags, "--state-dict", *there)


def scores_in(file: Path) -> list[dict[str, str]]:
    """The rows that evaluate.py wrote; raises `UsageError`."""
    return read_rows(file, ("state_dict", "mean"), lambda _line, row: row)


def run_script(run: Path, script: str, *flags: str) -> None:
    """Run a script to its end, with the run's log; raises `RuntimeError` with its last line where it fails."""
    needs = tune.get_context().get_trial_resources().required_resources
    # Ray sets OMP_NUM_THREADS for its workers, too; the number of threads decides the bits of a run.
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, int(needs["CPU"]))), "PYTHONUNBUFFERED": "1"}
    if not needs.get("GPU"):  # Ray hides GPUs from those that ask for some, from others it does not.
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "cluster.supervised", str(os.getpid()), str(ROOT / script), *flags]
    log = run.parent / "logs" / f"{run.name}.txt"
    with open(log, "ab") as out:
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
        # It has a session of its own, because Ctrl-C in a terminal is for the driver.
        status = subprocess.call(command, cwd=ROOT, env=environment, start_new_session=True, **quiet)
    if status:
        lines = log.read_text(errors="replace").strip().splitlines() or [f"exit status {status}"]
        raise RuntimeError(lines[-1].rsplit("\r", 1)[-1].strip())
