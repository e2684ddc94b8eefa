"""A script of the project in a process that ends with its parent, a worker of Ray; imports nothing that is large."""

import os
import runpy
import signal
import subprocess
import sys
import threading
import time

LOOK_EVERY_SECONDS = 0.5
GRACE_SECONDS = 6.0  # a training saves within a second or two; after this it is killed, and loses a few minutes
STOP_SECONDS = 60.0  # for a run to save when it is asked to
SMALLEST_GPU = """import torch
print(min(torch.cuda.get_device_properties(each).total_memory for each in range(torch.cuda.device_count())))"""


def run_guarded(command: list[str], log: str, root: str, threads: int, gpu: bool) -> int:
    """Run a script with its flags, what it prints behind `log`, with a GPU or none; returns its exit status.

    For a worker of Ray: cancelled there, it has the script save and end. When the worker dies, the script
    saves and ends, too, where Ray does not kill it at once (`jobs._connect`).
    """
    guard = [sys.executable, "-m", "cluster.guarded", str(os.getpid()), *command]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    if not gpu:  # Ray hides GPUs from those that asked for some, from others it does not
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with open(log, "ab") as output:
        quiet = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        # In a session of its own: Ctrl-C in a terminal is for the driver.
        process = subprocess.Popen(guard, cwd=root, env=environment, start_new_session=True, **quiet)  # type: ignore[call-overload]
    try:
        while process.poll() is None:  # Ray's cancelling interrupts Python, but no call that waits
            time.sleep(LOOK_EVERY_SECONDS / 2)
    except KeyboardInterrupt:
        process.terminate()
        process.wait(STOP_SECONDS)
    return int(process.returncode)


def smallest_gpu_bytes() -> int:
    """The memory of the smallest GPU of this machine; raises `RuntimeError`.

    Another process looks, for what PyTorch takes of a GPU to look at it goes with that.
    """
    looked = subprocess.run([sys.executable, "-c", SMALLEST_GPU], capture_output=True, text=True)
    if looked.returncode:
        raise RuntimeError((looked.stderr.strip() or "it was killed").splitlines()[-1])
    return int(looked.stdout)


def end_with(parent: int) -> None:
    """Watch, in a thread, for this process to lose its parent; then stop it as SIGTERM does, or at last by force."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _, of_worker, script, *flags = sys.argv
    end_with(int(of_worker))
    sys.argv = [script, *flags]
    runpy.run_path(script, run_name="__main__")
