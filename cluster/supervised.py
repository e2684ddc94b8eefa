"""Run a script so that it ends soon after its parent, a worker of Ray: python -m cluster.supervised PID SCRIPT"""

import os
import runpy
import signal
import sys
import threading
import time


def end_with(parent: int) -> None:
    """Stop this process as SIGTERM does, and 6 seconds later by force, once `parent` is no longer its parent."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(6)  # A training saves within a second or two; one that does not loses what it did since its checkpoint.
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _, worker, *sys.argv = sys.argv
    threading.Thread(target=end_with, args=(int(worker),), daemon=True).start()
    runpy.run_path(sys.argv[0], run_name="__main__")
