"""On a node: runs commands for a Ray task, and outlives it just long enough to leave nothing behind.

Ray kills a worker's own children when the worker ends, but nothing below them, and a worker that is killed
cannot tidy up. So this process leaves the worker's family first. It is asked for one command a line of
standard input, as JSON, and answers with a line that holds the command's exit status. When its input
ends, whether the task is done or dead, it ends what runs with everything below it (`pipeline.leash`) and
removes the folder.
"""

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from pipeline import leash

CLONE, LOG = "clone", "log.txt"  # in the folder: where commands run, and where what they say is


def main(folder: Path) -> None:
    """Serve requests until the input ends, then remove `folder`."""
    if os.fork():
        os._exit(0)  # an orphan is nobody's child
    os.setsid()
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=[requests], daemon=True).start()
    try:
        while request := requests.get():
            status = _run(json.loads(request), folder, requests)
            print(status, flush=True)
    except BrokenPipeError:
        pass  # the task died between asking and listening
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _listen(requests: "queue.Queue[str]") -> None:
    """Pass lines on; an empty one says that the input ended."""
    for line in sys.stdin:
        requests.put(line)
    requests.put("")


def _run(command: list[str], folder: Path, requests: "queue.Queue[str]") -> int:
    """Run a command in the clone; 1 where it ended because the input did."""
    with open(folder / LOG, "ab") as log:
        process = leash.start(command, cwd=folder / CLONE, stdout=log, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None:
            if not requests.empty():  # requests come one at a time: this is the end
                requests.queue.clear()
                requests.put("")
                return 1
            time.sleep(0.05)
        return process.returncode
    finally:
        leash.let_go(process)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
