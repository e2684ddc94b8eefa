"""What a trial of Ray Tune does on its node: it runs scripts of the project, each in a process of its own."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from atari import paper_scores
from runtime.files import write_text

ROOT = Path(__file__).parent.parent
OF_TRIAL = ("file", "roms", "stages", "networks")
EVALUATION_SEED = 2015  # of all networks: games that no run was trained or chosen on


def run_trial(trial: dict[str, Any]) -> None:
    """Train and score the trial's runs, one for each of its roms or one of its own game, to the end of each stage.

    What is done is not repeated. trial: flags of its own, and `OF_TRIAL`; the file has the flags of all runs.
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
            score, paper = float(next(csv.DictReader(scored.read_text().splitlines()))["mean"]), paper_scores(rom)
            scores.append(paper.normalised(score) if paper and len(trial["roms"]) > 1 else score)
        tune.report({"score": float(np.mean(scores))})


def train_and_score(run: Path, config: dict[str, Any], networks: list[str], scored: Path) -> None:
    """Train a run with its config, or resume it, and have its networks scored by the paper's protocol."""
    file = run.parent / "configs" / f"{run.name}.json"
    write_text(file, json.dumps(config))
    run_script(run, "q_agent_train.py", "--run-dir", str(run), "--config", str(file))
    flags = "--seed", str(EVALUATION_SEED), "--games", str(config["evaluation_games"]), "--csv", str(scored)
    there = [str(run / name) for name in networks if (run / name).exists()]
    run_script(run, "evaluate.py", *flags, "--state-dict", *there)


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
