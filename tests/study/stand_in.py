"""Loaded by the processes of test_cluster.py: trains a run in plain Python.

papermill and its kernel would take ten seconds. While there is a file `hold` in the process's
folder for temporary files, a run waits once it has a checkpoint. The file `error` holds the
sentence of the error that ended a run.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

TEMPORARY = Path(tempfile.gettempdir())


def papermill_command(notebook, output, parameters):
    if notebook != "train.ipynb":
        return [sys.executable, "-c", ""]
    return [sys.executable, __file__, json.dumps(parameters)]


def install():
    from kdnb.study import plan, worker

    worker.papermill_command = plan.papermill_command = papermill_command


def dask_setup(server):
    install()


def main(parameters):
    from kdnb import InputError, Run, train
    from kdnb.training.step import Engine

    run = Run(**parameters)
    step = Engine.__call__

    def held_step(self, batch):
        while (TEMPORARY / "hold").exists() and (run.folder / "checkpoint").exists():
            time.sleep(0.02)
        return step(self, batch)

    Engine.__call__ = held_step
    try:
        train(run)
    except InputError as error:
        (TEMPORARY / "error").write_text(str(error))
        raise


if __name__ == "__main__":
    if sys.argv[1] == "study":
        from kdnb.study import __main__ as study

        install()
        sys.exit(study.main(sys.argv[2:]))
    main(json.loads(sys.argv[1]))
