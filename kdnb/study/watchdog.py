"""python watchdog.py COMMAND ...: runs a command that ends with whoever started this, however that one ended.

A byte on stdin interrupts the notebook's kernel, as JupyterLab's stop button does: papermill, interrupted, would give
it 5 seconds, and a step of a large network may take longer. The end of stdin, which comes when the other end's process
is gone, ends everything. Imports nothing of kdnb: it lives beside every run.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import psutil


def listen(command: psutil.Popen) -> None:
    while os.read(0, 1):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            for kernel in command.children() or [command]:
                kernel.send_signal(signal.SIGINT)
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [*command.children(recursive=True), command]:
            process.kill()


if __name__ == "__main__":
    command = psutil.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=listen, args=(command,), daemon=True).start()
    os._exit(command.wait() != 0)
