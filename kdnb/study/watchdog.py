"""Run a command that ends with the process that started this one, however that one ends.

    python watchdog.py command COMMAND ...
    python watchdog.py kernel COMMAND ...

A byte on stdin interrupts the command; or else the kernel of the notebook that it executes, as
JupyterLab's stop button does. (papermill itself, when it is interrupted, ends its kernel after 5
seconds, and a step of a large network may take longer.) The end of stdin kills the command and all
its children:
the system closes the pipe when the process at its other end is gone. It imports nothing of kdnb,
because there is one such process per run.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import psutil


def listen(command: psutil.Popen, interrupted: str) -> None:
    """Interrupt "command" or its "kernel" for each byte on stdin; kill both when stdin ends."""
    while os.read(0, 1):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended just now
            kernels = command.children() if interrupted == "kernel" else []
            for process in kernels or [command]:
                process.send_signal(signal.SIGINT)
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [*command.children(recursive=True), command]:
            process.kill()


if __name__ == "__main__":
    interrupted, *words = sys.argv[1:]
    command = psutil.Popen(words, stdin=subprocess.DEVNULL)
    threading.Thread(target=listen, args=(command, interrupted), daemon=True).start()
    status = command.wait()
    if status < 0:  # nothing else says so: the last line of a log is shown as the reason
        print(f"killed by {signal.Signals(-status).name}", file=sys.stderr, flush=True)
    os._exit(status != 0)
